"""The scripts as a user runs them: settings from YAML and flags, messages, and every step once from end to end."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from transformers.utils import logging

from modeling_lcm import LCMForSequenceClassification
from tests.conftest import REPOSITORY
from tests.training.conftest import ATLAS, PEOPLE, SHORT, TINY, Study
from training import evaluate, finetune, predict, prepare, pretrain
from training.command_line.cli import hide_bars_of_files, parse_arguments
from training.data.cohort import Cohort, load_cohort
from training.data.folds import make_folds
from training.evaluation.arguments import EvaluateArguments
from training.explanation.attention import region_attention
from training.preparation.arguments import PrepareArguments
from training.preparation.recipes import load_recipe
from training.trainer.arguments import FinetuneArguments, PretrainArguments
from training.trainer.checkpoints import read_record
from training.trainer.limits import LIMIT_COLUMNS
from training.trainer.prediction import predict_table


SCRIPTS = ("prepare", "pretrain", "finetune", "predict", "evaluate")


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
        (
            {"epoch": 3, "rate": 1},
            r"p\.yaml: unknown settings epoch, rate. Did you mean epochs\? --help lists all",
        ),
        ({"task": ["a", "b"]}, "unknown settings task"),
        ({"size": ["nano", "147m"]}, "size is .*: one value is needed"),
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
        if path.parent.name in ("accelerate", "studies"):  # for its launcher; see test_processes and test_studies
            continue
        if path.parent.name == "open":  # recipes of lcm-open's cohorts, and its own two files
            if path.stem not in ("weights", "few_labels"):
                assert load_recipe(str(path)).variables
            continue
        kind = kinds[path.stem.split("_")[0]]
        assert isinstance(parse_arguments(kind, ["--config", str(path)]), kind)


@pytest.mark.parametrize(
    ("main", "flags", "message"),
    [
        (prepare.main, [], "error: No output was given: add --output runs/dataset. See --help."),
        (pretrain.main, ["--data", "DATA"], "error: No output was given: add --output runs/trained."),
        (pretrain.main, ["--output", "OUT"], "error: No data was given: add --data runs/dataset."),
        (finetune.main, ["--output", "OUT"], "error: No data was given: add --data runs/dataset."),
        (
            finetune.main,
            ["--output", "OUT", "--data", "DATA", "--task", "group"],
            "error: No checkpoint was given: add --checkpoint",
        ),
        (predict.main, ["--output", "OUT", "--data", "DATA"], "error: No checkpoint was given: add --checkpoint"),
        (pretrain.main, ["--output", "OUT", "--data", "nowhere"], "error: nowhere is not a data set made by training"),
        (
            evaluate.main,
            ["--output", "OUT", "--data", "DATA"],
            "error: There is nothing to train: add --finetune",
        ),
        (pretrain.main, ["--output", "OUT", "--data", "DATA", "--fold", "1"], "error: Give both splits .* and fold"),
        (predict.main, ["--fold", "1"], "error: Give both splits .* and fold"),
        (pretrain.main, ["--output", "OUT", "--data", "DATA", "--adaptive", "x"], "error: --adaptive must be one of"),
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


def test_bars_of_single_files_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' own bars would stand between the lines of a script."""
    monkeypatch.setattr(logging, "_tqdm_active", True)
    assert logging.is_progress_bar_enabled()
    hide_bars_of_files()
    assert not logging.is_progress_bar_enabled()


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
    assert list(table.columns) == ["subject_id", "session", "group", "group=A", "group=B", *LIMIT_COLUMNS]
    assert table["subject_id"].tolist() == test_subjects
    np.testing.assert_allclose(table["group=A"] + table["group=B"], 1, atol=2e-4)
    assert (table["group"] == np.where(table["group=A"] > table["group=B"], "A", "B")).all()
    predict.main(["--checkpoint", str(pretrained), "--output", output["bei.tsv"], "--data", output["data"]])
    table = pd.read_csv(output["bei.tsv"], sep="\t")
    assert list(table.columns) == ["subject_id", "session", "sex", "sex=F", "sex=M", "age", *LIMIT_COLUMNS]
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
    table, variables = predict_table(str(pretrained), cohort.select(np.array([3, 1])), batch_size=1)
    again, _ = predict_table(str(pretrained), cohort)
    assert [variable.name for variable in variables] == ["sex", "age"]
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
    maps = region_attention(model, cohort.select(np.arange(5)), batch_size=2)
    assert maps.shape == (5, 10)  # two labels of sex, age, two new tokens; ten regions
    np.testing.assert_allclose(maps.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(maps, region_attention(model, cohort.select(np.arange(5))), atol=1e-6)
    with pytest.raises(ValueError, match="attn_implementation"):
        region_attention(LCMForSequenceClassification.from_pretrained(pretrained), cohort.select(np.arange(5)))
