"""Names of regions in the other arrays of a MATLAB file or NumPy archive."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Unreadable:
    """An array that cannot be read, which matters only if it is needed.

    Args:
        reason (`str`): why.
    """

    reason: str


def read_entry(archive: Any, key: str) -> Any:
    """An array of a .npz archive, or why it is unreadable: unpickling could run any program."""
    try:
        return archive[key]
    except ValueError as error:
        return Unreadable(why_unreadable(error))


def why_unreadable(error: Exception) -> str:
    """NumPy's reason, in words."""
    return "holds Python objects instead of numbers or text" if "pickle" in str(error) else f"cannot be read ({error})"


def names_in(arrays: Mapping[str, Any], chosen: str, values: np.ndarray) -> tuple[list[str] | None, list[str] | None]:
    """Names of the rows and of the columns of an array, from other arrays of its file.

    Raises:
        ValueError: names of regions are there, but as many as the array has neither rows nor columns, or unreadable.
    """
    for key, value in arrays.items():
        if isinstance(value, Unreadable) and _NAMES_KEY.fullmatch(key):
            raise ValueError(f"its {key} {value.reason}: save names as text, numpy.array(names, dtype=str)")
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
