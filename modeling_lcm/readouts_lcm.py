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
    names = list(names)
    if len(config.atlas_regions) > 1:
        return LCMEdgeReadouts(config, names)
    return _linear(config, next(iter(config.atlas_regions)), sum(_sizes(config, names)))


def _linear(config: LCMConfig, key: str, tokens: int) -> nn.Linear:
    readout: Any = nn.Linear(config.num_edges(key.split(SEPARATOR)), tokens, bias=config.edge_bias)
    readout.starts_at_zero = True  # untrained, it changes nothing
    return readout


def _sizes(config: LCMConfig, names: Iterable[str | None]) -> list[int]:
    slices = config.token_slices
    return [slices[name].stop - slices[name].start for name in names]


class LCMEdgeReadouts(nn.Module):
    """Edge read-outs of several atlases, and how much each of a scan's atlases counts.

    A variable that was fitted in closed form is read from the largest set of atlases that a scan has. Every other one
    is read from each of the scan's atlases, and the weighted mean of the logits counts. The weights are learnt for
    every token, start equal, and sum to 1 over the atlases that a scan has, so that a logit keeps its scale whichever
    these are.

    Attributes:
        atlas_weights (`nn.Parameter` of shape `(atlases, tokens)`): logarithms of the weights, up to a constant; not
            there where every variable was fitted in closed form.
    """

    def __init__(self, config: LCMConfig, names: Sequence[str | None]) -> None:
        super().__init__()
        self._rows = readout_rows(config, names)
        self._atlases = list(config.atlas_regions)
        tokens = [name for name, size in zip(names, _sizes(config, names), strict=True) for _ in range(size)]
        self._tokens = {
            key: [place for place, name in enumerate(tokens) if name in of] for key, of in self._rows.items()
        }
        self._closed = [is_closed(config, name) for name in tokens]
        for key, places in self._tokens.items():
            self.add_module(key, _linear(config, key, len(places)))
        if not all(self._closed):
            self.atlas_weights = nn.Parameter(torch.zeros(len(self._atlases), len(tokens)))

    def __getitem__(self, key: str) -> Any:
        """The read-out of a set of atlases."""
        return self._modules[key]

    def items(self) -> list[tuple[str, Any]]:
        """The read-outs by their sets of atlases."""
        return [(key, self[key]) for key in self._rows]

    def forward(self, edges: Mapping[str, Tensor], present: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of all tokens, and which of them cannot be read.

        Args:
            edges (`Mapping[str, Tensor]`): centred edges of every atlas given, in the model's order, `(scans that have
                it, edges)`.
            present (`Tensor` of shape `(batch, atlases given)`): which scans these are.

        Returns:
            Logits `(batch, tokens)`, 0 where there is nothing to read; and a mask `(batch, tokens)` of what was fitted
            in closed form, but not on the atlases that a scan has.
        """
        here, some = dict(zip(edges, present.T, strict=True)), next(iter(edges.values()))
        closed = torch.tensor(self._closed, device=some.device)
        unread = closed.repeat(len(present), 1)
        shares = self._shares(edges, present).to(some.dtype)
        total = some.new_zeros(unread.shape)
        dtype = total.dtype
        # Sets of most atlases first: what is read from them is not read again from fewer.
        for key in sorted(self._rows, key=lambda key: -key.count(SEPARATOR)):
            atlases = key.split(SEPARATOR)
            if not here.keys() >= set(atlases):
                continue
            scans = torch.stack([here[atlas] for atlas in atlases]).all(0)
            dtype = self[key].weight.dtype
            together = torch.cat([edges[atlas][scans[here[atlas]]] for atlas in atlases], -1)
            logits = self[key](together.to(dtype)).to(total.dtype)
            rows, tokens = scans.nonzero(), torch.tensor(self._tokens[key], device=some.device)
            spread = torch.zeros_like(total).index_put((rows, tokens), logits)  # 0 for other scans and tokens
            # A set of several atlases reads nothing but what was fitted on it.
            share = shares[[*here].index(key)] if key in here else torch.zeros_like(total)
            total = total + torch.where(closed, unread.to(total.dtype), share) * spread
            read = torch.zeros_like(closed).index_fill(0, tokens, True)
            unread = unread & ~(scans[:, None] & read)
        return total.to(dtype), unread

    def _shares(self, given: Iterable[str], present: Tensor) -> Tensor:
        """What each atlas counts for every scan's tokens `(atlases given, batch, tokens)`; 0 where a scan lacks it."""
        if all(self._closed):
            return present.T[..., None].expand(-1, -1, len(self._closed))
        weights = self.atlas_weights[[self._atlases.index(name) for name in given]]
        return weights[:, None].masked_fill(~present.T[..., None], -torch.inf).softmax(0)


def edge_readouts(readout: nn.Module) -> dict[str, Any]:
    """The Linears of what [`make_edge_readout`] made by their sets of atlases; "" is that of a model of one atlas."""
    return dict(readout.items()) if isinstance(readout, LCMEdgeReadouts) else {"": readout}


def token_mask(config: LCMConfig, chosen: Callable[[str | None], bool], logits: Tensor) -> Tensor:
    """Mask `(tokens,)` of the last axis of some logits: tokens of the variables for which a condition holds."""
    held = [chosen(name) for name, tokens in config.token_slices.items() for _ in range(tokens.start, tokens.stop)]
    return torch.tensor(held[: logits.shape[-1]], device=logits.device)
