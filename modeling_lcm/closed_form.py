"""An edge read-out fitted in closed form: ridge regression on log FC, with exact leave-one-out and a pretrained prior.

For cohorts of ten to a few thousand scans: seconds on a CPU, nothing drawn at random. All that is fitted is a linear
function of edges, so that it is saved as the edge read-out of an ordinary checkpoint. How each rule was chosen, and
what did not pay, is in docs/results.md.

Shapes: scans n, shrinkages S, edges E of an atlas.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .closed_form_score import LinearScore
from .closed_form_sites import Array, Relative


PENALTIES = 10.0 ** np.arange(-3, 2.01, 0.5)  # in units of the kernel's mean diagonal
STRENGTHS = (0.0, 0.5, 1.0, 1.5)  # of a prior's score, in units of what it was worth where it was learnt
SOFT_BELOW = 100  # labelled scans below which settings are averaged by their left-out skill instead of chosen
SKILL_SCALE = 8  # scans times skill that change a setting's weight by a factor e, then
HANDICAP = 0.2  # skill, divided by sqrt(n), by which another channel has to beat the default one
FEW_PER_CLASS = 60  # up to so many, left-out pairs: the AUC of single left-out scans is biased downwards
PSEUDO_SCANS = 20  # of mean variance, in an edge's deviation


@dataclass(frozen=True)
class Channel:
    """One form of the edges: after which shrinkage, and whether divided by their deviation.

    Args:
        shrinkage (`int`): position among the shrinkages.
        standardised (`bool`): divided by the deviation over training scans.
    """

    shrinkage: int
    standardised: bool


@dataclass
class Edges:
    """Log FC of training scans, centred, and its kernels.

    Args:
        values (`dict[str, np.ndarray]`): per atlas `(n, S, E)`; centred in place.
        default (`int`): position of the shrinkage that needs no reason to be chosen.

    Attributes:
        means (`dict[str, np.ndarray]`): per atlas `(S, E)`.
    """

    values: dict[str, NDArray[np.float32]]
    default: int
    means: dict[str, Array] = field(init=False)
    _scales: dict[tuple[str, Channel], Array | float] = field(default_factory=dict, init=False, repr=False)
    _kernels: dict[Channel, Array] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.means = {atlas: each.mean(0, dtype=np.float64) for atlas, each in self.values.items()}
        for atlas, each in self.values.items():
            each -= self.means[atlas].astype(each.dtype)

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    @property
    def channels(self) -> list[Channel]:
        """All forms of the edges, the default one first."""
        shrinkages = next(iter(self.values.values())).shape[1]
        every = [Channel(index, scaled) for index in range(shrinkages) for scaled in (False, True)]
        return sorted(every, key=lambda channel: channel != self.default_channel)

    @property
    def default_channel(self) -> Channel:
        """The form that is taken unless another one is clearly better."""
        return Channel(self.default, False)

    def kernel(self, channel: Channel) -> Array:
        """Inner products of scans `(n, n)`: the mean over atlases, each with mean diagonal 1."""
        if channel not in self._kernels:
            parts = []
            for atlas, every in self.values.items():
                edges = every[:, channel.shrinkage]
                scale: Array | float = 1.0
                if channel.standardised:
                    variance = edges.var(0, dtype=np.float64)
                    pooled = (len(edges) * variance + PSEUDO_SCANS * variance.mean()) / (len(edges) + PSEUDO_SCANS)
                    scale = np.sqrt(pooled + 1e-6)
                scaled = edges / np.asarray(scale, dtype=edges.dtype)
                products = (scaled @ scaled.T).astype(np.float64)
                norm = max(float(np.trace(products)) / len(edges), 1e-12)
                self._scales[atlas, channel] = scale**2 * norm * len(self.values)
                parts.append(products / norm)
            self._kernels[channel] = np.mean(parts, axis=0)
        return self._kernels[channel]

    def weights(self, duals: Mapping[Channel, Array]) -> dict[str, Array]:
        """Weights on the edges, per atlas `(S, E)`, of a function that is `kernel @ dual` on the training scans."""
        found = {atlas: np.zeros(each.shape[1:]) for atlas, each in self.values.items()}
        for channel, dual in duals.items():
            for atlas, every in self.values.items():
                product = dual.astype(np.float32) @ every[:, channel.shrinkage]
                found[atlas][channel.shrinkage] += product / self._scales[atlas, channel]
        return found


@dataclass(frozen=True)
class Target:
    """What is predicted, of every training scan.

    Args:
        values (`np.ndarray` of shape `(n,)`): +1 and -1 for two classes, standardised numbers else.
        is_class (`bool`): whether they are classes.
        groups (`np.ndarray` of shape `(n,)`): subject of every scan, a whole number; its scans are left out together.
    """

    values: Array
    is_class: bool
    groups: NDArray[np.int64]

    @classmethod
    def make(cls, values: Iterable[float], is_class: bool, subjects: Sequence[Hashable]) -> "Target":
        """The target of values (class 0 or 1, or standardised numbers) and subject ids."""
        values = np.asarray(list(values), dtype=np.float64)
        groups = np.unique(np.asarray([str(subject) for subject in subjects]), return_inverse=True)[1]
        return cls(2 * values - 1 if is_class else values, is_class, groups)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def case_weights(self) -> Array:
        """Weight of every scan: classes count alike, whatever their size."""
        if not self.is_class:
            return np.ones(len(self))
        share = (self.values > 0).mean()
        return np.where(self.values > 0, 0.5 / share, 0.5 / (1 - share))

    def standardised(self, left_out: Array) -> tuple[float, float]:
        """Weighted mean and deviation of scores."""
        mean = np.average(left_out, weights=self.case_weights)
        return float(mean), float(np.sqrt(np.average((left_out - mean) ** 2, weights=self.case_weights))) + 1e-12


class WeightedRidge:
    """Weighted ridge regression with a free intercept, for all penalties from one eigendecomposition."""

    def __init__(self, kernel: Array, case_weights: Array) -> None:
        root = np.sqrt(case_weights)
        values, vectors = np.linalg.eigh(root[:, None] * kernel * root)
        self.values = values.clip(0)
        self.vectors = vectors * root[:, None]
        self.squares = self.vectors**2
        self.sums = self.vectors.sum(0)

    def shrunk(self, penalty: float) -> "Shrunk":
        """What a penalty makes of it."""
        shrunk = 1 / (self.values + penalty)
        ones = self.vectors @ (shrunk * self.sums)
        return Shrunk(self, shrunk, ones)


@dataclass(frozen=True)
class Shrunk:
    """Ridge regression with one penalty: the matrix `(n, n)` that makes dual coefficients of a target.

    The matrix itself is made of it only in parts: most fits need its diagonal alone.
    """

    ridge: WeightedRidge
    shrunk: Array
    ones: Array

    def solve(self, wanted: Array) -> tuple[Array, float]:
        """Dual coefficients `(n,)`, and the intercept."""
        total = float(self.ones @ wanted)
        intercept = total / float(self.ones.sum())
        return self.ridge.vectors @ (self.shrunk * (wanted @ self.ridge.vectors)) - intercept * self.ones, intercept

    def diagonal(self) -> Array:
        """Of the matrix, `(n,)`."""
        return self.ridge.squares @ self.shrunk - self.ones**2 / self.ones.sum()

    def block(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Array:
        """Some rows and columns of the matrix."""
        vectors = self.ridge.vectors
        product = (vectors[rows] * self.shrunk) @ vectors[columns].T
        return product - np.outer(self.ones[rows], self.ones[columns]) / self.ones.sum()

    def without(self, wanted: Array, products: Array, scans: NDArray[np.int64], others: NDArray[np.int64]) -> Array:
        """What the fit gives for some scans that are left out of it, together with some others; exact.

        Args:
            wanted: What is fitted to `(n,)`.
            products: Of scans as they are predicted with scans as they are fitted `(n, n)`.
            scans: Positions of the scans that are predicted.
            others: Positions of all that are left out, these among them.
        """
        dual, intercept = self.solve(wanted)
        lost = np.linalg.solve(self.block(others, others), dual[others])
        kept = dual - self.block(np.arange(len(dual)), others) @ lost
        return products[scans] @ kept + intercept - float(self.ones[others] @ lost) / float(self.ones.sum())


def _left_out(target: Target, wanted: Array, dual: Array, fit: Shrunk) -> Array:
    """What the fit without a scan's subject gives for the scan, `(n,)`; exact."""
    values = wanted - dual / fit.diagonal()
    several = np.flatnonzero(np.bincount(target.groups) > 1)
    for group in several:
        scans = np.flatnonzero(target.groups == group)
        values[scans] = wanted[scans] - np.linalg.solve(fit.block(scans, scans), dual[scans])
    return values


