"""Writing results so that nothing is lost: atomic files and folders, never over existing results."""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def require_new(path: str | Path, resume: bool = False) -> Path:
    """The path of an output folder or file that does not exist yet, or is an empty folder.

    Raises:
        ValueError: no path was given.
        FileExistsError: something is there already and `resume` is false.
    """
    if not str(path):
        raise ValueError("No output was given: add --output PATH.")
    path = Path(path)
    occupied = path.is_file() or (path.is_dir() and any(path.iterdir()))
    if occupied and not resume:
        raise FileExistsError(f"{path} already holds results, and they are never overwritten. Choose another output.")
    return path


def require_writable(folder: str | Path) -> None:
    """Make a folder and write a file in it, to find out before long work whether that is possible.

    Raises:
        OSError: it is not; says why.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".writable.") as file:
            file.write(b"0" * 4096)
            file.flush()
            os.fsync(file.fileno())
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
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically; NaN becomes null, so that any reader can parse it."""
    write_text(path, json.dumps(without_nan(content), indent=2, allow_nan=False) + "\n")


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
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        fill(temporary)
        os.chmod(temporary, 0o755)
        sync_folder(temporary)
        replace_folder(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def remove_leftovers(path: Path) -> None:
    """Remove what killed runs have left of writing the folder `path`, but nothing that `path` itself does not have."""
    for leftover in path.parent.glob(f".{path.name}.*"):
        if path.exists() or not leftover.name.startswith(f".{path.name}.old."):
            shutil.rmtree(leftover, ignore_errors=True)


def replace_folder(complete: Path, path: Path) -> None:
    """Move a complete folder to `path`; a previous folder of that name goes only after the new one is in place."""
    if not path.exists():
        os.replace(complete, path)
        return
    previous = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.old."))
    os.replace(path, previous / "replaced")
    os.replace(complete, path)
    shutil.rmtree(previous)
