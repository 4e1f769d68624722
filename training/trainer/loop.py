"""The training loop on Accelerate, the same for pretraining and fine-tuning: stages, best epoch, resume, records."""

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    gather_object,
    send_to_device,
    set_seed,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import get_scheduler

from modeling_lcm.callback import supervision_at

from ..command_line.cli import Terminated
from ..data.torch_datasets import ConnectomeDataset
from ..storage.files import write_json
from .arguments import LoopArguments
from .batch_losses import batch_loss, readout_loss, target_counts
from .batches import SharedBatches, batch_shares, keep_log_edges
from .distributed import StopSignals, is_lost_process, refuse_sharding_without_gpu, share_batch_norm, without_weights
from .resume import RunCheckpoints
from .threads import threads_to_train
from .tracking import LOGS, chosen_trackers, start_trackers
from .trainable import StartDecay, lcm_head, make_optimizer, set_training_mode


@dataclass
class LoopState:
    """What a resumed run has to know beside weights, optimiser and random states; saved with every checkpoint.

    Args:
        epoch (`int`): the epoch in which training goes on.
        step (`int`): optimisation steps done in it.
        loss (`float`): sum of their losses.
        best_loss, best_epoch (`float`, `int`): of the best epoch by the validation loss.
        history (`list[dict]`): one record per finished epoch.
    """

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    best_loss: float = math.inf
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        """Plain content, for Accelerate's checkpoint."""
        return asdict(self)

    def load_state_dict(self, content: dict[str, Any]) -> None:
        """Take over the content of a checkpoint."""
        self.__dict__.update(content)


Model = TypeVar("Model", bound=nn.Module)


