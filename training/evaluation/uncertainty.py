"""How sure a score is: bootstrap intervals over people and permutation tests, on fixed out-of-fold predictions.

All metrics are computed for many resamples at once, and compared with scikit-learn's in
`tests/training/evaluation/test_resampling.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .metrics import calibration_bins


CELLS = 2_000_000  # resamples x scans computed at once
LEVEL = 0.95
ERRORS = ("mae", "rmse", "brier", "ece")  # lower is better
NO_TEST = ("ece",)  # calibration is no association: shuffled labels say nothing about it

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """Out-of-fold predictions of one model.

    Args:
        truth (`np.ndarray` of shape `(scans,)`): class indices or values.
        values (`np.ndarray` of shape `(scans, classes)` or `(scans,)`): probabilities, or predicted values.
        people (`np.ndarray` of shape `(scans,)`): whose scan it is.
        repeats (`np.ndarray` of shape `(scans,)`): which cross-validation made the prediction.
        sites (`np.ndarray` of shape `(scans,)`, *optional*): labels are only shuffled within a site.
    """

    truth: np.ndarray
    values: np.ndarray
    people: np.ndarray
    repeats: np.ndarray
    sites: np.ndarray | None = None

    def scores(self, rows: np.ndarray | None = None) -> dict[str, float]:
        """Metrics of the pooled predictions, the mean over repeats; of some rows only, if given."""
        return {name: float(found[0]) for name, found in self._over_repeats(_ones, _given, rows).items()}

    def intervals(self, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
        """95 % percentile interval of every metric: people are drawn with replacement, with all of their scans."""
        people, index = np.unique(self.people, return_inverse=True)
        draws = np.random.default_rng(seed).multinomial(len(people), np.full(len(people), 1 / len(people)), resamples)
        found = self._over_repeats(lambda part: draws[:, index[part]].astype(float), _given)
        tails = [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2]
        return {name: _percentiles(scores, tails) for name, scores in found.items()}

    def permutation_test(self, resamples: int, seed: int) -> dict[str, tuple[float, float]]:
        """Per metric the p-value (is the association stronger than with shuffled labels?) and the shuffled mean.

        Labels are exchanged between people, within a site where sites are known. Classes that differ between the scans
        of most people (task states) are exchanged between the scans of each person instead.
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
        """`(resamples, scans)`; a person has the same label in every repeat."""
        first, unit = _first_of_each(self._units())
        blocks = self._blocks()[first]
        labels = self.truth[first]
        found = np.empty((resamples, len(labels)))
        order = np.lexsort((np.arange(len(blocks)), blocks))
        _, starts = np.unique(blocks[order], return_index=True)
        for resample in range(resamples):
            for block in np.split(order, starts[1:]):
                found[resample, block] = labels[generator.permutation(block)]
        return found[:, unit]

    def _units(self) -> np.ndarray:
        """What has one label: a person, or a scan where people have several labels."""
        return self._scan_numbers() if self._labels_vary() else self.people

    def _blocks(self) -> np.ndarray:
        """Within what labels are exchanged."""
        if self._labels_vary():
            return np.unique(self.people, return_inverse=True)[1]
        if self.sites is None:
            return np.zeros(len(self.truth), dtype=int)
        return np.unique(self.sites.astype(str), return_inverse=True)[1]

    def _labels_vary(self) -> bool:
        """Whether most people have scans of several classes."""
        if self.values.ndim == 1:
            return False
        pairs = np.unique(np.stack([np.unique(self.people, return_inverse=True)[1], self.truth]), axis=1)
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


def _percentiles(scores: Array, tails: list[float]) -> tuple[float, float]:
    if np.isnan(scores).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(scores, tails)
    return float(low), float(high)


