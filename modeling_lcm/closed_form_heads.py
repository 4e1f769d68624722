"""Read-outs of a variable's tokens, fitted in closed form and calibrated: from scores to logits, with a record."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .closed_form import Array, Edges, Fit, LinearScore, Target
from .closed_form_prior import Prior, fit
from .closed_form_sites import Sites, means_of_sites
from .decisions import calibrate


LEAST_AT_SITE = 8  # scans from which a site says how well a score orders its scans
WARN_PER_CLASS = 4  # fewer scans of a class than this say very little


@dataclass(frozen=True)
class Head:
    """The read-out of a variable's tokens.

    Args:
        tokens (`list[LinearScore]`): the logit of every token as a function of edges.
        record (`dict`): how it was fitted and what it is worth; what `LCMConfig.closed_form` keeps.
    """

    tokens: list[LinearScore]
    record: dict[str, Any]

    def logits(self, edges: Mapping[str, NDArray], sites: Sequence[Hashable] | None = None) -> Array:
        """Logits `(n, tokens)` of edges per atlas `(n, S, E)`, beside the means of the scans' sites."""
        logits = np.stack([token(edges) for token in self.tokens], 1)
        if sites is None or "sites" not in self.record:
            return logits
        read = np.stack([token.of_site(edges) for token in self.tokens], 1)
        return logits - means_of_sites(read, sites, self.record["sites"])[0]

    def around(self, means: Mapping[str, Array]) -> "Head":
        """The same read-out, written around other means."""
        tokens, record = [token.around(means) for token in self.tokens], dict(self.record)
        # What a site's scans are read as is a deviation from the mean, too.
        shifts = [
            float(new.of_site({name: mean[None] for name, mean in old.means.items()})[0])
            for old, new in zip(self.tokens, tokens, strict=True)
        ]
        for name, site in record.get("sites", {}).items():
            mean = [value + shift for value, shift in zip(site["mean"], shifts, strict=True)]
            record["sites"] = record["sites"] | {name: site | {"mean": mean}}
        return Head(tokens, record)


@dataclass(frozen=True)
class Scans:
    """What is known of training scans beside their edges.

    Args:
        values (`np.ndarray` of shape `(n,)`): label indices, or scaled numbers.
        subjects (`Sequence[Hashable]`): subject of every scan; scans of one are left out together.
        sites (`Sequence[Hashable]`, *optional*): site of every scan; None where it is not recorded.
        name (`Hashable`): the same for the same scans, where several variables are fitted to them.
    """

    values: Array
    subjects: Sequence[Hashable]
    sites: Sequence[Hashable] | None = None
    name: Hashable = None

    def select(self, rows: NDArray[np.int64]) -> "Scans":
        """Some of the scans, by position."""
        subjects, sites = (
            [each[row] for row in rows.tolist()] if each is not None else None for each in (self.subjects, self.sites)
        )
        return Scans(self.values[rows], subjects or [], sites, self.name)


def fit_head(
    edges: Edges, scans: Scans, num_labels: int, prior: "Head | None" = None, site_relative: str = "never"
) -> Head:
    """Fit the read-out of a variable.

    Args:
        edges (`Edges`): log FC of the training scans.
        scans (`Scans`): their labels.
        num_labels (`int`): labels of the variable; 0 for a number.
        prior (`Head`, *optional*): a pretrained read-out of the same variable, from the same atlases.
        site_relative (`str`): whether scans are compared with their sites, see [`fit_with_sites`].

    Raises:
        ValueError: one class, a class with a single scan, or numbers that are all the same.
    """
    head = _fit_variable(edges, scans, num_labels, prior, site_relative)
    if any(token.site_weights for token in head.tokens):
        head.record["sites"] = _sites_seen(edges, scans, head.tokens)
    return head


def _sites_seen(edges: Edges, scans: Scans, tokens: Sequence[LinearScore]) -> dict[str, dict[str, Any]]:
    """What the tokens' site weights make of the training scans of every site: for more scans of these sites."""
    sites = Sites.make(scans.sites or [])
    read = np.stack([_of_centred(token, edges).of_site(edges.values) for token in tokens], 1)
    found = {}
    for name, here in zip(sites.names, sites.scans(), strict=True):
        found[name] = {"scans": len(here), "mean": read[here].mean(0).tolist()}
    return found


def _of_centred(score: LinearScore, edges: Edges) -> LinearScore:
    """A score of these edges' means, for the edges as they are kept: centred in place, so that their means are 0."""
    return replace(score, means={name: np.zeros_like(each) for name, each in edges.means.items()})


def _fit_variable(edges: Edges, scans: Scans, num_labels: int, prior: Head | None, site_relative: str) -> Head:
    if not num_labels:
        return _fit_number(edges, scans, prior, site_relative)
    counts = np.bincount(scans.values.astype(int), minlength=num_labels)
    if (counts < 2).any():
        raise ValueError(
            f"There are {', '.join(map(str, counts))} training scans of the {num_labels} labels: each needs two or "
            "more, so that one can be left out."
        )
    if num_labels == 2:
        return _fit_two(edges, scans, prior, site_relative)
    return _fit_several(edges, scans, counts, site_relative)


