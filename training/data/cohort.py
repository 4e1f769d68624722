"""A prepared cohort: one row per scan with FC and phenotypes, and how batches for the model are made of it."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pandas as pd
import torch

from modeling_lcm import FCFeatureExtractor
from modeling_lcm.atlases import find_atlas
from modeling_lcm.loading_lcm import foreign_errors_named

from ..storage.files import read_json
from ..storage.manifest import is_inside, require_intact
from .dataset_folder import FC_DEFINITION, FURTHER_ATLASES, cohort_records, require_dataset
from .identity import SAME_PERSON
from .triangles import StoredSeries, StoredTriangles, count_edges, to_matrices


PREFIX = "qc_"


# What a scan measured; stays on the disk until it is asked for.
SIGNAL_COLUMNS = ("connectivity", "time_series", "volumes")
# Columns that describe the scan; every other column is a phenotype (a BEI variable).
SCAN_COLUMNS = ("subject_id", "session", *SIGNAL_COLUMNS)
# Not phenotypes either: quality, and where a subject comes from when cohorts were merged.
RECORD_COLUMNS = ("dataset", "cohort_subject_id", "recorded_subject_id")
RECORD_PREFIXES = (PREFIX, SAME_PERSON)
Places = np.ndarray | Sequence[int] | slice  # of scans in a cohort
_AT_ONCE = 1000  # scans that are read together


@dataclass(frozen=True)
class AtlasScans:
    """What was measured of a cohort's scans in one atlas.

    Args:
        feature_extractor (`FCFeatureExtractor`): the FC definition and atlas.
        triangles (`StoredTriangles` or `np.ndarray` of shape `(scans, regions * (regions - 1) / 2)`): float16 upper
            triangles of the FC matrices, row-major, without the diagonal; NaN for a scan without this atlas.
        series (`StoredSeries`, *optional*): ROI time series, where the data set keeps them.
    """

    feature_extractor: FCFeatureExtractor
    triangles: StoredTriangles | np.ndarray
    series: StoredSeries | None = None

    @property
    def id(self) -> str:
        """The atlas's id."""
        return str(self.feature_extractor.atlas)

    @classmethod
    def absent(cls, feature_extractor: FCFeatureExtractor, scans: int) -> "AtlasScans":
        """Scans of which none has this atlas."""
        return cls(feature_extractor, np.full((scans, count_edges(feature_extractor)), np.nan, np.float16))

    def select(self, scans: np.ndarray) -> "AtlasScans":
        """Some scans, by position or mask; nothing is read."""
        kept = self.triangles
        return AtlasScans(
            self.feature_extractor,
            kept.select(scans) if isinstance(kept, StoredTriangles) else kept[scans],
            None if self.series is None else self.series.select(scans),
        )

    @property
    def num_regions(self) -> int:
        """Regions of the atlas; prepared scans always have a number of them."""
        return cast(int, self.feature_extractor.num_regions)

    def matrices(self, scans: Places) -> np.ndarray:
        """FC matrices `(scans, regions, regions)`, float32; all NaN for a scan without this atlas."""
        triangles = self.triangles[scans]
        found = to_matrices(torch.from_numpy(triangles), self.num_regions).numpy()
        found[np.isnan(triangles[:, 0])] = np.nan  # the diagonal, too
        return found

    def are_there(self) -> np.ndarray:
        """Which scans have this atlas: bool `(scans,)`."""
        starts = range(0, len(self.triangles), _AT_ONCE)
        parts = [~np.isnan(self.triangles[start : start + _AT_ONCE][:, 0]) for start in starts]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=bool)


