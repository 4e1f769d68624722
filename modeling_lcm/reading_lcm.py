"""What the heads make of scans: logits of all tokens, from the decoder and from the edges."""

from typing import Any

import torch
from torch import Tensor

from .atlas_batches_lcm import over_parts
from .outputs_lcm import LCMModelOutput
from .readouts_lcm import is_closed, read_edges, sources, token_mask
from .sites_lcm import read_sites, require_site_means


def read_scans(
    model: Any,
    scans: dict[str, Tensor],
    queries: Tensor | None,
    site_means: Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[Tensor, Tensor | None, Tensor | None, LCMModelOutput]:
    """Logits of a head.

    Args:
        model (`LCMPreTrainedModel`): the head.
        scans (`dict[str, Tensor]`): connectivity by atlas.
        queries (`Tensor` of shape `(tokens, hidden_size)`, *optional*): as for [`LCMModel`].
        site_means (`Tensor` of shape `(batch, tokens)`, *optional*): see [`site_means`].
        kwargs (`dict`): for [`LCMModel`].

    Returns:
        Layer logits `(batch, layers, tokens)`; a mask `(batch, tokens)` of those that were fitted in closed form, but
        not on the atlases that a scan has (None: there are none); site logits `(batch, tokens)` (None: the model
        knows no sites); and the output of [`LCMModel`].
    """
    config = model.config
    several = len(config.atlas_regions) > 1
    site_readout = getattr(model, "site_readout", None)
    outputs: list[LCMModelOutput] = []

    def read(part: dict[str, Tensor]) -> tuple[Tensor, ...]:
        given = part if several else next(iter(part.values()))
        queried = {} if queries is None else {"query_embeds": queries}
        outputs.append(model.model(given, score=model.score, **queried, **kwargs))
        layer_logits: Any = outputs[-1].layer_logits
        if config.closed_form:
            closed = token_mask(config, lambda name: is_closed(config, name), layer_logits)
            layer_logits = layer_logits.masked_fill(closed, 0.0)
        edges = _centred_edges(model, part) if config.edge_readout else {}
        if edges:
            layer_logits = layer_logits + _edge_logits(model, edges)[:, None]
        found: tuple[Tensor, ...] = (layer_logits,)
        if site_readout is not None:
            found += (read_sites(config, site_readout, edges),)
        if not (config.closed_form and several):
            return found
        unread = token_mask(config, lambda name: not sources(config, name, part), layer_logits)
        return *found, unread.expand(layer_logits.shape[0], -1)

    (layer_logits, *more), at_once = over_parts(scans, read)
    if not at_once and (outputs[0].hidden_states is not None or outputs[0].attentions is not None):
        raise ValueError(
            "The scans have different atlases: give those with the same together to see inside the model."
        )
    site_logits = more.pop(0) if site_readout is not None else None
    if site_means is not None:
        layer_logits = layer_logits - require_site_means(site_logits, site_means)[:, None]
    return layer_logits, more[0] if more else None, site_logits, outputs[0]


def _centred_edges(model: Any, connectivity: dict[str, Tensor]) -> dict[str, Tensor]:
    several, features = len(model.config.atlas_regions) > 1, model.edge_features
    return {name: (features[name] if several else features)(part) for name, part in connectivity.items()}


def _edge_logits(model: Any, edges: dict[str, Tensor]) -> Tensor:
    """Edge read-out of all tokens, `(batch, tokens)`: the same for every layer."""
    config = model.config
    logits = read_edges(config, model.bei_edge_readout, edges, config.bei_names)
    if not hasattr(model, "task_edge_readout"):
        return logits
    return torch.cat([logits, read_edges(config, model.task_edge_readout, edges, [config.task_variable])], -1)
