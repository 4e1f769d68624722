"""Quality of scans: measures, exclusion rules, near-duplicates, wrong region order, shift against a reference."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.duplicates import SAME_FC_R


STATISTICS = "fc_statistics.npz"  # mean and spread of the data set's FC, beside the Arrow data
DUPLICATES = ("report", "drop")
# Homotopic FC is among the strongest there is: in the right order these edges beat some 90 % of the others, in a wrong
# one half of them.
HOMOTOPIC_ORDER = 0.7
LOW_COVERAGE = 0.5  # share of a region's voxels with a signal, below which it is reported
# Distances from a reference, in units of its spread between scans, from which on a shift is reported.
SHIFT_LIMIT = 1.0
_SIDES = (
    (re.compile(r"(?<![A-Za-z])L(?![A-Za-z])"), "R"),
    (re.compile(r"(?<![A-Za-z])LH(?![A-Za-z])"), "RH"),
    (re.compile(r"\bLeft\b"), "Right"),
    (re.compile(r"\bleft\b"), "right"),
)
_FARTHEST_MIRROR_MM = 20.0


@dataclass(frozen=True)
class Rules:
    """When a scan is left out; `None` = never for that reason, only reported.

    Args:
        max_mean_fd (`float`, *optional*): mean framewise displacement in mm.
        min_volumes (`int`, *optional*): volumes left after scrubbing.
        max_missing_regions (`int`, *optional*): regions without signal.
        min_homotopic (`float`, *optional*): share of edges that the scan's homotopic edges beat on average.
        duplicates (`str`): "report" or "drop" the second of two subjects with near-identical FC.
        duplicate_r (`float`): correlation of two FC patterns, mean pattern removed, that counts as identical.
    """

    max_mean_fd: float | None = None
    min_volumes: int | None = None
    max_missing_regions: int | None = None
    min_homotopic: float | None = None
    duplicates: str = "report"
    duplicate_r: float = SAME_FC_R

    def __post_init__(self) -> None:
        if self.duplicates not in DUPLICATES:
            raise ValueError(f"duplicates must be one of {', '.join(DUPLICATES)}, got {self.duplicates!r}.")

    def reason(self, measures: dict[str, Any]) -> str | None:
        """Why a scan is left out, or `None`."""
        limits = (
            ("mean_fd", self.max_mean_fd, 1, "mean framewise displacement {:.2f} mm is above {:g} mm"),
            ("volumes", self.min_volumes, -1, "{:.0f} volumes are fewer than {:g}"),
            ("missing_regions", self.max_missing_regions, 1, "{:.0f} regions without signal are more than {:g}"),
            ("homotopic", self.min_homotopic, -1, "homotopic order {:.2f} is below {:g}"),
        )
        for name, limit, sign, text in limits:
            value = measures.get(name)
            if limit is not None and value is not None and sign * (value - limit) > 0:
                return text.format(value, limit)
        return None


def measure(matrix: np.ndarray, pairs: np.ndarray) -> dict[str, Any]:
    """Measures of one FC matrix.

    Args:
        matrix (`np.ndarray` of shape `(regions, regions)`): Pearson r; regions without signal have zeros.
        pairs (`np.ndarray` of shape `(pairs, 2)`): homotopic regions.

    Returns:
        `silent` (positions of regions without signal), `missing_regions` (their number), `mean_fc`, and `homotopic`:
        the share of edges that homotopic edges beat, averaged over those with signal; None without pairs.
    """
    off = matrix.copy()
    np.fill_diagonal(off, 0)
    silent = ~off.any(axis=1)
    alive = np.flatnonzero(~silent)
    edges = off[np.ix_(alive, alive)][np.triu_indices(len(alive), k=1)]
    kept = pairs[np.isin(pairs, alive).all(axis=1)] if len(pairs) else pairs
    homotopic = None
    if len(kept) and len(edges):
        ranks = np.searchsorted(np.sort(edges), off[kept[:, 0], kept[:, 1]])
        homotopic = round(float(ranks.mean() / len(edges)), 4)
    return {
        "silent": np.flatnonzero(silent).tolist(),
        "missing_regions": int(silent.sum()),
        "mean_fc": round(float(edges.mean()), 5) if len(edges) else None,
        "homotopic": homotopic,
    }


def low_coverage(records: Sequence[dict[str, Any]], names: Sequence[str] | None) -> dict[str, dict[str, float]]:
    """Regions most of whose voxels have no signal in some scans: how many scans, smallest and largest share there."""
    found: dict[int, list[float]] = {}
    for record in records:
        for region, share in record.get("low_coverage", ()):
            found.setdefault(region, []).append(share)
    return {
        str(region) if names is None else names[region]: {
            "scans": len(shares), "least": min(shares), "most": max(shares),
        }
        for region, shares in sorted(found.items(), key=lambda item: -len(item[1]))
    }  # fmt: skip


def coverage_text(found: dict[str, float]) -> str:
    """Such as "3 scans, coverage 12 % to 40 %"."""
    shares = [f"{found[end]:.0%}".replace("%", " %") for end in ("least", "most")]
    scans = f"{found['scans']} scan{'s' if found['scans'] > 1 else ''}"
    return f"{scans}, coverage {' to '.join(dict.fromkeys(shares))}"


def homotopic_pairs(names: Sequence[str] | None, coordinates: np.ndarray | None) -> np.ndarray:
    """Left and right counterparts, `(pairs, 2)`: by name, or by mirrored MNI coordinates.

    Args:
        names (`Sequence[str]`, *optional*): names of the regions.
        coordinates (`np.ndarray` of shape `(regions, 3)`, *optional*): their centres, mm.
    """
    of_name = {name: number for number, name in enumerate(names or [])}
    pairs: list[tuple[int, int]] = []
    for name, number in of_name.items():
        for pattern, other in _SIDES:
            partner = pattern.sub(other, name)
            if partner != name and partner in of_name:
                pairs.append((number, of_name[partner]))
                break
    # Names of the Schaefer atlas number the regions of each side for themselves: places decide there.
    numbered = names is not None and any(re.search(r"_[LR]H_", str(name)) for name in names)
    if coordinates is not None and (numbered or not pairs):
        left, right = np.flatnonzero(coordinates[:, 0] < 0), np.flatnonzero(coordinates[:, 0] > 0)
        mirrored = coordinates[left] * [-1, 1, 1]
        distance = np.linalg.norm(mirrored[:, None] - coordinates[right][None], axis=2)
        nearest = distance.argmin(axis=1)
        mutual = (distance.argmin(axis=0)[nearest] == np.arange(len(left))) & (
            distance.min(axis=1) < _FARTHEST_MIRROR_MM
        )
        pairs = list(zip(left[mutual].tolist(), right[nearest[mutual]].tolist(), strict=True))
    return np.array(pairs, dtype=int).reshape(-1, 2)


@dataclass
class Statistics:
    """Mean and spread of FC, edge by edge, summed up chunk by chunk.

    Args:
        edges (`int`): length of a triangle.
    """

    edges: int
    count: int = 0

    def __post_init__(self) -> None:
        self._sum = np.zeros(self.edges)
        self._squares = np.zeros(self.edges)

    def add(self, triangles: np.ndarray) -> None:
        """Add scans `(scans, edges)`; NaN are scans that lack the atlas."""
        values = triangles[~np.isnan(triangles[:, 0])].astype(np.float32)
        self.count += len(values)
        self._sum += values.sum(axis=0, dtype=np.float64)
        self._squares += np.square(values, out=values).sum(axis=0, dtype=np.float64)

    @property
    def mean(self) -> np.ndarray:
        """Mean of every edge."""
        return self._sum / max(self.count, 1)

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation of every edge over scans."""
        return np.sqrt(np.maximum(self._squares / max(self.count, 1) - self.mean**2, 0))

    def save(self, path: Path, fingerprint: str | None) -> None:
        """Write what a later data set is compared with."""
        np.savez(path, mean=self.mean, spread=self.spread, count=self.count, regions=fingerprint or "")


