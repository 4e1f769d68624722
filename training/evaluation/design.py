"""What an evaluation does: its settings, the variables that are predicted, and the folds."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import pandas as pd
from accelerate import PartialState
from sklearn.exceptions import UndefinedMetricWarning

from modeling_lcm import BEIVariable

from ..data.cohort import Cohort, load_cohort
from ..data.combine import for_checkpoint, join_subjects, pool
from ..data.folds import Folds, leave_site_out, make_folds
from ..data.harmonise import harmonise
from ..data.labels import load_vocabulary
from ..trainer.arguments import FinetuneArguments, PretrainArguments
from ..trainer.checkpoints import load_processor
from ..trainer.vocabulary import only_labels, pretraining_variables, task_variable
from .arguments import EvaluateArguments, read_stages
from .baselines import Kind
from .metrics import classification_metrics, regression_metrics


TESTED, JOINS = "tested", "joins"


@dataclass(frozen=True)
class Task:
    """A variable that is predicted, as it is scored.

    Args:
        variable (`BEIVariable`): the phenotype column, with the labels (and spellings) that are known.
        labels (`tuple[str, ...]`): labels that are scored, of two the positive one last; empty for a number.
    """

    variable: BEIVariable
    labels: tuple[str, ...]

    @property
    def name(self) -> str:
        """The phenotype column."""
        return self.variable.name

    @property
    def is_classification(self) -> bool:
        """Whether the variable is categorical."""
        return bool(self.labels)

    @property
    def positive(self) -> str | None:
        """The positive one of two labels."""
        return self.labels[1] if len(self.labels) == 2 else None

    @property
    def kind(self) -> Kind:
        """What the baselines call it."""
        return "classification" if self.is_classification else "regression"

    def values(self, table: pd.DataFrame) -> np.ndarray:
        """Class index, or value in the variable's unit, of every scan `(scans,)`; NaN where none is scored.

        Args:
            table (`pd.DataFrame`): one row per scan; without the column, nothing is recorded.
        """
        if self.name not in table:
            return np.full(len(table), np.nan)
        values = table[self.name]
        if self.is_classification:
            known = [value for value in values.unique() if self.variable.knows(value)]
            spelt = {value: self.variable.label_of(value) for value in known}
            values = values.map(
                {value: self.labels.index(label) for value, label in spelt.items() if label in self.labels}
            )
        return pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)

    def known(self, cohort: Cohort) -> Cohort:
        """Those scans whose value is recorded."""
        return cohort.select(~np.isnan(self.values(cohort.table)))

    def truth(self, cohort: Cohort) -> np.ndarray:
        """Class indices (int) or values of scans that all have one."""
        values = self.values(cohort.table)
        return values.astype(int) if self.is_classification else values

    def score(self, truth: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
        """Metrics of predictions (probabilities or values); undefined ones are NaN.

        Args:
            truth (`np.ndarray` of shape `(scans,)`): class indices or values.
            predictions (`np.ndarray` of shape `(scans, classes)` or `(scans,)`): probabilities or values.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            if self.is_classification:
                return classification_metrics(truth, predictions, self.labels)
            return regression_metrics(truth, predictions)


@dataclass(frozen=True)
class Recipe:
    """What every fold trains and scores.

    Args:
        tasks (`tuple[Task, ...]`): what is predicted.
        pretraining (`PretrainArguments`, *optional*): stage one of every fold.
        tuning (`FinetuneArguments`, *optional*): stage two; without it the pretrained variables are scored.
        arguments (`EvaluateArguments`): all other settings.
    """

    tasks: tuple[Task, ...]
    pretraining: PretrainArguments | None
    tuning: FinetuneArguments | None
    arguments: EvaluateArguments

    @property
    def seed(self) -> int:
        """Training seed of the last stage."""
        return self.last_stage.seed

    @property
    def last_stage(self) -> PretrainArguments | FinetuneArguments:
        """The stage whose model is scored; [`make_design`] sees to it that there is one."""
        return cast(PretrainArguments | FinetuneArguments, self.tuning or self.pretraining)


class Parts(NamedTuple):
    """The scans of a fold, or of an external test: no tested subject has a scan among the others, in whatever cohort.

    Args:
        pretraining (`Cohort`): what the pretraining may see, of all cohorts.
        training (`Cohort`): those of the tested cohort: for fine-tuning and the baselines.
        test (`Cohort`): what is predicted.
    """

    pretraining: Cohort
    training: Cohort
    test: Cohort


