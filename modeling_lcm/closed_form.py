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

from .closed_form_sites import Relative


Array = NDArray[np.float64]

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
class LinearScore:
    """A linear function of log FC: the sum over atlases of weights * (edges - mean), and an offset.

    A score that compares scans with their site has weights on the site's mean, too, which are subtracted:
    weights * (edges - mean) - site_weights * (site's mean - mean). Where no site is known, its mean is the mean.

    Args:
        weights (`dict[str, np.ndarray]`): per atlas `(S, E)`.
        offset (`float`): what it is for the mean scan.
        means (`dict[str, np.ndarray]`): per atlas `(S, E)`.
        site_weights (`dict[str, np.ndarray]`): per atlas `(S, E)`; empty where sites do not matter.
    """

    weights: dict[str, Array]
    offset: float
    means: dict[str, Array]
    site_weights: dict[str, Array] = field(default_factory=dict)

    def __call__(self, edges: Mapping[str, NDArray]) -> Array:
        """Values `(n,)` for edges per atlas `(n, S, E)` of scans whose site is not known."""
        return self._read(self.weights, edges, self.offset)

    def of_site(self, edges: Mapping[str, NDArray]) -> Array:
        """What the site weights make of edges per atlas `(n, S, E)`; its mean over a site is to be subtracted."""
        return self._read(self.site_weights, edges, 0.0)

    def _read(self, weights: Mapping[str, Array], edges: Mapping[str, NDArray], offset: float) -> Array:
        total = np.full(len(next(iter(edges.values()))), offset)
        for atlas, of_atlas in weights.items():
            flat = edges[atlas].reshape(len(total), -1)
            # As one product in the edges' own precision: a centred copy of all edges would be several times slower.
            total += flat @ of_atlas.ravel().astype(flat.dtype) - float((self.means[atlas] * of_atlas).sum())
        return total

    def around(self, means: Mapping[str, Array]) -> "LinearScore":
        """The same function, written around other means."""
        moved = 0.0
        for weights, sign in ((self.weights, 1.0), (self.site_weights, -1.0)):
            for atlas, of_atlas in weights.items():
                moved += sign * float((of_atlas * (means[atlas] - self.means[atlas])).sum())
        return replace(self, offset=self.offset + moved, means=dict(means))

    def scaled(self, slope: float, shift: float = 0.0) -> "LinearScore":
        """`slope * self + shift`."""
        weights, site_weights = (
            {atlas: slope * each for atlas, each in of.items()} for of in (self.weights, self.site_weights)
        )
        return LinearScore(weights, slope * self.offset + shift, self.means, site_weights)

    def combined(self, factor: float, other: "LinearScore", other_factor: float) -> "LinearScore":
        """`factor * self + other_factor * other`; both written around this one's means."""
        other = other.around(self.means)
        weights, site_weights = (
            {
                atlas: factor * ours.get(atlas, none) + other_factor * theirs.get(atlas, none)
                for atlas, none in ((atlas, np.zeros_like(mean)) for atlas, mean in self.means.items())
                if atlas in ours or atlas in theirs
            }
            for ours, theirs in ((self.weights, other.weights), (self.site_weights, other.site_weights))
        )
        offset = factor * self.offset + other_factor * other.offset
        return LinearScore(weights, offset, self.means, site_weights)


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

    penalty = np.nan  # what the matrices below were made for

    def __init__(self, kernel: Array, target: Target) -> None:
        root = np.sqrt(target.case_weights)
        values, vectors = np.linalg.eigh(root[:, None] * kernel * root)
        self.values = values.clip(0)
        self.vectors = vectors * root[:, None]

    def solve(self, wanted: Array, penalty: float) -> tuple[Array, float, Array]:
        """Dual coefficients `(n,)`, intercept, and the matrix `(n, n)` that makes the former of the target."""
        if penalty != self.penalty:  # one penalty is asked for several times in a row
            shrunk = 1 / (self.values + penalty)
            ones = self.vectors @ (shrunk * self.vectors.sum(0))
            self.inverse = (self.vectors * shrunk) @ self.vectors.T - np.outer(ones, ones) / ones.sum()
            self.penalty, self.intercept = penalty, ones / ones.sum()
        return self.inverse @ wanted, float(self.intercept @ wanted), self.inverse

    def left_out(self, wanted: Array, dual: Array, products: Array, scans: NDArray, others: NDArray) -> Array:
        """What the last solution gives for some scans when it is fitted without them, and without some others; exact.

        Args:
            wanted: What it was solved for `(n,)`.
            dual: Its coefficients `(n,)`.
            products: Of scans as they are predicted with scans as they are fitted `(n, n)`.
            scans: Positions of the scans that are predicted.
            others: Positions of all that are left out, these among them.
        """
        lost = np.linalg.solve(self.inverse[np.ix_(others, others)], dual[others])
        kept = dual - self.inverse[:, others] @ lost
        return products[scans] @ kept + float(self.intercept @ wanted - self.intercept[others] @ lost)


