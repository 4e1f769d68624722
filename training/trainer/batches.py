"""Which scans make a batch: the same order for every process, each scan in exactly one process's batch of an epoch."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from modeling_lcm import LCMConfig

from ..data.cohort import Cohort
from ..data.torch_datasets import ConnectomeDataset, WindowDataset
from .arguments import LoopArguments


MOST_LOG_BYTES = 2**30  # of log FC in memory, whatever the machine has: 40,000 scans of 116 regions


class SharedBatches(Sampler[list[int]]):
    """Shuffled batches of one process out of several.

    All processes draw the same order, so that no scan is seen twice in an epoch and none is left out. Batches that do
    not come out even are shared as evenly as possible: every process takes part in every step.

    Args:
        scans (`int`): scans of the training set.
        batch_size (`int`): scans per process and batch.
        seed (`int`): seed of the order; every epoch has an order of its own.
        process (`int`): number of this process.
        processes (`int`): how many there are.

    Raises:
        ValueError: there are fewer scans than processes.
    """

    def __init__(self, scans: int, batch_size: int, seed: int, process: int = 0, processes: int = 1) -> None:
        if scans < processes:
            raise ValueError(f"{scans} training scans cannot be shared by {processes} processes: start fewer.")
        self.scans, self.seed, self.process, self.processes = scans, seed, process, processes
        self.starts = list(range(0, scans, batch_size * processes))
        # Too few scans for all processes at the end join the batch before.
        if len(self.starts) > 1 and scans - self.starts[-1] < processes:
            self.starts.pop()
        self.epoch, self.skipped = 0, 0

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return len(self.starts)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the epoch's order, and how many of its batches are left out because they have been trained on."""
        self.epoch, self.skipped = epoch, skip

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.scans, generator=generator)
        for index in range(self.skipped, len(self.starts)):
            end = self.starts[index + 1] if index + 1 < len(self.starts) else self.scans
            yield order[self.starts[index] : end].tensor_split(self.processes)[self.process].tolist()


def batch_shares(arguments: LoopArguments, processes: int) -> tuple[int, int]:
    """Scans per process and batch, and batches per optimisation step.

    Raises:
        ValueError: the scans of `total_batch_size` cannot be shared evenly by the processes.
    """
    if not arguments.total_batch_size:
        return arguments.batch_size, arguments.gradient_accumulation_steps
    share, rest = divmod(arguments.total_batch_size, processes)
    if rest or not share:
        raise ValueError(
            f"total_batch_size {arguments.total_batch_size} cannot be shared evenly by {processes} processes: set it "
            f"to a multiple of {processes}, or start another number of processes."
        )
    size = max(size for size in range(1, min(share, arguments.batch_size) + 1) if share % size == 0)
    return size, share // size


def require_two_atlases(cohort: Cohort, arguments: LoopArguments) -> None:
    """Raise `ValueError` for atlas dropout that would change nothing: no scan has an atlas to spare."""
    if not arguments.atlas_dropout:
        return
    several = np.sum([part.are_there() for part in cohort.by_atlas], axis=0) > 1
    if not several.any():
        raise ValueError(
            f"atlas_dropout is {arguments.atlas_dropout}, but no scan has two atlases (the data have "
            f"{', '.join(cohort.atlases)}): set it to 0."
        )


def training_dataset(scans: ConnectomeDataset, arguments: LoopArguments) -> ConnectomeDataset:
    """Training scans as they are asked for: whole, or as random windows of their time series.

    Args:
        scans (`ConnectomeDataset`): whole scans with their labels.
        arguments (`LoopArguments`): `window_volumes`, `window_fraction` and `seed` are used.

    Raises:
        ValueError: windows are asked for, and no scan has a time series.
    """
    if not arguments.window_volumes and not arguments.window_fraction:
        return scans
    windows = (arguments.window_volumes, arguments.window_fraction, arguments.seed)
    return WindowDataset(scans.cohort, scans.labels, *windows)


def keep_log_edges(
    config: LCMConfig, datasets: list[ConnectomeDataset | None], arguments: LoopArguments, device: str
) -> None:
    """Let data sets compute log FC once where the same scans would have it computed in every epoch.

    Windows, noise and mixup make FC another one in every batch. Of very many scans, memory is kept free, and a GPU
    computes log FC faster than it would get it from here; unless what is mixed is log FC.

    Args:
        config (`LCMConfig`): the model's.
        datasets (`list[ConnectomeDataset]`): the one that trains, and the one that chooses the epoch, if there is one.
        arguments (`LoopArguments`): what is done to the training scans.
        device (`str`): "cpu" or another type of device.
    """
    training, *others = datasets
    mixes_logs = bool(arguments.mixup) and arguments.mixup_of == "log_fc"
    mixes_fc = bool(arguments.mixup) and not mixes_logs
    is_fixed = not (isinstance(training, WindowDataset) or arguments.input_noise or mixes_fc)
    same = [each for each in [training if is_fixed else None, *others] if each is not None]
    scans = sum(len(each) for each in same)
    pays = device == "cpu" and 4 * scans * config.num_edges(config.atlas_regions) <= MOST_LOG_BYTES
    if config.edge_readout and (mixes_logs or pays):
        for each in same:
            each.keep_log_edges(config.shrinkages)
