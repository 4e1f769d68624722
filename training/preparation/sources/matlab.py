"""MATLAB files: matrices, and cells with a column per region as CONN writes them."""

from pathlib import Path
from typing import Any

import numpy as np

from .bounds import check_mat


def read_mat(path: Path) -> dict[str, Any]:
    """Variables of a MATLAB file; cells with one column per region become a matrix.

    Raises:
        ValueError: the file is damaged, or of MATLAB 7.3.
    """
    from scipy.io import loadmat

    try:
        check_mat(path)
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
