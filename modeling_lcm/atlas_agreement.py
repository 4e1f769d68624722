"""Whether two atlases of a scan are of one scan: scans that are alike in one atlas must be alike in the other."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import combinations

import numpy as np
from numpy.typing import NDArray


Chunks = Callable[[], Iterator[np.ndarray]]  # triangles `(some, edges)` piece by piece, each time anew

_FEWEST_SCANS = 12  # of fewer, chance may bring any order
_MOST_COMPARED = 300  # scans that all others are compared with
# Mean rank of a scan's partner among all scans. Of 646 subjects in AAL and Harvard-Oxford it is 0.02, of any 12 of
# them at most 0.10; shuffled, 0.5 and at least 0.23.
SHUFFLED = 0.2
_FAR_RANK, _FAR_R = 0.3, 0.35  # of a single scan's partner; such scans are named


def who_disagree(connectivity: Mapping[str, NDArray]) -> tuple[str, str] | None:
    """Two atlases of some scans that are of other scans altogether; None where there are none, or too few scans.

    Args:
        connectivity: FC by atlas `(scans, regions, regions)`, NaN for a scan without the atlas.
    """
    edges = {name: part[:, *np.triu_indices(part.shape[-1], 1)] for name, part in connectivity.items()}
    for first, second in combinations(edges, 2):
        rank, _ = compare_atlases(*(partial(_whole, edges[name]) for name in (first, second)))
        if rank > SHUFFLED:
            return first, second
    return None


def _whole(edges: NDArray) -> Iterator[NDArray]:
    yield edges


def compare_atlases(first: Chunks, second: Chunks) -> tuple[float, list[int]]:
    """Match the scans of two atlases by their similarities to all others.

    Args:
        first (`Callable`): gives the triangles of one atlas.
        second (`Callable`): gives those of the other, in the same order of scans.

    Returns:
        Mean rank of a scan's own partner among all scans, from 0 (always the nearest) to 0.5 (as by chance), NaN for
        too few scans; and the positions of scans whose partners are far from them.
    """
    here = [np.concatenate([~np.isnan(part[:, 0]) for part in pieces()]) for pieces in (first, second)]
    both = np.flatnonzero(here[0] & here[1])
    if len(both) < _FEWEST_SCANS:
        return float("nan"), []
    compared = np.unique(np.linspace(0, len(both) - 1, min(len(both), _MOST_COMPARED)).astype(int))
    mine, theirs = (_similarities(pieces, both, compared) for pieces in (first, second))
    agreement = mine @ theirs.T  # (scans, scans)
    own = np.diagonal(agreement)
    ranks = (agreement > own[:, None]).sum(axis=1) / (len(both) - 1)
    return float(ranks.mean()), both[(ranks > _FAR_RANK) & (own < _FAR_R)].tolist()


def _similarities(pieces: Chunks, both: np.ndarray, compared: np.ndarray) -> np.ndarray:
    """Correlations of every scan's FC pattern with that of some, standardised by scan `(scans, compared)`."""
    parts, start = [], 0
    for part in pieces():
        wanted = both[(both >= start) & (both < start + len(part))] - start
        parts.append(part[wanted].astype(np.float32))
        start += len(part)
    mean = sum(part.sum(axis=0, dtype=np.float64) for part in parts) / len(both)
    unit = np.concatenate([part - mean for part in parts]).astype(np.float32)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    found = (unit @ unit[compared].T).astype(np.float64)
    found[compared, np.arange(len(compared))] = np.nan  # every scan is like itself
    found -= np.nanmean(found, axis=1, keepdims=True)
    found = np.nan_to_num(found)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-12)