class Trainer(Generic[Model]):
    """Trains one model on one data set and leaves it at its best epoch.

    Args:
        model (`nn.Module`): an LCM head, or a PEFT model around one.
        train_data (`ConnectomeDataset`): training scans.
        validation_data (`ConnectomeDataset`, *optional*): scans of other training subjects, to choose the epoch by
            the loss of the read-out. Without it the last epoch is taken.
        arguments (`LoopArguments`): the settings.
        folder (`Path`, *optional*): where resumable checkpoints, logs and the history go; none are kept without it.

    Attributes:
        trained (`nn.Module`): after `train`, the model in evaluation mode at the chosen epoch: `model` itself, or,
            where its weights were sharded over processes, a whole copy (with content on the main process only).

    Raises:
        ValueError: `patience` without validation data, fewer scans than processes, a number of processes that does not
            divide `total_batch_size`, an FSDP configuration without GPUs, or with Adafactor.
    """

    def __init__(
        self,
        model: Model,
        train_data: ConnectomeDataset,
        validation_data: ConnectomeDataset | None,
        arguments: LoopArguments,
        folder: Path | None = None,
    ) -> None:
        self.arguments = arguments
        self.folder = folder
        for data in (train_data, validation_data):
            if data is not None:
                data.by_atlas = len(lcm_head(model).config.atlas_regions) > 1
        self.train_data, self.validation_data = train_data, validation_data
        has_validation = validation_data is not None and len(validation_data) > 0
        if arguments.patience and not has_validation:
            raise ValueError("patience stops on the validation loss: set validation_fraction, or patience to 0.")
        self.accelerator = self._make_accelerator()
        keep_log_edges(lcm_head(model).config, [train_data, validation_data], arguments, self.accelerator.device.type)
        processes = self.accelerator.num_processes
        batch_size, self.batches_per_step = batch_shares(arguments, processes)
        self.batches = SharedBatches(
            len(train_data), batch_size, arguments.seed, self.accelerator.process_index, processes
        )
        # An explicit generator keeps the loader from drawing on the global one, which resuming could not replay.
        self.loader = DataLoader(train_data, batch_sampler=self.batches, generator=torch.Generator(), collate_fn=_same)
        if arguments.activation_checkpointing:
            lcm_head(model).activation_checkpointing_enable()
        share_batch_norm(model, processes > 1)
        is_sharded = self.accelerator.distributed_type == DistributedType.FSDP
        if is_sharded and arguments.optimizer == "adafactor":
            raise ValueError(
                "PyTorch's Adafactor cannot step sharded weights: set optimizer to adamw (its state is sharded, too), "
                "or take a configuration without FSDP."
            )
        self._whole = without_weights(model) if is_sharded else None
        self.trained: Model = model
        optimizer = make_optimizer(model, arguments)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.start_decay = StartDecay(self.optimizer)  # before a resumed run's weights are loaded
        steps = math.ceil(len(self.loader) / self.batches_per_step) * arguments.epochs
        self.scheduler = get_scheduler("cosine", optimizer, int(arguments.warmup_fraction * steps), steps)
        self.validation_loader = None
        if validation_data is not None and has_validation:
            validation = DataLoader(validation_data, batch_size=4 * batch_size, collate_fn=_same)
            self.validation_loader = self.accelerator.prepare(validation)
        self.state = LoopState()
        self.accelerator.register_for_checkpointing(self.state, self.scheduler)
        self._best: dict[str, Tensor] | None = None
        self._signals = StopSignals(enabled=folder is not None, patient=processes > 1)
        self.checkpoints = RunCheckpoints(self.accelerator, self.model, self.state, arguments, folder, self._scans())

    def _scans(self) -> dict[str, Any]:
        """What identifies the scans and labels of the run."""
        held_out = self.validation_data.subjects if self.validation_data is not None else []
        parts = {"training": self.train_data, "validation": self.validation_data} if self.folder is not None else {}
        return {
            "training_scans": self.train_data.subjects,
            "validation_scans": held_out,
            **{f"{name}_scans_fc": [part.cohort.fc_checksum()] for name, part in parts.items() if part is not None},
            "training_targets": {name: values.tolist() for name, values in self.train_data.labels.items()},
        }

    def _make_accelerator(self) -> Accelerator:
        trackers = [] if self.folder is None else chosen_trackers(self.arguments.log_with)
        # Otherwise a second training in this process could not have another precision.
        AcceleratorState._reset_state()
        accelerator = Accelerator(
            mixed_precision=self.arguments.mixed_precision,
            kwargs_handlers=[
                # Buffers are the same in all processes by construction: batch norm and layer choice share their sums.
                DistributedDataParallelKwargs(broadcast_buffers=False),
                InitProcessGroupKwargs(timeout=timedelta(seconds=self.arguments.process_timeout)),
            ],
            log_with=trackers or None,  # an empty list makes Accelerate warn
            project_config=self.folder and ProjectConfiguration(str(self.folder), str(self.folder / LOGS)),
        )
        if accelerator.distributed_type != DistributedType.FSDP:
            refuse_sharding_without_gpu(accelerator.device)
        return accelerator

    def _start_trackers(self) -> None:
        if self.folder is not None:
            start_trackers(self.accelerator, self.folder / LOGS, self.arguments)

    def train(self, after_epoch: Callable[[nn.Module], None] | None = None) -> list[dict[str, Any]]:
        """Run all epochs, or those that are left after a resume.

        Args:
            after_epoch (`Callable`, *optional*): called with the model after every epoch; must not change it.

        Returns:
            One record per epoch: `epoch`, `stage`, `train_loss`, `validation_loss` (null without validation), `lr`,
            and `best_layers`: per pretrained variable the layer (from 0) with the lowest running training loss.

        Raises:
            FloatingPointError: the loss or a gradient became NaN or infinite; names epoch and subjects.
            ValueError: the run to resume was made with other settings, scans or another model.
            OSError: a checkpoint cannot be written.
            ConnectionError: another process is gone, or did not answer within `process_timeout`.
            KeyboardInterrupt: Ctrl-C or SIGTERM; the state was saved before.
        """
        try:
            with self._signals, threads_to_train(lcm_head(self.trained), self.accelerator.device.type):
                return self._train(after_epoch)
        except RuntimeError as error:
            if self.accelerator.num_processes == 1 or not is_lost_process(error):
                raise
            reason = str(error).splitlines()[0][:200]
            raise ConnectionError(
                f"Process {self.accelerator.process_index} of {self.accelerator.num_processes} lost contact with "
                f"another one ({reason}). Start all of them again{self.checkpoints.way_back()}."
            ) from error

    def _train(self, after_epoch: Callable[[nn.Module], None] | None) -> list[dict[str, Any]]:
        in_epoch = False
        # Trackers make a folder: not before the run can be resumed, and before its random states are loaded.
        if self.arguments.resume:
            self.checkpoints.require_begun()
            self._start_trackers()
            self._best = self.checkpoints.resume()
            in_epoch = self.state.step > 0
        else:
            self.checkpoints.begin()
            self._start_trackers()
        arguments, state = self.arguments, self.state
        epochs = tqdm(
            range(state.epoch, arguments.epochs),
            desc="epochs",
            leave=False,
            disable=not (arguments.progress and self.accelerator.is_local_main_process),
        )
        for epoch in epochs:
            # Every epoch starts from its own seed; within an epoch the checkpoint has the random states.
            if not in_epoch:
                set_seed(arguments.seed + 1000 * epoch, device_specific=True)
            in_epoch = False
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
                "best_layers": _best_layers(self.accelerator.unwrap_model(self.model)),
            }
            state.history.append(record)
            state.epoch, state.step, state.loss = epoch + 1, 0, 0.0
            self._keep_best(validation_loss)
            self._log(record)
            if after_epoch is not None:
                after_epoch(self.accelerator.unwrap_model(self.model))
            losses = {"train": train_loss, "validation": validation_loss}
            epochs.set_postfix({name: f"{loss:.3f}" for name, loss in losses.items() if loss is not None})
            if arguments.patience and epoch - state.best_epoch >= arguments.patience:
                break
            if arguments.checkpoint_every and state.epoch % arguments.checkpoint_every == 0:
                self.checkpoints.save(self._best)
        self._finish()
        return state.history

    def _train_epoch(self, epoch: int) -> float:
        set_training_mode(self.model)
        self.train_data.set_epoch(epoch)
        every, state = self.arguments.checkpoint_every_steps, self.state
        self.batches.set_epoch(epoch, skip=state.step * self.batches_per_step)
        for batches in _windows(self.loader, self.batches_per_step):
            batches = send_to_device(batches, self.accelerator.device)
            counts, stop = self._agree(batches)
            if stop:
                self._stop()
            state.loss += self._step(batches, counts)
            state.step += 1
            if every and state.step % every == 0:
                self.checkpoints.save(self._best)
        return state.loss / state.step

    def _agree(self, batches: list[dict[str, Any]]) -> tuple[Tensor, bool]:
        """Recorded labels per target in this step, over all processes, and whether one of these was told to stop."""
        counts = torch.stack([target_counts(batch) for batch in batches]).sum(0)
        stop = torch.full((1,), self._signals.requested, dtype=counts.dtype, device=counts.device)
        totals = self.accelerator.reduce(torch.cat([counts, stop]), reduction="sum")
        return totals[:-1], bool(totals[-1])

    def _stop(self) -> None:
        self.checkpoints.save(self._best)
        kind = Terminated if self._signals.number == signal.SIGTERM else KeyboardInterrupt
        raise kind(
            f"Interrupted in epoch {self.state.epoch} after {self.state.step} steps of it; everything is saved"
            f"{self.checkpoints.way_back()}."
        )

    def _step(self, batches: list[dict[str, Any]], counts: Tensor) -> float:
        """One optimisation step over some batches; every label weighs the same, whichever batch it is in."""
        accelerator, arguments = self.accelerator, self.arguments
        head = accelerator.unwrap_model(self.model)
        step_loss = 0.0
        positions = [batch.pop("positions") for batch in batches]
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.model):
                loss = batch_loss(
                    self.model, head, batch, counts, arguments.input_noise, arguments.mixup, arguments.atlas_dropout
                )
                total = accelerator.reduce(loss.detach(), reduction="sum")
                if not torch.isfinite(total):
                    raise FloatingPointError(self._describe_failure("loss", positions[number], loss))
                # Data-parallel training averages gradients over processes, but the counts are global already.
                accelerator.backward(loss * accelerator.num_processes)
            step_loss += total.item()
        norm = accelerator.clip_grad_norm_(self.model.parameters(), self.arguments.max_grad_norm)
        # In float16 the scaler leaves such a step out, and lowers its scale.
        if self.arguments.mixed_precision != "fp16" and not torch.isfinite(norm):
            raise FloatingPointError(self._describe_failure("gradient", torch.cat(positions), norm))
        self.optimizer.step()
        if not accelerator.optimizer_step_was_skipped:
            self.start_decay.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        return step_loss

    def _describe_failure(self, what: str, positions: Tensor, value: Tensor) -> str:
        """The subjects of the batch, of all processes whose own value is not finite."""
        own = [] if torch.isfinite(value) else [self.train_data.subjects[position] for position in positions.tolist()]
        subjects = gather_object(own) if self.accelerator.num_processes > 1 else own
        last = self.checkpoints.last()
        where = f" The last complete checkpoint is {last}." if last is not None else ""
        return (
            f"The {what} became NaN or infinite in epoch {self.state.epoch}, in the batch of the subjects "
            f"{', '.join(subjects)}. Check their connectomes and labels, or lower the learning rate.{where}"
        )

    @torch.no_grad()
    def _validate(self) -> float | None:
        """Loss of the read-out, as prediction uses it, over all validation labels; the same under every stage."""
        if self.validation_loader is None:
            return None
        self.model.eval()
        gathered = []
        for batch in self.validation_loader:
            outputs = self.model(connectivity=batch["connectivity"], log_edges=batch.get("log_edges"))
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

    def _finish(self) -> None:
        """Leave the model unwrapped, in evaluation mode, at the chosen epoch."""
        weights = self._best
        if self._whole is not None:
            # Gathering takes all processes; a best epoch's weights are only in the main one.
            weights = self.accelerator.get_state_dict(self.model) if weights is None else weights
            self.trained = self._whole
        else:
            # The mixed-precision wrapper goes too: what comes after training decides on its own precision.
            self.trained = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        if weights:
            self.trained.load_state_dict(weights, assign=self._whole is not None)
        share_batch_norm(self.trained, False)
        chosen = self.state.best_epoch if self.state.best_epoch >= 0 else -1
        lcm_head(self.trained).config.supervision = self.state.history[chosen]["stage"]
        if self.arguments.activation_checkpointing:
            lcm_head(self.trained).activation_checkpointing_disable()
        self.trained.eval()
        if self.accelerator.num_processes > 1 or self.accelerator.device.type != "cpu":
            # Not in one CPU process, where collecting garbage takes longer than a small training. With several, the
            # wrapper must go before the group is left: as its last owner it can wait for ever for a thread of it.
            self.model = self.trained
            self.accelerator.free_memory()
        self.accelerator.end_training()


def _best_layers(model: nn.Module) -> dict[str, int]:
    head = lcm_head(model)
    names = [variable["name"] for variable in head.config.bei_variables]
    return dict(zip(names, head.bei_layer_choice.best_layer.tolist(), strict=True))


def _same(batch: Any) -> Any:
    return batch


def _windows(loader: Any, size: int) -> Iterator[list[Any]]:
    batches = iter(loader)
    while window := list(islice(batches, size)):
        yield window
