"""What cannot be prepared is refused by name, before anything is written, and nothing finished is lost."""

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import training.preparation.content
import training.preparation.workers
from tests.training.conftest import PEOPLE, Study
from tests.training.preparation.test_prepare import write_scans
from training.data.cohort import load_cohort
from training.preparation.arguments import PrepareArguments
from training.preparation.build import prepare
from training.preparation.sources import arrays


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
