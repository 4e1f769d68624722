"""A prepared cohort: one row per scan with FC and phenotypes, and how batches for the model are made of it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from modeling_lcm import FCFeatureExtractor

from .identity import SAME_PERSON
from .quality import PREFIX


# What a scan measured; stays on the disk until it is asked for.
SIGNAL_COLUMNS = ("connectivity", "time_series", "volumes")
# Columns that describe the scan; every other column is a phenotype (a BEI variable).
SCAN_COLUMNS = ("subject_id", "session", *SIGNAL_COLUMNS)
# Not phenotypes either: quality, and where a person comes from when cohorts were merged.
RECORD_COLUMNS = ("dataset", "cohort_subject_id", "recorded_subject_id")
RECORD_PREFIXES = (PREFIX, SAME_PERSON)
# ROI time series as `(volumes * regions)` values, row by row; no value and 0 volumes where a scan has none.
SERIES_FEATURES = {"time_series": datasets.List(datasets.Value("float16")), "volumes": datasets.Value("int32")}
# Beside the Arrow data: the FC processor's settings, what was left out and why, and the cohorts with their terms.
FC_DEFINITION = "fc_definition.json"
QUALITY = "quality.json"
COHORTS_FILE = "cohorts.json"


class StoredTriangles:
    """Upper triangles `(scans, edges)` that stay in the files of a data set; indexing reads rows, float16.

    The files are mapped into memory: what the machine has no room for is read again, so that a data set may be larger
    than memory.

    Args:
        data (`datasets.Dataset`): with the column `connectivity`.
        edges (`int`): length of a triangle.
    """

    def __init__(self, data: datasets.Dataset, edges: int) -> None:
        self.shape = (len(data), edges)
        self.data = data.select_columns(["connectivity"]).with_format("arrow")
        self._rows = np.arange(len(data))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Rows by number, slice, array of numbers or mask, as NumPy does it; always a copy."""
        wanted = self._rows[rows]
        column = self.data[np.atleast_1d(wanted)].column("connectivity").combine_chunks()
        found = column.flatten().to_numpy(zero_copy_only=False).reshape(*np.shape(wanted), self.shape[1])
        return found.copy()  # torch warns of Arrow's read-only memory

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All scans, for NumPy's functions."""
        return self[:] if dtype is None else self[:].astype(dtype)


class StoredSeries:
    """ROI time series that stay in the files of a data set.

    Args:
        data (`datasets.Dataset`): with the columns `time_series` and `volumes`.
    """

    def __init__(self, data: datasets.Dataset) -> None:
        self.data = data.select_columns(["time_series", "volumes"]).with_format("arrow")

    @classmethod
    def absent(cls, scans: int) -> "StoredSeries":
        """Scans without time series."""
        features = datasets.Features(SERIES_FEATURES)
        return cls(datasets.Dataset.from_dict({"time_series": [[]] * scans, "volumes": [0] * scans}, features))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: np.ndarray) -> list[np.ndarray | None]:
        """Arrays `(volumes, regions)`, float16; `None` for a scan that was stored without."""
        table = self.data[np.asarray(rows, dtype=int)]
        lists, volumes = table.column("time_series").combine_chunks(), table.column("volumes").to_pylist()
        ends, values = lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=False)
        return [
            values[ends[row] : ends[row + 1]].reshape(count, -1).copy() if count else None
            for row, count in enumerate(volumes)
        ]


@dataclass(frozen=True)
class Cohort:
    """A prepared data set: its table in memory, its scans on the disk.

    Args:
        table (`pd.DataFrame`): `subject_id`, `session` and the phenotype columns, one row per scan.
        triangles (`StoredTriangles` or `np.ndarray` of shape `(scans, regions * (regions - 1) / 2)`): float16 upper
            triangles of the FC matrices, row-major, without the diagonal.
        feature_extractor (`FCFeatureExtractor`): the FC definition and atlas of all scans.
        series (`StoredSeries`, *optional*): ROI time series, where the data set keeps them.
        positive (`dict[str, str]`): positive label of variables for which the data set declares it.
    """

    table: pd.DataFrame
    triangles: StoredTriangles | np.ndarray
    feature_extractor: FCFeatureExtractor
    series: StoredSeries | None = None
    positive: dict[str, str] = field(default_factory=dict)

    def connectivity(self, rows: np.ndarray | None = None) -> np.ndarray:
        """FC matrices `(scans, regions, regions)`, float32, of some rows or of all."""
        triangles = self.triangles[slice(None) if rows is None else rows]
        return to_matrices(torch.from_numpy(triangles), self.feature_extractor.num_regions).numpy()

    @property
    def has_time_series(self) -> bool:
        """Whether ROI time series are stored (training.prepare --keep_time_series true)."""
        return self.series is not None

    def time_series(self, rows: np.ndarray) -> list[np.ndarray | None]:
        """ROI time series of some rows: float16 `(volumes, regions)`, every region of mean 0 and deviation 1.

        A region without signal is 0 throughout. `None` stands for a scan without a stored time series; without
        `has_time_series` that is every one.
        """
        return [None] * len(rows) if self.series is None else self.series[rows]

    def volumes(self) -> list[int]:
        """Volumes of every scan's stored time series; 0 where there is none."""
        return [0] * len(self.table) if self.series is None else self.series.data["volumes"][:].to_pylist()

    def checksum(self) -> str:
        """Short SHA-256 of the table and all FC: the same for the same scans with the same records."""
        digest = hashlib.sha256(self.table.to_csv(index=False).encode())
        for start in range(0, len(self.table), 1000):
            digest.update(np.ascontiguousarray(self.triangles[start : start + 1000]).tobytes())
        return digest.hexdigest()[:16]

    def phenotypes(self) -> list[str]:
        """Names of the phenotype columns."""
        return [name for name in self.table.columns if is_phenotype(name)]

    def require_column(self, name: str) -> None:
        """Raise `ValueError` listing the known columns when a phenotype is not there."""
        if name not in self.phenotypes():
            raise ValueError(f"There is no phenotype {name!r} in the data; it has {', '.join(self.phenotypes())}.")


