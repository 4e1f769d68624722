"""Tables and scans to a data set folder, and the folder to batches."""

import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import training.preparation.content
import training.preparation.workers
from tests.training.conftest import ATLAS, PEOPLE, REGIONS, VOLUMES, Study
from training.data.cohort import Cohort, load_cohort
from training.data.torch_datasets import ConnectomeDataset
from training.data.triangles import to_matrices, to_triangles
from training.files import write_folder, write_json
from training.preparation.arguments import PrepareArguments
from training.preparation.build import prepare
from training.preparation.sources import arrays
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


# --- reading ---


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


# --- refusing ---


def test_prepare_bad_scan_names_file_subject_and_row(
    study: Study, prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path
) -> None:
    pattern = write_scans(study, tmp_path, ".npy", "connectivity")
    broken = study.connectivity[4].copy()
    broken[0, 1] = broken[1, 0] = np.nan
    np.save(tmp_path / "0005.npy", broken)
    with pytest.raises(ValueError, match=r"0005\.npy \(subject 0005, line 6 of .*participants\.tsv\): .*NaN"):
        prepare(prepare_arguments(connectivity=pattern))
    assert not (tmp_path / "dataset").exists()


def test_prepare_scan_of_another_size_is_named(
    study: Study, prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path
) -> None:
    pattern = write_scans(study, tmp_path, ".npy", "connectivity")
    np.save(tmp_path / "0003.npy", study.connectivity[2][:8, :8])
    with pytest.raises(ValueError, match=r"0003\.npy \(subject 0003, line 4 "):
        prepare(prepare_arguments(connectivity=pattern))


def test_prepare_short_time_series_is_named(
    study: Study, prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path
) -> None:
    pattern = write_scans(study, tmp_path, ".tsv", "time_series")
    np.savetxt(tmp_path / "0002.tsv", study.time_series[1][:15], delimiter="\t")
    with pytest.raises(ValueError, match=r"0002\.tsv \(subject 0002, line 3 .*15 volumes"):
        prepare(prepare_arguments(time_series=pattern))


def test_prepare_missing_file_is_found_before_reading(
    study: Study,
    prepare_arguments: Callable[..., PrepareArguments],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pattern = write_scans(study, tmp_path, ".npy", "connectivity")
    (tmp_path / "0024.npy").unlink()
    monkeypatch.setattr(arrays, "read_array", lambda path, name: pytest.fail(f"{path} was read"))
    with pytest.raises(FileNotFoundError, match=r"no scan .*0024\.npy \(subject 0024, line 25 "):
        prepare(prepare_arguments(connectivity=pattern))


@pytest.mark.parametrize(
    ("content", "suffix"), [("1\t2\nthree\t4", ".tsv"), ("", ".csv"), ("\x00\x01", ".npy"), ("", ".npy")]
)
def test_prepare_unreadable_scan_is_named(
    study: Study, prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path, content: str, suffix: str
) -> None:
    study.participants.head(1).to_csv(tmp_path / "one.tsv", sep="\t", index=False)
    (tmp_path / f"0001{suffix}").write_text(content)
    with pytest.raises(ValueError, match=rf"0001\{suffix} cannot be read as a table of numbers"):
        prepare(
            prepare_arguments(
                participants=str(tmp_path / "one.tsv"), connectivity=str(tmp_path / ("{participant_id}" + suffix))
            )
        )


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("{subject}.npy", r"does not fit the table \('subject'\): .*participant_id, sex"),
        ("{}.npy", "does not fit the table"),
        ("{participant_id.npy", "does not fit the table"),
        ("same.npy", "leads to same.npy for 24 rows"),
        ("{participant_id}.pkl", r"0001\.pkl \(subject 0001, .* has none of the formats"),
    ],
)
def test_prepare_bad_pattern_is_explained(
    prepare_arguments: Callable[..., PrepareArguments],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pattern: str,
    problem: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("same.npy").write_text("1")
    with pytest.raises(ValueError, match=problem):
        prepare(prepare_arguments(connectivity=pattern))


@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"participant_id": np.array(["0001"])}, "it holds participant_id; needed are"),
        ({"fc_triu": np.zeros((1, 45))}, "it holds fc_triu; needed are participant_id"),
        ({"participant_id": np.array(["0001", "0001"]), "fc_triu": np.zeros((2, 45))}, "several scans of 0001"),
        ({"participant_id": np.array(["0001"]), "fc_triu": np.zeros((2, 45))}, "2 scans but 1 ids"),
        ({"participant_id": np.array(["x"]), "fc_triu": np.zeros((1, 45))}, "no scan of 24 of 24 rows .*0001"),
    ],
)
def test_prepare_bad_archive_is_explained(
    prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path, arrays: dict, problem: str
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(ValueError, match=rf"bad\.npz.*{problem}"):
        prepare(prepare_arguments(connectivity=str(tmp_path / "bad.npz")))


def test_prepare_damaged_archive_and_odd_triangle(
    study: Study, prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path
) -> None:
    whole = (study.folder / "fc.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut\.npz cannot be used"):
        prepare(prepare_arguments(connectivity=str(tmp_path / "cut.npz")))
    ids = study.participants["participant_id"].to_numpy(dtype=str)
    np.savez(tmp_path / "odd.npz", participant_id=ids, fc_triu=np.zeros((PEOPLE, 44)))
    with pytest.raises(ValueError, match=r"odd\.npz \(subject 0001, line 2 .*44 values are no upper triangle"):
        prepare(prepare_arguments(connectivity=str(tmp_path / "odd.npz")))
    with pytest.raises(FileNotFoundError, match=r"no archive .*absent\.npz"):
        prepare(prepare_arguments(connectivity=str(tmp_path / "absent.npz")))


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("participant_id\tage\n", "has no rows"),
        ("id\tage\na\t3\n", r"has no column 'participant_id'; it has id, age"),
        ("participant_id\tage\na\t3\nn/a\t4\n", r"line 3: 'participant_id' is missing"),
        ("participant_id\tage\na\t3\nb\t1\na\t4\n", r"line 4: another row of a in one session.*--session_column"),
        ("participant_id\tsession\na\t3\n", "A phenotype cannot be called 'session'"),
    ],
)
def test_prepare_bad_table_is_explained(
    study: Study, prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path, table: str, problem: str
) -> None:
    path = tmp_path / "people.tsv"
    path.write_text(table)
    with pytest.raises(ValueError, match=problem):
        prepare(prepare_arguments(participants=str(path), connectivity=str(study.folder / "fc.npz")))


