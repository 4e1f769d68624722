"""The studies: families of settings, and the tables of docs/results.md, made of the records beside it alone."""

import pytest

from training.command_line.cli import parse_arguments
from training.reporting.ablation import ABLATIONS, Ablation, ablation_table
from training.reporting.results import LCM, Results, Score, TaskResults
from training.reporting.studies import COMPARISONS, between_marks, summary_table, tables
from training.studies import PAGE, RECORDS, main, settings_of, studies
from training.trainer.arguments import FinetuneArguments, PretrainArguments


def records() -> dict[str, Results]:
    """What the finished studies found."""
    return {path.stem: Results.load(path) for path in sorted(RECORDS.glob("*.json"))}


def test_page_shows_what_the_records_hold() -> None:
    found = records()
    page, summary = PAGE.read_text(encoding="utf-8"), summary_table(found)
    for name, content in tables(found).items():
        assert between_marks(page, name, content) == page
    assert between_marks(page, "summary", summary) == page


def test_every_record_has_its_study() -> None:
    known = studies()
    for name, record in records().items():
        assert record.title == known[name]["evaluate"]["title"]
    for together in (*COMPARISONS.values(), *ABLATIONS.values()):
        assert set(together.studies) <= set(known)


def test_every_study_has_settings_that_are_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.chdir(tmp_path)
    for name, study in studies().items():
        arguments = settings_of(name, study)
        assert arguments.output == f"runs/studies/{name}"
        for path in arguments.finetune:
            parse_arguments(FinetuneArguments, ["--config", path])
        if arguments.pretrain:
            parse_arguments(PretrainArguments, ["--config", arguments.pretrain])
        if "start" in study:
            assert study["finetune"]["checkpoint"].startswith(study["start"]["output"])


def test_variants_differ_in_what_is_their_own() -> None:
    found = studies()
    few, many = found["transfer_26"], found["transfer_130"]
    assert (few["finetune"].pop("labels_per_class"), many["finetune"].pop("labels_per_class")) == (26, 130)
    assert few["finetune"] == many["finetune"]
    assert few["start"] == many["start"]


def test_crossed_variants_have_the_settings_and_titles_of_both() -> None:
    study = studies()["decoder_lemon_512x4"]
    assert study["evaluate"]["title"] == "MPI-LEMON, 4 layers, 512 wide"
    assert study["evaluate"]["data"] == "runs/data/lemon-schaefer200"
    assert (study["pretrain"]["batch_size"], study["pretrain"]["hidden_size"]) == (16, 512)


def test_ablation_compares_fold_by_fold() -> None:
    def record(scores: list[float]) -> Results:
        score = Score(sum(scores) / len(scores), 0.0, scores)
        task = TaskResults("sex", {}, 10, {LCM: {"roc_auc": score}})
        return Results("title", {"folds": 5}, 10, {"sex": task})

    ablation = Ablation("cohort", {"a": "A", "b": "B"}, {"small": "small", "large": "large"})
    assert ablation_table(ablation, {}) == ""
    found = {"a_small": record([0.5, 0.6, 0.7, 0.6, 0.6]), "a_large": record([0.6, 0.6, 0.8, 0.7, 0.8])}
    # Differences 0.1, 0, 0.1, 0.1, 0.2: mean 0.1, deviation 0.0707; t(4) 2.776; root of 1/5 + 1/4.
    assert "| A | sex | ROC AUC | - | 0.600 ± 0.000 | +0.100 [-0.032, +0.232] |" in ablation_table(ablation, found)
    found |= {"b_small": record([0.5] * 5), "b_large": record([0.5] * 5)}
    # The rows' 0.1 and 0: mean 0.05, t(1) 12.706 times 0.0707 / root of 2.
    assert "| **mean over the rows** |  |  |  |  | +0.050 [-0.585, +0.685] |" in ablation_table(ablation, found)


def test_unknown_study_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--studies", "lemmon"])
    assert "There is no study 'lemmon'" in capsys.readouterr().err


def test_page_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for abide"):
        between_marks("# Results", "abide", "table")
