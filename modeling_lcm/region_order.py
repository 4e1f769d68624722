"""Scans whose regions have names, of their own (tables) or given by the caller, put into the order that is wanted."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .array_inputs import as_array, axis_names
from .region_matching import doubled, find_regions, first_difference, only_numbered


Names = tuple[list[str], list[str]]  # of the rows and of the columns


def positions_of(
    wanted: Sequence[str], given: Sequence[str], labels: Mapping[int, str] | None = None, extra: str = "drop"
) -> np.ndarray:
    """Where each of the wanted regions is among the names of the data.

    Args:
        wanted: Names in the order that is needed.
        given: Names as they come with the data, in any of the usual spellings.
        labels: Value in the atlas's label image to name.
        extra: Additional names of the data: `"drop"` or `"warn"`.

    Raises:
        ValueError: Names are double, or wanted regions are missing.
    """
    given = [str(name) for name in given]
    check_unique(given, "region_names of the data")
    found = find_regions(given, wanted, labels)
    position_of = {place: position for position, place in enumerate(found) if place is not None}
    if len(position_of) < len(found) - found.count(None):
        place = next(place for place in found if place is not None and found.count(place) > 1)
        same = " and ".join(repr(name) for name, other in zip(given, found, strict=True) if other == place)
        raise ValueError(f"Two of the data's region names are one region: {same}.")
    if missing := [name for place, name in enumerate(wanted) if place not in position_of]:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} regions are missing from the data: {', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}. Names must match: {first_difference(given, wanted)}."
        )
    if extra == "warn" and None in found:
        others = [name for name, place in zip(given, found, strict=True) if place is None]
        warnings.warn(
            f"{len(others)} columns of the table are none of the wanted regions, left out: {', '.join(others[:5])}.",
            stacklevel=2,
        )
    return np.array([position_of[place] for place in range(len(wanted))])


def check_unique(names: Sequence[str], what: str) -> None:
    """Refuse names that occur twice.

    Raises:
        ValueError: Some do.
    """
    if double := doubled(names):
        raise ValueError(f"{what} must be different from each other; double: {', '.join(double[:5])}.")


def put_in_order(
    scans: Sequence[Any],
    kind: str,
    wanted: Sequence[str] | None,
    labels: Mapping[int, str] | None,
    region_names: Sequence[str] | None = None,
) -> list[np.ndarray] | None:
    """Tables with named rows or columns as arrays in the wanted order of regions.

    Args:
        scans: Tables, one per scan.
        kind: `"connectivity"` or `"time_series"`.
        wanted: Names in the order that is needed; without them the first scan's order is taken, with a warning.
        labels: Value in the atlas's label image to name.
        region_names: Names that the caller gives; those of the tables must be the same.

    Returns:
        One array per scan, or `None` if no table names its regions.

    Raises:
        ValueError: Names that do not fit the arrays, the wanted regions, or each other.
        TypeError: The values are not numbers.
    """
    found = [_own_names(scan, f"{kind}[{number}]", kind, wanted, labels) for number, scan in enumerate(scans)]
    if region_names is not None:
        given = [str(name) for name in region_names]
        found = [_agreed_names(own, given) for own in found]
    names = [own for own in found if own is not None]
    if not names:
        return None
    if len(names) < len(found):
        raise ValueError(
            f"Scan {found.index(None)} names no regions, but others do: whether they have one order cannot be "
            "checked. Give names to all, or pass region_names=."
        )
    if wanted is None:
        wanted = names[0][1]
        warnings.warn(
            "The order of regions is not checked: this extractor has no region names. Scans are put in the order "
            "of the first one's names; build the extractor with region_names= or from_atlas().",
            stacklevel=4,
        )
    return [
        _arranged(as_array(scan, f"{kind}[{number}]"), kind, own, wanted, labels)
        for number, (scan, own) in enumerate(zip(scans, names, strict=True))
    ]


def _arranged(
    array: np.ndarray, kind: str, names: Names, wanted: Sequence[str], labels: Mapping[int, str] | None
) -> np.ndarray:
    rows, columns = names
    fits = array.ndim == 2 and len(columns) == array.shape[1]
    if not fits or (kind == "connectivity" and len(rows) != array.shape[0]):
        raise ValueError(
            f"{len(columns)} region names do not fit a table of shape {array.shape}: {kind} needs one name per "
            f"{'row and column' if kind == 'connectivity' else 'column'}. Leave out columns that are no regions."
        )
    if kind == "connectivity":
        array = array[positions_of(wanted, rows, labels)]
    return array[:, positions_of(wanted, columns, labels, extra="warn")]


def _own_names(
    scan: Any, what: str, kind: str, wanted: Sequence[str] | None, labels: Mapping[int, str] | None
) -> Names | None:
    """Names of the rows and columns of one scan that are regions: of a time series the columns only."""
    rows, columns = axis_names(scan)
    if columns is not None and _only_count(columns, wanted, labels):
        columns = None
    if kind == "connectivity":
        if rows is not None and _only_count(rows, wanted, labels):
            rows = None
        rows, columns = rows or columns, columns or rows
        return None if rows is None or columns is None else (rows, columns)
    if columns is None and rows is not None and wanted is not None and None not in find_regions(rows, wanted, labels):
        raise ValueError(
            f"{what} names its rows as regions ({', '.join(rows[:2])}, ...): a time series is (volumes, regions). "
            "Pass its transpose (`.T`)."
        )
    return None if columns is None else (columns, columns)


def _only_count(names: Sequence[str], wanted: Sequence[str] | None, labels: Mapping[int, str] | None) -> bool:
    """Whether names only number their columns ("column_0", ...) and are not those of the wanted regions."""
    if not only_numbered(names, made_up=True):
        return False
    return wanted is None or None in find_regions(names, wanted, labels)


def _agreed_names(own: Names | None, given: list[str]) -> Names:
    """The names that the caller gives, if the scan's own ones do not say otherwise."""
    for names in own or ():
        if names != given:
            raise ValueError(f"region_names differ from the table's own names: {first_difference(given, names)}.")
    return given, given
