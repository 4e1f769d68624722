"""FC as features of simple models: its edges, or those of its matrix logarithm, which is computed once per scan."""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from modeling_lcm import LCMConfig
from modeling_lcm.edges_lcm import matrix_logarithm

from ..data.cohort import Cohort
from ..storage.files import scratch_folder


# Fisher z is infinite at |r| = 1; float16 storage rounds correlations above 0.9998 up to 1.
MAX_CORRELATION = 0.999
SHRINKAGE = LCMConfig.edge_shrinkage
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


def log_triangles(connectivity: ArrayLike) -> NDArray[np.float32]:
    """Edges of the matrix logarithm of connectivity, which the model's edge read-out sees, too.

    Args:
        connectivity: Pearson correlations `(subjects, regions, regions)`.

    Returns:
        Array `(subjects, edges)`; hyperbolic tangents, since Fisher z is taken of all edges alike and undoes them.
    """
    matrices = torch.as_tensor(np.asarray(connectivity), dtype=torch.float32)
    logarithms = np.tanh(matrix_logarithm(matrices, SHRINKAGE).numpy())
    return logarithms[:, *np.triu_indices(matrices.shape[-1], k=1)]


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
LOG_FC = FeatureKind("log FC", lambda connectivity: fisher_z(log_triangles(connectivity)))


@dataclass(frozen=True)
class StoredLogFC:
    """Log FC of all scans of a design in a file that every process maps into its memory.

    Args:
        path (`Path`): `.npy` of shape `(scans, edges)`, float32, as [`log_triangles`] gives it; NaN where a scan lacks
            an atlas.
    """

    path: Path

    def __getitem__(self, scans: np.ndarray) -> NDArray[np.float32]:
        """Edges `(scans, edges)` of some scans, by number."""
        return np.load(self.path, mmap_mode="r")[scans]


def features(kind: FeatureKind, cohort: Cohort, stored: StoredLogFC | None) -> NDArray[np.float64]:
    """Features of all scans of a cohort `(scans, edges)`, of all atlases side by side; NaN where a scan lacks one.

    Args:
        kind (`FeatureKind`): which.
        cohort (`Cohort`): its table's index numbers the scans of the design.
        stored (`StoredLogFC`, *optional*): log FC of the design; none where FC differs from fold to fold.
    """
    if kind == RAW_FC:
        # No matrices are made of the triangles only to be taken apart again.
        edges = np.concatenate([part.triangles[:] for part in cohort.by_atlas], axis=1)
    elif stored is not None:
        edges = stored[cohort.table.index.to_numpy()]
    else:
        edges = _log_edges(cohort, slice(None))
    absent = np.isnan(edges)
    if not (cohort.others and absent.any()):
        return fisher_z(edges)
    return np.where(absent, np.nan, fisher_z(np.where(absent, 0, edges)))


def _log_edges(cohort: Cohort, scans: slice) -> NDArray[np.float32]:
    """Log FC of some scans `(scans, edges)`, all atlases side by side; NaN where a scan lacks one."""
    parts = []
    for part in cohort.by_atlas:
        matrices = part.matrices(scans)
        there = ~np.isnan(matrices[:, 0, 0])
        edges = np.full((len(matrices), matrices.shape[1] * (matrices.shape[1] - 1) // 2), np.nan, dtype=np.float32)
        if there.any():
            edges[there] = log_triangles(matrices[there])
        parts.append(edges)
    return np.concatenate(parts, axis=1)


@contextmanager
def stored_log_fc(cohort: Cohort, data: str | Path) -> Iterator[StoredLogFC]:
    """Log FC of all scans, computed now or by an earlier evaluation, for the duration of the `with`.

    It is kept in the folder `cache` of the data set, by the content of the FC and the shrinkage, so that other FC
    never meets it; its own content is checked. Where nothing can be written, a temporary file serves.

    Args:
        cohort (`Cohort`): the design's scans.
        data (`str` or `Path`): folder of the tested data set.
    """
    digest = hashlib.sha256(f"{len(cohort)} scans, {list(cohort.atlases)}, {SHRINKAGE}".encode())
    for part in cohort.by_atlas:
        for start in range(0, len(cohort), SCANS_AT_ONCE):
            digest.update(np.ascontiguousarray(part.triangles[start : start + SCANS_AT_ONCE]).tobytes())
    name = f"log_fc_{digest.hexdigest()[:20]}"
    folder = Path(data) / CACHE
    path = next((path for path in sorted(folder.glob(f"{name}_*.npy")) if _is_whole(path)), None)
    if path is not None:
        yield StoredLogFC(path)
        return
    try:
        folder.mkdir(exist_ok=True)
        path = _write(cohort, folder, name)
    except OSError as error:
        print(
            f"Log FC is not kept for the next evaluation: {folder} cannot be written to ({error.strerror}).",
            file=sys.stderr,
        )
    if path is not None:
        yield StoredLogFC(path)
        return
    with tempfile.TemporaryDirectory(prefix="log_fc.") as temporary:
        yield StoredLogFC(_write(cohort, Path(temporary), name))


def _write(cohort: Cohort, folder: Path, name: str) -> Path:
    """Compute log FC and write it into a folder, whole or not at all; its checksum ends the file's name."""
    edges = sum(part.triangles.shape[1] for part in cohort.by_atlas)
    with scratch_folder(folder / name) as scratch:
        temporary = scratch / "log_fc.npy"
        values = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(len(cohort), edges))
        for start in range(0, len(cohort), SCANS_AT_ONCE):
            scans = slice(start, start + SCANS_AT_ONCE)
            values[scans] = _log_edges(cohort, scans)
        values.flush()
        del values
        path = folder / f"{name}_{_checksum(temporary)}.npy"
        os.replace(temporary, path)
    return path


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:20]


def _is_whole(path: Path) -> bool:
    """Whether a file still has the content that its name speaks of; otherwise it is computed again."""
    try:
        return path.stem.rpartition("_")[2] == _checksum(path)
    except OSError:
        return False
