"""What a run saves so that it can go on, and the check that it goes on as the same run."""

import hashlib
import json
import logging
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modeling_lcm.callback import supervision_at

from ..storage.files import read_json, require_writable, write_json
from .arguments import LoopArguments
from .distributed import is_lost_process
from .resume_store import WRITE_ERRORS, CheckpointStore, check_weights, read_manifest, writing_failed
from .runs import git_revision, library_versions


# Settings that may differ between a run and its resumption without changing what is computed.
_FREE_TO_CHANGE = {
    "output",
    "resume",
    "progress",
    "checkpoint_every",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "process_timeout",
    "log_with",
}
# What runs of older versions did not record.
_NEWER = {"training_scans_fc", "validation_scans_fc", "mixup_of"}
# Parts of a model's configuration that training changes, or that say nothing about its tensors.
_NOT_ARCHITECTURE = {"supervision", "transformers_version", "_name_or_path", "architectures", "auto_map", "dtype"}

logger = logging.getLogger(__name__)


class RunCheckpoints:
    """Resumable checkpoints of one training run: model, optimiser, scheduler, random states, position, identity.

    Args:
        accelerator (`Accelerator`): the model, optimiser and scheduler it has prepared are saved.
        model (`nn.Module`): the prepared model.
        state (`LoopState`): the position in the run.
        arguments (`LoopArguments`): the settings.
        folder (`Path`, *optional*): the run's folder; without one nothing is ever saved.
        scans (`dict`): what identifies the scans and labels; only checksums are kept.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        state: Any,
        arguments: LoopArguments,
        folder: Path | None,
        scans: dict[str, Any],
    ) -> None:
        self.accelerator, self.model, self.state = accelerator, model, state
        self.arguments, self.folder = arguments, folder
        self.scans = scans
        self.store = None if folder is None else CheckpointStore(folder / "resume", arguments.keep_checkpoints)
        self._best: dict[str, Tensor] | None = None

    def begin(self) -> None:
        """Record the settings of a new run.

        Raises:
            OSError: the folder cannot be written to, or has no room for a checkpoint.
        """
        if self.folder is not None and self.accelerator.is_main_process:
            require_writable(self.folder)
            self._require_room(self.folder)
            write_json(self.folder / "arguments.json", self._settings())

    def save(self, best: dict[str, Tensor] | None) -> None:
        """Write a checkpoint; all processes take part, and all learn of a failure in one of them.

        Args:
            best (`dict[str, Tensor]`, *optional*): weights of the best epoch so far.

        Raises:
            OSError: it could not be written, or not be read back; earlier ones are untouched.
        """
        if self.store is None:
            return
        self._best = best
        for part in (self._open, self._fill, self._seal):
            error = None
            try:
                part(self.store)
            except WRITE_ERRORS as caught:
                if isinstance(caught, RuntimeError) and is_lost_process(caught):
                    raise
                error = caught
            failed = torch.tensor(error is not None, dtype=torch.int, device=self.accelerator.device)
            if self.accelerator.reduce(failed, reduction="sum").item():
                if self.accelerator.is_main_process:
                    self.store.discard()
                raise writing_failed(self.store.folder, error, self.last()) from error

    def _open(self, store: CheckpointStore) -> None:
        if self.accelerator.is_main_process:
            store.begin()

    def _fill(self, store: CheckpointStore) -> None:
        self.accelerator.save_state(str(store.partial))
        if self._best is not None and self.accelerator.is_main_process:
            save_file(self._best, store.partial / "best.safetensors")

    def _seal(self, store: CheckpointStore) -> None:
        if not self.accelerator.is_main_process:
            return
        weights = store.partial / "model.safetensors"
        if weights.is_file():  # sharded weights are in the files of all processes
            check_weights(weights, self.accelerator.unwrap_model(self.model).state_dict())
        epoch, step = self.state.epoch, self.state.step
        record = {
            "epoch": epoch,
            "step": step,
            "stage": supervision_at(epoch, self.arguments.momentum_epochs, self.arguments.adaptive),
            "settings": self._settings(),
            "git_revision": git_revision(),
            "versions": library_versions(),
        }
        store.commit(f"epoch_{epoch:05d}_step_{step:07d}", record)

    def last(self) -> Path | None:
        """The newest checkpoint's folder."""
        found = self.store.complete() if self.store is not None else []
        return found[-1] if found else None

    def way_back(self) -> str:
        """The end of a message: how to go on, where that is possible."""
        last = self.last()
        return "" if last is None else f"; --resume true goes on from {last}"

    def require_begun(self) -> None:
        """Raise `ValueError` where there is no run to go on with."""
        if self.folder is None or not (self.folder / "arguments.json").is_file():
            raise ValueError(f"There is no checkpoint to resume from in {self.folder}.")

    def resume(self) -> dict[str, Tensor] | None:
        """Go on from the newest whole checkpoint; from the beginning, where the run had none yet.

        Returns:
            The weights of the best epoch so far, where there is one.

        Raises:
            ValueError: all checkpoints are damaged, or settings, scans or model are others.
        """
        self.require_begun()
        if self.folder is None or self.store is None:
            return None
        newest = self.store.newest()
        if newest is None:
            self._require_same(read_json(self.folder / "arguments.json"))
            return None
        manifest = read_manifest(newest)
        self._require_same(manifest["settings"])
        self._warn_of_other_software(manifest)
        self.accelerator.load_state(str(newest))
        best = newest / "best.safetensors"
        return load_file(best) if best.is_file() else None

    def _require_room(self, folder: Path) -> None:
        weights = sum(tensor.numel() * tensor.element_size() for tensor in self.model.state_dict().values())
        copies = 3 if self.arguments.optimizer == "adamw" else 1
        free = shutil.disk_usage(folder).free
        wanted = self.arguments.checkpoint_every or self.arguments.checkpoint_every_steps
        if wanted and free < copies * weights:
            raise OSError(
                f"{folder} has {free / 1e9:.3f} GB of free space, and one checkpoint of this run takes about "
                f"{copies * weights / 1e9:.3f} GB: free space, choose another output, or set checkpoint_every to 0."
            )

    def _settings(self) -> dict[str, Any]:
        """Everything that decides on the run's numbers, and must be the same when it goes on."""
        config = self.accelerator.unwrap_model(self.model).config.to_dict()
        settings = {
            **asdict(self.arguments),
            **{f"model.{name}": value for name, value in config.items() if name not in _NOT_ARCHITECTURE},
            "processes": self.accelerator.num_processes,
            **{name: _digest(content) for name, content in self.scans.items()},
        }
        return json.loads(json.dumps(settings, default=str))

    def _require_same(self, recorded: dict[str, Any]) -> None:
        current = self._settings()
        changed = [
            f"{name} (was {_short(recorded.get(name))}, is {_short(current.get(name))})"
            for name in sorted(recorded.keys() | current.keys())
            if name not in _FREE_TO_CHANGE | (_NEWER - recorded.keys()) and recorded.get(name) != current.get(name)
        ]
        if changed:
            raise ValueError(f"The run in {self.folder} was started with other settings: {'; '.join(changed)}.")

    def _warn_of_other_software(self, manifest: dict[str, Any]) -> None:
        now = {"git_revision": git_revision(), "versions": library_versions()}
        changed = [f"{name} (was {manifest[name]}, is {now[name]})" for name in now if manifest[name] != now[name]]
        if changed and self.accelerator.is_main_process:
            logger.warning("The run goes on with other software; its numbers may differ: %s.", "; ".join(changed))


def _digest(content: Any) -> str:
    checksum = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]
    return f"{len(content)} with checksum {checksum}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
