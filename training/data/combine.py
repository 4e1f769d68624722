"""Who is the same subject in an evaluation, and the scans of other cohorts that join its pretraining."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from modeling_lcm import FCFeatureExtractor, LCMProcessor

from .cohort import AtlasScans, Cohort, join_scans, load_cohort
from .dataset_folder import cohort_records
from .identity import first_of_each, other_names, same_subject, scan_names


logger = logging.getLogger(__name__)
_REGIONS = {"num_regions", "atlas", "region_names"}  # differences that make two connectomes incomparable


def join_subjects(cohort: Cohort, column: str) -> Cohort:
    """Give all scans with one value in a column (a subject, twins, a family) one `subject_id`: no split parts them.

    Args:
        cohort (`Cohort`): the prepared data.
        column (`str`): what these subjects share; scans without a value keep their own id.

    Returns:
        The cohort with the first of the ids as `subject_id`; the recorded ids are in `recorded_subject_id`.

    Raises:
        ValueError: no such column, or every scan would be of the same subject.
    """
    table = cohort.table
    if column not in table:
        raise ValueError(
            f"same_person names the column {column!r}, which is not in the data: {', '.join(table.columns)}."
        )
    shared = [
        (scan, f"shared {value}") for scan, value in enumerate(table[column]) if pd.notna(value) and str(value).strip()
    ]
    joined = _with_one_id(cohort, shared)
    if joined.table["subject_id"].nunique() == 1:
        raise ValueError(f"With same_person {column!r} all scans are of one subject: there is nothing to split.")
    return joined


def join_groups(cohort: Cohort, groups: Sequence[Sequence[str]]) -> Cohort:
    """Give all subjects of a group, as a split file records them, one `subject_id`.

    Args:
        cohort (`Cohort`): the prepared data.
        groups (`Sequence[Sequence[str]]`): ids of subjects that no split may part.
    """
    group_of = {subject: number for number, group in enumerate(groups) for subject in group}
    shared = [(scan, f"group {group_of[each]}") for scan, each in enumerate(cohort.subjects) if each in group_of]
    return _with_one_id(cohort, shared) if shared else cohort


def _with_one_id(cohort: Cohort, shared: list[tuple[int, str]]) -> Cohort:
    """The cohort with one id for scans that share an id, or a name of the list `(scan, name)`."""
    ids = cohort.subjects
    subjects = same_subject([*enumerate("id " + ids), *shared], len(cohort))
    recorded = cohort.table.get("recorded_subject_id", ids)
    table = cohort.table.assign(recorded_subject_id=recorded, subject_id=first_of_each(ids, subjects))
    return replace(cohort, table=table)


def pool(tested: Cohort, folder: str, others: Sequence[str]) -> tuple[Cohort, list[int]]:
    """The tested cohort with the scans of other cohorts behind its own.

    The tested subjects keep their ids; others get `COHORT/ID`. Whom `same_person_in_COHORT` columns of either side
    declare the same, and a subject whose cohort is given on both sides, has the tested subject's id, so that a fold
    that tests the subject trains on none of the subject's scans. A column that a cohort lacks is missing for its
    scans.

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
    cohorts = [tested, *(_in_atlases_like(tested, load_cohort(other), other) for other in others)]
    links: list[tuple[int, str]] = []
    tables: list[pd.DataFrame] = []
    shown: list[str] = []
    for index, (cohort, path) in enumerate(zip(cohorts, [folder, *others], strict=True)):
        _check_fits(tested, folder, cohort, path)
        first, ids = len(shown), cohort.subjects
        name = _cohort_name(path)
        links += [(first + scan, f"id {index} {subject}") for scan, subject in enumerate(ids)]
        own = enumerate(scan_names(cohort.table, name))
        links += [(first + scan, f"name {each}") for scan, each in (*own, *other_names(cohort.table))]
        recorded = cohort.table.get("recorded_subject_id", ids)
        shown += [f"{name}/{subject}" for subject in recorded] if index else ids.tolist()
        tables.append(cohort.table.assign(recorded_subject_id=recorded))
    joined = first_of_each(shown, same_subject(links, len(shown)))
    table = pd.concat(tables, ignore_index=True).assign(subject_id=joined)
    main, *further = (_joined(part, cohorts, bool(tested.others)) for part in tested.by_atlas)
    whole = replace(tested, table=table, triangles=main.triangles, series=main.series, others=tuple(further))
    return whole, [len(cohort) for cohort in cohorts]


def _joined(part: AtlasScans, cohorts: Sequence[Cohort], by_id: bool) -> AtlasScans:
    """The scans of all cohorts in one atlas; of a single one, its name is no difference."""
    each = []
    for cohort in cohorts:
        known = {own.id: own for own in cohort.by_atlas} if by_id else {part.id: cohort.by_atlas[0]}
        each.append(known.get(part.id) or AtlasScans.absent(part.feature_extractor, len(cohort)))
    triangles, series = join_scans(each)
    return AtlasScans(part.feature_extractor, triangles, series)


