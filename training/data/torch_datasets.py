"""Labelled scans as batches for training: whole, or another random window of each time series in every epoch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modeling_lcm import log_edges
from modeling_lcm.connectivity import correlate_scans, to_fisher_z

from .cohort import Cohort


class ConnectomeDataset(torch.utils.data.Dataset):
    """Labelled scans as batches of FC matrices and label tensors; the loader fetches a whole batch at once.

    Args:
        cohort (`Cohort`): the scans, in one atlas or several.
        labels (`dict[str, Tensor]`): label tensors whose first axis is these scans, as the BEI tokenizer makes them.

    Attributes:
        by_atlas (`bool`): whether a cohort in one atlas, too, gives its matrices as a dictionary by atlas, as models
            of several atlases take them. The trainer sets it.
    """

    by_atlas = False

    def __init__(self, cohort: Cohort, labels: dict[str, Tensor]) -> None:
        self.cohort = cohort
        self.labels = labels
        self.subjects = cohort.subjects.tolist()
        self._log_edges: dict[str, Tensor] | None = None

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

    def keep_log_edges(self, shrinkages: Sequence[float]) -> None:
        """Compute log FC of all scans once; batches have it as `log_edges` from then on, as models take it."""
        parts = self.cohort.by_atlas
        self._log_edges = {
            part.id: torch.from_numpy(log_edges(part.matrices(slice(None)), shrinkages)) for part in parts
        }

    def __getitems__(self, positions: list[int]) -> dict[str, Any]:
        """One batch: `connectivity`, the labels, and the `positions` it is made of.

        `connectivity` is `(batch, regions, regions)`, or a dictionary by atlas with NaN for scans that lack one.
        """
        index = torch.tensor(positions)
        matrices = {part.id: torch.from_numpy(part.matrices(positions)) for part in self.cohort.by_atlas}
        self._cut(matrices, positions)
        batch = {name: values[index] for name, values in self.labels.items()}
        if self._log_edges is not None:
            batch["log_edges"] = self._as_taken({name: each[index] for name, each in self._log_edges.items()})
        return {"connectivity": self._as_taken(matrices), "positions": index, **batch}

    def _as_taken(self, by_atlas: dict[str, Tensor]) -> Any:
        """In the form that the model takes: the only atlas without its name, unless it has several."""
        return by_atlas if self.by_atlas or self.cohort.others else next(iter(by_atlas.values()))

    def _cut(self, matrices: dict[str, Tensor], positions: list[int]) -> None:
        """Put FC of parts of the scans into the matrices of a batch, in place; whole scans stay as they are."""

    def __getitem__(self, position: int) -> dict[str, Any]:
        """One scan, without a batch axis."""
        batch = self.__getitems__([position])
        return {
            name: {atlas: part[0] for atlas, part in each.items()} if isinstance(each, dict) else each[0]
            for name, each in batch.items()
        }


LEAST_VOLUMES = 10  # a shorter window's correlations are noise


class WindowDataset(ConnectomeDataset):
    """Batches whose FC is that of a random contiguous window of each scan.

    Where a window begins and how long it is follows from seed, epoch and scan alone: not from the batch, the number of
    processes, or what was drawn before, so that a resumed run sees the same windows. Scans of one window length are
    correlated in one product. A scan without a stored time series, or shorter than the window, is used whole. In
    several atlases a scan's windows are the same part of the scan.

    Args:
        cohort (`Cohort`): the scans, with time series.
        labels (`dict[str, Tensor]`): label tensors whose first axis is these scans.
        volumes (`int`): length of every window; 0 for random lengths.
        fraction (`float`): with random lengths, the shortest window as a part of the scan; at least 10 volumes.
        seed (`int`): seed of the windows.

    Attributes:
        lengths, window_starts, window_lengths (`np.ndarray` of shape `(scans,)`): volumes of the scans, and first
            volume and length of this epoch's windows; of several atlases, those of the first one with time series.

    Raises:
        ValueError: none of the scans has a time series.
    """

    def __init__(self, cohort: Cohort, labels: dict[str, Tensor], volumes: int, fraction: float, seed: int) -> None:
        super().__init__(cohort, labels)
        series = {part.id: part.series for part in cohort.by_atlas if part.series is not None}
        self._volumes = {atlas: np.asarray(each.volumes()) for atlas, each in series.items()}
        if not any(volumes.any() for volumes in self._volumes.values()):
            raise ValueError(
                "Windows need the scans' time series, which these data do not have: make them again with "
                "training.prepare --keep_time_series true, or set window_volumes and window_fraction to 0."
            )
        self.lengths = next(iter(self._volumes.values()))
        self.volumes, self.fraction, self.seed = volumes, fraction, seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw the windows of an epoch: first volume and length of every scan's."""
        size, place = np.random.default_rng([self.seed, epoch]).random((2, len(self)))
        self._windows = {atlas: self._draw(volumes, size, place) for atlas, volumes in self._volumes.items()}
        self.window_starts, self.window_lengths = next(iter(self._windows.values()))

    def _draw(self, lengths: np.ndarray, size: np.ndarray, place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First volume and length of the windows of scans of some lengths, from where in their ranges these lie."""
        wanted = np.full(len(self), self.volumes)
        if not self.volumes:
            shortest = np.maximum(LEAST_VOLUMES, np.ceil(self.fraction * lengths))
            wanted = (shortest + size * (lengths + 1 - shortest).clip(0)).astype(int)
        windows = np.minimum(wanted, lengths)
        return (place * (lengths - windows + 1)).astype(int), windows

    def _cut(self, matrices: dict[str, Tensor], positions: list[int]) -> None:
        for part in self.cohort.by_atlas:
            if part.series is None:
                continue
            starts, lengths = (each[positions] for each in self._windows[part.id])
            cut: dict[int, np.ndarray] = {}
            for place, scan in enumerate(part.series[np.asarray(positions)]):
                if scan is not None and lengths[place] < len(scan):
                    cut[place] = scan[starts[place] : starts[place] + lengths[place]].astype(np.float32)
            if not cut:
                continue
            extractor: Any = part.feature_extractor
            found, _ = correlate_scans(list(cut.values()), extractor.estimator)
            found = to_fisher_z(found) if extractor.fisher_z else found
            matrices[part.id][list(cut)] = torch.from_numpy(found)
