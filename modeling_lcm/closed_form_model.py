"""From read-outs fitted in closed form to an ordinary model, and back: what a checkpoint knows of a variable."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .bei_vocabulary import BEIVariable
from .closed_form import Array, Edges, LinearScore
from .closed_form_heads import Head, Scans, fit_head
from .config_checks_lcm import SEPARATOR
from .configuration_lcm import LCMConfig
from .feature_extraction_lcm import FCFeatureExtractor
from .modeling_lcm import LCMForMultitaskPretraining, LCMForSequenceClassification
from .readouts_lcm import LCMEdgeReadouts, readout_rows
from .sites_lcm import with_site_weights
from .tokenization_bei import BEITokenizer


SHRINKAGES = (0.05, 0.2, 0.6)
DEFAULT_SHRINKAGE = 1  # position of the one that needs no reason to be chosen
ALL_COMBINATIONS = 3  # up to so many atlases
Heads = dict[str, dict[str, Head]]  # by atlases ("aal-116+harvard-oxford-111"), then by variable


def combinations_of(atlases: Sequence[str]) -> list[tuple[str, ...]]:
    """Sets of atlases that get read-outs of their own: all of up to three; of more, each alone and all together."""
    ordered = sorted(atlases)
    if len(ordered) > ALL_COMBINATIONS:
        return [*((name,) for name in ordered), tuple(ordered)]
    return [found for size in range(1, len(ordered) + 1) for found in combinations(ordered, size)]


class SharedEdges:
    """Centred edges and their kernels of the last scans that were fitted to, for other variables of the same scans."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, ...], tuple[tuple[Hashable, ...], Edges]] = {}

    def of(self, edges: Mapping[str, NDArray[np.float32]], rows: NDArray[np.int64], scans: Hashable) -> Edges:
        """Some rows of edges by atlas; `scans` tells these scans from others."""
        key, content = tuple(edges), (scans, rows.tobytes())
        if key not in self._last or self._last[key][0] != content:
            self._last.pop(key, None)  # two cohorts' edges need not fit into memory
            self._last[key] = content, Edges({name: each[rows] for name, each in edges.items()}, DEFAULT_SHRINKAGE)
        return self._last[key][1]


def fit_heads(
    edges: Mapping[str, NDArray[np.float32]],
    scans: Scans,
    variable: BEIVariable,
    priors: Heads | None = None,
    shared: SharedEdges | None = None,
    site_relative: str = "never",
) -> Heads:
    """Fit a variable's read-outs of every set of atlases that enough scans have.

    Args:
        edges: Of every atlas, as [`log_edges`] makes them, of the same scans.
        scans: Their labels; NaN where nothing is recorded.
        variable: What the labels are.
        priors: Pretrained read-outs, by atlases; of this variable they are used.
        shared: What earlier variables were fitted with.
        site_relative: Whether scans are compared with their sites, see [`fit_with_sites`].

    Returns:
        The read-outs that could be fitted.

    Raises:
        ValueError: There is none: no two scans of each class, or numbers that are all the same.
    """
    found: Heads = {}
    problem: ValueError | None = None
    for atlases in combinations_of(list(edges)):
        key = SEPARATOR.join(atlases)
        here = np.isfinite(scans.values)
        for name in atlases:
            here &= ~np.isnan(edges[name][:, 0, 0])
        rows = np.flatnonzero(here)
        some = scans.select(rows)
        prior = (priors or {}).get(key, {}).get(variable.name)
        try:
            of_atlases = {name: edges[name] for name in atlases}
            centred = (shared or SharedEdges()).of(of_atlases, rows, scans.name)
            found[key] = {variable.name: fit_head(centred, some, len(variable.labels), prior, site_relative)}
        except ValueError as error:
            problem = error
    if problem is not None and not found:
        raise problem
    return found


def build_model(
    heads: Heads,
    means: Mapping[str, Array],
    extractors: Mapping[str, FCFeatureExtractor],
    tokenizer: BEITokenizer,
) -> LCMForMultitaskPretraining | LCMForSequenceClassification:
    """A model of the size "linear" that holds fitted read-outs.

    Args:
        heads: Fitted read-outs, by atlases and variable.
        means: Mean of every atlas's edges, `(shrinkages, edges)`.
        extractors: FC definition of every atlas.
        tokenizer: Its vocabulary; with a task, the model has that task.
    """
    task = tokenizer.task_variable
    heads = {
        key: {name: head.around({atlas: means[atlas] for atlas in key.split(SEPARATOR)}) for name, head in of.items()}
        for key, of in heads.items()
    }
    config = LCMConfig.from_size(
        "linear",
        atlases={name: _regions(extractor) for name, extractor in extractors.items()},
        bei_variables=tokenizer.model_variables,
        edge_shrinkages=list(SHRINKAGES),
        closed_form={key: {name: head.record for name, head in of.items()} for key, of in heads.items()},
        **({} if task is None else task.task_settings),
    )
    model: Any = (LCMForMultitaskPretraining if task is None else LCMForSequenceClassification)(config).eval()
    for name, features in _by_key(model.edge_features, config).items():
        features.mean.copy_(torch.from_numpy(means[name].ravel()))
        features.batches.fill_(1)
    for readout, names_of in _readouts(model):
        _write(readout, config, names_of, heads, "weights")
    if model.site_readout is not None:
        _write(model.site_readout, config, _site_names(config), heads, "site_weights")
    return model


