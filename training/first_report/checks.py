"""What makes a task impossible to report on, found before anything is trained."""

import shlex
from dataclasses import replace

import pandas as pd

from ..command_line.cli import did_you_mean
from ..data.cohort import is_phenotype
from .arguments import ReportArguments


LEAST_PER_LABEL = 2  # subjects; one cannot be trained on and tested
MOST_LABELS = 12
FEW = 20  # subjects of the smallest label, below which the page says that the numbers are loose


def task_kind(table: pd.DataFrame, arguments: ReportArguments) -> str:
    """Whether the task is "categorical" or "continuous".

    Args:
        table (`pd.DataFrame`): one row per scan, as data sets have it.
        arguments (`ReportArguments`): task, kind and labels.

    Raises:
        ValueError: there is no such column, it has no or one value, too few subjects, or it is an identifier.
    """
    name = arguments.task
    known = [str(column) for column in table.columns if is_phenotype(str(column))]
    if name not in known:
        raise ValueError(
            f"There is no column {name!r} to predict.{did_you_mean(name, known)} The table has {', '.join(known)}: "
            "choose one with --task."
        )
    values = table[name].dropna()
    subjects = table["subject_id"][values.index].nunique()
    if not len(values):
        raise ValueError(f"{name!r} is recorded for no scan. Is it in another column, or are ids of another spelling?")
    if values.nunique() == 1:
        raise ValueError(
            f"{name!r} is {values.iloc[0]} for all {subjects} subjects: nothing to tell apart. Choose another "
            "column with --task."
        )
    is_number = pd.api.types.is_numeric_dtype(values)
    kind = arguments.kind
    if kind == "auto":
        few = values.nunique() <= MOST_LABELS and (values % 1 == 0).all() if is_number else True
        kind = "categorical" if few else "continuous"
    if kind == "continuous" and not is_number:
        raise ValueError(f"{name!r} holds labels such as {values.iloc[0]!r}: they are no numbers. Leave out --kind.")
    if kind == "categorical" and values.nunique() > max(MOST_LABELS, len(arguments.labels)) and not arguments.labels:
        what = "an identifier" if values.nunique() >= 0.8 * subjects else "no diagnosis"
        others = [each for each in known if each != name and 1 < table[each].nunique() <= MOST_LABELS]
        raise ValueError(
            f"{name!r} has {values.nunique()} different values for {subjects} subjects, so it is {what}. "
            f"--task needs a column with labels{', such as ' + ', '.join(others[:4]) if others else ''}; or name the "
            "labels that are wanted with --labels."
        )
    return kind


def folds_that_fit(table: pd.DataFrame, arguments: ReportArguments, kind: str) -> tuple[ReportArguments, list[str]]:
    """As many folds as the smallest label has subjects at most, and what the page has to say about it.

    Args:
        table (`pd.DataFrame`): one row per scan.
        arguments (`ReportArguments`): task, labels and folds.
        kind (`str`): of the task.

    Raises:
        ValueError: a label has a single subject, or there are fewer than four subjects.
    """
    name = arguments.task
    known = table[table[name].notna()]
    if arguments.labels and kind == "categorical":
        known = known[known[name].astype(str).isin(arguments.labels)]
    notes: list[str] = []
    fewest = known["subject_id"].nunique()
    if kind == "categorical":
        counts = known.groupby(name, observed=True)["subject_id"].nunique().sort_values()
        alone = counts[counts < LEAST_PER_LABEL]
        if len(counts) < 2:
            raise ValueError(
                f"Of the labels {', '.join(arguments.labels)} of {name!r}, the table has "
                f"{', '.join(map(str, counts.index)) or 'none'}; its labels are "
                f"{', '.join(map(str, table[name].dropna().unique()[:8]))}."
            )
        if len(alone):
            kept = " ".join(shlex.quote(str(label)) for label in counts.index[counts >= LEAST_PER_LABEL])
            others = len(counts) - len(alone)
            advice = f"Leave it out: --labels {kept}." if others > 1 else "Add subjects, or choose another task."
            raise ValueError(
                f"The label {alone.index[0]!r} of {name!r} has one subject, who cannot be trained on and tested. "
                f"{advice}"
            )
        fewest = int(counts.iloc[0])
        if fewest < FEW:
            notes.append(
                f"{counts.index[0]} has {fewest} subjects only: the numbers are loose, and one subject more or less "
                "changes them."
            )
    if fewest < 4 and kind == "continuous":
        raise ValueError(f"{name!r} is recorded for {fewest} subjects; a report needs four or more.")
    if fewest < arguments.n_folds:
        notes.append(
            f"{fewest} folds instead of {arguments.n_folds}: no label has to be absent from a fold's training."
        )
        arguments = replace(arguments, n_folds=max(2, fewest))
    return arguments, notes