def shift_against(path: str, mine: Statistics, fingerprint: str | None) -> dict[str, float | str]:
    """Compare a data set's FC with that of another one, usually a checkpoint's training data.

    Args:
        path (`str`): a prepared data set, or a folder or file with its `fc_statistics.npz`.
        mine (`Statistics`): this data set.
        fingerprint (`str`, *optional*): hash of this data set's region names.

    Returns:
        `similarity` (correlation of the two mean matrices), `shift` (mean difference in units of the reference's
        spread), `spread_ratio`, and `verdict`.

    Raises:
        FileNotFoundError: there are no statistics.
        ValueError: they are of other regions.
    """
    where = Path(path) / STATISTICS if Path(path).is_dir() else Path(path)
    if not where.is_file():
        raise FileNotFoundError(f"{path} has no {STATISTICS}; it comes with every prepared data set.")
    with np.load(where, allow_pickle=False) as file:
        mean, spread, regions = file["mean"], file["spread"], str(file["regions"])
    if len(mean) != mine.edges or (regions and fingerprint and regions != fingerprint):
        raise ValueError(f"{path} has other regions, or another order of them: its FC cannot be compared.")
    scale = max(float(spread.mean()), 1e-6)
    shift = float((mine.mean - mean).mean() / scale)
    similarity = float(np.corrcoef(mine.mean, mean)[0, 1])
    ratio = float(mine.spread.mean() / scale)
    shifted = abs(shift) > SHIFT_LIMIT or similarity < 0.7
    return {
        "reference": str(path),
        "similarity of the mean FC (r)": round(similarity, 3),
        "shift of the mean FC (in spreads of the reference)": round(shift, 3),
        "spread between scans, relative to the reference": round(ratio, 3),
        "verdict": (
            "shifted: preprocessing or population differ; do not expect the checkpoint to transfer unchanged"
            if shifted
            else "comparable"
        ),
    }
