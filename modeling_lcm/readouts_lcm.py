"""Edge read-outs of one atlas or several: which variable is read from which atlases of a scan, and the sum.

Shapes: batch B, tokens P.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .config_checks_lcm import SEPARATOR
from .configuration_lcm import LCMConfig
from .edges_lcm import LCMEdgeFeatures


def readout_rows(config: LCMConfig, names: Iterable[str | None]) -> dict[str, list[str | None]]:
    """Variables with a row in the edge read-out of every set of atlases.

    What was fitted in closed form has one for the atlases that it was fitted on; every other variable has one for each
    atlas, and the mean of those that a scan has counts.

    Args:
        config (`LCMConfig`): the model's.
        names (`Iterable[str]`): variables in token order.

    Returns:
        `{"aal-116+harvard-oxford-111": [names]}`; sets without any variable are left out.
    """
    names, closed = list(names), config.closed_form or {}
    fitted = {name for records in closed.values() for name in records}
    rows = {}
    for key in dict.fromkeys([*config.atlas_regions, *closed]):
        of_key = [
            name for name in names if name in closed.get(key, {}) or (SEPARATOR not in key and name not in fitted)
        ]
        if of_key:
            rows[key] = of_key
    return rows


def sources(config: LCMConfig, name: str | None, present: Iterable[str]) -> list[str]:
    """The sets of atlases that a variable is read from in scans that have some atlases; none: it cannot be.

    Of what was fitted in closed form, the set with most atlases, the earlier one of two.
    """
    present = set(present)
    usable = [key for key, names in readout_rows(config, [name]).items() if present.issuperset(key.split(SEPARATOR))]
    if is_closed(config, name):
        return sorted(usable, key=lambda key: -key.count(SEPARATOR))[:1]
    return usable


def is_closed(config: LCMConfig, name: str | None) -> bool:
    """Whether a variable was fitted in closed form, on whatever atlases."""
    return any(name in records for records in (config.closed_form or {}).values())


def record_of(config: LCMConfig, name: str | None, present: Iterable[str]) -> dict[str, Any] | None:
    """The record of the closed-form fit that scans with some atlases are read by; None without one."""
    found = sources(config, name, present) if is_closed(config, name) else []
    return (config.closed_form or {})[found[0]][name] if found else None


def prevalences(config: LCMConfig, present: Sequence[Iterable[str]]) -> dict[str, np.ndarray]:
    """Shares of the labels among training scans, for variables fitted in closed form; see `BEITokenizer.batch_decode`.

    Args:
        config (`LCMConfig`): the model's.
        present (`Sequence[Iterable[str]]`): the atlases of every scan.

    Returns:
        `(scans, labels)` by variable; equal shares where a variable cannot be read.
    """
    found = {}
    for name, tokens in config.token_slices.items():
        labels = tokens.stop - tokens.start
        if name is None or labels < 2 or not is_closed(config, name):
            continue
        shares: dict[tuple[str, ...], list[float]] = {}
        for atlases in map(tuple, present):
            if atlases not in shares:
                shares[atlases] = (record_of(config, name, atlases) or {}).get("prevalence") or [1 / labels] * labels
        found[name] = np.array([shares[tuple(atlases)] for atlases in present])
    return found


def make_edge_features(config: LCMConfig) -> nn.Module:
    """Edges of the atlas, or of each atlas."""
    if len(config.atlas_regions) == 1:
        return LCMEdgeFeatures(config)
    return nn.ModuleDict({name: LCMEdgeFeatures(config, regions) for name, regions in config.atlas_regions.items()})


def make_edge_readout(config: LCMConfig, names: Iterable[str | None]) -> nn.Module:
    """Centred edges -> one logit per token of some variables: one read-out, or one for every set of atlases.

    Plain Linears, which adapters know how to change; no name may end in `score`, by which PEFT finds read-outs.
    """
    slices, names = config.token_slices, list(names)
    made = {}
    for key, of_key in readout_rows(config, names).items():
        read = names if len(config.atlas_regions) == 1 else of_key
        tokens = sum(slices[name].stop - slices[name].start for name in read)
        readout: Any = nn.Linear(config.num_edges(key.split(SEPARATOR)), tokens, bias=config.edge_bias)
        readout.starts_at_zero = True  # untrained, it changes nothing
        made[key] = readout
    return next(iter(made.values())) if len(config.atlas_regions) == 1 else nn.ModuleDict(made)


def read_edges(config: LCMConfig, readout: Any, edges: Mapping[str, Tensor], names: Iterable[str | None]) -> Tensor:
    """Edge read-out of some variables' tokens, `(batch, tokens)`; 0 where they cannot be read from these atlases.

    Args:
        config (`LCMConfig`): the model's.
        readout (`nn.Module`): made by [`make_edge_readout`] for the same variables.
        edges (`Mapping[str, Tensor]`): centred edges `(batch, edges)` of the atlases that these scans have.
        names (`Iterable[str]`): the variables.
    """
    if len(config.atlas_regions) == 1:
        return readout(next(iter(edges.values())).to(readout.weight.dtype))
    names = list(names)
    logits: dict[str | None, list[Tensor]] = {name: [] for name in names}
    rows, used = readout_rows(config, names), {name: sources(config, name, edges) for name in names}
    for key in dict.fromkeys(key for keys in used.values() for key in keys):
        together = torch.cat([edges[atlas] for atlas in key.split(SEPARATOR)], -1)
        parts = readout[key](together.to(readout[key].weight.dtype)).split(_sizes(config, rows[key]), -1)
        for name, part in zip(rows[key], parts, strict=True):
            if key in used[name]:
                logits[name].append(part)
    some = next(iter(edges.values()))
    empty = [some.new_zeros(len(some), size) for size in _sizes(config, names)]
    found = [
        torch.stack(logits[name]).mean(0) if logits[name] else none for name, none in zip(names, empty, strict=True)
    ]
    return torch.cat(found, -1)


def _sizes(config: LCMConfig, names: Iterable[str | None]) -> list[int]:
    slices = config.token_slices
    return [slices[name].stop - slices[name].start for name in names]


def token_mask(config: LCMConfig, chosen: Callable[[str | None], bool], logits: Tensor) -> Tensor:
    """Mask `(tokens,)` of the last axis of some logits: tokens of the variables for which a condition holds."""
    held = [chosen(name) for name, tokens in config.token_slices.items() for _ in range(tokens.start, tokens.stop)]
    return torch.tensor(held[: logits.shape[-1]], device=logits.device)
