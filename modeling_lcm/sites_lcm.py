"""Read-outs that compare scans with their site: the means of sites at prediction, and where they come from.

What a token's site weights make of the edges is a number per scan, its site logit. Being linear, the mean of these
over a site is what they make of the site's mean; subtracted from the logits, it takes the site out of them. A site's
mean is drawn towards the training mean, at which site logits are 0, as if it had ten more scans of that kind.

Shapes: scans n, tokens P.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .closed_form_sites import means_of_sites, site_name
from .config_checks_lcm import SEPARATOR
from .configuration_lcm import LCMConfig
from .readouts_lcm import is_closed, sources


SITE_UNKNOWN = "site not recorded"


@dataclass(frozen=True)
class SiteMeans:
    """Means of the scans' sites.

    Args:
        values (`Tensor` of shape `(n, P)`): what is to be subtracted from the logits; 0 where no site is known.
        remarks (`list[str]`): of every scan, what its site's mean is made from.
    """

    values: Tensor
    remarks: list[str]


def compares_with_site(config: LCMConfig, names: Iterable[str]) -> bool:
    """Whether one of some variables is compared with the scan's site, on whatever atlases."""
    names = set(names)
    return any(names.intersection(with_site_weights(config, key)) for key in config.closed_form or {})


def with_site_weights(config: LCMConfig, key: str) -> list[str]:
    """Variables that have site weights on some atlases, in token order."""
    records = (config.closed_form or {}).get(key, {})
    return [name for name in config.token_slices if name is not None and "sites" in records.get(name, {})]


def make_site_readout(config: LCMConfig) -> nn.Module | None:
    """Site weights of the tokens that have some, a Linear for every set of atlases; None where no variable has."""
    made = {}
    for key in config.closed_form or {}:
        tokens = sum(_size(config, name) for name in with_site_weights(config, key))
        if tokens:
            readout: Any = nn.Linear(config.num_edges(key.split(SEPARATOR)), tokens, bias=False)
            readout.starts_at_zero = True
            made[key] = readout
    return nn.ModuleDict(made) if made else None


def read_sites(config: LCMConfig, readout: Any, edges: Mapping[str, Tensor], present: Tensor) -> Tensor:
    """Site logits `(n, P)` of scans; 0 for tokens without site weights.

    Args:
        config (`LCMConfig`): the model's.
        readout (`nn.Module`): made by [`make_site_readout`].
        edges (`Mapping[str, Tensor]`): centred edges of every atlas given, `(scans that have it, edges)`.
        present (`Tensor` of shape `(n, atlases given)`): which scans these are.
    """
    some = next(iter(edges.values()))
    logits = some.new_zeros(present.shape[0], max(part.stop for part in config.token_slices.values()))
    for scans, atlases in _alike(list(edges), present):
        here = {atlas: edges[atlas] if scans is None else edges[atlas][scans[mine]] for atlas, mine in atlases.items()}
        for name, key in _keys(config, here).items():
            names = with_site_weights(config, key)
            start = sum(_size(config, each) for each in names[: names.index(name)])
            weight = readout[key].weight[start : start + _size(config, name)]
            together = torch.cat([here[atlas] for atlas in key.split(SEPARATOR)], -1)
            read = nn.functional.linear(together.to(weight.dtype), weight).to(logits.dtype)
            logits[slice(None) if scans is None else scans, config.token_slices[name]] = read
    return logits


def _alike(given: list[str], present: Tensor) -> list[tuple[Tensor | None, dict[str, Tensor]]]:
    """Scans with the same atlases: which (None: all, of a single atlas), and for each atlas which scans have it."""
    if len(given) == 1:  # nothing depends on the scans: for export
        return [(None, {given[0]: present[:, 0]})]
    kinds, kind = present.unique(dim=0, return_inverse=True)
    return [
        (
            kind == number,
            {atlas: mine for atlas, mine, is_there in zip(given, present.T, has, strict=True) if is_there},
        )
        for number, has in enumerate(kinds.tolist())
    ]


def require_site_means(site_logits: Tensor | None, site_means: Tensor) -> Tensor:
    """Site means that a model can subtract.

    Raises:
        ValueError: the model knows no sites, or another shape.
    """
    if site_logits is None:
        raise ValueError("site_means was given, but this model compares no scan with its site: leave it out.")
    if site_means.shape != site_logits.shape:
        raise ValueError(
            f"site_means has shape {tuple(site_means.shape)}; needed is {tuple(site_logits.shape)}, (batch, tokens): "
            "the values that modeling_lcm.site_means makes of the scans' site logits."
        )
    return site_means.to(site_logits)


def site_means(
    config: LCMConfig,
    site_logits: Tensor,
    sites: Sequence[Hashable],
    present: Sequence[Iterable[str]] | None = None,
) -> SiteMeans:
    """Means of the scans' sites, from these scans and from the training scans of the same site.

    No label enters. A site of one scan has a mean of little weight. Scans of one site in other atlases are apart.

    Args:
        config (`LCMConfig`): the model's.
        site_logits (`Tensor` of shape `(n, P)`): of the scans, as the model's output has them.
        sites (`Sequence` of n): site of every scan; None or NaN where it is not recorded.
        present (`Sequence` of n, *optional*): the atlases of every scan; default: all of the model's.

    Raises:
        ValueError: another number of sites than scans.
    """
    if len(sites) != len(site_logits):
        raise ValueError(f"There are {len(site_logits)} scans and {len(sites)} sites: give one per scan.")
    every = [tuple(config.atlas_regions)] * len(sites) if present is None else [tuple(each) for each in present]
    values, remarks = torch.zeros_like(site_logits), [""] * len(sites)
    for atlases in set(every):
        rows = [row for row, each in enumerate(every) if each == atlases]
        for name, key in _keys(config, atlases).items():
            tokens = config.token_slices[name]
            read = site_logits.detach()[rows, tokens].double().cpu().numpy()
            of_key: Any = (config.closed_form or {})[key][name]["sites"]
            means, counts = means_of_sites(read, [sites[row] for row in rows], of_key)
            values[rows, tokens] = torch.from_numpy(means).to(values)
            for row, (given, seen) in zip(rows, counts, strict=True):
                remarks[row] = _remark(sites[row], given, seen)
    return SiteMeans(values, remarks)


def _remark(site: Hashable, given: int, seen: int) -> str:
    if not given:
        return f"{SITE_UNKNOWN}: compared with the training mean"
    known = f" and {seen} of training" if seen else ""
    alone = ", drawn towards the training mean" if given + seen == 1 else ""
    return f"{site_name(site)}: mean of {given} scan{'s' * (given > 1)} given{known}{alone}"


def _keys(config: LCMConfig, present: Iterable[str]) -> dict[str, str]:
    """Variables with site weights that scans with some atlases are read by, and by which atlases each."""
    present, found = list(present), {}
    for name in config.token_slices:
        key = next(iter(sources(config, name, present)), None) if is_closed(config, name) else None
        if name is not None and key is not None and name in with_site_weights(config, key):
            found[name] = key
    return found


def _size(config: LCMConfig, name: str) -> int:
    tokens = config.token_slices[name]
    return tokens.stop - tokens.start
