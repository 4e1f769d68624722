"""Scans of different subjects whose FC is near-identical: one subject under two ids, or one file twice."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from .cohort import Cohort


SAME_FC_R = 0.9  # correlation of two FC patterns, mean pattern removed, that counts as identical
_AT_ONCE = 512  # scans
_PROJECTED = 96  # dimensions in which all pairs of scans are compared first
_PAIRS_AT_ONCE = 5_000_000  # 20 MB of correlations
_SLACK = 0.25  # how much the projection may underestimate a correlation (3 standard errors of 96 dimensions)


def near_identical(cohort: Cohort) -> list[tuple[int, int, float]]:
    """Pairs of a cohort's scans, of different subjects, whose FC is near-identical: positions and correlation."""

    def chunks() -> Iterator[np.ndarray]:
        for start in range(0, len(cohort), _AT_ONCE):
            yield cohort.triangles[start : start + _AT_ONCE]

    total = np.sum([np.nansum(part, axis=0, dtype=np.float64) for part in chunks()], axis=0)
    return find_duplicates(chunks, cohort.subjects.tolist(), total / max(len(cohort), 1), SAME_FC_R)


def find_duplicates(
    chunks: Callable[[], Iterator[np.ndarray]], subjects: Sequence[str], mean: np.ndarray, threshold: float
) -> list[tuple[int, int, float]]:
    """Pairs of scans of different subjects whose FC patterns are near-identical.

    All pairs are compared in a random projection; those that come close are compared in full.

    Args:
        chunks (`Callable`): gives the triangles, piece by piece, in the order of `subjects`.
        subjects (`Sequence[str]`): subject of every scan.
        mean (`np.ndarray` of shape `(edges,)`): mean pattern, which is removed first.
        threshold (`float`): correlation that counts as identical.

    Returns:
        First row, second row, correlation.
    """
    projection = np.random.default_rng(0).standard_normal((len(mean), _PROJECTED)).astype(np.float32)
    small = np.concatenate([_unit((part - mean).astype(np.float32) @ projection) for part in chunks()])
    codes = pd.factorize(pd.Series(subjects))[0]
    candidates = []
    block = max(1, min(1024, _PAIRS_AT_ONCE // max(len(small), 1)))
    for start in range(0, len(small), block):
        close = small[start : start + block] @ small[start:].T > threshold - _SLACK
        for first, second in np.argwhere(close):
            first, second = int(first) + start, int(second) + start
            if first < second and codes[first] != codes[second]:
                candidates.append((first, second))
    if not candidates:
        return []
    wanted = sorted({row for pair in candidates for row in pair})
    full, start = {}, 0
    for part in chunks():
        for row in wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, start + len(part))]:
            full[row] = _unit((part[row - start] - mean).astype(np.float32)[None])[0]
        start += len(part)
    exact = [(first, second, float(full[first] @ full[second])) for first, second in candidates]
    return [pair for pair in exact if pair[2] > threshold]


def _unit(rows: np.ndarray) -> np.ndarray:
    centred = rows - rows.mean(axis=1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
