"""Results for readers: one self-contained HTML file, and tables for the terminal and for Markdown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..storage.files import write_text
from .pages import Section, render_page
from .plain import markdown_text
from .results import (
    CONFOUNDS,
    CONSTANT,
    HEADLINE_METRICS,
    LCM,
    MAIN_METRICS,
    METRIC_TITLES,
    UNDEFINED,
    Difference,
    Score,
    TaskResults,
    is_undefined,
    number_text,
)


NOT_MEASURED = "-"
SIGNIFICANT = 0.05
POOLED = "Scores of the predictions of all folds together, with 95 % bootstrap intervals over subjects."


def write_report(
    path: str | Path,
    results: TaskResults,
    figures: Mapping[str, Figure],
    tables: Mapping[str, Sequence[Sequence[str]]] | None = None,
    settings: Mapping[str, Any] | None = None,
    limits: Sequence[str] = (),
    sections: Sequence[Section] = (),
    curves: Mapping[str, Figure] | None = None,
) -> Path:
    """Write results and pictures as one HTML file that needs nothing else: it can be mailed, printed, opened offline.

    The file appears complete or not at all.

    Args:
        path (`str` or `Path`): the HTML file; a previous one is replaced.
        results (`TaskResults`): of one task.
        figures (`Mapping[str, Figure]`): pictures by caption, shown in this order.
        tables (`Mapping[str, Sequence[Sequence[str]]]`, *optional*): further tables by caption, the first row being
            the header; shown below the main one.
        settings (`Mapping[str, Any]`, *optional*): of both stages; a value may be a mapping itself.
        limits (`Sequence[str]`): what the numbers do not say; the notes of the results stand at the top instead.
        sections (`Sequence[Section]`): what else there is to say, after the scores.
        curves (`Mapping[str, Figure]`, *optional*): pictures of the training, after them.

    Returns:
        The path.

    Raises:
        ValueError: results without a model.
    """
    metrics = _all_metrics(results)
    html = render_page(
        "report.html",
        title=results.title,
        verdict=verdict(results),
        summary=POOLED if _pooled_rows(results) else summary_sentence(results),
        header=_header(_headline(results)),
        rows=_pooled_rows(results) or _rows(results, _headline(results)),
        tables=dict(tables or {}),
        figures=figures,
        sections=sections,
        curves=dict(curves or {}),
        protocol=_flat(_without_folders(results.protocol)),
        settings=_flat(_without_folders(settings or {})),
        notes=list(limits),
        warnings=results.notes,
        num_folds=_num_folds(results),
        fold_header=["model", *(f"fold {fold + 1}" for fold in range(_num_folds(results)))],
        folds={
            METRIC_TITLES.get(metric, metric): [
                [model, *(number_text(metric, value) for value in scores[metric].per_fold)]
                for model, scores in results.models.items()
                if metric in scores
            ]
            for metric in metrics
        },
    )
    write_text(path, html)
    return Path(path)


def results_table_text(results: TaskResults) -> str:
    """Table of models and headline metrics for the terminal, mean ± standard deviation over folds.

    Raises:
        ValueError: results without a model.
    """
    table = _table(results, None)
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


def results_table_markdown(results: TaskResults, metrics: Sequence[str] | None = None) -> str:
    """A table in Markdown, for a README or a model card.

    Args:
        results (`TaskResults`): of one task.
        metrics (`Sequence[str]`, *optional*): columns; by default the headline metrics that the results have.

    Raises:
        ValueError: results without a model.
    """
    return table_markdown(_table(results, metrics))


def table_markdown(table: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its header."""
    rows = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join(f"| {' | '.join(map(markdown_text, row))} |" for row in rows)


def _all_metrics(results: TaskResults) -> list[str]:
    """Every metric of any model, in the order of first appearance."""
    if not results.models:
        raise ValueError("The results hold no model: there is nothing to report.")
    return list(dict.fromkeys(metric for scores in results.models.values() for metric in scores))


