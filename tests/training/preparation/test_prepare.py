"""Tables and scans to a data set folder, and the folder to batches."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.training.conftest import ATLAS, PEOPLE, REGIONS, Study
from training.data.cohort import load_cohort
from training.preparation.arguments import PrepareArguments
from training.preparation.build import prepare
from training.prepare import main


HALF_PRECISION = 5e-4


def write_scans(study: Study, folder: Path, suffix: str, kind: str) -> str:
    """Write one file per subject and return the pattern that leads to them."""
    for person, scan in zip(study.participants["participant_id"], getattr(study, kind), strict=True):
        path = folder / f"{person}{suffix}"
        if suffix == ".npy":
            np.save(path, scan)
        else:
            separator = {".csv": ",", ".tsv": "\t"}.get(suffix, " ")
            np.savetxt(path, scan, delimiter=separator, fmt="%.7f")
    return str(folder / ("{participant_id}" + suffix))


def test_prepare_npz_triangles_keep_order_and_ids(study: Study, dataset: Path) -> None:
    cohort = load_cohort(dataset)
    assert cohort.table["subject_id"].tolist() == study.participants["participant_id"].tolist()
    assert cohort.table["subject_id"].iloc[0] == "0001"  # not the number 1
    np.testing.assert_allclose(cohort.connectivity(), study.connectivity, atol=HALF_PRECISION)
    assert cohort.phenotypes() == ["sex", "age", "group", "site", "score"]
    assert cohort.feature_extractor.num_regions == REGIONS
    assert cohort.feature_extractor.atlas == ATLAS


def test_prepare_npz_time_series_gives_pearson(
    study: Study, prepare_arguments: Callable[..., PrepareArguments]
) -> None:
    folder = prepare(prepare_arguments(time_series=str(study.folder / "time_series.npz")))
    np.testing.assert_allclose(load_cohort(folder).connectivity(), study.connectivity, atol=HALF_PRECISION)


@pytest.mark.parametrize("suffix", [".npy", ".tsv", ".csv", ".txt", ".1D"])
@pytest.mark.parametrize("kind", ["connectivity", "time_series"])
def test_prepare_one_file_per_scan(
    study: Study, prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path, suffix: str, kind: str
) -> None:
    pattern = write_scans(study, tmp_path, suffix, kind)
    folder = prepare(prepare_arguments(**{kind: pattern}))
    np.testing.assert_allclose(load_cohort(folder).connectivity(), study.connectivity, atol=HALF_PRECISION)


@pytest.mark.parametrize("header", [[f"region {number}" for number in range(REGIONS)], list(range(REGIONS))])
def test_prepare_header_line_of_a_scan_is_skipped(
    study: Study, prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path, header: list
) -> None:
    for person, scan in zip(study.participants["participant_id"], study.time_series, strict=True):
        pd.DataFrame(scan, columns=header).to_csv(tmp_path / f"{person}.csv", index=False)
    folder = prepare(prepare_arguments(time_series=str(tmp_path / "{participant_id}.csv")))
    np.testing.assert_allclose(load_cohort(folder).connectivity(), study.connectivity, atol=HALF_PRECISION)


def test_prepare_phenotypes_are_chosen_and_renamed(
    study: Study, prepare_arguments: Callable[..., PrepareArguments]
) -> None:
    chosen = prepare_arguments(connectivity=str(study.folder / "fc.npz"), phenotypes=["gender=sex", "age"])
    cohort = load_cohort(prepare(chosen))
    assert cohort.phenotypes() == ["gender", "age"]
    assert cohort.table["gender"].tolist() == study.participants["sex"].tolist()


RECIPE = """
title: My study
terms: Ours; ask before sharing.
settings: {participants: people.csv, connectivity: "{participant_id}.npy"}
variables:
  state: {column: Task, kind: categorical, labels: [heat, pain], exclude: [unclear]}
  age: {column: Age, kind: continuous, range: [0, 120]}
