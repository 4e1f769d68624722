"""What the heads make of scans: logits of all tokens, from the decoder and from the edges.

Shapes: batch B, tokens P.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .atlas_batches_lcm import atlases_present
from .outputs_lcm import LCMModelOutput
from .readouts_lcm import is_closed, token_mask
from .sites_lcm import read_sites, require_site_means


def read_scans(
    model: Any,
    scans: dict[str, Tensor],
    queries: Tensor | None,
    site_means: Tensor | None,
    log_edges: Any,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None, Tensor | None, LCMModelOutput]:
    """Logits of a head, from the decoder and from the edges.

    Args:
        model (`LCMPreTrainedModel`): the head.
        scans (`dict[str, Tensor]`): connectivity by atlas.
        queries (`Tensor` of shape `(tokens, hidden_size)`, *optional*): as for [`LCMModel`].
        site_means (`Tensor` of shape `(batch, tokens)`, *optional*): see [`modeling_lcm.site_means`].
        log_edges (`Tensor`, or `dict[str, Tensor]` by atlas, *optional*): log FC `(batch, shrinkages, edges)`.
        kwargs (`dict`): for [`LCMModel`].

    Returns:
        Layer logits `(batch, layers, tokens)`; a mask `(batch, tokens)` of those that were fitted in closed form, but
        not on the atlases that a scan has (None: there are none); site logits `(batch, tokens)` (None: no scan is
        compared with its site); and the output of [`LCMModel`].

    Raises:
        ValueError: site means or log FC that the model cannot use.
    """
    config = model.config
    given = scans if len(config.atlas_regions) > 1 else next(iter(scans.values()))
    queried = {} if queries is None else {"query_embeds": queries}
    outputs = model.model(given, score=model.score, **queried, **kwargs)
    layer_logits = outputs.layer_logits
    if config.closed_form:
        closed = token_mask(config, lambda name: is_closed(config, name), layer_logits)
        layer_logits = layer_logits.masked_fill(closed, 0.0)
    unread = site_logits = None
    if config.edge_readout:
        logs = known_log_edges(scans, log_edges)
        of_edges, unread, site_logits = edge_logits(model, scans, atlases_present(scans), logs)
        layer_logits = layer_logits + of_edges[:, None]
    elif log_edges is not None:
        raise ValueError("log_edges was given, but this model has no edge read-out that takes it: leave it out.")
    if site_means is not None:
        layer_logits = layer_logits - require_site_means(site_logits, site_means)[:, None]
    return layer_logits, unread if config.closed_form else None, site_logits, outputs


def known_log_edges(scans: Mapping[str, Tensor], log_edges: Any) -> dict[str, Tensor | None]:
    """Log FC of every atlas of some scans, None where it is to be computed.

    Raises:
        ValueError: it has other atlases than the scans.
    """
    if log_edges is None:
        return dict.fromkeys(scans)
    given = log_edges if isinstance(log_edges, Mapping) else dict.fromkeys(list(scans)[:1], log_edges)
    if given.keys() != scans.keys():
        raise ValueError(f"log_edges has the atlases {', '.join(given)}; connectivity has {', '.join(scans)}.")
    return {name: given[name] for name in scans}


def edge_logits(
    model: Any, connectivity: Mapping[str, Tensor], present: Tensor | None, log_edges: Mapping[str, Tensor | None]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Edge read-out of all of a head's tokens, `(batch, tokens)`: the same for every layer.

    Args:
        model (`LCMPreTrainedModel`): the head.
        connectivity (`Mapping[str, Tensor]`): by atlas; NaN for a scan that lacks one.
        present (`Tensor` of shape `(batch, atlases)`, *optional*): which atlases the scans have; None: all.
        log_edges (`Mapping[str, Tensor]`): log FC by atlas, where it is known.

    Returns:
        The logits; of several atlases a mask of those that cannot be read: see [`LCMEdgeReadouts`]; and the site
        logits, where scans are compared with their site.
    """
    config, features, sites = model.config, model.edge_features, model.site_readout
    readouts = [model.bei_edge_readout, *([model.task_edge_readout] if hasattr(model, "task_edge_readout") else [])]
    any_scans = next(iter(connectivity.values()))
    scans = any_scans.shape[0]  # its `len` would be a fixed number in an export
    everywhere = any_scans.new_ones(scans, len(connectivity), dtype=torch.bool)
    if len(config.atlas_regions) == 1:
        edges = features(any_scans, log_edges=next(iter(log_edges.values())))
        logits = torch.cat([readout(edges.to(readout.weight.dtype)) for readout in readouts], -1)
        of_sites = None if sites is None else read_sites(config, sites, {next(iter(connectivity)): edges}, everywhere)
        return logits, None, of_sites
    if present is None:
        present = everywhere
        by_atlas = {name: features[name](part, scans, log_edges[name]) for name, part in connectivity.items()}
    else:
        columns = zip(connectivity.items(), present.T, strict=True)
        by_atlas = {}
        for (name, part), here in columns:
            logs = log_edges[name]
            by_atlas[name] = features[name](part[here], scans, None if logs is None else logs[here])
    several, unread = zip(*(readout(by_atlas, present) for readout in readouts), strict=True)
    of_sites = None if sites is None else read_sites(config, sites, by_atlas, present)
    return torch.cat(several, -1), torch.cat(unread, -1), of_sites