@dataclass(frozen=True)
class Cohort:
    """A prepared data set, or some of its scans: its table in memory, its scans on the disk.

    A data set may hold every scan in several atlases. `triangles`, `feature_extractor` and `series` are those of the
    first one; `with_atlas(id)` gives the cohort in another one.

    Args:
        table (`pd.DataFrame`): `subject_id`, `session` and the phenotype columns, one row per scan. Its index numbers
            the scans of the data set, also after [`select`].
        triangles (`StoredTriangles` or `np.ndarray` of shape `(scans, regions * (regions - 1) / 2)`): float16 upper
            triangles of the FC matrices, row-major, without the diagonal.
        feature_extractor (`FCFeatureExtractor`): the FC definition and atlas of all scans.
        series (`StoredSeries`, *optional*): ROI time series, where the data set keeps them.
        positive (`dict[str, str]`): positive label of variables for which the data set declares it.
        others (`tuple[AtlasScans, ...]`): the same scans in further atlases.
    """

    table: pd.DataFrame
    triangles: StoredTriangles | np.ndarray
    feature_extractor: FCFeatureExtractor
    series: StoredSeries | None = None
    positive: dict[str, str] = field(default_factory=dict)
    others: tuple[AtlasScans, ...] = ()

    def __len__(self) -> int:
        return len(self.table)

    def select(self, scans: np.ndarray) -> "Cohort":
        """Some scans as a cohort of their own; no FC is read from the disk.

        Args:
            scans (`np.ndarray`): their positions in this cohort, in the order wanted, or a boolean mask.
        """
        first, *others = (part.select(scans) for part in self.by_atlas)
        table = self.table.iloc[scans]
        return replace(self, table=table, triangles=first.triangles, series=first.series, others=tuple(others))

    @property
    def by_atlas(self) -> tuple[AtlasScans, ...]:
        """The scans in every atlas, the first one's first."""
        return (AtlasScans(self.feature_extractor, self.triangles, self.series), *self.others)

    @property
    def atlases(self) -> dict[str, FCFeatureExtractor]:
        """FC definition of every atlas, by its id."""
        return {part.id: part.feature_extractor for part in self.by_atlas}

    def with_atlas(self, atlas: str | None = None) -> "Cohort":
        """The scans that one atlas has, as a cohort of this atlas alone.

        Args:
            atlas (`str`, *optional*): its id or another spelling; may be left out where there is only one.

        Raises:
            ValueError: there is no such atlas, or several and none was named.
        """
        if not self.others and atlas is None:
            return self
        known = None if atlas is None else find_atlas(atlas)
        wanted = atlas if known is None else known.id
        part = next((part for part in self.by_atlas if part.id == wanted), None)
        if part is None:
            problem = "one of them has to be chosen with atlas" if atlas is None else f"not {atlas}"
            raise ValueError(
                f"The data have the atlas{'es' if self.others else ''} {', '.join(self.atlases)}: {problem}."
            )
        if not self.others:
            return self
        here = part.are_there()
        part = part if here.all() else part.select(here)
        table = self.table[here]
        return Cohort(table, part.triangles, part.feature_extractor, part.series, self.positive)

    def with_atlases(self, atlases: Sequence[str]) -> "Cohort":
        """The scans that have one of some atlases, in these atlases alone.

        Args:
            atlases (`Sequence[str]`): ids of one or more of the cohort's.
        """
        if [*atlases] == [*self.atlases]:
            return self
        first, *others = (part for part in self.by_atlas if part.id in atlases)
        here = np.any([part.are_there() for part in (first, *others)], axis=0)
        made = replace(
            self,
            triangles=first.triangles,
            feature_extractor=first.feature_extractor,
            series=first.series,
            others=tuple(others),
        )
        return made if here.all() else made.select(here)

    def has_atlas(self, atlas: str) -> np.ndarray:
        """Which scans have an atlas, by its id: bool `(scans,)`."""
        return next(part for part in self.by_atlas if part.id == atlas).are_there()

    @property
    def subjects(self) -> pd.Series:
        """Subject id of every scan, as text."""
        return self.table["subject_id"].astype(str)

    @property
    def num_regions(self) -> int:
        """Regions of the (first) atlas."""
        return self.by_atlas[0].num_regions

    def connectivity(self, scans: Places = slice(None)) -> Any:
        """FC matrices of some scans (by position) or of all.

        Returns:
            float32 `(scans, regions, regions)`; of several atlases a dict of them by atlas id, all NaN where a scan
            lacks an atlas.
        """
        found = {part.id: part.matrices(scans) for part in self.by_atlas}
        return found if self.others else found.popitem()[1]

    def batches(self, size: int) -> Iterator[Any]:
        """FC of all scans in their order, as float32 tensors.

        Args:
            size (`int`): scans at a time.

        Yields:
            `(up to size, regions, regions)`; of several atlases a dict of them by atlas id.
        """
        for start in range(0, len(self), size):
            found = self.connectivity(slice(start, start + size))
            if self.others:
                yield {atlas: torch.from_numpy(matrices) for atlas, matrices in found.items()}
            else:
                yield torch.from_numpy(found)

    @property
    def has_time_series(self) -> bool:
        """Whether ROI time series are stored (training.prepare --keep_time_series true)."""
        return self.series is not None

    def time_series(self, scans: np.ndarray) -> list[np.ndarray | None]:
        """ROI time series of some scans (by position): float16 `(volumes, regions)`, of mean 0 and deviation 1.

        A region without signal is 0 throughout. `None` stands for a scan without a stored time series; without
        `has_time_series` that is every one. Of several atlases, these are the first one's.
        """
        return [None] * len(scans) if self.series is None else self.series[scans]

    def volumes(self) -> list[int]:
        """Volumes of every scan's stored time series; 0 where there is none."""
        return [0] * len(self) if self.series is None else self.series.volumes()

    def checksum(self) -> str:
        """Short SHA-256 of the table and all FC: the same for the same scans with the same records."""
        return self.fc_checksum(self.table.to_csv(index=False).encode())

    def fc_checksum(self, before: bytes = b"") -> str:
        """Short SHA-256 of all FC, and of what goes before it: the same for the same scans."""
        digest = hashlib.sha256(before)
        for part in self.by_atlas:
            for start in range(0, len(self), _AT_ONCE):
                digest.update(np.ascontiguousarray(part.triangles[start : start + _AT_ONCE]).tobytes())
        return digest.hexdigest()[:16]

    def phenotypes(self) -> list[str]:
        """Names of the phenotype columns."""
        return [name for name in self.table.columns if is_phenotype(name)]

    def require_column(self, name: str) -> None:
        """Raise `ValueError` listing the known columns when a phenotype is not there."""
        if name not in self.phenotypes():
            raise ValueError(f"There is no phenotype {name!r} in the data; it has {', '.join(self.phenotypes())}.")


