"""One fold of an evaluation: train on its training subjects, predict its test subjects once, beside baselines."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from modeling_lcm import BEITokenizer, BEIVariable, log_edges
from modeling_lcm.closed_form_model import SHRINKAGES
from modeling_lcm.loss_lcm import IGNORE_INDEX

from ..data.cohort import Cohort
from ..data.folds import few_labels
from ..reporting.results import LCM, OPTIMISTIC, SCRATCH, SINGLE
from ..storage.files import file_name, scratch_folder
from ..trainer.arguments import FinetuneArguments
from ..trainer.checkpoints import save_checkpoint
from ..trainer.closed_form import SharedFits
from ..trainer.finetuning import finetune
from ..trainer.prediction import predict_logits
from ..trainer.pretraining import pretrain
from ..trainer.runs import record_of
from ..trainer.trainable import lcm_head
from .arguments import EvaluateArguments
from .comparison import FoldEdges, baseline_predictions, scratch_start
from .design import Parts, Recipe
from .tasks import Task


@dataclass
class Member:
    """What one training seed gives.

    Args:
        predictions (`dict[str, dict[str, np.ndarray]]`): per model and task, for all test scans.
        histories (`dict[str, list]`): the epochs' records per stage.
        best_epochs (`dict[str, dict[str, float]]`): per task the metrics at the best epoch on the test scans.
    """

    predictions: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    best_epochs: dict[str, dict[str, float]] = field(default_factory=dict)


def run_fold(recipe: Recipe, parts: Parts, folder: Path, fold: int = 0, repeat: int = 0) -> dict[str, Any]:
    """Train and test in one fold; leaves `pretrained/` and `checkpoint/` in its folder, if they are to be kept.

    Args:
        recipe (`Recipe`): tasks and settings.
        parts (`Parts`): the scans that train, and those that are tested.
        folder (`Path`): the fold's folder.
        fold (`int`): its number, for the tables.
        repeat (`int`): number of the repeat, which shifts the training seed.

    Returns:
        `histories` per stage, and per task the `metrics` of every model, those of every `member` of an ensemble, the
        numbers (`rows`) of the scans that were tested and the `predictions` for them.
    """
    members = [train_member(recipe, parts, folder, repeat, number) for number in range(recipe.arguments.ensemble)]
    return join_fold(recipe, parts.test, members, fit_baselines(recipe, parts, repeat), fold, repeat)


def train_member(recipe: Recipe, parts: Parts, folder: Path, repeat: int, number: int) -> Member:
    """Train one member of a fold's ensemble, and predict the test scans."""
    with _place(folder, number, recipe.arguments) as place:
        return _train_member(recipe, parts, repeat, number, place)


def fit_baselines(recipe: Recipe, parts: Parts, repeat: int) -> dict[str, dict[str, np.ndarray]]:
    """Per task the predictions of the simple models for the test scans that have a value."""
    edges, predictions = FoldEdges(parts.log_fc), {}
    for task in recipe.tasks:
        tested = task.known(parts.test)
        if len(tested):
            labelled = few_labelled(recipe, task, parts.training, repeat)
            predictions[task.name] = baseline_predictions(recipe, task, parts.training, tested, labelled, edges)
    return predictions


def join_fold(
    recipe: Recipe,
    test: Cohort,
    members: Sequence[Member],
    others: dict[str, dict[str, np.ndarray]],
    fold: int,
    repeat: int,
) -> dict[str, Any]:
    """The result of a fold, as [`run_fold`] returns it, of its members and its baselines' predictions by task."""
    place = {"repeat": repeat, "fold": fold}
    results = {
        task.name: _score(recipe, task, test, members, others[task.name], place)
        for task in recipe.tasks
        if task.name in others
    }
    histories = dict(members[0].histories)
    for number, member in enumerate(members[1:], start=2):
        histories |= {f"{stage}, seed {number}": history for stage, history in member.histories.items()}
    return {"fold": fold, "repeat": repeat, "histories": histories, "tasks": results}


def few_labelled(recipe: Recipe, task: Task, training: Cohort, repeat: int = 0) -> Cohort | None:
    """The labelled scans of a few-label fine-tuning, the same for every member and baseline; None: all."""
    tuning = recipe.tuning_of(task)
    if tuning is None or tuning.labels_per_class is None or not task.is_classification:
        return None
    labels = np.nan_to_num(task.values(training.table), nan=IGNORE_INDEX).astype(int)
    return training.select(few_labels(labels, tuning.labels_per_class, tuning.seed + repeat))


