"""What users pass as numbers (tensors, masked arrays, tables, lists) as plain arrays, and the names they bring."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch


def as_array(value: Any, name: str) -> np.ndarray:
    """Convert tensors, lists, masked arrays and tables of numbers to a floating-point array.

    Args:
        value (`Any`): What a user passed.
        name (`str`): What it is called in messages.

    Returns:
        float32 for single and half precision, float64 for everything else; masked values and missing cells are NaN.

    Raises:
        TypeError: The values are not real numbers, or the array is sparse or holds no values.
        ValueError: Nested lists of different lengths.
    """
    if isinstance(value, torch.Tensor):
        value = _plain_tensor(value, name)
    elif isinstance(value, list | tuple) and any(_needs_conversion(item) for item in value):
        # NumPy would stack these without their masks.
        value = _stack([as_array(item, f"{name}[{number}]") for number, item in enumerate(value)], name)
    elif _is_table(value):
        value = _plain_table(value, name)
    elif hasattr(value, "toarray") and hasattr(value, "nnz"):
        raise TypeError(
            f"{name} is a sparse {type(value).__name__}, whose absent values are unknown; pass .toarray()."
        )
    try:
        array = np.ma.asanyarray(value) if isinstance(value, np.ma.MaskedArray) else np.asarray(value)
    except ValueError as error:
        raise ValueError(f"The rows of {name} have different lengths; give arrays without gaps.") from error
    if array.dtype.names is not None:
        array = np.stack([array[field] for field in array.dtype.names], axis=-1)
    if array.dtype.kind not in "iuf":
        raise TypeError(_not_numbers(value, array, name))
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32 if array.dtype == np.float16 else np.float64)
    return array.filled(np.nan) if isinstance(array, np.ma.MaskedArray) else array


def axis_names(value: Any) -> tuple[list[str] | None, list[str] | None]:
    """Names of rows and columns that come with a table, labelled array or structured array.

    Returns:
        Names of the rows and of the columns; `None` where there are none, or where they only count.
    """
    if isinstance(value, np.ndarray):
        return None, None if value.dtype.names is None else list(value.dtype.names)
    if _is_table(value):
        return _names(getattr(value, "index", ())), _names(value.columns)
    dims, coords = getattr(value, "dims", None), getattr(value, "coords", None)
    if dims is None or coords is None or len(dims) < 2:
        return None, None
    rows, columns = (_names(np.asarray(coords[dim])) if dim in coords else None for dim in dims[-2:])
    return rows, columns


def brings_names(value: Any) -> bool:
    """Whether an input, or one of a list of inputs, has names of rows or columns."""
    if isinstance(value, list | tuple):
        return any(brings_names(item) for item in value if not isinstance(item, list | tuple | int | float))
    return any(names is not None for names in axis_names(value))


def _names(labels: Iterable[Any]) -> list[str] | None:
    """Labels of an axis as text; `None` for 0, 1, 2, ... and 1, 2, 3, ..., which name nothing."""
    found = list(labels)
    if not found or found in (list(range(len(found))), list(range(1, len(found) + 1))):
        return None
    return [label.decode(errors="replace") if isinstance(label, bytes) else str(label) for label in found]


def _is_table(value: Any) -> bool:
    """A DataFrame, of pandas or another library: neither is a dependency of this package's core."""
    return hasattr(value, "columns") and hasattr(value, "to_numpy") and getattr(value, "ndim", 2) == 2


def _needs_conversion(item: Any) -> bool:
    return isinstance(item, torch.Tensor | np.ma.MaskedArray) or _is_table(item) or hasattr(item, "toarray")


def _plain_tensor(tensor: torch.Tensor, name: str) -> torch.Tensor:
    if tensor.is_meta:
        raise TypeError(f"{name} is a tensor on the meta device, which holds no values; pass one with data.")
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized:
        raise TypeError(
            f"{name} is a sparse, nested or quantised tensor ({tensor.layout}, {tensor.dtype}); pass a dense one "
            "(.to_dense(), .dequantize())."
        )
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    # NumPy has no bfloat16 and no 8-bit floats.
    known = tensor.dtype in (torch.float16, torch.float32, torch.float64) or not tensor.is_floating_point()
    return tensor if known else tensor.float()


def _plain_table(table: Any, name: str) -> np.ndarray:
    kinds = {str(column): getattr(kind, "kind", "f") for column, kind in zip(table.columns, table.dtypes, strict=True)}
    other = [column for column, kind in kinds.items() if kind not in "iuf"]
    if other:
        raise TypeError(
            f"{name} must hold real numbers, but {len(other)} of {len(kinds)} columns of the table hold none: "
            f"{', '.join(other[:3])}{', ...' if len(other) > 3 else ''}. Leave them out, or convert them."
        )
    array = np.asarray(table.to_numpy())
    # Columns that can be missing (pandas' Float64, Int64) come as objects.
    return table.to_numpy(dtype=np.float64, na_value=np.nan) if array.dtype == object else array


def _stack(arrays: list[np.ndarray], name: str) -> np.ndarray:
    if len({array.shape for array in arrays}) > 1:
        shapes = ", ".join(str(array.shape) for array in arrays[:3])
        raise ValueError(f"The items of {name} have different shapes ({shapes}); give arrays without gaps.")
    return np.stack(arrays)


def _not_numbers(value: Any, array: np.ndarray, name: str) -> str:
    text = f"{name} must hold real numbers, got {type(value).__name__} of type {array.dtype}."
    if array.dtype == object and array.ndim and any(np.ndim(item) for item in array.flat[:1]):
        return f"{text} It is an array of arrays (cells): pass a list of arrays of numbers."
    return text