def test_prepare_missing_or_contradicting_settings(
    study: Study, prepare_arguments: Callable[..., PrepareArguments]
) -> None:
    both = {"connectivity": str(study.folder / "fc.npz"), "time_series": str(study.folder / "time_series.npz")}
    for settings in ({}, both):
        with pytest.raises(ValueError, match=r"one of connectivity .*, time_series"):
            prepare(prepare_arguments(**settings))
    with pytest.raises(ValueError, match="No output was given: add --output"):
        prepare(prepare_arguments(output=""))
    with pytest.raises(ValueError, match="add --participants"):
        prepare(prepare_arguments(participants="", connectivity=both["connectivity"]))
    with pytest.raises(FileNotFoundError, match=r"There is no table nowhere\.tsv"):
        prepare(prepare_arguments(participants="nowhere.tsv", connectivity=both["connectivity"]))


def test_prepare_never_overwrites(
    study: Study, prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path
) -> None:
    output = tmp_path / "dataset"
    output.mkdir()
    (output / "precious.txt").write_text("results")
    with pytest.raises(FileExistsError, match="already holds results"):
        prepare(prepare_arguments(connectivity=str(study.folder / "fc.npz")))
    assert [path.name for path in output.iterdir()] == ["precious.txt"]


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_prepare_full_disk_keeps_finished_scans(
    study: Study,
    prepare_arguments: Callable[..., PrepareArguments],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = prepare_arguments(connectivity=str(study.folder / "fc.npz"))
    with monkeypatch.context() as patch:
        patch.setattr(training.preparation.content, "write_parquet", no_space)
        with pytest.raises(ValueError, match=r"The disk is full .* repeat the command"):
            prepare(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.work"]
    # The finished scans are still there: the second run reads none of them again.
    monkeypatch.setattr(training.preparation.workers.Job, "do", lambda *_: pytest.fail("a scan was read again"))
    assert len(load_cohort(prepare(settings)).table) == PEOPLE
    assert [path.name for path in tmp_path.iterdir()] == ["dataset"]


def test_prepare_without_a_usable_scan_leaves_nothing_in_the_way(
    study: Study, prepare_arguments: Callable[..., PrepareArguments], tmp_path: Path
) -> None:
    pattern = write_scans(study, tmp_path, ".npy", "time_series")
    output = str(tmp_path / "out" / "dataset")
    with pytest.raises(ValueError, match="No scan can be used"):
        prepare(prepare_arguments(time_series=pattern, atlas="schaefer-200", output=output, bad_scans="skip"))
    assert not list((tmp_path / "out").glob("dataset*"))
    assert len(load_cohort(prepare(prepare_arguments(time_series=pattern, output=output))).table) == PEOPLE


# --- files ---


def test_write_folder_replaces_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "result"
    write_folder(target, lambda folder: (folder / "a").write_text("first"))

    def fail(folder: Path) -> None:
        (folder / "a").write_text("second")
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_folder(target, fail)
    assert (target / "a").read_text() == "first"
    write_folder(target, lambda folder: (folder / "b").write_text("third"))
    assert [path.name for path in tmp_path.rglob("*")] == ["result", "b"]


def test_write_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": float("nan"), "b": [1.5, float("inf")]})
    assert (tmp_path / "x.json").read_text().split() == ["{", '"a":', "null,", '"b":', "[", "1.5,", "null", "]", "}"]


# --- loading ---


def test_load_cohort_errors(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="No data was given: add --data"):
        load_cohort("")
    with pytest.raises(FileNotFoundError, match="nowhere is not a data set made by"):
        load_cohort(tmp_path / "nowhere")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "fc_definition.json").write_bytes((dataset / "fc_definition.json").read_bytes())
    with pytest.raises(ValueError, match="is damaged"):
        load_cohort(damaged)


def test_load_cohort_refuses_another_fc_definition(dataset: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in filter(Path.is_file, dataset.iterdir()):
        (folder / path.name).write_bytes(path.read_bytes())
    definition = (folder / "fc_definition.json").read_text().replace('"num_regions": 10', '"num_regions": 12')
    (folder / "fc_definition.json").write_text(definition)
    with pytest.raises(ValueError, match=r"fc_definition\.json has changed"):
        load_cohort(folder)
    (folder / "checksums.json").unlink()
    with pytest.raises(ValueError, match="45 edges a scan in connectivity, but its FC definition has 12 regions"):
        load_cohort(folder)


@given(regions=st.integers(2, 12), scans=st.integers(1, 4), seed=st.integers(0, 99))
def test_triangles_and_matrices_are_inverse(regions: int, scans: int, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(-1, 1, (scans, regions, regions)).astype(np.float16)
    symmetric = np.triu(values, 1) + np.triu(values, 1).transpose(0, 2, 1) + np.eye(regions, dtype=np.float16)
    triangles = to_triangles(symmetric)
    assert triangles.shape == (scans, regions * (regions - 1) // 2)
    matrices = to_matrices(torch.from_numpy(triangles), regions)
    assert matrices.dtype == torch.float32
    np.testing.assert_array_equal(matrices.numpy(), symmetric.astype(np.float32))
    np.testing.assert_array_equal(to_triangles(matrices.numpy()), triangles)


def test_connectome_dataset_batches(cohort: Cohort) -> None:
    rows = np.array([5, 2, 9])
    labels = {"labels": torch.tensor([[1.0], [2.0], [3.0]])}
    data = ConnectomeDataset(cohort.select(rows), labels)
    assert (len(data), data.subjects) == (3, ["0006", "0003", "0010"])
    batch = data.__getitems__([2, 0])
    assert batch["positions"].tolist() == [2, 0]
    assert batch["labels"].tolist() == [[3.0], [1.0]]
    np.testing.assert_array_equal(batch["connectivity"].numpy(), cohort.connectivity(np.array([9, 5])))
    single = data[1]
    assert single["connectivity"].shape == (REGIONS, REGIONS)
    assert single["labels"].tolist() == [2.0]
    assert isinstance(data, ConnectomeDataset)


def test_cohort_names_the_known_columns(cohort: Cohort) -> None:
    with pytest.raises(ValueError, match="no phenotype 'weight' in the data; it has sex, age, group, site, score"):
        cohort.require_column("weight")


def test_study_has_the_planted_effect(study: Study) -> None:
    """The other tests rely on it."""
    assert study.time_series.shape == (PEOPLE, VOLUMES, REGIONS)
    inside = study.connectivity[:, :4, :4].mean((1, 2))
    is_b = (study.participants["group"] == "B").to_numpy()
    assert inside[is_b].min() > inside[~is_b].max()


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
