"""What an evaluation scores and writes: baselines, the optimistic protocol, pretrained variables, groups."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import training.evaluate
import training.evaluation.cross_validation
from hub_cards.results import eval_results, load_results, results_table
from modeling_lcm import BEIVariable
from tests.training.conftest import PEOPLE
from training.data.cohort import Cohort
from training.evaluation.arguments import EvaluateArguments
from training.evaluation.fold import as_predictions
from training.evaluation.tasks import Task
from training.reporting.results import OPTIMISTIC, SCRATCH


def test_baselines_and_the_optimistic_protocol_beside_the_honest_one(
    evaluate_arguments: Callable[..., EvaluateArguments], tmp_path: Path
) -> None:
    finetuning = {"labels_per_class": None, "lora_rank": 2, "pseudo_labels": "model", "epochs": 3}
    every = ["majority", "linear", "svm", "scratch"]  # the perceptron takes longer, and has tests of its own
    results = training.evaluation.cross_validation.evaluate(
        evaluate_arguments(finetuning, baselines=every, optimistic=True, resamples=50, title="All | of <them>")
    )
    (metrics,) = results.tasks.values()
    models = metrics.models
    assert list(models) == ["LCM", SCRATCH, "linear", "linear SVM", "majority", OPTIMISTIC]
    for name in ("linear", "linear SVM"):
        assert models[name]["roc_auc"].mean > 0.8
    best, honest = models[OPTIMISTIC]["accuracy"].per_fold, models["LCM"]["accuracy"].per_fold
    assert all(optimistic >= last for optimistic, last in zip(best, honest, strict=True))
    # A model from random weights has no adapter and has learnt from nothing but the fold's labels.
    result = json.loads((tmp_path / "folds" / "fold_0" / "result.json").read_text())
    assert set(result["histories"]) == {"pretraining", "fine-tuning", f"fine-tuning, {SCRATCH}"}
    auc = models["linear"]["roc_auc"]
    assert auc.interval[0] <= auc.pooled <= auc.interval[1]
    assert auc.p_value < 0.1
    assert metrics.chance == {"accuracy": 0.5, "balanced_accuracy": 0.5, "roc_auc": 0.5}
    assert list(metrics.groups["site"]) == ["x", "y", "(mean, weighted by people)"]
    assert metrics.groups["sex"]["F"].n_subjects == PEOPLE // 2
    # Files for subjects.
    text = (tmp_path / "folds" / "results.md").read_text()
    assert text.startswith("# All \\| of &lt;them&gt;\n")
    assert f"| {OPTIMISTIC} |" in text
    assert "**ROC AUC by site**" in text
    page = (tmp_path / "folds" / "report.html").read_text()
    assert "All | of &lt;them&gt;" in page
    for caption in (
        "ROC of all left-out predictions",
        "Confusion matrix",
        "Calibration",
        "in every fold",
        "Loss by epoch, fine-tuning",
    ):
        assert caption in page


def test_watching_the_test_fold_changes_nothing_of_the_honest_score(
    pretraining_only: Callable[..., EvaluateArguments], tmp_path: Path
) -> None:
    settings = {"tasks": ["group", "age"], "baselines": ["majority"]}
    honest, watched = (
        training.evaluation.cross_validation.evaluate(
            pretraining_only({"epochs": 3}, optimistic=watch, output=str(tmp_path / str(watch)), **settings)
        ).tasks
        for watch in (False, True)
    )
    for task, metric in (("group", "brier"), ("age", "mae")):
        assert honest[task].models["LCM"] == watched[task].models["LCM"]
        assert OPTIMISTIC not in honest[task].models
        assert len(watched[task].models[OPTIMISTIC][metric].per_fold) == 2
    best = watched["age"].models
    assert best[OPTIMISTIC]["mae"].mean <= best["LCM"]["mae"].mean
    assert "no estimate for new subjects" in watched["age"].protocol["optimistic"]


def test_pretrained_variables_are_scored_beside_baselines(
    pretraining_only: Callable[..., EvaluateArguments], tmp_path: Path, cohort: Cohort
) -> None:
    metrics = training.evaluation.cross_validation.evaluate(
        pretraining_only({"epochs": 25, "learning_rate": 5e-3, "continuous": ["age", "score"]})
    )
    tasks = metrics.tasks
    assert list(tasks) == ["sex", "group", "age", "score"]
    assert set(tasks["sex"].models) == {"LCM", "linear", "majority"}
    assert set(tasks["score"].models) == {"LCM", "linear", "mean"}
    assert tasks["group"].models["LCM"]["roc_auc"].mean > 0.8
    assert tasks["score"].models["LCM"]["mae"].mean < tasks["score"].models["mean"]["mae"].mean
    assert tasks["group"].protocol["split"] == "by subject, balanced by group"
    table = pd.read_csv(tmp_path / "folds" / "predictions_age.tsv", sep="\t", dtype={"subject_id": str})
    ages = cohort.table.set_index("subject_id")["age"]
    np.testing.assert_allclose(table["age"], ages.loc[table["subject_id"]], rtol=1e-5)
    assert table["LCM"].between(0, 120).all()  # in years
    assert (tmp_path / "folds" / "fold_1" / "pretrained" / "config.json").is_file()
    # The file feeds the model card: a table per variable, and an entry per variable and metric.
    loaded = load_results(tmp_path / "folds" / "metrics.json")
    assert results_table(loaded).count("| LCM |") == 4
    entries = eval_results(loaded, "a study")
    assert {"sex", "age"} <= {entry.task_name.split()[0] for entry in entries}
    age = next(entry for entry in entries if entry.task_name.startswith("age") and entry.metric_type == "mae")
    assert age.metric_value == tasks["age"].models["LCM"]["mae"].mean


def test_tasks_restrict_what_is_scored_and_no_checkpoint_stays(
    pretraining_only: Callable[..., EvaluateArguments], tmp_path: Path
) -> None:
    metrics = training.evaluation.cross_validation.evaluate(pretraining_only(tasks=["age"], keep_checkpoints=False))
    assert list(metrics.tasks) == ["age"]
    assert sorted(path.name for path in (tmp_path / "folds" / "fold_0").iterdir()) == [
        "result.json",
        "result.json.sha256",
    ]
    with pytest.raises(ValueError, match="The tasks site are not pretrained; those are sex, group, age"):
        training.evaluation.cross_validation.evaluate(pretraining_only(tasks=["site"], output=str(tmp_path / "b")))


def test_labels_are_matched_by_name() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    variable = BEIVariable("state", "categorical", ["rest", "N", "pain"])
    task = Task(replace(variable, labels=["pain", "rest", "unseen"]), ("pain", "rest", "unseen"))
    np.testing.assert_allclose(as_predictions(logits, variable, task), [[2 / 7, 5 / 7, 0]], rtol=1e-6)
    age = BEIVariable("age", "continuous", mean=40, std=10)
    assert as_predictions(torch.tensor([[0.5]]), age, Task(age, ())).tolist() == [45]


def test_groups_leave_out_people_of_whom_nothing_is_recorded(
    pretraining_only: Callable[..., EvaluateArguments],
    use_table: Callable[..., Cohort],
    cohort: Cohort,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sex = cohort.table["sex"].astype(object).tolist()
    use_table(sex=[None, *sex[1:]])
    metrics = training.evaluation.cross_validation.evaluate(
        pretraining_only({"categorical": ["group"]}, tasks=["group"])
    )
    counts = {value: group.n_subjects for value, group in metrics.tasks["group"].groups["sex"].items()}
    assert counts.pop("(mean, weighted by people)") == sum(counts.values()) == PEOPLE - 1
    # Every fold shows its first numbers as soon as they are there.
    assert capsys.readouterr().out.count("  group, ROC AUC: LCM ") == 2