def left_out_beside_sites(target: Target, wanted: Array, products: Array, fit: Shrunk) -> Array:
    """The same where a scan is predicted by another site mean than it is fitted by, which no label enters.

    Args:
        target: What is predicted.
        wanted: What was fitted to `(n,)`.
        products: Of scans as they are predicted with scans as they are fitted `(n, n)`.
        fit: The fit.
    """
    dual, intercept = fit.solve(wanted)
    # (products @ matrix)_ii, without the matrix
    vectors = fit.ridge.vectors
    own = ((products @ vectors) * (vectors * fit.shrunk)).sum(1) - (products @ fit.ones) * fit.ones / fit.ones.sum()
    lost = dual / fit.diagonal()
    values = products @ dual + intercept - (own + fit.ones / fit.ones.sum()) * lost
    for group in np.flatnonzero(np.bincount(target.groups) > 1):
        scans = np.flatnonzero(target.groups == group)
        values[scans] = fit.without(wanted, products, scans, scans)
    return values


def _skill(target: Target, left_out: Array, wanted: Array, dual: Array, fit: Shrunk | None) -> float:
    """How well left-out scans are predicted: 2 AUC - 1 for classes, a signed root of R2 for numbers; 0 by chance.

    With the fit, pairs of scans are left out where classes are small.
    """
    if not target.is_class:
        values = target.values
        mean_of_others = (values.sum() - values) / (len(values) - 1)
        share = 1 - ((values - left_out) ** 2).mean() / ((values - mean_of_others) ** 2).mean()
        return float(np.sign(share) * np.sqrt(abs(share)))
    first, second = np.flatnonzero(target.values > 0), np.flatnonzero(target.values < 0)
    has_repeats = len(np.unique(target.groups)) < len(target)
    if fit is None or has_repeats or min(len(first), len(second)) > FEW_PER_CLASS:
        return agreement(left_out[first], left_out[second])
    # Both scans of a pair are left out of the fit that compares them.
    diagonal = fit.diagonal()
    cross, ours, theirs = fit.block(first, second), diagonal[first][:, None], diagonal[second]
    determinant = ours * theirs - cross**2
    errors = (theirs * dual[first][:, None] - cross * dual[second]) / determinant
    others = (ours * dual[second] - cross * dual[first][:, None]) / determinant
    values = target.values
    scores = values[first][:, None] - errors - (values[second] - others)
    return concordance(scores)


