"""Results: one shape for one task or many; what earlier versions wrote stays readable."""

import json
import math
from pathlib import Path

import pytest

from tests.hub_cards.conftest import make_metrics
from training.reporting.results import Group, Results, Score, TaskResults


def results() -> Results:
    """A task with everything that can be there, and undefined values."""
    score = Score(0.7, math.nan, [0.6, math.nan], 0.71, (0.6, 0.8), 0.01, 0.5)
    models = {"LCM": {"roc_auc": score}, "majority": {"roc_auc": Score(0.5, 0.0, [0.5, 0.5])}}
    groups = {"site": {"x": Group(5, {"LCM": {"roc_auc": 0.7}}), "y": Group(6, {"LCM": {"roc_auc": math.nan}})}}
    elsewhere = TaskResults("Elsewhere", {"task": "group", "folds": 1}, 8, models)
    task = TaskResults(
        title="A",
        protocol={"task": "group", "labels": ["a", "b"], "positive": "b", "folds": 2},
        n_subjects=11,
        models=models,
        n_scans=12,
        chance={"roc_auc": 0.5},
        groups=groups,
        best_layers=[1, 1],
        members=[[{"roc_auc": 0.6}, {"roc_auc": math.nan}]],
        external={"other": elsewhere},
        notes=["A note."],
    )
    return Results("A", {"folds": 2}, 11, {"group": task}, 12, {"pretraining": {"epochs": 3}}, 1.5)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    given = results()
    given.save(tmp_path / "metrics.json")
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert list(content["tasks"]) == ["group"]
    assert content["tasks"]["group"]["models"]["LCM"]["roc_auc"]["std"] is None  # JSON has no NaN
    loaded = Results.load(tmp_path / "metrics.json")
    assert repr(loaded) == repr(given)  # NaN is not equal to itself
    assert loaded.tasks["group"].main_metric == "roc_auc"


def test_results_of_one_task_of_earlier_versions_load(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(make_metrics()))
    loaded = Results.load(path)
    assert list(loaded.tasks) == ["cohort"]
    found = loaded.tasks["cohort"]
    assert (found.n_subjects, found.n_scans, found.models["linear"]["roc_auc"].mean) == (30, 31, 0.75)
    assert math.isnan(found.models["LCM"]["mae"].mean)
    assert "labels" in found.protocol and "labels" not in loaded.protocol
    assert loaded.settings["fine-tuning"]["epochs"] == 3
    loaded.save(path)
    assert repr(Results.load(path)) == repr(loaded)


NO_RESULTS = (
    "",
    "{",
    "[]",
    "3",
    '{"title": "A"}',
    '{"title": "A", "protocol": {"task": "a"}, "n_subjects": 3}',
    '{"title": "A", "protocol": {"a": 1}, "n_subjects": 3, "tasks": 3}',
    '{"title": "A", "protocol": {"a": 1}, "n_subjects": 3, "tasks": {"a": []}}',
)


@pytest.mark.parametrize("content", NO_RESULTS)
def test_files_that_hold_no_results_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"metrics\.json cannot be read as the metrics\.json of training\.evaluate"):
        Results.load(path)