def heads_of(model: Any, atlases: Sequence[str]) -> Heads:
    """The read-outs that a model holds for sets of some atlases, to start from or to keep."""
    config = model.config
    means = {
        name: features.mean.detach().double().cpu().numpy().reshape(len(config.shrinkages), -1)
        for name, features in _by_key(model.edge_features, config).items()
    }
    found: Heads = {}
    for readout, names_of in _readouts(model):
        for key, linear, name, rows in _rows(readout, config, names_of):
            record = (config.closed_form or {}).get(key, {}).get(name)
            if record is None or not set(key.split(SEPARATOR)) <= set(atlases):
                continue
            offsets = linear.bias.detach()[rows].double().cpu().tolist()
            of_key = {atlas: means[atlas] for atlas in key.split(SEPARATOR)}
            tokens = [
                LinearScore(weights, offset, of_key)
                for weights, offset in zip(_by_atlas(linear, rows, of_key), offsets, strict=True)
            ]
            found.setdefault(key, {})[name] = Head(tokens, record)
    if model.site_readout is not None:
        for key, linear, name, rows in _rows(model.site_readout, config, _site_names(config)):
            if name in found.get(key, {}):
                head = found[key][name]
                parts = zip(head.tokens, _by_atlas(linear, rows, head.tokens[0].means), strict=True)
                tokens = [replace(token, site_weights=weights) for token, weights in parts]
                found[key][name] = Head(tokens, head.record)
    return found


def _by_atlas(linear: Any, rows: slice, means: Mapping[str, Array]) -> list[dict[str, Array]]:
    """Some rows of a Linear, each as weights by atlas of the shape of the edges' means."""
    found = []
    for row in linear.weight.detach()[rows].double().cpu().numpy():
        parts = np.split(row, np.cumsum([mean.size for mean in means.values()])[:-1])
        found.append({name: part.reshape(means[name].shape) for name, part in zip(means, parts, strict=True)})
    return found


def can_be_prior(config: LCMConfig) -> bool:
    """Whether a checkpoint's read-outs can be taken over: fitted in closed form, on the edges that are fitted here."""
    return bool(config.closed_form) and tuple(config.shrinkages) == SHRINKAGES


def _regions(extractor: FCFeatureExtractor) -> dict[str, Any]:
    regions: dict[str, Any] = {"num_regions": extractor.num_regions}
    return regions if extractor.region_names is None else regions | {"region_names": list(extractor.region_names)}


def _by_key(module: nn.Module, config: LCMConfig) -> dict[str, Any]:
    """Parts of a module by atlas or set of atlases; a single one is that of the model's one atlas."""
    if isinstance(module, nn.ModuleDict | LCMEdgeReadouts):
        return dict(module.items())
    return dict.fromkeys(config.atlas_regions, module)


def _readouts(model: Any) -> list[tuple[nn.Module, dict[str, list]]]:
    """Edge read-outs, each with its variables by atlases."""
    config = model.config
    found = [(model.bei_edge_readout, config.bei_names)]
    if hasattr(model, "task_edge_readout"):
        found.append((model.task_edge_readout, [config.task_variable]))
    if len(config.atlas_regions) > 1:
        return [(readout, readout_rows(config, names)) for readout, names in found]
    return [(readout, dict.fromkeys(config.atlas_regions, names)) for readout, names in found]


def _site_names(config: LCMConfig) -> dict[str, list]:
    return {key: with_site_weights(config, key) for key in config.closed_form or {}}


def _rows(readout: nn.Module, config: LCMConfig, names_of: Mapping[str, list]) -> list[tuple[str, Any, str, slice]]:
    """Of a read-out: atlases, their Linear, a variable, and the rows of its tokens."""
    found = []
    slices = config.token_slices
    for key, linear in _by_key(readout, config).items():
        start = 0
        for name in names_of[key]:
            size = slices[name].stop - slices[name].start
            found.append((key, linear, str(name), slice(start, start + size)))
            start += size
    return found


@torch.no_grad()
def _write(readout: nn.Module, config: LCMConfig, names_of: Mapping[str, list], heads: Heads, part: str) -> None:
    """Put the tokens' `weights`, with their offsets, or `site_weights` into a read-out."""
    for key, linear, name, rows in _rows(readout, config, names_of):
        head = heads.get(key, {}).get(name)
        if head is None:
            continue
        for row, score in zip(range(rows.start, rows.stop), head.tokens, strict=True):
            weights = getattr(score, part)
            together = np.concatenate([weights[atlas].ravel() for atlas in key.split(SEPARATOR)])
            linear.weight[row] = torch.from_numpy(together)
            if linear.bias is not None:
                linear.bias[row] = score.offset
