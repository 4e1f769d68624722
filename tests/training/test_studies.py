"""The studies: families of settings, and the tables of docs/results.md, made of the records beside it alone."""

import pytest

from training.command_line.cli import parse_arguments
from training.reporting.results import Results
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
    assert {name for comparison in COMPARISONS.values() for name in comparison.studies} <= set(known)


def test_every_study_has_settings_that_are_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.chdir(tmp_path)
    for name, study in studies().items():
        arguments = settings_of(name, study)
        assert arguments.output == f"runs/studies/{name}"
        for path, kind in ((arguments.pretrain, PretrainArguments), (arguments.finetune, FinetuneArguments)):
            if path:
                parse_arguments(kind, ["--config", path])
        if "start" in study:
            assert study["finetune"]["checkpoint"].startswith(study["start"]["output"])


def test_variants_differ_in_what_is_their_own() -> None:
    found = studies()
    few, many = found["transfer_26"], found["transfer_130"]
    assert (few["finetune"].pop("labels_per_class"), many["finetune"].pop("labels_per_class")) == (26, 130)
    assert few["finetune"] == many["finetune"]
    assert few["start"] == many["start"]


def test_unknown_study_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--studies", "lemmon"])
    assert "There is no study 'lemmon'" in capsys.readouterr().err


def test_page_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for abide"):
        between_marks("# Results", "abide", "table")
