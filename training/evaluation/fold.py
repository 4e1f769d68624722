"""One fold of an evaluation: train on its training subjects, predict its test subjects once, beside baselines."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from modeling_lcm import BEITokenizer, BEIVariable
from modeling_lcm.loss_lcm import IGNORE_INDEX

from ..data.cohort import Cohort
from ..data.folds import few_labels
from ..data.harmonise import harmonise
from ..trainer.arguments import FinetuneArguments
from ..trainer.checkpoints import save_checkpoint
from ..trainer.finetuning import finetune
from ..trainer.prediction import predict_logits
from ..trainer.pretraining import pretrain
from ..trainer.runs import record_of
from .arguments import EvaluateArguments
from .comparison import SCRATCH, baseline_predictions, scratch_start
from .design import Design, Rows, Task


MODEL = "LCM"
SINGLE = "LCM, one seed"  # mean over the members of an ensemble
OPTIMISTIC = "LCM, optimistic"  # best epoch on the test fold


@dataclass
class Member:
    """What one training seed gives.

    Args:
        predictions (`dict[str, dict[str, np.ndarray]]`): per model and task, for all test rows.
        histories (`dict[str, list]`): the epochs' records per stage.
        best_epochs (`dict[str, dict[str, float]]`): per task the metrics at the best epoch on the test rows.
    """

    predictions: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    best_epochs: dict[str, dict[str, float]] = field(default_factory=dict)


def run_fold(design: Design, rows: Rows, folder: Path, fold: int = 0, repeat: int = 0) -> dict[str, Any]:
    """Train and test in one fold; leaves `pretrained/` and `checkpoint/` in its folder, if they are to be kept.

    Args:
        design (`Design`): data, tasks and settings.
        rows (`Rows`): who trains and who is tested.
        folder (`Path`): the fold's folder.
        fold (`int`): its number, for the tables.
        repeat (`int`): number of the repeat, which shifts the training seed.

    Returns:
        `histories` per stage, and per task the `metrics` of every model, those of every `member` of an ensemble, the
        `rows` that were tested and the `predictions` for them.
    """
    if design.arguments.harmonise is not None:
        design = replace(design, cohort=harmonise(design.cohort, rows.pretraining, design.arguments.harmonise))
    labelled = few_labelled(design, rows.training, repeat)
    members = []
    for number in range(design.arguments.ensemble):
        shift = repeat * design.arguments.ensemble + number
        with _place(folder, number, design.arguments) as place:
            members.append(_train_member(design, rows, labelled, shift, place))
    results = {}
    for task in design.tasks:
        tested = task.known(rows.test)
        if len(tested):
            others = baseline_predictions(design, task, rows.training, tested, labelled)
            results[task.name] = _score(design, task, rows.test, members, others, {"repeat": repeat, "fold": fold})
    histories = dict(members[0].histories)
    for number, member in enumerate(members[1:], start=2):
        histories |= {f"{stage}, seed {number}": history for stage, history in member.histories.items()}
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


def _train_member(design: Design, rows: Rows, labelled: np.ndarray | None, seed_shift: int, place: Path) -> Member:
    """Train one model (and the one from random weights, if asked for), and predict the test rows."""
    member, keep = Member(), design.arguments.keep_checkpoints
    cohort, pretraining, tuning = design.cohort, design.pretraining, design.tuning
    if pretraining is not None:
        pretraining = replace(pretraining, seed=pretraining.seed + seed_shift)
        watcher = EpochWatcher(design, rows.test) if design.arguments.optimistic and tuning is None else None
        model, processor, history = pretrain(cohort, rows.pretraining, pretraining, after_epoch=watcher)
        member.histories["pretraining"] = history
        if keep or tuning is not None:
            record = record_of(cohort, rows.pretraining, history)
            save_checkpoint(place / "pretrained", model, processor, pretraining, record)
        if tuning is None:
            logits = predict_logits(model, cohort, rows.test)["logits"]
            member.predictions[MODEL] = predictions_of(logits, processor.tokenizer, design.tasks)
            member.best_epochs = watcher.best(processor.tokenizer) if watcher is not None else {}
            return member
        tuning = replace(tuning, checkpoint=str(place / "pretrained"))
    tuning = replace(tuning, seed=tuning.seed + seed_shift)
    model, processor = _tune(design, rows, labelled, tuning, member, MODEL)
    if keep:
        record = record_of(cohort, rows.training, member.histories["fine-tuning"], tuning.checkpoint)
        save_checkpoint(place / "checkpoint", model, processor, tuning, record)
    if "scratch" in design.arguments.baselines:
        with tempfile.TemporaryDirectory() as start:
            _tune(design, rows, labelled, scratch_start(tuning, Path(start)), member, SCRATCH)
    return member


def _tune(
    design: Design, rows: Rows, labelled: np.ndarray | None, tuning: FinetuneArguments, member: Member, name: str
) -> tuple[nn.Module, Any]:
    """Fine-tune; the predictions, the history and the best epoch go into `member` under the model's name."""
    shown = design.cohort
    if labelled is not None:
        shown = _hide_labels(design, np.setdiff1d(rows.training, labelled))
        tuning = replace(tuning, labels_per_class=None)
    watcher = EpochWatcher(design, rows.test) if design.arguments.optimistic and name == MODEL else None
    model, processor, history = finetune(shown, rows.training, tuning, after_epoch=watcher, check_leakage=False)
    member.histories["fine-tuning" if name == MODEL else f"fine-tuning, {name}"] = history
    logits = predict_logits(model, design.cohort, rows.test)["logits"]
    member.predictions[name] = predictions_of(logits, processor.tokenizer, design.tasks)
    if watcher is not None:
        member.best_epochs = watcher.best(processor.tokenizer)
    return model, processor


