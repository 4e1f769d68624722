"""One .npz archive with all scans, whatever their order in it."""

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from modeling_lcm.triangles import TriangleLayout, find_layout

from .base import Absent, Scan, Source
from .bounds import check_npz
from .layout import find_regions_of_files, matrix_of
from .names import Unreadable, names_in, read_entry, why_unreadable
from .regions import Regions
from .text import FileArray


ID_ARRAYS = ("scan_id", "participant_id", "subject_id")  # what an archive may call its ids
# Arrays that hold the scans; a name with "tri" says the order of the vectors.
SCAN_ARRAYS = {"connectivity": (("connectivity",), ("fc_triu",), ("fc_tril",)), "time_series": (("data", "offsets"),)}
DECLARED = {"fc_triu": "upper", "fc_tril": "lower"}


@dataclass(frozen=True)
class _Archive:
    """Content of an archive.

    Args:
        id_name (`str`): what it calls the ids.
        ids (`list[str]`): one per scan.
        key (`str`): name of the array with the scans.
        arrays (`list[np.ndarray]`): that array, and offsets of time series.
        names (`list[str]`, *optional*): names of the regions.
    """

    id_name: str
    ids: list[str]
    key: str
    arrays: list[np.ndarray]
    names: list[str] | None


@dataclass
class ArchiveSource(Source):
    """One .npz archive with all scans, read once.

    Args:
        arrays (`list[np.ndarray]`): matrices or triangles `(scans, ...)`; or signals of all scans and their offsets.
        positions (`list[int]`): scan of every row.
        kind (`str`): "time_series" or "connectivity".
        regions (`Regions`): order and number of regions that are wanted.
        names (`list[str]`, *optional*): names of the archive's regions.
        layout (`TriangleLayout`, *optional*): how vectorised FC is read.
        paths (`list[Path]`): the file.
    """

    arrays: list[np.ndarray] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    kind: str = "connectivity"
    regions: Regions = field(default_factory=lambda: Regions(None))
    names: list[str] | None = None
    layout: TriangleLayout | None = None
    paths: list[Path] = field(default_factory=list)

    in_memory = True

    def read(self, row: int) -> Scan:
        """See `Source.read`."""
        index = self.positions[row]
        named = self.regions.are_named(self.names)
        if self.kind == "connectivity":
            values = matrix_of(self.arrays[0][index], self.layout)
            values, moved = self.regions.arrange_matrix(values, self.names, self.names)
            return Scan(values, "connectivity", remarks=moved, named=named)
        signals, offsets = self.arrays
        values, moved = self.regions.arrange(signals[offsets[index] : offsets[index + 1]], self.names)
        return Scan(values, "time_series", volumes=len(values), remarks=moved, named=named)

    def files(self, row: int) -> list[Path]:
        """See `Source.files`."""
        return self.paths

    def region_names(self) -> list[str] | None:
        """See `Source.region_names`."""
        return None if self.regions.names is None else list(self.regions.names)

    def num_regions(self) -> int | None:
        """See `Source.num_regions`."""
        return self.regions.num_regions


