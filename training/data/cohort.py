"""A prepared cohort: one row per scan with FC and phenotypes, and how batches for the model are made of it."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch

from modeling_lcm import FCFeatureExtractor

from .dataset_folder import COHORTS_FILE, FC_DEFINITION, require_dataset
from .identity import SAME_PERSON
from .triangles import StoredSeries, StoredTriangles, to_matrices


PREFIX = "qc_"


# What a scan measured; stays on the disk until it is asked for.
SIGNAL_COLUMNS = ("connectivity", "time_series", "volumes")
# Columns that describe the scan; every other column is a phenotype (a BEI variable).
SCAN_COLUMNS = ("subject_id", "session", *SIGNAL_COLUMNS)
# Not phenotypes either: quality, and where a person comes from when cohorts were merged.
RECORD_COLUMNS = ("dataset", "cohort_subject_id", "recorded_subject_id")
RECORD_PREFIXES = (PREFIX, SAME_PERSON)


@dataclass(frozen=True)
class Cohort:
    """A prepared data set, or some of its scans: its table in memory, its scans on the disk.

    Args:
        table (`pd.DataFrame`): `subject_id`, `session` and the phenotype columns, one row per scan. Its index numbers
            the scans of the data set, also after [`select`].
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

    def __len__(self) -> int:
        return len(self.table)

    def select(self, scans: np.ndarray) -> "Cohort":
        """Some scans as a cohort of their own; no FC is read from the disk.

        Args:
            scans (`np.ndarray`): their positions in this cohort, in the order wanted, or a boolean mask.
        """
        stored = isinstance(self.triangles, StoredTriangles)
        return replace(
            self,
            table=self.table.iloc[scans],
            triangles=self.triangles.select(scans) if stored else self.triangles[scans],
            series=None if self.series is None else self.series.select(scans),
        )

    @property
    def subjects(self) -> pd.Series:
        """Subject id of every scan, as text."""
        return self.table["subject_id"].astype(str)

    @property
    def num_regions(self) -> int:
        """Regions of the atlas."""
        return self.feature_extractor.num_regions

    def connectivity(self, scans: np.ndarray | slice = slice(None)) -> np.ndarray:
        """FC matrices `(scans, regions, regions)`, float32, of some scans (by position) or of all."""
        return to_matrices(torch.from_numpy(self.triangles[scans]), self.num_regions).numpy()

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """FC of all scans in their order, `(up to size, regions, regions)` at a time, float32."""
        for start in range(0, len(self), size):
            yield torch.from_numpy(self.connectivity(slice(start, start + size)))

    @property
    def has_time_series(self) -> bool:
        """Whether ROI time series are stored (training.prepare --keep_time_series true)."""
        return self.series is not None

    def time_series(self, scans: np.ndarray) -> list[np.ndarray | None]:
        """ROI time series of some scans (by position): float16 `(volumes, regions)`, of mean 0 and deviation 1.

        A region without signal is 0 throughout. `None` stands for a scan without a stored time series; without
        `has_time_series` that is every one.
        """
        return [None] * len(scans) if self.series is None else self.series[scans]

    def volumes(self) -> list[int]:
        """Volumes of every scan's stored time series; 0 where there is none."""
        return [0] * len(self) if self.series is None else self.series.volumes()

    def checksum(self) -> str:
        """Short SHA-256 of the table and all FC: the same for the same scans with the same records."""
        digest = hashlib.sha256(self.table.to_csv(index=False).encode())
        for start in range(0, len(self), 1000):
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
        whole, rows = _concatenate(stored)
        triangles: StoredTriangles | np.ndarray = StoredTriangles(whole, stored[0].shape[1], rows)
    else:
        triangles = np.concatenate([cohort.triangles for cohort in cohorts])
    if not any(cohort.has_time_series for cohort in cohorts):
        return triangles, None
    series = [StoredSeries.absent(len(cohort)) if cohort.series is None else cohort.series for cohort in cohorts]
    return triangles, StoredSeries(*_concatenate(series))


def _concatenate(parts: Sequence[StoredTriangles | StoredSeries]) -> tuple[datasets.Dataset, np.ndarray]:
    """The data sets behind each other, and the rows of the whole that are the parts' scans."""
    starts = np.cumsum([0, *(len(part.data) for part in parts)])
    rows = [start + part.rows for start, part in zip(starts, parts, strict=False)]
    return datasets.concatenate_datasets([part.data for part in parts]), np.concatenate(rows)


def is_phenotype(column: str) -> bool:
    """Whether a column of a data set is a phenotype, rather than a description of the scan."""
    return column not in (*SCAN_COLUMNS, *RECORD_COLUMNS) and not column.startswith(RECORD_PREFIXES)


def load_cohort(folder: str | Path) -> Cohort:
    """Load a data set that `training.prepare` made.

    Args:
        folder (`str` or `Path`): the folder that was its output.

    Raises:
        FileNotFoundError: it is not a prepared data set.
        ValueError: no folder was given, or its content is damaged.
    """
    folder = require_dataset(folder)
    try:
        data = datasets.load_from_disk(str(folder))
        extractor = FCFeatureExtractor.from_json_file(folder / FC_DEFINITION)
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
    return Cohort(table, StoredTriangles(data, edges), extractor, series, _declared_positive(folder))


def _declared_positive(folder: Path) -> dict[str, str]:
    """Positive labels that the cohorts of a data set declare, by variable."""
    path = folder / COHORTS_FILE
    records = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return {name: label for record in records for name, label in record.get("positive", {}).items()}
