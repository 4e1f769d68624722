"""Leakage: columns that tell the label are named; subjects seen by a checkpoint are found under any of their ids."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub_cards.bundle import public_record
from training.data.cohort import Cohort
from training.data.identity import (
    alike_subjects,
    bare_ids,
    first_of_each,
    hash_names,
    same_subject,
    scan_names,
    seen_subjects,
)
from training.data.leakage import leaking_columns
from training.evaluation.cross_validation import refuse_seen_subjects
from training.trainer.checkpoints import read_record
from training.trainer.runs import record_of


def people(**columns: list) -> pd.DataFrame:
    """A table of six subjects."""
    return pd.DataFrame({"subject_id": list("abcdef"), "session": 1, **columns})


@pytest.mark.parametrize(
    ("name", "values", "told"),
    [
        ("site", ["x", "x", "x", "y", "y", "y"], True),
        ("site", ["x", "x", "z", "y", "y", "w"], True),  # every site has one group
        ("severity", [None, None, None, 3, 5, 4], True),  # recorded for patients only
        ("dose", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], True),
        ("site", ["x", "x", "x", "x", "y", "y"], False),
        ("constant", ["x"] * 6, False),
        ("qc_mean_fd", [0.1, 0.1, 0.1, 0.5, 0.5, 0.5], False),  # no phenotype: quality is another report's subject
    ],
)
def test_columns_that_tell_the_label(name: str, values: list, told: bool) -> None:
    table = pd.DataFrame({"subject_id": range(36), name: values * 6, "diagnosis": ["n", "n", "n", "p", "p", "p"] * 6})
    truth = np.array([0, 0, 0, 1, 1, 1] * 6)
    found = leaking_columns(table, "diagnosis", truth, True, ["site"])
    assert bool(found) == told
    if told:
        assert f"The column {name!r} alone tells 'diagnosis'" in found[0]
        assert ("the pretraining learns it" in found[0]) == (name == "site")
    # What six subjects show by chance is no alarm.
    assert not leaking_columns(table[:6], "diagnosis", truth[:6], True)


def test_columns_of_numbers_that_tell_a_number_or_a_class() -> None:
    age = np.array([20.0, 30, 40, 50, 60])
    table = people(birth_year=[2000, 1990, 1980, 1970, 1960, 1950], score=[3, 1, 2, 3, 1, 2])[:5]
    assert [line.split("'")[1] for line in leaking_columns(table, "age", age, False)] == ["birth_year"]
    many = pd.DataFrame({"subject_id": range(200), "score": np.arange(200.0)})
    assert len(leaking_columns(many, "group", np.arange(200) >= 80, True)) == 1


@pytest.mark.parametrize("seed", range(5))
def test_noise_in_a_small_cohort_tells_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"subject_id": range(40), "code": [f"c{number}" for number in range(40)]})
    table = table.assign(score=rng.normal(size=40), points=rng.integers(0, 30, 40))
    assert not leaking_columns(table, "group", rng.permutation(np.arange(40) % 2), True)
    assert not leaking_columns(table, "age", rng.normal(size=40), False)


def test_names_hold_across_merging_pooling_and_joining() -> None:
    table = people(dataset=["abide"] * 6)
    assert scan_names(table).tolist()[:2] == ["abide/a", "abide/b"]
    merged = table.assign(cohort_subject_id=table["subject_id"], subject_id="abide/" + table["subject_id"])
    assert scan_names(merged).tolist() == scan_names(table).tolist()
    joined = table.assign(recorded_subject_id=table["subject_id"], subject_id="a")
    assert scan_names(joined).tolist() == scan_names(table).tolist()
    assert scan_names(people(), "lemon").tolist()[0] == "lemon/a"
    assert scan_names(people()).tolist()[0] == "a"


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=2), min_size=1, max_size=8))
def test_scans_with_a_name_in_common_are_of_one_subject(names: list[list[str]]) -> None:
    subjects = same_subject([(scan, name) for scan, each in enumerate(names) for name in each], len(names))
    sets = [{scan} for scan in range(len(names))]  # the slow way: join sets until nothing changes
    for name in "abcdef":
        one = set().union(*(each for each in sets if any(name in names[scan] for scan in each)))
        sets = [each for each in sets if not each & one] + ([one] if one else [])
    groups = {frozenset(np.flatnonzero(subjects == number).tolist()) for number in set(subjects)}
    assert groups == set(map(frozenset, sets))
    firsts = first_of_each(map(str, range(len(names))), subjects)
    assert firsts == [str(min(next(each for each in sets if scan in each))) for scan in range(len(names))]


def test_spellings_of_an_id_are_one() -> None:
    assert set(bare_ids(["sub-001", "SUB-001", "sub-1", " 1 ", "0001", "1.0", "Sub_01", "sub01"], False)) == {"1"}
    ids = ["001", "1", "02", "sub-A7", "a7", "subtle", "sub-"]
    assert bare_ids(ids) == ["001", "1", "2", "a7", "a7", "subtle", "sub-"]


@pytest.mark.parametrize("before", ["sub-{:03d}", "{:03d}", "SUB-{:03d}", "{}", "{}.0"])
@pytest.mark.parametrize("after", ["sub-{:03d}", "{:03d}", "{}", "sub-{:04d}"])
def test_a_subject_is_known_in_every_spelling(before: str, after: str) -> None:
    ids = [before.format(number) for number in range(3, 13)]
    trained = pd.DataFrame({"subject_id": ids, "session": "1"})
    tested = pd.DataFrame({"subject_id": [after.format(number) for number in range(10, 20)], "session": "1"})
    new = {"training_subject_hashes": [hash_names(scan_names(trained))]}
    assert len(seen_subjects(new, tested)) == 3
    assert len(seen_subjects({"training_subjects": ids}, tested)) == 3  # a record of an older version
    named = {"training_subject_hashes": [hash_names(scan_names(trained.assign(dataset="abide")))]}
    assert len(seen_subjects(named, tested.assign(dataset="abide"))) == 3
    assert seen_subjects(named, tested.assign(dataset="adhd")) == []


def test_a_table_without_the_cohort_s_name_is_recognised_by_long_ids() -> None:
    ids = ["sub-0050003", "sub-0050004", "sub-001"]
    trained = pd.DataFrame({"subject_id": ids, "dataset": "abide1"})
    record = {"training_subject_hashes": [hash_names(scan_names(trained))], "cohorts": {"abide1": 3, "other": 0}}
    tested = pd.DataFrame({"subject_id": ["50004", "0050003", "001", "50005"]})
    assert seen_subjects(record, tested) == ["0050003", "50004"]  # 001 is in many cohorts
    assert seen_subjects(record, tested.assign(dataset=[None, "mine", None, None])) == ["50004"]


def test_ids_of_a_cohort_with_another_name_are_a_warning() -> None:
    ids = [f"sub-{number:07d}" for number in range(50003, 50023)]
    trained = pd.DataFrame({"subject_id": [*ids, "sub-001"], "dataset": "abide1"})
    record = {"training_subject_hashes": [hash_names(scan_names(trained))], "cohorts": {"abide1": 21, "other": 0}}
    renamed = pd.DataFrame(
        {"subject_id": [str(number) for number in range(50013, 50033)] + ["001"], "dataset": "ours"}
    )
    assert seen_subjects(record, renamed) == []
    (line,) = alike_subjects(record, renamed)
    assert line.startswith("10 of 20 subject ids of ours are also ids of abide1, which the checkpoint was trained on")
    assert alike_subjects(record, renamed.assign(dataset="abide1")) == []  # these are known to be the same
    assert alike_subjects(record, renamed.assign(subject_id=[f"x{number}" for number in range(10000, 10021)])) == []
    assert alike_subjects({}, renamed) == []


def test_open_weights_know_the_shipped_subjects_from_the_plain_table() -> None:
    root = Path(__file__).parents[3]
    subjects = pd.read_csv(root / "training/demo_data/lemon-schaefer200/participants.tsv", sep="\t", dtype=str)
    table = subjects.rename(columns={"participant_id": "subject_id"})
    assert len(seen_subjects(read_record(root / "hub_cards/lcm-open"), table)) == len(table) == 168
    assert (
        seen_subjects(
            read_record(root / "hub_cards/lcm-open"), table.assign(subject_id=[f"sub-{n:03d}" for n in range(168)])
        )
        == []
    )


def test_hashes_find_people_and_do_not_name_them() -> None:
    record = {"training_subject_hashes": [hash_names(["abide/a", "abide/c"]), hash_names(["other/77"])]}
    table = people(dataset=["abide"] * 6, same_person_in_other=[None, "77", None, "78", None, None])
    assert seen_subjects(record, table) == ["a", "b", "c"]
    assert seen_subjects(record, table.assign(dataset="elsewhere").drop(columns="same_person_in_other")) == []
    assert "abide" not in json.dumps(record)
    assert hash_names(["x"])["hashes"] != hash_names(["x"])["hashes"]  # every record has its own salt
    assert seen_subjects({"training_subjects": ["b", "z"]}, table) == ["b"]  # a record of an older version
    assert seen_subjects({}, table) == []


def test_a_shared_checkpoint_still_knows_whom_it_saw(cohort: Cohort, tmp_path: Path) -> None:
    rows = np.arange(4)
    record = public_record(record_of(cohort.select(rows), []) | {"arguments": {}})
    assert "training_subjects" not in record
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "training_record.json").write_text(json.dumps(record))
    later = record_of(cohort.select(np.arange(6, 8)), [], str(tmp_path / "shared"))  # fine-tuned after the download
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "training_record.json").write_text(json.dumps(later))
    for name, count in (("shared", 4), ("tuned", 6)):
        with pytest.raises(ValueError, match=f"was trained on {count} of the test subjects, 0001 among them"):
            refuse_seen_subjects(str(tmp_path / name), cohort.table, False)
        assert refuse_seen_subjects(str(tmp_path / name), cohort.table.iloc[8:], False) == []
    assert read_record(tmp_path / "nowhere") == {}
    (tmp_path / "unknown").mkdir()
    assert "is not known" in refuse_seen_subjects(str(tmp_path / "unknown"), cohort.table, False)[0]
