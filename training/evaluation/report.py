"""What readers see of an evaluation: `results.md` and an HTML report with its pictures, per task."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..files import file_name, write_text
from ..reporting.figures import plot_confusion, plot_roc, plot_training_curves
from ..reporting.plain import markdown_text
from ..reporting.results import (
    CONSTANT,
    HEADLINE_METRICS,
    LCM,
    METRIC_TITLES,
    SCRATCH,
    Results,
    Score,
    TaskResults,
    is_undefined,
    number_text,
)
from ..reporting.tables import results_table_markdown, summary_sentence, table_markdown, write_report
from .design import Design
from .figures import plot_calibration, plot_fold_scores, plot_predicted_against_true
from .summary import pooled_predictions
from .tasks import Task
from .uncertainty import Predictions


Table = list[list[str]]


def write_reports(output: Path, design: Design, results: Results, folds: Sequence[dict[str, Any]]) -> None:
    """Write `results.md`, and `report.html` (after fine-tuning) or a `report_TASK.html` per pretrained variable.

    Args:
        output (`Path`): the evaluation's folder.
        design (`Design`): data and settings.
        results (`Results`): of all tasks.
        folds (`Sequence[dict]`): result of every fold.
    """
    parts = []
    for task in design.recipe.tasks:
        found = results.tasks[task.name]
        tables = further_tables(found)
        parts.append(_markdown(found, tables))
        name = "report.html" if design.recipe.tuning else f"report_{file_name(task.name)}.html"
        write_report(output / name, found, result_figures(design, task, found, folds), tables, results.settings)
    write_text(output / "results.md", "\n\n".join(parts) + "\n")


def further_tables(results: TaskResults) -> dict[str, Table]:
    """Tables beside the main one, by caption: intervals and p-values, groups, best layers, external data sets."""
    tables = {}
    ours = results.models[LCM]
    headline = [metric for metric in HEADLINE_METRICS if metric in ours]
    if any(headline[0] in scores and scores[headline[0]].interval is not None for scores in results.models.values()):
        tables["Pooled predictions: score [95 % interval], p-value"] = _uncertainty(results, headline)
    others = [metric for metric in METRIC_TITLES if metric in ours and metric not in headline]
    positive = results.protocol.get("positive")
    speaks_of = "" if positive is None else f" ({positive} is positive)"
    tables[f"Other metrics{speaks_of}, mean ± standard deviation over folds"] = [
        ["model", *(METRIC_TITLES[metric] for metric in others)],
        *(
            [model, *(_over_folds(metric, scores.get(metric)) for metric in others)]
            for model, scores in results.models.items()
        ),
    ]
    if results.decisions:
        rows = [[model, *(f"{rate:.3f}" for rate in vars(made).values())] for model, made in results.decisions.items()]
        header = ["model", "threshold", "sensitivity", "specificity", "balanced accuracy"]
        caption = "Decisions with a threshold from the subjects of the other folds, both errors weighing alike"
        tables[caption] = [header, *rows]
    metric = results.main_metric
    for column, groups in results.groups.items():
        models = [model for model in next(iter(groups.values())).models if model not in CONSTANT.values()]
        rows = [
            [
                str(value),
                str(group.n_subjects),
                *(number_text(metric, group.models[model][metric]) for model in models),
            ]
            for value, group in groups.items()
        ]
        tables[f"{METRIC_TITLES[metric]} by {column}"] = [[column, "subjects", *models], *rows]
    if results.best_layers:
        layers = Counter(layer + 1 for layer in results.best_layers)
        rows = [[str(layer), str(count)] for layer, count in sorted(layers.items())]
        tables["Layer with the lowest training loss after pretraining"] = [["layer", "folds"], *rows]
    for name, found in results.external.items():
        tables[f"External test on {name}: {found.n_subjects} subjects"] = _uncertainty(found, headline)
    return tables


def _uncertainty(results: TaskResults, metrics: Sequence[str]) -> Table:
    rows = []
    for model, scores in results.models.items():
        if model not in CONSTANT.values() and any(score.pooled is not None for score in scores.values()):
            rows.append([model, *(_uncertain(metric, scores.get(metric)) for metric in metrics)])
    return [["model", *(METRIC_TITLES[metric] for metric in metrics)], *rows]


def _over_folds(metric: str, score: Score | None) -> str:
    if score is None:
        return "-"
    return f"{number_text(metric, score.mean)} ± {number_text(metric, score.std)}"


def _uncertain(metric: str, score: Score | None) -> str:
    """0.705 [0.662, 0.744], p 0.001."""
    if score is None:
        return number_text(metric, None)
    text = number_text(metric, score.pooled)
    if score.interval is not None and not is_undefined(score.interval[0]):
        text += f" [{', '.join(number_text(metric, end) for end in score.interval)}]"
    return text + (f", p {score.p_value:.3f}" if score.p_value is not None else "")


def _markdown(results: TaskResults, tables: Mapping[str, Table]) -> str:
    parts = [f"# {markdown_text(results.title)}", markdown_text(summary_sentence(results))]
    parts += [f"**Note.** {markdown_text(line)}" for line in results.notes]
    parts.append(results_table_markdown(results))
    for caption, table in tables.items():
        parts += [f"**{markdown_text(caption)}**", table_markdown(table)]
    given = {name: _plain(value) for name, value in results.protocol.items() if value != []}
    parts.append("\n".join(f"- {name.replace('_', ' ')}: {markdown_text(text)}" for name, text in given.items()))
    return "\n\n".join(parts)


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def result_figures(
    design: Design, task: Task, results: TaskResults, folds: Sequence[dict[str, Any]]
) -> dict[str, Figure]:
    """The report's pictures by caption."""
    pooled = pooled_predictions(design, task, folds)
    drawn = (
        _classification_figures(task, pooled, folds) if task.is_classification else _regression_figures(task, pooled)
    )
    metric = next(metric for metric in HEADLINE_METRICS if metric in results.models[LCM])
    drawn[f"{METRIC_TITLES[metric]} in every fold"] = plot_fold_scores(
        {name: scores[metric].per_fold for name, scores in results.models.items() if metric in scores},
        METRIC_TITLES[metric],
        results.chance.get(metric),
    )
    for stage in folds[0]["histories"]:
        if ", seed " not in stage:
            drawn[f"Learning curves, {stage}"] = plot_training_curves([fold["histories"][stage] for fold in folds])
    return drawn


