"""What a checkpoint keeps of its training scans, and what predictions say by it."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from modeling_lcm.limits_lcm import NOT_KNOWN, PART, ScanCheck, TrainingLimits, most_scans

from ..data.cohort import Cohort


LIMIT_COLUMNS = ("out_of_distribution", "limits", "in_training_data", "distance", "beyond", "profile", "mean_fc")
OF_VARIABLE = "_limits"  # ends the name of a column with what is said of one variable


def training_limits(cohort: Cohort, variables: Iterable[str] = ()) -> TrainingLimits | None:
    """Statistics of a cohort's scans, evenly chosen where there are very many; None with fewer than 10 subjects.

    Of several atlases, each has its own.

    Args:
        cohort (`Cohort`): the training scans.
        variables (`Iterable[str]`): what is learnt; where only some of the scans have it, what these are like is kept.
    """
    if cohort.others:
        parts = {atlas: cohort.with_atlas(atlas) for atlas in cohort.atlases}
        return TrainingLimits.several({atlas: training_limits(part, variables) for atlas, part in parts.items()})
    some = _some(cohort)
    limits = TrainingLimits.of(some.connectivity(), list(some.subjects))
    if limits is None:
        return None
    limits.facts["atlas"] = next(iter(some.atlases))
    ages = _ages(cohort.table).to_numpy()
    limits.learn_ages(ages)
    for variable in (name for name in variables if name in cohort.table):
        known = cohort.table[variable].notna().to_numpy()
        if 0 < known.mean() < PART:
            part = cohort.select(known)
            names = part.table["dataset"].dropna().astype(str).unique().tolist() if "dataset" in part.table else []
            limits.learn_range(variable, _some(part).connectivity(), ages[known], names)
    return limits


def _some(cohort: Cohort) -> Cohort:
    """Scans that statistics are made from."""
    count = min(len(cohort), most_scans(cohort.num_regions))
    return cohort.select(np.unique(np.linspace(0, len(cohort) - 1, count, dtype=int)))


def limits_table(limits: TrainingLimits | None, cohort: Cohort, seen: set[str], batch_size: int) -> pd.DataFrame:
    """What is to be said beside the predictions, one row per scan.

    Args:
        limits (`TrainingLimits`, *optional*): of the checkpoint.
        cohort (`Cohort`): the scans.
        seen (`set[str]`): subjects that the checkpoint was trained on.
        batch_size (`int`): scans that are in memory together.

    Returns:
        `out_of_distribution` (empty where no limits are known), `limits` (a sentence, or nothing), `in_training_data`,
        the measures of [`ScanCheck`], and `VARIABLE_limits` of variables that were learnt from scans unlike some of
        these.
    """
    checks: list[ScanCheck | None] = [None] * len(cohort)
    if limits is not None:
        ages = _ages(cohort.table).to_numpy()
        for start in range(0, len(cohort), batch_size):
            rows = np.arange(start, min(start + batch_size, len(cohort)))
            matrices = cohort.connectivity(rows)
            by_atlas = matrices if isinstance(matrices, Mapping) else {next(iter(cohort.atlases)): matrices}
            checks[start : start + batch_size] = limits.check_each(by_atlas, ages[rows])
    table = []
    for subject, known in zip(cohort.subjects, checks, strict=True):
        reasons = [NOT_KNOWN] if known is None else list(known.reasons)
        if subject in seen:
            reasons.append("This subject was in the training data: the prediction is no test of the model.")
        measures = {name: getattr(known, name, None) for name in ("distance", "beyond", "profile", "mean_fc")}
        table.append(
            {
                "out_of_distribution": None if known is None else known.out_of_distribution,
                "limits": " ".join(reasons),
                "in_training_data": subject in seen,
                **measures,
            }
        )
    found = pd.DataFrame(table, columns=list(LIMIT_COLUMNS))
    said = [check.of_variables if check is not None else {} for check in checks]
    for name in dict.fromkeys(name for of_scan in said for name in of_scan):
        found[f"{name}{OF_VARIABLE}"] = [of_scan.get(name, "") for of_scan in said]
    return found


def summarise_limits(table: pd.DataFrame) -> list[str]:
    """Sentences about a table of predictions: how many scans are out of distribution, and how many were trained on."""
    outside = table[table["out_of_distribution"].fillna(False).astype(bool)]
    lines = [NOT_KNOWN] if table["out_of_distribution"].isna().all() else []
    if len(outside):
        first = outside.iloc[0]
        lines.append(
            f"Out of distribution: {len(outside)} of {len(table)} scans, as {first['subject_id']}. {first['limits']}"
        )
    for column in (name for name in map(str, table) if name.endswith(OF_VARIABLE)):
        unlike = table[table[column].fillna("") != ""]
        if len(unlike):
            first = unlike.iloc[0]
            name = column.removesuffix(OF_VARIABLE)
            count = f"{len(unlike)} of {len(table)} scans are unlike those that it was learnt from"
            lines.append(f"{name}: {count}, as {first['subject_id']}. {first[column]}")
    if table["in_training_data"].any():
        seen = int(table["in_training_data"].sum())
        lines.append(f"In the training data: the subjects of {seen} of {len(table)} scans.")
    return lines


def _ages(table: pd.DataFrame) -> pd.Series:
    """Age of every scan's subject, NaN where it is not known: the first column that is called so."""
    for column in table:
        if str(column).lower() in ("age", "age_at_scan", "age_years"):
            return pd.to_numeric(table[column], errors="coerce").astype(float)
    return pd.Series(np.nan, index=table.index)
