"""One file per scan, found by a pattern with the table's columns in braces."""

import glob
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from modeling_lcm.triangles import TriangleLayout

from .arrays import SCAN_FORMATS, read_array, scan_format
from .base import Absent, Scan, Source
from .layout import find_regions_of_files, find_triangles, matrix_of
from .regions import Regions
from .text import FileArray


LOOKED_AT = 20  # files that are read before all, to find out what the data set's files have in common


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
            path = Path(pattern.format_map(record))
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


def what_is_there(pattern: str) -> str:
    """A sentence about the files that a pattern, none of whose files is there, may have meant.

    Args:
        pattern (`str`): path with names of columns in braces.
    """
    alike = sorted(glob.glob(re.sub(r"\{[^{}]*\}", "*", pattern)))
    if alike:
        return f"There is {alike[0]}: spell the ids in the table and in the files' names alike, or change the pattern."
    folder = Path(pattern[: pattern.index("{")] + "x").parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"The folder {folder} holds {shown or 'nothing'}: correct the pattern {pattern}."


def _first_double(paths: list[Path]) -> Path:
    seen: set[Path] = set()
    for path in paths:
        if path in seen:
            break
        seen.add(path)
    return path


@dataclass
class FileSource(Source):
    """One file per scan.

    Args:
        paths (`list[str]`): file of every row.
        kind (`str`): "time_series" or "connectivity".
        regions (`Regions`): order and number of regions that are wanted.
        array_name (`str`, *optional*): array inside .npz and .mat files.
        layout (`TriangleLayout`, *optional*): how vectorised FC is read.
    """

    paths: list[str] = field(default_factory=list)
    kind: str = "time_series"
    regions: Regions = field(default_factory=lambda: Regions(None))
    array_name: str | None = None
    layout: TriangleLayout | None = None

    def read(self, row: int) -> Scan:
        """See `Source.read`."""
        file = read_array(Path(self.paths[row]), self.array_name)
        if self.kind == "connectivity":
            values = matrix_of(file.values, self.layout)
            values, moved = self.regions.arrange_matrix(values, file.rows, file.header)
            return Scan(values, "connectivity", remarks=(*file.remarks, *moved), named=self._is_named(file))
        values, header, turned = self._oriented(file)
        values, moved = self.regions.arrange(values, header)
        unused = ("names of rows left out",) if file.rows is not None and header is not file.rows else ()
        remarks = (*file.remarks, *unused, *turned, *moved)
        return Scan(values, "time_series", volumes=len(values), remarks=remarks, named=self.regions.are_named(header))

    def files(self, row: int) -> list[Path]:
        """See `Source.files`."""
        return [Path(self.paths[row])]

    def _is_named(self, file: FileArray) -> bool:
        return self.regions.are_named(file.header or file.rows)

    def _oriented(self, file: FileArray) -> tuple[np.ndarray, list[str] | None, tuple[str, ...]]:
        """A time series as `(volumes, regions)`, and the names of its columns."""
        if self.regions.names_rows(file.rows, file.header):
            return file.values.T, file.rows, ("transposed",)
        values, turned = self.regions.orient(file.values)
        return values, file.rows if turned else file.header, turned

    def region_names(self) -> list[str] | None:
        """See `Source.region_names`."""
        return None if self.regions.names is None else list(self.regions.names)

    def num_regions(self) -> int | None:
        """See `Source.num_regions`."""
        return self.regions.num_regions


def file_source(
    pattern: str,
    kind: str,
    table: pd.DataFrame,
    whose: Callable[[int], str],
    regions: Regions,
    array_name: str | None,
    triangle: str | None = None,
) -> FileSource:
    """Locate every scan before any is read, and find out from some what all have in common.

    Args:
        pattern (`str`): path with names of columns in braces.
        kind (`str`): "time_series" or "connectivity".
        table (`pd.DataFrame`): text, one row per scan.
        whose (`Callable`): names subject and line of a row.
        regions (`Regions`): order and number of regions that are wanted, as far as the settings say.
        array_name (`str`, *optional*): array inside .npz and .mat files.
        triangle (`str`, *optional*): declared order of vectorised FC, "upper" or "lower".

    Raises:
        ValueError: the pattern does not fit the table, a file has no known format, the files disagree in their
            regions, or vectorised FC could be in either order.
    """
    paths = locate(pattern, table, whose)
    here, absent = [], []
    for row, path in enumerate(paths):
        if scan_format(path) is None:
            raise ValueError(f"{path} ({whose(row)}) has none of the formats {', '.join(SCAN_FORMATS)}.")
        if path.is_file():
            here.append(row)
        else:
            absent.append(Absent(whose(row), f"There is no scan {path} ({whose(row)})."))
    places = [f"{paths[row]} ({whose(row)})" for row in here]
    seen = _look([paths[row] for row in here], places, array_name)
    layout = None
    if kind == "connectivity":
        layout = find_triangles({place: file.values for place, file in seen.items()}, triangle, regions.num_regions)
    return FileSource(
        table=table.iloc[here],
        places=places,
        absent=absent,
        paths=[str(paths[row]) for row in here],
        kind=kind,
        regions=find_regions_of_files(seen, kind, regions, layout),
        array_name=array_name,
        layout=layout,
    )


def _look(paths: list[Path], places: list[str], array_name: str | None) -> dict[str, FileArray]:
    """Some of the files, evenly spread, by place; those that cannot be read are reported when all are."""
    seen = {}
    for number in np.unique(np.linspace(0, len(paths) - 1, min(LOOKED_AT, len(paths)), dtype=int)):
        try:
            seen[places[number]] = read_array(paths[number], array_name)
        except (ValueError, OSError):
            continue
    return seen
