"""One file per scan, found by a pattern with the table's columns in braces; or one archive with all scans."""

import glob
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from modeling_lcm.connectivity import connectivity_from_triangle

from . import arrays
from .arrays import SCAN_FORMATS, Regions
from .base import Absent, Scan, Source


ID_ARRAYS = ("scan_id", "participant_id", "subject_id")  # what an archive may call its ids


def locate(pattern: str, table: pd.DataFrame, whose: Callable[[int], str]) -> list[Path]:
    """Path of every row of a table.

    Args:
        pattern (`str`): path with names of columns in braces.
        table (`pd.DataFrame`): text, one row per scan.
        whose (`Callable`): names subject and line of a row.

    Raises:
        ValueError: the pattern names an unknown column, or leads to one file for several rows.
    """
    paths: list[Path] = []
    for row, record in enumerate(table.to_dict("records")):
        try:
            path = Path(pattern.format(**record))
        except (KeyError, IndexError, AttributeError, ValueError) as error:
            raise ValueError(
                f"The pattern {pattern!r} does not fit the table ({error}): write names of its columns in braces, "
                f"{', '.join(table.columns)}."
            ) from None
        if any(character in str(path) for character in "*?"):
            found = sorted(map(Path, glob.glob(str(path))))
            if len(found) > 1:
                raise ValueError(
                    f"{path} fits {len(found)} files ({whose(row)}), {found[0].name} and {found[1].name}."
                )
            path = found[0] if found else path
        paths.append(path)
    if len(set(paths)) < len(paths):
        path = max(paths, key=paths.count) if len(paths) < 10_000 else _first_double(paths)
        raise ValueError(
            f"The pattern {pattern!r} leads to {path} for {paths.count(path)} rows of the table: write columns in "
            "braces that tell the scans apart."
        )
    return paths


def _first_double(paths: list[Path]) -> Path:
    seen: set[Path] = set()
    return next(path for path in paths if path in seen or seen.add(path))


@dataclass
class FileSource(Source):
    """One file per scan.

    Args:
        paths (`list[str]`): file of every row.
        kind (`str`): "time_series" or "connectivity".
        regions (`Regions`): order and number of regions that are wanted.
        array_name (`str`, *optional*): array inside .npz and .mat files.
    """

    paths: list[str] = field(default_factory=list)
    kind: str = "time_series"
    regions: Regions = field(default_factory=lambda: Regions(None))
    array_name: str | None = None

    def read(self, row: int) -> Scan:
        """See `Source.read`."""
        file = arrays.read_array(Path(self.paths[row]), self.array_name)
        if self.kind == "connectivity":
            return Scan(_as_matrix(file.values), "connectivity")
        values, turned = self.regions.orient(file.values)
        values, moved = self.regions.arrange(values, None if turned else file.header)
        return Scan(values, "time_series", volumes=len(values), remarks=(*turned, *moved))


def file_source(
    pattern: str, kind: str, table: pd.DataFrame, whose: Callable[[int], str], regions: Regions, array_name: str | None
) -> FileSource:
    """Locate every scan before any is read.

    Raises:
        ValueError: the pattern does not fit the table, or a file has no known format.
    """
    paths = locate(pattern, table, whose)
    here, absent = [], []
    for row, path in enumerate(paths):
        if path.suffix not in SCAN_FORMATS:
            raise ValueError(f"{path} ({whose(row)}) has none of the formats {', '.join(SCAN_FORMATS)}.")
        if path.is_file():
            here.append(row)
        else:
            absent.append(Absent(whose(row), f"There is no scan {path} ({whose(row)})."))
    return FileSource(
        table=table.iloc[here],
        places=[f"{paths[row]} ({whose(row)})" for row in here],
        absent=absent,
        paths=[str(paths[row]) for row in here],
        kind=kind,
        regions=regions,
        array_name=array_name,
    )


