"""Splits by subject: nobody on two sides, the same seed the same subjects, and files that cannot be changed unseen."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data.cohort import Cohort
from training.data.combine import join_subjects
from training.data.folds import Folds, few_labels, hold_out, make_folds


@st.composite
def cohorts(draw: st.DrawFn) -> pd.DataFrame:
    """Tables of 12 to 40 subjects with one to three scans each, of which some lack the class."""
    people = draw(st.integers(12, 40))
    scans = draw(st.lists(st.integers(1, 3), min_size=people, max_size=people))
    subjects = [f"s{number}" for number, count in enumerate(scans) for _ in range(count)]
    classes = [["A", "B", None][number % 3 if number % 9 == 8 else number % 2] for number in range(people)]
    table = pd.DataFrame({"subject_id": subjects})
    table["group"] = [classes[int(subject[1:])] for subject in subjects]
    return table.sample(frac=1, random_state=draw(st.integers(0, 99))).reset_index(drop=True)


@pytest.fixture
def people() -> pd.DataFrame:
    """Twenty subjects with one scan each, half of each class."""
    return pd.DataFrame({"subject_id": [f"s{number:02d}" for number in range(20)], "group": ["A", "B"] * 10})


@settings(max_examples=30, deadline=None)
@given(table=cohorts(), n_folds=st.integers(2, 4), seed=st.integers(0, 9))
def test_folds_are_disjoint_and_complete_by_subject(table: pd.DataFrame, n_folds: int, seed: int) -> None:
    folds = make_folds(table, n_folds, seed, "group")
    tested = [subject for subjects in folds.test_subjects for subject in subjects]
    assert sorted(tested) == sorted(set(table["subject_id"]))  # everybody exactly once
    for fold in range(n_folds):
        is_test = folds.tests(table["subject_id"], fold)
        assert not set(table["subject_id"][~is_test]) & set(table["subject_id"][is_test])
        assert set(table["subject_id"][is_test]) == set(folds.test_subjects[fold])
        assert {"A", "B"} <= set(table["group"][~is_test])


@settings(max_examples=30, deadline=None)
@given(table=cohorts(), fraction=st.sampled_from([0.1, 0.2, 0.25, 0.5]), seed=st.integers(0, 9))
def test_hold_out_keeps_the_scans_of_a_person_together(table: pd.DataFrame, fraction: float, seed: int) -> None:
    train, validation = hold_out(table, fraction, seed, "group")
    assert sorted([*train, *validation]) == list(range(len(table)))
    people = table.drop_duplicates("subject_id")
    assert {"A", "B"} <= set(table["group"].iloc[validation])
    expected = fraction * len(people)
    assert abs(len(set(table["subject_id"].iloc[validation])) - expected) <= 3  # rounded once per class
    assert not set(table["subject_id"].iloc[train]) & set(table["subject_id"].iloc[validation])


def test_hold_out_gives_positions_in_part_of_a_table(people: pd.DataFrame) -> None:
    part = people.iloc[3:19]
    train, validation = hold_out(part, 0.25, 0, "group")
    assert sorted([*train, *validation]) == list(range(16))
    assert len(validation) == 4
    assert part["group"].iloc[validation].value_counts().to_dict() == {"A": 2, "B": 2}


def test_hold_out_fractions(people: pd.DataFrame) -> None:
    train, validation = hold_out(people, 0.0, 0, None)
    assert (len(train), len(validation)) == (20, 0)
    for fraction in (-0.1, 0.6):
        with pytest.raises(ValueError, match="validation_fraction must lie between 0 and"):
            hold_out(people, fraction, 0, None)
    assert len(hold_out(people, 0.02, 0, None)[1]) == 1
    with pytest.raises(ValueError, match="No subject can be held back for validation: 2 training subjects"):
        hold_out(people.iloc[:2], 0.2, 0, "group")


def test_same_seed_same_folds_other_seed_others(people: pd.DataFrame) -> None:
    first, again, other = (make_folds(people, 5, seed, "group") for seed in (3, 3, 4))
    assert first.checksum == again.checksum
    assert first.checksum != other.checksum


def test_folds_are_balanced(people: pd.DataFrame) -> None:
    for subjects in make_folds(people, 5, 0, "group").test_subjects:
        found = people.set_index("subject_id")["group"].loc[list(subjects)].value_counts().to_dict()
        assert found == {"A": 2, "B": 2}


def test_split_file_round_trip(people: pd.DataFrame, tmp_path: Path) -> None:
    folds = make_folds(people, 4, 1, "group")
    folds.save(tmp_path / "splits.json")
    assert Folds.load(tmp_path / "splits.json") == folds


def test_edited_split_file_is_refused(people: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "splits.json"
    make_folds(people, 4, 1, "group").save(path)
    content = json.loads(path.read_text())
    moved = content["test_subjects"][0].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"splits\.json was changed: its checksum is"):
        Folds.load(path)
    content["test_subjects"][0].append(moved)
    content["test_subjects"][1].append(moved)
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"Subject {moved} is in the test sets of folds 0 and 1"):
        Folds.load(path)


@pytest.mark.parametrize("content", ["{", "[]", '{"test_subjects": [["a"]]}', '{"test_subjects": 3}'])
def test_something_else_is_no_split_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(ValueError, match=r"other\.json is not a split file"):
        Folds.load(tmp_path / "other.json")


def test_absent_split_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no split file .*absent\.json"):
        Folds.load(tmp_path / "absent.json")


def test_subject_in_two_folds_is_refused() -> None:
    with pytest.raises(ValueError, match="Subject b is in the test sets of folds 0 and 1"):
        Folds((("a", "b"), ("b", "c")), seed=0)


def test_folds_of_another_data_set_are_refused(people: pd.DataFrame) -> None:
    folds = make_folds(people, 4, 0)
    with pytest.raises(ValueError, match=r"5 test subjects of fold 2 are not in the data, s\d\d among them"):
        folds.tests("other-" + people["subject_id"], 2)
    for fold in (-1, 4):
        with pytest.raises(ValueError, match=f"no fold {fold}: the split file has folds 0 to 3"):
            folds.tests(people["subject_id"], fold)


def test_folds_that_cannot_be_made(people: pd.DataFrame) -> None:
    for number in (1, 21):
        with pytest.raises(ValueError, match=f"between 2 and 20, the number of subjects; got {number}"):
            make_folds(people, number, 0)
    people.loc[people["group"] == "B", "group"] = "A"
    with pytest.raises(ValueError, match=r"'group' has a single class \(A\): nothing to predict"):
        make_folds(people, 4, 0, "group")
    people.loc[:2, "group"] = "rare"
    with pytest.raises(ValueError, match=r"With 4 folds .* absent from a fold: rare \(3 subjects\)"):
        make_folds(people, 4, 0, "group")


def test_several_scans_do_not_make_a_class_less_rare() -> None:
    table = pd.DataFrame({"subject_id": ["a"] * 5 + ["b", "c", "d", "e", "f"], "group": ["rare"] * 5 + ["common"] * 5})
    with pytest.raises(ValueError, match=r"rare \(1 subjects\)"):
        make_folds(table, 2, 0, "group")


@given(seed=st.integers(0, 99), per_class=st.integers(1, 5))
def test_few_labels_takes_as_many_of_every_class(seed: int, per_class: int) -> None:
    labels = np.array([0, 1, 2, -100] * 6)
    chosen = few_labels(labels, per_class, seed)
    assert np.bincount(labels[chosen]).tolist() == [per_class] * 3
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert chosen.tolist() == few_labels(labels, per_class, seed).tolist()


def test_few_labels_refuses_more_than_there_are() -> None:
    labels = np.array([0, 0, 1, 1, 1, -100])
    with pytest.raises(ValueError, match="Class 0 has 2 labelled training scans, 3 are needed"):
        few_labels(labels, 3, 0)
    with pytest.raises(ValueError, match="labels_per_class must be at least 1, got 0"):
        few_labels(labels, 0, 0)


@pytest.fixture
def families(cohort: Cohort) -> Cohort:
    """Pairs of subjects are families, and one of a family stands first in the table now and then."""
    family = [f"family {number // 2}" for number in range(len(cohort))]
    return replace(cohort, table=cohort.table.assign(family=family))


def test_a_split_file_keeps_families_on_one_side_wherever_it_is_used(families: Cohort, tmp_path: Path) -> None:
    joined = join_subjects(families, "family")
    make_folds(joined.table, 3, 0).of_cohort(joined).save(tmp_path / "splits.json")
    folds = Folds.load(tmp_path / "splits.json")
    assert len(folds.groups) == len(families) // 2
    # The data set itself, in another order: other members stand first.
    turned = families.select(np.random.default_rng(0).permutation(len(families)))
    for data in (families, joined, turned):
        tested = set()
        for fold in range(3):
            training, test = folds.split(data, fold)
            assert len(training) + len(test) == len(families)
            assert not set(training.table["family"]) & set(test.table["family"])
            assert not set(training.subjects) & set(test.subjects)
            # Inner splits keep families together, too, and what was recorded stays known.
            assert training.table.groupby("family")["subject_id"].nunique().max() == 1
            assert set(training.table["recorded_subject_id"]) <= set(families.subjects)
            tested |= set(test.table["recorded_subject_id"])
        assert tested == set(families.subjects)
    second = families.select(np.arange(1, len(families), 2))  # the first member of every family is not in the data
    assert sum(folds.tests(second.subjects, fold).sum() for fold in range(3)) == len(second)


def test_a_split_file_of_other_data_is_told_by_its_fingerprint(
    families: Cohort, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    some = families.select(np.arange(20))
    folds = make_folds(some.table, 2, 0).of_cohort(some)
    folds.split(some, 0)
    folds.split(replace(some, others=(), table=some.table[::-1]), 0)  # the order of the scans is no matter
    assert not caplog.records
    folds.split(families, 0)
    assert f"{len(families) - 20} subjects are in none of its folds" in caplog.text
    older = Folds(folds.test_subjects, 0)  # a split file of an older version says nothing of its data
    caplog.clear()
    older.split(families, 0)
    assert not caplog.records
    with pytest.raises(ValueError, match="or to other settings of same_person"):
        folds.split(join_subjects(families, "family"), 0)


def test_groups_are_part_of_the_checksum(families: Cohort, tmp_path: Path) -> None:
    joined = join_subjects(families, "family")
    folds = make_folds(joined.table, 3, 0)
    assert folds.of_cohort(families).checksum == folds.checksum != folds.of_cohort(joined).checksum
    folds.of_cohort(joined).save(tmp_path / "splits.json")
    content = json.loads((tmp_path / "splits.json").read_text())
    content["groups"].pop()
    (tmp_path / "splits.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="was changed: its checksum is"):
        Folds.load(tmp_path / "splits.json")
