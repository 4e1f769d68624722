"""Splits by subject: folds, validation subjects, few-label subsets, and the file that records them."""

import hashlib
import json
import logging
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from ..storage.files import write_json
from .cohort import Cohort
from .combine import join_groups
from .identity import recorded_ids


logger = logging.getLogger(__name__)

NOT_RECORDED = "(not recorded)"


@dataclass(frozen=True)
class Folds:
    """Test subjects of every fold.

    Args:
        test_subjects (`tuple[tuple[str, ...], ...]`): subject ids, one tuple per fold.
        seed (`int`): seed they were drawn with.
        stratified_by (`str`, *optional*): phenotype column whose classes are balanced over folds.
        groups (`tuple[tuple[str, ...], ...]`): ids that are one subject (or family), as they were joined when the
            folds were drawn; the first one stands for all in `test_subjects`.
        data (`str`, *optional*): fingerprint of the subjects of the data they were drawn from, by
            [`subjects_fingerprint`].
    """

    test_subjects: tuple[tuple[str, ...], ...]
    seed: int
    stratified_by: str | None = None
    groups: tuple[tuple[str, ...], ...] = ()
    data: str | None = None

    def __post_init__(self) -> None:
        seen: dict[str, int] = {}
        for fold, subjects in enumerate(self.test_subjects):
            for subject in subjects:
                if subject in seen:
                    raise ValueError(f"Subject {subject} is in the test sets of folds {seen[subject]} and {fold}.")
                seen[subject] = fold

    @property
    def checksum(self) -> str:
        """Short SHA-256 of the folds: two runs with the same checksum tested the same subjects."""
        content = [self.test_subjects, self.groups] if self.groups else self.test_subjects
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """Write the split file (JSON)."""
        write_json(
            path,
            {
                "format": "lcm-splits",
                "seed": self.seed,
                "stratified_by": self.stratified_by,
                "checksum": self.checksum,
                "data": self.data,
                "groups": self.groups,
                "test_subjects": self.test_subjects,
            },
        )

    @classmethod
    def load(cls, path: str | Path) -> "Folds":
        """Read a split file.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a split file, was changed by hand, or has a subject in two folds.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"There is no split file {path}.")
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            test, groups = (tuple(map(tuple, each)) for each in (content["test_subjects"], content.get("groups", ())))
            folds = cls(test, content["seed"], content["stratified_by"], groups, content.get("data"))
            checksum, found = content["checksum"], folds.checksum
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} is not a split file: {error!r:.200}.") from error
        if found != checksum:
            raise ValueError(f"{path} was changed: its checksum is {found}, recorded is {checksum!r:.50}.")
        return folds

    def of_cohort(self, cohort: Cohort) -> "Folds":
        """These folds, with what a split file has to know of the data that they were drawn from.

        Args:
            cohort (`Cohort`): the data, with the subjects as they were joined.
        """
        ids, recorded = cohort.subjects, recorded_ids(cohort.table)
        named = cohort.table["recorded_subject_id"].astype(str) if "recorded_subject_id" in cohort.table else ids
        members = {subject: list(dict.fromkeys([subject, *each])) for subject, each in named.groupby(ids)}
        groups = tuple(tuple(each) for each in members.values() if len(each) > 1)
        return replace(self, groups=groups, data=subjects_fingerprint(recorded))

    def join(self, cohort: Cohort) -> Cohort:
        """A cohort whose subjects are joined as those of the folds were, for every split inside it.

        A warning is logged where other subjects are in it: no fold tests them, and who belongs to them is not known.

        Args:
            cohort (`Cohort`): the data.
        """
        tested = {subject for each in self.test_subjects for subject in each}
        known = tested | {subject for group in self.groups for subject in group}
        others = sorted(set(cohort.subjects) - known)
        if others and self.data is not None and self.data != subjects_fingerprint(recorded_ids(cohort.table)):
            logger.warning(
                "The split file was made for other data: %d subjects are in none of its folds, %s among them. They "
                "are trained on in every fold.",
                len(others),
                others[0],
            )
        return join_groups(cohort, self.groups)

    def split(self, cohort: Cohort, fold: int) -> tuple[Cohort, Cohort]:
        """Training and test scans of one fold; all scans of a subject are on one side. Raises as [`tests`] does."""
        cohort = self.join(cohort)
        is_test = self.tests(cohort.subjects, fold)
        return cohort.select(~is_test), cohort.select(is_test)

    def tests(self, subjects: pd.Series, fold: int) -> np.ndarray:
        """Which scans a fold tests.

        Args:
            subjects (`pd.Series`): subject id of every scan.
            fold (`int`): index of the fold.

        Returns:
            Boolean array of shape `(scans,)`.

        Raises:
            ValueError: no such fold, or its test subjects are not in the data.
        """
        if not 0 <= fold < len(self.test_subjects):
            raise ValueError(f"There is no fold {fold}: the split file has folds 0 to {len(self.test_subjects) - 1}.")
        whole = {subject: group[0] for group in self.groups for subject in group}
        joined = subjects.map(lambda subject: whole.get(subject, subject))
        missing = {whole.get(subject, subject) for subject in self.test_subjects[fold]} - set(joined)
        if missing:
            raise ValueError(
                f"{len(missing)} test subjects of fold {fold} are not in the data, {sorted(missing)[0]} among them: "
                "the split file belongs to another data set, or to other settings of same_person."
            )
        return joined.isin({whole.get(subject, subject) for subject in self.test_subjects[fold]}).to_numpy()


def subjects_fingerprint(ids: pd.Series) -> str:
    """Short SHA-256 of the subjects of a data set, as they were recorded: the same in every atlas and order."""
    return hashlib.sha256(json.dumps(sorted(set(ids.astype(str)))).encode()).hexdigest()[:16]


def make_folds(table: pd.DataFrame, n_folds: int, seed: int, stratify_by: str | None = None) -> Folds:
    """Draw subject-wise folds, balanced over the classes of one column where one is given.

    Args:
        table (`pd.DataFrame`): one row per scan, with `subject_id`; repeated ids are sessions of one subject.
        n_folds (`int`): number of folds, at least 2.
        seed (`int`): seed of the shuffle.
        stratify_by (`str`, *optional*): categorical column; rows without a value form a class of their own.

    Raises:
        ValueError: fewer subjects than folds, a single class, or a class that would be absent from training folds.
    """
    subjects = table["subject_id"].astype(str)
    if not 2 <= n_folds <= subjects.nunique():
        raise ValueError(
            f"The number of folds must lie between 2 and {subjects.nunique()}, the number of subjects; got {n_folds}."
        )
    classes = pd.Series("all", index=table.index)
    if stratify_by is not None:
        classes = table[stratify_by].astype("string").fillna(NOT_RECORDED)
        check_classes(table, stratify_by, n_folds)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Rare classes have been refused above; this is about the subjects without a record.
        warnings.filterwarnings("ignore", "The least populated class")
        test = [sorted(set(subjects.iloc[rows])) for _, rows in splitter.split(subjects, classes, subjects)]
    return Folds(tuple(map(tuple, test)), seed, stratify_by)


def check_classes(table: pd.DataFrame, column: str, n_folds: int) -> None:
    """Raise `ValueError` when a column has one class only, or a class with fewer subjects than folds."""
    counts = table.dropna(subset=[column]).groupby(column)["subject_id"].nunique()
    if len(counts) < 2:
        raise ValueError(f"{column!r} has a single class ({', '.join(map(str, counts.index))}): nothing to predict.")
    rare = counts[counts < n_folds]
    if len(rare):
        listed = ", ".join(f"{label} ({count} subjects)" for label, count in rare.items())
        raise ValueError(
            f"With {n_folds} folds these classes of {column!r} would be absent from a fold: {listed}. Use fewer folds "
            "or leave the class out."
        )


def hold_out(
    table: pd.DataFrame, fraction: float, seed: int, stratify_by: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Split training scans into training and validation scans, by subject.

    Args:
        table (`pd.DataFrame`): one row per scan, with `subject_id`.
        fraction (`float`): part of the subjects that becomes validation, between 0 (none) and 0.5.
        seed (`int`): seed of the shuffle.
        stratify_by (`str`, *optional*): categorical column to balance.

    Returns:
        Positions of both; the second array is empty for fraction 0. Otherwise it has a subject of every class
        that two or more subjects have.

    Raises:
        ValueError: the fraction is out of range, or no subject can be held back.
    """
    if not 0 <= fraction <= 0.5:
        raise ValueError(f"validation_fraction must lie between 0 and 0.5, got {fraction}.")
    scans = np.arange(len(table))
    if fraction == 0:
        return scans, scans[:0]
    subjects = table["subject_id"].astype(str)
    classes = pd.Series("all", index=table.index)
    if stratify_by is not None:
        classes = table[stratify_by].astype("string").fillna(NOT_RECORDED)
    generator = np.random.default_rng(seed)
    held_back: set[str] = set()
    class_of_subject = classes.groupby(subjects).first()  # by that subject's first scan; sorted by subject
    for _, alike in class_of_subject.groupby(class_of_subject):
        count = max(1, round(fraction * len(alike))) if len(alike) > 1 else 0
        held_back |= set(generator.permutation(alike.index.to_numpy())[:count])
    is_validation = subjects.isin(held_back).to_numpy()
    if not is_validation.any():
        raise ValueError(
            f"No subject can be held back for validation: {len(class_of_subject)} training subjects are too few. Set "
            "validation_fraction to 0."
        )
    return scans[~is_validation], scans[is_validation]


