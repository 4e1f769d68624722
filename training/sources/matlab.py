"""MATLAB files: matrices, cells with a column per region as CONN writes them, and variables that name the regions."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from modeling_lcm.triangles import count_regions


# What a variable with the regions' names is called, in MATLAB files and NumPy archives.
_NAMES_KEY = re.compile(r"names?2?|.*(?:roi|region|node|parcel|area|atlas).*|labels?|columns?", re.IGNORECASE)
_LABELS_KEY = re.compile(
    r"(?:(?:roi|region|node|parcel|area|atlas)_?)?(?:labels?|codes?|ids?|values?|index|indices|numbers?|names?)",
    re.IGNORECASE,
)
# Of several, one that says so goes first.
_SURE_KEY = re.compile(r"names2?|(?:roi|region|node|parcel|area)_?(?:names?|labels?)", re.IGNORECASE)


def read_mat(path: Path) -> dict[str, Any]:
    """Variables of a MATLAB file; cells with one column per region become a matrix.

    Raises:
        ValueError: the file is damaged, or of MATLAB 7.3.
    """
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    except NotImplementedError:
        raise ValueError("it is a MATLAB 7.3 file; save it again with save(..., '-v7')") from None
    except Exception as error:  # scipy has no common base class for damaged files
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return {key: _without_cells(value) for key, value in content.items() if not key.startswith("__")}


def _without_cells(value: Any) -> Any:
    """A matrix of cells that hold a column of numbers each; everything else as it is."""
    if not isinstance(value, np.ndarray) or value.dtype != object or value.size < 2:
        return value
    cells = [np.asarray(cell) for cell in value.flat]
    if not all(cell.dtype.kind in "iuf" and cell.size and cell.ndim == 2 and 1 in cell.shape for cell in cells):
        return value
    if len({cell.size for cell in cells}) > 1:
        return value
    return np.stack([cell.ravel() for cell in cells], axis=1)


def check_cells(value: Any, name: str) -> None:
    """Refuse cells that could not be put together.

    Raises:
        ValueError: the array holds cells, or a structure.
    """
    array = np.asarray(value)
    if array.dtype.names is not None:
        raise ValueError(f"{name} is a structure with the fields {', '.join(array.dtype.names[:5])}; save one matrix")
    if array.dtype == object:
        raise ValueError(
            f"{name} holds {array.size} cells of different sizes or kinds; needed is one column of numbers per "
            "region, or a matrix (cell2mat)"
        )


def names_in(arrays: Mapping[str, Any], chosen: str, values: np.ndarray) -> tuple[list[str] | None, list[str] | None]:
    """Names of the rows and of the columns of an array, from other arrays of its file.

    Raises:
        ValueError: names of regions are there, but as many as the array has neither rows nor columns.
    """
    lists = {key: names for key, value in arrays.items() if key != chosen and (names := _as_names(key, value))}
    lists = dict(sorted(lists.items(), key=lambda item: (_SURE_KEY.fullmatch(item[0]) is None, item[0].lower())))
    sizes = values.shape
    if values.ndim == 1 or 1 in values.shape:
        sides = [count_regions(values.size, with_diagonal) for with_diagonal in (False, True)]
        sizes = tuple(side for side in sides if side is not None)
    fitting = {key: names for key, names in lists.items() if len(names) in sizes}
    for key in lists:
        if _SURE_KEY.fullmatch(key) and key not in fitting:
            raise ValueError(
                f"its {key} holds {len(lists[key])} names, which fit neither rows nor columns of {chosen} "
                f"{values.shape}"
            )
    if not fitting:
        return None, None
    if values.ndim != 2 or len(sizes) != 2 or 1 in values.shape:
        names = next(iter(fitting.values()))
        return names, names
    rows, columns = (next((names for names in fitting.values() if len(names) == size), None) for size in values.shape)
    # CONN's rows are `names`, its columns `names2`.
    second = lists.get("names2", [])
    return rows, second if len(second) == values.shape[1] else columns


def _as_names(key: str, value: Any) -> list[str] | None:
    """Texts, or label values, of a variable that is called like names of regions."""
    if not _NAMES_KEY.fullmatch(key) or not isinstance(value, np.ndarray):
        return None
    flat = [item.item() if isinstance(item, np.ndarray) and item.size == 1 else item for item in value.ravel()]
    if value.dtype.kind in "iuf":
        is_list = 2 <= value.size == max(value.shape, default=0)
        if not _LABELS_KEY.fullmatch(key) or not is_list or not np.array_equal(value, np.round(value)):
            return None
        numbers = [int(number) for number in flat]
        counted = numbers in (list(range(len(numbers))), list(range(1, len(numbers) + 1)))
        return None if counted or len(set(numbers)) < len(numbers) else [str(number) for number in numbers]
    texts = [item.decode(errors="replace") if isinstance(item, bytes) else item for item in flat]
    if not texts or not all(isinstance(text, str) for text in texts):
        return None
    texts = [text.strip() for text in texts]
    # Hemispheres or networks of the regions are not their names.
    return texts if len(set(texts)) == len(texts) or _SURE_KEY.fullmatch(key) else None
