"""Data set files, written piece by piece: Arrow for `datasets.load_from_disk`, Parquet for `datasets.load_dataset`."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from ..data.triangles import SERIES_FEATURES
from .shards import regions_of


FILE_BYTES = 400_000_000  # size of one file, about


@dataclass(frozen=True)
class Scans:
    """What is written of the scans, in the order of the table.

    Args:
        edges (`int`): length of a triangle.
        triangles (`Callable`): gives the FC, float16 `(up to some, edges)` piece by piece, each time anew.
        series (`Callable`, *optional*): gives the time series in pieces of as many scans, each float16 `(volumes *
            regions)`; empty for a scan without.
        volumes (`Sequence[int]`): volumes of every scan's time series.
        suffix (`str`): what the names of the columns end with: nothing for the first atlas, "_ATLAS" for others.
    """

    edges: int
    triangles: Callable[[], Iterator[np.ndarray]]
    series: Callable[[], Iterator[list[np.ndarray]]] | None = None
    volumes: Sequence[int] = ()
    suffix: str = ""


def to_arrow(table: pd.DataFrame) -> pa.Table:
    """Phenotypes as Arrow columns; a column without any value counts as text."""
    arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata()
    for index, column in enumerate(arrow.schema):
        if pa.types.is_null(column.type) or pa.types.is_large_string(column.type):
            arrow = arrow.set_column(index, column.name, arrow.column(index).cast(pa.string()))
    return arrow


def make_features(arrow: pa.Table, scans: Sequence[Scans]) -> datasets.Features:
    """Schema of a data set: the table's columns, then those of the scans in every atlas."""
    columns = dict(datasets.Features.from_arrow_schema(arrow.schema))
    for part in scans:
        columns[f"connectivity{part.suffix}"] = datasets.List(datasets.Value("float16"), length=part.edges)
        if part.series is not None:
            columns |= {f"{name}{part.suffix}": kind for name, kind in SERIES_FEATURES.items()}
    return datasets.Features(columns)


def _tables(arrow: pa.Table, scans: Sequence[Scans], schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows of the table with their scans, piece by piece."""
    start = 0
    pieces = [(part, part.triangles(), None if part.series is None else part.series()) for part in scans]
    while start < len(arrow):
        columns: dict[str, pa.Array] = {}
        for part, triangles, series in pieces:
            found = next(triangles)
            values = pa.array(np.ascontiguousarray(found).ravel(), type=pa.float16())
            columns[f"connectivity{part.suffix}"] = pa.FixedSizeListArray.from_arrays(values, part.edges)
            if series is not None:
                signals = next(series)
                ends = np.cumsum([0, *map(len, signals)], dtype=np.int32)
                lists = pa.ListArray.from_arrays(ends, pa.array(np.concatenate(signals), type=pa.float16()))
                columns[f"time_series{part.suffix}"] = lists
                columns[f"volumes{part.suffix}"] = pa.array(part.volumes[start : start + len(found)], type=pa.int32())
        size = len(next(iter(columns.values())))  # the same in every atlas
        piece = arrow.slice(start, size)
        for name, column in columns.items():
            piece = piece.append_column(name, column)
        yield piece.cast(schema)
        start += size


def _write_files(
    pieces: Iterator[pa.Table], paths: Sequence[Path], rows: int, open_file: Callable[[Path], Any]
) -> list[Path]:
    """Write tables one after the other into files of about equally many rows; returns the files there are."""
    per_file = -(-rows // len(paths))
    written, used, writer = 0, 0, None
    for piece in pieces:
        if writer is None or written >= per_file * used:
            if writer is not None:
                writer.close()
            writer = open_file(paths[used])
            used += 1
        writer.write_table(piece)
        written += len(piece)
    if writer is not None:
        writer.close()
    return list(paths[:used])


def write_arrow(folder: Path, table: pd.DataFrame, scans: Sequence[Scans]) -> None:
    """Write what `datasets.load_from_disk` reads.

    Args:
        folder (`Path`): existing folder.
        table (`pd.DataFrame`): one row per scan.
        scans (`Sequence[Scans]`): their FC in every atlas, and their time series if these are kept.
    """
    arrow = to_arrow(table)
    features = make_features(arrow, scans)
    schema, count = features.arrow_schema, _count_files(len(table), scans)
    # `datasets` cannot write a data set that does not fit into memory piece by piece; it copies one from files.
    parts = folder / ".parts"
    parts.mkdir()
    paths = [parts / f"{number}.arrow" for number in range(count)]
    written = _write_files(
        _tables(arrow, scans, schema), paths, len(table), lambda path: pa.ipc.new_stream(path, schema)
    )
    data = datasets.concatenate_datasets([datasets.Dataset.from_file(str(path)) for path in written])
    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        data.save_to_disk(str(folder), num_shards=len(written))
    finally:
        if not hidden:
            datasets.enable_progress_bars()
    shutil.rmtree(parts)


def write_parquet(folder: Path, table: pd.DataFrame, scans: Sequence[Scans]) -> None:
    """Write what `datasets.load_dataset` and the Hub's viewer read: `data/train-*.parquet`.

    Args:
        folder (`Path`): existing folder.
        table (`pd.DataFrame`): one row per scan.
        scans (`Sequence[Scans]`): their FC in every atlas, and their time series if these are kept.
    """
    arrow = to_arrow(table)
    schema, count = make_features(arrow, scans).arrow_schema, _count_files(len(table), scans)
    (folder / "data").mkdir()
    paths = [folder / "data" / f"train-{number:05d}-of-{count:05d}.parquet" for number in range(count)]
    _write_files(
        _tables(arrow, scans, schema),
        paths,
        len(table),
        lambda path: pq.ParquetWriter(path, schema, compression="zstd"),
    )


def _count_files(scans: int, content: Sequence[Scans]) -> int:
    values = sum(scans * part.edges + sum(part.volumes) * regions_of(part.edges) for part in content)
    return max(1, round(2 * values / FILE_BYTES))
