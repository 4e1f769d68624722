"""What the files of a data set have in common: which regions, and how FC matrices are vectorised."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from modeling_lcm.region_matching import only_numbered
from modeling_lcm.triangles import TriangleLayout, find_layout, rebuild

from .regions import Regions, check_names
from .text import FileArray


def is_vector(values: np.ndarray) -> bool:
    """Whether an array is a vectorised matrix: `(edges,)`, a row or a column."""
    return values.ndim == 1 or (values.ndim == 2 and 1 in values.shape and values.size > 1)


def matrix_of(values: np.ndarray, layout: TriangleLayout | None) -> np.ndarray:
    """A vectorised FC matrix, as its matrix; a matrix stays as it is.

    Raises:
        ValueError: the vector is of another length than the data set's, or of another order.
    """
    if not is_vector(values) or layout is None:
        return values
    vector = values.ravel()
    if vector.dtype.kind not in "iuf":
        return values
    try:
        own = find_layout(vector, layout.triangle, layout.num_regions)
    except ValueError as error:
        raise ValueError(f"The data set's FC is read as {layout.triangle} triangles. {error}") from error
    return rebuild(vector.astype(np.float32), own)


def find_triangles(
    arrays: Mapping[str, np.ndarray], triangle: str | None, num_regions: int | None
) -> TriangleLayout | None:
    """How the vectors among a data set's FC files are ordered; `None` if they are matrices.

    Args:
        arrays (`Mapping[str, np.ndarray]`): arrays of some files, by place.
        triangle (`str`, *optional*): the declared order.
        num_regions (`int`, *optional*): regions of the atlas.

    Raises:
        ValueError: no triangle has so many values, or they fit either order and none is declared.
    """
    vectors = {place: v.ravel() for place, v in arrays.items() if is_vector(v) and v.dtype.kind in "iuf"}
    if not vectors:
        return None
    usual = Counter(map(len, vectors.values())).most_common(1)[0][0]
    same = {place: vector for place, vector in vectors.items() if len(vector) == usual}
    try:
        return find_layout(np.stack(list(same.values())), triangle, num_regions)
    except ValueError as error:
        raise ValueError(f"{next(iter(same))}: {error}") from error


def find_regions_of_files(
    seen: Mapping[str, FileArray], kind: str, regions: Regions, layout: TriangleLayout | None
) -> Regions:
    """The regions that a data set's files agree on, where the settings leave them open.

    Without a table of regions the names in the files are taken, in the order of the first file that has them; without
    names, their number.

    Args:
        seen (`Mapping[str, FileArray]`): some of the files, by place.
        kind (`str`): "time_series" or "connectivity".
        regions (`Regions`): what the settings say.
        layout (`TriangleLayout`, *optional*): how FC is vectorised.

    Raises:
        ValueError: fewer than half of the files agree in the number of regions.
    """
    named = {place: names for place, file in seen.items() if (names := _names(file, kind, regions)) is not None}
    regions = replace(regions, must_be_named=bool(named))
    if regions.names is None and named:
        usual = Counter(frozenset(names) for names in named.values()).most_common(1)[0][0]
        first = next(names for names in named.values() if frozenset(names) == usual)
        check_names(first)
        if regions.num_regions in (None, len(first)) and len(usual) == len(first):
            regions = replace(regions, names=first, num_regions=len(first), atlas="the first file")
    if regions.num_regions is not None or not seen:
        return regions
    return replace(regions, num_regions=_agreed_count(seen, layout))


def _names(file: FileArray, kind: str, regions: Regions) -> Sequence[str] | None:
    names = file.header
    if kind == "connectivity" or regions.names_rows(file.rows, file.header):
        names = file.header or file.rows
    return None if names is None or only_numbered(names, made_up=regions.names is None) else names


def _agreed_count(seen: Mapping[str, FileArray], layout: TriangleLayout | None) -> int:
    """Number of regions that most files have: never that of one file alone, if another one says otherwise."""
    counts: dict[str, Any] = {
        place: layout.num_regions if layout is not None and is_vector(file.values) else file.values.shape[-1]
        for place, file in seen.items()
    }
    (count, files), *others = Counter(counts.values()).most_common()
    if others and files * 2 <= len(counts):
        (first, one), (second, two) = (
            next((place, number) for place, number in counts.items() if number == wanted)
            for wanted in (count, others[0][0])
        )
        raise ValueError(
            f"The files do not agree in the number of regions: {first} has {one}, {second} has {two}. Name the "
            "regions with --regions TABLE, or give a known --atlas."
        )
    return int(count)
