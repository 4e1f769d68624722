"""Cross-validation: who is trained on and who is tested, what is scored, and what the files say."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import training.evaluate
import training.fold
from hub_cards.results import eval_results, load_results, results_table
from modeling_lcm import BEIVariable
from tests.training_fixtures import ATLAS, PEOPLE, SHORT, TINY, Study
from training import evaluate
from training.arguments import FinetuneArguments
from training.checkpoints import read_record, save_checkpoint
from training.comparison import FITTED, SCRATCH
from training.data import Cohort
from training.evaluate import EvaluateArguments
from training.fold import OPTIMISTIC, as_predictions, few_labelled
from training.metrics import classification_metrics
from training.pooling import pool
from training.prepare import PrepareArguments, prepare
from training.protocol import Design, Rows, Task
from training.report import by_task
from training.runs import record_of
from training.splits import Folds, make_folds
from training.stages import finetune


pytest_plugins = ["tests.training_fixtures"]


@pytest.fixture
def evaluate_arguments(
    dataset: Path, write_config: Callable[..., str], tmp_path: Path
) -> Callable[..., EvaluateArguments]:
    """Factory of settings for two folds, both stages, few labels."""

    def make(finetuning: dict | None = None, pretraining: dict | None = None, **overrides: Any) -> EvaluateArguments:
        settings = {
            "data": str(dataset),
            "output": str(tmp_path / "folds"),
            "pretrain": write_config("pretrain", **{**TINY, **SHORT, **(pretraining or {})}),
            "finetune": write_config(
                "finetune", **{**SHORT, "task": "group", "labels_per_class": 4, **(finetuning or {})}
            ),
            "n_folds": 2,
            "resamples": 0,
        }
        return EvaluateArguments(**{**settings, **overrides})

    return make


@pytest.fixture
def pretraining_only(evaluate_arguments: Callable[..., EvaluateArguments]) -> Callable[..., EvaluateArguments]:
    """Factory of settings for two folds in which sex, age and group are pretrained for an epoch and scored."""

    def make(pretraining: dict | None = None, **overrides: Any) -> EvaluateArguments:
        short = {"epochs": 1, "categorical": ["sex", "group"], **(pretraining or {})}
        return evaluate_arguments(pretraining=short, **{"finetune": "", "stratify": "group", **overrides})

    return make


@pytest.fixture
def use_table(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Cohort]:
    """Function that makes the evaluation load the cohort with other columns."""

    def use(**columns: Any) -> Cohort:
        for name, values in columns.items():
            cohort.table[name] = values
        monkeypatch.setattr(training.evaluate, "load_cohort", lambda folder: cohort)
        return cohort

    return use


# --- fine-tuning ---


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
    linear = FITTED["linear"][1]

    def record_subjects(*args: Any, groups: list[str], **rest: Any) -> np.ndarray:
        fitted.append(groups)
        return linear(*args, groups=groups, **rest)

    def record_labels(shown: Cohort, rows: np.ndarray, *args: Any, **rest: Any) -> Any:
        table = shown.table.iloc[rows]
        tuned.append(table["subject_id"][table["group"].notna()].tolist())
        return finetune(shown, rows, *args, **rest)

    monkeypatch.setitem(FITTED, "linear", ("linear", record_subjects))
    monkeypatch.setattr(training.fold, "finetune", record_labels)
    flags = [f"--{name}={getattr(arguments, name)}" for name in ("data", "output", "pretrain", "finetune", "n_folds")]
    evaluate.main(flags)
    assert "LCM" in capsys.readouterr().out
    folder = tmp_path / "folds"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["models"]) == {"LCM", "linear", "linear, all labels", "majority"}
    for scores in metrics["models"].values():
        assert {"accuracy", "balanced_accuracy", "f1", "roc_auc"} <= set(scores)
        assert all(len(score["per_fold"]) == 2 for score in scores.values())
    assert metrics["models"]["majority"]["roc_auc"]["mean"] == 0.5
    assert metrics["models"]["LCM"]["roc_auc"]["mean"] > 0.8  # the planted effect is large
    protocol = metrics["protocol"]
    assert (protocol["task"], protocol["labels"], protocol["folds"]) == ("group", ["A", "B"], 2)
    assert (metrics["n_subjects"], metrics["n_scans"]) == (PEOPLE, PEOPLE)
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
        train = folds.rows(cohort.table["subject_id"], fold)[0]
        assert len(fitted[2 * fold]) == 8
        # LCM's tables also hold the test subjects' labels, in rows that it was not given: `rows` leaves them out.
        assert sorted(tuned[fold]) == sorted(fitted[2 * fold])
        assert fitted[2 * fold + 1] == cohort.table["subject_id"].iloc[train].tolist()


def test_few_labels_are_the_same_for_every_member(
    evaluate_arguments: Callable[..., EvaluateArguments], monkeypatch: pytest.MonkeyPatch
) -> None:
    design = training.evaluate.make_design(evaluate_arguments())
    chosen = few_labelled(design, np.arange(4, PEOPLE))
    assert np.bincount(design.tasks[0].truth(chosen)).tolist() == [4, 4]
    assert chosen.min() >= 4
    assert not np.array_equal(chosen, few_labelled(design, np.arange(4, PEOPLE), repeat=1))
    labelled = []

    def record_labels(shown: Cohort, rows: np.ndarray, tuning: FinetuneArguments, **rest: Any) -> Any:
        labelled.append((tuning.seed, shown.table["group"].iloc[rows].notna().tolist()))
        return finetune(shown, rows, tuning, **rest)

    monkeypatch.setattr(training.fold, "finetune", record_labels)
    training.evaluate.evaluate(evaluate_arguments(ensemble=2))
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
    metrics = training.evaluate.evaluate(arguments)
    assert metrics["protocol"]["labels"] == ["B", "A"]
    assert metrics["models"]["LCM"]["roc_auc"]["mean"] > 0.8


def test_evaluate_regression_with_missing_values(
    use_table: Callable[..., Cohort], cohort: Cohort, evaluate_arguments: Callable[..., EvaluateArguments]
) -> None:
    use_table(score=cohort.table["score"].where(~cohort.table.index.isin([0, 5])))
    arguments = evaluate_arguments(
        finetuning={"task": "score", "kind": "continuous", "epochs": 20, "learning_rate": 5e-3}
    )
    metrics = training.evaluate.evaluate(arguments)
    assert set(metrics["models"]) == {"LCM", "linear", "mean"}
    assert metrics["n_scans"] == PEOPLE - 2
    assert metrics["models"]["LCM"]["mae"]["mean"] < metrics["models"]["mean"]["mae"]["mean"]


def test_evaluate_resume_keeps_finished_folds(
    evaluate_arguments: Callable[..., EvaluateArguments], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, run_fold, started = evaluate_arguments(), training.evaluate.run_fold, []

    def count(design: Design, rows: Rows, folder: Path, fold: int, repeat: int) -> dict:
        started.append(fold)
        if started == [0, 1]:
            raise KeyboardInterrupt
        return run_fold(design, rows, folder, fold, repeat)

    monkeypatch.setattr(training.evaluate, "run_fold", count)
    with pytest.raises(KeyboardInterrupt):
        training.evaluate.evaluate(arguments)
    assert not (tmp_path / "folds" / "metrics.json").exists()
    with pytest.raises(FileExistsError, match="already holds results"):
        training.evaluate.evaluate(arguments)
    metrics = training.evaluate.evaluate(replace(arguments, resume=True))
    assert started == [0, 1, 1]
    assert len(metrics["models"]["LCM"]["accuracy"]["per_fold"]) == 2
    changed = evaluate_arguments(finetuning={"epochs": 3}, resume=True)
    with pytest.raises(ValueError, match=r"made with other settings of fine-tuning .*settings\.json"):
        training.evaluate.evaluate(changed)


def test_evaluate_refuses_a_checkpoint_that_saw_test_subjects(
    cohort: Cohort,
    pretrained: Path,
    evaluate_arguments: Callable[..., EvaluateArguments],
    tmp_path: Path,
) -> None:
    settings = {"checkpoint": str(pretrained)}
    with pytest.raises(ValueError, match=r"was trained on 24 of the test subjects, 0001 among them"):
        training.evaluate.evaluate(evaluate_arguments(finetuning=settings, pretrain=None))
    # Fine-tuned once more on others: still made of a model that has seen everybody.
    tuning = FinetuneArguments(**{**SHORT, "epochs": 1, "checkpoint": str(pretrained), "task": "sex"})
    rows = np.arange(4)
    model, processor, history = finetune(cohort, rows, tuning)
    save_checkpoint(tmp_path / "again", model, processor, tuning, record_of(cohort, rows, history, tuning.checkpoint))
    other = evaluate_arguments(
        finetuning={"checkpoint": str(tmp_path / "again")}, pretrain=None, output=str(tmp_path / "other")
    )
    with pytest.raises(ValueError, match="was trained on 24 of the test subjects"):
        training.evaluate.evaluate(other)


def test_evaluate_with_a_checkpoint_of_other_people(
    cohort: Cohort,
    pretrained: Path,
    evaluate_arguments: Callable[..., EvaluateArguments],
    use_table: Callable[..., Cohort],
) -> None:
    use_table(subject_id="new-" + cohort.table["subject_id"])
    metrics = training.evaluate.evaluate(evaluate_arguments(finetuning={"checkpoint": str(pretrained)}, pretrain=None))
    assert metrics["protocol"]["pretraining"] == str(pretrained)
    with pytest.raises(ValueError, match="No checkpoint was given"):
        training.evaluate.evaluate(evaluate_arguments(pretrain=None, output="unused"))


def test_evaluate_with_two_precisions(evaluate_arguments: Callable[..., EvaluateArguments]) -> None:
    metrics = training.evaluate.evaluate(
        evaluate_arguments(pretraining={"mixed_precision": "bf16", "epochs": 1}, finetuning={"epochs": 1})
    )
    assert np.isfinite(metrics["models"]["LCM"]["roc_auc"]["mean"])


def test_baselines_and_the_optimistic_protocol_beside_the_honest_one(
    evaluate_arguments: Callable[..., EvaluateArguments], tmp_path: Path
) -> None:
    finetuning = {"labels_per_class": None, "lora_rank": 2, "pseudo_labels": "model", "epochs": 3}
    every = ["majority", "linear", "svm", "scratch"]  # the perceptron takes longer, and has tests of its own
    metrics = training.evaluate.evaluate(
        evaluate_arguments(finetuning, baselines=every, optimistic=True, resamples=50, title="All | of <them>")
    )
    models = metrics["models"]
    assert list(models) == ["LCM", SCRATCH, "linear", "linear SVM", "majority", OPTIMISTIC]
    for name in ("linear", "linear SVM"):
        assert models[name]["roc_auc"]["mean"] > 0.8
    best, honest = models[OPTIMISTIC]["accuracy"]["per_fold"], models["LCM"]["accuracy"]["per_fold"]
    assert all(optimistic >= last for optimistic, last in zip(best, honest, strict=True))
    # A model from random weights has no adapter and has learnt from nothing but the fold's labels.
    result = json.loads((tmp_path / "folds" / "fold_0" / "result.json").read_text())
    assert set(result["histories"]) == {"pretraining", "fine-tuning", f"fine-tuning, {SCRATCH}"}
    auc = models["linear"]["roc_auc"]
    assert auc["interval"][0] <= auc["pooled"] <= auc["interval"][1]
    assert auc["p_value"] < 0.1
    assert metrics["chance"] == {"accuracy": 0.5, "balanced_accuracy": 0.5, "roc_auc": 0.5}
    assert list(metrics["groups"]["site"]) == ["x", "y", "(mean, weighted by people)"]
    assert metrics["groups"]["sex"]["F"]["n_subjects"] == PEOPLE // 2
    # Files for people.
    text = (tmp_path / "folds" / "results.md").read_text()
    assert text.startswith("# All | of <them>\n")
    assert f"| {OPTIMISTIC} |" in text
    assert "**ROC AUC by site**" in text
    page = (tmp_path / "folds" / "report.html").read_text()
    assert "All | of &lt;them&gt;" in page
    for caption in (
        "ROC over folds",
        "Confusion matrix",
        "Calibration",
        "in every fold",
        "Learning curves, fine-tuning",
    ):
        assert caption in page


def test_watching_the_test_fold_changes_nothing_of_the_honest_score(
    pretraining_only: Callable[..., EvaluateArguments], tmp_path: Path
) -> None:
    settings = {"tasks": ["group", "age"], "baselines": ["majority"]}
    honest, watched = (
        by_task(
            training.evaluate.evaluate(
                pretraining_only({"epochs": 3}, optimistic=watch, output=str(tmp_path / str(watch)), **settings)
            )
        )
        for watch in (False, True)
    )
    for task, metric in (("group", "brier"), ("age", "mae")):
        assert honest[task]["models"]["LCM"] == watched[task]["models"]["LCM"]
        assert OPTIMISTIC not in honest[task]["models"]
        assert len(watched[task]["models"][OPTIMISTIC][metric]["per_fold"]) == 2
    best = watched["age"]["models"]
    assert best[OPTIMISTIC]["mae"]["mean"] <= best["LCM"]["mae"]["mean"]
    assert "no estimate for new people" in watched["age"]["protocol"]["optimistic"]


def test_external_data_are_predicted_by_models_of_the_whole_cohort(
    evaluate_arguments: Callable[..., EvaluateArguments],
    use_table: Callable[..., Cohort],
    other_cohort: Path,
    tmp_path: Path,
) -> None:
    use_table(same_person_in_other=[None, None, "p0", None, None, None, "p2", *[None] * (PEOPLE - 7)])
    metrics = training.evaluate.evaluate(
        evaluate_arguments(
            {"epochs": 15, "learning_rate": 5e-3, "labels_per_class": None}, external=[str(other_cohort)]
        )
    )
    found = metrics["external"]["other"]
    assert (found["n_subjects"], found["protocol"]["folds"]) == (PEOPLE, 1)
    assert set(found["models"]) == {"LCM", "linear", "majority"}
    assert found["models"]["linear"]["roc_auc"]["per_fold"][0] > 0.8
    record = read_record(tmp_path / "folds" / "external_other_0" / "checkpoint")
    assert not {"0003", "0007"} & set(record["training_subjects"])
    assert len(record["training_subjects"]) == PEOPLE - 2
    table = pd.read_csv(tmp_path / "folds" / "external_other_predictions.tsv", sep="\t")
    assert len(table) == PEOPLE
    assert "External test on other" in (tmp_path / "folds" / "report.html").read_text()


def test_external_data_without_the_task(
    evaluate_arguments: Callable[..., EvaluateArguments], other_cohort: Path
) -> None:
    arguments = evaluate_arguments({"task": "score", "kind": "continuous", "epochs": 1}, external=[str(other_cohort)])
    with pytest.raises(ValueError, match="has no value of score that the tested cohort knows"):
        training.evaluate.evaluate(arguments)


def test_shuffled_labels_score_at_chance(
    evaluate_arguments: Callable[..., EvaluateArguments], use_table: Callable[..., Cohort], cohort: Cohort
) -> None:
    """No path from test labels to training: with labels that mean nothing, no model is better than chance."""
    rng = np.random.default_rng(0)
    use_table(noise=rng.permutation(["p", "q"] * (PEOPLE // 2)), group=rng.permutation(cohort.table["group"]))
    metrics = training.evaluate.evaluate(
        evaluate_arguments(
            {"task": "noise", "epochs": 8, "learning_rate": 5e-3, "labels_per_class": None}, repeats=3, resamples=100
        )
    )
    for name in ("LCM", "linear"):
        auc = metrics["models"][name]["roc_auc"]
        assert auc["p_value"] > 0.05, name
        assert auc["interval"][0] < 0.55 and auc["pooled"] < 0.7, name


def test_seen_subjects_may_be_allowed_and_are_reported(
    pretrained: Path, evaluate_arguments: Callable[..., EvaluateArguments], tmp_path: Path
) -> None:
    metrics = training.evaluate.evaluate(
        evaluate_arguments({"checkpoint": str(pretrained)}, pretrain=None, allow_seen_subjects=True)
    )
    assert "The column 'score' alone tells 'group'" in metrics["notes"][0]
    assert metrics["notes"][1:] == [
        "The checkpoint was trained on 24 of the test subjects: these scores are optimistic."
    ]
    assert metrics["notes"][1] in (tmp_path / "folds" / "results.md").read_text()


# --- pretrained variables ---


def test_pretrained_variables_are_scored_beside_baselines(
    pretraining_only: Callable[..., EvaluateArguments], tmp_path: Path, cohort: Cohort
) -> None:
    metrics = training.evaluate.evaluate(
        pretraining_only({"epochs": 25, "learning_rate": 5e-3, "continuous": ["age", "score"]})
    )
    tasks = by_task(metrics)
    assert list(tasks) == ["sex", "group", "age", "score"]
    assert set(tasks["sex"]["models"]) == {"LCM", "linear", "majority"}
    assert set(tasks["score"]["models"]) == {"LCM", "linear", "mean"}
    assert tasks["group"]["models"]["LCM"]["roc_auc"]["mean"] > 0.8
    assert tasks["score"]["models"]["LCM"]["mae"]["mean"] < tasks["score"]["models"]["mean"]["mae"]["mean"]
    assert tasks["group"]["protocol"]["split"] == "by subject, balanced by group"
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
    assert age.metric_value == tasks["age"]["models"]["LCM"]["mae"]["mean"]


def test_tasks_restrict_what_is_scored_and_no_checkpoint_stays(
    pretraining_only: Callable[..., EvaluateArguments], tmp_path: Path
) -> None:
    metrics = training.evaluate.evaluate(pretraining_only(tasks=["age"], keep_checkpoints=False))
    assert list(by_task(metrics)) == ["age"]
    assert sorted(path.name for path in (tmp_path / "folds" / "fold_0").iterdir()) == ["result.json"]
    with pytest.raises(ValueError, match="The tasks site are not pretrained; those are sex, group, age"):
        training.evaluate.evaluate(pretraining_only(tasks=["site"], output=str(tmp_path / "b")))


def test_labels_are_matched_by_name() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2]]))
    variable = BEIVariable("state", "categorical", ["rest", "N", "pain"])
    task = Task("state", ("pain", "rest", "unseen"), np.array([0.0]))
    np.testing.assert_allclose(as_predictions(logits, variable, task), [[2 / 7, 5 / 7, 0]], rtol=1e-6)
    age = BEIVariable("age", "continuous", mean=40, std=10)
    assert as_predictions(torch.tensor([[0.5]]), age, Task("age", (), np.array([1.0]))).tolist() == [45]


# --- folds ---


def test_repeats_and_ensembles(pretraining_only: Callable[..., EvaluateArguments], tmp_path: Path) -> None:
    metrics = training.evaluate.evaluate(pretraining_only(tasks=["group"], repeats=2, ensemble=2))
    result = by_task(metrics)["group"]
    assert len(result["models"]["LCM"]["accuracy"]["per_fold"]) == 4
    assert len(set(result["protocol"]["split_checksum"])) == 2
    splits = [Folds.load(tmp_path / "folds" / f"splits_{repeat}.json") for repeat in range(2)]
    assert [each.seed for each in splits] == [0, 1]
    # The ensemble's probabilities are the mean of its members', and a member's own scores stay visible.
    assert [len(members) for members in result["members"]] == [2] * 4
    alone = [np.mean([member["roc_auc"] for member in members]) for members in result["members"]]
    np.testing.assert_allclose(result["models"]["LCM, one seed"]["roc_auc"]["per_fold"], alone)
    seeds = [
        json.loads((tmp_path / "folds" / place / "pretrained" / "training_record.json").read_text())["arguments"][
            "seed"
        ]
        for place in ("repeat_0_fold_0/member_0", "repeat_0_fold_0/member_1", "repeat_1_fold_1/member_1")
    ]
    assert seeds == [0, 1, 3]
    table = pd.read_csv(tmp_path / "folds" / "predictions_group.tsv", sep="\t")
    assert table.groupby("repeat").size().tolist() == [PEOPLE, PEOPLE]
    part = table[(table["repeat"] == 1) & (table["fold"] == 1)]
    score = classification_metrics(part["group"] == "B", part[["LCM: A", "LCM: B"]], ["A", "B"])
    np.testing.assert_allclose(result["models"]["LCM"]["brier"]["per_fold"][3], score["brier"], atol=1e-4)


def test_leave_site_out(pretraining_only: Callable[..., EvaluateArguments], tmp_path: Path, cohort: Cohort) -> None:
    metrics = training.evaluate.evaluate(pretraining_only(split="leave_site_out", tasks=["group"]))
    assert by_task(metrics)["group"]["protocol"]["split"] == "one site left out at a time"
    table = pd.read_csv(tmp_path / "folds" / "predictions_group.tsv", sep="\t", dtype={"subject_id": str})
    sites = cohort.table.set_index("subject_id")["site"]
    assert [set(sites.loc[part["subject_id"]]) for _, part in table.groupby("fold")] == [{"x"}, {"y"}]


def test_a_person_with_two_ids_stays_on_one_side(
    use_table: Callable[..., Cohort], pretraining_only: Callable[..., EvaluateArguments]
) -> None:
    family = [None if number % 4 == 3 else f"family {number // 2 % 8}" for number in range(PEOPLE)]
    use_table(family=family)
    design = training.evaluate.make_design(pretraining_only(same_person="family"))
    recorded = design.cohort.table["recorded_subject_id"]
    assert recorded.nunique() == PEOPLE
    for seed in range(5):
        folds = make_folds(design.table, 2, seed, "group")
        for fold in range(2):
            _, train, test = design.fold_rows(folds, fold)
            known = [{family[row] for row in rows} - {None} for rows in (train, test)]
            assert not known[0] & known[1]
            assert len(train) + len(test) == PEOPLE
    with pytest.raises(ValueError, match="same_person names the column 'twin', which is not in the data"):
        training.evaluate.make_design(pretraining_only(same_person="twin"))
    use_table(all="one")
    with pytest.raises(ValueError, match="all scans are one person"):
        training.evaluate.make_design(pretraining_only(same_person="all"))


@pytest.fixture(scope="session")
def other_cohort(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second cohort, "other": the same scans under other ids."""
    folder = tmp_path_factory.mktemp("second")
    table = study.participants.drop(columns="score").assign(
        participant_id=[f"p{number}" for number in range(PEOPLE)],
        disease=["yes", "no"] * (PEOPLE // 2),
    )
    table.to_csv(folder / "people.tsv", sep="\t", index=False, na_rep="n/a")
    np.savez(
        folder / "fc.npz",
        participant_id=table["participant_id"].to_numpy(dtype=str),
        fc_triu=study.connectivity[:, *np.triu_indices(study.connectivity.shape[1], k=1)],
    )
    return prepare(
        PrepareArguments(
            output=str(folder / "other"),
            participants=str(folder / "people.tsv"),
            connectivity=str(folder / "fc.npz"),
            atlas=ATLAS,
        )
    )


def test_other_cohorts_join_the_pretraining_without_tested_people(
    pretraining_only: Callable[..., EvaluateArguments],
    use_table: Callable[..., Cohort],
    other_cohort: Path,
    tmp_path: Path,
) -> None:
    use_table(same_person_in_other=[None, None, "p0", None, None, None, "p2", *[None] * (PEOPLE - 7)])
    arguments = pretraining_only({"categorical": ["sex", "disease"]}, train_data=[str(other_cohort)])
    design = training.evaluate.make_design(arguments)
    assert [task.name for task in design.tasks] == ["sex", "age"]  # nobody who is tested has a disease record
    assert (design.num_tested, len(design.cohort.table)) == (PEOPLE, 2 * PEOPLE)
    ids = design.cohort.table["subject_id"].tolist()
    assert (ids[PEOPLE], ids[PEOPLE + 1], ids[PEOPLE + 2]) == ("0003", "other/p1", "0007")
    metrics = training.evaluate.evaluate(arguments)
    assert by_task(metrics)["sex"]["n_subjects"] == PEOPLE
    assert metrics["protocol"]["other_cohorts"].startswith("24 scans of")
    folds = Folds.load(tmp_path / "folds" / "splits.json")
    for fold, tested in enumerate(folds.test_subjects):
        record = read_record(tmp_path / "folds" / f"fold_{fold}" / "pretrained")
        assert not set(record["training_subjects"]) & set(tested)
        shared = len({"0003", "0007"} & set(tested))
        assert record["num_training_scans"] == 2 * PEOPLE - len(tested) - shared
        assert {"other/p1", "other/p3"} <= set(record["training_subjects"])


def test_the_same_cohort_as_training_data_adds_nobody_who_is_tested(cohort: Cohort, dataset: Path) -> None:
    pooled, (rows,) = pool(cohort, str(dataset), [str(dataset)])
    assert rows.tolist() == list(range(PEOPLE, 2 * PEOPLE))
    assert pooled.table["subject_id"].tolist() == 2 * cohort.table["subject_id"].tolist()
    np.testing.assert_array_equal(pooled.triangles[:PEOPLE], pooled.triangles[PEOPLE:])


def test_cohorts_that_do_not_fit(
    pretraining_only: Callable[..., EvaluateArguments], study: Study, tmp_path: Path, dataset: Path, cohort: Cohort
) -> None:
    other = prepare(
        PrepareArguments(
            output=str(tmp_path / "renamed"),
            participants=str(study.folder / "participants.tsv"),
            connectivity=str(study.folder / "fc.npz"),
            atlas="another-10",
        )
    )
    with pytest.raises(ValueError, match=r"cannot join the training .* atlas is 'another-10' there and 'made-up-10'"):
        training.evaluate.make_design(pretraining_only(train_data=[str(other)]))
    cohort.table["site"] = np.arange(PEOPLE)
    with pytest.raises(ValueError, match=r"'site' holds numbers in one of .*, text in the other"):
        pool(cohort, "here", [str(dataset)])


# --- mistakes ---


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"split": "random"}, "split must be one of kfold, leave_site_out, got 'random'"),
        ({"repeats": 2, "split": "leave_site_out"}, "repeats draws new folds each time, which split 'leave_site_out'"),
        ({"repeats": 2, "splits": "x.json"}, r"which splits \(a split file\) cannot: use ensemble"),
        ({"finetune": "x.yaml", "tasks": ["sex"]}, "with finetune its task is scored"),
        ({"finetune": "x.yaml", "train_data": ["b"]}, "train_data joins the pretraining of every fold"),
        ({"baselines": ["svn"]}, "Unknown baselines svn; there are majority, linear, linear_log, svm"),
        ({"pretrain": "x.yaml", "baselines": ["scratch"]}, "it needs finetune"),
        ({"resamples": -1}, "resamples must be at least 0"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateArguments(**settings)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("group", ["A"] * PEOPLE, "'group' is A for everybody in the tested cohort: nothing to predict"),
        ("group", [None] * PEOPLE, "'group' is recorded for nobody in the tested cohort"),
        ("sex", ["M"] * (PEOPLE - 1) + ["F"], "The class 'F' of 'sex' has one subject"),
    ],
)
def test_cohorts_that_cannot_be_evaluated(
    column: str,
    values: list,
    message: str,
    pretraining_only: Callable[..., EvaluateArguments],
    use_table: Callable[..., Cohort],
) -> None:
    use_table(**{column: values})
    with pytest.raises(ValueError, match=message):
        training.evaluate.evaluate(pretraining_only(tasks=[column], stratify=None if column == "group" else "group"))


