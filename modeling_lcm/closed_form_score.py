"""Linear functions of log FC, which is what a closed-form fit gives: weights on edges, and on the site's mean.

Shapes: scans n, shrinkages S, edges E of an atlas.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from .closed_form_sites import Array


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