keep_rows: {QC: [pass, fair]}
"""


def test_prepare_does_not_read_rows_that_the_recipe_leaves_out(
    study: Study, prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path
) -> None:
    """The labels and ages of such rows may be anything; those of the others are checked, with their own lines."""
    (tmp_path / "mine.yaml").write_text(RECIPE)
    rows = [
        ("a", "pass", "heat", "30"),
        ("b", "fail", "rest", "a lot"),
        ("c", "pass", "unclear", "999"),
        ("d", "fair", "Pain", "40-44"),
        ("e", "", "rest", "90+"),
        ("f", "pass", "cold", "50"),
    ]
    pd.DataFrame(rows, columns=["participant_id", "QC", "Task", "Age"]).to_csv(tmp_path / "people.csv", index=False)
    for row, (person, *_) in enumerate(rows):
        np.save(tmp_path / f"{person}.npy", study.connectivity[row])
    given = {"participants": "", "recipe": str(tmp_path / "mine.yaml"), "data_dir": str(tmp_path)}
    folder = prepare(prepare_arguments(**given))
    table = load_cohort(folder).table
    assert table["subject_id"].tolist() == ["a", "d", "f"]
    assert table["state"].fillna("nothing").tolist() == ["heat", "pain", "nothing"]
    assert table["age"].tolist() == [30, 42, 50]
    report = json.loads((folder / "quality.json").read_text())
    assert len(report["unusable_values"]) == 1
    assert "people.csv, line 7, column 'Task'" in report["unusable_values"][0]
    assert "'cold'" in report["unusable_values"][0]
    reasons = [(item["reason"].split(";")[0].split(",")[0], item["by_rule"]) for item in report["excluded"]]
    assert reasons == [("QC is fail", True), ("QC is missing", True), ("Task is unclear", True)]
    assert [text for text in report["remarks"] if text.startswith("Age")] == [
        "Age: 1 values were ranges, replaced by their middle"
    ]


def test_prepare_sessions_stay_apart(
    study: Study, prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path
) -> None:
    table = pd.DataFrame(
        {"participant_id": ["a", "a", "b"], "visit": ["01", "02", "01"], "age": [30, 31, "n/a"], "sex": "F"}
    )
    table.to_csv(tmp_path / "people.csv", index=False)
    for row, record in table.iterrows():
        np.save(tmp_path / f"{record['participant_id']}_{record['visit']}.npy", study.connectivity[row])
    folder = prepare(
        prepare_arguments(
            participants=str(tmp_path / "people.csv"),
            connectivity=str(tmp_path / "{participant_id}_{visit}.npy"),
            session_column="visit",
        )
    )
    cohort = load_cohort(folder)
    assert cohort.table["session"].tolist() == ["01", "02", "01"]
    assert cohort.table["age"].isna().tolist() == [False, False, True]
    np.testing.assert_allclose(cohort.connectivity(), study.connectivity[:3], atol=HALF_PRECISION)


def test_prepare_archive_with_scan_ids(
    study: Study, prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path
) -> None:
    table = pd.DataFrame({"scan_id": ["a1", "a2"], "participant_id": ["a", "a"], "visit": [1, 2], "age": [30, 31]})
    table.to_csv(tmp_path / "people.tsv", sep="\t", index=False)
    np.savez(tmp_path / "fc.npz", scan_id=np.array(["a2", "a1"]), connectivity=study.connectivity[:2])
    settings = prepare_arguments(
        participants=str(tmp_path / "people.tsv"), connectivity=str(tmp_path / "fc.npz"), session_column="visit"
    )
    found = load_cohort(prepare(settings)).connectivity()
    np.testing.assert_allclose(found, study.connectivity[[1, 0]], atol=HALF_PRECISION)
    # With ids of subjects only, both sessions would silently get the same scan.
    np.savez(tmp_path / "fc.npz", participant_id=np.array(["a"]), connectivity=study.connectivity[:1])
    with pytest.raises(ValueError, match=r"Several rows of .*people.tsv would get the one scan of a"):
        prepare(replace(settings, output=str(tmp_path / "other")))


def test_prepare_region_names(
    study: Study, prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path
) -> None:
    names = [f"region {number}" for number in range(REGIONS)]
    pd.DataFrame({"index": range(REGIONS), "name": names}).to_csv(tmp_path / "rois.tsv", sep="\t", index=False)
    settings = prepare_arguments(connectivity=str(study.folder / "fc.npz"), regions=str(tmp_path / "rois.tsv"))
    assert load_cohort(prepare(settings)).feature_extractor.region_names == names
    with pytest.raises(ValueError, match=r"has no column 'name'; it has participant_id"):
        prepare(replace(settings, output=str(tmp_path / "other"), regions=str(study.folder / "participants.tsv")))


def test_prepare_known_atlas_brings_its_names_and_refuses_other_counts(
    study: Study, prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path, rng: np.random.Generator
) -> None:
    study.participants.head(2).to_csv(tmp_path / "two.tsv", sep="\t", index=False)
    for person in ("0001", "0002"):
        np.save(tmp_path / f"{person}.npy", rng.standard_normal((150, 116)))
    settings = prepare_arguments(
        participants=str(tmp_path / "two.tsv"), time_series=str(tmp_path / "{participant_id}.npy"), atlas="AAL"
    )
    extractor = load_cohort(prepare(settings)).feature_extractor
    assert (extractor.atlas, len(extractor.region_names)) == ("aal-116", 116)
    with pytest.raises(ValueError, match=r"fc.npz \(subject 0001, line 2 of .*: .*10.*116"):
        prepare(prepare_arguments(connectivity=str(study.folder / "fc.npz"), output=str(tmp_path / "x"), atlas="aal"))


def test_prepare_asks_about_codes_until_they_are_declared(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = study.participants.assign(score=["-9999", "999", *study.participants["score"][2:].astype(str)])
    table.to_csv(tmp_path / "people.tsv", sep="\t", index=False)
    given = f"--participants {tmp_path / 'people.tsv'} --connectivity {study.folder / 'fc.npz'} --parquet false"
    with pytest.raises(SystemExit) as exit_status:
        main(f"{given} --atlas {ATLAS} --output {tmp_path / 'asked'}".split())
    assert exit_status.value.code == 1
    text = capsys.readouterr().out
    assert "Please confirm:" in text
    assert "score: 1 cell holds -9999 (line 2), far from the others" in text
    main(f"{given} --atlas {ATLAS} --output {tmp_path / 'declared'} --missing -9999 score=999".split())
    text = capsys.readouterr().out
    assert "Please confirm:" not in text
    assert "score: 1 cell holds 999, declared as missing" in text
    assert "group, subjects: A 12, B 12 (positive)" in text
    tables = [load_cohort(tmp_path / name).table for name in ("asked", "declared")]
    pd.testing.assert_frame_equal(*tables)
    assert tables[0]["score"].isna().tolist() == [True, True, *[False] * (PEOPLE - 2)]
    with pytest.raises(SystemExit):
        main(f"{given} --atlas {ATLAS} --output {tmp_path / 'wrong'} --missing scores=999".split())
    assert "there is no column 'scores'; there are participant_id, sex" in capsys.readouterr().err
    assert not (tmp_path / "wrong").exists()
