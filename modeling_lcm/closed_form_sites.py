"""Sites in a closed-form fit: scans beside their site's mean, so that scanners do not pass for subjects.

The mean of a site is drawn towards the mean of all scans, as if it had ten more scans of that kind. Scans whose site
is not recorded are compared with the mean of all. All of this is linear in the edges: matrices `(n, n)` over scans.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


Array = NDArray[np.float64]

SITE_SCANS = 10  # of the mean of all scans, that enter a site's mean
CLASS_SCANS = 5  # of a site's plain mean, that enter the mean of one of its classes
NOT_RECORDED = -1
_MISSING = {"", "nan", "none", "n/a", "<na>"}


@dataclass(frozen=True)
class Sites:
    """Sites of scans.

    Args:
        numbers (`np.ndarray` of shape `(n,)`): which site, -1 where it is not recorded.
        names (`list[str]`): of the sites.
    """

    numbers: NDArray[np.int64]
    names: list[str]

    @classmethod
    def make(cls, values: Iterable[Hashable]) -> "Sites":
        """Sites by name; None, NaN and empty texts are not recorded."""
        texts = [site_name(value) for value in values]
        names = sorted({text for text in texts if text is not None})
        position = {name: number for number, name in enumerate(names)}
        numbers = [NOT_RECORDED if text is None else position[text] for text in texts]
        return cls(np.array(numbers, dtype=np.int64), names)

    def __len__(self) -> int:
        return len(self.numbers)

    def scans(self) -> list[NDArray[np.int64]]:
        """Positions of the scans of every site."""
        return [np.flatnonzero(self.numbers == number) for number in range(len(self.names))]

    def plain_means(self) -> Array:
        """The matrix that gives every scan's site mean, as at prediction: no label enters."""
        return self.same() / (self._sizes() + SITE_SCANS)[:, None]

    def balanced_means(self, is_second: NDArray[np.bool_]) -> Array:
        """The same with both classes alike, so that a site with more patients does not look like a patient.

        A class that a site has few scans of, or none, counts as the site's plain mean as far as it lacks scans.
        """
        same, sizes = self.same(), np.maximum(self._sizes(), 1)[:, None]
        shares = np.zeros_like(same)
        for of_class in (is_second, ~is_second):
            counts = (same @ of_class)[:, None]
            shares += 0.5 * same * (of_class + CLASS_SCANS / sizes) / (counts + CLASS_SCANS)
        return shares * sizes / (sizes + SITE_SCANS)

    def same(self) -> Array:
        """Whether two scans are of one site, `(n, n)`."""
        recorded = self.numbers != NOT_RECORDED
        return ((self.numbers[:, None] == self.numbers) & recorded).astype(np.float64)

    def _sizes(self) -> Array:
        return self.same().sum(1)


@dataclass(frozen=True)
class Relative:
    """How much of a kernel compares scans with their site's mean.

    Args:
        gate (`float`): share of that part, between 0 and 1.
        fitted (`np.ndarray` of shape `(n, n)`): gives the site means of scans that are fitted to.
        predicted (`np.ndarray` of shape `(n, n)`): gives those of scans that are predicted, labels unknown.
        same (`np.ndarray` of shape `(n, n)`): whether two scans are of one site.
        lost (`np.ndarray` of shape `(n, n)`): weights in a site's mean that go when a scan is left out: those of the
            subject's scans, as shares of what is left.
    """

    gate: float
    fitted: Array
    predicted: Array
    same: Array
    lost: Array

    @classmethod
    def make(
        cls, sites: Sites, gate: float, groups: NDArray[np.int64], is_second: NDArray[np.bool_] | None = None
    ) -> "Relative":
        """That of some sites; `groups` are the scans' subjects, `is_second` tells two classes apart."""
        same, plain = sites.same(), sites.plain_means()
        fitted = plain if is_second is None else sites.balanced_means(is_second)
        lost = fitted * (groups[:, None] == groups)
        return cls(gate, fitted, plain, same, lost / (1 - lost.sum(1, keepdims=True)))

    def kernels(self, kernel: Array) -> tuple[Array, Array]:
        """Of raw inner products `(n, n)`: those of fitted scans, and of left-out with fitted ones.

        A scan that is left out is no part of the site mean that the others of its site are compared with; otherwise it
        would be told by their labels.
        """
        relative = kernel - kernel @ self.fitted.T  # columns are compared with their sites
        fitted, predicted = relative - self.fitted @ relative, relative - self.predicted @ relative
        predicted += self.same * (self.lost * predicted).sum(1, keepdims=True)
        raw = (1 - self.gate) * kernel
        return raw + self.gate * fitted, raw + self.gate * predicted

    def duals(self, dual: Array) -> tuple[Array, Array]:
        """Of dual coefficients `(n,)`: those of the edges, and of the site's mean that is subtracted."""
        relative = self.gate * (dual - self.fitted.T @ dual)
        return (1 - self.gate) * dual + relative, relative


def means_of_sites(
    read: Array, sites: Sequence[Hashable], seen: Mapping[str, Mapping[str, Any]]
) -> tuple[Array, list[tuple[int, int]]]:
    """Means of what is read from the scans of a site, drawn towards 0; no label enters.

    Args:
        read (`np.ndarray` of shape `(n, k)`): of every scan.
        sites (`Sequence` of n): site of every scan.
        seen (`Mapping`): by site, number of `scans` and `mean` of further ones.

    Returns:
        The mean `(n, k)` of every scan's site, 0 where it is not recorded; and how many scans of these, and how many
        of the further ones, went into it.
    """
    known = Sites.make(sites)
    means, counts = np.zeros_like(read), [(0, 0)] * len(known)
    for name, here in zip(known.names, known.scans(), strict=True):
        further = seen.get(name, {"scans": 0, "mean": 0.0})
        total = read[here].sum(0) + further["scans"] * np.asarray(further["mean"])
        means[here] = total / (len(here) + further["scans"] + SITE_SCANS)
        for row in here:
            counts[row] = len(here), further["scans"]
    return means, counts


def site_name(value: Hashable) -> str | None:
    """A site as text, the same for 3 and 3.0; None where it is not recorded."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return None if text.lower() in _MISSING else text