def test_folds_that_cannot_be_evaluated(
    pretraining_only: Callable[..., EvaluateArguments], use_table: Callable[..., Cohort], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="must lie between 2 and 24, the number of subjects; got 25"):
        training.evaluate.evaluate(pretraining_only(n_folds=25, output=str(tmp_path / "a")))
    use_table(site=["x"] * 13 + ["y"] * 11, sex=["M", "F"] * 6 + ["M"] + ["F"] * 11)
    with pytest.raises(ValueError, match="No training subject of fold 0 has M of 'sex'"):
        training.evaluate.evaluate(pretraining_only(split="leave_site_out", output=str(tmp_path / "b")))
    use_table(age=[30.0, 40.0] + [None] * (PEOPLE - 2))
    folds = Folds((("0020", "0021"),), 0)
    folds.save(tmp_path / "splits.json")
    with pytest.raises(ValueError, match="No test subject has a value of 'age'"):
        training.evaluate.evaluate(
            pretraining_only(tasks=["age"], splits=str(tmp_path / "splits.json"), output=str(tmp_path / "c"))
        )


def test_groups_leave_out_people_of_whom_nothing_is_recorded(
    pretraining_only: Callable[..., EvaluateArguments],
    use_table: Callable[..., Cohort],
    cohort: Cohort,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sex = cohort.table["sex"].astype(object).tolist()
    use_table(sex=[None, *sex[1:]])
    metrics = training.evaluate.evaluate(pretraining_only({"categorical": ["group"]}, tasks=["group"]))
    counts = {value: group["n_subjects"] for value, group in metrics["tasks"]["group"]["groups"]["sex"].items()}
    assert counts.pop("(mean, weighted by people)") == sum(counts.values()) == PEOPLE - 1
    # Every fold shows its first numbers as soon as they are there.
    assert capsys.readouterr().out.count("  group, ROC AUC: LCM ") == 2