def metrics_of_many(truth: np.ndarray, values: np.ndarray, weights: np.ndarray) -> dict[str, Array]:
    """The metrics of `training.evaluation.metrics` for many label vectors or weightings of the same predictions.

    Args:
        truth (`np.ndarray` of shape `(resamples or 1, scans)`): class indices or values.
        values (`np.ndarray` of shape `(scans, classes)` or `(scans,)`): probabilities, or predicted values.
        weights (`np.ndarray` of shape `(resamples or 1, scans)`): how often a scan counts.

    Returns:
        Per metric `(resamples,)`; NaN where it is undefined.
    """
    compute = _classification if values.ndim == 2 else _regression
    count, step = max(len(truth), len(weights)), max(1, CELLS // truth.shape[1])
    parts = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, count, step):
            labels, weight = (array if len(array) == 1 else array[start : start + step] for array in (truth, weights))
            parts.append(compute(labels, values, weight))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _classification(truth: np.ndarray, values: np.ndarray, weights: np.ndarray) -> dict[str, Array]:
    classes = values.shape[1]
    predicted = values.argmax(1)
    chosen = (predicted[:, None] == np.arange(classes)).astype(float)
    members = [weights * (truth == index) for index in range(classes)]
    confusion = np.stack([member @ chosen for member in members], axis=1)  # (resamples, true class, predicted class)
    support, hits = confusion.sum(2), np.diagonal(confusion, axis1=1, axis2=2)
    total = support.sum(1)
    recall = hits / support
    f1 = 2 * hits / (support + confusion.sum(1))
    areas = [_area(members[index], weights * (truth != index), values[:, index]) for index in range(classes)]
    of_truth = sum(member @ values[:, index] for index, member in enumerate(members))
    brier = ((weights * (values**2).sum(1)).sum(1) * np.ones(len(total)) - 2 * of_truth + total) / total
    found = {
        "accuracy": hits.sum(1) / total,
        "balanced_accuracy": recall.mean(1),
        "f1": np.where(support > 0, support * f1, 0).sum(1) / total,
        "roc_auc": areas[1] if classes == 2 else np.mean(areas, axis=0),
        "brier": brier / 2 if classes == 2 else brier,
        "ece": _calibration_error(truth == predicted, values.max(1), weights),
    }
    if classes == 2:
        found |= {"f1_positive": f1[:, 1], "sensitivity": recall[:, 1], "specificity": recall[:, 0]}
    return found


def _area(positive: np.ndarray, negative: np.ndarray, scores: np.ndarray) -> Array:
    """Weighted ROC AUC, ties counted half."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])
    above, below = (np.add.reduceat(side[:, order], starts, axis=1) for side in (positive, negative))
    beaten = np.cumsum(below, axis=1) - below / 2
    return (above * beaten).sum(1) / (above.sum(1) * below.sum(1))


def _calibration_error(correct: np.ndarray, confidence: np.ndarray, weights: np.ndarray) -> Array:
    """Expected calibration error: mean distance of confidence and accuracy over bins, weighted by their size."""
    bins = calibration_bins(confidence)
    inside = (bins[:, None] == np.unique(bins)).astype(float)
    gaps = np.abs((weights * (confidence - correct)) @ inside).sum(1)
    return gaps / (weights.sum(1) * np.ones(len(gaps)))


def _regression(truth: np.ndarray, values: np.ndarray, weights: np.ndarray) -> dict[str, Array]:
    total = weights.sum(1)

    def mean(quantity: np.ndarray) -> Array:
        return (weights * quantity).sum(1) / total

    error = values - truth
    squared = mean(error**2)
    centred_truth = truth - mean(truth * np.ones_like(values))[:, None]
    centred = values - mean(values * np.ones_like(truth))[:, None]
    variance, spread = mean(centred_truth**2), mean(centred**2)
    constant = spread <= 1e-24 * np.maximum(1, np.abs(values).max() ** 2)
    return {
        "mae": mean(np.abs(error)),
        "rmse": np.sqrt(squared),
        "r2": np.where(variance > 0, 1 - squared / variance, np.nan),
        "pearson_r": np.where(
            constant | (variance == 0), np.nan, mean(centred_truth * centred) / np.sqrt(variance * spread)
        ),
    }
