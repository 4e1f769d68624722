"""Data set files, written piece by piece: Arrow for `datasets.load_from_disk`, Parquet for `datasets.load_dataset`."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq


FILE_BYTES = 400_000_000  # size of one file, about


def to_arrow(table: pd.DataFrame) -> pa.Table:
    """Phenotypes as Arrow columns; a column without any value counts as text."""
    arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata()
    for index, column in enumerate(arrow.schema):
        if pa.types.is_null(column.type) or pa.types.is_large_string(column.type):
            arrow = arrow.set_column(index, column.name, arrow.column(index).cast(pa.string()))
    return arrow


def make_features(arrow: pa.Table, edges: int) -> datasets.Features:
    """Schema of a data set with triangles of so many edges."""
    columns = dict(datasets.Features.from_arrow_schema(arrow.schema))
    return datasets.Features({**columns, "connectivity": datasets.List(datasets.Value("float16"), length=edges)})


def _tables(arrow: pa.Table, chunks: Iterable[np.ndarray], schema: pa.Schema) -> Iterator[pa.Table]:
    start = 0
    for part in chunks:
        values = pa.array(np.ascontiguousarray(part).ravel(), type=pa.float16())
        triangles = pa.FixedSizeListArray.from_arrays(values, part.shape[1])
        yield arrow.slice(start, len(part)).append_column("connectivity", triangles).cast(schema)
        start += len(part)


def write_arrow(folder: Path, table: pd.DataFrame, chunks: Iterable[np.ndarray], edges: int) -> None:
    """Write what `datasets.load_from_disk` reads.

    Args:
        folder (`Path`): existing folder.
        table (`pd.DataFrame`): one row per scan.
        chunks (`Iterable[np.ndarray]`): float16 triangles `(scans, edges)`, in the order of the table.
        edges (`int`): length of a triangle.
    """
    arrow = to_arrow(table)
    features = make_features(arrow, edges)
    files = _count_files(len(table), edges)
    names = [f"data-{number:05d}-of-{files:05d}.arrow" for number in range(files)]
    per_file = -(-len(table) // files)
    written, number, writer = 0, 0, None
    schema = features.arrow_schema
    for part in _tables(arrow, chunks, schema):
        if writer is None or written >= per_file * number:
            if writer is not None:
                writer.close()
            writer = pa.ipc.new_stream(folder / names[number], schema)
            number += 1
        writer.write_table(part)
        written += len(part)
    if writer is not None:
        writer.close()
    datasets.DatasetInfo(features=features).write_to_directory(str(folder))
    state = {
        "_data_files": [{"filename": name} for name in names[:number]],
        "_fingerprint": f"{abs(hash((len(table), edges))):016x}"[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "state.json").write_text(json.dumps(state, indent=2), encoding="utf-8")


def write_parquet(folder: Path, table: pd.DataFrame, chunks: Iterable[np.ndarray], edges: int) -> None:
    """Write what `datasets.load_dataset` and the Hub's viewer read: `data/train-*.parquet`.

    Args:
        folder (`Path`): existing folder.
        table (`pd.DataFrame`): one row per scan.
        chunks (`Iterable[np.ndarray]`): float16 triangles `(scans, edges)`, in the order of the table.
        edges (`int`): length of a triangle.
    """
    arrow = to_arrow(table)
    schema = make_features(arrow, edges).arrow_schema
    files = _count_files(len(table), edges)
    per_file = -(-len(table) // files)
    (folder / "data").mkdir()
    written, number, writer = 0, 0, None
    for part in _tables(arrow, chunks, schema):
        if writer is None or written >= per_file * number:
            if writer is not None:
                writer.close()
            writer = pq.ParquetWriter(
                folder / "data" / f"train-{number:05d}-of-{files:05d}.parquet", schema, compression="zstd"
            )
            number += 1
        writer.write_table(part)
        written += len(part)
    if writer is not None:
        writer.close()


def _count_files(scans: int, edges: int) -> int:
    return max(1, round(scans * edges * 2 / FILE_BYTES))
