"""One fold of an evaluation: train on its training subjects, predict its test subjects once, beside baselines."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from modeling_lcm import BEIVariable
from modeling_lcm.loss_lcm import IGNORE_INDEX

from .baselines import linear_baseline, majority_baseline
from .checkpoints import save_checkpoint
from .data import Cohort
from .harmonise import harmonise
from .predict import predict_logits
from .protocol import Design, EvaluateArguments, Task
from .runs import record_of
from .splits import Folds, few_labels
from .stages import finetune, pretrain


MODEL = "LCM"
SINGLE = "LCM, one seed"  # mean over the members of an ensemble


def run_fold(design: Design, folds: Folds, fold: int, folder: Path, repeat: int = 0) -> dict[str, Any]:
    """Train and test in one fold; leaves `pretrained/` and `checkpoint/` in its folder, if they are to be kept.

    Args:
        design (`Design`): data, tasks and settings.
        folds (`Folds`): test subjects.
        fold (`int`): which of them.
        folder (`Path`): the fold's folder.
        repeat (`int`): number of the repeat, which shifts the training seed.

    Returns:
        `histories` per stage, and per task the `metrics` of every model, those of every `member` of an ensemble, and
        the `predictions` per test scan.
    """
    pretraining_rows, train, test = design.rows(folds, fold)
    if design.arguments.harmonise is not None:
        design = replace(design, cohort=harmonise(design.cohort, pretraining_rows, design.arguments.harmonise))
    labelled = few_labelled(design, train, repeat)
    histories: dict[str, Any] = {}
    members: list[dict[str, np.ndarray]] = []
    for member in range(design.arguments.ensemble):
        shift = repeat * design.arguments.ensemble + member
        with _place(folder, member, design.arguments) as place:
            predictions, stages = _train_member(design, pretraining_rows, train, test, labelled, shift, place)
        members.append(predictions)
        suffix = f", seed {member + 1}" if member else ""
        histories |= {f"{stage}{suffix}": history for stage, history in stages.items()}
    results = {}
    for task in design.tasks:
        rows = task.known(test)
        if len(rows):
            values = [member[task.name][task.recorded[test]] for member in members]
            others = baseline_predictions(design, task, pretraining_rows, rows, labelled)
            results[task.name] = _score(design, task, rows, values, others, fold, repeat)
    return {"fold": fold, "repeat": repeat, "histories": histories, "tasks": results}


def few_labelled(design: Design, train: np.ndarray, repeat: int = 0) -> np.ndarray | None:
    """The labelled rows of a few-label fine-tuning, the same for every member and the baseline; None: all are used."""
    tuning = design.tuning
    if tuning is None or tuning.labels_per_class is None or not design.tasks[0].is_classification:
        return None
    labels = np.nan_to_num(design.tasks[0].targets[train], nan=IGNORE_INDEX).astype(int)
    return train[few_labels(labels, np.arange(len(train)), tuning.labels_per_class, tuning.seed + repeat)]


@contextmanager
def _place(folder: Path, member: int, arguments: EvaluateArguments) -> Iterator[Path]:
    """Where a member's checkpoints go: the fold's folder, one inside it, or one that is deleted afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.keep_checkpoints:
        yield folder / f"member_{member}" if arguments.ensemble > 1 else folder
        return
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".training."))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary)