def few_labels(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Positions of a random subset with `per_class` labelled scans of every class.

    Args:
        labels (`np.ndarray` of shape `(scans,)`): class index, -100 where there is none.
        per_class (`int`): labelled scans of each class.
        seed (`int`): seed of the choice.

    Raises:
        ValueError: a class has fewer labelled scans.
    """
    if per_class < 1:
        raise ValueError(f"labels_per_class must be at least 1, got {per_class}.")
    generator = np.random.default_rng(seed)
    chosen = []
    for label in sorted(set(labels) - {-100}):
        candidates = np.flatnonzero(labels == label)
        if len(candidates) < per_class:
            raise ValueError(f"Class {label:g} has {len(candidates)} labelled training scans, {per_class} are needed.")
        chosen.append(generator.permutation(candidates)[:per_class])
    return np.sort(np.concatenate(chosen))


def leave_site_out(table: pd.DataFrame, column: str = "site") -> Folds:
    """One fold per site: its subjects are tested by a model that saw the other sites only.

    A subject with scans at several sites (or in several cohorts) is tested with the site of the first scan, and none
    of the subject's scans is trained on then.

    Args:
        table (`pd.DataFrame`): one row per scan, with `subject_id` and the column.
        column (`str`): site, scanner, or `dataset` to leave whole cohorts out.

    Raises:
        ValueError: no such column, a scan without a site, or one site only.
    """
    return _folds_of_column(table, column, "site")


def official_folds(table: pd.DataFrame, column: str) -> Folds:
    """Folds as a cohort's owners published them: one column says which fold tests a subject.

    Args:
        table (`pd.DataFrame`): one row per scan, with `subject_id` and the column.
        column (`str`): number or name of the fold, the same for all scans of a subject.

    Raises:
        ValueError: no such column, a scan without a fold, one fold only, or a subject in two folds.
    """
    values = table.groupby("subject_id")[column].nunique() if column in table else pd.Series(dtype=int)
    if (values > 1).any():
        raise ValueError(f"Subject {values.index[values > 1][0]} is in two folds of the column {column!r}.")
    return _folds_of_column(table, column, "fold")


def _folds_of_column(table: pd.DataFrame, column: str, what: str) -> Folds:
    if column not in table:
        raise ValueError(
            f"There is no column {column!r} to take the {what}s from; the data have {', '.join(table.columns)}."
        )
    missing = table["subject_id"][table[column].isna()]
    if len(missing):
        raise ValueError(f"{len(missing)} scans have no {what} in {column!r}, {missing.iloc[0]} among them.")
    first = table.drop_duplicates("subject_id")
    if first[column].nunique() < 2:
        raise ValueError(f"All scans have the same {what} in {column!r}: there is nothing to leave out.")
    groups = first.groupby(first[column].astype(str), sort=True)["subject_id"]
    return Folds(tuple(tuple(sorted(map(str, ids))) for _, ids in groups), 0, column)