def _in_atlases_like(tested: Cohort, other: Cohort, path: str) -> Cohort:
    """The scans of another cohort in those atlases that the tested one has."""
    if not tested.others:
        return in_atlas_of(tested.feature_extractor, other)
    shared = [name for name in other.atlases if name in tested.atlases]
    if not shared:
        raise ValueError(
            f"{path} has the atlases {', '.join(other.atlases)}, and the tested data {', '.join(tested.atlases)}: it "
            "cannot join their training. Prepare it with one of these."
        )
    return other.with_atlases(shared)


def _cohort_name(folder: str) -> str:
    """The cohort's name, as training.prepare recorded it."""
    records = cohort_records(folder)
    return records[0]["dataset"] if records else Path(folder).name


def _check_fits(tested: Cohort, folder: str, other: Cohort, path: str) -> None:
    pairs = [(each, other.atlases[name]) for name, each in tested.atlases.items() if name in other.atlases]
    for mine, theirs in pairs if tested.others else [(tested.feature_extractor, other.feature_extractor)]:
        for name, (here, there) in mine.differences(theirs).items():
            raise ValueError(
                f"{path} cannot join the training on {folder}: {name} is {there!r} there and {here!r} here. Prepare "
                "both alike."
            )
    for name in set(tested.phenotypes()) & set(other.phenotypes()):
        columns = [cohort.table[name] for cohort in (tested, other)]
        kinds = {pd.api.types.is_numeric_dtype(column) for column in columns if column.notna().any()}
        if len(kinds) > 1:
            raise ValueError(f"The column {name!r} holds numbers in one of {folder} and {path}, text in the other.")


def for_checkpoint(processor: LCMProcessor, cohort: Cohort) -> Cohort:
    """The cohort in a checkpoint's atlas; another way to compute FC is a warning.

    Args:
        processor (`LCMProcessor`): the checkpoint's.
        cohort (`Cohort`): the scans, in one atlas or several.

    Returns:
        The cohort, or where it has several atlases those of its scans that have the checkpoint's.

    Raises:
        ValueError: the cohort has other regions, or another order of them.
    """
    wanted = processor.feature_extractor
    if wanted.atlases is not None:
        return _in_atlases_of(wanted, cohort)
    cohort = in_atlas_of(wanted, cohort)
    given = cohort.feature_extractor
    different = _differences(wanted, given)
    if _REGIONS & set(different):
        raise ValueError(
            f"The checkpoint was made for {wanted.num_regions} regions of {wanted.atlas}, the data has "
            f"{given.num_regions} of {given.atlas}, or in another order. Prepare it with the checkpoint's atlas."
        )
    for name, (mine, other) in different.items():
        logger.warning("FC is defined differently: %s is %r in the checkpoint, %r in the data.", name, mine, other)
    return cohort


def _in_atlases_of(wanted: FCFeatureExtractor, cohort: Cohort) -> Cohort:
    """The scans in those of a cohort's atlases that a checkpoint of several atlases has."""
    known = wanted.by_atlas
    kept = [name for name in cohort.atlases if name in known]
    if not kept:
        raise ValueError(
            f"The checkpoint has the atlases {', '.join(known)}, the data {', '.join(cohort.atlases)}: prepare "
            "the data with one of the checkpoint's."
        )
    for name in kept:
        different = _differences(known[name], cohort.atlases[name])
        if _REGIONS & set(different):
            raise ValueError(
                f"The regions of {name} in the data are not the checkpoint's, or in another order: prepare the data "
                "with the checkpoint's atlas."
            )
        for setting, (mine, other) in different.items():
            logger.warning(
                "FC is defined differently: %s is %r in the checkpoint, %r in the data.", setting, mine, other
            )
    return cohort.with_atlases(kept)


def in_atlas_of(wanted: FCFeatureExtractor, cohort: Cohort) -> Cohort:
    """The cohort in the one of its atlases that has the regions that are wanted; one of a single atlas as it is.

    Args:
        wanted (`FCFeatureExtractor`): the FC definition whose regions are wanted.
        cohort (`Cohort`): the scans.

    Raises:
        ValueError: none of several atlases fits, or more than one.
    """
    if not cohort.others:
        return cohort
    fitting = [name for name, given in cohort.atlases.items() if not _REGIONS & set(_differences(wanted, given))]
    if len(fitting) != 1:
        raise ValueError(
            f"The data have the atlases {', '.join(cohort.atlases)}; {len(fitting)} of them fit the "
            f"{wanted.num_regions} regions of {wanted.atlas} that are wanted. Prepare the data with that atlas."
        )
    return cohort.with_atlas(fitting[0])


def _differences(wanted: FCFeatureExtractor, given: FCFeatureExtractor) -> dict[str, tuple[Any, Any]]:
    """What differs between two FC definitions, where regions without names are taken to be the atlas's."""
    different = wanted.differences(given)
    if None in different.get("region_names", ()):
        del different["region_names"]
    return different