def _fit_two(edges: Edges, scans: Scans, prior: Head | None, site_relative: str) -> Head:
    """Balanced log-odds, half of them for one token and half against the other."""
    is_second = scans.values == 1
    target = Target.make(is_second, True, scans.subjects)
    found = _fit(edges, target, scans, site_relative, prior)
    line = calibrate(found.left_out, is_second)
    odds = line.log_odds(found.left_out)
    record = {
        **_what_a_prior_needs(odds, target, scans),
        "prevalence": [1 - line.prevalence, line.prevalence],
        "auc": _auc(found.left_out, is_second),
        "sensitivity": line.sensitivity,
        "specificity": line.specificity,
        **found.settings,
    }
    score = found.score.scaled(line.slope, line.offset)
    return Head([score.scaled(-0.5), score.scaled(0.5)], record)


def _fit_several(edges: Edges, scans: Scans, counts: NDArray, site_relative: str) -> Head:
    """Every label against all others, balanced; a softmax compares them."""
    tokens, aucs, settings = [], [], []
    for label in range(len(counts)):
        is_label = scans.values == label
        found = _fit(edges, Target.make(is_label, True, scans.subjects), scans, site_relative)
        line = calibrate(found.left_out, is_label)
        tokens.append(found.score.scaled(line.slope, line.offset))
        aucs.append(_auc(found.left_out, is_label))
        settings.append(found.settings)
    record = {
        "scans": int(counts.sum()),
        "subjects": len(set(map(str, scans.subjects))),
        "prevalence": (counts / counts.sum()).tolist(),
        "auc": float(np.mean(aucs)),
        "of_labels": settings,
        "reputation": 0.0,
    }
    return Head(tokens, record)


def _fit_number(edges: Edges, scans: Scans, prior: Head | None, site_relative: str) -> Head:
    mean, deviation = float(scans.values.mean()), float(scans.values.std())
    if not deviation > 0:
        raise ValueError(f"All values are {mean:g} (scaled): there is nothing to learn.")
    target = Target.make((scans.values - mean) / deviation, False, scans.subjects)
    found = _fit(edges, target, scans, site_relative, prior, (mean, deviation))
    left_out = mean + deviation * found.left_out
    record = {
        **_what_a_prior_needs(left_out, target, scans),
        "label_range": [float(scans.values.min()), float(scans.values.max())],
        "r": float(np.corrcoef(scans.values, left_out)[0, 1]) if np.ptp(left_out) else 0.0,
        **found.settings,
    }
    return Head([found.score.scaled(deviation, mean)], record)


def _fit(
    edges: Edges,
    target: Target,
    scans: Scans,
    site_relative: str,
    prior: Head | None = None,
    scaling: tuple[float, float] | None = None,
) -> Fit:
    """Ridge, with the prior's score in units of its own left-out deviation."""
    sites = None if scans.sites is None else Sites.make(scans.sites)
    record = {} if prior is None else prior.record
    if prior is None or not record.get("reputation"):
        return fit(edges, target, sites=sites, site_relative=site_relative)
    score = prior.tokens[-1]
    if len(prior.tokens) == 2:
        score = score.combined(1.0, prior.tokens[0], -1.0)
    score = score.scaled(1.0, -record["left_out_mean"])
    score = score.scaled(1 / record["left_out_deviation"]).around(edges.means)
    limits = record.get("label_range")
    if limits is not None and scaling is not None:
        low, high = ((limit - scaling[0]) / scaling[1] for limit in limits)
        limits = (low, high)
    centred = _of_centred(score, edges)
    values = centred(edges.values)
    if score.site_weights and sites is not None:
        values -= sites.plain_means() @ centred.of_site(edges.values)
    return fit(edges, target, Prior(score, record["reputation"], limits), values, sites, site_relative)


def _what_a_prior_needs(left_out: Array, target: Target, scans: Scans) -> dict[str, Any]:
    """Scale of the logits, and the correlation with the label within sites, for fits that start from this one."""
    mean, deviation = target.standardised(left_out)
    sites = np.zeros(len(target)) if scans.sites is None else Sites.make(scans.sites).numbers
    agreements, sizes = [], []
    for site in np.unique(sites):
        here = sites == site
        if here.sum() >= LEAST_AT_SITE and np.ptp(target.values[here]) and np.ptp(left_out[here]):
            agreements.append(np.corrcoef(target.values[here], left_out[here])[0, 1])
            sizes.append(here.sum())
    reputation = max(0.0, float(np.average(agreements, weights=sizes))) if sizes else 0.0
    return {
        "scans": len(target),
        "subjects": len(np.unique(target.groups)),
        "left_out_mean": mean,
        "left_out_deviation": deviation,
        "reputation": reputation,
    }


def _auc(scores: Array, is_second: NDArray[np.bool_]) -> float:
    differences = scores[is_second][:, None] - scores[~is_second]
    return float(np.mean((differences > 1e-12) + 0.5 * (np.abs(differences) <= 1e-12)))
