"""Measured results for a card: checked, and as the `model-index` entries that the Hub shows."""

import json
import math
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from training.report import METRIC_TITLES


MODEL = "LCM"  # how training.evaluate calls the model
CHANCE_MODELS = ("majority", "mean")
# Metrics in the model-index, by the names that the Hub knows.
HUB_METRICS = {
    "roc_auc": "roc_auc",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced_accuracy",
    "f1": "f1",
    "mae": "mae",
    "r2": "r2",
    "pearson_r": "pearsonr",
}


def load_results(path: str | Path) -> dict[str, Any]:
    """The content of a `metrics.json` of training.evaluate, checked.

    Raises:
        ValueError: it is not one, or lacks the number of people, the folds, chance, or the linear model.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as the metrics of training.evaluate: {error}") from error
    missing = [name for name in ("title", "protocol", "n_subjects", "models") if not results.get(name)]
    models = results.get("models") or {}
    if MODEL not in models:
        missing.append(f"the model {MODEL!r}")
    if not any(name.startswith("linear") for name in models):
        missing.append("a linear baseline")
    if not any(name in models for name in CHANCE_MODELS):
        missing.append("chance (the majority class, or the mean)")
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: results are only shown beside baselines.")
    return results


def eval_results(results: dict[str, Any], dataset_name: str) -> list[EvalResult]:
    """Every defined metric of the model; its name carries folds, spread and baselines: the Hub shows one number."""
    protocol = results["protocol"]
    found = []
    for metric, hub_name in HUB_METRICS.items():
        summary = results["models"][MODEL].get(metric)
        if summary is None or summary["mean"] is None or not math.isfinite(summary["mean"]):
            continue
        others = [
            f"{name} {entry[metric]['mean']:.3f}"
            for name, entry in results["models"].items()
            if name != MODEL and metric in entry and entry[metric]["mean"] is not None
        ]
        folds = len(summary["per_fold"])
        spread = f", std {summary['std']:.3f}" if summary.get("std") is not None else ""
        found.append(
            EvalResult(
                task_type="other",
                task_name=f"{protocol.get('task', 'prediction')} from functional connectivity",
                dataset_type="other",
                dataset_name=f"{dataset_name} (n={results['n_subjects']})",
                metric_type=hub_name,
                # A plain float: a NumPy one would be written as a Python object.
                metric_value=float(summary["mean"]),
                metric_name=f"{METRIC_TITLES[metric]}, mean of {folds} folds{spread} ({'; '.join(others)})",
            )
        )
    if not found:
        raise ValueError(f"None of the metrics {', '.join(HUB_METRICS)} is defined for {MODEL}: nothing to show.")
    return found