def _train_member(
    design: Design,
    pretraining_rows: np.ndarray,
    train: np.ndarray,
    test: np.ndarray,
    labelled: np.ndarray | None,
    seed_shift: int,
    place: Path,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Train one model; its predictions per task for all test rows, and the epochs' records per stage."""
    cohort, pretraining, tuning = design.cohort, design.pretraining, design.tuning
    histories = {}
    if pretraining is not None:
        pretraining = replace(pretraining, seed=pretraining.seed + seed_shift)
        model, processor, histories["pretraining"] = pretrain(cohort, pretraining_rows, pretraining)
        if design.arguments.keep_checkpoints or tuning is not None:
            record = record_of(cohort, pretraining_rows, histories["pretraining"])
            save_checkpoint(place / "pretrained", model, processor, pretraining, record)
    if tuning is None:
        logits = predict_logits(model, cohort, test)["logits"]
        slices = processor.tokenizer.token_slices
        found = {
            variable.name: as_predictions(logits[:, slices[variable.name]], variable, task)
            for variable in processor.tokenizer.variables
            for task in design.tasks
            if task.name == variable.name
        }
        return found, histories
    task = design.tasks[0]
    tuning = replace(tuning, seed=tuning.seed + seed_shift)
    if pretraining is not None:
        tuning = replace(tuning, checkpoint=str(place / "pretrained"))
    shown = _hide_labels(cohort, task, np.setdiff1d(train, labelled)) if labelled is not None else cohort
    tuned, processor, histories["fine-tuning"] = finetune(shown, train, replace(tuning, labels_per_class=None))
    logits = predict_logits(tuned, cohort, test)["logits"]
    if design.arguments.keep_checkpoints:
        record = record_of(cohort, train, histories["fine-tuning"], tuning.checkpoint)
        save_checkpoint(place / "checkpoint", tuned, processor, tuning, record)
    return {task.name: as_predictions(logits, processor.tokenizer.task_variable, task)}, histories


def _hide_labels(cohort: Cohort, task: Task, rows: np.ndarray) -> Cohort:
    """The cohort without the task's label in some rows."""
    table = cohort.table.copy()
    values = table[task.name].astype(object)
    values.iloc[rows] = None
    return replace(cohort, table=table.assign(**{task.name: values}))


def as_predictions(logits: Tensor, variable: BEIVariable, task: Task) -> np.ndarray:
    """Probabilities of the task's labels `(scans, classes)`, or values `(scans,)` in the variable's unit.

    Args:
        logits (`Tensor` of shape `(scans, tokens)`): of the variable's tokens.
        variable (`BEIVariable`): as the model knows it: its labels may be more, and in another order.
        task (`Task`): as it is scored. Labels that nobody in the tested cohort has are left out, and the
            probabilities of the others add up to 1; a label that the model does not know has probability 0.
    """
    if not task.is_classification:
        return (logits[:, 0].double() * variable.std + variable.mean).numpy()
    known = [
        (column, variable.labels.index(label)) for column, label in enumerate(task.labels) if label in variable.labels
    ]
    columns, tokens = zip(*known, strict=True)
    probabilities = np.zeros((len(logits), len(task.labels)))
    probabilities[:, list(columns)] = logits.double()[:, list(tokens)].softmax(-1).numpy()
    return probabilities


def baseline_predictions(
    design: Design, task: Task, rows: np.ndarray, test: np.ndarray, labelled: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Predictions of the models that LCM has to beat, trained on the labels that LCM had.

    Args:
        design (`Design`): data and settings.
        task (`Task`): what is predicted.
        rows (`np.ndarray`): all training rows of the fold, those of other cohorts included.
        test (`np.ndarray`): test rows that have a value.
        labelled (`np.ndarray`, *optional*): training rows with a label, if they are not all: the linear model is then
            fitted on them, and once more on all labels of the fold.
    """
    cohort, seed = design.cohort, (design.tuning or design.pretraining).seed
    train = task.known(rows[rows < design.num_tested])
    found: dict[str, np.ndarray] = {}
    if "linear" in design.arguments.baselines:
        subsets = {"linear": train} if labelled is None else {"linear": labelled, "linear, all labels": train}
        test_fc = cohort.connectivity(test)
        for name, subset in subsets.items():
            groups = cohort.table["subject_id"].iloc[subset].tolist()
            found[name] = linear_baseline(
                cohort.connectivity(subset), task.truth(subset), test_fc, task.kind, seed, groups=groups
            )
    if "majority" in design.arguments.baselines:
        name = "majority" if task.is_classification else "mean"
        found[name] = majority_baseline(task.truth(train), len(test), task.kind)
    return found


def _score(
    design: Design,
    task: Task,
    rows: np.ndarray,
    members: list[np.ndarray],
    others: dict[str, np.ndarray],
    fold: int,
    repeat: int,
) -> dict[str, Any]:
    """Metrics of the averaged members, of each, and of the baselines; and the predictions by scan."""
    predictions = {MODEL: np.mean(members, axis=0), **others}
    metrics = {name: task.score(rows, values) for name, values in predictions.items()}
    result = {"metrics": metrics, "predictions": _columns(design, task, fold, repeat, rows, predictions)}
    if len(members) > 1:
        result["members"] = [task.score(rows, values) for values in members]
        alone = {name: float(np.mean([score[name] for score in result["members"]])) for name in metrics[MODEL]}
        result["metrics"] = {MODEL: metrics[MODEL], SINGLE: alone, **metrics}
    return result


def _columns(
    design: Design, task: Task, fold: int, repeat: int, rows: np.ndarray, predictions: dict[str, np.ndarray]
) -> dict[str, list]:
    """The predictions as columns of a table, one row per test scan."""
    table = design.cohort.table.iloc[rows]
    columns = {"subject_id": table["subject_id"].astype(str).tolist(), "session": table["session"].tolist()}
    columns |= {"repeat": [repeat] * len(rows)} if design.arguments.repeats > 1 else {}
    columns["fold"] = [fold] * len(rows)
    columns[task.name] = task.targets[rows].tolist()
    if task.is_classification:
        columns[task.name] = [task.labels[index] for index in task.truth(rows)]
    for model, values in predictions.items():
        if not task.is_classification:
            columns[model] = values.tolist()
            continue
        for index, label in enumerate(task.labels):
            columns[f"{model}: {label}"] = values[:, index].tolist()
    return columns