def _classification_figures(
    task: Task, pooled: Mapping[str, Predictions], folds: Sequence[dict[str, Any]]
) -> dict[str, Figure]:
    ours = pooled[LCM]
    drawn: dict[str, Figure] = {}
    if task.positive is not None:
        curves = {name: _curves(task, name, folds) for name in pooled if name not in CONSTANT.values()}
        drawn[f"ROC over folds, positive class {task.positive}"] = plot_roc(
            {name: pairs for name, pairs in curves.items() if any(len(np.unique(truth)) == 2 for truth, _ in pairs)}
        )
    drawn["Confusion matrix of LCM, all test folds"] = plot_confusion(ours.truth, ours.values.argmax(1), task.labels)
    shown = {name: each for name, each in pooled.items() if name in (LCM, "linear", SCRATCH)}
    drawn["Calibration: how often the predicted class is right, by its probability"] = plot_calibration(
        {name: (each.truth == each.values.argmax(1), each.values.max(1)) for name, each in shown.items()}
    )
    return drawn


def _regression_figures(task: Task, pooled: Mapping[str, Predictions]) -> dict[str, Figure]:
    shown = {name: each for name, each in pooled.items() if name in (LCM, "linear")}
    return {
        f"Predicted and true {task.name}, all test folds": plot_predicted_against_true(
            {name: (each.truth, each.values) for name, each in shown.items()}, task.name
        )
    }


def _curves(task: Task, model: str, folds: Sequence[dict[str, Any]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per fold true classes (1 = positive) and probabilities of the positive class."""
    tables = [fold["tasks"][task.name]["predictions"] for fold in folds if task.name in fold["tasks"]]
    return [
        ((np.array(table[task.name]) == task.positive).astype(int), np.array(table[f"{model}: {task.positive}"]))
        for table in tables
    ]
