"""Results for people: one self-contained HTML file, and tables for the terminal and for Markdown.

All three read the same `results`:

    {"title": str, "protocol": {name: value}, "n_subjects": int,
     "models": {model: {metric: {"mean": float, "std": float, "per_fold": [float]}}},
     "chance": {metric: float}, "settings": {name: value, or a dict of them}, "notes": [str],
     "warnings": [str]}

The last three may be missing. NaN and None (what JSON makes of it) both mean that a metric is undefined.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..files import write_text
from .pages import render_page
from .results import HEADLINE_METRICS, METRIC_TITLES, UNDEFINED, _is_undefined, number_text


NOT_MEASURED = "-"
REQUIRED_KEYS = ("title", "protocol", "n_subjects", "models")


def write_report(
    path: str | Path,
    results: Mapping[str, Any],
    figures: Mapping[str, Figure],
    tables: Mapping[str, Sequence[Sequence[str]]] | None = None,
) -> Path:
    """Write results and pictures as one HTML file that needs nothing else: it can be mailed, printed, opened offline.

    The file appears complete or not at all.

    Args:
        path: the HTML file; a previous one is replaced.
        results: see the top of this module.
        figures: pictures by caption, shown in this order.
        tables: further tables by caption, the first row being the header; shown below the main one.

    Returns:
        The path.

    Raises:
        ValueError: results without one of their required parts, or without a model.
    """
    _check(results)
    metrics = _all_metrics(results)
    html = render_page(
        "report.html",
        title=results["title"],
        summary=summary_sentence(results),
        header=_header(_headline(results)),
        rows=_rows(results, _headline(results)),
        tables=dict(tables or {}),
        figures=figures,
        protocol=_flat(results["protocol"]),
        settings=_flat(results.get("settings") or {}),
        notes=list(results.get("notes") or []),
        warnings=list(results.get("warnings") or []),
        num_folds=_num_folds(results),
        fold_header=["model", *(f"fold {fold + 1}" for fold in range(_num_folds(results)))],
        folds={
            METRIC_TITLES.get(metric, metric): [
                [model, *(number_text(metric, value) for value in summaries[metric]["per_fold"])]
                for model, summaries in results["models"].items()
                if metric in summaries
            ]
            for metric in metrics
        },
    )
    write_text(path, html)
    return Path(path)


def results_table_text(results: Mapping[str, Any]) -> str:
    """Table of models and headline metrics for the terminal, mean ± standard deviation over folds.

    Args:
        results: see the top of this module.

    Raises:
        ValueError: results without one of their required parts, or without a model.
    """
    table = _table(results, None)
    widths = [max(len(cell) for cell in column) for column in zip(*table, strict=True)]
    table.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    )


def results_table_markdown(results: Mapping[str, Any], metrics: Sequence[str] | None = None) -> str:
    """A table in Markdown, for a README or a model card.

    Args:
        results: see the top of this module.
        metrics: columns; by default the headline metrics that the results have.

    Raises:
        ValueError: results without one of their required parts, or without a model.
    """
    return table_markdown(_table(results, metrics))


def table_markdown(table: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; the first row is its header."""
    rows = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join(f"| {' | '.join(map(markdown_cell, row))} |" for row in rows)


def markdown_cell(value: Any) -> str:
    """Text inside a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _check(results: Mapping[str, Any]) -> None:
    """Refuse results that lack a part, before anything is rendered."""
    missing = [key for key in REQUIRED_KEYS if key not in results]
    if missing:
        raise ValueError(f"The results lack {', '.join(missing)}; needed are {', '.join(REQUIRED_KEYS)}.")
    if not results["models"]:
        raise ValueError("The results hold no model: there is nothing to report.")


def _all_metrics(results: Mapping[str, Any]) -> list[str]:
    """Every metric of any model, in the order of first appearance."""
    return list(dict.fromkeys(metric for summaries in results["models"].values() for metric in summaries))


def _headline(results: Mapping[str, Any]) -> list[str]:
    """The metrics for the main table: the usual ones, or all where none of the usual was measured."""
    measured = _all_metrics(results)
    return [metric for metric in HEADLINE_METRICS if metric in measured] or measured


def _header(metrics: Sequence[str]) -> list[str]:
    return ["model", *(METRIC_TITLES.get(metric, metric) for metric in metrics)]


def _rows(results: Mapping[str, Any], metrics: Sequence[str]) -> list[list[str]]:
    """One row of text per model, and one for chance where it is known."""
    rows = [
        [model, *(_cell(metric, summaries.get(metric)) for metric in metrics)]
        for model, summaries in results["models"].items()
    ]
    chance = results.get("chance") or {}
    if chance:
        rows.append(
            [
                "chance",
                *(number_text(metric, chance[metric]) if metric in chance else NOT_MEASURED for metric in metrics),
            ]
        )
    return rows


def _table(results: Mapping[str, Any], metrics: Sequence[str] | None) -> list[list[str]]:
    _check(results)
    columns = _headline(results) if metrics is None else list(metrics)
    return [_header(columns), *_rows(results, columns)]


def _cell(metric: str, summary: Mapping[str, Any] | None) -> str:
    """Mean ± standard deviation, with a remark when folds are missing from it."""
    if summary is None:
        return NOT_MEASURED
    if _is_undefined(summary["mean"]):
        return UNDEFINED
    text = number_text(metric, summary["mean"])
    if not _is_undefined(summary.get("std")):
        text += f" ± {number_text(metric, summary['std'])}"
    per_fold = summary.get("per_fold") or []
    defined = sum(not _is_undefined(value) for value in per_fold)
    return text if defined == len(per_fold) else f"{text} ({defined} of {len(per_fold)} folds)"


def _num_folds(results: Mapping[str, Any]) -> int:
    """Folds behind the numbers: the most that any metric has."""
    summaries = [summary for model in results["models"].values() for summary in model.values()]
    return max((len(summary.get("per_fold") or []) for summary in summaries), default=0)


def summary_sentence(results: Mapping[str, Any]) -> str:
    """The result in one sentence: the first headline metric of every model."""
    metric = _headline(results)[0]
    values = [
        f"{model} {_cell(metric, summaries[metric])}"
        for model, summaries in results["models"].items()
        if metric in summaries
    ]
    chance = (results.get("chance") or {}).get(metric)
    if chance is not None:
        values.append(f"chance {number_text(metric, chance)}")
    folds = _num_folds(results)
    over = f", mean ± standard deviation over {folds} folds of test subjects" if folds > 1 else ""
    return f"{results['n_subjects']} people; {METRIC_TITLES.get(metric, metric)}{over}: {', '.join(values)}."


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
