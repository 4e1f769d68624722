"""Finished scans on disk while a data set is being prepared: nothing is lost when a run is killed.

A work folder beside the output holds, per shard, `shard-I-of-N.fc` (float16 triangles, one after the other, each with
its time series behind it if these are kept) and
`shard-I-of-N.jsonl` (one line per finished scan). A scan is finished when its line is complete; its values were
written before. `plan.json` says for which scans and settings the folder is.
"""

import errno
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..storage.files import read_json, write_json
from ..storage.locks import try_lock


CHUNK = 512  # scans that are read at once
_PLACE = ("row", "offset", "bytes", "check")  # what every line of a journal has


@dataclass(frozen=True)
class Shard:
    """Which part of the scans a machine works on.

    Args:
        index (`int`): from 1.
        count (`int`): number of parts.
    """

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read "2/8".

        Raises:
            ValueError: it is no such pair.
        """
        first, _, second = text.partition("/")
        if not (first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
            raise ValueError(f"--shard is INDEX/COUNT, counted from 1, such as 2/8; got {text!r}.")
        return cls(int(first), int(second))

    def rows(self, scans: int) -> range:
        """Its rows: every `count`-th, so that all shards take about the same time."""
        return range(self.index - 1, scans, self.count)

    @property
    def stem(self) -> str:
        """Beginning of its files' names."""
        return f"shard-{self.index}-of-{self.count}"


def regions_of(edges: int) -> int:
    """Regions of an atlas whose triangle has so many values."""
    return (1 + isqrt(1 + 8 * edges)) // 2


def work_folder(output: Path) -> Path:
    """Where finished scans of an output lie until it is complete."""
    return output.parent / f"{output.name}.work"


def open_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Make the work folder, or check that an interrupted run's folder is for the same scans and settings.

    Raises:
        ValueError: it is for others.
    """
    path = folder / "plan.json"
    digest = hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest()[:16]
    if path.is_file():
        before = read_json(path)
        if before.get("digest") != digest:
            old = before["plan"] if isinstance(before.get("plan"), dict) else {}
            changed = sorted(key for key in {*plan, *old} if plan.get(key) != old.get(key))
            raise ValueError(
                f"{folder} holds finished scans of a run with other scans or settings ({', '.join(changed)}). Repeat "
                "that run's settings to go on, or delete the folder to start anew."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(path, {"digest": digest, "plan": plan})


class ShardWriter:
    """Appends finished scans of one shard, and knows those of an interrupted run.

    Args:
        folder (`Path`): work folder.
        shard (`Shard`): the part.
        is_current (`Callable`, *optional*): whether a finished scan, by its record, still is what its files hold;
            others are read again.

    Raises:
        BlockingIOError: another process works on this shard.
    """

    def __init__(
        self, folder: Path, shard: Shard, is_current: Callable[[dict[str, Any]], bool] = lambda record: True
    ) -> None:
        self._is_current = is_current
        self._values: IO[bytes] = (folder / f"{shard.stem}.fc").open("a+b")
        _lock(self._values, shard)
        self._journal: IO[bytes] = (folder / f"{shard.stem}.jsonl").open("a+b")
        self.finished: set[int] = set()
        self._recover()

    def _recover(self) -> None:
        """Forget a last line or values that were cut off when the run was killed."""
        end_of_lines = end_of_values = 0
        for line, record in _complete_lines(self._journal):
            if not _has_values(self._values, record):
                break
            end_of_lines += len(line)
            end_of_values = max(end_of_values, record["offset"] + record["bytes"])
            if self._is_current(record):
                self.finished.add(record["row"])
            else:
                self.finished.discard(record["row"])
        self._journal.truncate(end_of_lines)
        self._values.truncate(end_of_values)
        self._values.seek(0, os.SEEK_END)

    def write(
        self, row: int, triangle: np.ndarray | None, record: dict[str, Any], series: np.ndarray | None = None
    ) -> None:
        """Store one scan; without a triangle, that it was tried and cannot be used.

        Args:
            row (`int`): position in the source.
            triangle (`np.ndarray` of shape `(edges,)`): float16.
            record (`dict`): measures and remarks, JSON.
            series (`np.ndarray` of shape `(volumes, regions)`, *optional*): float16, if they are kept.

        Raises:
            ValueError: the disk is full; finished scans are kept.
        """
        content = b"".join(values.tobytes() for values in (triangle, series) if values is not None)
        offset = self._values.tell()
        line = {"row": row, "offset": offset, "bytes": len(content), **record}
        line["check"] = _check(content, line)
        with disk_full_explained():
            self._values.write(content)
            self._values.flush()
            self._journal.write(json.dumps(line, allow_nan=False).encode() + b"\n")
            self._journal.flush()
        self.finished.add(row)

    def close(self) -> None:
        """Put everything on the disk."""
        for file in (self._values, self._journal):
            file.flush()
            os.fsync(file.fileno())
            file.close()


def _lock(file: IO[bytes], shard: Shard) -> None:
    if not try_lock(file.fileno()):
        raise ValueError(f"Another process works on shard {shard.index}/{shard.count} of this output.")


def _complete_lines(journal: IO[bytes]) -> Iterator[tuple[bytes, dict[str, Any]]]:
    journal.seek(0)
    for line in journal:
        if not line.endswith(b"\n"):
            return
        try:
            record = json.loads(line)
        except ValueError:
            return
        if not isinstance(record, dict) or not all(isinstance(record.get(name), int) for name in _PLACE):
            return
        yield line, record


def _has_values(values: IO[bytes], record: dict[str, Any]) -> bool:
    if record["offset"] < 0 or record["bytes"] < 0:
        return False
    values.seek(record["offset"])
    return _check(values.read(record["bytes"]), record) == record["check"]


def _check(content: bytes, record: dict[str, Any]) -> int:
    """CRC-32 of a scan's values and of its line in the journal."""
    line = {key: value for key, value in record.items() if key != "check"}
    return zlib.crc32(json.dumps(line, sort_keys=True).encode(), zlib.crc32(content))


