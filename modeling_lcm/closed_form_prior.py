"""A pretrained read-out as prior of a fit: what it is worth is weighed by what the labels say, down to nothing."""

from dataclasses import dataclass

import numpy as np

from .closed_form import Array, Edges, Fit, LinearScore, Target, agreement, fit_ridge
from .closed_form_gate import fit_with_sites
from .closed_form_sites import Sites


PRIOR_SCANS = 30  # that a prior's reputation counts for
KEPT_REPUTATION = 0.7  # of a prior in another cohort


@dataclass(frozen=True)
class Prior:
    """A pretrained read-out of the same variable.

    Args:
        score (`LinearScore`): its value in units of its own left-out deviation.
        reputation (`float`): correlation of its left-out values with the label in pretraining, within sites.
        label_range (`tuple[float, float]`, *optional*): of a number's labels in pretraining, in the target's units.
    """

    score: LinearScore
    reputation: float
    label_range: tuple[float, float] | None = None


def fit(
    edges: Edges,
    target: Target,
    prior: Prior | None = None,
    values: Array | None = None,
    sites: Sites | None = None,
    site_relative: str = "never",
) -> Fit:
    """Fit a read-out; where that helps, with a pretrained one as prior.

    The result is the sum of three scores weighted by their skills: ridge alone, ridge on what the prior leaves over,
    and the prior. The prior's skill is drawn from what it was worth in pretraining towards what these labels say, and
    0 where they say that it is worth nothing; then the result is ridge alone.

    Args:
        edges (`Edges`): log FC of the training scans.
        target (`Target`): what is predicted.
        prior (`Prior`, *optional*): a pretrained read-out.
        values (`np.ndarray` of shape `(n,)`, *optional*): the prior's score for these scans.
        sites (`Sites`, *optional*): of these scans.
        site_relative (`str`): whether ridge compares scans with their sites, see [`fit_with_sites`].
    """
    alone, relative = fit_with_sites(edges, target, sites, site_relative)
    if prior is None or values is None or not _applies(prior, target):
        return Fit(alone.score, alone.left_out, alone.skill, alone.settings | {"prior": 0.0, "ridge": alone.skill})
    worth = prior.reputation
    rest = fit_ridge(edges, target, worth * values, prior.score.scaled(worth), relative=relative)
    scans = len(target)
    reputation = KEPT_REPUTATION * worth * (1.2 if target.is_class else 1.0)
    trust = max(0.0, (scans * _agreement(target, values) + PRIOR_SCANS * reputation) / (scans + PRIOR_SCANS))
    expected = 0.5 * np.sqrt(scans / (scans + 100))
    own = max(0.0, (scans * alone.skill + PRIOR_SCANS * expected) / (scans + PRIOR_SCANS))
    centre = np.average(values, weights=target.case_weights)
    (mean, deviation), (rest_mean, rest_deviation) = (target.standardised(each.left_out) for each in (alone, rest))
    score = alone.score.combined(own / deviation, rest.score, trust / 2 / rest_deviation)
    score = score.combined(1.0, prior.score, trust / 2)
    shift = own * mean / deviation + trust / 2 * (rest_mean / rest_deviation + centre)
    left_out = own * (alone.left_out - mean) / deviation
    left_out += trust / 2 * ((rest.left_out - rest_mean) / rest_deviation + values - centre)
    score = score.scaled(1.0, -shift)
    if not target.is_class:
        score, left_out = _in_units(score, left_out, target, max(own, trust))
    settings = alone.settings | {"prior": trust, "ridge": own, "strength": rest.settings["strength"]}
    return Fit(score, left_out, _agreement(target, left_out), settings)


def _applies(prior: Prior, target: Target) -> bool:
    """Whether a prior has anything to say: a read-out of children's ages says nothing about those of adults."""
    if prior.label_range is None:
        return prior.reputation > 0
    low, high = prior.label_range
    return prior.reputation > 0 and bool(np.mean((target.values >= low) & (target.values <= high)) >= 0.5)


def _agreement(target: Target, values: Array) -> float:
    """2 AUC - 1, or correlation, of values with the target; 0 where it is not defined."""
    if target.is_class:
        return agreement(values[target.values > 0], values[target.values < 0])
    if values.std() == 0 or target.values.std() == 0:
        return 0.0
    return float(np.corrcoef(target.values, values)[0, 1])


def _in_units(score: LinearScore, left_out: Array, target: Target, skill: float) -> tuple[LinearScore, Array]:
    """A score of numbers turned back into theirs: its slope is drawn towards the skill that was expected of it."""
    mean, deviation, scans = left_out.mean(), left_out.std() + 1e-12, len(target)
    covariance = float(((left_out - mean) * target.values).mean() / deviation)
    slope = max((scans * covariance + PRIOR_SCANS * skill) / (scans + PRIOR_SCANS), 0.05) / deviation
    centre = float(target.values.mean())
    left_out = slope * (left_out - mean) + centre
    return score.scaled(slope, centre - slope * mean), left_out
