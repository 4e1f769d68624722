"""The likeliest mistakes, each through the door: one or two sentences that name the setting to change."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.training.first_report.folders import write_matrices, write_xcpd
from training import report


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen subjects of XCP-D, and their FC as files."""
    place = tmp_path_factory.mktemp("mistakes")
    write_xcpd(place / "xcp_d", 16)
    write_matrices(place / "fc", 16)
    return place


@pytest.fixture
def place(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    shutil.copytree(original, tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture
def refused(place: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Function that starts the door and gives back its error, after checking its form and that nothing is written."""

    def start(*command: str, source: str = "xcp_d", task: str | None = "Group", output: str = "out") -> str:
        given = ["--task", task] if task else []
        with pytest.raises(SystemExit) as end:
            report.main([str(place / source), str(place / output), *given, *command])
        text = capsys.readouterr().err.strip()
        assert end.value.code == 2 and text.startswith("error: ")
        assert len(text.replace(str(place), "")) < 400 and "\n" not in text and "Traceback" not in text
        if output == "out":
            assert not (place / "out" / "dataset").exists() and not (place / "out" / "report.html").exists()
        return text

    return start


def change_table(path: Path, **columns: object) -> None:
    """Replace columns of a table; None drops one."""
    separator = "\t" if path.suffix == ".tsv" else ","
    table = pd.read_csv(path, sep=separator)
    for name, values in columns.items():
        table = table.drop(columns=name) if values is None else table.assign(**{name: values})
    table.to_csv(path, sep=separator, index=False)


def test_the_folder_of_one_subject(refused: Callable[..., str], place: Path) -> None:
    subject = next(path.name for path in sorted((place / "xcp_d").glob("sub-*")))
    text = refused(source=f"xcp_d/{subject}")
    assert "is the folder of one subject" in text and "xcp_d" in text


def test_the_folder_above(refused: Callable[..., str], place: Path) -> None:
    (place / "study" / "derivatives").mkdir(parents=True)
    (place / "xcp_d").rename(place / "study" / "derivatives" / "xcp_d")
    assert "derivatives/xcp_d" in refused(source="study")


def test_a_raw_bids_folder(refused: Callable[..., str], place: Path) -> None:
    func = place / "raw" / "sub-01" / "func"
    func.mkdir(parents=True)
    (func / "sub-01_task-rest_bold.nii.gz").write_bytes(b"")
    assert "before preprocessing" in refused(source="raw")


def test_no_such_folder(refused: Callable[..., str]) -> None:
    assert "There is no" in refused(source="xcpd") and "xcp_d" in refused(source="xcpd")


def test_no_table(refused: Callable[..., str], place: Path) -> None:
    (place / "xcp_d" / "participants.tsv").unlink()
    assert "--participants" in refused()


def test_ids_that_do_not_match(refused: Callable[..., str], place: Path) -> None:
    change_table(place / "fc" / "participants.csv", participant_id=[f"X{n:03d}" for n in range(16)])
    text = refused(source="fc")
    assert "X000" in text or "subject_column" in text or "--participants" in text


def test_a_misspelt_task(refused: Callable[..., str]) -> None:
    assert "Did you mean Group?" in refused(task="Groups")


def test_a_misspelt_setting(refused: Callable[..., str]) -> None:
    assert "Did you mean --n_folds?" in refused("--n_fold", "3")


def test_no_task(refused: Callable[..., str]) -> None:
    assert "--task" in refused(task=None)


def test_a_task_that_is_an_identifier(refused: Callable[..., str], place: Path) -> None:
    change_table(place / "xcp_d" / "participants.tsv", scan_code=[f"c{n}" for n in range(16)])
    text = refused(task="scan_code")
    assert "an identifier" in text and "--task" in text and "Group" in text


def test_a_label_with_one_subject(refused: Callable[..., str], place: Path) -> None:
    table = pd.read_csv(place / "xcp_d" / "participants.tsv", sep="\t")
    change_table(place / "xcp_d" / "participants.tsv", Group=["prodromal", *table["Group"][1:]])
    text = refused()
    assert "'prodromal' of 'Group' has one subject" in text and "--labels elderly young" in text
    change_table(place / "xcp_d" / "participants.tsv", Group=["patient", *["healthy control"] * 15])
    text = refused()
    assert "'patient' of 'Group' has one subject" in text and "--labels" not in text  # one label would be left


def test_a_task_with_one_label(refused: Callable[..., str], place: Path) -> None:
    change_table(place / "xcp_d" / "participants.tsv", Group="young")
    assert "nothing to tell apart" in refused()


def test_a_task_that_nobody_has(refused: Callable[..., str], place: Path) -> None:
    change_table(place / "xcp_d" / "participants.tsv", Group="n/a")
    assert "recorded for no scan" in refused()


def test_labels_that_are_not_there(refused: Callable[..., str]) -> None:
    text = refused("--labels", "control", "patient")
    assert "its labels are" in text and "young" in text


def test_a_positive_label_that_is_not_there(refused: Callable[..., str]) -> None:
    text = refused("--positive", "patient")
    assert "patient" in text and "young" in text


def test_labels_taken_for_numbers(refused: Callable[..., str]) -> None:
    assert "Leave out --kind" in refused("--kind", "continuous")


def test_a_wrong_atlas(refused: Callable[..., str]) -> None:
    text = refused("--atlas", "aal-116")
    assert "--atlas" in text and "Schaefer200" in text


def test_matrices_of_another_atlas(refused: Callable[..., str]) -> None:
    text = refused("--atlas", "aal-116", source="fc")
    assert "200" in text and "116" in text


def test_an_output_with_something_else_in_it(refused: Callable[..., str], place: Path) -> None:
    (place / "mine").mkdir()
    (place / "mine" / "thesis.txt").write_text("years of work")
    assert "choose another output" in refused(output="mine")
    assert (place / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_output_where_nothing_can_be_written(refused: Callable[..., str], place: Path) -> None:
    (place / "file").write_text("")
    text = refused(output="file/out")
    assert "file" in text


def test_too_few_folds(refused: Callable[..., str]) -> None:
    assert "n_folds must be at least 2" in refused("--n_folds", "1")


def test_gradients_without_a_checkpoint(refused: Callable[..., str]) -> None:
    assert "add --checkpoint" in refused("--head", "decoder")


def test_a_checkpoint_that_is_none(refused: Callable[..., str], place: Path) -> None:
    text = refused("--checkpoint", str(place / "xcp_d"))
    assert "holds no checkpoint" in text


def test_a_spoilt_scan_among_good_ones_is_left_out_and_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoilt = sorted((place / "fc").glob("*_fc.csv"))[3]
    spoilt.write_text("this is no matrix")
    command = [str(place / "fc"), str(place / "out"), "--task", "Group", "--atlas", "schaefer-200"]
    report.main([*command, "--resamples", "0", "--baselines", "majority", "--n_folds", "2"])
    text = capsys.readouterr().out
    assert "could not be used" in text and spoilt.name in text
    page = (place / "out" / "report.html").read_text(encoding="utf-8")
    assert "1 were left out" in page or "1 was left out" in page
    assert spoilt.name in page


def test_two_sessions_stay_with_their_subject(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = sorted((place / "xcp_d").glob("sub-*/func/*_timeseries.tsv"))[0]
    for session in ("1", "2"):
        shutil.copy(first, first.with_name(first.name.replace("_task", f"_ses-{session}_task")))
    table = pd.read_csv(first, sep="\t")
    (table + np.random.default_rng(0).normal(0, 0.3, table.shape)).to_csv(
        first.with_name(first.name.replace("_task", "_ses-2_task")), sep="\t", index=False
    )
    first.unlink()
    report.main([str(place / "xcp_d"), str(place / "out"), "--task", "Group", "--dry_run"])
    assert "17 scans of 16 subjects" in capsys.readouterr().out


def test_a_site_that_is_the_diagnosis_is_said_on_the_page(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.read_csv(place / "fc" / "participants.csv")
    sites = np.where(table["Group"] == "young", "Leipzig", "Berlin")
    change_table(place / "fc" / "participants.csv", site=sites)
    command = [str(place / "fc"), str(place / "out"), "--task", "Group", "--atlas", "schaefer-200"]
    report.main([*command, "--resamples", "0", "--baselines", "majority", "--n_folds", "2"])
    assert "'site' alone tells 'Group'" in capsys.readouterr().out
    assert "alone tells" in (place / "out" / "report.html").read_text(encoding="utf-8")
