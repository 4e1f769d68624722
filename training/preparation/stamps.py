"""Whether files are still those that were read: their size, time and content."""

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any


# Files up to this size are compared whole; of larger ones the beginning, the middle and the end, and the time.
WHOLE_BYTES = 4 << 20
_PART_BYTES = 1 << 20

Stamp = list[Any]  # size in bytes, time of the last change in ns, SHA-256 of the content: JSON


def stamps_of(files: Iterable[Path]) -> list[Stamp]:
    """Stamps of files, in their order; an absent file has an empty one.

    Args:
        files (`Iterable[Path]`): the files that a scan is read from.
    """
    return [_stamp(path) for path in files]


def are_unchanged(stamps: Sequence[Stamp] | None, files: Sequence[Path], with_content: bool = True) -> bool:
    """Whether files are those of earlier stamps.

    Args:
        stamps (`Sequence[list]`, *optional*): what [`stamps_of`] gave then; without, nothing is known: `False`.
        files (`Sequence[Path]`): the same files now.
        with_content (`bool`): whether files of the same size and time are read, too.
    """
    if stamps is None or len(stamps) != len(files):
        return False
    return all(_is_same(stamp, path, with_content) for stamp, path in zip(stamps, files, strict=True))


def _is_same(before: Stamp, path: Path, with_content: bool) -> bool:
    if not path.is_file() or not before:
        return not path.is_file() and not before
    size, time, content = before
    found = path.stat()
    same_time = found.st_mtime_ns == time
    if found.st_size != size or (size > WHOLE_BYTES and not same_time):
        return False
    return (same_time and not with_content) or _digest(path, found.st_size, found.st_ctime_ns) == content


def _stamp(path: Path) -> Stamp:
    if not path.is_file():
        return []
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, _digest(path, found.st_size, found.st_ctime_ns)]


@lru_cache(maxsize=8)  # an archive or a label image is the same file for all scans
def _digest(path: Path, size: int, changed: int) -> str:  # `changed` cannot be set, as the time of a change can
    with path.open("rb") as file:
        if size <= WHOLE_BYTES:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
        digest = hashlib.sha256()
        for start in (0, size // 2, size - _PART_BYTES):
            file.seek(start)
            digest.update(file.read(_PART_BYTES))
        return digest.hexdigest()[:32]
