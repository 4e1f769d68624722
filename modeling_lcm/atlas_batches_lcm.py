"""Batches of scans in one atlas or several: checked, and with the regions of those that each scan has."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .configuration_lcm import LCMConfig


def by_atlas(config: LCMConfig, connectivity: Any) -> dict[str, Tensor]:
    """Connectivity of every atlas, in the model's order.

    Args:
        config (`LCMConfig`): the model's.
        connectivity (`Tensor` of shape `(batch, regions, regions)`, or `dict[str, Tensor]` by atlas): a tensor alone
            is that of the model's one atlas, or of the only one of its atlases that has so many regions.

    Raises:
        ValueError: another shape, an atlas that the model does not have, or different numbers of scans.
    """
    known = config.atlas_regions
    if not isinstance(connectivity, Mapping):
        fitting = [name for name, regions in known.items() if connectivity.shape[1:] == (regions, regions)]
        if connectivity.ndim != 3 or len(fitting) != 1:
            needed = " or ".join(f"(batch, {regions}, {regions})" for regions in dict.fromkeys(known.values()))
            raise ValueError(
                f"connectivity has shape {tuple(connectivity.shape)}, this model needs {needed}. "
                "LCMProcessor makes such a batch from time series or FC matrices and checks the atlas."
            )
        return {fitting[0]: connectivity}
    unknown = [name for name in connectivity if name not in known]
    if unknown or not connectivity:
        raise ValueError(
            f"connectivity has the atlases {', '.join(map(str, connectivity)) or 'none'}; this model reads "
            f"{', '.join(known)}. Leave out the others."
        )
    shapes = {name: tuple(part.shape) for name, part in connectivity.items()}
    if (
        any(shape[1:] != (known[name],) * 2 for name, shape in shapes.items())
        or len({s[0] for s in shapes.values()}) > 1
    ):
        needed = ", ".join(f"{name}: (batch, {known[name]}, {known[name]})" for name in shapes)
        raise ValueError(f"connectivity has the shapes {shapes}; needed are {needed}, of the same scans.")
    return {name: connectivity[name] for name in known if name in connectivity}


def atlases_present(connectivity: dict[str, Tensor]) -> Tensor | None:
    """Which atlases every scan has, bool `(batch, atlases)`; None where all have all. Without one, it is NaN.

    Args:
        connectivity (`dict[str, Tensor]`): see [`by_atlas`].

    Raises:
        ValueError: a scan has none of the atlases.
    """
    if len(connectivity) == 1:
        return None
    present = torch.stack([~part[:, 0, 0].isnan() for part in connectivity.values()], 1)
    if present.all():
        return None
    if not present.any(1).all():
        row = int((~present.any(1)).nonzero()[0])
        raise ValueError(f"Scan {row} has none of the atlases {', '.join(connectivity)}: leave it out of the batch.")
    return present


def side_by_side(memories: Sequence[Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
    """The regions of each scan's own atlases one after the other, and padding behind them.

    A scan's memory is as long as its atlases are: padded to the longest of the batch, not to all atlases together.

    Args:
        memories (`Sequence[Tensor]`): of every atlas, `(scans that have it, regions, hidden_size)`.
        present (`Tensor` of shape `(batch, atlases)`): which scans these are.

    Returns:
        Memory `(batch, longest, hidden_size)`, and which of it is there, bool `(batch, longest)`.
    """
    regions = torch.tensor([memory.shape[1] for memory in memories], device=present.device)
    lengths = present * regions
    starts, total = lengths.cumsum(1) - lengths, lengths.sum(1)
    longest = int(total.max())
    places = []
    for number, memory in enumerate(memories):
        scans = present[:, number].nonzero()[:, 0]
        first = scans * longest + starts[scans, number]
        places.append((first[:, None] + torch.arange(memory.shape[1], device=first.device)).flatten())
    rows = torch.cat([memory.flatten(0, 1) for memory in memories])
    together = rows.new_zeros(len(present) * longest, rows.shape[1]).index_copy(0, torch.cat(places), rows)
    there = torch.arange(longest, device=total.device) < total[:, None]
    return together.view(len(present), longest, -1), there
