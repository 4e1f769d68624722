"""What readers see of an evaluation: `results.md` and an HTML report with its pictures, per task."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..reporting.figures import plot_confusion, plot_roc, plot_training_curves
from ..reporting.pages import Section
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
    number_text,
)
from ..reporting.tables import (
    results_table_markdown,
    score_text,
    summary_sentence,
    table_markdown,
    write_report,
)
from ..storage.files import file_name, write_text
from .design import Design
from .figures import plot_calibration, plot_fold_scores, plot_predicted_against_true
from .summary import pooled_predictions
from .table_one import table_one
from .tasks import Task
from .uncertainty import Predictions


Table = list[list[str]]
POOLED = "Pooled predictions: score [95 % interval], p-value"


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
        details = task_details(design, task, found, folds)
        parts.append(_markdown(found, details.tables))
        name = "report.html" if design.recipe.is_one_tuning else f"report_{file_name(task.name)}.html"
        write_report(
            output / name, found, details.figures, details.tables, results.settings, (), details.sections,
            details.curves,
        )  # fmt: skip
    write_text(output / "results.md", "\n\n".join(parts) + "\n")


@dataclass(frozen=True)
class Details:
    """What a page shows of a task, beside its scores.

    Args:
        figures (`dict[str, Figure]`): pictures of the results.
        tables (`dict[str, Table]`): further tables of scores.
        sections (`list[Section]`): the subjects.
        curves (`dict[str, Figure]`): pictures of the training.
    """

    figures: dict[str, Figure]
    tables: dict[str, Table]
    sections: list[Section]
    curves: dict[str, Figure]


def task_details(design: Design, task: Task, results: TaskResults, folds: Sequence[dict[str, Any]]) -> Details:
    """Make the pictures and tables of a task.

    Args:
        design (`Design`): data and settings.
        task (`Task`): what was predicted.
        results (`TaskResults`): its scores.
        folds (`Sequence[dict]`): result of every fold.
    """
    pooled = pooled_predictions(design, task, folds)
    # The page has the pooled scores in its main table; the spread over folds and p-values are for who looks further.
    tables = threshold_tables(task, pooled[LCM]) | further_tables(results)
    headline = [metric for metric in HEADLINE_METRICS if metric in results.models[LCM]]
    if tables.pop(POOLED, None) is not None:
        tables |= {
            "Mean ± standard deviation over folds": [
                ["model", *(METRIC_TITLES[metric] for metric in headline)],
                *(
                    [name, *(_over_folds(metric, scores.get(metric)) for metric in headline)]
                    for name, scores in results.models.items()
                ),
            ],
        } | _p_values(results, headline)
    figures = result_figures(task, results, pooled, folds)
    return Details(figures, tables, [_who(design, task)], learning_curves(folds))


def further_tables(results: TaskResults) -> dict[str, Table]:
    """Tables beside the main one, by caption: intervals and p-values, groups, best layers, external data sets."""
    tables = {}
    ours = results.models[LCM]
    headline = [metric for metric in HEADLINE_METRICS if metric in ours]
    if any(headline[0] in scores and scores[headline[0]].interval is not None for scores in results.models.values()):
        tables[POOLED] = _uncertainty(results, headline)
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


def _p_values(results: TaskResults, metrics: Sequence[str]) -> dict[str, Table]:
    rows = [
        [name, *(_p_text(scores.get(metric)) for metric in metrics)]
        for name, scores in results.models.items()
        if any(score.p_value is not None for score in scores.values()) and name not in CONSTANT.values()
    ]
    header = ["model", *(METRIC_TITLES[metric] for metric in metrics)]
    return {"p-values against shuffled labels": [header, *rows]} if rows else {}


def _p_text(score: Score | None) -> str:
    return "-" if score is None or score.p_value is None else f"{score.p_value:.3f}"


def _over_folds(metric: str, score: Score | None) -> str:
    if score is None:
        return "-"
    return f"{number_text(metric, score.mean)} ± {number_text(metric, score.std)}"


def _uncertain(metric: str, score: Score | None) -> str:
    """0.705 [0.662, 0.744], p 0.001."""
    if score is None:
        return number_text(metric, None)
    return score_text(metric, score) + (f", p {score.p_value:.3f}" if score.p_value is not None else "")


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
    task: Task, results: TaskResults, pooled: Mapping[str, Predictions], folds: Sequence[dict[str, Any]]
) -> dict[str, Figure]:
    """Pictures of the results by caption, the most telling first.

    Args:
        task (`Task`): what was predicted.
        results (`TaskResults`): its scores.
        pooled (`Mapping[str, Predictions]`): per model, see [`pooled_predictions`].
        folds (`Sequence[dict]`): result of every fold.
    """
    make = _classification_figures if task.is_classification else _regression_figures
    drawn = make(task, results, pooled, folds)
    metric = results.main_metric
    scores = {name: scores[metric].per_fold for name, scores in results.models.items() if metric in scores}
    figure = plot_fold_scores(scores, METRIC_TITLES[metric], results.chance.get(metric))
    figure.set_label(f"{METRIC_TITLES[metric]} in every fold. " + _in_words(results, metric))
    drawn[f"{METRIC_TITLES[metric]} in every fold; the bar is their mean"] = figure
    return drawn


def _in_words(results: TaskResults, metric: str) -> str:
    """The scores of all models as text, for readers who do not see the picture."""
    return "; ".join(
        f"{model}: {number_text(metric, scores[metric].mean)} on average"
        for model, scores in results.models.items()
        if metric in scores
    )


def learning_curves(folds: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """Pictures of the training by caption."""
    stages = [stage for stage in folds[0]["histories"] if ", seed " not in stage]
    drawn = {}
    for stage in stages:
        histories = [fold["histories"][stage] for fold in folds]
        if not any(histories):  # a closed form has no epochs
            continue
        figure = plot_training_curves(histories)
        last = [history[-1]["train_loss"] for history in histories if history]
        figure.set_label(f"Training loss of {stage} by epoch; in the end it is {np.mean(last):.3g} on average.")
        drawn[f"Loss by epoch, {stage}"] = figure
    return drawn


def threshold_tables(task: Task, ours: Predictions) -> dict[str, Table]:
    """Sensitivity and specificity of LCM at several thresholds of the positive label's probability."""
    if task.positive is None:
        return {}
    share, is_positive = ours.values[:, 1], ours.truth == 1
    wanted = {
        "the more probable label": 0.5,
        "sensitivity of 90 % or more": float(np.quantile(share[is_positive], 0.1, method="lower")),
        "specificity of 90 % or more": float(np.quantile(share[~is_positive], 0.9, method="higher")) + 1e-9,
    }
    rows = [["chosen for", f"threshold for {task.positive}", "sensitivity", "specificity", "decided rightly"]]
    for name, threshold in wanted.items():
        decided = share >= threshold
        rates = (decided[is_positive].mean(), (~decided[~is_positive]).mean(), (decided == is_positive).mean())
        rows.append([name, f"{threshold:.2f}", *(f"{rate:.0%}" for rate in rates)])
    return {"Thresholds, on the left-out predictions themselves: for other scans they are a little worse": rows}


