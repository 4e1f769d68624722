"""Reading one scan's array: ROI time series or FC matrices in text, NumPy and MATLAB formats, with their names."""

import gzip
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from modeling_lcm.connectivity_checks import find_counters

from .bounds import check_npy, check_npz
from .matlab import check_cells, read_mat
from .names import Unreadable, names_in, read_entry, why_unreadable
from .netcc import is_netcc, read_netcc
from .tables import decode
from .text import FileArray, read_numbers


TEXT_FORMATS = (".tsv", ".csv", ".txt", ".1d", ".dat", ".netcc")
SCAN_FORMATS = (".npy", ".npz", ".mat", *TEXT_FORMATS)


def scan_format(path: Path) -> str | None:
    """The format that a file's name says, in lower case; text may be compressed (.gz). `None` for others."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        return suffixes[-2] if len(suffixes) > 1 and suffixes[-2] in TEXT_FORMATS else None
    return suffixes[-1] if suffixes and suffixes[-1] in SCAN_FORMATS else None


def read_array(path: Path, name: str | None = None) -> FileArray:
    """One scan's array from a file of one of `SCAN_FORMATS`, text also compressed (.gz).

    Args:
        path (`Path`): the file.
        name (`str`, *optional*): which array of a .npz or .mat file; needed if it holds several matrices.

    Returns:
        The numbers, names of rows and columns, and what was left out: columns that number the rows or say their time.

    Raises:
        ValueError: it is not numbers in that format.
    """
    try:
        return _without_counters(_read(path, scan_format(path), name))
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path.name} cannot be read as a table of numbers: {str(error).rstrip('.')}.") from error


def _read(path: Path, suffix: str | None, name: str | None) -> FileArray:
    if suffix == ".npy":
        return _named_array(path.name, {path.name: _load(path)}, name=path.name)
    if suffix == ".npz":
        check_npz(path)
        with np.load(path, allow_pickle=False) as archive:
            return _named_array(path.name, {key: read_entry(archive, key) for key in archive.files}, name)
    if suffix == ".mat":
        return _named_array(path.name, read_mat(path), name)
    text = decode(path)
    return read_netcc(text, name) if is_netcc(text) else read_numbers(text)


def _load(path: Path) -> np.ndarray:
    try:
        check_npy(path)
        return np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"it is damaged, or {why_unreadable(error)}; save one array of numbers") from error


def _named_array(file: str, arrays: Mapping[str, Any], name: str | None) -> FileArray:
    chosen = _choose(arrays, name)
    values = arrays[chosen]
    if isinstance(values, Unreadable):
        raise ValueError(f"{chosen} {values.reason}; save one array of numbers per scan")
    if isinstance(values, np.ndarray) and values.dtype.names is not None and chosen == file:
        names = list(values.dtype.names)  # a structured array: every column has a name
        return FileArray(np.stack([values[column] for column in names], axis=-1), names)
    check_cells(values, chosen)
    rows, columns = names_in(arrays, chosen, values)
    return FileArray(np.asarray(values), columns, rows)


def _choose(arrays: Mapping[str, Any], name: str | None) -> str:
    """Name of the array that holds the scan."""
    if name is not None:
        if name not in arrays:
            raise ValueError(f"it has no array {name!r}; it has {', '.join(arrays) or 'none'}")
        return name
    numbers = {
        key: value
        for key, value in arrays.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.size > 1
    }
    matrices = [key for key, value in numbers.items() if value.ndim == 2 and min(value.shape) > 1]
    if not matrices and len(numbers) == 1:  # a vectorised matrix
        return next(iter(numbers))
    if len(matrices) != 1:
        raise ValueError(
            f"it holds {len(matrices)} matrices of numbers (arrays: {', '.join(arrays) or 'none'}); say which array "
            "with --array_name"
        )
    return matrices[0]


def _without_counters(array: FileArray) -> FileArray:
    """Without columns that number the rows or say their time, and without a first row that does so of the columns."""
    values = array.values
    if values.ndim != 2 or values.dtype.kind not in "iuf":
        return array
    counting = find_counters(values)
    if counting.any() and not counting.all():
        array = array.without(counting, "a column that counts the rows, or says their time, is no region: left out")
    if array.header is None and len(array.values) > 1 and find_counters(array.values.T)[0]:
        rows = None if array.rows is None else array.rows[1:]
        remark = "a first row that counts the columns, or says their time, is no region: left out"
        array = replace(array, values=array.values[1:], rows=rows, remarks=(*array.remarks, remark))
    return array