@contextmanager
def disk_full_explained() -> Iterator[None]:
    """Turn "no space left on device" into what the user can do.

    Raises:
        ValueError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ValueError(
            f"The disk is full ({error}). Finished scans are kept: free some space and repeat the command, which goes "
            "on where it stopped."
        ) from error


@dataclass
class FinishedScans:
    """All shards of a work folder, read in the order of the table.

    Args:
        records (`list[dict]`): one per row: measures, remarks, and where its values are.
        files (`list[Path]`): values of every shard.
        edges (`int`): length of a triangle.
        atlases (`list[int]`): lengths of the triangles of all atlases, one behind the other in the files.
        atlas (`int`): the one of them that is read.
    """

    records: list[dict[str, Any]]
    files: list[Path]
    edges: int
    atlases: list[int] = field(default_factory=list)
    atlas: int = 0

    def in_atlas(self, atlas: int, atlases: list[int]) -> "FinishedScans":
        """The scans in one of several atlases.

        Args:
            atlas (`int`): its number.
            atlases (`list[int]`): lengths of the triangles of all.
        """
        return FinishedScans(self.records, self.files, atlases[atlas], atlases, atlas)

    def record_of(self, row: int) -> dict[str, Any]:
        """What is known of a scan in this atlas; empty where it lacks the atlas."""
        record = self.records[row]
        return record["atlases"][self.atlas] if "atlases" in record else record

    def _series_span(self, record: dict[str, Any]) -> tuple[int, int]:
        """Where the time series of a record are in its bytes, and how many bytes they take."""
        if not self.atlases:
            return 2 * self.edges, record["bytes"] - 2 * self.edges
        sizes = [
            0 if "missing_regions" not in own else 2 * (own["volumes"] or 0) * regions_of(edges)
            for own, edges in zip(record["atlases"], self.atlases, strict=True)
        ]
        return 2 * sum(self.atlases) + sum(sizes[: self.atlas]), sizes[self.atlas]

    @classmethod
    def open(
        cls,
        folder: Path,
        shards: int,
        scans: int,
        edges: int,
        is_current: Callable[[dict[str, Any]], bool] = lambda record: True,
    ) -> "FinishedScans":
        """Read the journals, and check every scan against its checksum.

        Args:
            folder (`Path`): work folder.
            shards (`int`): number of shards.
            scans (`int`): scans of all of them.
            edges (`int`): length of a triangle.
            is_current (`Callable`): whether a scan, by its record, still is what its files hold.

        Raises:
            ValueError: a shard is missing, damaged or not complete, or files have changed since it read them; the
                message says which.
        """
        records: list[dict[str, Any] | None] = [None] * scans
        files = []
        for index in range(1, shards + 1):
            shard = Shard(index, shards)
            files.append(folder / f"{shard.stem}.fc")
            wanted, read = shard.rows(scans), 0
            journal = folder / f"{shard.stem}.jsonl"
            if journal.is_file():
                with journal.open("rb") as lines, files[-1].open("rb") as values:
                    for _, record in _complete_lines(lines):
                        if not _has_values(values, record) or record["row"] not in wanted:
                            break  # what follows a damaged scan is not trusted either
                        records[record["row"]] = record | {"file": index - 1}
                        read = lines.tell()
            again = "repeat the command" if shards == 1 else f"run it (again) with --shard {index}/{shards} first"
            todo = sum(records[row] is None for row in wanted)
            if todo and journal.is_file() and read < journal.stat().st_size:
                raise ValueError(
                    f"Shard {index}/{shards} is damaged: {todo} of {len(wanted)} scans are not as they were written. "
                    f"Please {again}; it reads them anew."
                )
            if todo:
                raise ValueError(f"Shard {index}/{shards} has {todo} of {len(wanted)} scans to do: {again}.")
            changed = [row for row in wanted if not is_current(records[row] or {})]
            if changed:
                raise ValueError(
                    f"The files of {len(changed)} scans of shard {index}/{shards} have changed since it read them: "
                    f"{again}; it reads these scans anew."
                )
        return cls([record for record in records if record is not None], files, edges)

    def triangles(self, rows: Sequence[int], chunk: int = CHUNK) -> Iterator[np.ndarray]:
        """Triangles `(up to chunk, edges)` of some rows in their order, read piece by piece."""
        size, start = 2 * self.edges, 2 * sum(self.atlases[: self.atlas])  # bytes
        for contents in self._contents(rows, chunk, lambda record: (record["offset"] + start, size)):
            yield np.frombuffer(b"".join(contents), dtype=np.float16).reshape(len(contents), self.edges)

    def series(self, rows: Sequence[int], chunk: int = CHUNK) -> Iterator[list[np.ndarray]]:
        """Time series of some rows, `(volumes * regions)` each, in pieces of as many scans as `triangles` gives."""

        def span(record: dict[str, Any]) -> tuple[int, int]:
            start, size = self._series_span(record)
            return record["offset"] + start, size

        for contents in self._contents(rows, chunk, span):
            yield [np.frombuffer(content, dtype=np.float16) for content in contents]

    def _contents(
        self, rows: Sequence[int], chunk: int, span: Callable[[dict[str, Any]], tuple[int, int]]
    ) -> Iterator[list[bytes]]:
        """Bytes of some rows; `span` says where in the file of a record, and how many."""
        with ExitStack() as stack:
            handles = [stack.enter_context(path.open("rb")) for path in self.files]
            for start in range(0, len(rows), chunk):
                part = []
                for record in (self.records[row] for row in rows[start : start + chunk]):
                    handle, (offset, size) = handles[record["file"]], span(record)
                    handle.seek(offset)
                    part.append(handle.read(size))
                yield part