@dataclass
class ArchiveSource(Source):
    """One .npz archive with all scans, read once.

    Args:
        arrays (`list[np.ndarray]`): matrices or triangles `(scans, ...)`; or signals of all scans and their offsets.
        positions (`list[int]`): scan of every row.
        kind (`str`): "time_series" or "connectivity".
    """

    arrays: list[np.ndarray] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    kind: str = "connectivity"

    in_memory = True

    def read(self, row: int) -> Scan:
        """See `Source.read`."""
        index = self.positions[row]
        if self.kind == "connectivity":
            return Scan(_as_matrix(self.arrays[0][index]), "connectivity")
        signals, offsets = self.arrays
        values = signals[offsets[index] : offsets[index + 1]]
        return Scan(values, "time_series", volumes=len(values))


def archive_source(
    path: Path, kind: str, table: pd.DataFrame, whose: Callable[[int], str], where: str, subject_column: str
) -> ArchiveSource:
    """Open an archive of all scans, whatever their order in it.

    It holds ids and, for FC, `connectivity` `(scans, regions, regions)` or `fc_triu` `(scans, edges)`; for time
    series, `data` `(volumes of all scans, regions)` and `offsets` `(scans + 1,)`. Ids are `participant_id` or
    `subject_id`, as in the subject column, or `scan_id`, as in the table's column of that name.

    Raises:
        FileNotFoundError: there is no such archive.
        ValueError: it holds something else, or ids that do not tell the scans apart.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no archive {path}.")
    id_name, ids, content = _open_npz(path, kind)
    column = id_name if id_name in table.columns else subject_column
    position = {name: index for index, name in enumerate(ids)}
    if len(position) != len(ids):
        raise ValueError(f"{path} holds several scans of {max(ids, key=ids.count)}; its {id_name} must be unique.")
    wanted = table[column].tolist()
    if len(set(wanted)) != len(wanted):
        raise ValueError(
            f"Several rows of {where} would get the one scan of {max(wanted, key=wanted.count)} in {path}: give the "
            "archive and the table a scan_id each."
        )
    here = [row for row, name in enumerate(wanted) if name in position]
    absent = [
        Absent(whose(row), f"{path} has no scan of {name} ({whose(row)}).")
        for row, name in enumerate(wanted)
        if name not in position
    ]
    if not here:
        raise ValueError(
            f"{path} has no scan of {len(absent)} of {len(wanted)} rows of {where}, {wanted[0]} among them (its "
            f"{id_name} begins with {', '.join(ids[:3])})."
        )
    return ArchiveSource(
        table=table.iloc[here],
        places=[f"{path} ({whose(row)})" for row in here],
        absent=absent,
        arrays=content,
        positions=[position[wanted[row]] for row in here],
        kind=kind,
    )


def _open_npz(path: Path, kind: str) -> tuple[str, list[str], list[np.ndarray]]:
    """Name of the ids, ids, and the arrays of an archive."""
    needed = {"connectivity": [("connectivity",), ("fc_triu",)], "time_series": [("data", "offsets")]}[kind]
    try:
        with np.load(path, allow_pickle=False) as archive:
            id_name = next((name for name in ID_ARRAYS if name in archive), None)
            found = next((names for names in needed if all(name in archive for name in names)), None)
            if id_name is None or found is None:
                raise ValueError(
                    f"it holds {', '.join(archive.files)}; needed are participant_id (or scan_id) and "
                    f"{' or '.join(' + '.join(names) for names in needed)}"
                )
            ids, content = [str(name) for name in archive[id_name]], [archive[name] for name in found]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be used: {error}.") from error
    scans = len(content[-1]) - (kind == "time_series")
    if scans != len(ids):
        raise ValueError(f"{path} holds {scans} scans but {len(ids)} ids in {id_name}.")
    return id_name, ids, content


def _as_matrix(values: np.ndarray) -> np.ndarray:
    """A vectorised upper triangle, `(edges,)` or `(1, edges)`, as its matrix; a matrix stays as it is."""
    if values.ndim == 2 and values.shape[0] == 1 < values.shape[1]:
        values = values[0]
    if values.ndim != 1:
        return values
    regions = round((1 + np.sqrt(1 + 8 * len(values))) / 2)
    if regions * (regions - 1) // 2 != len(values):
        raise ValueError(
            f"{len(values)} values are no upper triangle without diagonal: regions * (regions - 1) / 2 would be "
            "needed."
        )
    return connectivity_from_triangle(values)
