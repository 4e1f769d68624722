"""FC and time series as they are stored: upper triangles that stay on the disk, and matrices made of them."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import datasets
import numpy as np
import torch
from torch import Tensor

from modeling_lcm import FCFeatureExtractor


# ROI time series as `(volumes * regions)` values, row by row; no value and 0 volumes where a scan has none.
SERIES_FEATURES = {"time_series": datasets.List(datasets.Value("float16")), "volumes": datasets.Value("int32")}


def count_edges(extractor: FCFeatureExtractor) -> int:
    """Values above the diagonal of one scan's FC, for a definition whose number of regions is known."""
    regions = cast(int, extractor.num_regions)
    return regions * (regions - 1) // 2


class StoredTriangles:
    """Upper triangles `(scans, edges)` that stay in the files of a data set; indexing reads scans, float16.

    The files are mapped into memory: what the machine has no room for is read again, so that a data set may be larger
    than memory.

    Args:
        data (`datasets.Dataset`): with the column `connectivity`.
        edges (`int`): length of a triangle.
        rows (`np.ndarray`, *optional*): rows of `data` that are these scans, -1 for an absent one; default: all.
        column (`str`): the column's name, where it is another one.
    """

    def __init__(
        self, data: datasets.Dataset, edges: int, rows: np.ndarray | None = None, column: str = "connectivity"
    ) -> None:
        self.data = data.select_columns([column]).with_format("arrow")
        self.column = column
        self.rows = np.arange(len(data)) if rows is None else rows
        self.shape = (len(self.rows), edges)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, scans: Any) -> np.ndarray:
        """Scans by number, slice, array of numbers or mask, as NumPy does it; always a copy."""
        wanted = self.rows[scans]
        column = self.data[np.atleast_1d(wanted).clip(0)].column(self.column).combine_chunks()
        values = column.flatten().to_numpy(zero_copy_only=False).reshape(*np.shape(wanted), self.shape[1])
        values = values.copy()  # torch warns of Arrow's read-only memory
        values[wanted < 0] = np.nan
        return values

    def at(self, positions: np.ndarray) -> "StoredTriangles":
        """Scans at other positions: which of these scans stands at each, -1 for none (NaN)."""
        rows = np.where(positions < 0, -1, self.rows[positions])
        return StoredTriangles(self.data, self.shape[1], rows, self.column)

    def select(self, scans: np.ndarray) -> "StoredTriangles":
        """Some scans, by number or mask; nothing is read."""
        return StoredTriangles(self.data, self.shape[1], self.rows[scans], self.column)

    def followed_by(self, others: "Sequence[StoredTriangles]") -> "StoredTriangles":
        """These scans and those of others behind them; nothing is read."""
        data, rows = _behind_each_other([self, *others])
        return StoredTriangles(data, self.shape[1], rows, self.column)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All scans, for NumPy's functions."""
        return self[:] if dtype is None else self[:].astype(dtype)


class StoredSeries:
    """ROI time series that stay in the files of a data set.

    Args:
        data (`datasets.Dataset`): with the columns `time_series` and `volumes`.
        rows (`np.ndarray`, *optional*): rows of `data` that are these scans, -1 for an absent one; default: all.
        suffix (`str`): what the columns' names end with, where they are those of a further atlas.
    """

    def __init__(self, data: datasets.Dataset, rows: np.ndarray | None = None, suffix: str = "") -> None:
        columns = [f"time_series{suffix}", f"volumes{suffix}"]
        data = data.select_columns(columns).rename_columns(dict(zip(columns, SERIES_FEATURES, strict=True)))
        self.data = data.with_format("arrow")
        self.rows = np.arange(len(data)) if rows is None else rows

    @classmethod
    def absent(cls, scans: int) -> "StoredSeries":
        """Scans without time series."""
        features = datasets.Features(SERIES_FEATURES)
        return cls(datasets.Dataset.from_dict({"time_series": [[]] * scans, "volumes": [0] * scans}, features))

    def __len__(self) -> int:
        return len(self.rows)

    def select(self, scans: np.ndarray) -> "StoredSeries":
        """Some scans, by number or mask; nothing is read."""
        return StoredSeries(self.data, self.rows[scans])

    def followed_by(self, others: "Sequence[StoredSeries]") -> "StoredSeries":
        """These scans and those of others behind them; nothing is read."""
        return StoredSeries(*_behind_each_other([self, *others]))

    def volumes(self) -> list[int]:
        """Volumes of every scan; 0 where there is no time series."""
        found = np.asarray(self.data["volumes"][:].to_pylist(), dtype=int)[self.rows]
        return np.where(self.rows < 0, 0, found).tolist()

    def at(self, positions: np.ndarray) -> "StoredSeries":
        """Scans at other positions: which of these scans stands at each, -1 for none."""
        return StoredSeries(self.data, np.where(positions < 0, -1, self.rows[positions]))

    def __getitem__(self, scans: np.ndarray) -> list[np.ndarray | None]:
        """Arrays `(volumes, regions)`, float16; `None` for a scan that was stored without."""
        rows = self.rows[np.asarray(scans, dtype=int)]
        table = self.data[rows.clip(0)]
        lists, volumes = table.column("time_series").combine_chunks(), table.column("volumes").to_pylist()
        ends, values = lists.offsets.to_numpy(), lists.values.to_numpy(zero_copy_only=False)
        return [
            values[ends[row] : ends[row + 1]].reshape(count, -1).copy() if count and rows[row] >= 0 else None
            for row, count in enumerate(volumes)
        ]


def _behind_each_other(
    parts: Sequence[StoredTriangles] | Sequence[StoredSeries],
) -> tuple[datasets.Dataset, np.ndarray]:
    """The data sets behind each other, and the rows of the whole that are the parts' scans."""
    starts = np.cumsum([0, *(len(part.data) for part in parts)])
    rows = [start + rows for start, rows in zip(starts, [part.rows for part in parts], strict=False)]
    # Columns of the further atlases have names of their own.
    names = parts[0].data.column_names
    data = [part.data.rename_columns(dict(zip(part.data.column_names, names, strict=True))) for part in parts]
    return datasets.concatenate_datasets(data), np.concatenate(rows)


def to_triangles(connectivity: np.ndarray) -> np.ndarray:
    """`(scans, regions, regions)` -> float16 upper triangles `(scans, regions * (regions - 1) / 2)`, row-major."""
    rows, columns = np.triu_indices(connectivity.shape[-1], k=1)
    return connectivity[:, rows, columns].astype(np.float16)


@lru_cache(maxsize=4)
def _position_in_triangle(num_regions: int) -> Tensor:
    """For every cell of the flattened matrix its position in the triangle; the diagonal points behind its end."""
    rows, columns = np.triu_indices(num_regions, k=1)
    positions = np.full((num_regions, num_regions), len(rows))
    positions[rows, columns] = positions[columns, rows] = np.arange(len(rows))
    return torch.from_numpy(positions.ravel())


def to_matrices(triangles: Tensor, num_regions: int) -> Tensor:
    """Upper triangles `(scans, edges)` -> symmetric float32 matrices `(scans, regions, regions)`, diagonal 1."""
    with_diagonal = torch.cat([triangles.float(), torch.ones(len(triangles), 1)], dim=1)
    return with_diagonal[:, _position_in_triangle(num_regions)].view(-1, num_regions, num_regions)
