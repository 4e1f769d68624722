"""The tables of docs/results.md: made of the records beside it, and of nothing else."""

import json

import pytest

from benchmarks.results import PAGE, RECORDS, REPOSITORY, STUDIES, between_marks, load_records, summary_table, tables
from training.cli import parse_arguments
from training.evaluation.arguments import EvaluateArguments


def test_page_and_readme_show_what_the_records_hold() -> None:
    records = load_records()
    page, summary = PAGE.read_text(encoding="utf-8"), summary_table(records)
    for name, content in tables(records).items():
        assert between_marks(page, name, content) == page
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert between_marks(page, "summary", summary) == page
    assert between_marks(readme, "summary", summary) == readme


def test_every_record_has_its_configuration() -> None:
    for path in RECORDS.glob("*.json"):
        arguments = parse_arguments(EvaluateArguments, ["--config", str(STUDIES / f"evaluate_{path.stem}.yaml")])
        assert json.loads(path.read_text(encoding="utf-8"))["title"] == arguments.title


def test_page_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for abide"):
        between_marks("# Results", "abide", "table")
