"""Checksums of finished files: written with them, and compared before anything is made of them.

A folder's `checksums.json` holds size and SHA-256 of every other file in it; beside a single file there is a line for
`sha256sum -c`. Files are read once: where size, times and place on the disk are those of the last comparison, they
count as unchanged. A process remembers that itself; of files above a megabyte it leaves a note for the next one.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from .files import write_json, write_text


CHECKSUMS = "checksums.json"
FORMAT = "size and SHA-256 of every file"
SIDECAR = ".sha256"
CARDS = ("README.md", "parquet/README.md")  # text that is edited by hand, also on the Hub
NOTED = 1_000_000  # bytes; less is read in a millisecond
TICK = 2_000_000_000  # nanoseconds, of the slowest clock
_compared: set[str] = set()  # files that this process has read, by size, times and place
WAY_OUT = "Copy the folder again, or make it anew; if the change is yours: python -m training.verify {} --renew"


def checksum(path: Path | bytes) -> dict[str, Any]:
    """Size and SHA-256 of a file, or of its content, as `{"bytes": ..., "sha256": ...}`."""
    if isinstance(path, bytes):
        return {"bytes": len(path), "sha256": hashlib.sha256(path).hexdigest()}
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": os.fstat(file.fileno()).st_size, "sha256": digest}


def checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of all files in a folder, by path in it, but for hidden ones and `checksums.json`."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths]
    hidden = [any(part.startswith(".") for part in name.split("/")) for name in names]
    return {
        name: checksum(path)
        for name, path, skip in zip(names, paths, hidden, strict=True)
        if not skip and name != CHECKSUMS
    }


def seal(folder: Path, names: Iterable[str] | None = None) -> None:
    """Write `checksums.json` of a finished folder, or of some files in it.

    Args:
        folder (`Path`): holds the files.
        names (`Iterable[str]`, *optional*): which; default: all.
    """
    found = checksums(folder) if names is None else {name: checksum(folder / name) for name in names}
    write_json(folder / CHECKSUMS, {"format": FORMAT, "files": found})


def seal_file(path: Path) -> None:
    """Write the checksum of a single file beside it, as `sha256sum` does."""
    write_text(path.with_name(path.name + SIDECAR), _line(path))


def _line(path: Path) -> str:
    return f"{checksum(path)['sha256']}  {path.name}\n"


def read_checksums(folder: Path) -> dict[str, dict[str, Any]] | None:
    """Content of `checksums.json`; None where a folder has none, as those of earlier versions and of other tools.

    Raises:
        ValueError: it is damaged, or names files outside the folder.
    """
    path = folder / CHECKSUMS
    if not path.is_file():
        return None
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
        for name, entry in files.items():
            if not (is_inside(name) and type(entry["bytes"]) is int and len(bytes.fromhex(entry["sha256"])) == 32):
                raise ValueError(f"{name!r} has no size and SHA-256, or is no file of the folder")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged ({' '.join(str(error).split())[:100]}). {WAY_OUT.format(folder)}"
        ) from error
    return files


def is_inside(name: str) -> bool:
    """Whether a relative path, as files name it, stays in its folder."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\\" not in name


def differences(folder: Path, again: bool = False, unread: tuple[str, ...] = ()) -> list[str]:
    """What has changed in a folder since its checksums were written; empty where it has none.

    Args:
        folder (`Path`): holds the files.
        again (`bool`): read files, too, that were read before and look unchanged.
        unread (`tuple[str, ...]`): beginnings of names that do not matter.

    Raises:
        ValueError: `checksums.json` is damaged.
    """
    found = []
    for name, expected in (read_checksums(folder) or {}).items():
        change = None if name.startswith(unread) else _change(folder / name, expected, again)
        found += [f"{name} {change}"] if change else []
    return found


def require_intact(folder: str | Path, unread: tuple[str, ...] = ()) -> None:
    """Compare a folder with its checksums before it is loaded; quiet about one that has none.

    Args:
        folder (`str` or `Path`): holds the files.
        unread (`tuple[str, ...]`): beginnings of names that are not loaded; cards never are.

    Raises:
        ValueError: something has changed; names the first file.
    """
    changed = differences(Path(folder), unread=(*CARDS, *unread))
    if changed:
        more = f", and {len(changed) - 1} more files differ" if len(changed) > 1 else ""
        raise ValueError(f"{folder} is not as it was written: {changed[0]}{more}. {WAY_OUT.format(folder)}")


def require_intact_file(path: Path) -> None:
    """Compare a single file with the checksum beside it; quiet where there is none.

    Raises:
        ValueError: it has changed, or the checksum is damaged.
    """
    beside = path.with_name(path.name + SIDECAR)
    if not beside.is_file():
        return
    if beside.read_text(encoding="utf-8", errors="replace") != _line(path):
        raise ValueError(f"{path} is not as it was written, or {beside.name} is damaged. Make it anew.")


def _change(path: Path, expected: dict[str, Any], again: bool) -> str | None:
    if not path.is_file():
        return "is missing"
    status = path.stat()
    if status.st_size != expected["bytes"]:
        return f"has {status.st_size:,} bytes, not {expected['bytes']:,}"
    note = _note(path) if status.st_size > NOTED else None
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
    mark = f"{status.st_size} {times} {status.st_dev} {status.st_ino} {expected['sha256']}"
    if not again and (mark in _compared or (note is not None and _read(note) == mark)):
        return None
    if checksum(path)["sha256"] != expected["sha256"]:
        return "has changed"
    # Another change within the same tick of the file system's clock could not be told from this one.
    if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > TICK:
        _compared.add(mark)
        if note is not None:
            _remember(note, mark)
    return None


def _note(path: Path) -> Path:
    """Where it is remembered that a large file was compared."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:32]
    return Path(base) / "large-connectome-model" / "compared" / name


def _read(note: Path) -> str | None:
    try:
        return note.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None


def _remember(note: Path, mark: str) -> None:
    try:
        write_text(note, mark)
    except OSError:  # no home, or no room: the file is read again the next time
        return
