"""What an evaluation does: its settings, the variables that are predicted, and the folds."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from accelerate import PartialState
from sklearn.exceptions import UndefinedMetricWarning

from modeling_lcm import BEITokenizer, BEIVariable
from modeling_lcm.loss_lcm import IGNORE_INDEX

from ..cli import parse_arguments
from ..data.cohort import Cohort, load_cohort
from ..data.combine import check_same_regions, join_people, pool
from ..data.folds import Folds, leave_site_out, make_folds
from ..trainer.arguments import FinetuneArguments, PretrainArguments
from ..trainer.checkpoints import load_processor
from ..trainer.vocabulary import only_labels, pretraining_variables, task_variable
from .arguments import EvaluateArguments
from .metrics import classification_metrics, regression_metrics


@dataclass(frozen=True)
class Task:
    """A variable that is predicted, and its value for every scan that may be tested.

    Args:
        name (`str`): phenotype column.
        labels (`tuple[str, ...]`): class names in order, of two the positive one last; empty for a number.
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
    def positive(self) -> str | None:
        """The positive one of two labels."""
        return self.labels[1] if len(self.labels) == 2 else None

    @property
    def kind(self) -> str:
        """What the baselines call it."""
        return "classification" if self.is_classification else "regression"

    @property
    def recorded(self) -> np.ndarray:
        """Boolean mask of the scans whose value is known."""
        return ~np.isnan(self.targets)

    def known(self, rows: np.ndarray) -> np.ndarray:
        """Those of some rows whose value is recorded."""
        return rows[self.recorded[rows]]

    def truth(self, rows: np.ndarray) -> np.ndarray:
        """Class indices (int) or values of some rows that have one."""
        return self.targets[rows].astype(int) if self.is_classification else self.targets[rows]

    def extended(self, table: pd.DataFrame, rows: np.ndarray, total: int) -> "Task":
        """The task with the values of further rows: those of a table whose labels it knows; others stay without.

        Args:
            table (`pd.DataFrame`): one row per scan of an external data set.
            rows (`np.ndarray`): where these scans stand.
            total (`int`): scans in all.
        """
        targets = np.full(total, np.nan)
        targets[: len(self.targets)] = self.targets
        if self.name in table:
            values = table[self.name]
            if self.is_classification:
                variable = BEIVariable(self.name, "categorical", list(self.labels))
                known = [value for value in values.unique() if variable.knows(value)]
                values = values.map({value: self.labels.index(variable.label_of(value)) for value in known})
            targets[rows] = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)
        return replace(self, targets=targets)

    def score(self, rows: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
        """Metrics of predictions (probabilities or values) for some scans; undefined ones are NaN."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            return self._score(rows, predictions)

    def _score(self, rows: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
        if self.is_classification:
            return classification_metrics(self.truth(rows), predictions, self.labels)
        return regression_metrics(self.truth(rows), predictions)


class Rows(NamedTuple):
    """Row numbers of a fold, or of an external test.

    Args:
        pretraining (`np.ndarray`): scans that the pretraining may see, of all cohorts.
        training (`np.ndarray`): those of the tested cohort: for fine-tuning and the baselines.
        test (`np.ndarray`): scans that are predicted.
    """

    pretraining: np.ndarray
    training: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Design:
    """Everything that a fold needs to know.

    Args:
        cohort (`Cohort`): the tested scans, then those of other cohorts that join the pretraining, then external ones.
        num_tested (`int`): scans of the tested cohort.
        external (`dict[str, np.ndarray]`): rows of every external data set.
        tasks (`tuple[Task, ...]`): what is predicted.
        pretraining (`PretrainArguments`, *optional*): stage one of every fold.
        tuning (`FinetuneArguments`, *optional*): stage two; without it the pretrained variables are scored.
        arguments (`EvaluateArguments`): all other settings.
    """

    cohort: Cohort
    num_tested: int
    external: dict[str, np.ndarray]
    tasks: tuple[Task, ...]
    pretraining: PretrainArguments | None
    tuning: FinetuneArguments | None
    arguments: EvaluateArguments

    @property
    def table(self) -> pd.DataFrame:
        """One row per scan of the tested cohort."""
        return self.cohort.table.iloc[: self.num_tested]

    @property
    def num_joining(self) -> int:
        """Scans of other cohorts that join the pretraining."""
        return len(self.cohort.table) - self.num_tested - sum(map(len, self.external.values()))

    def fold_rows(self, folds: Folds, fold: int) -> Rows:
        """Rows of a fold: nobody who is tested has a scan among the others, in whatever cohort."""
        others, test = folds.rows(self.cohort.table["subject_id"].astype(str), fold)
        others = others[others < self.num_tested + self.num_joining]
        return Rows(others, others[others < self.num_tested], test[test < self.num_tested])

    def external_rows(self, name: str) -> Rows:
        """Rows of an external test: all others train, except scans of the people in it."""
        subjects, test = self.cohort.table["subject_id"].astype(str), self.external[name]
        others = np.arange(self.num_tested + self.num_joining)
        others = others[~subjects.iloc[others].isin(set(subjects.iloc[test])).to_numpy()]
        return Rows(others, others[others < self.num_tested], test)


def make_task(cohort: Cohort, arguments: FinetuneArguments, known: BEIVariable | None = None) -> Task:
    """The downstream variable of a fine-tuning configuration.

    Args:
        cohort (`Cohort`): the tested cohort.
        arguments (`FinetuneArguments`): settings.
        known (`BEIVariable`, *optional*): the variable, if it was pretrained.

    Raises:
        ValueError: the column does not exist, has no value or a single one, or not the positive label.
    """
    cohort.require_column(arguments.task)
    table = only_labels(cohort.table, arguments)
    _require_values(table, arguments.task)
    variable = task_variable(table, arguments, known, cohort.positive)
    return _encode(table, variable, arguments.positive is not None)


def pretrained_tasks(cohort: Cohort, arguments: PretrainArguments, names: Sequence[str] = ()) -> tuple[Task, ...]:
    """The variables of a pretraining configuration that the tested cohort has, or those of them that are named.

    Args:
        cohort (`Cohort`): the tested cohort.
        arguments (`PretrainArguments`): names the variables, or a saved vocabulary.
        names (`Sequence[str]`): which to score; all by default.

    Raises:
        ValueError: a name that is not pretrained or not in the data, or nothing to score.
    """
    table = cohort.table
    if arguments.vocabulary is not None:
        variables = [variable.name for variable in BEITokenizer.from_pretrained(arguments.vocabulary).variables]
    else:
        variables = [*arguments.categorical, *arguments.continuous]
    unknown = [name for name in names if name not in variables]
    if unknown:
        raise ValueError(f"The tasks {', '.join(unknown)} are not pretrained; those are {', '.join(variables)}.")
    chosen = list(names) or [name for name in variables if name in table and table[name].notna().any()]
    if not chosen:
        raise ValueError(f"None of the pretrained variables {', '.join(variables)} is recorded in the tested cohort.")
    for name in chosen:
        _require_values(table, name)
    found = {each.name: each for each in pretraining_variables(cohort, np.arange(len(table)), arguments, chosen)}
    asked = {entry.partition("=")[0] for entry in arguments.positive}
    return tuple(_encode(table, found[name], name in asked) for name in chosen)


def _require_values(table: pd.DataFrame, name: str) -> None:
    """Raise `ValueError` when a column is absent, without any value, or the same for everybody."""
    if name not in table:
        raise ValueError(f"There is no column {name!r} in the tested cohort; it has {', '.join(table)}.")
    values = table[name].dropna()
    if values.empty:
        raise ValueError(f"{name!r} is recorded for nobody in the tested cohort: there is nothing to score.")
    if values.nunique() == 1:
        raise ValueError(f"{name!r} is {values.iloc[0]} for everybody in the tested cohort: nothing to predict.")


def _encode(table: pd.DataFrame, variable: BEIVariable, is_asked: bool = False) -> Task:
    """The task of a variable; labels that nobody here has are left out of it, and of two the positive one is last.

    Raises:
        ValueError: a positive label is asked for, and the table has more labels than two.
    """
    targets = BEITokenizer(variables=[variable])(table)["labels"][:, 0].astype(float)
    targets[targets == IGNORE_INDEX] = np.nan
    if variable.kind == "continuous":
        return Task(variable.name, (), targets * variable.std + variable.mean)
    present = sorted({int(index) for index in targets[~np.isnan(targets)]})
    if is_asked and len(present) != 2:
        raise ValueError(
            f"positive is {variable.positive!r}, but {variable.name!r} has {len(present)} labels in the tested "
            "cohort; it must be one of two."
        )
    if len(present) == 2 and variable.positive is not None:
        present.sort(key=lambda index: variable.labels[index] == variable.positive)
    position = {index: number for number, index in enumerate(present)}
    targets = np.array([np.nan if np.isnan(index) else position[int(index)] for index in targets])
    return Task(variable.name, tuple(variable.labels[index] for index in present), targets)


def draw_folds(table: pd.DataFrame, tasks: Sequence[Task], arguments: EvaluateArguments, output: Path) -> list[Folds]:
    """The folds of every repeat: those in the output folder, a split file's, or new ones.

    Raises:
        ValueError: folds that cannot be made, or in which a class would be absent from the training subjects.
    """
    found = []
    for repeat, path in enumerate(_split_files(output, arguments.repeats)):
        if path.is_file():
            folds = Folds.load(path)
        elif arguments.splits is not None:
            folds = Folds.load(arguments.splits)
        elif arguments.split == "leave_site_out":
            folds = leave_site_out(table, arguments.site_column)
        else:
            column = arguments.stratify or next((task.name for task in tasks if task.is_classification), None)
            folds = make_folds(table, arguments.n_folds, arguments.seed + repeat, column)
        for task in tasks:
            _check_folds(table, task, folds, arguments)
        found.append(folds)
    return found


def save_folds(folds: Sequence[Folds], output: Path) -> None:
    """Write the folds of every repeat into the output folder."""
    for each, path in zip(folds, _split_files(output, len(folds)), strict=True):
        each.save(path)


def _split_files(output: Path, repeats: int) -> list[Path]:
    names = [f"splits_{repeat}.json" for repeat in range(repeats)] if repeats > 1 else ["splits.json"]
    return [output / name for name in names]


def _check_folds(table: pd.DataFrame, task: Task, folds: Folds, arguments: EvaluateArguments) -> None:
    """Raise `ValueError` when the training subjects of a fold lack a class, or nobody is tested at all."""
    subjects = table["subject_id"].astype(str)
    if task.is_classification:
        targets = task.targets[: len(table)]
        people = [subjects[targets == index].nunique() for index in range(len(task.labels))]
        alone = [label for label, count in zip(task.labels, people, strict=True) if count == 1]
        if alone:
            raise ValueError(
                f"The class {alone[0]!r} of {task.name!r} has one subject, who cannot be trained on and tested: leave "
                "the class out (labels of the fine-tuning settings names those to keep), or name other tasks."
            )
    tested = 0
    for fold in range(len(folds.test_subjects)):
        train, test = (task.known(rows) for rows in folds.rows(subjects, fold))
        tested += len(test)
        absent = set(range(len(task.labels))) - set(task.targets[train].astype(int)) if len(test) else set()
        if absent or not len(train):
            names = ", ".join(task.labels[index] for index in sorted(absent)) or "any value"
            advice = "use other folds"
            if arguments.split == "leave_site_out":
                advice = f"{arguments.site_column!r} all but tells it, so sites cannot be left out; split by subject"
            raise ValueError(f"No training subject of fold {fold} has {names} of {task.name!r}: {advice}.")
    if not tested:
        raise ValueError(f"No test subject has a value of {task.name!r}: there is nothing to score.")


def make_design(arguments: EvaluateArguments) -> Design:
    """Read the recipe's files and the data, and settle what is predicted.

    Raises:
        ValueError: neither stage has settings, or the data do not fit them.
    """
    if not arguments.finetune and arguments.pretrain is None:
        raise ValueError(
            "There is nothing to train: add --finetune FILE.yaml (a downstream task) or --pretrain FILE.yaml (the "
            "pretrained variables are scored), or both."
        )
    if PartialState().num_processes > 1:
        raise ValueError("training.evaluate runs in one process: start it with python, not accelerate launch.")
    cohort = load_cohort(arguments.data)
    tuning = pretraining = None
    if arguments.finetune:
        tuning = parse_arguments(FinetuneArguments, ["--config", arguments.finetune])
    if arguments.pretrain is not None:
        pretraining = parse_arguments(PretrainArguments, ["--config", arguments.pretrain])
    else:
        check_same_regions(load_processor(tuning.checkpoint), cohort)
    if arguments.harmonise is not None:
        cohort.require_column(arguments.harmonise)
    if arguments.same_person is not None:
        cohort = join_people(cohort, arguments.same_person)
    tuning, pretraining = _with_positive(arguments.positive, tuning, pretraining)
    num_tested, external = len(cohort.table), {}
    if tuning is not None:
        tasks = (make_task(cohort, tuning, _pretrained_variable(cohort, tuning, pretraining)),)
    else:
        tasks = pretrained_tasks(cohort, pretraining, arguments.tasks)
    if arguments.train_data or arguments.external:
        cohort, parts = pool(cohort, arguments.data, [*arguments.train_data, *arguments.external])
        external = dict(zip(arguments.external, parts[len(arguments.train_data) :], strict=True))
        for rows in external.values():
            table = cohort.table.iloc[rows]
            tasks = tuple(task.extended(table, rows, len(cohort.table)) for task in tasks)
    return Design(cohort, num_tested, external, tasks, pretraining, tuning, arguments)


def _with_positive(
    entries: Sequence[str], tuning: FinetuneArguments | None, pretraining: PretrainArguments | None
) -> tuple[FinetuneArguments | None, PretrainArguments | None]:
    """The files' settings with the positive labels of the command line: a bare label is the task's."""
    for entry in entries:
        name, sign, label = entry.partition("=")
        if tuning is not None and (not sign or name == tuning.task):
            tuning = replace(tuning, positive=label if sign else entry)
        elif pretraining is not None:
            others = [other for other in pretraining.positive if other.partition("=")[0] != name]
            pretraining = replace(pretraining, positive=[*others, entry])
        else:
            raise ValueError(f"positive is {entry!r}, but the task is {tuning.task!r}: give one of its labels.")
    return tuning, pretraining


def _pretrained_variable(
    cohort: Cohort, tuning: FinetuneArguments, pretraining: PretrainArguments | None
) -> BEIVariable | None:
    """The downstream variable as the checkpoint knows it, or will know it; `None` if it is a new one."""
    if pretraining is None:
        known = load_processor(tuning.checkpoint).tokenizer.variables
    else:
        known = pretraining_variables(cohort, np.arange(len(cohort.table)), pretraining, [tuning.task])
    return next((variable for variable in known if variable.name == tuning.task), None)
