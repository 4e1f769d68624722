"""Tables of region signals or of correlations with BIDS names, as XCP-D writes them, one atlas out of several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from modeling_lcm.atlases import find_atlas, region_names

from .base import Scan, Source
from .entities import BIDSFile, beside, values_of
from .images import mean_displacement


SUFFIXES = {"timeseries": "time_series", "relmat": "connectivity", "conmat": "connectivity"}
PEARSON = "pearsoncorrelation"


@dataclass
class ParcelSource(Source):
    """One table per scan, whose columns are named after the regions.

    Args:
        tables (`list[BIDSFile]`): table of every row.
        atlas (`str`): atlas id, from the tables' names.
        names (`list[str]`): the regions in the data set's order.
        kind (`str`): "time_series" or "connectivity".
    """

    tables: list[BIDSFile] = field(default_factory=list)
    atlas: str = ""
    names: list[str] = field(default_factory=list)
    kind: str = "time_series"

    def region_names(self) -> list[str]:
        """See `Source.region_names`."""
        return self.names

    def atlas_id(self) -> str:
        """See `Source.atlas_id`."""
        return self.atlas

    def files(self, row: int) -> list[Path]:
        """See `Source.files`."""
        file = self.tables[row]
        others = (_motion(file), beside(file, "outliers"), _coverage_table(file))
        return [file.path, *(path for path in others if path is not None)]

    def read(self, row: int) -> Scan:
        """See `Source.read`."""
        file = self.tables[row]
        table = read_named_table(file.path, self.kind == "connectivity")
        table, remarks = in_order(table, self.names, file.path)
        motion = _motion(file)
        mean_fd = None if motion is None else mean_displacement(pd.read_csv(motion, sep="\t", na_values="n/a"))
        coverage = self._coverage(file)
        if self.kind == "connectivity":
            return Scan(correlations(table), "connectivity", mean_fd, remarks=remarks, coverage=coverage, named=True)
        values, censored = without_censored(table.to_numpy(dtype=np.float64), beside(file, "outliers"))
        remarks += ("censored volumes left out",) if censored else ()
        return Scan(values, "time_series", mean_fd, len(values), remarks, coverage, named=True)

    def _coverage(self, file: BIDSFile) -> np.ndarray | None:
        """Share of every region's voxels with signal, `(regions,)`, where there is a table of it."""
        path = _coverage_table(file)
        if path is None:
            return None
        table = pd.read_csv(path, sep="\t", na_values="n/a", index_col=0)
        return table.iloc[:, 0].reindex(self.names).to_numpy(dtype=np.float64)


def _motion(file: BIDSFile) -> Path | None:
    return beside(file, "motion") or beside(file, "motion", desc="filtered")


def _coverage_table(file: BIDSFile) -> Path | None:
    return beside(file, "bold", stat="coverage") or beside(file, "coverage")


def read_named_table(path: Path, is_matrix: bool) -> pd.DataFrame:
    """Numbers with the regions' names as columns, and as index too if it is a matrix.

    Raises:
        ValueError: it is empty or no table of numbers, or a region has two columns.
    """
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline().rstrip("\r\n").split("\t")
    names = header[1:] if is_matrix else header
    doubled = [name for name in names if names.count(name) > 1] if len(set(names)) < len(names) else []
    if doubled or len(names) < 2:
        problem = f"the region {doubled[0]} has two columns" if doubled else "it has no columns of regions"
        raise ValueError(f"{path} is no table of regions: {problem}.")
    table = pd.read_csv(path, sep="\t", na_values="n/a", index_col=0 if is_matrix else False, encoding="utf-8-sig")
    if is_matrix:
        table.index = table.index.map(str)
    numbers = table.apply(pd.to_numeric, errors="coerce")
    bad = numbers.isna() & table.notna()
    if bad.to_numpy().any():
        row, column = np.argwhere(bad.to_numpy())[0]
        raise ValueError(
            f"{path} holds {str(table.iat[row, column])[:20]!r} for {table.columns[column]}, where a number is needed."
        )
    return numbers