def _score(edges: Edges, duals: Mapping[Channel, Array], intercept: float, relative: Relative | None) -> LinearScore:
    """The function of edges that dual coefficients stand for."""
    if relative is None:
        return LinearScore(edges.weights(duals), intercept, edges.means)
    parts = {channel: relative.duals(dual) for channel, dual in duals.items()}
    weights, site_weights = (
        edges.weights({channel: each[part] for channel, each in parts.items()}) for part in (0, 1)
    )
    return LinearScore(weights, intercept, edges.means, site_weights)


def agreement(first: Array, second: Array) -> float:
    """How often values of one class are above those of another one, ties counted half; 2 AUC - 1."""
    ordered = np.sort(second)
    below = np.searchsorted(ordered, first - 1e-12, "left")
    up_to = np.searchsorted(ordered, first + 1e-12, "right")
    return float((below + up_to).sum() / (len(first) * len(second)) - 1)


def concordance(differences: Array) -> float:
    """The same of pairs that have values of their own."""
    ties = np.abs(differences) <= 1e-12
    return float(2 * np.mean((differences > 1e-12) + 0.5 * ties) - 1)


@dataclass(frozen=True)
class Fit:
    """A score and what leave-one-out says of it.

    Args:
        score (`LinearScore`): a function of edges.
        left_out (`np.ndarray` of shape `(n,)`): its values for training scans, each by the fit without its subject.
        skill (`float`): 2 AUC - 1 of these, or a signed root of their R2.
        settings (`dict`): what was chosen, for the record.
    """

    score: LinearScore
    left_out: Array
    skill: float
    settings: dict[str, Any]