def _left_out(target: Target, wanted: Array, dual: Array, inverse: Array) -> Array:
    """What the fit without a scan's subject gives for the scan, `(n,)`; exact."""
    values = wanted - dual / np.diag(inverse)
    several = np.flatnonzero(np.bincount(target.groups) > 1)
    for group in several:
        scans = np.flatnonzero(target.groups == group)
        values[scans] = wanted[scans] - np.linalg.solve(inverse[np.ix_(scans, scans)], dual[scans])
    return values


def _left_out_of_sites(ridge: WeightedRidge, target: Target, wanted: Array, dual: Array, products: Array) -> Array:
    """The same where a scan is predicted by another site mean than it is fitted by, which no label enters."""
    lost = dual / np.diag(ridge.inverse)
    values = products @ dual + ridge.intercept @ wanted
    values -= (np.einsum("ij,ji->i", products, ridge.inverse) + ridge.intercept) * lost
    for group in np.flatnonzero(np.bincount(target.groups) > 1):
        scans = np.flatnonzero(target.groups == group)
        values[scans] = ridge.left_out(wanted, dual, products, scans, scans)
    return values


def _skill(
    target: Target, left_out: Array, wanted: Array | None = None, dual: Array | None = None, inverse: Any = None
) -> float:
    """How well left-out scans are predicted: 2 AUC - 1 for classes, a signed root of R2 for numbers; 0 by chance.

    With the fit's target, dual coefficients and matrix, pairs of scans are left out where classes are small.
    """
    if not target.is_class:
        values = target.values
        mean_of_others = (values.sum() - values) / (len(values) - 1)
        share = 1 - ((values - left_out) ** 2).mean() / ((values - mean_of_others) ** 2).mean()
        return float(np.sign(share) * np.sqrt(abs(share)))
    first, second = np.flatnonzero(target.values > 0), np.flatnonzero(target.values < 0)
    has_repeats = len(np.unique(target.groups)) < len(target)
    if has_repeats or min(len(first), len(second)) > FEW_PER_CLASS or wanted is None or dual is None:
        return concordance(left_out[first][:, None] - left_out[second])
    # Both scans of a pair are left out of the fit that compares them.
    diagonal = np.diag(inverse)
    cross, ours, theirs = inverse[np.ix_(first, second)], diagonal[first][:, None], diagonal[second]
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


def concordance(differences: Array) -> float:
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
    a linear function as well.

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
    # For numbers, choosing a channel costs more than it brings.
    channels = edges.channels if target.is_class and not is_plain else [edges.default_channel]
    tried = []
    for channel in channels:
        kernel, products = edges.kernel(channel), None
        if relative is not None:
            kernel, products = relative.kernels(kernel)
        ridge = WeightedRidge(kernel, target)
        for penalty in PENALTIES:
            for strength in STRENGTHS if offset is not None else (0.0,):
                subtracted = strength * prior
                wanted = target.values - subtracted
                dual, intercept, inverse = ridge.solve(wanted, penalty)
                if products is None:
                    rest = _left_out(target, wanted, dual, inverse)
                    skill = _skill(target, rest + subtracted, wanted, dual, inverse)
                else:
                    rest = _left_out_of_sites(ridge, target, wanted, dual, products)
                    skill = _skill(target, rest + subtracted)
                tried.append((skill, channel, strength, penalty, dual, intercept, rest + subtracted))
    skills = np.array([each[0] for each in tried])
    handicap = HANDICAP / np.sqrt(len(target)) * np.array([each[1] != edges.default_channel for each in tried])
    best = int(np.argmax(skills - handicap))
    if is_plain or len(target) >= SOFT_BELOW:
        shares = np.eye(len(tried))[best]
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
