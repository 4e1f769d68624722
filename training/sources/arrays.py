"""Reading one scan's array: ROI time series or FC matrices in text, NumPy and MATLAB formats, regions checked."""

import io
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from modeling_lcm.atlases import find_atlas, region_labels

from .tables import MISSING_TEXTS, decode, find_separator


TEXT_FORMATS = (".tsv", ".csv", ".txt", ".1D")
SCAN_FORMATS = (".npy", ".npz", ".mat", *TEXT_FORMATS)


@dataclass(frozen=True)
class FileArray:
    """An array and what its file says about the columns.

    Args:
        values (`np.ndarray`): numbers.
        header (`list[str]`, *optional*): texts of the header line, one per column.
    """

    values: np.ndarray
    header: list[str] | None = None


def read_array(path: Path, name: str | None = None) -> FileArray:
    """One scan's array from a .npy, .npz, .mat, .tsv, .csv, .txt or .1D file.

    Args:
        path (`Path`): the file.
        name (`str`, *optional*): which array of a .npz or .mat file; needed if it holds several matrices.

    Raises:
        ValueError: it is not numbers in that format.
    """
    try:
        if path.suffix == ".npy":
            return FileArray(np.load(path, allow_pickle=False))
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return FileArray(_choose({key: archive[key] for key in archive.files}, name))
        if path.suffix == ".mat":
            return FileArray(_choose(_read_mat(path), name))
        return _read_text(path)
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as a table of numbers: {error}") from error


def _read_mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        content = loadmat(path)
    except NotImplementedError:
        raise ValueError("it is a MATLAB 7.3 file; save it again with save(..., '-v7')") from None
    except Exception as error:  # scipy has no common base class for damaged files
        raise ValueError(f"{type(error).__name__}: {error}") from error
    return {key: value for key, value in content.items() if not key.startswith("__")}


def _choose(arrays: dict[str, Any], name: str | None) -> np.ndarray:
    if name is not None:
        if name not in arrays:
            raise ValueError(f"it has no array {name!r}; it has {', '.join(arrays) or 'none'}")
        return np.asarray(arrays[name])
    matrices = [
        value
        for value in arrays.values()
        if isinstance(value, np.ndarray) and value.dtype.kind in "iuf" and value.ndim == 2 and min(value.shape) > 1
    ]
    if len(matrices) != 1:
        raise ValueError(
            f"it holds {len(matrices)} matrices of numbers (arrays: {', '.join(arrays) or 'none'}); say which array "
            "with --array_name"
        )
    return matrices[0]


def _read_text(path: Path) -> FileArray:
    text = decode(path)
    lines = (line for line in text.splitlines() if line.strip())
    first = next(lines, "")
    header = re.split(r"[\s,;#]+", first.strip("# \t\r\n,;")) if first.lstrip().startswith("#") else None
    sample = next((line for line in [first, *lines] if not line.lstrip().startswith("#")), "")
    separator = find_separator(sample, path.suffix) if path.suffix in (".csv", ".tsv") else r"\s+"
    if separator != r"\s+" and separator not in sample:
        separator = r"\s+"
    table = pd.read_csv(
        io.StringIO(text),
        sep=separator,
        header=None,
        comment="#",
        na_values=[spelling for spelling in MISSING_TEXTS if spelling != "-"],
        decimal="," if separator != "," and "," in sample else ".",
        low_memory=False,
    )
    top = table.iloc[0]
    # Tables written without region names have their column numbers as header.
    counted = top.tolist() in (list(range(len(top))), list(range(1, len(top) + 1)))
    if counted or top.map(lambda value: isinstance(value, str)).any():
        header = None if counted else [str(value).strip() for value in top]
        table = table.iloc[1:]
    if header is not None and header[:2] == ["File", "Sub-brick"]:  # as AFNI's 3dROIstats writes it
        header = [text.removeprefix("Mean_") for text in header[2:]]
        table = table.iloc[:, 2:]
    return FileArray(table.to_numpy(dtype=np.float64), header)


@dataclass(frozen=True)
class Regions:
    """What is needed to bring a file's columns into the data set's order.

    Args:
        num_regions (`int`, *optional*): regions of the atlas.
        names (`list[str]`, *optional*): their names in matrix order.
        labels (`dict[int, str]`, *optional*): value in the atlas's label image to name.
    """

    num_regions: int | None
    names: Sequence[str] | None = None
    labels: dict[int, str] | None = None

    @classmethod
    def of_atlas(cls, atlas: str, num_regions: int | None, names: Sequence[str] | None) -> "Regions":
        """Names as given; label values from the atlas's table, where the package has it."""
        known = find_atlas(atlas)
        return cls(num_regions, names, region_labels(known) if known is not None else None)

    def orient(self, values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        """A time series as `(volumes, regions)`: transposed when only its rows can be the regions."""
        if values.ndim == 2 and self.num_regions == values.shape[0] != values.shape[1]:
            return values.T, ("transposed",)
        return values, ()

    def arrange(self, values: np.ndarray, header: list[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
        """Columns of a time series in the data set's order, by label value or name where the header has them.

        Regions that the header lacks become NaN (no signal): what counts is which region a column is, never how many
        columns there are.

        Raises:
            ValueError: a column is twice in the header, or the header's regions are of another atlas.
        """
        position = self._positions(header, values)
        if position is None:
            return values, ()
        if len(set(position)) != len(position):
            double = next(text for text in header or [] if (header or []).count(text) > 1)
            raise ValueError(f"the region {double} has two columns.")
        width = self.num_regions or len(self.names or [])
        if position == list(range(width)):
            return values, ()
        arranged = np.full((len(values), width), np.nan)
        arranged[:, position] = values
        missing = width - len(position)
        done = ("reordered",) if position != sorted(position) else ()
        return arranged, (*done, *((f"{missing} regions absent from the file",) if missing else ()))

    def _positions(self, header: list[str] | None, values: np.ndarray) -> list[int] | None:
        if header is None or values.ndim != 2 or len(header) != values.shape[1] or self.names is None:
            return None
        of_name = {name: number for number, name in enumerate(self.names)}
        if self.labels is not None:
            for label, name in self.labels.items():
                if name in of_name:
                    of_name.setdefault(str(label), of_name[name])
        found = [of_name[text] for text in header if text in of_name]
        if len(found) == len(header):
            return found
        if len(found) * 2 > len(header):
            unknown = [text for text in header if text not in of_name]
            raise ValueError(
                f"{len(unknown)} of its columns are no regions of the atlas: {', '.join(unknown[:5])}. Are these "
                "signals of another atlas, or confounds?"
            )
        return None  # a header in another naming: the order is taken as it is