def _channels(edges: Edges, target: Target) -> list[Channel]:
    """The channels that a fit tries or averages."""
    if target.is_class:
        return edges.channels
    standardised = [replace(edges.default_channel, standardised=True)] if len(target) >= SOFT_BELOW else []
    return [edges.default_channel, *standardised]


def fit_ridge(
    edges: Edges,
    target: Target,
    offset: Array | None = None,
    base: LinearScore | None = None,
    is_plain: bool = False,
    relative: Relative | None = None,
) -> Fit:
    """Fit channel and penalty, and with a prior how much of it is subtracted first.

    With fewer than 100 scans, settings are averaged with weights that grow with their left-out skill; their average is
    a linear function as well. With more, classes take one channel and penalty, and numbers the mean of plain and
    standardised edges, each with its penalty: choosing between these two costs more than it brings.

    Args:
        edges (`Edges`): of the training scans.
        target (`Target`): what is predicted.
        offset (`np.ndarray` of shape `(n,)`, *optional*): a prior's values for these scans.
        base (`LinearScore`, *optional*): the function that gives them.
        is_plain (`bool`): ordinary ridge regression, to compare with: the default form of the edges, and the penalty
            with the best left-out skill, however few the scans.
        relative (`Relative`, *optional*): how far scans are compared with their sites.
    """
    prior = np.zeros(len(target)) if offset is None else offset
    channels = [edges.default_channel] if is_plain else _channels(edges, target)
    tried = []
    for channel in channels:
        kernel, products = edges.kernel(channel), None
        if relative is not None:
            kernel, products = relative.kernels(kernel)
        ridge = WeightedRidge(kernel, target.case_weights)
        for penalty in PENALTIES:
            shrunk = ridge.shrunk(penalty)
            for strength in STRENGTHS if offset is not None else (0.0,):
                subtracted = strength * prior
                wanted = target.values - subtracted
                dual, intercept = shrunk.solve(wanted)
                if products is None:
                    rest = _left_out(target, wanted, dual, shrunk)
                else:
                    rest = left_out_beside_sites(target, wanted, products, shrunk)
                skill = _skill(target, rest + subtracted, wanted, dual, shrunk if products is None else None)
                tried.append((skill, channel, strength, penalty, dual, intercept, rest + subtracted))
    skills = np.array([each[0] for each in tried])
    handicap = HANDICAP / np.sqrt(len(target)) * np.array([each[1] != edges.default_channel for each in tried])
    best = int(np.argmax(skills - handicap))
    if is_plain or (target.is_class and len(target) >= SOFT_BELOW):
        shares = np.eye(len(tried))[best]
    elif len(target) >= SOFT_BELOW:
        of_channels = skills.reshape(len(channels), -1)
        shares = (of_channels == of_channels.max(1, keepdims=True)).ravel().astype(float)
    else:
        shares = np.exp(len(target) * (skills - skills.max()) / SKILL_SCALE)
    shares /= shares.sum()
    duals: dict[Channel, Array] = {}
    for share, (_, channel, _, _, dual, _, _) in zip(shares, tried, strict=True):
        if share > 0:
            duals[channel] = duals.get(channel, 0.0) + share * dual
    intercept = float(sum(share * each[5] for share, each in zip(shares, tried, strict=True)))
    score = _score(edges, duals, intercept, relative)
    strength = float(sum(share * each[2] for share, each in zip(shares, tried, strict=True)))
    if base is not None:
        score = score.combined(1.0, base, strength)
    left_out = np.sum([share * each[6] for share, each in zip(shares, tried, strict=True)], axis=0)
    _, channel, _, penalty, *_ = tried[best]
    settings = {"shrinkage": channel.shrinkage, "standardised": channel.standardised, "penalty": float(penalty)}
    return Fit(score, left_out, float(shares @ skills), settings | {"strength": strength})
