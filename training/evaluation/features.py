"""FC as features of simple models: its edges, or those of its matrix logarithm, which is computed once per scan."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modeling_lcm.closed_form_model import DEFAULT_SHRINKAGE, SHRINKAGES
from modeling_lcm.edges_lcm import log_edges

from ..data.cohort import Cohort
from ..storage.files import scratch_folder


# Fisher z is infinite at |r| = 1; float16 storage rounds correlations above 0.9998 up to 1.
MAX_CORRELATION = 0.999
MAX_FISHER_Z = np.arctanh(MAX_CORRELATION)
SHRINKAGE = SHRINKAGES[DEFAULT_SHRINKAGE]  # that of the model's edge read-out
SCANS_AT_ONCE = 256
CACHE = "cache"  # folder inside a data set


def vectorise(connectivity: ArrayLike) -> NDArray[np.float64]:
    """Turn connectivity matrices into feature vectors: Fisher z of the upper triangle, without the diagonal.

    Args:
        connectivity: Pearson correlations `(subjects, regions, regions)`.

    Returns:
        Array `(subjects, regions * (regions - 1) / 2)`, edges in the order of `numpy.triu_indices(regions, k=1)`.
        Correlations beyond 0.999 count as 0.999, so that z stays finite.

    Raises:
        ValueError: another shape, NaN or infinite values, or values outside [-1, 1].
    """
    matrices = np.asarray(connectivity, dtype=np.float64)
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or matrices.shape[1] < 2:
        raise ValueError(f"Connectivity has shape {matrices.shape}; needed is (subjects, regions, regions).")
    return fisher_z(matrices[:, *np.triu_indices(matrices.shape[1], k=1)])


def fisher_z(edges: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Fisher z of correlations `(subjects, edges)`.

    Raises:
        ValueError: NaN or infinite values, or values outside [-1, 1].
    """
    edges = np.asarray(edges, dtype=np.float64, order="F")  # what follows goes edge by edge
    if not np.isfinite(edges).all():
        bad = int((~np.isfinite(edges)).any(axis=1).sum())
        raise ValueError(
            f"The connectivity of {bad} subjects holds NaN or infinite values: pass it through the FC processor first."
        )
    if edges.size and np.abs(edges).max() > 1 + 1e-3:
        raise ValueError(
            f"Connectivity reaches {np.abs(edges).max():.3g}, needed are correlations in [-1, 1]: give r, not z."
        )
    return np.arctanh(edges.clip(-MAX_CORRELATION, MAX_CORRELATION))


