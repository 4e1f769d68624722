"""Honest cross-validation of the whole recipe: `python -m training.evaluate --config FILE.yaml`.

Per fold: pretrain and fine-tune on the training subjects alone, predict the test subjects once, and do the same with
a linear model and the majority class on the same subjects. Nothing is chosen on a test fold.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate import PartialState

from modeling_lcm import BEITokenizer
from modeling_lcm.loss_lcm import IGNORE_INDEX

from .arguments import FinetuneArguments, PretrainArguments, command_line, parse_arguments, setting
from .baselines import linear_baseline, majority_baseline
from .checkpoints import check_same_regions, load_processor, read_record, save_checkpoint
from .data import Cohort, load_cohort
from .files import require_new, write_json, write_text
from .harmonise import harmonise
from .metrics import classification_metrics, regression_metrics, summarise
from .predict import predict_logits
from .report import results_table_text
from .runs import record_of
from .splits import Folds, few_labels, make_folds
from .stages import finetune, infer_variable, pretrain


@dataclass
class EvaluateArguments:
    """Cross-validate pretraining and fine-tuning by subject, beside simple baselines."""

    data: str = setting("", "Folder made by training.prepare.")
    output: str = setting("", "Folder for metrics, predictions, splits and checkpoints.")
    finetune: str = setting("", "YAML file for training.finetune; data, output and checkpoint are set per fold.")
    pretrain: str | None = setting(
        None,
        "YAML file for training.pretrain, run in every fold on its training subjects. Without it the checkpoint of "
        "the fine-tuning file is used, which must not have seen any test subject.",
    )
    n_folds: int = setting(5, "Number of folds.")
    splits: str | None = setting(None, "Existing split file; default: drawn with the seed, balanced by the task.")
    seed: int = setting(0, "Seed of the folds.")
    harmonise: str | None = setting(
        None, "Column with the site: FC is harmonised across sites (ComBat), fitted on each fold's training scans."
    )
    resume: bool = setting(False, "Keep the folds that are finished in --output and do the others.")
    title: str = setting("Cross-validation", "Title of the report.")


@dataclass(frozen=True)
class Task:
    """The variable that is predicted, and its value for every scan.

    Args:
        name (`str`): phenotype column.
        labels (`tuple[str, ...]`): class names in order; empty for a continuous variable.
        targets (`np.ndarray` of shape `(scans,)`): class index, or value in the variable's unit; NaN = not recorded.
    """

    name: str
    labels: tuple[str, ...]
    targets: np.ndarray

    @property
    def is_classification(self) -> bool:
        """Whether the variable is categorical."""
        return bool(self.labels)

    @property
    def recorded(self) -> np.ndarray:
        """Boolean mask of the scans whose value is known."""
        return ~np.isnan(self.targets)

    def score(self, rows: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
        """Metrics of predictions (probabilities or values) for some scans."""
        truth = self.targets[rows]
        if self.is_classification:
            return classification_metrics(truth.astype(int), predictions, self.labels)
        return regression_metrics(truth, predictions)


def make_task(cohort: Cohort, arguments: FinetuneArguments) -> Task:
    """The downstream variable of a fine-tuning configuration.

    Raises:
        ValueError: the column does not exist, or has a label that is not listed in `labels`.
    """
    cohort.require_column(arguments.task)
    variable = infer_variable(cohort.table, arguments.task, arguments.kind, arguments.labels)
    tokenizer = BEITokenizer(variables=[variable])
    encoded = tokenizer(cohort.table)["labels"][:, 0].astype(float)
    encoded[encoded == IGNORE_INDEX] = np.nan
    return Task(arguments.task, tuple(variable.labels), encoded)


def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Cross-validate a recipe.

    Args:
        arguments (`EvaluateArguments`): data, recipe and folds.

    Returns:
        What `metrics.json` holds: protocol, number of subjects, and per model every metric's mean, standard deviation
        and value per fold.

    Raises:
        ValueError: folds that cannot be made, or a checkpoint that has seen test subjects.
        FileExistsError: the output holds results and `resume` is false.
    """
    started = time.monotonic()
    output = require_new(arguments.output, arguments.resume)
    if not arguments.finetune:
        raise ValueError("No settings of the fine-tuning were given: add --finetune FILE.yaml.")
    if PartialState().num_processes > 1:
        raise ValueError("training.evaluate runs in one process: start it with python, not accelerate launch.")
    cohort = load_cohort(arguments.data)
    tuning = parse_arguments(FinetuneArguments, ["--config", arguments.finetune])
    pretraining = None
    if arguments.pretrain is not None:
        pretraining = parse_arguments(PretrainArguments, ["--config", arguments.pretrain])
    else:
        check_same_regions(load_processor(tuning.checkpoint), cohort)
    task = make_task(cohort, tuning)
    _same_settings(output / "settings.json", arguments, pretraining, tuning)
    folds = _folds(cohort, task, arguments, output)
    if pretraining is None:
        _refuse_seen_subjects(tuning.checkpoint, folds)
    results = []
    for fold in range(len(folds.test_subjects)):
        path = output / f"fold_{fold}" / "result.json"
        if not path.is_file():
            print(f"Fold {fold + 1} of {len(folds.test_subjects)}", flush=True)
            seen = cohort
            if arguments.harmonise is not None:
                train, _ = folds.rows(cohort.table["subject_id"].astype(str), fold)
                seen = harmonise(cohort, train, arguments.harmonise)
            write_json(path, run_fold(seen, task, folds, fold, pretraining, tuning, path.parent))
        results.append(json.loads(path.read_text(encoding="utf-8")))
    metrics = _summary(arguments, cohort, task, folds, results, pretraining, tuning)
    metrics["seconds"] = round(time.monotonic() - started, 1)
    write_json(output / "metrics.json", metrics)
    predictions = pd.concat([pd.DataFrame(result["predictions"]) for result in results], ignore_index=True)
    write_text(output / "predictions.tsv", predictions.to_csv(sep="\t", index=False, float_format="%.5f"))
    return metrics


