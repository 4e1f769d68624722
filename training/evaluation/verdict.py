"""What an evaluation comes to: LCM beside the best linear model, and what thresholds from other subjects decide."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from modeling_lcm.decisions import calibrate

from ..reporting.results import LCM, Decisions, Difference
from .tasks import Task
from .uncertainty import Predictions, interval


# Linear models that had the labels that LCM had.
LINEAR = ("linear", "linear, log FC", "linear, best", "linear SVM")
LEAST = 1e-9  # a probability of 0 has no logarithm

Resampled = Mapping[str, Mapping[str, NDArray[np.float64]]]


def difference(task: Task, metric: str, pooled: Mapping[str, Predictions], resampled: Resampled) -> Difference | None:
    """LCM's pooled score minus that of the best linear model; None where there is none, or a score is undefined.

    Args:
        task (`Task`): what is predicted.
        metric (`str`): ROC AUC or Pearson r.
        pooled (`Mapping[str, Predictions]`): by model.
        resampled (`Mapping[str, Mapping[str, np.ndarray]]`): bootstrap scores `(resamples,)` by model and metric, the
            same subjects for all; empty without resamples.
    """
    scores = {name: pooled[name].scores()[metric] for name in (LCM, *LINEAR) if name in pooled}
    scores = {name: score for name, score in scores.items() if not np.isnan(score)}
    rivals = [name for name in LINEAR if name in scores]
    if LCM not in scores or not rivals:
        return None
    best = max(rivals, key=lambda name: scores[name])
    value = scores[LCM] - scores[best]
    ends = verdict = None
    if resampled:
        ends = interval(resampled[LCM][metric] - resampled[best][metric])
        verdict = "ahead" if ends[0] > 0 else "behind" if ends[1] < 0 else "level"
    ours = _with_ends(f"{scores[LCM]:.2f}", interval(resampled[LCM][metric]) if resampled else None)
    sentence = (
        f"{_opening(task)} {ours}; the best linear model ({best}) {scores[best]:.2f}; "
        f"difference {_with_ends(_signed(value), ends)}{f': {verdict}' if verdict else ''}."
    )
    return Difference(best, metric, value, sentence, ends, verdict)


def _opening(task: Task) -> str:
    if not task.is_classification:
        return f"LCM's predictions of {task.name} correlate with the truth at r"
    if len(task.labels) > 2:
        return f"LCM tells the {len(task.labels)} labels of {task.name} apart at AUC"
    return f"LCM tells {task.labels[1]} from {task.labels[0]} at AUC"


def _with_ends(text: str, ends: tuple[float, float] | None) -> str:
    return text if ends is None else f"{text} [{_rounded(ends[0])} to {_rounded(ends[1])}]"


def _rounded(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # never -0.00


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"


def decisions(predictions: Predictions) -> Decisions | None:
    """What a model decides between two labels in every fold, with a threshold from the subjects of the other folds.

    Those were predicted without their own labels, but by models of other folds; a threshold is one number, in which
    the tested subjects hardly leave a trace.

    Returns:
        Both kinds of error cost alike. None for more labels than two, a single fold, or other folds with one class.
    """
    if predictions.values.ndim == 1 or predictions.values.shape[1] != 2:
        return None
    scores, is_positive = logit(predictions.values[:, 1].clip(LEAST, 1 - LEAST)), predictions.truth == 1
    decided = np.zeros(len(scores), dtype=bool)
    thresholds = []
    for repeat, fold in np.unique(np.stack([predictions.repeats, predictions.folds]), axis=1).T:
        is_here = predictions.repeats == repeat
        is_tested = is_here & (predictions.folds == fold)
        others = is_here & ~is_tested
        if len(np.unique(is_positive[others])) < 2:
            return None
        line = calibrate(scores[others], is_positive[others])
        decided[is_tested] = line.log_odds(scores[is_tested]) > 0
        thresholds.append(expit(-line.offset / line.slope))
    rates = []
    for repeat in np.unique(predictions.repeats):
        is_here = predictions.repeats == repeat
        sensitivity = decided[is_here & is_positive].mean()
        specificity = (~decided)[is_here & ~is_positive].mean()
        rates.append((sensitivity, specificity, (sensitivity + specificity) / 2))
    sensitivity, specificity, balanced = (float(rate) for rate in np.mean(rates, axis=0))
    return Decisions(float(np.mean(thresholds)), sensitivity, specificity, balanced)
