"""Batches of scans in one atlas or several: checked, and in parts that have the same atlases."""

from collections.abc import Callable, Mapping
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


def over_parts(
    connectivity: dict[str, Tensor], read: Callable[[dict[str, Tensor]], tuple[Tensor, ...]]
) -> tuple[tuple[Tensor, ...], bool]:
    """Read scans in parts that have the same atlases, and put the results together.

    A scan lacks an atlas if its whole matrix is NaN. Parts are exact where a mask would have to reach every product.

    Args:
        connectivity (`dict[str, Tensor]`): see [`by_atlas`].
        read (`Callable`): makes tensors `(batch, ...)` of a part, whatever its atlases.

    Returns:
        The tensors for all scans; and whether it was one part.

    Raises:
        ValueError: a scan has none of the atlases.
    """
    if len(connectivity) == 1:
        return read(connectivity), True
    present = torch.stack([~part[:, 0, 0].isnan() for part in connectivity.values()], 1)
    if not present.any(1).all():
        row = int((~present.any(1)).nonzero()[0])
        raise ValueError(f"Scan {row} has none of the atlases {', '.join(connectivity)}: leave it out of the batch.")
    kinds, kind = present.unique(dim=0, return_inverse=True)
    order, found = [], []
    for number, has in enumerate(kinds.tolist()):
        rows = (kind == number).nonzero()[:, 0]
        part = {name: each[rows] for (name, each), here in zip(connectivity.items(), has, strict=True) if here}
        found.append(read(part))
        order.append(rows)
    if len(found) == 1:
        return found[0], True
    back = torch.cat(order).argsort()
    return tuple(torch.cat(parts)[back] for parts in zip(*found, strict=True)), False