def in_order(table: pd.DataFrame, names: Sequence[str], path: Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """A table's regions in the data set's order; regions that it lacks are NaN (no signal).

    Raises:
        ValueError: it has other regions, or the rows of a matrix have other names than its columns.
    """
    is_matrix = not isinstance(table.index, pd.RangeIndex)
    if is_matrix and set(table.index) != set(table.columns):
        raise ValueError(f"{path} has rows for other regions than its columns: {_first_difference(table)}.")
    unknown = [name for name in table.columns if name not in names]
    if unknown:
        raise ValueError(
            f"{path} has {len(unknown)} regions that the data set has not, the first is {unknown[0]!r} (the data set "
            f"begins with {', '.join(names[:2])}): its atlas is another one."
        )
    remarks = []
    if len(table.columns) < len(names):
        remarks.append(f"{len(names) - len(table.columns)} regions absent from the file")
    if list(table.columns) != [name for name in names if name in set(table.columns)]:
        remarks.append("reordered")
    table = table.reindex(columns=list(names))
    return (table.reindex(index=list(names)) if is_matrix else table), tuple(remarks)


def _first_difference(table: pd.DataFrame) -> str:
    return next(
        f"{row!r} and {column!r}" for row, column in zip(table.index, table.columns, strict=False) if row != column
    )


def without_censored(values: np.ndarray, outliers: Path | None) -> tuple[np.ndarray, int]:
    """A time series `(volumes, regions)` without censored volumes, and their number.

    They are rows without any number; or, where the table has all volumes, those that the table of outliers marks.
    """
    censored = np.isnan(values).all(axis=1)
    if outliers is not None:
        marks = pd.read_csv(outliers, sep="\t", na_values="n/a").fillna(0)
        if "framewise_displacement" in marks:  # further columns choose volumes for other purposes
            marks = marks[["framewise_displacement"]]
        if len(marks) == len(values):
            censored |= (marks.to_numpy(dtype=np.float64) != 0).any(axis=1)
    return values[~censored], int(censored.sum())


def correlations(table: pd.DataFrame) -> np.ndarray:
    """A matrix of Pearson correlations; a blank diagonal of regions with signal is 1."""
    matrix = table.to_numpy(dtype=np.float64).copy()
    diagonal = np.diagonal(matrix)
    has_signal = (~np.isnan(matrix)).sum(axis=1) > (~np.isnan(diagonal))
    np.fill_diagonal(matrix, np.where(np.isnan(diagonal) & has_signal, 1.0, diagonal))
    return matrix


def parcel_source(
    files: Sequence[BIDSFile], regions: Sequence[str] | None, described: Mapping[str, Any]
) -> ParcelSource:
    """The tables of one atlas.

    Args:
        files (`Sequence[BIDSFile]`): table of every scan.
        regions (`Sequence[str]`, *optional*): names in the order that is wanted; default: the atlas's table, or the
            first file's order.
        described (`Mapping[str, Any]`): table, places, settings and remarks of the source.

    Raises:
        ValueError: correlations other than Pearson's, or regions that are not those of the atlas.
    """
    first = files[0]
    kind = SUFFIXES[first.entities["suffix"]]
    other = [file for file in files if file.entities.get("stat", PEARSON) != PEARSON]
    if kind == "connectivity" and other:
        raise ValueError(
            f"{other[0].path.name} holds no Pearson correlations; there {values_of(files, 'stat')}. Choose with "
            f"--select stat={PEARSON}, or take the time series with --select suffix=timeseries."
        )
    header = [str(name) for name in read_named_table(first.path, kind == "connectivity").columns]
    atlas = first.entities["seg"]
    known = find_atlas(atlas)
    table = None if known is None else region_names(known)
    names = list(regions or (table if table is not None and set(header) <= set(table) else header))
    if known is not None and known.num_regions == len(names):
        atlas = known.id
    return ParcelSource(tables=list(files), atlas=atlas, names=names, kind=kind, **described)
