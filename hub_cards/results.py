"""Measured results for a card: checked, and as the `model-index` entries that the Hub shows."""

import json
import math
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from training.reporting.results import METRIC_TITLES, by_task
from training.reporting.tables import results_table_markdown


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
    missing = [name for name in ("title", "protocol", "n_subjects") if not results.get(name)]
    for task, found in by_task(results).items() if not missing else ():
        models = found.get("models") or {}
        of = f" of {task!r}" if "tasks" in results else ""
        if MODEL not in models:
            missing.append(f"the model {MODEL!r}{of}")
        if not any(name.startswith("linear") for name in models):
            missing.append(f"a linear baseline{of}")
        if not any(name in models for name in CHANCE_MODELS):
            missing.append(f"chance (the majority class, or the mean){of}")
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: results are only shown beside baselines.")
    return results


def results_table(results: dict[str, Any]) -> str:
    """The table of all models in Markdown; of a pretrained checkpoint, one per variable with its name above."""
    if "tasks" not in results:
        return results_table_markdown(results)
    return "\n\n".join(f"**{task}**\n\n{results_table_markdown(found)}" for task, found in results["tasks"].items())


def eval_results(results: dict[str, Any], dataset_name: str) -> list[EvalResult]:
    """Every defined metric of the model; its name carries folds, spread and baselines: the Hub shows one number."""
    found = [entry for task in by_task(results).values() for entry in _entries(task, dataset_name)]
    if not found:
        raise ValueError(f"None of the metrics {', '.join(HUB_METRICS)} is defined for {MODEL}: nothing to show.")
    return found


def _entries(results: dict[str, Any], dataset_name: str) -> list[EvalResult]:
    """The entries of one task."""
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
    return found