def archive_source(
    path: Path,
    kind: str,
    table: pd.DataFrame,
    whose: Callable[[int], str],
    where: str,
    subject_column: str,
    regions: Regions,
    triangle: str | None = None,
) -> ArchiveSource:
    """Open an archive of all scans, whatever their order in it.

    It holds ids and, for FC, `connectivity` `(scans, regions, regions)` or `(scans, edges)`, `fc_triu` or `fc_tril`
    `(scans, edges)`; for time series, `data` `(volumes of all scans, regions)` and `offsets` `(scans + 1,)`. Ids are
    `participant_id` or `subject_id`, as in the subject column, or `scan_id`, as in the table's column of that name.
    An array such as `region_names` names the regions.

    Args:
        path (`Path`): the archive.
        kind (`str`): "time_series" or "connectivity".
        table (`pd.DataFrame`): text, one row per scan.
        whose (`Callable`): names subject and line of a row.
        where (`str`): the table's file.
        subject_column (`str`): its column with the subject.
        regions (`Regions`): order and number of regions that are wanted, as far as the settings say.
        triangle (`str`, *optional*): declared order of vectorised FC, "upper" or "lower".

    Raises:
        FileNotFoundError: there is no such archive.
        ValueError: it holds something else, ids that do not tell the scans apart, or vectors of unknown order.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no archive {path}.")
    archive = _open_npz(path, kind)
    column = archive.id_name if archive.id_name in table.columns else subject_column
    wanted = table[column].tolist()
    position = _positions(path, archive, wanted, where)
    here = [row for row, name in enumerate(wanted) if name in position]
    absent = [
        Absent(whose(row), f"{path} has no scan of {name} ({whose(row)}).")
        for row, name in enumerate(wanted)
        if name not in position
    ]
    if not here:
        raise ValueError(
            f"{path} has no scan of {len(absent)} of {len(wanted)} rows of {where}, {wanted[0]} among them (its "
            f"{archive.id_name} begins with {', '.join(archive.ids[:3])})."
        )
    places = [f"{path} ({whose(row)})" for row in here]
    layout = _layout(places[0], archive, kind, triangle, regions)
    # The order of the names does not differ between the scans of an archive.
    first = {
        str(path): FileArray(archive.arrays[0][0] if kind == "connectivity" else archive.arrays[0], archive.names)
    }
    return ArchiveSource(
        table=table.iloc[here],
        places=places,
        absent=absent,
        arrays=archive.arrays,
        positions=[position[wanted[row]] for row in here],
        kind=kind,
        regions=find_regions_of_files(first, kind, regions, layout),
        names=archive.names,
        layout=layout,
        paths=[path],
    )


def _positions(path: Path, archive: _Archive, wanted: list[str], where: str) -> dict[str, int]:
    """Scan of every id.

    Raises:
        ValueError: an id is there twice.
    """
    position = {name: index for index, name in enumerate(archive.ids)}
    if len(position) != len(archive.ids):
        double = max(archive.ids, key=archive.ids.count)
        raise ValueError(f"{path} holds several scans of {double}; its {archive.id_name} must be unique.")
    if len(set(wanted)) != len(wanted):
        raise ValueError(
            f"Several rows of {where} would get the one scan of {max(wanted, key=wanted.count)} in {path}: give the "
            "archive and the table a scan_id each."
        )
    return position


def _layout(place: str, archive: _Archive, kind: str, triangle: str | None, regions: Regions) -> TriangleLayout | None:
    if kind != "connectivity" or archive.arrays[0].ndim != 2:
        return None
    declared = DECLARED.get(archive.key, triangle)
    if triangle not in (None, declared):
        raise ValueError(
            f"{place} calls its FC {archive.key}, that is {declared} triangles, but triangle is {triangle}."
        )
    try:
        return find_layout(archive.arrays[0], declared, regions.num_regions)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _is_of_scans(name: str, value: np.ndarray | Unreadable, scans: int) -> bool:
    """Whether an array says something about the scans, such as their names, and nothing about regions."""
    if isinstance(value, Unreadable):
        return False
    return len(np.atleast_1d(value)) == scans and re.search("roi|region|parcel|node", name, re.IGNORECASE) is None


def _open_npz(path: Path, kind: str) -> _Archive:
    needed = SCAN_ARRAYS[kind]
    try:
        check_npz(path)
        with np.load(path, allow_pickle=False) as file:
            id_name = next((name for name in ID_ARRAYS if name in file), None)
            found = next((names for names in needed if all(name in file for name in names)), None)
            if id_name is None or found is None:
                raise ValueError(
                    f"it holds {', '.join(file.files)}; needed are participant_id (or scan_id) and "
                    f"{' or '.join(' + '.join(names) for names in needed)}"
                )
            ids, arrays = [str(name) for name in file[id_name]], [file[name] for name in found]
            others = {name: read_entry(file, name) for name in file.files if name not in (*ID_ARRAYS, *found)}
            others = {name: value for name, value in others.items() if not _is_of_scans(name, value, len(ids))}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        reason = f"an array {why_unreadable(error)}" if "pickle" in str(error) else str(error)
        raise ValueError(f"{path} cannot be used: {reason}.") from error
    scans = len(arrays[-1]) - (kind == "time_series")
    if scans != len(ids) or scans < 1:
        raise ValueError(f"{path} holds {scans} scans but {len(ids)} ids in {id_name}.")
    try:
        names = names_in(others, found[0], arrays[0] if kind == "time_series" else arrays[0][0])[1]
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}.") from error
    return _Archive(id_name, ids, found[0], arrays, names)
