"""Several processes that train one model: starting them, what they share in the forward pass, losing one, stopping."""

import copy
import signal
import threading
from collections.abc import Callable
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed import DistError, all_reduce


Model = TypeVar("Model", bound=nn.Module)


def start_processes(timeout: int) -> PartialState:
    """Join the processes that a launcher started; does nothing in a process of its own, or when done already.

    Args:
        timeout (`int`): seconds a process waits for another one before it takes it for lost.

    Raises:
        ValueError: an FSDP configuration without a GPU.
    """
    refuse_sharding_without_gpu(
        PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timedelta(seconds=timeout)).device
    )
    return PartialState()


def refuse_sharding_without_gpu(device: torch.device) -> None:
    """Raise `ValueError` for an FSDP configuration on the CPU, which Accelerate would ignore without a message."""
    if device.type == "cpu" and parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise ValueError(
            "This FSDP configuration needs GPUs, and the processes run on the CPU: use the configuration "
            "training/configs/accelerate/ddp_cpu.yaml, or one process with optimizer adafactor and "
            "activation_checkpointing."
        )


class SharedBatchNorm1d(nn.BatchNorm1d):
    """Batch norm whose statistics are those of all processes' scans together, whatever the device.

    `nn.SyncBatchNorm` does the same on GPUs only. Plain batch norm under data parallelism would normalise with each
    process's own scans and keep other running statistics in every process.
    """

    def forward(self, rows: Tensor) -> Tensor:
        """Normalise `(rows, channels)`; rows are regions of scans, their number may differ between processes."""
        if not self.training:
            return super().forward(rows)
        values = rows.to(torch.promote_types(rows.dtype, torch.float32))
        totals = _total(torch.cat([values.sum(0), values.new_tensor([len(values)])]))
        # No rows in any process (scans without this atlas): nothing to learn, and nothing to divide by.
        count = totals[-1].detach().clamp_min(1)
        mean = totals[:-1] / count
        centred = values - mean
        # Two passes: the mean of squares minus the square of the mean would lose digits.
        variance = _total(centred.square().sum(0)) / count
        self._follow(mean.detach(), variance.detach() * count / (count - 1).clamp_min(1), totals[-1].detach() > 0)
        return (centred * (variance + self.eps).rsqrt() * self.weight + self.bias).to(rows.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, has_rows: Tensor) -> None:
        counted, means, variances = self.num_batches_tracked, self.running_mean, self.running_var
        if counted is None or means is None or variances is None or self.momentum is None:
            raise TypeError("Shared batch norm keeps running statistics with a momentum; this one keeps none.")
        counted.add_(1)
        weight = self.momentum * has_rows.to(means.dtype)
        means.lerp_(mean.to(means.dtype), weight)
        variances.lerp_(variance.to(variances.dtype), weight)


class _Total(torch.autograd.Function):
    """Sum over all processes; its gradient is summed over them, too.

    PyTorch's own sums have no gradient, or none in every release that we allow.
    """

    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        all_reduce(total)
        return total


def _total(values: Tensor) -> Tensor:
    return _Total.apply(values)


def share_batch_norm(model: nn.Module, shared: bool) -> None:
    """Turn the model's batch norms into [`SharedBatchNorm1d`], or back, in place; tensors and names stay."""
    before, after = (nn.BatchNorm1d, SharedBatchNorm1d) if shared else (SharedBatchNorm1d, nn.BatchNorm1d)
    for module in model.modules():
        if type(module) is before:
            module.__class__ = after


def without_weights(model: Model) -> Model:
    """A copy of the model that takes no memory: its tensors have a shape, but no content."""
    return copy_with_tensors(model, lambda tensor: tensor.detach().to("meta"))


def copy_with_tensors(model: Model, make: Callable[[Tensor], Tensor]) -> Model:
    """A copy of the model in which `make` has replaced every parameter and buffer; none of them is copied."""
    replaced: dict[int, Any] = {id(buffer): make(buffer) for buffer in model.buffers()}
    for parameter in model.parameters():
        replaced[id(parameter)] = nn.Parameter(make(parameter), parameter.requires_grad)
    return copy.deepcopy(model, replaced)


def is_lost_process(error: RuntimeError) -> bool:
    """Whether an error says that another process is gone, or did not answer in time."""
    text = str(error).lower()
    return isinstance(error, DistError) or "gloo" in text or "connection closed by peer" in text or "nccl" in text


class StopSignals:
    """Turns Ctrl-C and SIGTERM into a request that the training loop honours between two steps.

    Args:
        enabled (`bool`): whether signals are taken at all.
        patient (`bool`): whether further signals are ignored; otherwise the second one ends the process at once.
            Launchers of several processes send their own signal after the terminal's.
    """

    def __init__(self, enabled: bool, patient: bool) -> None:
        # Python takes signals in the main thread only.
        self.enabled = enabled and threading.current_thread() is threading.main_thread()
        self.patient = patient
        self.requested = False
        self.number: int | None = None  # of the signal, in the process that got it
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if self.enabled:
            self._previous = {
                number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.requested, self.number = True, number
        if not self.patient:
            self._restore()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())
