"""The first report: one command from a folder to a page, that goes on where it was interrupted."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

import training.first_report.run as steps
from tests.training.first_report.folders import write_fmriprep_of_demo, write_matrices, write_xcpd
from tests.training.preparation.layouts import write_label_image
from training import predict, report
from training.reporting.results import Results


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Report on a folder of XCP-D: input, and output beside it."""
    place = tmp_path_factory.mktemp("first_report")
    write_xcpd(place / "xcp_d")
    report.main([str(place / "xcp_d"), str(place / "out"), "--task", "Group", "--resamples", "200"])
    return place


def page_text(place: Path) -> str:
    """Words of a page, without pictures and style."""
    html = (place / "report.html").read_text(encoding="utf-8")
    html = re.sub(r"<style>.*?</style>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def test_the_page_answers_first(finished: Path) -> None:
    text = page_text(finished / "out")
    results = Results.load(finished / "out" / "evaluation" / "metrics.json").tasks["Group"]
    score = results.models["LCM"]["roc_auc"]
    assert f"LCM tells young from elderly at AUC {score.pooled:.2f}" in text.partition("Research use")[0]
    assert "Confounds alone, without FC: 1.000" in text.partition("Research use")[0]  # age tells who is young
    assert "elderly" in text.partition("Research use")[0] and "young" in text.partition("Research use")[0]
    order = [
        text.index(f" {title}")
        for title in ("Results", "Scores", "Subjects", "Table 1", "Quality of the scans", "Protocol", "Limits")
    ]
    assert order == sorted(order)
    assert "24 scans of 24 subjects could be used" in text
    assert "std. difference" in text and "age (years)" in text
    assert str(finished) not in (finished / "out" / "report.html").read_text(encoding="utf-8")


def test_pictures_say_the_result_and_agree_with_the_tables(finished: Path) -> None:
    html = (finished / "out" / "report.html").read_text(encoding="utf-8")
    score = Results.load(finished / "out" / "evaluation" / "metrics.json").tasks["Group"].models["LCM"]["roc_auc"]
    texts = re.findall(r'alt="([^"]*)"', html)
    assert len(texts) >= 4 and all(texts)
    roc = next(text for text in texts if text.startswith("ROC curves"))
    assert f"LCM {score.pooled:.3f}" in roc
    assert f'<td class="n">{score.pooled:.3f} [' in html


def test_maps_are_drawn_only_where_folds_agree(finished: Path) -> None:
    text = page_text(finished / "out")
    is_shown = "The map is stable" in text
    assert is_shown != ("No map is drawn" in text)
    assert ("Regions by their share" in text) == is_shown
    assert re.search(r"maps of \d folds correlate by -?\d\.\d\d", text)
    regions = pd.read_csv(finished / "out" / "explanation" / "regions_young.tsv", sep="\t")
    assert len(regions) == 200 and regions["share"].sum() == pytest.approx(1, abs=1e-3)


def test_the_checkpoint_predicts_and_knows_its_limits(finished: Path) -> None:
    table = finished / "predictions.tsv"
    checkpoint, data = finished / "out" / "checkpoint", finished / "out" / "dataset"
    predict.main(["--checkpoint", str(checkpoint), "--data", str(data), "--output", str(table)])
    found = pd.read_csv(table, sep="\t")
    assert found["in_training_data"].all() and found["out_of_distribution"].mean() < 0.1
    assert set(found["Group"]) <= {"young", "elderly"} and "Group_possible" in found
    assert found["limits"].str.contains("This subject was in the training data").all()


def test_the_same_command_says_that_it_is_done_and_another_one_is_refused(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(finished / "xcp_d"), str(finished / "out"), "--task", "Group", "--resamples", "200"]
    report.main(command)
    assert "Finished before" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        report.main([*command, "--seed", "1"])
    assert "begun with another seed" in capsys.readouterr().err


def test_an_interrupted_report_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_matrices(tmp_path / "fc", 12)
    command = [str(tmp_path / "fc"), str(tmp_path / "out"), "--task", "sex", "--atlas", "schaefer-200"]
    command += ["--resamples", "0", "--baselines", "majority", "--n_folds", "3"]

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(steps, "evaluate", interrupt)
        with pytest.raises(SystemExit, match="130"):
            report.main(command)
    assert "the same command goes on" in capsys.readouterr().err
    made = (tmp_path / "out" / "dataset" / "fc_definition.json").stat().st_mtime_ns
    report.main(command)
    assert "prepared already" in capsys.readouterr().out
    assert (tmp_path / "out" / "dataset" / "fc_definition.json").stat().st_mtime_ns == made
    assert "LCM tells" in page_text(tmp_path / "out")


def test_a_number_from_images_of_fmriprep(tmp_path: Path) -> None:
    labels_img = write_label_image(tmp_path / "labels.nii.gz")
    write_fmriprep_of_demo(tmp_path / "fmriprep", labels_img)
    command = [str(tmp_path / "fmriprep"), str(tmp_path / "out"), "--task", "age", "--labels_img", str(labels_img)]
    report.main([*command, "--n_folds", "3", "--resamples", "200", "--baselines", "majority"])
    text = page_text(tmp_path / "out")
    assert "LCM predicts age with Pearson r" in text
    assert "as fMRIPrep writes them (fMRIPrep 23.2.1)" in text
    recipe = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert recipe["task"] == "age"


def test_a_dry_run_writes_nothing(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report.main([str(finished / "xcp_d"), str(tmp_path / "out"), "--task", "Group", "--dry_run"])
    text = capsys.readouterr().out
    assert "24 subjects, 200 regions" in text and "elderly 12, young 12" in text
    assert re.search(r"About \d+ (s|min) on this machine", text) and "GB of memory" in text
    assert not (tmp_path / "out").exists()
    report.main([str(finished / "out" / "dataset"), str(tmp_path / "out"), "--task", "Group", "--dry_run"])
    assert "nothing to prepare" in capsys.readouterr().out
