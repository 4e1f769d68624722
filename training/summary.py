"""The folds of an evaluation -> metrics.json and the tables of predictions."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from .metrics import summarise
from .protocol import Design, Task
from .splits import Folds


def summary(design: Design, folds: Sequence[Folds], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What `metrics.json` holds.

    Args:
        design (`Design`): data and settings.
        folds (`Sequence[Folds]`): of every repeat.
        results (`Sequence[dict]`): of every fold, as `run_fold` returns them.

    Returns:
        After fine-tuning: `title`, `protocol`, `n_subjects`, `n_scans`, `models` (per model and metric mean, std and
        per_fold) and `settings`. For pretrained variables: `title`, `protocol`, `settings`, and the same per variable
        in `tasks`.
    """
    protocol = _protocol(design, folds)
    tasks = {task.name: _task_summary(design, task, protocol, results) for task in design.tasks}
    settings = {
        "pretraining": asdict(design.pretraining) if design.pretraining else None,
        "fine-tuning": asdict(design.tuning) if design.tuning else None,
    }
    if design.tuning is not None:
        return {**tasks[design.tasks[0].name], "settings": settings}
    return {
        "title": design.arguments.title,
        "protocol": protocol,
        "n_subjects": int(design.table["subject_id"].nunique()),
        "n_scans": design.num_tested,
        "tasks": tasks,
        "settings": settings,
    }


def by_task(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The results of every task in a `metrics.json`, whether it has one or several."""
    if "tasks" in metrics:
        return metrics["tasks"]
    return {metrics["protocol"]["task"]: metrics}


def prediction_table(results: Sequence[dict[str, Any]], task: str) -> pd.DataFrame:
    """All test predictions of a task, one row per scan (and repeat)."""
    parts = [pd.DataFrame(result["tasks"][task]["predictions"]) for result in results if task in result["tasks"]]
    return pd.concat(parts, ignore_index=True)


def _task_summary(
    design: Design, task: Task, protocol: dict[str, Any], results: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    scored = [result["tasks"][task.name] for result in results if task.name in result["tasks"]]
    found = {
        "title": design.arguments.title if design.tuning else f"{design.arguments.title}: {task.name}",
        "protocol": {"task": task.name, "labels": list(task.labels), **protocol},
        "n_subjects": int(design.table["subject_id"][task.recorded].nunique()),
        "n_scans": int(task.recorded.sum()),
        "models": {
            name: summarise([_with_nan(result["metrics"][name]) for result in scored]) for name in scored[0]["metrics"]
        },
    }
    if "members" in scored[0]:
        found["members"] = [[_with_nan(member) for member in result["members"]] for result in scored]
    return found


def _protocol(design: Design, folds: Sequence[Folds]) -> dict[str, Any]:
    """How the numbers came about, in words."""
    arguments, stage = design.arguments, design.tuning or design.pretraining
    by = folds[0].stratified_by
    split = "by subject"
    if arguments.splits is not None:
        split = f"by subject, from {arguments.splits}"
    elif arguments.split == "leave_site_out":
        split = f"one {arguments.site_column} left out at a time"
    elif by is not None:
        split = f"by subject, balanced by {'the task' if design.tuning and by == design.tuning.task else by}"
    protocol = {
        "folds": len(folds[0].test_subjects),
        "split": split,
        "split_checksum": folds[0].checksum if len(folds) == 1 else [each.checksum for each in folds],
        "epoch": "chosen on validation subjects of the training fold" if stage.validation_fraction else "last epoch",
        "pretraining": (
            "in every fold, on its training subjects only" if design.pretraining else design.tuning.checkpoint
        ),
    }
    if design.tuning is not None:
        few = design.tuning.labels_per_class
        protocol["labelled_training_scans"] = "all of the training fold" if few is None else f"{few} per class"
    if len(folds) > 1:
        protocol["repeats"] = f"{len(folds)}, each with its own fold seed and training seed"
    if arguments.ensemble > 1:
        protocol["ensemble"] = f"LCM is the mean prediction of {arguments.ensemble} training seeds per fold"
    if arguments.same_person is not None:
        protocol["same_person"] = f"scans with one value of {arguments.same_person} stay on one side"
    if arguments.train_data:
        protocol["other_cohorts"] = (
            f"{len(design.cohort.table) - design.num_tested} scans of {', '.join(arguments.train_data)} join the "
            "pretraining, without people who are tested in the fold"
        )
    if arguments.harmonise is not None:
        protocol["harmonised"] = f"across {arguments.harmonise}, fitted on training scans"
    return protocol


def _with_nan(metrics: dict[str, float | None]) -> dict[str, float]:
    """JSON has no NaN: an undefined metric was written as null."""
    return {name: float("nan") if value is None else value for name, value in metrics.items()}