def _who(design: Design, task: Task) -> Section:
    """Table 1: subjects by label, or by half of the values."""
    tested = task.known(design.tested)
    truth, labels = task.truth(tested), list(task.labels)
    if not task.is_classification:
        labels = ["lower half", "upper half"]
        truth = (truth > np.median(truth)).astype(int)
    columns = [name for name in dict.fromkeys(("sex", design.recipe.arguments.site_column)) if name != task.name]
    rows, sentences = table_one(
        tested.table.drop(columns=task.name), [labels[index] for index in truth], labels, columns
    )
    return Section("Subjects", sentences, tables={f"Table 1: subjects by {task.name}": rows} if rows[1:] else {})


def _classification_figures(
    task: Task, results: TaskResults, pooled: Mapping[str, Predictions], folds: Sequence[dict[str, Any]]
) -> dict[str, Figure]:
    ours = pooled[LCM]
    drawn: dict[str, Figure] = {}
    if task.positive is not None:
        curves = {name: _curves(task, name, folds) for name in pooled if name not in CONSTANT.values()}
        curves = {name: each for name, each in curves.items() if any(len(np.unique(truth)) == 2 for truth, _ in each)}
        areas = {name: score_text("roc_auc", results.models[name]["roc_auc"]) for name in curves}
        figure = plot_roc(curves, areas)
        figure.set_label("ROC curves. Area: " + "; ".join(f"{name} {text}" for name, text in areas.items()))
        drawn[f"ROC of all left-out predictions, positive label {task.positive}; thin lines: folds"] = figure
    figure = plot_confusion(ours.truth, ours.values.argmax(1), task.labels)
    right = [f"{np.mean(ours.values[ours.truth == n].argmax(1) == n):.0%} of {x}" for n, x in enumerate(task.labels)]
    figure.set_label(f"Confusion matrix of LCM. Decided rightly: {', '.join(right)}.")
    drawn["Confusion of LCM, all left-out predictions; colour is the share of the true label"] = figure
    shown = _shown(results, pooled, SCRATCH)
    figure = plot_calibration(
        {name: (each.truth == each.values.argmax(1), each.values.max(1)) for name, each in shown.items()}
    )
    errors = [f"{name} {number_text('ece', results.models[name]['ece'].mean)}" for name in shown]
    figure.set_label(f"Calibration. Mean distance from the diagonal: {', '.join(errors)}.")
    drawn["Calibration: how often the predicted label is right, by its probability; larger dots hold more"] = figure
    return drawn


def _shown(results: TaskResults, pooled: Mapping[str, Predictions], *further: str) -> dict[str, Predictions]:
    """LCM and the best linear model, where a picture of all would be crowded."""
    linear = "linear" if results.difference is None else results.difference.baseline
    return {name: each for name, each in pooled.items() if name in (LCM, linear, *further)}


def _regression_figures(
    task: Task, results: TaskResults, pooled: Mapping[str, Predictions], folds: Sequence[dict[str, Any]]
) -> dict[str, Figure]:
    shown = _shown(results, pooled)
    figure = plot_predicted_against_true({name: (each.truth, each.values) for name, each in shown.items()}, task.name)
    scores = [f"{name} {number_text('pearson_r', results.models[name]['pearson_r'].mean)}" for name in shown]
    figure.set_label(f"Predicted against true {task.name}. Correlation: {', '.join(scores)}.")
    return {f"Predicted and true {task.name}, all left-out predictions": figure}


def _curves(task: Task, model: str, folds: Sequence[dict[str, Any]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per fold true classes (1 = positive) and probabilities of the positive class."""
    tables = [fold["tasks"][task.name]["predictions"] for fold in folds if task.name in fold["tasks"]]
    return [
        ((np.array(table[task.name]) == task.positive).astype(int), np.array(table[f"{model}: {task.positive}"]))
        for table in tables
    ]
