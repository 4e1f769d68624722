"""Pictures of an evaluation's predictions: calibration, scores of the folds, predicted against true values."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from ..reporting.figures import COLOURS, WIDTH_INCHES, _tidy
from .metrics import CALIBRATION_BINS, calibration_bins


FEWEST = 5  # predictions in a bin that is drawn


def plot_calibration(models: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> Figure:
    """Share of right predictions by the probability of the predicted class; larger dots hold more predictions.

    Args:
        models: per model whether each prediction is right `(scans,)` and its probability `(scans,)`.
    """
    figure = Figure(figsize=(5.0, 5.0), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="perfectly calibrated")
    for index, (name, (right, probability)) in enumerate(models.items()):
        correct, confidence = np.asarray(right, dtype=float), np.asarray(probability, dtype=float)
        bins = calibration_bins(confidence)
        counts = np.bincount(bins, minlength=CALIBRATION_BINS)
        full = np.flatnonzero(counts >= FEWEST)
        x = [confidence[bins == number].mean() for number in full]
        y = [correct[bins == number].mean() for number in full]
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(x, y, color=colour, linewidth=1.6, label=name)
        axes.scatter(x, y, s=12 + 160 * counts[full] / len(bins), color=colour, alpha=0.7, linewidths=0)
    axes.set(
        xlabel="probability of the predicted class", ylabel="share that is right",
        xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal",
    )  # fmt: skip
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    _tidy(axes)
    return figure


def plot_fold_scores(models: Mapping[str, Sequence[float | None]], metric: str, chance: float | None = None) -> Figure:
    """One dot per fold and model, a bar at the mean.

    Args:
        models: per model its score in every fold; None or NaN where it is undefined.
        metric: name for the axis.
        chance (`float`, *optional*): score without any knowledge of a subject.
    """
    figure = Figure(figsize=(5.0, 1.2 + 0.5 * len(models)), layout="constrained")
    axes = figure.subplots()
    rng = np.random.default_rng(0)
    for row, scores in enumerate(models.values()):
        values = np.array([np.nan if score is None else score for score in scores], dtype=float)
        values = values[~np.isnan(values)]
        colour = COLOURS[row % len(COLOURS)]
        jitter = rng.uniform(-0.15, 0.15, len(values)) if len(values) > 1 else np.zeros(len(values))
        axes.scatter(values, row + jitter, s=22, color=colour, alpha=0.65, linewidths=0)
        if len(values):
            axes.plot([values.mean()] * 2, [row - 0.3, row + 0.3], color=colour, linewidth=2.5)
    if chance is not None:
        axes.axvline(chance, color="0.5", linestyle="--", linewidth=1, label="chance")
        axes.legend(frameon=False, fontsize=9, loc="lower right", bbox_to_anchor=(1, 1))
    axes.set_yticks(range(len(models)), list(models))
    axes.set(xlabel=metric, ylim=(len(models) - 0.4, -0.6))
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    _tidy(axes)
    return figure


def plot_predicted_against_true(models: Mapping[str, tuple[ArrayLike, ArrayLike]], name: str) -> Figure:
    """A panel per model: a dot per scan, and the line on which predictions would be right.

    Args:
        models: per model true and predicted values `(scans,)`.
        name: what is predicted, for the axes.
    """
    figure = Figure(figsize=(WIDTH_INCHES, 3.7), layout="constrained")
    panels = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
    for index, (axes, (model, (true, predicted))) in enumerate(zip(panels, models.items(), strict=True)):
        truth, values = np.asarray(true, dtype=float), np.asarray(predicted, dtype=float)
        axes.axline((truth.mean(), truth.mean()), slope=1, color="0.6", linestyle="--", linewidth=1)
        axes.scatter(truth, values, s=9, alpha=0.45, color=COLOURS[index % len(COLOURS)], linewidths=0)
        axes.set(title=model, xlabel=f"true {name}", ylabel=f"predicted {name}" if index == 0 else "")
        _tidy(axes)
    return figure
