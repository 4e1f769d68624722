"""Data set files, written piece by piece: Arrow for `datasets.load_from_disk`, Parquet for `datasets.load_dataset`."""

import json
import zlib
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
    """

    edges: int
    triangles: Callable[[], Iterator[np.ndarray]]
    series: Callable[[], Iterator[list[np.ndarray]]] | None = None
    volumes: Sequence[int] = ()


def to_arrow(table: pd.DataFrame) -> pa.Table:
    """Phenotypes as Arrow columns; a column without any value counts as text."""
    arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata()
    for index, column in enumerate(arrow.schema):
        if pa.types.is_null(column.type) or pa.types.is_large_string(column.type):
            arrow = arrow.set_column(index, column.name, arrow.column(index).cast(pa.string()))
    return arrow


def make_features(arrow: pa.Table, scans: Scans) -> datasets.Features:
    """Schema of a data set: the table's columns, then those of the scans."""
    columns = dict(datasets.Features.from_arrow_schema(arrow.schema))
    columns["connectivity"] = datasets.List(datasets.Value("float16"), length=scans.edges)
    return datasets.Features(columns if scans.series is None else {**columns, **SERIES_FEATURES})


def _tables(arrow: pa.Table, scans: Scans, schema: pa.Schema) -> Iterator[pa.Table]:
    """Rows of the table with their scans, piece by piece."""
    start = 0
    series = scans.series() if scans.series is not None else None
    for part in scans.triangles():
        values = pa.array(np.ascontiguousarray(part).ravel(), type=pa.float16())
        piece = arrow.slice(start, len(part))
        piece = piece.append_column("connectivity", pa.FixedSizeListArray.from_arrays(values, scans.edges))
        if series is not None:
            signals = next(series)
            ends = np.cumsum([0, *map(len, signals)], dtype=np.int32)
            lists = pa.ListArray.from_arrays(ends, pa.array(np.concatenate(signals), type=pa.float16()))
            volumes = pa.array(scans.volumes[start : start + len(part)], type=pa.int32())
            piece = piece.append_column("time_series", lists).append_column("volumes", volumes)
        yield piece.cast(schema)
        start += len(part)


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


def write_arrow(folder: Path, table: pd.DataFrame, scans: Scans) -> None:
    """Write what `datasets.load_from_disk` reads.

    Args:
        folder (`Path`): existing folder.
        table (`pd.DataFrame`): one row per scan.
        scans (`Scans`): their FC, and their time series if these are kept.
    """
    arrow = to_arrow(table)
    features = make_features(arrow, scans)
    schema, count = features.arrow_schema, _count_files(len(table), scans)
    paths = [folder / f"data-{number:05d}-of-{count:05d}.arrow" for number in range(count)]
    written = _write_files(
        _tables(arrow, scans, schema), paths, len(table), lambda path: pa.ipc.new_stream(path, schema)
    )
    datasets.DatasetInfo(features=features).write_to_directory(str(folder))
    state: dict[str, Any] = {
        "_data_files": [{"filename": path.name} for path in written],
        "_fingerprint": "".join(f"{_checksum(path):08x}" for path in written)[:64],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")


def write_parquet(folder: Path, table: pd.DataFrame, scans: Scans) -> None:
    """Write what `datasets.load_dataset` and the Hub's viewer read: `data/train-*.parquet`.

    Args:
        folder (`Path`): existing folder.
        table (`pd.DataFrame`): one row per scan.
        scans (`Scans`): their FC, and their time series if these are kept.
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


def _count_files(scans: int, content: Scans) -> int:
    regions = round((1 + (1 + 8 * content.edges) ** 0.5) / 2)
    values = scans * content.edges + sum(content.volumes) * regions
    return max(1, round(2 * values / FILE_BYTES))


def _checksum(path: Path) -> int:
    """CRC-32 of a file: `datasets` tells the contents of data sets apart by it."""
    check = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            check = zlib.crc32(block, check)
    return check
