"""Writing results so that nothing is lost: one run per output, atomic files and folders, never over existing results.

All that is written has the permissions that the user's umask says.
"""

import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .locks import lock_of


MOST_OF_A_NAME = 150  # bytes, so that there is room for what is put before and behind it


@contextmanager
def claim(path: str | Path, resume: bool = False) -> Iterator[Path]:
    """The new output of a run, held for this run alone until the `with` ends or the process does.

    What killed runs have left beside it is removed.

    Args:
        path (`str` or `Path`): folder or file; a link stands for what it leads to.
        resume (`bool`): whether it may hold results already.

    Yields:
        Where to write.

    Raises:
        ValueError: no path was given.
        FileExistsError: something is there already and `resume` is false.
        BlockingIOError: another run writes to it; says which.
        OSError: nothing can be written there.
    """
    target = target_of(require_new(path, resume))
    require_writable(target.parent)
    with lock_of(target):
        require_new(target, resume)  # it may have been finished a moment ago
        remove_leftovers(target)
        require_new(target, resume)  # a folder that was being replaced is back
        yield target


def target_of(path: Path) -> Path:
    """Where a link leads to, also if there is nothing yet; other paths as they are."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def require_new(path: str | Path, resume: bool = False) -> Path:
    """The path of an output folder or file that does not exist yet, or is an empty folder.

    What a killed run was writing is nothing.

    Raises:
        ValueError: no path was given.
        FileExistsError: something is there already and `resume` is false.
    """
    if not str(path):
        raise ValueError("No output was given: add --output PATH.")
    path = Path(path)
    occupied = any(not _HIDDEN.fullmatch(each.name) for each in path.iterdir()) if path.is_dir() else path.exists()
    if occupied and not resume:
        raise FileExistsError(f"{path} already holds results, and they are never overwritten. Choose another output.")
    return path


def file_name(name: str) -> str:
    """A name from data (an atlas, a variable, a site) as that of a file or folder, which stays inside its folder.

    Separators, other characters that file systems refuse, and a dot in front become `%2F` and the like.

    Raises:
        ValueError: it is empty, or too long for a file.
    """
    safe = re.sub(r'^\.|[/\\:*?"<>|%\x00-\x1f\x7f]', lambda found: f"%{ord(found[0]):02X}", name)
    if not 0 < len(safe.encode()) <= MOST_OF_A_NAME:
        raise ValueError(f"{name[:50]!r} cannot name a file: it is empty, or longer than {MOST_OF_A_NAME} bytes.")
    return safe


def require_writable(folder: str | Path) -> None:
    """Make a folder and write a file in it, to find out before long work whether that is possible.

    Raises:
        OSError: it is not; says why.
    """
    folder = Path(folder)
    probe = _hidden(folder / "probe", "partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with probe.open("xb") as file:
                file.write(b"0" * 4096)
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"Nothing can be written to {folder} ({error.strerror}): choose another output.") from error


def sync_folder(path: Path, content: bool = True) -> None:
    """Wait until a folder's entries, and with `content` all files in it, are on the disk: power may fail."""
    inside = [*path.rglob("*")] if content else []
    for entry in [*inside, path]:
        descriptor = os.open(entry, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically: readers see the old content or the new, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _hidden(path, "partial")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically; NaN becomes null, so that any reader can parse it."""
    write_text(path, json.dumps(without_nan(content), indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path, kind: type = dict) -> Any:
    """Content of a JSON file.

    Args:
        path (`str` or `Path`): the file.
        kind (`type`): what it must hold, `dict` or `list`.

    Raises:
        ValueError: it is not there or damaged; says which file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise ValueError(f"it holds no {'table' if kind is dict else 'list'}")
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is missing" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())[:100]
        raise ValueError(f"{path} is damaged ({reason}). Copy the folder again, or make it anew.") from error
    return content


def without_nan(value: Any) -> Any:
    """The same content with None instead of NaN and infinity, and text as the keys of dictionaries."""
    if isinstance(value, dict):
        return {str(key): without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def write_folder(path: str | Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder atomically: `fill` writes into a temporary one that is moved into place when complete.

    Args:
        path (`str` or `Path`): the folder; a previous one of the same name is replaced in the last step.
        fill (`Callable`): writes the content into the path it is given.
    """
    path = Path(path)
    with scratch_folder(path) as temporary:
        fill(temporary)
        follow_umask(temporary)
        sync_folder(temporary)
        replace_folder(temporary, path)
    return path


def follow_umask(folder: Path) -> None:
    """Give files in a folder the permissions of new ones; safetensors writes its own for the owner alone."""
    probe = _hidden(folder / "probe", "partial")
    probe.touch(exist_ok=False)
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and stat.S_IMODE(path.stat().st_mode) != mode:
            with suppress(OSError):  # file systems without permissions
                path.chmod(mode)


def _hidden(path: Path, kind: str) -> Path:
    """A new name beside `path`, which [`remove_leftovers`] knows for `path`'s and nothing else's."""
    return path.parent / f".{path.name}.{secrets.token_hex(4)}.{kind}"


_HIDDEN = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{8}\.(?P<kind>partial|old)")


def remove_leftovers(path: Path) -> None:
    """Remove what killed runs have left of writing `path` and what is in it; a folder being replaced is put back.

    Nobody else may be writing there: see [`claim`].
    """
    beside = list(path.parent.iterdir()) if path.parent.is_dir() else []
    for leftover in [*beside, *(path.rglob(".*") if path.is_dir() else ())]:
        found = _HIDDEN.fullmatch(leftover.name)
        if found is None or (leftover in beside and found["name"] != path.name):
            continue
        original = leftover.with_name(found["name"])
        if found["kind"] == "old" and not original.exists():
            os.replace(leftover, original)
        elif leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """An empty hidden folder beside `path`, which need not exist; removed at the end of the `with`."""
    temporary = _hidden(path, "partial")
    temporary.mkdir(parents=True)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(complete: Path, path: Path) -> None:
    """Move a complete folder to `path`; a previous folder of that name goes only after the new one is in place."""
    if not path.exists():
        os.replace(complete, path)
        return
    previous = _hidden(path, "old")
    os.replace(path, previous)
    os.replace(complete, path)
    shutil.rmtree(previous)
