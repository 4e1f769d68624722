"""What a checkpoint keeps of its training scans, and what predictions say by it."""

import numpy as np
import pandas as pd

from modeling_lcm.limits_lcm import NOT_KNOWN, ScanCheck, TrainingLimits, most_scans

from ..data.cohort import Cohort


LIMIT_COLUMNS = ("out_of_distribution", "limits", "in_training_data", "distance", "beyond", "profile", "mean_fc")


def training_limits(cohort: Cohort) -> TrainingLimits | None:
    """Statistics of a cohort's scans, evenly chosen where there are very many; None with fewer than 10 subjects.

    Of several atlases, each has its own.
    """
    if cohort.others:
        return TrainingLimits.several({atlas: training_limits(cohort.with_atlas(atlas)) for atlas in cohort.atlases})
    chosen = np.unique(np.linspace(0, len(cohort) - 1, min(len(cohort), most_scans(cohort.num_regions)), dtype=int))
    some = cohort.select(chosen)
    limits = TrainingLimits.of(some.connectivity(), list(some.subjects))
    if limits is not None:
        limits.facts["atlas"] = next(iter(some.atlases))
    ages = _ages(cohort.table)
    if limits is not None and ages.notna().any():
        limits.facts["age"] = [float(ages.min()), float(ages.max())]
    return limits


def limits_table(limits: TrainingLimits | None, cohort: Cohort, seen: set[str], batch_size: int) -> pd.DataFrame:
    """What is to be said beside the predictions, one row per scan.

    Args:
        limits (`TrainingLimits`, *optional*): of the checkpoint.
        cohort (`Cohort`): the scans.
        seen (`set[str]`): subjects that the checkpoint was trained on.
        batch_size (`int`): scans that are in memory together.

    Returns:
        `out_of_distribution` (empty where no limits are known), `limits` (a sentence, or nothing), `in_training_data`,
        and the measures of [`ScanCheck`].
    """
    checks: dict[int, ScanCheck] = {}
    ages = _ages(cohort.table).to_numpy()
    for part in cohort.by_atlas:
        own = None if limits is None else limits.of_atlas(part.id)  # of a checkpoint of one atlas, that one's
        if own is None or (cohort.others and own.facts.get("atlas") not in (None, part.id)):
            continue
        scans = np.setdiff1d(np.flatnonzero(part.are_there()), [*checks])  # each in the first atlas that is known
        for some in np.array_split(scans, range(batch_size, len(scans), batch_size)):
            matrices = own.part_of(part.matrices(some)) if len(some) else None
            if matrices is not None:
                checks |= dict(zip(some.tolist(), own.check(matrices, ages[some]), strict=True))
    rows = []
    for number, subject in enumerate(cohort.subjects):
        known = checks.get(number)
        reasons = [NOT_KNOWN] if known is None else list(known.reasons)
        if subject in seen:
            reasons.append("This subject was in the training data: the prediction is no test of the model.")
        measures = {name: getattr(known, name, None) for name in ("distance", "beyond", "profile", "mean_fc")}
        rows.append(
            {
                "out_of_distribution": None if known is None else known.out_of_distribution,
                "limits": " ".join(reasons),
                "in_training_data": subject in seen,
                **measures,
            }
        )
    return pd.DataFrame(rows, columns=list(LIMIT_COLUMNS))


def summarise_limits(table: pd.DataFrame) -> list[str]:
    """Sentences about a table of predictions: how many scans are out of distribution, and how many were trained on."""
    outside = table[table["out_of_distribution"].fillna(False).astype(bool)]
    lines = [NOT_KNOWN] if table["out_of_distribution"].isna().all() else []
    if len(outside):
        first = outside.iloc[0]
        lines.append(
            f"Out of distribution: {len(outside)} of {len(table)} scans, as {first['subject_id']}. {first['limits']}"
        )
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
