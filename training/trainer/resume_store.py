"""Resumable checkpoints of a run: complete or absent, checked when written and when read, the oldest ones removed."""

import errno
import hashlib
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..storage.files import follow_umask, read_json, sync_folder, write_json


logger = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"
# torch and safetensors have their own names for a full disk; a ValueError says that a file cannot be read back.
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError, ValueError)


class CheckpointStore:
    """The resumable checkpoints of one run, one folder each, named by epoch and step.

    A checkpoint is written into a hidden folder, checked, and moved into place in one step of the file system. It
    holds `checkpoint.json`: what the run was, and size and SHA-256 of every file.

    Args:
        folder (`Path`): holds the checkpoints.
        keep (`int`): how many complete ones stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep
        self.partial = folder / ".partial"  # what is being written

    def begin(self) -> Path:
        """An empty folder to write into; what killed runs have left behind is removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(".*"):
            shutil.rmtree(leftover)
        self.partial.mkdir()
        return self.partial

    def commit(self, name: str, record: dict[str, Any]) -> Path:
        """Seal what was written since `begin` as the newest checkpoint, and remove the oldest beyond `keep`.

        Args:
            name (`str`): sorts behind those of all earlier checkpoints.
            record (`dict`): goes into `checkpoint.json`, beside the files' checksums.

        Raises:
            ValueError: a file cannot be read back.
        """
        partial, final = self.partial, self.folder / name
        follow_umask(partial)
        sync_folder(partial)
        files = {
            str(path.relative_to(partial)): _checksum(path) for path in sorted(partial.rglob("*")) if path.is_file()
        }
        write_json(partial / MANIFEST, {**record, "files": files})
        sync_folder(partial, content=False)
        damage = find_damage(partial)
        if damage:
            raise ValueError(f"The checkpoint {partial} cannot be read back after writing: {damage}.")
        if final.exists():  # of a run that was resumed from an earlier one, because this one is damaged
            self._remove(final)
        os.replace(partial, final)
        sync_folder(self.folder, content=False)
        for old in self.complete()[: -self.keep]:
            self._remove(old)
        return final

    def discard(self) -> None:
        """Remove what was written since `begin`, so that a full disk has room again."""
        shutil.rmtree(self.partial, ignore_errors=True)

    def complete(self) -> list[Path]:
        """The checkpoints' folders, oldest first."""
        return sorted(path.parent for path in self.folder.glob(f"[!.]*/{MANIFEST}"))

    def newest(self) -> Path | None:
        """The newest checkpoint whose files are whole; None where there is no checkpoint at all.

        Raises:
            ValueError: every checkpoint is damaged.
        """
        found = self.complete()
        for path in reversed(found):
            damage = find_damage(path)
            if not damage:
                return path
            logger.warning("The checkpoint %s is damaged (%s) and is passed over.", path, damage)
        if found:
            raise ValueError(f"No checkpoint in {self.folder} can be read: {find_damage(found[-1])}. Start a new run.")
        return None

    def _remove(self, path: Path) -> None:
        # Renamed first, so that one which is half removed does not pass for a checkpoint.
        hidden = self.folder / f".removed.{path.name}"
        os.replace(path, hidden)
        shutil.rmtree(hidden)


def read_manifest(checkpoint: Path) -> dict[str, Any]:
    """Content of `checkpoint.json`: the run's settings, position, versions and the files' checksums."""
    return read_json(checkpoint / MANIFEST)


def find_damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None when all are as they were written."""
    try:
        files = read_manifest(checkpoint)["files"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST}: {error}"
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != expected["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, not {expected['bytes']}"
        if _checksum(path) != expected:
            return f"{name} has changed"
    return None


def check_weights(path: Path, weights: dict[str, Tensor]) -> None:
    """Read a safetensors file again and compare it, bit by bit, with what was meant to be written.

    Raises:
        ValueError: a tensor is missing or differs.
    """
    with safe_open(path, framework="pt") as file:
        written = set(file.keys())
        for name, tensor in weights.items():
            if name in written and not _same_bits(file.get_tensor(name), tensor.detach().cpu()):
                raise ValueError(f"{path} does not hold the weights that were written to it: {name} differs.")
        shared = {tensor.data_ptr() for name, tensor in weights.items() if name in written}
        missing = [name for name, tensor in weights.items() if name not in written and tensor.data_ptr() not in shared]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}.")


def _same_bits(first: Tensor, second: Tensor) -> bool:
    return first.dtype == second.dtype and torch.equal(
        first.reshape(-1).view(torch.uint8), second.reshape(-1).view(torch.uint8)
    )


def writing_failed(folder: Path, error: BaseException | None, last: Path | None) -> OSError:
    """One sentence about a checkpoint that could not be written, and what is still there."""
    text = str(error) if error is not None else "another process could not write its part"
    code = getattr(error, "errno", None)
    if code == errno.ENOSPC or "No space left" in text or "PytorchStreamWriter failed" in text:
        text = "no space left on the device"
    kept = f"The last complete one is {last}: free space" if last is not None else "There is none yet: free space"
    return OSError(f"The checkpoint could not be written to {folder} ({text}). {kept} and go on with --resume true.")


def _checksum(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
