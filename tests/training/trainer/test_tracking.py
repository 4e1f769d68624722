"""Experiment trackers: who is chosen, what is refused before training, and what W&B and Trackio are told."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import REPOSITORY
from tests.training.conftest import SHORT, TINY
from training import pretrain
from training.trainer import tracking
from training.trainer.arguments import LoopArguments, PretrainArguments, Tracker
from training.trainer.tracking import PROJECT, chosen_trackers


# What W&B and Trackio have in common; what they are told goes to a file, a line each. Trackio keeps `config` apart.
CLIENT = """
import json, os, sys

def tell(what, content):
    with open(os.environ["TOLD"], "a") as file:
        file.write(json.dumps([__name__, what, content]) + "\\n")

class Config:
    def update(self, values, allow_val_change=False):
        tell("config", values)

class Run:
    name = "fake"
    config = Config()
    def log(self, values, step=None, **options):
        tell("log", {**values, "step": step})
    def finish(self):
        tell("finish", None)

config = Run.config

def init(**options):
    tell("init", options)
    if os.environ.get("REFUSE") == __name__:
        raise RuntimeError("no connection to https://somewhere/?write_token=" + os.environ["WANDB_API_KEY"])
    return Run()

def finish():
    tell("finish", None)
"""
SECRETS = {"WANDB_API_KEY": "0123456789secret", "HF_TOKEN": "hf_secret0123456789"}


@pytest.fixture
def clients(tmp_path: Path) -> Path:
    """A folder with packages called wandb and trackio, as pip would install them."""
    folder = tmp_path / "site"
    for name in ("wandb", "trackio"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(CLIENT)
        (folder / f"{name}-1.0.dist-info").mkdir()
        (folder / f"{name}-1.0.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0"
        )
    return folder


def settings(dataset: Path, output: Path, log_with: str) -> list[str]:
    """A short pretraining's flags."""
    values = {**SHORT, **TINY, "data": dataset, "output": output, "log_with": log_with}
    return [text for name, value in values.items() for text in (f"--{name}", str(value).lower())]


@pytest.fixture
def pretraining(dataset: Path, tmp_path: Path, clients: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run training.pretrain in a process where these packages are installed."""

    def run(log_with: str, **environment: str) -> subprocess.CompletedProcess[str]:
        places = os.pathsep.join([str(clients), str(REPOSITORY)])
        own = {"PYTHONPATH": places, "TOLD": str(tmp_path / "told"), **SECRETS, **environment}
        command = [sys.executable, "-m", "training.pretrain", *settings(dataset, tmp_path / "output", log_with)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | own, check=False)

    return run


def test_all_trackers_are_told_settings_and_losses(pretraining: Callable, tmp_path: Path) -> None:
    done = pretraining("all")
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in (tmp_path / "told").read_text().splitlines()]
    history = json.loads((tmp_path / "output" / "run" / "history.json").read_text())
    for client in ("wandb", "trackio"):
        said = [(what, content) for name, what, content in told if name == client]
        assert [what for what, _ in said] == ["init", "config", "log", "log", "finish"]
        assert (said[0][1]["project"], said[0][1]["name"]) == (PROJECT, "output")
        assert said[1][1]["learning_rate"] == LoopArguments().learning_rate
        assert str(tmp_path) not in json.dumps(said[1:])
        assert [content["train_loss"] for what, content in said if what == "log"] == [
            record["train_loss"] for record in history
        ]
    events = EventAccumulator(str(tmp_path / "output" / "run" / "logs" / PROJECT)).Reload()
    assert [event.step for event in events.Scalars("train_loss")] == [0, 1]
    written = [path.read_bytes() for path in (tmp_path / "output").rglob("*") if path.is_file()]
    for secret in SECRETS.values():
        assert not any(secret.encode() in content for content in written)
        assert secret not in done.stdout + done.stderr


def test_a_tracker_that_does_not_start_is_told_without_its_words(pretraining: Callable, tmp_path: Path) -> None:
    done = pretraining("wandb", REFUSE="wandb")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "error: The tracker of log_with=wandb does not start (RuntimeError)"
    )
    assert SECRETS["WANDB_API_KEY"] not in done.stdout + done.stderr
    assert not (tmp_path / "output" / "checkpoint").exists()


def test_a_tracker_that_is_not_installed_is_refused_before_the_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fc_definition.json").write_text("not read")
    monkeypatch.setitem(tracking.INSTALLED, "wandb", lambda: False)
    with pytest.raises(SystemExit) as stop:
        pretrain.main(["--data", str(tmp_path), "--output", str(tmp_path / "o"), "--log_with", "wandb"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        "error: log_with is wandb, but wandb is not installed: run `pip install wandb`, or set log_with to none.\n"
    )
    assert not (tmp_path / "o").exists()


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "INSTALLED", {"tensorboard": lambda: True, "wandb": lambda: False})
    assert chosen_trackers("none") == []
    assert chosen_trackers("all") == chosen_trackers("tensorboard") == ["tensorboard"]
    monkeypatch.setattr(tracking, "INSTALLED", {"tensorboard": lambda: False, "wandb": lambda: False})
    for choice, absent in (("all", "tensorboard and wandb are"), ("tensorboard", "tensorboard is")):
        with pytest.raises(ImportError, match=f"log_with is {choice}, but {absent} not installed"):
            chosen_trackers(choice)


def test_every_choice_is_known() -> None:
    assert {*tracking.INSTALLED, "all", "none"} == set(get_args(Tracker))
    assert PretrainArguments(log_with="trackio").log_with == "trackio"
    with pytest.raises(
        ValueError, match="log_with must be one of tensorboard, wandb, trackio, all, none, got 'mlflow'"
    ):
        LoopArguments(log_with="mlflow")
