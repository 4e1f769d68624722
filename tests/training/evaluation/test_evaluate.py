"""Evaluation of both stages: who trains, who is tested, few labels, resuming, checkpoints that have seen subjects."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import training.evaluation.cross_validation
import training.evaluation.design
import training.evaluation.fold
import training.evaluation.running
from tests.training.conftest import PEOPLE, SHORT
from training import evaluate
from training.data.cohort import Cohort
from training.data.folds import Folds
from training.evaluation.arguments import EvaluateArguments
from training.evaluation.baselines import Baseline, linear_baseline
from training.evaluation.comparison import FITTED
from training.evaluation.design import Parts, Recipe
from training.evaluation.fold import few_labelled
from training.evaluation.tasks import make_task
from training.reporting.results import Results
from training.trainer.arguments import FinetuneArguments
from training.trainer.checkpoints import read_record, save_checkpoint
from training.trainer.finetuning import finetune
from training.trainer.runs import record_of


def test_evaluate_end_to_end(
    evaluate_arguments: Callable[..., EvaluateArguments],
    cohort: Cohort,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = evaluate_arguments(finetuning={"epochs": 20, "learning_rate": 5e-3, "pseudo_labels": "recorded"})
    fitted: list[list[str]] = []
    tuned: list[list[str]] = []

    class Recorder(Baseline):
        def in_span(self, *args: Any, groups: list[str], **rest: Any) -> np.ndarray:
            fitted.append(groups)
            return super().in_span(*args, groups=groups, **rest)

    def record_labels(shown: Cohort, *args: Any, **rest: Any) -> Any:
        tuned.append(shown.table["subject_id"][shown.table["group"].notna()].tolist())
        return finetune(shown, *args, **rest)

    monkeypatch.setitem(FITTED, "linear", ("linear", Recorder(linear_baseline.fit)))
    monkeypatch.setattr(training.evaluation.fold, "finetune", record_labels)
    names = ("data", "output", "pretrain", "n_folds", "workers")
    flags = [f"--{name}={getattr(arguments, name)}" for name in names]
    flags += ["--finetune", *arguments.finetune, "--baselines", "majority", "linear"]
    evaluate.main(flags)
    assert "LCM" in capsys.readouterr().out
    folder = tmp_path / "folds"
    (metrics,) = Results.load(folder / "metrics.json").tasks.values()
    assert set(metrics.models) == {"LCM", "linear", "linear, all labels", "majority"}
    for scores in metrics.models.values():
        assert {"accuracy", "balanced_accuracy", "f1", "roc_auc"} <= set(scores)
        assert all(len(score.per_fold) == 2 for score in scores.values())
    assert metrics.models["majority"]["roc_auc"].mean == 0.5
    assert metrics.models["LCM"]["roc_auc"].mean > 0.8  # the planted effect is large
    protocol = metrics.protocol
    assert (protocol["task"], protocol["labels"], protocol["folds"]) == ("group", ["A", "B"], 2)
    assert (metrics.n_subjects, metrics.n_scans) == (PEOPLE, PEOPLE)
    folds = Folds.load(folder / "splits.json")
    assert protocol["split_checksum"] == folds.checksum
    table = pd.read_csv(folder / "predictions.tsv", sep="\t", dtype={"subject_id": str})
    assert sorted(table["subject_id"]) == cohort.table["subject_id"].tolist()
    truth = cohort.table.set_index("subject_id")["group"]
    assert (table["group"] == truth.loc[table["subject_id"]].to_numpy()).all()
    np.testing.assert_allclose(table["LCM: A"] + table["LCM: B"], 1, atol=1e-4)
    # Per fold the linear model is fitted on LCM's few labels first, then on all.
    for fold in range(2):
        path = folder / f"fold_{fold}"
        for stage in ("pretrained", "checkpoint"):
            assert not set(read_record(path / stage)["training_subjects"]) & set(folds.test_subjects[fold])
        seen = folds.split(cohort, fold)[0]
        assert len(fitted[2 * fold]) == 8
        assert sorted(tuned[fold]) == sorted(fitted[2 * fold])
        assert fitted[2 * fold + 1] == seen.table["subject_id"].tolist()


def test_few_labels_are_the_same_for_every_member(
    evaluate_arguments: Callable[..., EvaluateArguments], monkeypatch: pytest.MonkeyPatch
) -> None:
    design = training.evaluation.design.make_design(evaluate_arguments())
    shown = design.tested.select(np.arange(4, PEOPLE))
    chosen, others = (few_labelled(design.recipe, design.recipe.tasks[0], shown, repeat) for repeat in (0, 1))
    assert np.bincount(design.recipe.tasks[0].truth(chosen)).tolist() == [4, 4]
    assert chosen.table.index.min() >= 4
    assert not chosen.table.index.equals(others.table.index)
    labelled = []

    def record_labels(shown: Cohort, tuning: FinetuneArguments, **rest: Any) -> Any:
        labelled.append((tuning.seed, shown.table["group"].notna().tolist()))
        return finetune(shown, tuning, **rest)

    monkeypatch.setattr(training.evaluation.fold, "finetune", record_labels)
    training.evaluation.cross_validation.evaluate(evaluate_arguments(ensemble=2))
    assert [seed for seed, _ in labelled] == [0, 1, 0, 1]
    assert labelled[0][1] == labelled[1][1]
    assert labelled[2][1] == labelled[3][1]


def test_pretrained_task_is_scored_in_the_order_of_the_task(
    evaluate_arguments: Callable[..., EvaluateArguments],
) -> None:
    """The group is pretrained as (A, B) and asked for as (B, A): probabilities must follow the names."""
    arguments = evaluate_arguments(
        pretraining={"categorical": ["group"], "continuous": [], "epochs": 15, "learning_rate": 5e-3},
        finetuning={"labels": ["B", "A"], "labels_per_class": None, "learning_rate": 1e-3},
    )
    results = training.evaluation.cross_validation.evaluate(arguments)
    (metrics,) = results.tasks.values()
    assert metrics.protocol["labels"] == ["B", "A"]
    assert metrics.models["LCM"]["roc_auc"].mean > 0.8


def test_evaluate_regression_with_missing_values(
    use_table: Callable[..., Cohort], cohort: Cohort, evaluate_arguments: Callable[..., EvaluateArguments]
) -> None:
    use_table(score=cohort.table["score"].where(~cohort.table.index.isin([0, 5])))
    arguments = evaluate_arguments(
        finetuning={"task": "score", "kind": "continuous", "epochs": 20, "learning_rate": 5e-3}
    )
    results = training.evaluation.cross_validation.evaluate(arguments)
    (metrics,) = results.tasks.values()
    assert set(metrics.models) == {"LCM", "linear", "mean"}
    assert metrics.n_scans == PEOPLE - 2
    assert metrics.models["LCM"]["mae"].mean < metrics.models["mean"]["mae"].mean


def test_evaluate_resume_keeps_finished_folds(
    evaluate_arguments: Callable[..., EvaluateArguments], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, run_fold, started = evaluate_arguments(), training.evaluation.running.run_fold, []

    def count(recipe: Recipe, parts: Parts, folder: Path, fold: int, repeat: int) -> dict:
        started.append(fold)
        if started == [0, 1]:
            raise KeyboardInterrupt
        return run_fold(recipe, parts, folder, fold, repeat)

    monkeypatch.setattr(training.evaluation.running, "run_fold", count)
    with pytest.raises(KeyboardInterrupt):
        training.evaluation.cross_validation.evaluate(arguments)
    assert not (tmp_path / "folds" / "metrics.json").exists()
    with pytest.raises(FileExistsError, match="already holds results"):
        training.evaluation.cross_validation.evaluate(arguments)
    results = training.evaluation.cross_validation.evaluate(replace(arguments, resume=True))
    (metrics,) = results.tasks.values()
    assert started == [0, 1, 1]
    assert len(metrics.models["LCM"]["accuracy"].per_fold) == 2
    changed = evaluate_arguments(finetuning={"epochs": 3}, resume=True)
    with pytest.raises(ValueError, match=r"made with other settings of fine-tuning .*settings\.json"):
        training.evaluation.cross_validation.evaluate(changed)


def test_refused_evaluation_leaves_its_output_free(
    evaluate_arguments: Callable[..., EvaluateArguments], tmp_path: Path
) -> None:
    with pytest.raises(ValueError):
        training.evaluation.cross_validation.evaluate(evaluate_arguments(n_folds=100))
    with pytest.raises(ValueError, match="no phenotype 'nosuch'"):
        training.evaluation.cross_validation.evaluate(evaluate_arguments(harmonise="nosuch"))
    assert not (tmp_path / "folds").exists()


def test_resume_refuses_other_data(
    evaluate_arguments: Callable[..., EvaluateArguments], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, load_cohort = evaluate_arguments(), training.evaluation.design.load_cohort

    def stop(*args: Any) -> dict:
        raise KeyboardInterrupt

    monkeypatch.setattr(training.evaluation.running, "run_fold", stop)
    with pytest.raises(KeyboardInterrupt):
        training.evaluation.cross_validation.evaluate(arguments)

    def changed(folder: str) -> Cohort:
        cohort = load_cohort(folder)
        return replace(cohort, table=cohort.table.assign(age=cohort.table["age"][::-1].to_numpy()))

    monkeypatch.setattr(training.evaluation.design, "load_cohort", changed)
    with pytest.raises(ValueError, match=r"made with other settings of data \(content\)"):
        training.evaluation.cross_validation.evaluate(replace(arguments, resume=True))


def test_two_of_three_labels(cohort: Cohort, caplog: pytest.LogCaptureFixture) -> None:
    table = cohort.table.assign(group=["C", *cohort.table["group"][1:]])
    tuning = FinetuneArguments(task="group", labels=["a", "B"])
    task = make_task(replace(cohort, table=table), tuning)
    assert task.labels == ("a", "B")
    values = task.values(table)
    assert np.isnan(values[0])
    assert not np.isnan(values[1:]).any()
    assert "Not among the labels a, B of 'group', and left out: C: 1." in caplog.text


def test_labels_of_external_data_may_be_spelt_otherwise(cohort: Cohort) -> None:
    task = make_task(cohort, FinetuneArguments(task="group"))
    table = pd.DataFrame({"group": ["a", "B ", "C", None]})
    np.testing.assert_array_equal(task.values(table), [0, 1, np.nan, np.nan])
    numbers = make_task(replace(cohort, table=cohort.table.assign(group=[1, 2] * 12)), FinetuneArguments(task="group"))
    # Whole numbers beside missing ones are stored as 1.0 and 2.0.
    floats = pd.DataFrame({"group": [1.0, np.nan, 2.0]})
    np.testing.assert_array_equal(numbers.values(floats), [0, np.nan, 1])


def test_evaluate_refuses_a_checkpoint_that_saw_test_subjects(
    cohort: Cohort,
    pretrained: Path,
    evaluate_arguments: Callable[..., EvaluateArguments],
    tmp_path: Path,
) -> None:
    settings = {"checkpoint": str(pretrained)}
    with pytest.raises(ValueError, match=r"was trained on 24 of the test subjects, 0001 among them"):
        training.evaluation.cross_validation.evaluate(evaluate_arguments(finetuning=settings, pretrain=None))
    # Fine-tuned once more on others: still made of a model that has seen everybody.
    tuning = FinetuneArguments(**{**SHORT, "epochs": 1, "checkpoint": str(pretrained), "task": "sex"})
    others = cohort.select(np.arange(4))
    model, processor, history = finetune(others, tuning)
    save_checkpoint(tmp_path / "again", model, processor, tuning, record_of(others, history, tuning.checkpoint))
    other = evaluate_arguments(
        finetuning={"checkpoint": str(tmp_path / "again")}, pretrain=None, output=str(tmp_path / "other")
    )
    with pytest.raises(ValueError, match="was trained on 24 of the test subjects"):
        training.evaluation.cross_validation.evaluate(other)


def test_evaluate_with_a_checkpoint_of_other_people(
    cohort: Cohort,
    tmp_path: Path,
    pretrained: Path,
    evaluate_arguments: Callable[..., EvaluateArguments],
    use_table: Callable[..., Cohort],
) -> None:
    use_table(subject_id="new-" + cohort.table["subject_id"])
    results = training.evaluation.cross_validation.evaluate(
        evaluate_arguments(finetuning={"checkpoint": str(pretrained)}, pretrain=None)
    )
    (metrics,) = results.tasks.values()
    assert metrics.protocol["pretraining"] == str(pretrained)
    folder = tmp_path / "unused"
    with pytest.raises(ValueError, match="No checkpoint was given"):
        training.evaluation.cross_validation.evaluate(evaluate_arguments(pretrain=None, output=str(folder)))
    assert not folder.exists()


def test_evaluate_with_two_precisions(evaluate_arguments: Callable[..., EvaluateArguments]) -> None:
    results = training.evaluation.cross_validation.evaluate(
        evaluate_arguments(pretraining={"mixed_precision": "bf16", "epochs": 1}, finetuning={"epochs": 1})
    )
    (metrics,) = results.tasks.values()
    assert np.isfinite(metrics.models["LCM"]["roc_auc"].mean)


def test_shuffled_labels_score_at_chance(
    evaluate_arguments: Callable[..., EvaluateArguments], use_table: Callable[..., Cohort], cohort: Cohort
) -> None:
    """No path from test labels to training: with labels that mean nothing, no model is better than chance."""
    rng = np.random.default_rng(0)
    use_table(noise=rng.permutation(["p", "q"] * (PEOPLE // 2)), group=rng.permutation(cohort.table["group"]))
    results = training.evaluation.cross_validation.evaluate(
        evaluate_arguments(
            {"task": "noise", "epochs": 8, "learning_rate": 5e-3, "labels_per_class": None}, repeats=3, resamples=100
        )
    )
    (metrics,) = results.tasks.values()
    for name in ("LCM", "linear"):
        auc = metrics.models[name]["roc_auc"]
        assert auc.p_value > 0.05, name
        assert auc.interval[0] < 0.55 and auc.pooled < 0.7, name


def test_seen_subjects_may_be_allowed_and_are_reported(
    pretrained: Path, evaluate_arguments: Callable[..., EvaluateArguments], tmp_path: Path
) -> None:
    results = training.evaluation.cross_validation.evaluate(
        evaluate_arguments({"checkpoint": str(pretrained)}, pretrain=None, allow_seen_subjects=True)
    )
    (metrics,) = results.tasks.values()
    assert "The column 'score' alone tells 'group'" in metrics.notes[0]
    assert metrics.notes[1:] == ["The checkpoint was trained on 24 of the test subjects: these scores are optimistic."]
    assert metrics.notes[1] in (tmp_path / "folds" / "results.md").read_text()
