"""What an evaluation predicts: a variable as it is scored, from the data and the settings of either stage."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.exceptions import UndefinedMetricWarning

from modeling_lcm import BEIVariable

from ..data.cohort import Cohort
from ..data.labels import load_vocabulary
from ..trainer.arguments import FinetuneArguments, PretrainArguments
from ..trainer.vocabulary import only_labels, pretraining_variables, task_variable
from .inner_choice import Kind
from .scoring import score


@dataclass(frozen=True)
class Task:
    """A variable that is predicted, as it is scored.

    Args:
        variable (`BEIVariable`): the phenotype column, with the labels (and spellings) that are known.
        labels (`tuple[str, ...]`): labels that are scored, of two the positive one last; empty for a number.
        confounds (`tuple[str, ...]`): columns of the baseline that sees no FC.
    """

    variable: BEIVariable
    labels: tuple[str, ...]
    confounds: tuple[str, ...] = ()

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
            # What is undefined comes out as NaN, and the tables say "undefined".
            warnings.simplefilter("ignore", UndefinedMetricWarning)
            return score(truth, predictions, self.labels)


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