@contextmanager
def _place(folder: Path, member: int, arguments: EvaluateArguments) -> Iterator[Path]:
    """Where a member's checkpoints go: the fold's folder, one inside it, or one that is deleted afterwards."""
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.keep_checkpoints:
        yield folder / f"member_{member}" if arguments.ensemble > 1 else folder
        return
    with scratch_folder(folder / "training") as temporary:
        yield temporary


def _train_member(recipe: Recipe, parts: Parts, repeat: int, number: int, place: Path) -> Member:
    """Train one model per task (and those from random weights, if asked for), and predict the test scans."""
    member, keep = Member(), recipe.arguments.keep_checkpoints
    pretraining, seed_shift = recipe.pretraining, repeat * recipe.arguments.ensemble + number
    if pretraining is not None:
        pretraining = replace(pretraining, seed=pretraining.seed + seed_shift)
        watcher = EpochWatcher(recipe.tasks, parts) if recipe.arguments.optimistic and not recipe.tunings else None
        model, processor, history = pretrain(parts.pretraining, pretraining, after_epoch=watcher)
        member.histories["pretraining"] = history
        if keep or recipe.tunings:
            record = record_of(parts.pretraining, history)
            save_checkpoint(place / "pretrained", model, processor, pretraining, record)
        if not recipe.tunings:
            logits = predict_logits(model, parts.test, log_fc=_log_fc(parts, model))["logits"]
            member.predictions[LCM] = predictions_of(logits, processor.tokenizer, recipe.tasks)
            member.best_epochs = watcher.best(processor.tokenizer) if watcher is not None else {}
            return member
    elif not recipe.tunings:
        raise ValueError("There is nothing to train: the recipe has neither pretraining nor fine-tuning.")
    shared = SharedFits(_kept_log_fc(parts), with_limits=keep)
    records: dict[str, dict[str, Any]] = {}
    for task, tuning in zip(recipe.tasks, recipe.tunings, strict=True):
        labelled = few_labelled(recipe, task, parts.training, repeat)
        tuning = replace(tuning, seed=tuning.seed + seed_shift)
        if pretraining is not None:
            tuning = replace(tuning, checkpoint=str(place / "pretrained"))
        tuned, processor, history = _tune(recipe, task, parts, labelled, tuning, member, LCM, shared)
        if keep:
            start = tuning.checkpoint
            if start not in records:  # hashing the subjects' names is slow, as it must be
                records[start] = record_of(parts.training, [], start or None)
            name = "checkpoint" if recipe.is_one_tuning else f"checkpoint_{file_name(task.name)}"
            save_checkpoint(place / name, tuned, processor, tuning, records[start] | {"history": history})
        if "scratch" in recipe.arguments.baselines:
            with tempfile.TemporaryDirectory() as start:
                _tune(recipe, task, parts, labelled, scratch_start(tuning, Path(start)), member, SCRATCH, shared)
    return member


def _kept_log_fc(parts: Parts) -> Callable[[Cohort], dict[str, np.ndarray]] | None:
    """What gives log FC of a fold's scans as the closed form needs it, where it was computed before."""
    stored = parts.log_fc
    if stored is None or not set(SHRINKAGES) <= set(stored.paths):
        return None
    return lambda cohort: stored.by_atlas(cohort, SHRINKAGES)


def _log_fc(parts: Parts, model: nn.Module) -> dict[str, np.ndarray] | None:
    """Log FC of the test scans as a model takes it; None for a model without edges."""
    config, stored = lcm_head(model).config, parts.log_fc
    if not config.edge_readout:
        return None
    if stored is not None and set(config.shrinkages) <= set(stored.paths):
        return stored.by_atlas(parts.test, config.shrinkages)
    return {part.id: log_edges(part.matrices(slice(None)), config.shrinkages) for part in parts.test.by_atlas}


def _tune(
    recipe: Recipe,
    task: Task,
    parts: Parts,
    labelled: Cohort | None,
    tuning: FinetuneArguments,
    member: Member,
    name: str,
    shared: SharedFits,
) -> tuple[nn.Module, Any, list[dict[str, Any]]]:
    """Fine-tune; the predictions, the history and the best epoch go into `member` under the model's name."""
    training = parts.training
    if labelled is not None:
        training = _with_labels_of(training, labelled, task.name)
        tuning = replace(tuning, labels_per_class=None)
    watcher = EpochWatcher((task,), parts) if recipe.arguments.optimistic and name == LCM else None
    model, processor, history = finetune(training, tuning, after_epoch=watcher, check_leakage=False, shared=shared)
    stage = "fine-tuning" if name == LCM else f"fine-tuning, {name}"
    member.histories[stage if recipe.is_one_tuning else f"{stage}, {task.name}"] = history
    logits = predict_logits(model, parts.test, log_fc=_log_fc(parts, model))["logits"]
    member.predictions.setdefault(name, {}).update(predictions_of(logits, processor.tokenizer, (task,)))
    if watcher is not None:
        member.best_epochs |= watcher.best(processor.tokenizer)
    return model, processor, history


