"""The metrics of `training.evaluation.metrics` for many resamples of the same predictions at once.

scikit-learn's functions take one weighting at a time, which would make an interval a matter of minutes; the tests hold
these against them.
"""

import numpy as np
from numpy.typing import NDArray

from .metrics import calibration_bins


CELLS = 2_000_000  # resamples x scans computed at once

Array = NDArray[np.float64]


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
