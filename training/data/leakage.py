"""What would make an evaluation's numbers worthless: columns that tell the label, and subjects seen before."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu, pearsonr
from sklearn.metrics import roc_auc_score

from .cohort import is_phenotype


TELLS = 0.99  # share of subjects whose label a column tells, or its ROC AUC or correlation
CHANCE = 1e-3  # how often chance may do that


def leaking_columns(
    table: pd.DataFrame, name: str, truth: np.ndarray, is_class: bool, pretrained: Sequence[str] = ()
) -> list[str]:
    """Warnings about columns that equal or determine a label, a missing value counting as a value.

    What tells the label is learnt from the connectome in the label's place: a scanner leaves its mark there.

    Args:
        table (`pd.DataFrame`): one row per scan whose label is known.
        name (`str`): the label's column.
        truth (`np.ndarray` of shape `(scans,)`): class indices, or values.
        is_class (`bool`): whether they are classes.
        pretrained (`Sequence[str]`): variables that the pretraining learns.

    Returns:
        One sentence per such column: one that tells 99 % of the subjects right (or has an ROC AUC or correlation of
        0.99), as would happen by chance less than once in a thousand.
    """
    found = []
    for column in map(str, table.columns):
        if column == name or not (is_phenotype(column) or column == "dataset"):
            continue
        values = table[column]
        if values.nunique(dropna=False) > 1 and len(np.unique(truth)) > 1 and _tells(values, truth, is_class):
            use = "; the pretraining learns it" if column in pretrained else ""
            found.append(
                f"The column {column!r} alone tells {name!r}{use}: what predicts {column!r} predicts {name!r}, so a "
                "score may be about the former."
            )
    return found


def _tells(values: pd.Series, truth: np.ndarray, is_class: bool) -> bool:
    numbers = pd.to_numeric(values, errors="coerce").to_numpy(dtype=float)
    given = ~np.isnan(numbers)
    enough = given.sum() > 2 and np.ptp(numbers[given]) > 0 and len(np.unique(truth[given])) > 1
    if not is_class:
        if not enough:
            return False
        correlation = pearsonr(numbers[given], truth[given])
        return bool(abs(correlation.statistic) >= TELLS and correlation.pvalue < CHANCE)
    classes = np.unique(truth, return_inverse=True)[1]
    cells = pd.crosstab(values.astype("string").fillna("(missing)").to_numpy(), classes)
    usual = np.bincount(classes).max() / len(classes)
    # Scans beyond the first one of each value: chance would have to hit the label of every one.
    if cells.max(axis=1).sum() >= TELLS * len(classes) and usual ** (len(classes) - len(cells)) < CHANCE:
        return True
    return enough and any(_separates(numbers[given], classes[given] == index) for index in np.unique(classes[given]))


def _separates(numbers: np.ndarray, is_inside: np.ndarray) -> bool:
    """Whether a threshold on the numbers tells who is inside."""
    area = roc_auc_score(is_inside, numbers)
    rare = mannwhitneyu(numbers[is_inside], numbers[~is_inside]).pvalue < CHANCE
    return bool(rare and max(area, 1 - area) >= TELLS)
