"""How sure a score is: bootstrap intervals over subjects and permutation tests, on fixed out-of-fold predictions."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..reporting.results import ERRORS
from .resampled_metrics import metrics_of_many


TAILS = (2.5, 97.5)  # per cent, of a 95 % interval
NO_TEST = ("ece",)  # calibration is no association: shuffled labels say nothing about it

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """Out-of-fold predictions of one model.

    Args:
        truth (`np.ndarray` of shape `(scans,)`): class indices or values.
        values (`np.ndarray` of shape `(scans, classes)` or `(scans,)`): probabilities, or predicted values.
        subjects (`np.ndarray` of shape `(scans,)`): whose scan it is.
        repeats (`np.ndarray` of shape `(scans,)`): which cross-validation made the prediction.
        folds (`np.ndarray` of shape `(scans,)`): which fold of it.
        sites (`np.ndarray` of shape `(scans,)`, *optional*): labels are only shuffled within a site.
    """

    truth: np.ndarray
    values: np.ndarray
    subjects: np.ndarray
    repeats: np.ndarray
    folds: np.ndarray
    sites: np.ndarray | None = None

    def scores(self, rows: np.ndarray | None = None) -> dict[str, float]:
        """Metrics of the pooled predictions, the mean over repeats; of some rows only, if given."""
        return {name: float(found[0]) for name, found in self._over_repeats(_ones, _given, rows).items()}

    def bootstrap(self, resamples: int, seed: int) -> dict[str, Array]:
        """Every metric `(resamples,)` of subjects drawn with replacement, with all of their scans.

        The same seed draws the same subjects for every model, so that differences are paired.
        """
        subjects, index = np.unique(self.subjects, return_inverse=True)
        count = len(subjects)
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
        return self._over_repeats(lambda part: draws[:, index[part]].astype(float), _given)

    def permutation_test(self, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
        """Per metric the p-value (is the association stronger than with shuffled labels?) and the shuffled mean.

        Labels are exchanged between subjects, within a site where sites are known. Classes that differ between the
        scans of most subjects (task states) are exchanged between the scans of each subject instead.
        """
        shuffled = self._shuffled_labels(resamples, np.random.default_rng(seed))
        null = self._over_repeats(_ones, lambda part: shuffled[:, part])
        observed = self.scores()
        results = {}
        for name, scores in null.items():
            if name not in NO_TEST and not np.isnan(observed[name]) and not np.isnan(scores).all():
                sign = -1 if name in ERRORS else 1
                # A shuffle may reproduce the labels themselves: equality up to rounding counts against the model.
                as_good = sign * scores >= sign * observed[name] - 1e-12
                results[name] = (float((1 + as_good.sum()) / (1 + resamples)), float(np.nanmean(scores)))
        return results

    def _shuffled_labels(self, resamples: int, generator: np.random.Generator) -> np.ndarray:
        """`(resamples, scans)`; a subject has the same label in every repeat."""
        first, unit = _first_of_each(self._units())
        blocks = self._blocks()[first]
        labels = self.truth[first]
        shuffled = np.empty((resamples, len(labels)))
        order = np.lexsort((np.arange(len(blocks)), blocks))
        _, starts = np.unique(blocks[order], return_index=True)
        for resample in range(resamples):
            for block in np.split(order, starts[1:]):
                shuffled[resample, block] = labels[generator.permutation(block)]
        return shuffled[:, unit]

    def _units(self) -> np.ndarray:
        """What has one label: a subject, or a scan where subjects have several labels."""
        return self._scan_numbers() if self._labels_vary() else self.subjects

    def _blocks(self) -> np.ndarray:
        """Within what labels are exchanged."""
        if self._labels_vary():
            return np.unique(self.subjects, return_inverse=True)[1]
        if self.sites is None:
            return np.zeros(len(self.truth), dtype=int)
        return np.unique(self.sites.astype(str), return_inverse=True)[1]

    def _labels_vary(self) -> bool:
        """Whether most subjects have scans of several classes."""
        if self.values.ndim == 1:
            return False
        pairs = np.unique(np.stack([np.unique(self.subjects, return_inverse=True)[1], self.truth]), axis=1)
        return bool((np.bincount(pairs[0].astype(int)) > 1).mean() > 0.5)

    def _scan_numbers(self) -> np.ndarray:
        """The same number for a scan in every repeat: its place among the scans of its repeat."""
        numbers = np.empty(len(self.repeats), dtype=int)
        for repeat in np.unique(self.repeats):
            part = np.flatnonzero(self.repeats == repeat)
            numbers[part] = np.arange(len(part))
        return numbers

    def _over_repeats(
        self,
        weights: Callable[[np.ndarray], np.ndarray | None],
        truth: Callable[[np.ndarray], np.ndarray | None],
        rows: np.ndarray | None = None,
    ) -> dict[str, Array]:
        """Metrics per resample, averaged over repeats; the functions give a repeat's weights and shuffled labels."""
        chosen = np.arange(len(self.truth)) if rows is None else rows
        found: list[dict[str, Array]] = []
        for repeat in np.unique(self.repeats[chosen]):
            part = chosen[self.repeats[chosen] == repeat]
            labels, weight = truth(part), weights(part)
            labels = self.truth[part][None] if labels is None else labels
            weight = np.ones((1, len(part))) if weight is None else weight
            found.append(metrics_of_many(labels, self.values[part], weight))
        return {name: np.mean([scores[name] for scores in found], axis=0) for name in found[0]}


def _ones(part: np.ndarray) -> None:
    """Every scan counts once."""


def _given(part: np.ndarray) -> None:
    """The labels as they are."""


def _first_of_each(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    _, first, index = np.unique(values, return_index=True, return_inverse=True)
    return first, index


def interval(scores: Array) -> tuple[float, float]:
    """95 % percentile interval of resampled scores `(resamples,)`; those that are undefined do not count."""
    if np.isnan(scores).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(scores, TAILS)
    return float(low), float(high)
