"""The folds of an evaluation -> metrics.json and the tables of predictions."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.exceptions import UndefinedMetricWarning

from ..data.cohort import Cohort
from ..data.folds import Folds
from ..reporting.results import CONSTANT, HEADLINE_METRICS, MEAN_OF_GROUPS, Group, Results, Score, TaskResults
from ..storage.files import file_name
from ..trainer.arguments import FinetuneArguments, PretrainArguments
from .design import Design
from .metrics import summarise
from .tasks import Task
from .uncertainty import Array, Predictions, interval
from .verdict import decisions, difference


FEWEST = 5  # subjects of a site or sex for a row of its own


def summary(
    design: Design,
    folds: Sequence[Folds],
    results: Sequence[dict[str, Any]],
    external: dict[str, list[dict[str, Any]]] | None = None,
    remarks: dict[str, list[str]] | None = None,
) -> Results:
    """What `metrics.json` holds.

    Args:
        design (`Design`): data and settings.
        folds (`Sequence[Folds]`): of every repeat.
        results (`Sequence[dict]`): of every fold, as `run_fold` returns them.
        external (`dict`, *optional*): per external data set the result of every repeat.
        remarks (`dict`, *optional*): per task what its readers have to know.
    """
    tasks = {}
    for task in design.recipe.tasks:
        protocol = _protocol(design, task, folds)
        found = _task_summary(design, task, protocol, results)
        found.notes = list((remarks or {}).get(task.name, []))
        for name, outcomes in (external or {}).items():
            if any(task.name in outcome["tasks"] for outcome in outcomes):
                found.external[name] = _task_summary(design, task, _external_protocol(protocol, name), outcomes)
        tasks[task.name] = found
    tested = design.tested
    title = design.recipe.arguments.title
    return Results(
        title,
        _protocol(design, design.recipe.tasks[0], folds),
        int(tested.subjects.nunique()),
        tasks,
        len(tested),
        design.recipe.stages(),
    )


def prediction_tables(
    design: Design, results: Sequence[dict[str, Any]], external: dict[str, list[dict[str, Any]]]
) -> dict[str, pd.DataFrame]:
    """File name -> all test predictions of a task, one row per scan (and repeat)."""
    found = {}
    for task in design.recipe.tasks:
        suffix = "" if design.recipe.is_one_tuning else f"_{file_name(task.name)}"
        for source, outcomes in {
            "": results,
            **{f"external_{name}_": each for name, each in external.items()},
        }.items():
            parts = [pd.DataFrame(r["tasks"][task.name]["predictions"]) for r in outcomes if task.name in r["tasks"]]
            if parts:
                found[f"{source}predictions{suffix}.tsv"] = pd.concat(parts, ignore_index=True)
    return found


def pooled_predictions(design: Design, task: Task, results: Sequence[dict[str, Any]]) -> dict[str, Predictions]:
    """Per model its predictions of all folds together."""
    scored = [(result, result["tasks"][task.name]) for result in results if task.name in result["tasks"]]
    rows = np.concatenate([entry["rows"] for _, entry in scored])
    repeats, folds = (
        np.concatenate([np.full(len(entry["rows"]), result[name]) for result, entry in scored])
        for name in ("repeat", "fold")
    )
    scans = design.cohort.select(rows)
    table, truth = scans.table, task.truth(scans)
    column = design.recipe.arguments.site_column
    sites = None
    if column in table and column != task.name:
        sites = table[column].astype("string").fillna("(not recorded)").to_numpy()
    found = {}
    for model in scored[0][1]["metrics"]:
        names = [f"{model}: {label}" for label in task.labels] or [model]
        if names[0] in scored[0][1]["predictions"]:
            values = np.concatenate(
                [np.array([entry["predictions"][name] for name in names]).T for _, entry in scored]
            )
            values = values if task.is_classification else values[:, 0]
            subjects = table["subject_id"].astype(str).to_numpy()
            found[model] = Predictions(truth, values, subjects, repeats, folds, sites)
    return found


def _task_summary(
    design: Design, task: Task, protocol: dict[str, Any], results: Sequence[dict[str, Any]]
) -> TaskResults:
    scored = [result["tasks"][task.name] for result in results if task.name in result["tasks"]]
    rows = np.unique(np.concatenate([entry["rows"] for entry in scored]))
    tested = design.cohort.select(rows)
    with warnings.catch_warnings():
        # The tables say which folds have no value; the mean never has a correlation.
        warnings.simplefilter("ignore", UndefinedMetricWarning)
        models = {
            name: summarise([_with_nan(entry["metrics"][name]) for entry in scored]) for name in scored[0]["metrics"]
        }
    arguments = design.recipe.arguments
    pooled = pooled_predictions(design, task, results)
    resamples, seed = arguments.resamples, arguments.seed
    resampled = {name: each.bootstrap(resamples, seed) for name, each in pooled.items()} if resamples else {}
    for name, predictions in pooled.items():
        _add_uncertainty(models[name], predictions, resampled.get(name), resamples, seed)
    thresholds = {name: decisions(each) for name, each in pooled.items() if name not in CONSTANT.values()}
    own = {} if task.positive is None else {"positive": task.positive}
    if "confounds" in arguments.baselines:
        own["confounds"] = ", ".join(task.confounds) or "none is recorded"
    columns = [column for column in dict.fromkeys((arguments.site_column, "sex")) if column != task.name]
    groups = {column: _by_group(design, column, pooled, results, task) for column in columns}
    return TaskResults(
        title=arguments.title if design.recipe.is_one_tuning else f"{arguments.title}: {task.name}",
        protocol={"task": task.name, "labels": list(task.labels), **own, **protocol},
        n_subjects=int(tested.subjects.nunique()),
        n_scans=len(rows),
        models=models,
        chance=_chance(task, tested),
        groups={column: found for column, found in groups.items() if found},
        best_layers=_best_layers(task, results),
        members=[[_with_nan(member) for member in entry["members"]] for entry in scored if "members" in entry],
        difference=difference(task, "roc_auc" if task.is_classification else "pearson_r", pooled, resampled),
        decisions={name: found for name, found in thresholds.items() if found is not None},
    )


def _add_uncertainty(
    metrics: dict[str, Score], predictions: Predictions, resampled: dict[str, Array] | None, resamples: int, seed: int
) -> None:
    """Add the pooled score to every metric, with interval and p-value where they were asked for."""
    for name, value in predictions.scores().items():
        metrics[name].pooled = value
    if resampled is None:
        return
    for name, scores in resampled.items():
        metrics[name].interval = interval(scores)
    for name, (p_value, permuted) in predictions.permutation_test(resamples, seed).items():
        metrics[name].p_value, metrics[name].permuted_mean = p_value, permuted


def _best_layers(task: Task, results: Sequence[dict[str, Any]]) -> list[int]:
    """Of every fold the layer (from 0) whose running loss was lowest when pretraining ended; empty without any."""
    ends = [result["histories"]["pretraining"][-1] for result in results if "pretraining" in result["histories"]]
    return [end["best_layers"][task.name] for end in ends if task.name in end.get("best_layers", {})]


def _chance(task: Task, tested: Cohort) -> dict[str, float]:
    """What the metrics come to without any knowledge of a subject."""
    if not task.is_classification:
        return {"r2": 0.0, "pearson_r": 0.0}
    largest = np.bincount(task.truth(tested)).max() / len(tested)
    return {"accuracy": float(largest), "balanced_accuracy": 1 / len(task.labels), "roc_auc": 0.5}


def _by_group(
    design: Design, column: str, pooled: dict[str, Predictions], results: Sequence[dict[str, Any]], task: Task
) -> dict[str, Group]:
    """Per value of a column (of at least five subjects) every model's headline metrics; empty if all are alike.

    The last entry is the mean over the values, weighted by subjects: what a model tells apart within them.
    """
    if column not in design.cohort.table:
        return {}
    tested = [r["tasks"][task.name]["rows"] for r in results if task.name in r["tasks"]]
    texts = design.cohort.table[column].iloc[np.concatenate(tested)].astype("string")
    values = texts.astype(object).where(texts.notna(), None).to_numpy()
    subjects = next(iter(pooled.values())).subjects
    groups: dict[str, Group] = {}
    for value in sorted(set(values) - {None}):
        members = np.flatnonzero(values == value)
        count = len(set(subjects[members]))
        if count >= FEWEST:
            scores = {name: predictions.scores(members) for name, predictions in pooled.items()}
            kept = {name: {m: v for m, v in score.items() if m in HEADLINE_METRICS} for name, score in scores.items()}
            groups[value] = Group(count, kept)
    if len(groups) < 2:
        return {}
    return groups | {MEAN_OF_GROUPS: _weighted_mean(list(groups.values()))}


def _weighted_mean(groups: Sequence[Group]) -> Group:
    """Mean of every metric over the groups in which it is defined."""
    models: dict[str, dict[str, float]] = {}
    for name, scores in groups[0].models.items():
        models[name] = {}
        for metric in scores:
            values = np.array([group.models[name][metric] for group in groups])
            weights = np.array([group.n_subjects for group in groups]) * ~np.isnan(values)
            defined = weights.sum() > 0
            models[name][metric] = float(np.average(np.nan_to_num(values), weights=weights)) if defined else np.nan
    return Group(sum(group.n_subjects for group in groups), models)


def _protocol(design: Design, task: Task, folds: Sequence[Folds]) -> dict[str, Any]:
    """How the numbers of a task came about, in words."""
    recipe, arguments, tuning = design.recipe, design.recipe.arguments, design.recipe.tuning_of(task)
    by = folds[0].stratified_by
    split = "by subject"
    if arguments.splits is not None:
        split = f"by subject, from {Path(arguments.splits).name}"
    elif arguments.split == "leave_site_out":
        split = f"one {arguments.site_column} left out at a time"
    elif by is not None:
        split = f"by subject, balanced by {'the task' if tuning is not None and by == tuning.task else by}"
    protocol = {
        "folds": len(folds[0].test_subjects),
        "split": split,
        "split_checksum": folds[0].checksum if len(folds) == 1 else [each.checksum for each in folds],
        "epoch": _epoch(tuning or recipe.last_stage),
        "pretraining": (
            "in every fold, on its training subjects only"
            if tuning is None or recipe.pretraining is not None
            else tuning.checkpoint or "none"
        ),
    }
    if tuning is not None:
        few = tuning.labels_per_class
        protocol["labelled_training_scans"] = "all of the training fold" if few is None else f"{few} per class"
    if len(folds) > 1:
        protocol["repeats"] = f"{len(folds)}, each with its own fold seed and training seed"
    if arguments.ensemble > 1:
        protocol["ensemble"] = f"LCM is the mean prediction of {arguments.ensemble} training seeds per fold"
    if arguments.same_person is not None:
        protocol["same_person"] = f"scans with one value of {arguments.same_person} stay on one side"
    if arguments.train_data:
        names = ", ".join(Path(folder).name for folder in arguments.train_data)
        protocol["other_cohorts"] = (
            f"{design.num_joining} scans of {names} join the pretraining, without subjects who are tested in the fold"
        )
    if arguments.optimistic:
        protocol["optimistic"] = (
            "LCM, optimistic is scored at the best epoch on the very test fold, as is usual in the field: no estimate "
            "for new subjects"
        )
    if arguments.harmonise is not None:
        protocol["harmonised"] = f"across {arguments.harmonise}, fitted on training scans"
    return protocol | _resampling_protocol(design)


def _epoch(stage: PretrainArguments | FinetuneArguments) -> str:
    """Which state of the training is tested."""
    if isinstance(stage, FinetuneArguments) and stage.head == "ridge":
        return "none: fitted in closed form, its settings by leaving training subjects out"
    return "chosen on validation subjects of the training fold" if stage.validation_fraction else "last epoch"


def _resampling_protocol(design: Design) -> dict[str, str]:
    """What intervals and p-values stand for."""
    count, column = design.recipe.arguments.resamples, design.recipe.arguments.site_column
    if not count:
        return {}
    within = f" within {column}" if column in design.cohort.table else ""
    return {
        "interval": f"95 % of {count} bootstrap resamples of the test subjects, on the pooled predictions of all "
        "folds; it covers who was tested, not the chance of training",
        "p_value": f"share of {count} permutations of the labels{within} that score as well with the same predictions",
    }


def _external_protocol(protocol: dict[str, Any], name: str) -> dict[str, Any]:
    kept = {key: value for key, value in protocol.items() if key not in ("split", "split_checksum", "folds")}
    return {
        **kept,
        "folds": 1,
        "split": f"external test on {name}, by models trained on the whole tested cohort",
        "pretraining": kept["pretraining"].replace("in every fold, on its training subjects only", "on all others"),
    }


def _with_nan(metrics: dict[str, float | None]) -> dict[str, float]:
    """JSON has no NaN: an undefined metric was written as null."""
    return {name: float("nan") if value is None else value for name, value in metrics.items()}