def _same_settings(
    path: Path, arguments: EvaluateArguments, pretraining: PretrainArguments | None, tuning: FinetuneArguments
) -> None:
    """Record the settings, or refuse to go on with folds that were trained under others."""
    free = {"output", "resume", "title"}
    settings = {
        **{name: value for name, value in asdict(arguments).items() if name not in free},
        "pretraining": None if pretraining is None else asdict(pretraining),
        "fine-tuning": asdict(tuning),
    }
    if not path.is_file():
        write_json(path, settings)
        return
    recorded = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in settings if recorded.get(name) != settings[name]]
    if changed:
        raise ValueError(
            f"The folds in {path.parent} were made with other settings of {', '.join(changed)} ({path}): use "
            "those, or another output."
        )


def _folds(cohort: Cohort, task: Task, arguments: EvaluateArguments, output: Path) -> Folds:
    path = output / "splits.json"
    if path.is_file():
        return Folds.load(path)
    stratify = task.name if task.is_classification else None
    folds = (
        Folds.load(arguments.splits)
        if arguments.splits is not None
        else make_folds(cohort.table, arguments.n_folds, arguments.seed, stratify)
    )
    folds.save(path)
    return folds


def _refuse_seen_subjects(checkpoint: str, folds: Folds) -> None:
    seen = set(read_record(checkpoint).get("training_subjects", []))
    shared = seen & {subject for subjects in folds.test_subjects for subject in subjects}
    if shared:
        raise ValueError(
            f"The checkpoint {checkpoint} was trained on {len(shared)} of the test subjects, {sorted(shared)[0]} "
            "among them. Give a pretraining configuration instead, which is then run per fold."
        )


def run_fold(
    cohort: Cohort,
    task: Task,
    folds: Folds,
    fold: int,
    pretraining: PretrainArguments | None,
    tuning: FinetuneArguments,
    folder: Path,
) -> dict[str, Any]:
    """Train and test in one fold; leaves `pretrained/` and `checkpoint/` in its folder.

    Returns:
        `metrics` per model, `histories` of both stages, and `predictions` per test scan.
    """
    train, test = folds.rows(cohort.table["subject_id"].astype(str), fold)
    test = test[task.recorded[test]]
    histories = {}
    if pretraining is not None:
        model, processor, history = pretrain(cohort, train, pretraining)
        histories["pretraining"] = history
        save_checkpoint(folder / "pretrained", model, processor, pretraining, record_of(cohort, train, history))
        tuning = replace(tuning, checkpoint=str(folder / "pretrained"))
    model, processor, histories["fine-tuning"] = finetune(cohort, train, tuning)
    predictions = {"LCM": _predict(model, processor.tokenizer, cohort, test, task)}
    record = record_of(cohort, train, histories["fine-tuning"], tuning.checkpoint)
    save_checkpoint(folder / "checkpoint", model, processor, tuning, record)
    chosen = chosen_labels(cohort, processor.tokenizer, train, tuning)
    predictions |= _baselines(cohort, task, train, test, chosen, tuning)
    return {
        "fold": fold,
        "metrics": {name: task.score(test, values) for name, values in predictions.items()},
        "histories": histories,
        "predictions": _prediction_columns(cohort, task, fold, test, predictions),
    }


