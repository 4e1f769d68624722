"""Labelled scans as batches for training: whole, or another random window of each time series in every epoch."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeling_lcm.connectivity import correlate_scans, to_fisher_z

from .cohort import Cohort


class ConnectomeDataset(torch.utils.data.Dataset):
    """Labelled scans as batches of FC matrices and label tensors; the loader fetches a whole batch at once.

    Args:
        cohort (`Cohort`): the scans.
        labels (`dict[str, Tensor]`): label tensors whose first axis is these scans, as the BEI tokenizer makes them.
    """

    def __init__(self, cohort: Cohort, labels: dict[str, Tensor]) -> None:
        self.cohort = cohort
        self.labels = labels
        self.subjects = cohort.subjects.tolist()

    def __len__(self) -> int:
        return len(self.cohort)

    def select(self, scans: np.ndarray) -> "ConnectomeDataset":
        """Some scans, by position, with their labels: whole scans again."""
        index = torch.from_numpy(scans)
        return ConnectomeDataset(
            self.cohort.select(scans), {name: values[index] for name, values in self.labels.items()}
        )

    def set_epoch(self, epoch: int) -> None:
        """Called before every epoch; whole scans are the same in all of them."""

    def __getitems__(self, positions: list[int]) -> dict[str, Tensor]:
        """One batch: `connectivity` `(batch, regions, regions)`, the labels, and the `positions` it is made of."""
        index = torch.tensor(positions)
        batch = {name: values[index] for name, values in self.labels.items()}
        return {"connectivity": torch.from_numpy(self.cohort.connectivity(positions)), "positions": index, **batch}

    def __getitem__(self, position: int) -> dict[str, Tensor]:
        """One scan, without a batch axis."""
        return {name: values[0] for name, values in self.__getitems__([position]).items()}


LEAST_VOLUMES = 10  # a shorter window's correlations are noise


class WindowDataset(ConnectomeDataset):
    """Batches whose FC is that of a random contiguous window of each scan.

    Where a window begins and how long it is follows from seed, epoch and scan alone: not from the batch, the number of
    processes, or what was drawn before, so that a resumed run sees the same windows. Scans of one window length are
    correlated in one product. A scan without a stored time series, or shorter than the window, is used whole.

    Args:
        cohort (`Cohort`): the scans, with time series.
        labels (`dict[str, Tensor]`): label tensors whose first axis is these scans.
        volumes (`int`): length of every window; 0 for random lengths.
        fraction (`float`): with random lengths, the shortest window as a part of the scan; at least 10 volumes.
        seed (`int`): seed of the windows.

    Raises:
        ValueError: none of the scans has a time series.
    """

    def __init__(self, cohort: Cohort, labels: dict[str, Tensor], volumes: int, fraction: float, seed: int) -> None:
        super().__init__(cohort, labels)
        lengths = np.asarray(cohort.volumes())
        if not lengths.any():
            raise ValueError(
                "Windows need the scans' time series, which these data do not have: make them again with "
                "training.prepare --keep_time_series true, or set window_volumes and window_fraction to 0."
            )
        self.lengths, self.volumes, self.fraction, self.seed = lengths, volumes, fraction, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the windows of an epoch: first volume and length of every scan's."""
        size, place = np.random.default_rng([self.seed, epoch]).random((2, len(self)))
        wanted = np.full(len(self), self.volumes)
        if not self.volumes:
            shortest = np.maximum(LEAST_VOLUMES, np.ceil(self.fraction * self.lengths))
            wanted = (shortest + size * (self.lengths + 1 - shortest).clip(0)).astype(int)
        self.window_lengths = np.minimum(wanted, self.lengths)
        self.window_starts = (place * (self.lengths - self.window_lengths + 1)).astype(int)

    def __getitems__(self, positions: list[int]) -> dict[str, Tensor]:
        """One batch, as of whole scans, with `connectivity` of this epoch's windows."""
        batch = super().__getitems__(positions)
        series = self.cohort.time_series(np.asarray(positions))
        cut: dict[int, np.ndarray] = {}
        for place, (position, scan) in enumerate(zip(positions, series, strict=True)):
            start, length = self.window_starts[position], self.window_lengths[position]
            if scan is not None and length < len(scan):
                cut[place] = scan[start : start + length].astype(np.float32)
        if cut:
            extractor: Any = self.cohort.feature_extractor
            matrices, _ = correlate_scans(list(cut.values()), extractor.estimator)
            matrices = to_fisher_z(matrices) if extractor.fisher_z else matrices
            batch["connectivity"][list(cut)] = torch.from_numpy(matrices)
        return batch