@dataclass(frozen=True)
class Design:
    """A recipe and the data on which it is evaluated.

    Args:
        recipe (`Recipe`): what every fold does.
        cohort (`Cohort`): scans of all cohorts; whoever is one subject has one id.
        part (`np.ndarray` of shape `(scans,)`): of every scan "tested" (of the cohort that is split), "joins" (it only
            joins the pretraining) or the folder of its external data set.
    """

    recipe: Recipe
    cohort: Cohort
    part: np.ndarray

    @property
    def tested(self) -> Cohort:
        """The cohort that is split."""
        return self.cohort.select(self.part == TESTED)

    @property
    def num_joining(self) -> int:
        """Scans of other cohorts that join the pretraining."""
        return int((self.part == JOINS).sum())

    def external(self, folder: str) -> Cohort:
        """The scans of an external data set."""
        return self.cohort.select(self.part == folder)

    def fold(self, folds: Folds, fold: int) -> Parts:
        """The scans of a fold."""
        return self._parts(folds.tests(self.cohort.subjects, fold), TESTED)

    def external_test(self, folder: str) -> Parts:
        """The scans of an external test: all others train, except those of its subjects."""
        return self._parts(self.cohort.subjects.isin(self.external(folder).subjects).to_numpy(), folder)

    def _parts(self, is_test: np.ndarray, tested_part: str) -> Parts:
        may_train = ~is_test & np.isin(self.part, (TESTED, JOINS))
        own = may_train & (self.part == TESTED)
        cohort, column = self.cohort, self.recipe.arguments.harmonise
        if column is not None:
            cohort = harmonise(cohort, cohort.select(may_train), column)
        return Parts(*(cohort.select(mask) for mask in (may_train, own, is_test & (self.part == tested_part))))


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
    return _task(table, variable, arguments.positive is not None)


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
        variables = [variable.name for variable in load_vocabulary(arguments.vocabulary)]
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
    found = {each.name: each for each in pretraining_variables(cohort, arguments, chosen)}
    asked = {entry.partition("=")[0] for entry in arguments.positive}
    return tuple(_task(table, found[name], name in asked) for name in chosen)


def _require_values(table: pd.DataFrame, name: str) -> None:
    """Raise `ValueError` when a column is absent, without any value, or the same for everybody."""
    if name not in table:
        raise ValueError(f"There is no column {name!r} in the tested cohort; it has {', '.join(table.columns)}.")
    values = table[name].dropna()
    if values.empty:
        raise ValueError(f"{name!r} is recorded for nobody in the tested cohort: there is nothing to score.")
    if values.nunique() == 1:
        raise ValueError(f"{name!r} is {values.iloc[0]} for everybody in the tested cohort: nothing to predict.")


def _task(table: pd.DataFrame, variable: BEIVariable, is_asked: bool = False) -> Task:
    """The task of a variable; labels that nobody here has are left out of it, and of two the positive one is last.

    Raises:
        ValueError: a value that is none of the labels, or no number; or a positive label is asked for, and the table
            has more labels than two.
    """
    subjects = table["subject_id"].tolist()
    variable.parse(table[variable.name].tolist(), lambda scan: f"subject {subjects[scan]}")
    if variable.kind == "continuous":
        return Task(variable, ())
    every = Task(variable, tuple(variable.labels)).values(table)
    present = sorted({int(index) for index in every[~np.isnan(every)]})
    if is_asked and len(present) != 2:
        raise ValueError(
            f"positive is {variable.positive!r}, but {variable.name!r} has {len(present)} labels in the tested "
            "cohort; it must be one of two."
        )
    if len(present) == 2 and variable.positive is not None:
        present.sort(key=lambda index: variable.labels[index] == variable.positive)
    return Task(variable, tuple(variable.labels[index] for index in present))


def draw_folds(design: Design, output: Path) -> list[Folds]:
    """The folds of every repeat: those in the output folder, a split file's, or new ones.

    Args:
        design (`Design`): the data and the settings.
        output (`Path`): the evaluation's folder.

    Raises:
        ValueError: folds that cannot be made, or in which a class would be absent from the training subjects.
    """
    tested, arguments, tasks = design.tested, design.recipe.arguments, design.recipe.tasks
    every = []
    for repeat, path in enumerate(_split_files(output, arguments.repeats)):
        if path.is_file():
            folds = Folds.load(path)
        elif arguments.splits is not None:
            folds = Folds.load(arguments.splits)
        elif arguments.split == "leave_site_out":
            folds = leave_site_out(tested.table, arguments.site_column)
        else:
            column = arguments.stratify or next((task.name for task in tasks if task.is_classification), None)
            folds = make_folds(tested.table, arguments.n_folds, arguments.seed + repeat, column)
        for task in tasks:
            _check_folds(tested, task, folds, arguments)
        every.append(folds.of_cohort(tested))
    return every