def _predict(model: Any, tokenizer: BEITokenizer, cohort: Cohort, rows: np.ndarray, task: Task) -> np.ndarray:
    """Probabilities `(scans, classes)`, or values `(scans,)` in the variable's unit."""
    logits = predict_logits(model, cohort, rows)["logits"]
    variable = tokenizer.task_variable
    if variable.kind == "categorical":
        # A pretrained variable keeps the order that its labels have in the checkpoint.
        order = [variable.labels.index(label) for label in task.labels]
        return logits.double().softmax(-1).numpy()[:, order]
    return (logits[:, 0] * variable.std + variable.mean).numpy()


def _baselines(
    cohort: Cohort,
    task: Task,
    train: np.ndarray,
    test: np.ndarray,
    chosen: np.ndarray | None,
    tuning: FinetuneArguments,
) -> dict[str, np.ndarray]:
    """Majority class (or mean), and the linear model on vectorised FC, trained on the labels that LCM had.

    With few labels, the linear model with all training labels stands beside it.
    """
    kind = "classification" if task.is_classification else "regression"
    everyone = train[task.recorded[train]]
    subsets = {"linear": everyone}
    if chosen is not None:
        subsets = {"linear": chosen, "linear, all labels": everyone}
    test_fc = cohort.connectivity(test)
    found = {}
    for name, rows in subsets.items():
        labels = task.targets[rows].astype(int) if task.is_classification else task.targets[rows]
        groups = cohort.table["subject_id"].iloc[rows].tolist()
        found[name] = linear_baseline(cohort.connectivity(rows), labels, test_fc, kind, tuning.seed, groups=groups)
    labels = task.targets[everyone]
    found["majority" if task.is_classification else "mean"] = majority_baseline(
        labels.astype(int) if task.is_classification else labels, len(test), kind
    )
    return found


def chosen_labels(
    cohort: Cohort, tokenizer: BEITokenizer, train: np.ndarray, tuning: FinetuneArguments
) -> np.ndarray | None:
    """The labelled rows that few-label fine-tuning used, drawn as `finetune` draws them; None if it used all."""
    if tuning.labels_per_class is None or tokenizer.task_variable.kind != "categorical":
        return None
    labels = tokenizer(cohort.table.iloc[train])["labels"]
    return train[few_labels(labels, np.arange(len(train)), tuning.labels_per_class, tuning.seed)]


def _prediction_columns(
    cohort: Cohort, task: Task, fold: int, rows: np.ndarray, predictions: dict[str, np.ndarray]
) -> dict[str, list]:
    table = cohort.table.iloc[rows]
    columns = {"subject_id": table["subject_id"].astype(str).tolist(), "session": table["session"].tolist()}
    columns["fold"] = [fold] * len(rows)
    columns[task.name] = task.targets[rows].tolist()
    if task.is_classification:
        columns[task.name] = [task.labels[int(index)] for index in task.targets[rows]]
    for model, values in predictions.items():
        if not task.is_classification:
            columns[model] = values.tolist()
            continue
        for index, label in enumerate(task.labels):
            columns[f"{model}: {label}"] = values[:, index].tolist()
    return columns


def _summary(
    arguments: EvaluateArguments,
    cohort: Cohort,
    task: Task,
    folds: Folds,
    results: list[dict[str, Any]],
    pretraining: PretrainArguments | None,
    tuning: FinetuneArguments,
) -> dict[str, Any]:
    models = {
        name: summarise([_with_nan(result["metrics"][name]) for result in results]) for name in results[0]["metrics"]
    }
    subjects = cohort.table["subject_id"][task.recorded]
    protocol = {
        "task": task.name,
        "labels": list(task.labels),
        "folds": len(folds.test_subjects),
        "split": "by subject, balanced by the task" if folds.stratified_by else "by subject",
        "split_checksum": folds.checksum,
        "epoch": "chosen on validation subjects of the training fold" if tuning.validation_fraction else "last epoch",
        "pretraining": "in every fold, on its training subjects only" if pretraining else tuning.checkpoint,
        "labelled_training_scans": (
            f"{tuning.labels_per_class} per class"
            if tuning.labels_per_class is not None
            else "all of the training fold"
        ),
    }
    return {
        "title": arguments.title,
        "protocol": protocol,
        "n_subjects": int(subjects.nunique()),
        "n_scans": int(task.recorded.sum()),
        "models": models,
        "settings": {"pretraining": asdict(pretraining) if pretraining else None, "fine-tuning": asdict(tuning)},
    }


def _with_nan(metrics: dict[str, float | None]) -> dict[str, float]:
    """JSON has no NaN: an undefined metric was written as null."""
    return {name: float("nan") if value is None else value for name, value in metrics.items()}


@command_line
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    arguments = parse_arguments(EvaluateArguments, argv)
    metrics = evaluate(arguments)
    print(results_table_text(metrics))
    print(f"Metrics, predictions and checkpoints are in {arguments.output}")


if __name__ == "__main__":
    main()
