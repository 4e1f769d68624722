"""The training loop on Accelerate, the same for pretraining and fine-tuning: stages, best epoch, resume, records."""

import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, is_tensorboard_available, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributions import Beta
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_scheduler

from modeling_lcm.callback import supervision_at
from modeling_lcm.loss_lcm import TargetLayout, labelled, layerwise_losses, multitask_loss

from .arguments import LoopArguments
from .data import ConnectomeDataset
from .files import replace_folder, write_json
from .optimizers import make_optimizer


LABELS = ("labels", "bei_labels")  # label tensors of a batch; the second only where pretrained variables train too

# Settings that may differ between a run and its resumption without changing what is computed.
_FREE_TO_CHANGE = {"output", "resume", "progress", "checkpoint_every"}


@dataclass
class LoopState:
    """What a resumed run has to know beside weights, optimiser and random states; saved with every checkpoint."""

    epoch: int = 0
    best_loss: float = math.inf
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Plain content, for Accelerate's checkpoint."""
        return asdict(self)

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Take over the content of a checkpoint."""
        self.__dict__.update(content)


class Trainer:
    """Trains one model on one data set and leaves it at its best epoch.

    Args:
        model (`nn.Module`): an LCM head, or a PEFT model around one.
        train_data (`ConnectomeDataset`): training scans.
        validation_data (`ConnectomeDataset`, *optional*): scans of other training subjects, to choose the epoch by
            the loss of the read-out. Without it the last epoch is taken.
        arguments (`LoopArguments`): the settings.
        folder (`Path`, *optional*): where resumable checkpoints, logs and the history go; none are kept without it.

    Raises:
        ValueError: `patience` without validation data.
    """

    def __init__(
        self,
        model: nn.Module,
        train_data: ConnectomeDataset,
        validation_data: ConnectomeDataset | None,
        arguments: LoopArguments,
        folder: Path | None = None,
    ) -> None:
        self.arguments = arguments
        self.folder = folder
        self.train_data = train_data
        has_validation = validation_data is not None and len(validation_data) > 0
        if arguments.patience and not has_validation:
            raise ValueError("patience stops on the validation loss: set validation_fraction, or patience to 0.")
        logging = folder is not None and is_tensorboard_available()
        # Otherwise a second training in this process could not have another precision.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision=arguments.mixed_precision,
            # Without a seed of its own the order would depend on what was drawn in this process before.
            dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True, data_seed=arguments.seed),
            # Buffers are kept equal here: see `_average_statistics`.
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
            log_with="tensorboard" if logging else None,
            project_dir=str(folder) if folder else None,
        )
        if logging:
            self.accelerator.init_trackers("logs")
        # An explicit generator keeps the loader from drawing on the global one, which resuming could not replay.
        loader = DataLoader(
            train_data,
            batch_size=arguments.batch_size,
            shuffle=True,
            generator=torch.Generator().manual_seed(arguments.seed),
            collate_fn=_same,
        )
        optimizer = make_optimizer(model, arguments)
        self.model, self.optimizer, self.loader = self.accelerator.prepare(model, optimizer, loader)
        # The prepared loader is this process's share: its length is the number of batches that will be seen.
        steps = math.ceil(len(self.loader) / arguments.gradient_accumulation_steps) * arguments.epochs
        self.scheduler = get_scheduler("cosine", optimizer, int(arguments.warmup_fraction * steps), steps)
        self.validation_loader = None
        if has_validation:
            validation = DataLoader(validation_data, batch_size=4 * arguments.batch_size, collate_fn=_same)
            self.validation_loader = self.accelerator.prepare(validation)
        self.state = LoopState()
        self.accelerator.register_for_checkpointing(self.state, self.scheduler)
        self._best: dict[str, Tensor] | None = None

    def train(self, after_epoch: Callable[[nn.Module], None] | None = None) -> list[dict[str, Any]]:
        """Run all epochs, or those that are left after a resume.

        Args:
            after_epoch (`Callable`, *optional*): called with the model after every epoch; must not change it.

        Returns:
            One record per epoch: `epoch`, `stage`, `train_loss`, `validation_loss` (null without validation), `lr`.

        Raises:
            FloatingPointError: the loss became NaN or infinite; names the epoch and the subjects of the batch.
            ValueError: the run to resume was made with other settings.
        """
        if self.arguments.resume:
            self._resume()
        elif self.folder is not None:
            self._record_settings()
        arguments, state = self.arguments, self.state
        epochs = tqdm(
            range(state.epoch, arguments.epochs),
            desc="epochs",
            leave=False,
            disable=not (arguments.progress and self.accelerator.is_local_main_process),
        )
        for epoch in epochs:
            # Every epoch starts from its own seed, so that a resumed run draws the same noise and dropout.
            set_seed(arguments.seed + 1000 * epoch, device_specific=True)
            stage = supervision_at(epoch, arguments.momentum_epochs, arguments.adaptive)
            self.accelerator.unwrap_model(self.model).config.supervision = stage
            train_loss = self._train_epoch(epoch)
            validation_loss = self._validate()
            record = {
                "epoch": epoch,
                "stage": stage,
                "train_loss": train_loss,
                "validation_loss": validation_loss,
                "lr": self.scheduler.get_last_lr()[0],
            }
            state.history.append(record)
            state.epoch = epoch + 1
            self._keep_best(validation_loss)
            self._log(record)
            if after_epoch is not None:
                after_epoch(self.accelerator.unwrap_model(self.model))
            losses = {"train": train_loss, "validation": validation_loss}
            epochs.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items() if loss is not None})
            if arguments.patience and epoch - state.best_epoch >= arguments.patience:
                break
            self._checkpoint()
        self._finish()
        return state.history

    def _train_epoch(self, epoch: int) -> float:
        self.model.train()
        self.loader.set_epoch(epoch)
        total, steps = 0.0, 0
        for batches in _windows(self.loader, self.arguments.gradient_accumulation_steps):
            total += self._step(batches, epoch)
            steps += 1
        self._average_statistics()
        return total / steps

    @torch.no_grad()
    def _average_statistics(self) -> None:
        """Give all processes the mean of their batch norms' running statistics, each of which saw its own scans."""
        if self.accelerator.num_processes == 1:
            return
        for module in self.model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                for statistics in (module.running_mean, module.running_var):
                    statistics.copy_(self.accelerator.reduce(statistics, reduction="mean"))

    def _step(self, batches: list[dict[str, Tensor]], epoch: int) -> float:
        """One optimisation step over some batches; every label weighs the same, whichever batch it is in."""
        accelerator = self.accelerator
        counts = accelerator.reduce(sum(_target_counts(batch) for batch in batches), reduction="sum")
        step_loss = 0.0
        for position, batch in enumerate(batches):
            rows = batch.pop("rows")
            last = position == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                loss = self._loss(batch, counts)
                if not torch.isfinite(loss):
                    raise FloatingPointError(self._describe_failure(epoch, rows))
                # Data-parallel training averages gradients over processes, but the counts are global already.
                accelerator.backward(loss * accelerator.num_processes)
            step_loss += accelerator.reduce(loss.detach(), reduction="sum").item()
        accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return step_loss

    def _loss(self, batch: dict[str, Tensor], counts: Tensor) -> Tensor:
        """Loss of one batch; with mixup, of pairs of its scans, weighing both scans' labels by their shares."""
        connectivity = self._augment(batch["connectivity"])
        labels = {name: batch[name] for name in LABELS if name in batch}
        if not self.arguments.mixup:
            return self.model(connectivity=connectivity, **labels, target_counts=counts).loss
        share = Beta(self.arguments.mixup, self.arguments.mixup).sample().item()
        partner = torch.randperm(len(connectivity), device=connectivity.device)
        outputs = self.model(connectivity=share * connectivity + (1 - share) * connectivity[partner])
        compute_loss = self.accelerator.unwrap_model(self.model).compute_loss
        own = compute_loss(outputs.layer_logits, **labels, target_counts=counts)
        others = {name: values[partner] for name, values in labels.items()}
        return share * own + (1 - share) * compute_loss(outputs.layer_logits, **others, target_counts=counts)

    def _augment(self, connectivity: Tensor) -> Tensor:
        if not self.arguments.input_noise:
            return connectivity
        noise = torch.randn_like(connectivity) * (self.arguments.input_noise / math.sqrt(2))
        return connectivity + noise + noise.transpose(1, 2)

    def _describe_failure(self, epoch: int, rows: Tensor) -> str:
        subjects = ", ".join(self.train_data.subjects[row] for row in rows.tolist())
        saved = self.folder is not None and (self.folder / "resume").is_dir()
        where = f" The last complete checkpoint is {self.folder / 'resume'}." if saved else ""
        return (
            f"The loss became NaN or infinite in epoch {epoch}, in the batch of the subjects {subjects}. Check their "
            f"connectomes and labels, or lower the learning rate.{where}"
        )

    @torch.no_grad()
    def _validate(self) -> float | None:
        """Loss of the read-out, as prediction uses it, over all validation labels; the same under every stage."""
        if self.validation_loader is None:
            return None
        self.model.eval()
        gathered = []
        for batch in self.validation_loader:
            outputs = self.model(connectivity=batch["connectivity"])
            gathered.append(self.accelerator.gather_for_metrics((outputs.logits, batch["labels"])))
        logits, labels = (torch.cat(parts).float() for parts in zip(*gathered, strict=True))
        layout = self.accelerator.unwrap_model(self.model).target_layout
        return readout_loss(logits, labels.reshape(len(labels), -1), layout).item()

    def _keep_best(self, validation_loss: float | None) -> None:
        if validation_loss is None or not validation_loss < self.state.best_loss:
            return
        self.state.best_loss, self.state.best_epoch = validation_loss, self.state.epoch - 1
        weights = self.accelerator.get_state_dict(self.model)
        self._best = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in weights.items()}

    def _log(self, record: dict[str, Any]) -> None:
        if self.folder is None:
            return
        numbers = {name: value for name, value in record.items() if isinstance(value, float)}
        self.accelerator.log(numbers, step=record["epoch"])
        if self.accelerator.is_main_process:
            write_json(self.folder / "history.json", self.state.history)

    def _checkpoint(self) -> None:
        every = self.arguments.checkpoint_every
        if self.folder is None or not every or self.state.epoch % every:
            return
        # All processes write into one folder beside the last checkpoint; it takes its place when it is complete.
        partial = self.folder / ".resume.partial"
        if self.accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            if self._best is not None:
                save_file(self._best, partial / "best.safetensors")
            replace_folder(partial, self.folder / "resume")
        self.accelerator.wait_for_everyone()

    def _record_settings(self) -> None:
        if self.folder is not None and self.accelerator.is_main_process:
            write_json(self.folder / "arguments.json", self._settings())

    def _settings(self) -> dict[str, Any]:
        scans = hashlib.sha256(json.dumps(self.train_data.subjects).encode()).hexdigest()[:16]
        return {**asdict(self.arguments), "processes": self.accelerator.num_processes, "training_scans": scans}

    def _resume(self) -> None:
        if self.folder is None or not (self.folder / "resume").is_dir():
            raise ValueError(f"There is no checkpoint to resume from in {self.folder}.")
        recorded = json.loads((self.folder / "arguments.json").read_text(encoding="utf-8"))
        current = json.loads(json.dumps(self._settings()))
        changed = [
            f"{name} (was {recorded.get(name)!r}, is {current.get(name)!r})"
            for name in sorted(recorded.keys() | current.keys())
            if name not in _FREE_TO_CHANGE and recorded.get(name) != current.get(name)
        ]
        if changed:
            raise ValueError(f"The run in {self.folder} was started with other settings: {'; '.join(changed)}.")
        self.accelerator.load_state(str(self.folder / "resume"))
        best = self.folder / "resume" / "best.safetensors"
        self._best = load_file(best) if best.is_file() else None

    def _finish(self) -> None:
        """Leave the model unwrapped, in evaluation mode, at the chosen epoch."""
        # The mixed-precision wrapper goes too: what comes after training decides on its own precision.
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if self._best is not None:
            model.load_state_dict(self._best)
        chosen = self.state.best_epoch if self._best is not None else -1
        model.config.supervision = self.state.history[chosen]["stage"]
        model.eval()
        self.accelerator.end_training()
        if self.accelerator.device.type != "cpu":  # collecting garbage takes longer than a small CPU training
            self.accelerator.free_memory()


def readout_loss(logits: Tensor, labels: Tensor, layout: TargetLayout) -> Tensor:
    """Multitask loss of read-out logits `(scans, tokens)` against labels `(scans, targets)`; a scalar."""
    losses, _ = layerwise_losses(logits[:, None], labels, layout)
    return multitask_loss(losses[:, 0], labels, layout)


def _same(batch: Any) -> Any:
    return batch


def _windows(loader: Any, size: int) -> Iterator[list[Any]]:
    batches = iter(loader)
    while window := list(islice(batches, size)):
        yield window


def _target_counts(batch: dict[str, Tensor]) -> Tensor:
    """Recorded labels per target: the task's (or all variables') first, then those of `bei_labels`."""
    columns = [batch[name].float().reshape(len(batch["rows"]), -1) for name in LABELS if name in batch]
    return torch.cat([labelled(column).sum(0) for column in columns])
