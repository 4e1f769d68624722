"""Measured results for a card: checked, and as the `model-index` entries that the Hub shows."""

import math
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from training.reporting.results import CONSTANT, LCM, METRIC_TITLES, Results, TaskResults
from training.reporting.tables import results_table_markdown


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


def load_results(path: str | Path) -> Results:
    """The content of a `metrics.json` of training.evaluate, checked.

    Raises:
        ValueError: it is not one, or lacks the number of subjects, the folds, chance, or the linear model.
    """
    results = Results.load(path)
    missing = []
    for task, found in results.tasks.items():
        if LCM not in found.models:
            missing.append(f"the model {LCM!r} of {task!r}")
        if not any(name.startswith("linear") for name in found.models):
            missing.append(f"a linear baseline of {task!r}")
        if not any(name in found.models for name in CONSTANT.values()):
            missing.append(f"chance (the majority class, or the mean) of {task!r}")
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: results are only shown beside baselines.")
    return results


def results_table(results: Results) -> str:
    """The table of all models in Markdown; of several variables, one each with its name above."""
    tables = {task: results_table_markdown(found) for task, found in results.tasks.items()}
    if len(tables) == 1:
        return next(iter(tables.values()))
    return "\n\n".join(f"**{task}**\n\n{table}" for task, table in tables.items())


def shown_results(results: Results) -> dict[str, Any]:
    """What a card shows: `title`, `n_subjects`, `n_scans`, `protocol`, `notes` and the `table` of all models."""
    whole: Results | TaskResults = results
    if len(results.tasks) == 1:
        (whole,) = results.tasks.values()
        lines = whole.notes
    else:
        lines = [f"{task}: {note}" for task, found in results.tasks.items() for note in found.notes]
    return {
        "title": whole.title,
        "n_subjects": whole.n_subjects,
        "n_scans": whole.n_scans,
        "protocol": whole.protocol,
        "notes": lines,
        "table": results_table(results),
    }


def eval_results(results: Results, dataset_name: str) -> list[EvalResult]:
    """Every defined metric of the model; its name carries folds, spread and baselines: the Hub shows one number."""
    entries = [entry for task in results.tasks.values() for entry in _entries(task, dataset_name)]
    if not entries:
        raise ValueError(f"None of the metrics {', '.join(HUB_METRICS)} is defined for {LCM}: nothing to show.")
    return entries


def _entries(results: TaskResults, dataset_name: str) -> list[EvalResult]:
    """The entries of one task."""
    entries = []
    for metric, hub_name in HUB_METRICS.items():
        score = results.models[LCM].get(metric)
        if score is None or not math.isfinite(score.mean):
            continue
        others = [
            f"{name} {scores[metric].mean:.3f}"
            for name, scores in results.models.items()
            if name != LCM and metric in scores and math.isfinite(scores[metric].mean)
        ]
        spread = f", std {score.std:.3f}" if math.isfinite(score.std) else ""
        entries.append(
            EvalResult(
                task_type="other",
                task_name=f"{results.protocol.get('task', 'prediction')} from functional connectivity",
                dataset_type="other",
                dataset_name=f"{dataset_name} (n={results.n_subjects})",
                metric_type=hub_name,
                # A plain float: a NumPy one would be written as a Python object.
                metric_value=float(score.mean),
                metric_name=(
                    f"{METRIC_TITLES[metric]}, mean of {len(score.per_fold)} folds{spread} ({'; '.join(others)})"
                ),
            )
        )
    return entries


def score_rows(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Scores of training.open_weights as texts: AUC and balanced accuracy, or r and mean absolute error."""
    rows = []
    for row in scores:
        if "auc" in row:
            shown = {"score": f"AUC {row['auc']:.3f}", "more": f"balanced accuracy {row['balanced_accuracy']:.3f}"}
        else:
            shown = {"score": f"r {row['r']:.3f}", "more": f"mean absolute error {row['mae']:.1f}"}
        rows.append(row | shown)
    return rows
