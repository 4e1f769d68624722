"""What results are called and how their numbers are written."""

import math
from collections.abc import Mapping
from typing import Any


# Models as the tables call them; the baselines' names are beside the baselines.
LCM = "LCM"
SINGLE = "LCM, one seed"  # mean over the members of an ensemble
OPTIMISTIC = "LCM, optimistic"  # best epoch on the test fold
SCRATCH = "LCM from scratch"
CONSTANT = {"classification": "majority", "regression": "mean"}  # predicts the same for every subject

METRIC_TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1 (weighted)",
    "f1_positive": "F1 (positive class)",
    "roc_auc": "ROC AUC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "r2": "R²",
    "pearson_r": "Pearson r",
}


# What a table shows unless it is asked for more; the first that the results have also makes the summary sentence.
HEADLINE_METRICS = ("roc_auc", "accuracy", "balanced_accuracy", "f1", "mae", "r2", "pearson_r")


# These are in the unit of the target, where two decimals say enough.
METRICS_WITH_UNIT = ("mae", "rmse")


UNDEFINED = "undefined"


def by_task(results: Mapping[str, Any]) -> dict[str, Any]:
    """The results of every task in a `metrics.json`, whether it has one or several."""
    if "tasks" in results:
        return dict(results["tasks"])
    return {results["protocol"].get("task", ""): results}


def number_text(metric: str, value: float | None) -> str:
    """A score with as many decimals as make sense for the metric."""
    if value is None or math.isnan(value):
        return UNDEFINED
    return f"{value:.2f}" if metric in METRICS_WITH_UNIT else f"{value:.3f}"


def _is_undefined(value: float | None) -> bool:
    return value is None or math.isnan(value)
