"""What age, sex, motion and site alone tell of a label: a baseline that sees no FC."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from threadpoolctl import threadpool_limits

from ..data.cohort import Cohort
from .baselines import checked_labels
from .inner_choice import Kind, choose_penalty


# Names under which tables have them, in lower case; the first that is recorded counts.
AGE, SEX = ("age",), ("sex", "gender")
MOTION = ("qc_mean_fd", "mean_fd", "mean_fd_mm", "meanfd", "fd_mean", "func_mean_fd")
NOT_RECORDED = "(not recorded)"
# A handful of columns needs weaker penalties than thousands of edges.
C_GRID = (0.01, 0.1, 1.0, 10.0)
ALPHA_GRID = (0.1, 1.0, 10.0, 100.0)


def confound_columns(task: str, table: pd.DataFrame, site_column: str, chosen: Sequence[str] = ()) -> list[str]:
    """Columns with age, sex, motion and site, where they are recorded and differ; never what is predicted.

    Args:
        task (`str`): the column that is predicted.
        table (`pd.DataFrame`): one row per scan of the tested cohort.
        site_column (`str`): the column with the site.
        chosen (`Sequence[str]`): columns to take instead.

    Raises:
        ValueError: a chosen column is not in the table.
    """
    unknown = [name for name in chosen if name not in table]
    if unknown:
        raise ValueError(
            f"confounds names {', '.join(unknown)}, not in the data; there are {', '.join(table.columns)}."
        )
    if chosen:
        return [name for name in chosen if name != task]
    recorded = [str(name) for name in table.columns if name != task and table[name].nunique() > 1]
    columns = []
    for names in (AGE, SEX, MOTION, (site_column.lower(),)):
        columns += [column for name in names for column in recorded if column.lower() == name][:1]
    return columns


def confound_baseline(
    columns: Sequence[str],
    training: Cohort,
    labels: NDArray[Any],
    test: Cohort,
    kind: Kind,
    seed: int,
    groups: Sequence[Hashable],
) -> NDArray[np.float64]:
    """Balanced logistic regression, or ridge, on confounds alone; its penalty is chosen inside the training scans.

    Args:
        columns (`Sequence[str]`): see [`confound_columns`]; numbers are standardised, the rest is one column a value.
        training, test (`Cohort`): scans that are fitted, and predicted.
        labels (`np.ndarray` of shape `(training scans,)`): class indices or values.
        kind (`str`): "classification" or "regression".
        seed (`int`): of the inner folds.
        groups (`Sequence`): subject of each training scan.

    Returns:
        Probabilities `(test scans, classes)`, or predictions `(test scans,)`.
    """
    is_number = {name: pd.api.types.is_numeric_dtype(training.table[name]) for name in columns}
    numbers = [name for name in columns if is_number[name]]
    classes = [name for name in columns if not is_number[name]]
    encoder = make_column_transformer(
        (make_pipeline(SimpleImputer(add_indicator=True, keep_empty_features=True), StandardScaler()), numbers),
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), classes),  # a site may be new in the test fold
    )
    truth = checked_labels(labels, kind, None)
    with threadpool_limits(1), config_context(assume_finite=True, skip_parameter_validation=True):
        features = encoder.fit_transform(_columns(training, numbers, classes))
        if kind == "regression":
            chosen = choose_penalty(Ridge(), "alpha", ALPHA_GRID, features, truth, kind, seed, groups)
            return chosen.predict(encoder.transform(_columns(test, numbers, classes)))
        model = LogisticRegression(class_weight="balanced", max_iter=1000)
        chosen = choose_penalty(model, "C", C_GRID, features, truth, kind, seed, groups)
        return chosen.predict_proba(encoder.transform(_columns(test, numbers, classes)))


def _columns(cohort: Cohort, numbers: Sequence[str], classes: Sequence[str]) -> pd.DataFrame:
    table = cohort.table
    given = {name: pd.to_numeric(table[name], errors="coerce").astype(float) for name in numbers}
    given |= {name: table[name].astype("string").fillna(NOT_RECORDED).astype(object) for name in classes}
    return pd.DataFrame(given, index=table.index)
