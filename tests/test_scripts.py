"""The scripts as a user runs them: settings from YAML and flags, messages, and every step once from end to end."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

import training.evaluate
import training.stages
from modeling_lcm import LCMForSequenceClassification
from tests.conftest import REPOSITORY
from tests.training_fixtures import ATLAS, PEOPLE, SHORT, TINY, Study
from training import evaluate, finetune, predict, prepare, pretrain
from training.arguments import FinetuneArguments, PretrainArguments, parse_arguments
from training.checkpoints import load_processor, read_record, save_checkpoint
from training.data import Cohort, load_cohort
from training.evaluate import EvaluateArguments, chosen_labels
from training.explain import region_attention
from training.prepare import PrepareArguments
from training.runs import record_of
from training.splits import Folds, make_folds


pytest_plugins = ["tests.training_fixtures"]

SCRIPTS = ("prepare", "pretrain", "finetune", "predict", "evaluate")


@pytest.fixture
def write_config(tmp_path: Path) -> Callable[..., str]:
    """Factory of YAML files; returns the path."""

    def write(name: str, **settings: Any) -> str:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings))
        return str(path)

    return write


# --- settings ---


def test_flags_win_over_yaml(write_config: Callable[..., str]) -> None:
    config = write_config("p", epochs=7, learning_rate="1e-4", categorical=["sex", "site"], continuous=[], resume=True)
    parsed = parse_arguments(PretrainArguments, ["--config", config, "--epochs", "3", "--no_progress"])
    assert (parsed.epochs, parsed.learning_rate, parsed.progress, parsed.resume) == (3, 1e-4, False, True)
    assert (parsed.categorical, parsed.continuous) == (["sex", "site"], [])
    assert parse_arguments(PretrainArguments, [f"--config={config}", "--continuous", "age"]).continuous == ["age"]
    assert parse_arguments(PretrainArguments, []).continuous == ["age"]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"epoch": 3, "rate": 1}, r"p\.yaml: unknown settings epoch, rate. Known: adaptive, batch_size"),
        ({"task": ["a", "b"]}, "unknown settings task"),
        ({"size": ["nano", "147m"]}, "Unknown settings or too many values: 147m"),
    ],
)
def test_bad_settings_in_yaml(write_config: Callable[..., str], settings: dict, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_arguments(PretrainArguments, ["--config", write_config("p", **settings)])


def test_bad_yaml_and_bad_flags(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for content, problem in (
        ("a: [", "is not valid YAML"),
        ("- a", "must hold a table of settings"),
        ("", "got NoneType"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=problem):
            parse_arguments(FinetuneArguments, ["--config", str(path)])
    with pytest.raises(FileNotFoundError, match=r"no configuration file nowhere\.yaml"):
        parse_arguments(FinetuneArguments, ["--config", "nowhere.yaml"])
    for flags in (["--epoch", "3"], ["--conf", "x.yaml"]):  # no abbreviations: one letter off is a mistake
        with pytest.raises(ValueError, match=f"Unknown settings or too many values: {flags[0]}"):
            parse_arguments(FinetuneArguments, flags)


def test_shipped_configurations_are_valid() -> None:
    kinds = {"prepare": PrepareArguments, "pretrain": PretrainArguments, "finetune": FinetuneArguments}
    kinds["evaluate"] = EvaluateArguments
    found = sorted((REPOSITORY / "training" / "configs").rglob("*.yaml"))
    assert found
    for path in found:
        kind = kinds[path.stem.split("_")[0]]
        assert isinstance(parse_arguments(kind, ["--config", str(path)]), kind)


@pytest.mark.parametrize(
    ("main", "flags", "message"),
    [
        (prepare.main, [], "error: No output was given: add --output PATH."),
        (pretrain.main, [], "error: No output was given: add --output PATH."),
        (pretrain.main, ["--output", "OUT"], "error: No data was given: add --data FOLDER"),
        (finetune.main, ["--output", "OUT"], "error: No data was given: add --data FOLDER"),
        (finetune.main, ["--output", "OUT", "--data", "DATA"], "error: No checkpoint was given: add --checkpoint"),
        (predict.main, ["--output", "OUT", "--data", "DATA"], "error: No checkpoint was given: add --checkpoint"),
        (predict.main, ["--output", "OUT", "--data", "nowhere"], "error: nowhere is not a data set made by training"),
        (evaluate.main, ["--output", "OUT"], "error: No settings of the fine-tuning were given: add --finetune"),
        (pretrain.main, ["--output", "OUT", "--data", "DATA", "--fold", "1"], "error: Give both splits .* and fold"),
        (predict.main, ["--output", "OUT", "--data", "DATA", "--fold", "1"], "error: Give both splits .* and fold"),
        (pretrain.main, ["--output", "OUT", "--data", "DATA", "--adaptive", "x"], "error: adaptive must be one of"),
        (pretrain.main, ["--output", "OUT", "--data", "DATA", "--resume"], "error: There is no checkpoint to resume"),
    ],
)
def test_mistakes_are_one_clear_sentence(
    main: Callable[[list[str]], None],
    flags: list[str],
    message: str,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"OUT": str(tmp_path / "out"), "DATA": str(dataset)}
    with pytest.raises(SystemExit) as caught:
        main([known.get(flag, flag) for flag in flags])
    assert caught.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1
    assert re.match(message, lines[0]), lines[0]


REAL_PROCESS = """
import runpy, sys
for script in sys.argv[2:]:
    sys.argv = [script, "--help"]
    try:
        runpy.run_module("training." + script, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, (script, end.code)
        print("help ends")
sys.argv = ["pretrain", "--output", OUTPUT, "--data", "x"]
runpy.run_module("training.pretrain", run_name="__main__", alter_sys=True)
"""


def test_help_and_messages_in_a_real_process(tmp_path: Path) -> None:
    """All in one process, because most of its time goes into imports."""
    (tmp_path / "results.txt").write_text("precious")
    done = subprocess.run(
        [sys.executable, "-c", REAL_PROCESS.replace("OUTPUT", repr(str(tmp_path))), "-", *SCRIPTS],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    texts = done.stdout.split("help ends")
    assert len(texts) == len(SCRIPTS) + 1
    for text in texts[:-1]:
        assert text.strip().startswith("usage: ")
        assert "--config" in text
        assert "--output" in text
    assert "Traceback" not in done.stderr
    assert f"error: {tmp_path} already holds results, and they are never overwritten." in done.stderr


# --- every step ---


def test_prepare_pretrain_finetune_predict(
    study: Study, write_config: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = {name: str(tmp_path / name) for name in ("data", "pre", "fine", "table.tsv", "bei.tsv")}
    config = write_config(
        "prepare",
        participants=str(study.folder / "participants.tsv"),
        connectivity=str(study.folder / "fc.npz"),
        atlas=ATLAS,
        output="elsewhere",
    )
    prepare.main(["--config", config, "--output", output["data"]])
    cohort = load_cohort(output["data"])
    folds = make_folds(cohort.table, 3, 0, "group")
    folds.save(tmp_path / "splits.json")
    common = {"data": output["data"], "splits": str(tmp_path / "splits.json"), "fold": 1, **SHORT}
    config = write_config("pretrain", **{**common, **TINY, "checkpoint_every": 1})
    pretrain.main(["--config", config, "--output", output["pre"], "--epochs", "1"])
    pretrained = Path(output["pre"], "checkpoint")
    assert len(read_record(pretrained)["history"]) == 1
    config = write_config("finetune", **common, task="group", checkpoint=str(pretrained), pseudo_labels="recorded")
    finetune.main(["--config", config, "--output", output["fine"], "--lora_rank", "2"])
    tuned = Path(output["fine"], "checkpoint")
    assert (tuned / "adapter" / "adapter_config.json").is_file()
    test_subjects = list(folds.test_subjects[1])
    for checkpoint in (pretrained, tuned):
        assert not set(read_record(checkpoint)["training_subjects"]) & set(test_subjects)
        assert len(read_record(checkpoint)["training_subjects"]) == PEOPLE - len(test_subjects)
    with_fold = ["--data", output["data"], "--splits", common["splits"], "--fold", "1"]
    predict.main(["--checkpoint", str(tuned), "--output", output["table.tsv"], *with_fold])
    table = pd.read_csv(output["table.tsv"], sep="\t", dtype={"subject_id": str})
    assert list(table.columns) == ["subject_id", "session", "group", "group=A", "group=B"]
    assert table["subject_id"].tolist() == test_subjects
    np.testing.assert_allclose(table["group=A"] + table["group=B"], 1, atol=2e-4)
    assert (table["group"] == np.where(table["group=A"] > table["group=B"], "A", "B")).all()
    predict.main(["--checkpoint", str(pretrained), "--output", output["bei.tsv"], "--data", output["data"]])
    table = pd.read_csv(output["bei.tsv"], sep="\t")
    assert list(table.columns) == ["subject_id", "session", "sex", "sex=F", "sex=M", "age"]
    assert len(table) == PEOPLE
    assert table["age"].between(0, 120).all()  # in years again
    assert f"{PEOPLE} predictions written to {output['bei.tsv']}" in capsys.readouterr().out
    for main, name in ((prepare.main, "prepare"), (pretrain.main, "pretrain"), (finetune.main, "finetune")):
        where = {"prepare": "data", "pretrain": "pre", "finetune": "fine"}[name]
        with pytest.raises(SystemExit, match="2"):
            main(["--config", str(tmp_path / f"{name}.yaml"), "--output", output[where]])
    assert capsys.readouterr().err.count("already holds results") == 3
    with pytest.raises(SystemExit, match="2"):
        predict.main(["--checkpoint", str(tuned), "--output", output["table.tsv"], *with_fold])
    pretrain.main(
        ["--config", str(tmp_path / "pretrain.yaml"), "--output", output["pre"], "--epochs", "1", "--resume"]
    )


def test_predicted_probabilities_are_the_models(cohort: Cohort, pretrained: Path) -> None:
    table = predict.predict_table(str(pretrained), cohort, np.array([3, 1]), batch_size=1)
    again = predict.predict_table(str(pretrained), cohort, np.arange(PEOPLE))
    assert table["subject_id"].tolist() == ["0004", "0002"]
    np.testing.assert_allclose(table["sex=F"], again["sex=F"].iloc[[3, 1]], atol=1e-6)


def test_predict_refuses_a_folder_and_another_atlas(
    dataset: Path, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        predict.main(["--checkpoint", str(pretrained), "--data", str(dataset), "--output", str(tmp_path)])
    assert "is a folder; the output is one table" in capsys.readouterr().err


def test_region_attention_rows_sum_to_one(cohort: Cohort, pretrained: Path) -> None:
    model = LCMForSequenceClassification.from_pretrained(pretrained, attn_implementation="eager")
    maps = region_attention(model, cohort, np.arange(5), batch_size=2)
    assert maps.shape == (5, 10)  # two labels of sex, age, two new tokens; ten regions
    np.testing.assert_allclose(maps.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(maps, region_attention(model, cohort, np.arange(5)), atol=1e-6)
    with pytest.raises(ValueError, match="attn_implementation"):
        region_attention(LCMForSequenceClassification.from_pretrained(pretrained), cohort, np.arange(5))


# --- evaluation ---


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
        }
        return EvaluateArguments(**{**settings, **overrides})

    return make


def test_evaluate_end_to_end(
    evaluate_arguments: Callable[..., EvaluateArguments],
    cohort: Cohort,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = evaluate_arguments(finetuning={"epochs": 20, "learning_rate": 5e-3, "pseudo_labels": "recorded"})
    fitted: list[list[str]] = []
    linear = training.evaluate.linear_baseline

    def record_subjects(*args: Any, groups: list[str], **rest: Any) -> np.ndarray:
        fitted.append(groups)
        return linear(*args, groups=groups, **rest)

    monkeypatch.setattr(training.evaluate, "linear_baseline", record_subjects)
    flags = [f"--{name}={value}" for name, value in vars(arguments).items() if value not in (None, False)]
    evaluate.main(flags)
    assert "LCM" in capsys.readouterr().out
    folder = tmp_path / "folds"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["models"]) == {"LCM", "linear", "linear, all labels", "majority"}
    for scores in metrics["models"].values():
        assert {"accuracy", "balanced_accuracy", "f1", "roc_auc"} <= set(scores)
        assert all(set(score) == {"mean", "std", "per_fold"} for score in scores.values())
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
    tuning = parse_arguments(FinetuneArguments, ["--config", arguments.finetune])
    for fold in range(2):
        path = folder / f"fold_{fold}"
        for stage in ("pretrained", "checkpoint"):
            assert not set(read_record(path / stage)["training_subjects"]) & set(folds.test_subjects[fold])
        train = folds.rows(cohort.table["subject_id"], fold)[0]
        tokenizer = load_processor(str(path / "checkpoint")).tokenizer
        few = cohort.table["subject_id"].iloc[chosen_labels(cohort, tokenizer, train, tuning)].tolist()
        assert fitted[2 * fold] == few
        assert len(few) == 8
        assert fitted[2 * fold + 1] == cohort.table["subject_id"].iloc[train].tolist()


@pytest.mark.parametrize("labels", [["A", "B"], ["B", "A"]])
def test_few_labels_of_the_baseline_are_those_of_finetuning(
    cohort: Cohort, pretrained: Path, monkeypatch: pytest.MonkeyPatch, labels: list[str]
) -> None:
    seen = []
    monkeypatch.setattr(
        training.stages, "Trainer", lambda model, data, *rest: seen.append(data) or type("T", (), {"train": list})
    )
    tuning = FinetuneArguments(checkpoint=str(pretrained), task="group", labels=labels, labels_per_class=3, seed=5)
    rows = np.arange(4, PEOPLE)
    _, processor, _ = training.evaluate.finetune(cohort, rows, tuning)
    chosen = chosen_labels(cohort, processor.tokenizer, rows, tuning)
    assert seen[0].subjects == cohort.table["subject_id"].iloc[chosen].tolist()
    assert chosen_labels(cohort, processor.tokenizer, rows, replace(tuning, labels_per_class=None)) is None


def test_pretrained_task_is_scored_in_the_order_of_the_task(
    evaluate_arguments: Callable[..., EvaluateArguments], tmp_path: Path
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
    cohort: Cohort,
    evaluate_arguments: Callable[..., EvaluateArguments],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cohort.table.loc[[0, 5], "score"] = np.nan
    monkeypatch.setattr(training.evaluate, "load_cohort", lambda folder: cohort)
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

    def count(cohort: Cohort, task: Any, folds: Folds, fold: int, *rest: Any) -> dict:
        started.append(fold)
        if started == [0, 1]:
            raise KeyboardInterrupt
        return run_fold(cohort, task, folds, fold, *rest)

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
    model, processor, history = training.evaluate.finetune(cohort, rows, tuning)
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cohort.table["subject_id"] = "new-" + cohort.table["subject_id"]
    monkeypatch.setattr(training.evaluate, "load_cohort", lambda folder: cohort)
    metrics = training.evaluate.evaluate(evaluate_arguments(finetuning={"checkpoint": str(pretrained)}, pretrain=None))
    assert metrics["protocol"]["pretraining"] == str(pretrained)
    with pytest.raises(ValueError, match="No checkpoint was given"):
        training.evaluate.evaluate(evaluate_arguments(pretrain=None, output="unused"))


def test_evaluate_with_two_precisions(evaluate_arguments: Callable[..., EvaluateArguments]) -> None:
    metrics = training.evaluate.evaluate(
        evaluate_arguments(pretraining={"mixed_precision": "bf16", "epochs": 1}, finetuning={"epochs": 1})
    )
    assert np.isfinite(metrics["models"]["LCM"]["roc_auc"]["mean"])