def _hide_labels(design: Design, rows: np.ndarray) -> Cohort:
    """The cohort without the task's label in some rows."""
    table, name = design.cohort.table.copy(), design.tasks[0].name
    values = table[name].astype(object)
    values.iloc[rows] = None
    return replace(design.cohort, table=table.assign(**{name: values}))


class EpochWatcher:
    """Predicts the test rows after every epoch: the field's usual protocol, optimistic and reported only as such.

    Args:
        design (`Design`): data and tasks.
        rows (`np.ndarray`): test rows.
    """

    def __init__(self, design: Design, rows: np.ndarray) -> None:
        self.design = design
        self.rows = rows
        self.logits: list[Tensor] = []

    def __call__(self, model: nn.Module) -> None:
        """Predict with the model as it is now."""
        self.logits.append(predict_logits(model, self.design.cohort, self.rows)["logits"])

    def best(self, tokenizer: BEITokenizer) -> dict[str, dict[str, float]]:
        """Per task all metrics at the epoch with the highest accuracy, or the lowest mean absolute error."""
        found = {}
        for task in self.design.tasks:
            known = task.recorded[self.rows]
            if known.any():
                scores = [
                    task.score(self.rows[known], predictions_of(logits, tokenizer, (task,))[task.name][known])
                    for logits in self.logits
                ]
                found[task.name] = max(scores, key=lambda score: score.get("accuracy", -score.get("mae", 0.0)))
        return found


def predictions_of(logits: Tensor, tokenizer: BEITokenizer, tasks: Sequence[Task]) -> dict[str, np.ndarray]:
    """Predictions of every task from the read-out logits of a pretrained or fine-tuned model.

    Args:
        logits (`Tensor` of shape `(scans, tokens)`): of all pretrained tokens, or of the downstream task alone.
        tokenizer (`BEITokenizer`): the model's.
        tasks (`Sequence[Task]`): what is predicted.
    """
    if tokenizer.task_variable is not None:
        return {task.name: as_predictions(logits, tokenizer.task_variable, task) for task in tasks}
    variables = {variable.name: variable for variable in tokenizer.variables}
    slices = tokenizer.token_slices
    return {task.name: as_predictions(logits[:, slices[task.name]], variables[task.name], task) for task in tasks}


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


def _score(
    design: Design,
    task: Task,
    test: np.ndarray,
    members: Sequence[Member],
    others: dict[str, np.ndarray],
    place: dict[str, int],
) -> dict[str, Any]:
    """Metrics of the averaged members, of each, and of the baselines; and the predictions by scan."""
    known = task.recorded[test]
    rows = test[known]
    predictions = {
        name: np.mean([member.predictions[name][task.name][known] for member in members], axis=0)
        for name in members[0].predictions
    }
    predictions |= others
    metrics = {name: task.score(rows, values) for name, values in predictions.items()}
    result = {"rows": rows.tolist(), "predictions": _columns(design, task, place, rows, predictions)}
    if len(members) > 1:
        result["members"] = [task.score(rows, member.predictions[MODEL][task.name][known]) for member in members]
        metrics = {MODEL: metrics[MODEL], SINGLE: _mean(result["members"]), **metrics}
    if design.arguments.optimistic:
        metrics[OPTIMISTIC] = _mean([member.best_epochs[task.name] for member in members])
    return {"metrics": metrics, **result}


def _mean(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


def _columns(
    design: Design, task: Task, place: dict[str, int], rows: np.ndarray, predictions: dict[str, np.ndarray]
) -> dict[str, list]:
    """The predictions as columns of a table, one row per test scan."""
    table = design.cohort.table.iloc[rows]
    columns = {"subject_id": table["subject_id"].astype(str).tolist(), "session": table["session"].tolist()}
    columns |= {name: [number] * len(rows) for name, number in place.items()}
    columns[task.name] = task.truth(rows).tolist()
    if task.is_classification:
        columns[task.name] = [task.labels[index] for index in task.truth(rows)]
    for model, values in predictions.items():
        if not task.is_classification:
            columns[model] = values.tolist()
            continue
        for index, label in enumerate(task.labels):
            columns[f"{model}: {label}"] = values[:, index].tolist()
    return columns
