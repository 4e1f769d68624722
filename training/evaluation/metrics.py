"""How good predictions are: scikit-learn's metrics as plain floats, undefined ones as NaN with a warning."""

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk
from sklearn.exceptions import UndefinedMetricWarning

from ..reporting.results import Score


UNDEFINED = math.nan
CALIBRATION_BINS = 10


def classification_metrics(
    labels: ArrayLike, probabilities: ArrayLike, label_names: Sequence[str]
) -> dict[str, float]:
    """Score predicted class probabilities; the predicted class is the most probable one.

    A metric that these labels cannot define (ROC AUC when a class has nobody in it) is NaN, and an
    `UndefinedMetricWarning` says why.

    Args:
        labels: true class indices `(subjects,)`, without missing ones.
        probabilities: `(subjects, classes)`, rows adding up to 1.
        label_names: one name per class; with two classes the second is the positive one.

    Returns:
        `accuracy`, `balanced_accuracy` (mean recall over classes), `f1` (over classes, weighted by their size),
        `roc_auc` (two classes: of the positive one; more: mean of one class against the rest), `brier` (two classes:
        0 best, 1 worst; more: summed over classes, 2 worst), `ece` (expected calibration error: distance of the
        predicted class's probability from how often it is right, 0 best) and, with two classes, `f1_positive`,
        `sensitivity` and `specificity`.

    Raises:
        ValueError: nobody to score, shapes that do not match, a label outside the classes, or rows that are no
            probabilities.
    """
    truth, scores = _checked_classes(labels, probabilities, len(label_names))
    predicted = scores.argmax(axis=1)
    classes = np.arange(len(label_names))
    absent = [str(label_names[index]) for index in np.setdiff1d(classes, truth)]
    result = {
        "accuracy": sk.accuracy_score(truth, predicted),
        "balanced_accuracy": UNDEFINED,
        "f1": sk.f1_score(truth, predicted, labels=classes, average="weighted", zero_division=np.nan),
        "roc_auc": UNDEFINED,
        "brier": np.square(scores - np.eye(len(classes))[truth]).sum(1).mean() / (2 if len(classes) == 2 else 1),
        "ece": expected_calibration_error(truth == predicted, scores.max(axis=1)),
    }
    if absent:
        _warn_undefined("balanced_accuracy and roc_auc", f"nobody here has the label {', '.join(absent)}")
    else:
        result["balanced_accuracy"] = sk.balanced_accuracy_score(truth, predicted)
        per_class = [sk.roc_auc_score(truth == index, scores[:, index]) for index in classes]
        result["roc_auc"] = per_class[1] if len(classes) == 2 else np.mean(per_class)
    if len(classes) == 2:
        result |= _binary_metrics(truth, predicted, label_names)
    return {name: float(value) for name, value in result.items()}


def calibration_bins(confidence: ArrayLike) -> NDArray[np.int64]:
    """Which of ten bins of equal width a probability is in: 0 for up to 0.1, 9 for more than 0.9."""
    position = np.ceil(np.asarray(confidence, dtype=np.float64) * CALIBRATION_BINS).astype(np.int64) - 1
    return position.clip(0, CALIBRATION_BINS - 1)


def expected_calibration_error(correct: ArrayLike, confidence: ArrayLike) -> float:
    """Distance between confidence and accuracy in ten bins of confidence, weighted by the subjects in them.

    Args:
        correct: whether the predicted class is the true one `(subjects,)`.
        confidence: probability of the predicted class `(subjects,)`.

    Source: Guo et al. 2017, ICML, equation 3.
    """
    right, probability = np.asarray(correct, dtype=np.float64), np.asarray(confidence, dtype=np.float64)
    bins = calibration_bins(probability)
    gaps = [abs((right - probability)[bins == number].sum()) for number in np.unique(bins)]
    return float(sum(gaps) / len(right))


