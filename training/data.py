"""A prepared cohort: one row per scan with FC and phenotypes, and how batches for the model are made of it."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from modeling_lcm import FCFeatureExtractor


# Columns that describe the scan; every other column is a phenotype (a BEI variable).
SCAN_COLUMNS = ("subject_id", "session", "connectivity")
# Not phenotypes either: quality, and where a person comes from when cohorts were merged.
RECORD_COLUMNS = ("dataset", "cohort_subject_id")
RECORD_PREFIXES = ("qc_", "same_person_in_")
FC_DEFINITION = "fc_definition.json"  # the FC processor's settings, beside the Arrow data


@dataclass(frozen=True)
class Cohort:
    """A prepared data set in memory.

    Args:
        table (`pd.DataFrame`): `subject_id`, `session` and the phenotype columns, one row per scan.
        triangles (`np.ndarray` of shape `(scans, regions * (regions - 1) / 2)`): float16 upper triangles of the FC
            matrices, row-major, without the diagonal.
        feature_extractor (`FCFeatureExtractor`): the FC definition and atlas of all scans.
    """

    table: pd.DataFrame
    triangles: np.ndarray
    feature_extractor: FCFeatureExtractor

    def connectivity(self, rows: np.ndarray | None = None) -> np.ndarray:
        """FC matrices `(scans, regions, regions)`, float32, of some rows or of all."""
        triangles = self.triangles if rows is None else self.triangles[rows]
        return to_matrices(torch.from_numpy(triangles), self.feature_extractor.num_regions).numpy()

    def phenotypes(self) -> list[str]:
        """Names of the phenotype columns."""
        return [name for name in self.table.columns if is_phenotype(name)]

    def require_column(self, name: str) -> None:
        """Raise `ValueError` listing the known columns when a phenotype is not there."""
        if name not in self.phenotypes():
            raise ValueError(f"There is no phenotype {name!r} in the data; it has {', '.join(self.phenotypes())}.")


def is_phenotype(column: str) -> bool:
    """Whether a column of a data set is a phenotype, rather than a description of the scan."""
    return column not in (*SCAN_COLUMNS, *RECORD_COLUMNS) and not column.startswith(RECORD_PREFIXES)


def to_triangles(connectivity: np.ndarray) -> np.ndarray:
    """`(scans, regions, regions)` -> float16 upper triangles `(scans, regions * (regions - 1) / 2)`, row-major."""
    rows, columns = np.triu_indices(connectivity.shape[-1], k=1)
    return connectivity[:, rows, columns].astype(np.float16)


@lru_cache(maxsize=4)
def _position_in_triangle(num_regions: int) -> Tensor:
    """For every cell of the flattened matrix its position in the triangle; the diagonal points behind its end."""
    rows, columns = np.triu_indices(num_regions, k=1)
    positions = np.full((num_regions, num_regions), len(rows))
    positions[rows, columns] = positions[columns, rows] = np.arange(len(rows))
    return torch.from_numpy(positions.ravel())


def to_matrices(triangles: Tensor, num_regions: int) -> Tensor:
    """Upper triangles `(scans, edges)` -> symmetric float32 matrices `(scans, regions, regions)`, diagonal 1."""
    with_diagonal = torch.cat([triangles.float(), torch.ones(len(triangles), 1)], dim=1)
    return with_diagonal[:, _position_in_triangle(num_regions)].view(-1, num_regions, num_regions)


def load_cohort(folder: str | Path) -> Cohort:
    """Load a data set that `training.prepare` made.

    Args:
        folder (`str` or `Path`): the folder that was its output.

    Raises:
        FileNotFoundError: it is not a prepared data set.
        ValueError: no folder was given, or its content is damaged.
    """
    if not str(folder):
        raise ValueError("No data was given: add --data FOLDER (made by python -m training.prepare).")
    if not (Path(folder) / FC_DEFINITION).is_file():
        raise FileNotFoundError(
            f"{folder} is not a data set made by training.prepare: it has no {FC_DEFINITION}, or does not exist."
        )
    try:
        data = datasets.load_from_disk(str(folder))
        extractor = FCFeatureExtractor.from_json_file(Path(folder) / FC_DEFINITION)
    except (OSError, ValueError) as error:
        raise ValueError(f"The data set {folder} is damaged ({error}): make it again.") from error
    missing = [name for name in SCAN_COLUMNS if name not in data.column_names]
    if missing:
        raise ValueError(
            f"The data set {folder} lacks the columns {', '.join(missing)}; make it with training.prepare."
        )
    edges = extractor.num_regions * (extractor.num_regions - 1) // 2
    column = data.data.column("connectivity").combine_chunks()
    # A copy: torch warns of Arrow's read-only memory.
    triangles = column.flatten().to_numpy(zero_copy_only=False).reshape(len(data), -1).copy()
    if triangles.shape[1] != edges:
        raise ValueError(
            f"{folder} holds {triangles.shape[1]} edges a scan, but its FC definition has {extractor.num_regions} "
            f"regions ({edges} edges)."
        )
    table = data.remove_columns("connectivity").to_pandas()
    return Cohort(table, triangles, extractor)


class ConnectomeDataset(torch.utils.data.Dataset):
    """Batches of FC matrices and label tensors; the loader fetches a whole batch at once.

    Args:
        triangles (`np.ndarray` of shape `(scans, edges)`): float16 upper triangles.
        num_regions (`int`): regions of the atlas.
        labels (`dict[str, Tensor]`): label tensors whose first axis is scans, as the BEI tokenizer makes them.
        subjects (`list[str]`): subject id per scan, for messages.
    """

    def __init__(
        self, triangles: np.ndarray, num_regions: int, labels: dict[str, Tensor], subjects: list[str]
    ) -> None:
        self.triangles = torch.from_numpy(np.ascontiguousarray(triangles))
        self.num_regions = num_regions
        self.labels = labels
        self.subjects = subjects

    def __len__(self) -> int:
        return len(self.triangles)

    def __getitems__(self, rows: list[int]) -> dict[str, Tensor]:
        """One batch: `connectivity` `(batch, regions, regions)`, the labels, and the `rows` it is made of."""
        index = torch.tensor(rows)
        batch = {name: values[index] for name, values in self.labels.items()}
        return {"connectivity": to_matrices(self.triangles[index], self.num_regions), "rows": index, **batch}

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        """One scan, without a batch axis."""
        return {name: values[0] for name, values in self.__getitems__([row]).items()}


def make_dataset(cohort: Cohort, rows: np.ndarray, labels: dict[str, Tensor]) -> ConnectomeDataset:
    """The scans of some rows with their labels (tensors over these rows)."""
    return ConnectomeDataset(
        cohort.triangles[rows],
        cohort.feature_extractor.num_regions,
        labels,
        cohort.table["subject_id"].astype(str).iloc[rows].tolist(),
    )