def save_folds(folds: Sequence[Folds], output: Path) -> None:
    """Write the folds of every repeat into the output folder."""
    for each, path in zip(folds, _split_files(output, len(folds)), strict=True):
        each.save(path)


def _split_files(output: Path, repeats: int) -> list[Path]:
    names = [f"splits_{repeat}.json" for repeat in range(repeats)] if repeats > 1 else ["splits.json"]
    return [output / name for name in names]


def _check_folds(tested: Cohort, task: Task, folds: Folds, arguments: EvaluateArguments) -> None:
    """Raise `ValueError` when the training subjects of a fold lack a class, or nobody is tested at all."""
    values, subjects = task.values(tested.table), tested.subjects
    if task.is_classification:
        counts = [subjects[values == index].nunique() for index in range(len(task.labels))]
        alone = [label for label, count in zip(task.labels, counts, strict=True) if count == 1]
        if alone:
            raise ValueError(
                f"The class {alone[0]!r} of {task.name!r} has one subject, who cannot be trained on and tested: leave "
                "the class out (labels of the fine-tuning settings names those to keep), or name other tasks."
            )
    num_tested = 0
    for fold in range(len(folds.test_subjects)):
        is_test = folds.tests(subjects, fold)
        test, train = (values[part & ~np.isnan(values)] for part in (is_test, ~is_test))
        num_tested += len(test)
        absent = set(range(len(task.labels))) - set(train.astype(int)) if len(test) else set()
        if absent or not len(train):
            names = ", ".join(task.labels[index] for index in sorted(absent)) or "any value"
            advice = "use other folds"
            if arguments.split == "leave_site_out":
                advice = f"{arguments.site_column!r} all but tells it, so sites cannot be left out; split by subject"
            raise ValueError(f"No training subject of fold {fold} has {names} of {task.name!r}: {advice}.")
    if not num_tested:
        raise ValueError(f"No test subject has a value of {task.name!r}: there is nothing to score.")


def make_design(arguments: EvaluateArguments) -> Design:
    """Read the recipe's files and the data, and settle what is predicted.

    Raises:
        ValueError: neither stage has settings, or the data do not fit them.
    """
    tuning, pretraining = read_stages(arguments)
    if PartialState().num_processes > 1:
        raise ValueError("training.evaluate runs in one process: start it with python, not accelerate launch.")
    cohort = load_cohort(arguments.data)
    if pretraining is not None:
        cohort = cohort.with_atlas(pretraining.atlas)
    elif tuning is not None and tuning.checkpoint:  # the ridge head needs none
        cohort = for_checkpoint(load_processor(tuning.checkpoint), cohort)
    if arguments.harmonise is not None:
        cohort.require_column(arguments.harmonise)
    if arguments.splits is not None:
        cohort = Folds.load(arguments.splits).join(cohort)
    if arguments.same_person is not None:
        cohort = join_subjects(cohort, arguments.same_person)
    tuning, pretraining = _with_positive(arguments.positive, tuning, pretraining)
    tasks: tuple[Task, ...] = ()
    if tuning is not None:
        tasks = (make_task(cohort, tuning, _pretrained_variable(cohort, tuning, pretraining)),)
    elif pretraining is not None:
        tasks = pretrained_tasks(cohort, pretraining, arguments.tasks)
    recipe = Recipe(tasks, pretraining, tuning, arguments)
    parts = {TESTED: len(cohort)}
    if arguments.train_data or arguments.external:
        cohort, sizes = pool(cohort, arguments.data, [*arguments.train_data, *arguments.external])
        others = len(arguments.train_data) + 1
        parts |= {JOINS: sum(sizes[1:others])} | dict(zip(arguments.external, sizes[others:], strict=True))
    return Design(recipe, cohort, np.repeat(np.array([*parts], dtype=object), [*parts.values()]))


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
        elif tuning is not None:
            raise ValueError(f"positive is {entry!r}, but the task is {tuning.task!r}: give one of its labels.")
    return tuning, pretraining


def _pretrained_variable(
    cohort: Cohort, tuning: FinetuneArguments, pretraining: PretrainArguments | None
) -> BEIVariable | None:
    """The downstream variable as the checkpoint knows it, or will know it; `None` if it is a new one."""
    if pretraining is None and not tuning.checkpoint:
        return None
    if pretraining is None:
        known = load_processor(tuning.checkpoint).tokenizer.variables
    else:
        known = pretraining_variables(cohort, pretraining, [tuning.task])
    return next((variable for variable in known if variable.name == tuning.task), None)