def _headline(results: TaskResults) -> list[str]:
    """The metrics for the main table: the usual ones, or all where none of the usual was measured."""
    measured = _all_metrics(results)
    return [metric for metric in HEADLINE_METRICS if metric in measured] or measured


def _header(metrics: Sequence[str]) -> list[str]:
    return ["model", *(METRIC_TITLES.get(metric, metric) for metric in metrics)]


def _rows(results: TaskResults, metrics: Sequence[str]) -> list[list[str]]:
    """One row of text per model, and one for chance where it is known."""
    rows = [
        [model, *(_cell(metric, scores.get(metric)) for metric in metrics)] for model, scores in results.models.items()
    ]
    return rows + _last_rows(results, metrics)


def _pooled_rows(results: TaskResults) -> list[list[str]]:
    """The main table as the pictures have it: predictions of all folds together, with intervals; empty without any."""
    metrics = _headline(results)
    if not any(scores[metrics[0]].pooled is not None for scores in results.models.values() if metrics[0] in scores):
        return []
    rows = [
        [model, *(_pooled_cell(model, metric, scores.get(metric)) for metric in metrics)]
        for model, scores in results.models.items()
    ]
    return rows + _last_rows(results, metrics)


def _pooled_cell(model: str, metric: str, score: Score | None) -> str:
    if score is None:
        return NOT_MEASURED
    # What is the same for every subject of a fold has an order only between folds, which says nothing.
    return number_text(metric, score.mean) if model in CONSTANT.values() else score_text(metric, score)


def _last_rows(results: TaskResults, metrics: Sequence[str]) -> list[list[str]]:
    """What chance gives, and LCM minus the best linear model, as far as they are known."""
    known, beside = results.chance, results.difference
    rows = []
    if known:
        rows.append(
            ["chance", *(number_text(name, known[name]) if name in known else NOT_MEASURED for name in metrics)]
        )
    if beside is not None and beside.metric in metrics:
        cells = [_difference(beside) if metric == beside.metric else NOT_MEASURED for metric in metrics]
        rows.append([f"{LCM} minus {beside.baseline}", *cells])
    return rows


def _difference(beside: Difference) -> str:
    """+0.010 [-0.020 to 0.030]: level."""
    value, *ends = (round(number, 3) + 0.0 for number in (beside.value, *(beside.interval or ())))  # never -0.000
    text = f"{value:+.3f}"
    if beside.interval is None:
        return text
    return f"{text} [{ends[0]:.3f} to {ends[1]:.3f}]: {beside.verdict}"


def _table(results: TaskResults, metrics: Sequence[str] | None) -> list[list[str]]:
    columns = _headline(results) if metrics is None else list(metrics)
    return [_header(columns), *_rows(results, columns)]


def _cell(metric: str, score: Score | None) -> str:
    """Mean ± standard deviation, with a remark when folds are missing from it."""
    if score is None:
        return NOT_MEASURED
    if is_undefined(score.mean):
        return UNDEFINED
    text = number_text(metric, score.mean)
    if not is_undefined(score.std):
        text += f" ± {number_text(metric, score.std)}"
    defined = sum(not is_undefined(value) for value in score.per_fold)
    return text if defined == len(score.per_fold) else f"{text} ({defined} of {len(score.per_fold)} folds)"


def _num_folds(results: TaskResults) -> int:
    """Folds behind the numbers: the most that any metric has."""
    return max((len(score.per_fold) for scores in results.models.values() for score in scores.values()), default=0)


