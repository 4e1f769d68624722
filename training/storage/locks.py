"""One run at a time: a lock beside an output, which says who holds it and ends with the process that does."""

import errno
import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any


MOST_OF_A_COMMAND = 120  # characters that a message shows
# File systems without locks: there two runs into one output are the user's care.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def lock_of(path: Path) -> Iterator[None]:
    """Hold the lock of an output, a hidden file beside it, until the `with` ends or the process does.

    Args:
        path (`Path`): the output, which need not exist; its folder must.

    Raises:
        BlockingIOError: another process holds it; says which, where, since when, and with what command.
    """
    file = path.parent / f".{path.name}.lock"
    while True:
        handle = _open(file)
        if not try_lock(handle):
            text = os.pread(handle, 10_000, 0)
            os.close(handle)
            raise BlockingIOError(
                f"{path} is being written by another run{_about(text)}. Wait for it, or choose another output."
            )
        if _is_there(file, handle):
            break
        os.close(handle)  # whoever held it has just removed the file: this lock keeps nobody out
    try:
        with suppress(OSError):  # a stale file of another user's, or a full disk: the lock holds nevertheless
            os.truncate(handle, 0)
            os.pwrite(handle, json.dumps(_holder()).encode(), 0)
        yield
    finally:
        with suppress(OSError):
            file.unlink()
        os.close(handle)


def try_lock(handle: int) -> bool:
    """Lock an open file for this process and its forks; false where another one holds it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _NO_LOCKS
    return True


def _open(file: Path) -> int:
    flags = os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        return os.open(file, flags | os.O_RDWR, 0o666)
    except PermissionError:
        if not file.is_file():
            raise
        return os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))


def _is_there(file: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.stat(file, follow_symlinks=False), os.fstat(handle))
    except FileNotFoundError:
        return False


def _holder() -> dict[str, Any]:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "command": " ".join(sys.argv)}


def _about(text: bytes) -> str:
    """Who holds a lock, for a message; nothing where the file does not say it (yet)."""
    try:
        holder = json.loads(text)
        command = holder["command"]
        command = command if len(command) <= MOST_OF_A_COMMAND else f"{command[:MOST_OF_A_COMMAND]}..."
        return f" (process {holder['pid']} on {holder['host']}, since {holder['since']}: {command})"
    except (ValueError, KeyError, TypeError):
        return ""