def regression_metrics(targets: ArrayLike, predictions: ArrayLike) -> dict[str, float]:
    """Score predicted numbers, in the unit they are given in.

    Args:
        targets: true values `(subjects,)`, without missing ones.
        predictions: predicted values `(subjects,)`.

    Returns:
        `mae`, `rmse`, `r2` and `pearson_r`. `r2` is NaN when all targets are equal, `pearson_r` also when all
        predictions are; an `UndefinedMetricWarning` says so.

    Raises:
        ValueError: nobody to score, shapes that do not match, or NaN or infinite values.
    """
    truth = np.asarray(targets, dtype=np.float64)
    predicted = np.asarray(predictions, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != predicted.shape or truth.size == 0:
        raise ValueError(
            f"Targets have shape {truth.shape} and predictions {predicted.shape}; needed is one of each per subject, "
            "for one subject or more."
        )
    if not (np.isfinite(truth).all() and np.isfinite(predicted).all()):
        raise ValueError("Targets or predictions hold NaN or infinite values: leave out subjects without a target.")
    result = {
        "mae": float(sk.mean_absolute_error(truth, predicted)),
        "rmse": float(sk.root_mean_squared_error(truth, predicted)),
        "r2": UNDEFINED,
        "pearson_r": UNDEFINED,
    }
    if np.ptp(truth) == 0:
        _warn_undefined("r2 and pearson_r", "all targets are equal")
    else:
        result["r2"] = float(sk.r2_score(truth, predicted))
        if np.ptp(predicted) == 0:
            _warn_undefined("pearson_r", "all predictions are equal")
        else:
            result["pearson_r"] = float(np.corrcoef(truth, predicted)[0, 1])
    return result


def summarise(folds: Sequence[Mapping[str, float]]) -> dict[str, Score]:
    """Collect the metrics of several folds.

    Args:
        folds: one dict of metrics per fold, all with the same names.

    Returns:
        For every metric the mean, the deviation between folds (n - 1 in the denominator; NaN with fewer than two
        folds) and the score of every fold. Folds in which a metric is undefined do not enter its mean, and a warning
        counts them; they stay visible as NaN.

    Raises:
        ValueError: no fold, or folds with different metrics.
    """
    if not folds:
        raise ValueError("There is no fold to summarise; give the metrics of one fold or more.")
    names = list(folds[0])
    for index, fold in enumerate(folds):
        if set(fold) != set(names):
            differing = ", ".join(sorted(set(fold) ^ set(names)))
            raise ValueError(f"Fold {index} and fold 0 do not have the same metrics (differing: {differing}).")
    summary = {}
    for name in names:
        per_fold = [float(fold[name]) for fold in folds]
        defined = [value for value in per_fold if not math.isnan(value)]
        if len(defined) < len(per_fold):
            _warn_undefined(name, f"it has no value in {len(per_fold) - len(defined)} of {len(per_fold)} folds")
        summary[name] = Score(
            mean=float(np.mean(defined)) if defined else UNDEFINED,
            std=float(np.std(defined, ddof=1)) if len(defined) > 1 else UNDEFINED,
            per_fold=per_fold,
        )
    return summary


def _binary_metrics(
    truth: NDArray[np.int64], predicted: NDArray[np.int64], label_names: Sequence[str]
) -> dict[str, float]:
    """Metrics that need one class to be the positive one (index 1)."""
    negative, positive = (str(name) for name in label_names)
    result = {
        "f1_positive": sk.f1_score(truth, predicted, pos_label=1, zero_division=np.nan),
        "sensitivity": sk.recall_score(truth, predicted, pos_label=1, zero_division=np.nan),
        "specificity": sk.recall_score(truth, predicted, pos_label=0, zero_division=np.nan),
    }
    reasons = {
        "f1_positive": f"nobody here is {positive} or was taken for it",
        "sensitivity": f"nobody here has the label {positive}",
        "specificity": f"nobody here has the label {negative}",
    }
    for name, value in result.items():
        if math.isnan(value):
            _warn_undefined(name, reasons[name])
    return result


def _checked_classes(
    labels: ArrayLike, probabilities: ArrayLike, num_classes: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Class indices and probabilities as arrays, with every mistake that a caller can make refused."""
    truth = np.asarray(labels)
    scores = np.asarray(probabilities, dtype=np.float64)
    if num_classes < 2:
        raise ValueError(f"{num_classes} label name was given; classification needs two or more classes.")
    if truth.ndim != 1 or truth.size == 0 or scores.shape != (truth.size, num_classes):
        raise ValueError(
            f"Labels have shape {truth.shape} and probabilities {scores.shape}; with {num_classes} label names needed "
            f"are (subjects,) and (subjects, {num_classes}), for one subject or more."
        )
    if not np.isin(truth, np.arange(num_classes)).all():
        outside = sorted({value.item() for value in truth if value not in range(num_classes)})
        raise ValueError(
            f"Labels must be class indices from 0 to {num_classes - 1}, got {outside}: leave out missing labels."
        )
    if not np.isfinite(scores).all() or scores.min() < 0 or not np.allclose(scores.sum(axis=1), 1, atol=1e-3):
        raise ValueError(
            "Probabilities must be finite, not negative and add up to 1 in every row: apply softmax first."
        )
    # Half-precision softmax misses 1 by up to a thousandth; scikit-learn is stricter than that.
    return truth.astype(np.int64), scores / scores.sum(axis=1, keepdims=True)


def _warn_undefined(metric: str, reason: str) -> None:
    """Say which metric is undefined and why, at the line that called our public function."""
    warnings.warn(f"{metric} undefined: {reason}.", UndefinedMetricWarning, stacklevel=3)