def summary_sentence(results: TaskResults) -> str:
    """The result in words: LCM beside the best linear model, and the first headline metric of every model."""
    metric = _headline(results)[0]
    values = [
        f"{model} {_cell(metric, scores[metric])}" for model, scores in results.models.items() if metric in scores
    ]
    if metric in results.chance:
        values.append(f"chance {number_text(metric, results.chance[metric])}")
    folds = _num_folds(results)
    over = f", mean ± standard deviation over {folds} folds of test subjects" if folds > 1 else ""
    verdict = "" if results.difference is None else f"{results.difference.sentence} "
    return f"{verdict}{results.n_subjects} subjects; {METRIC_TITLES.get(metric, metric)}{over}: {', '.join(values)}."


def verdict(results: TaskResults) -> str:
    """The answer in one sentence: what the model does, beside the simple models, and whether it is beyond chance."""
    metric = next((name for name in (*MAIN_METRICS, *_headline(results)) if name in results.models.get(LCM, {})), None)
    if metric is None or results.models[LCM][metric].pooled is None:
        return summary_sentence(results)
    ours = results.models[LCM][metric]
    if results.difference is not None:
        return f"{results.difference.sentence}{_confounds_alone(results, metric)}{_beyond_chance(results, ours)}"
    task, labels = results.protocol.get("task", ""), [str(label) for label in results.protocol.get("labels", [])]
    does = f"predicts {task}"
    if len(labels) == 2:
        positive = str(results.protocol.get("positive", labels[1]))
        does = f"tells {positive} from {next(label for label in labels if label != positive)}"
    elif labels:
        does = f"tells {', '.join(labels[:-1])} and {labels[-1]} apart"
    others = [
        f"{model} {number_text(metric, scores[metric].pooled)}"
        for model, scores in results.models.items()
        if model != LCM and model not in CONSTANT.values() and metric in scores and scores[metric].pooled is not None
    ]
    beside = f"; {', '.join(others)}" if others else ""
    text = f"LCM {does} with {METRIC_TITLES.get(metric, metric)} {score_text(metric, ours)}{beside}."
    return f"{text}{_beyond_chance(results, ours)}"


def _confounds_alone(results: TaskResults, metric: str) -> str:
    """What age, sex, motion and site come to without any FC."""
    alone = results.models.get(CONFOUNDS, {}).get(metric)
    if alone is None or is_undefined(alone.pooled):
        return ""
    return f" {CONFOUNDS[:1].upper()}{CONFOUNDS[1:]}, without FC: {number_text(metric, alone.pooled)}."


def _beyond_chance(results: TaskResults, ours: Score) -> str:
    chance = ""
    if ours.p_value is not None:
        beyond = "beyond chance" if ours.p_value < SIGNIFICANT else "NOT beyond chance"
        chance = f" LCM is {beyond} (p {ours.p_value:.3f})."
    return f"{chance} {results.n_subjects} subjects, each predicted by models that have not seen them."


def score_text(metric: str, score: Score) -> str:
    """A pooled score with its interval: 0.705 [0.662, 0.744]; the mean over folds where none was pooled."""
    if score.pooled is None:
        return number_text(metric, score.mean)
    text = number_text(metric, score.pooled)
    if score.interval is not None and not is_undefined(score.interval[0]):
        text += f" [{', '.join(number_text(metric, end) for end in score.interval)}]"
    return text


def _without_folders(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose paths are cut to their last part: where files lie on this machine is nobody else's business."""
    return {
        name: _without_folders(value)
        if isinstance(value, Mapping)
        else Path(value).name
        if isinstance(value, str) and Path(value).is_absolute()
        else value
        for name, value in values.items()
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Names and values for a two-column list; the names inside a nested dict carry its name in front."""
    lines = []
    for name, value in values.items():
        title = f"{prefix}{name}".replace("_", " ")
        if isinstance(value, Mapping):
            lines += _flat(value, prefix=f"{title}: ")
        elif isinstance(value, (list, tuple)):
            lines.append((title, ", ".join(str(item) for item in value) or "none"))
        elif isinstance(value, bool):
            lines.append((title, "yes" if value else "no"))
        else:
            lines.append(
                (title, "none" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value))
            )
    return lines
