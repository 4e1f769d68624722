"""What would make an evaluation's numbers worthless: columns that tell the label, and people seen before."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from .checkpoints import read_record
from .data import is_phenotype
from .identity import seen_people
from .protocol import Task


TELLS = 0.99  # share of people whose label a column tells, or its ROC AUC or correlation
FEW_VALUES = 50


def leaking_columns(table: pd.DataFrame, task: Task, pretrained: Sequence[str] = ()) -> list[str]:
    """Warnings about columns that equal or determine a task's label, a missing value counting as a value.

    Args:
        table (`pd.DataFrame`): one row per scan of the tested cohort.
        task (`Task`): what is predicted.
        pretrained (`Sequence[str]`): variables that the pretraining learns.

    Returns:
        One sentence per such column.
    """
    known = task.recorded[: len(table)]
    truth = task.truth(np.flatnonzero(known))
    found = []
    for column in map(str, table.columns):
        if column == task.name or not (is_phenotype(column) or column == "dataset"):
            continue
        strength = _strength(table[column][known], truth, task)
        if strength is not None and strength >= TELLS:
            use = "; the pretraining learns it from the training subjects" if column in pretrained else ""
            found.append(
                f"The column {column!r} alone tells {task.name!r} (strength {strength:.2f} of 1){use}: what predicts "
                f"{column!r} predicts {task.name!r}, so this score may be about the former."
            )
    return found


def _strength(values: pd.Series, truth: np.ndarray, task: Task) -> float | None:
    """How well a column tells the label: share of people told right by its values, or |correlation|; None: not at all.

    Only what beats always guessing the most frequent label counts.
    """
    if values.nunique(dropna=False) < 2:
        return None
    if values.nunique() <= FEW_VALUES and task.is_classification:
        text = values.astype("string").fillna("(missing)")
        right = pd.crosstab(text.to_numpy(), truth).max(axis=1).sum() / len(truth)
        return float(right) if right > np.bincount(truth).max() / len(truth) else None
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)
    given = ~np.isnan(numbers)
    if given.sum() < 3 or len(np.unique(truth[given])) < 2 or np.ptp(numbers[given]) == 0:
        return None
    if not task.is_classification:
        return float(abs(np.corrcoef(numbers[given], truth[given])[0, 1]))
    areas = [roc_auc_score(truth[given] == index, numbers[given]) for index in np.unique(truth[given])]
    return float(max(max(area, 1 - area) for area in areas))


def refuse_seen_subjects(checkpoint: str, tested: pd.DataFrame, allowed: bool) -> str | None:
    """Check that a checkpoint was trained on none of the test subjects.

    Args:
        checkpoint (`str`): folder or Hub repository.
        tested (`pd.DataFrame`): one row per test scan.
        allowed (`bool`): go on nevertheless.

    Returns:
        A remark for the report, if people were seen or nothing is known; else None.

    Raises:
        ValueError: it was, and that is not allowed.
    """
    record = read_record(checkpoint)
    seen = seen_people(record, tested)
    if seen and not allowed:
        raise ValueError(
            f"The checkpoint {checkpoint} was trained on {len(seen)} of the test subjects, {seen[0]} among them. Give "
            "a pretraining configuration instead, which is then run per fold, or accept an optimistic score with "
            "allow_seen_subjects."
        )
    if seen:
        return f"The checkpoint was trained on {len(seen)} of the test subjects: these scores are optimistic."
    if not {"training_subjects", "training_subject_hashes"} & set(record):
        return "The checkpoint does not say whom it was trained on: whether test subjects are among them is not known."
    return None