def _with_labels_of(cohort: Cohort, labelled: Cohort, column: str) -> Cohort:
    """The cohort without a label in a column, but for some of its scans."""
    is_shown = cohort.table.index.isin(labelled.table.index)
    values = cohort.table[column].astype(object).where(is_shown, None)
    return replace(cohort, table=cohort.table.assign(**{column: values}))


class EpochWatcher:
    """Predicts the test scans after every epoch: the field's usual protocol, optimistic and reported only as such.

    Args:
        tasks (`Sequence[Task]`): what the trained model predicts.
        parts (`Parts`): of the fold.
    """

    def __init__(self, tasks: Sequence[Task], parts: Parts) -> None:
        self.tasks = tasks
        self.test = parts.test
        self._parts = parts
        self._known: dict[str, np.ndarray] | None = None
        self.logits: list[Tensor] = []

    def __call__(self, model: nn.Module) -> None:
        """Predict with the model as it is now."""
        if not self.logits:
            self._known = _log_fc(self._parts, model)
        self.logits.append(predict_logits(model, self.test, log_fc=self._known)["logits"])

    def best(self, tokenizer: BEITokenizer) -> dict[str, dict[str, float]]:
        """Per task all metrics at the epoch with the highest accuracy, or the lowest mean absolute error."""
        best = {}
        for task in self.tasks:
            values = task.values(self.test.table)
            known = ~np.isnan(values)
            if known.any():
                truth = task.truth(self.test.select(known))
                scores = [
                    task.score(truth, predictions_of(logits, tokenizer, (task,))[task.name][known])
                    for logits in self.logits
                ]
                best[task.name] = max(scores, key=lambda score: score.get("accuracy", -score.get("mae", 0.0)))
        return best


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
        return variable.values(logits[:, 0].double().numpy())
    known = [
        (column, variable.labels.index(label)) for column, label in enumerate(task.labels) if label in variable.labels
    ]
    columns, tokens = zip(*known, strict=True)
    probabilities = np.zeros((len(logits), len(task.labels)))
    probabilities[:, list(columns)] = logits.double()[:, list(tokens)].softmax(-1).numpy()
    return probabilities


def _score(
    recipe: Recipe,
    task: Task,
    test: Cohort,
    members: Sequence[Member],
    others: dict[str, np.ndarray],
    place: dict[str, int],
) -> dict[str, Any]:
    """Metrics of the averaged members, of each, and of the baselines; and the predictions by scan."""
    known = ~np.isnan(task.values(test.table))
    tested = test.select(known)
    truth = task.truth(tested)
    predictions = {
        name: np.mean([member.predictions[name][task.name][known] for member in members], axis=0)
        for name in members[0].predictions
    }
    predictions |= others
    metrics = {name: task.score(truth, values) for name, values in predictions.items()}
    columns = _columns(tested, task, place, predictions)
    result: dict[str, Any] = {"rows": tested.table.index.tolist(), "predictions": columns}
    if len(members) > 1:
        result["members"] = [task.score(truth, member.predictions[LCM][task.name][known]) for member in members]
        metrics = {LCM: metrics[LCM], SINGLE: _mean(result["members"]), **metrics}
    if recipe.arguments.optimistic:
        metrics[OPTIMISTIC] = _mean([member.best_epochs[task.name] for member in members])
    return {"metrics": metrics, **result}


def _mean(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([score[name] for score in scores])) for name in scores[0]}


def _columns(tested: Cohort, task: Task, place: dict[str, int], predictions: dict[str, np.ndarray]) -> dict[str, list]:
    """The predictions as columns of a table, one row per test scan."""
    truth = task.truth(tested)
    columns = {"subject_id": tested.subjects.tolist(), "session": tested.table["session"].tolist()}
    columns |= {name: [number] * len(tested) for name, number in place.items()}
    columns[task.name] = [task.labels[index] for index in truth] if task.is_classification else truth.tolist()
    for model, values in predictions.items():
        if not task.is_classification:
            columns[model] = values.tolist()
            continue
        for index, label in enumerate(task.labels):
            columns[f"{model}: {label}"] = values[:, index].tolist()
    return columns