def log_features(edges: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Log FC `(scans, edges)` as features, within the range that Fisher z of FC has; NaN stays NaN."""
    return np.clip(edges, -MAX_FISHER_Z, MAX_FISHER_Z, dtype=np.float64)


@dataclass(frozen=True)
class FeatureKind:
    """Which matrix the edges are taken of.

    Args:
        name (`str`): what it is called.
        of_matrices (`Callable`): FC `(subjects, regions, regions)` -> features `(subjects, edges)`.
    """

    name: str
    of_matrices: Callable[[ArrayLike], NDArray[np.float64]] = field(compare=False)


RAW_FC = FeatureKind("FC", vectorise)
LOG_FC = FeatureKind(
    "log FC", lambda connectivity: log_features(log_edges(np.asarray(connectivity), SHRINKAGES)[:, DEFAULT_SHRINKAGE])
)


@dataclass(frozen=True)
class StoredLogFC:
    """Log FC of all scans of a design in files that every process maps into its memory.

    Args:
        paths (`dict[float, Path]`): `.npy` of shape `(scans, edges)` per shrinkage, float32, all atlases side by side;
            NaN where a scan lacks an atlas.
        columns (`dict[str, slice]`): the edges of every atlas.
    """

    paths: dict[float, Path]
    columns: dict[str, slice]

    def edges(self, scans: np.ndarray, shrinkage: float = SHRINKAGE) -> NDArray[np.float32]:
        """Edges `(scans, edges)` of some scans, by number, of all atlases side by side."""
        return np.load(self.paths[shrinkage], mmap_mode="r")[scans]

    def by_atlas(self, cohort: Cohort, shrinkages: Sequence[float]) -> dict[str, NDArray[np.float32]]:
        """Edges `(scans, shrinkages, edges)` of some scans of the design, for every atlas of theirs."""
        maps = [np.load(self.paths[share], mmap_mode="r") for share in shrinkages]
        scans = cohort.table.index.to_numpy()
        return {name: np.stack([each[scans, self.columns[name]] for each in maps], 1) for name in cohort.atlases}


def features(kind: FeatureKind, cohort: Cohort, stored: StoredLogFC | None) -> NDArray[np.float64]:
    """Features of all scans of a cohort `(scans, edges)`, of all atlases side by side; NaN where a scan lacks one.

    Args:
        kind (`FeatureKind`): which.
        cohort (`Cohort`): its table's index numbers the scans of the design.
        stored (`StoredLogFC`, *optional*): log FC of the design; none where FC differs from fold to fold.
    """
    if kind == LOG_FC and stored is not None:
        return log_features(stored.edges(cohort.table.index.to_numpy()))
    if kind == LOG_FC:
        return log_features(_log_edges(cohort, slice(None))[:, DEFAULT_SHRINKAGE])
    # No matrices are made of the triangles only to be taken apart again.
    edges = np.concatenate([part.triangles[:] for part in cohort.by_atlas], axis=1)
    absent = np.isnan(edges)
    if not (cohort.others and absent.any()):
        return fisher_z(edges)
    return np.where(absent, np.nan, fisher_z(np.where(absent, 0, edges)))


def _log_edges(cohort: Cohort, scans: slice) -> NDArray[np.float32]:
    """Log FC of some scans `(scans, shrinkages, edges)`, all atlases side by side; NaN where a scan lacks one.

    Always after every shrinkage, from one decomposition: the same numbers, whichever of them are wanted.
    """
    return np.concatenate([log_edges(part.matrices(scans), SHRINKAGES) for part in cohort.by_atlas], axis=2)


@contextmanager
def stored_log_fc(
    cohort: Cohort, data: str | Path, shrinkages: Sequence[float] = (SHRINKAGE,)
) -> Iterator[StoredLogFC]:
    """Log FC of all scans, computed now or by an earlier evaluation, for the duration of the `with`.

    It is kept in the folder `cache` of the data set, by the content of the FC and the shrinkage, so that other FC
    never meets it; its own content is checked. Where nothing can be written, temporary files serve.

    Args:
        cohort (`Cohort`): the design's scans.
        data (`str` or `Path`): folder of the tested data set.
        shrinkages (`Sequence[float]`): after which of the closed form's shrinkages the logarithm is wanted.
    """
    digest = hashlib.sha256(f"log FC, {len(cohort)} scans, {list(cohort.atlases)}".encode())
    sizes = [part.triangles.shape[1] for part in cohort.by_atlas]
    for part in cohort.by_atlas:
        for start in range(0, len(cohort), SCANS_AT_ONCE):
            digest.update(np.ascontiguousarray(part.triangles[start : start + SCANS_AT_ONCE]).tobytes())
    names = {share: f"log_fc_{digest.hexdigest()[:20]}_{share:g}" for share in shrinkages}
    ends = np.cumsum(sizes).tolist()
    columns = {name: slice(end - size, end) for name, size, end in zip(cohort.atlases, sizes, ends, strict=True)}
    folder = Path(data) / CACHE
    found = {
        share: next(filter(_is_whole, sorted(folder.glob(f"{name}_*.npy"))), None) for share, name in names.items()
    }
    paths = {share: path for share, path in found.items() if path is not None}
    missing = {share: name for share, name in names.items() if share not in paths}
    try:
        if missing:
            folder.mkdir(exist_ok=True)
            paths |= _write(cohort, folder, missing)
    except OSError as error:
        print(
            f"Log FC is not kept for the next evaluation: {folder} cannot be written to ({error.strerror}).",
            file=sys.stderr,
        )
    if len(paths) == len(names):
        yield StoredLogFC(paths, columns)
        return
    with tempfile.TemporaryDirectory(prefix="log_fc.") as temporary:
        yield StoredLogFC(paths | _write(cohort, Path(temporary), missing), columns)


def _write(cohort: Cohort, folder: Path, names: Mapping[float, str]) -> dict[float, Path]:
    """Compute log FC and write it into a folder, whole or not at all; its checksum ends a file's name."""
    edges = sum(part.triangles.shape[1] for part in cohort.by_atlas)
    paths = {}
    with scratch_folder(folder / next(iter(names.values()))) as scratch:
        files = {share: scratch / f"{name}.npy" for share, name in names.items()}
        shape = (len(cohort), edges)
        values = [np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape) for path in files.values()]
        for start in range(0, len(cohort), SCANS_AT_ONCE):
            scans = slice(start, start + SCANS_AT_ONCE)
            found = _log_edges(cohort, scans)
            for share, of_share in zip(names, values, strict=True):
                of_share[scans] = found[:, SHRINKAGES.index(share)]
        for each in values:
            each.flush()
        del values, each, of_share
        for share, path in files.items():
            paths[share] = folder / f"{names[share]}_{_checksum(path)}.npy"
            os.replace(path, paths[share])
    return paths


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:20]


def _is_whole(path: Path) -> bool:
    """Whether a file still has the content that its name speaks of; otherwise it is computed again."""
    try:
        return path.stem.rpartition("_")[2] == _checksum(path)
    except OSError:
        return False
