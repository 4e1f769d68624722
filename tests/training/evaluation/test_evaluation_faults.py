"""Whole evaluations in which a worker is killed, memory is short, or nothing can be kept beside the data."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import training.evaluation.pool
from tests.conftest import REPOSITORY
from training.evaluation.arguments import EvaluateArguments
from training.evaluation.cross_validation import evaluate


@pytest.fixture
def arguments(
    evaluate_arguments: Callable[..., EvaluateArguments], write_config: Callable[..., str], tmp_path: Path
) -> EvaluateArguments:
    """Three folds of one task by the ridge head."""
    recipe = write_config("ridge_for_faults", head="ridge", task="group")
    made = evaluate_arguments(output=str(tmp_path / "expected"), baselines=["linear_log"], n_folds=3)
    return replace(made, finetune=[recipe], pretrain=None, keep_checkpoints=False)


def tasks_of(output: str | Path) -> dict:
    return {
        path.parent.name: json.loads(path.read_text())["tasks"] for path in Path(output).glob("fold_*/result.json")
    }


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kills a process by its command line")
def test_a_fold_whose_worker_is_killed_is_named_and_repeated(arguments: EvaluateArguments, tmp_path: Path) -> None:
    evaluate(arguments)
    names = ("data", "n_folds", "resamples", "keep_checkpoints")
    words = [f"--{name}={getattr(arguments, name)}" for name in names] + ["--output", str(tmp_path / "killed")]
    words += ["--finetune", *arguments.finetune, "--baselines", "linear_log", "--workers", "2"]
    start = [sys.executable, "-u", "-m", "training.evaluate", *words]
    with subprocess.Popen(start, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None and running.stderr is not None
        for line in running.stdout:
            if "folds in 2 processes" in line:
                break
        workers: list[psutil.Process] = []
        while not workers:
            time.sleep(0.01)
            found = psutil.Process(running.pid).children()
            workers = [each for each in found if "popen_loky_posix" in " ".join(each.cmdline())]
        os.kill(workers[0].pid, signal.SIGKILL)
        _, errors = running.communicate(timeout=500)
    assert running.returncode == 0, errors
    assert "A worker process was killed, usually because memory ran out; repeated one at a time: fold " in errors
    assert tasks_of(tmp_path / "killed") == tasks_of(arguments.output)


def test_too_many_workers_are_lowered_by_a_sentence(
    arguments: EvaluateArguments, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(training.evaluation.pool, "free_memory", lambda: 1_000_000_000)
    evaluate(replace(arguments, workers=64, output=str(tmp_path / "many")))
    said = capsys.readouterr().out
    assert "1 of 6 workers: each needs about 0.7 GB, and 1.0 GB of memory are free." in said
    assert said.count("begins") == 3  # one after the other, here


def test_a_data_set_beside_which_nothing_can_be_kept(
    arguments: EvaluateArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(arguments)
    data = Path(shutil.copytree(arguments.data, tmp_path / "data"))
    shutil.rmtree(data / "cache", ignore_errors=True)
    (data / "cache").write_text("a file where the folder should be")
    evaluate(replace(arguments, data=str(data), output=str(tmp_path / "other")))
    assert "Log FC is not kept for the next evaluation" in capsys.readouterr().err
    assert tasks_of(tmp_path / "other") == tasks_of(arguments.output)