def join_scans(parts: Sequence[Cohort | AtlasScans]) -> tuple[StoredTriangles | np.ndarray, StoredSeries | None]:
    """Triangles and time series of several cohorts behind each other, for `Cohort`; what is on the disk stays there.

    Time series are there if one cohort has them; scans of the others then have none.

    Args:
        parts (`Sequence[Cohort | AtlasScans]`): each cohort's scans, all in the same atlas.
    """
    stored = [part.triangles for part in parts if isinstance(part.triangles, StoredTriangles)]
    if len(stored) == len(parts):
        triangles: StoredTriangles | np.ndarray = stored[0].followed_by(stored[1:])
    else:
        triangles = np.concatenate([part.triangles[:] for part in parts])
    if all(part.series is None for part in parts):
        return triangles, None
    series = [StoredSeries.absent(len(part.triangles)) if part.series is None else part.series for part in parts]
    return triangles, series[0].followed_by(series[1:])


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
    require_intact(folder, unread=("parquet/", "quality.html"))
    with foreign_errors_named(f"The data set {folder} is damaged, make it again"):
        _refuse_files_outside(folder)
        data = datasets.load_from_disk(str(folder))
        extractor = FCFeatureExtractor.from_json_file(folder / FC_DEFINITION)
        further, positive = _further_atlases(folder), _declared_positive(folder)
    missing = [name for name in ("subject_id", "session", "connectivity") if name not in data.column_names]
    if missing:
        raise ValueError(
            f"The data set {folder} lacks the columns {', '.join(missing)}; make it with training.prepare."
        )
    first = _in_atlas(data, extractor, "", folder)
    others = tuple(_in_atlas(data, other, f"_{other.atlas}", folder) for other in further)
    signals = {f"{name}{suffix}" for name in SIGNAL_COLUMNS for suffix in ("", *(f"_{part.id}" for part in others))}
    table = data.select_columns([name for name in data.column_names if name not in signals]).to_pandas()
    return Cohort(table, first.triangles, extractor, first.series, positive, others)


def _in_atlas(data: datasets.Dataset, extractor: FCFeatureExtractor, suffix: str, folder: str | Path) -> AtlasScans:
    """The scans in one atlas, whose columns end with `suffix`.

    Raises:
        ValueError: the column is not there, or has another number of edges than the FC definition.
    """
    if extractor.num_regions is None:
        raise ValueError(f"The data set {folder} is damaged, make it again (an FC definition has no num_regions).")
    column, edges = f"connectivity{suffix}", count_edges(extractor)
    stored = data.features[column].length if column in data.column_names else 0
    if stored != edges:
        raise ValueError(
            f"{folder} holds {stored} edges a scan in {column}, but its FC definition has {extractor.num_regions} "
            f"regions ({edges} edges)."
        )
    series = StoredSeries(data, suffix=suffix) if f"time_series{suffix}" in data.column_names else None
    return AtlasScans(extractor, StoredTriangles(data, edges, column=column), series)


def _further_atlases(folder: Path) -> list[FCFeatureExtractor]:
    """FC definitions of the atlases beside the first one."""
    path = folder / FURTHER_ATLASES
    definitions = read_json(path, list) if path.is_file() else []
    return [FCFeatureExtractor.from_dict(definition) for definition in definitions]


def _refuse_files_outside(folder: Path) -> None:
    """Raise `ValueError` where the list of data files that `datasets` follows leads out of the folder."""
    files = read_json(folder / "state.json")["_data_files"]
    outside = [entry["filename"] for entry in files if not is_inside(entry["filename"])]
    if outside:
        raise ValueError(f"state.json names files outside the folder, {outside[0]!r}")


def _declared_positive(folder: Path) -> dict[str, str]:
    """Positive labels that the cohorts of a data set declare, by variable."""
    records = cohort_records(folder)
    return {name: label for record in records for name, label in record.get("positive", {}).items()}