def join_scans(cohorts: Sequence[Cohort]) -> tuple[StoredTriangles | np.ndarray, StoredSeries | None]:
    """Triangles and time series of several cohorts behind each other, for `Cohort`; what is on the disk stays there.

    Time series are there if one cohort has them; scans of the others then have none.
    """
    stored = [cohort.triangles for cohort in cohorts if isinstance(cohort.triangles, StoredTriangles)]
    if len(stored) == len(cohorts):
        whole = datasets.concatenate_datasets([part.data for part in stored])
        triangles: StoredTriangles | np.ndarray = StoredTriangles(whole, stored[0].shape[1])
    else:
        triangles = np.concatenate([cohort.triangles for cohort in cohorts])
    if not any(cohort.has_time_series for cohort in cohorts):
        return triangles, None
    parts = [StoredSeries.absent(len(c.table)).data if c.series is None else c.series.data for c in cohorts]
    return triangles, StoredSeries(datasets.concatenate_datasets(parts))


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
    missing = [name for name in ("subject_id", "session", "connectivity") if name not in data.column_names]
    if missing:
        raise ValueError(
            f"The data set {folder} lacks the columns {', '.join(missing)}; make it with training.prepare."
        )
    edges = extractor.num_regions * (extractor.num_regions - 1) // 2
    stored = data.features["connectivity"].length
    if stored != edges:
        raise ValueError(
            f"{folder} holds {stored} edges a scan, but its FC definition has {extractor.num_regions} regions "
            f"({edges} edges)."
        )
    table = data.select_columns([name for name in data.column_names if name not in SIGNAL_COLUMNS]).to_pandas()
    series = StoredSeries(data) if "time_series" in data.column_names else None
    return Cohort(table, StoredTriangles(data, edges), extractor, series, _declared_positive(Path(folder)))


def _declared_positive(folder: Path) -> dict[str, str]:
    """Positive labels that the cohorts of a data set declare, by variable."""
    path = folder / COHORTS_FILE
    records = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return {name: label for record in records for name, label in record.get("positive", {}).items()}


class ConnectomeDataset(torch.utils.data.Dataset):
    """Batches of FC matrices and label tensors; the loader fetches a whole batch at once.

    Args:
        triangles (`StoredTriangles` or `np.ndarray` of shape `(scans of the cohort, edges)`): float16 upper triangles.
        num_regions (`int`): regions of the atlas.
        rows (`np.ndarray`): rows of `triangles` that are this data set's scans.
        labels (`dict[str, Tensor]`): label tensors whose first axis is these scans, as the BEI tokenizer makes them.
        subjects (`list[str]`): subject id per scan, for messages.
    """

    def __init__(
        self,
        triangles: StoredTriangles | np.ndarray,
        num_regions: int,
        rows: np.ndarray,
        labels: dict[str, Tensor],
        subjects: list[str],
    ) -> None:
        self.triangles = triangles
        self.num_regions = num_regions
        self.rows = np.asarray(rows)
        self.labels = labels
        self.subjects = subjects

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int) -> None:
        """Called before every epoch; whole scans are the same in all of them."""

    def __getitems__(self, positions: list[int]) -> dict[str, Tensor]:
        """One batch: `connectivity` `(batch, regions, regions)`, the labels, and the `rows` it is made of."""
        index = torch.tensor(positions)
        batch = {name: values[index] for name, values in self.labels.items()}
        triangles = torch.from_numpy(self.triangles[self.rows[positions]])
        return {"connectivity": to_matrices(triangles, self.num_regions), "rows": index, **batch}

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """One scan, without a batch axis."""
        return {name: values[0] for name, values in self.__getitems__([position]).items()}


def make_dataset(cohort: Cohort, rows: np.ndarray, labels: dict[str, Tensor]) -> ConnectomeDataset:
    """The scans of some rows with their labels (tensors over these rows)."""
    return ConnectomeDataset(
        cohort.triangles,
        cohort.feature_extractor.num_regions,
        rows,
        labels,
        cohort.table["subject_id"].astype(str).iloc[rows].tolist(),
    )
