"""Who is the same person in an evaluation, and the scans of other cohorts that join its pretraining."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from modeling_lcm import LCMProcessor

from .cohort import Cohort, join_scans, load_cohort
from .dataset_folder import COHORTS_FILE
from .identity import other_names, scan_names


logger = logging.getLogger(__name__)


class _People:
    """Sets of names for one person; the first name that was seen stands for all."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}
        self.order: dict[str, int] = {}

    def find(self, name: str) -> str:
        """The name that stands for this person."""
        self.order.setdefault(name, len(self.order))
        while name in self.parent:
            name = self.parent[name]
        return name

    def join(self, first: str, second: str) -> None:
        """Declare two names one person."""
        roots = sorted({self.find(first), self.find(second)}, key=self.order.__getitem__)
        if len(roots) == 2:
            self.parent[roots[1]] = roots[0]


def join_people(cohort: Cohort, column: str) -> Cohort:
    """Give all scans with one value in a column (a person, twins, a family) one `subject_id`: no split parts them.

    Args:
        cohort (`Cohort`): the prepared data.
        column (`str`): what these people share; scans without a value keep their own id.

    Returns:
        The cohort with the first of the ids as `subject_id`; the recorded ids are in `recorded_subject_id`.

    Raises:
        ValueError: no such column, or every scan would be the same person.
    """
    table = cohort.table.copy()
    if column not in table:
        raise ValueError(f"same_person names the column {column!r}, which is not in the data: {', '.join(table)}.")
    ids = table["subject_id"].astype(str)
    people = _People()
    for subject, shared in zip(ids, table[column], strict=True):
        people.find(f"id {subject}")
        if pd.notna(shared) and str(shared).strip():
            people.join(f"id {subject}", f"shared {shared}")
    first_id: dict[str, str] = {}
    joined = [first_id.setdefault(people.find(f"id {subject}"), subject) for subject in ids]
    if len(set(joined)) == 1:
        raise ValueError(f"With same_person {column!r} all scans are one person: there is nothing to split.")
    table["recorded_subject_id"] = ids
    table["subject_id"] = joined
    return replace(cohort, table=table)


def pool(tested: Cohort, folder: str, others: Sequence[str]) -> tuple[Cohort, list[int]]:
    """The tested cohort with the scans of other cohorts behind its own.

    The tested people keep their ids; others get `COHORT/ID`. Whom `same_person_in_COHORT` columns of either side
    declare the same, and a person whose cohort is given on both sides, has the tested person's id, so that a fold that
    tests the person trains on none of the person's scans. A column that a cohort lacks is missing for its scans.

    Args:
        tested (`Cohort`): the cohort that is split.
        folder (`str`): where it was loaded from.
        others (`Sequence[str]`): data set folders.

    Returns:
        All scans, with the cohorts' own ids as `recorded_subject_id`; and how many every cohort has, the tested one
        first.

    Raises:
        ValueError: a cohort with other regions or another FC definition, or a column of numbers here and text there.
    """
    cohorts = [tested, *(load_cohort(other) for other in others)]
    people = _People()
    keys: list[str] = []
    tables, shown = [], []
    for index, (cohort, path) in enumerate(zip(cohorts, [folder, *others], strict=True)):
        _check_fits(tested, folder, cohort, path)
        names, ids = scan_names(cohort.table, _cohort_name(path)), cohort.table["subject_id"].astype(str)
        own = [f"id {index} {subject}" for subject in ids]
        for key, name in zip(own, names, strict=True):
            people.join(key, f"name {name}")
        for row, name in other_names(cohort.table).itertuples(index=False):
            people.join(own[int(row)], f"name {name}")
        keys += own
        shown += (names if index else ids).tolist()
        recorded = cohort.table.get("recorded_subject_id", ids)
        tables.append(cohort.table.assign(recorded_subject_id=recorded))
    first_id: dict[str, str] = {}
    joined = [first_id.setdefault(people.find(key), name) for key, name in zip(keys, shown, strict=True)]
    table = pd.concat(tables, ignore_index=True).assign(subject_id=joined)
    triangles, series = join_scans(cohorts)
    return replace(tested, table=table, triangles=triangles, series=series), [len(cohort) for cohort in cohorts]


def _cohort_name(folder: str) -> str:
    """The cohort's name, as training.prepare recorded it."""
    records = Path(folder) / COHORTS_FILE
    if not records.is_file():
        return Path(folder).name
    return json.loads(records.read_text(encoding="utf-8"))[0]["dataset"]


def _check_fits(tested: Cohort, folder: str, other: Cohort, path: str) -> None:
    ours, theirs = tested.feature_extractor, other.feature_extractor
    for name in ("num_regions", "atlas", "region_names", "estimator", "fisher_z", "window", "padding"):
        if getattr(ours, name) != getattr(theirs, name):
            shown = [getattr(x, "region_fingerprint" if name == "region_names" else name) for x in (ours, theirs)]
            raise ValueError(
                f"{path} cannot join the training on {folder}: {name} is {shown[1]!r} there and {shown[0]!r} here. "
                "Prepare both alike."
            )
    for name in set(tested.phenotypes()) & set(other.phenotypes()):
        columns = [cohort.table[name] for cohort in (tested, other)]
        kinds = {pd.api.types.is_numeric_dtype(column) for column in columns if column.notna().any()}
        if len(kinds) > 1:
            raise ValueError(f"The column {name!r} holds numbers in one of {folder} and {path}, text in the other.")


def check_same_regions(processor: LCMProcessor, cohort: Cohort) -> None:
    """Raise `ValueError` unless the cohort has the checkpoint's regions, in the same order."""
    ours, theirs = processor.feature_extractor, cohort.feature_extractor
    same = ours.atlas == theirs.atlas
    if ours.region_names is not None and theirs.region_names is not None:
        same = ours.region_fingerprint == theirs.region_fingerprint
    if ours.num_regions != theirs.num_regions or not same:
        raise ValueError(
            f"The checkpoint was made for {ours.num_regions} regions of {ours.atlas}, the data has "
            f"{theirs.num_regions} of {theirs.atlas}, or in another order. Prepare it with the checkpoint's atlas."
        )
    for name in ("estimator", "fisher_z", "window", "padding"):
        if getattr(ours, name) != getattr(theirs, name):
            logger.warning(
                "FC is defined differently: %s is %r in the checkpoint, %r in the data.",
                name,
                getattr(ours, name),
                getattr(theirs, name),
            )
