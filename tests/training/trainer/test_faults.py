"""Nothing is lost: kills at any moment, full and read-only disks, damaged checkpoints, Ctrl-C, NaN, another run."""

import contextlib
import json
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import training.trainer.loop
import training.trainer.resume_store
from tests.training.child_processes import run_one
from tests.training.trainer.test_engine import arguments, assert_same_weights, interrupt, make_data, make_model
from training import pretrain
from training.data.cohort import Cohort, load_cohort
from training.storage.files import write_folder
from training.trainer.loop import Trainer
from training.trainer.resume_store import CheckpointStore, find_damage, read_manifest


# Everything that has to be restored takes part: dropout, noise, mixup, stages, validation.
LIVELY: dict[str, Any] = {
    "batch_size": 4,
    "input_noise": 0.1,
    "mixup": 0.5,
    "learning_rate": 1e-2,
    "momentum_epochs": 2,
    "adaptive": "adaptive",
    "checkpoint_every": 1,
    "checkpoint_every_steps": 1,
}
STEPS = 5  # in an epoch of 18 training scans
# Calls inside a save: opening it, the files' checksums, moving it into place, removing an old one.
INSIDE_A_SAVE = ("CheckpointStore.begin", "_checksum", "os.replace", "shutil.rmtree")


def lively_trainer(cohort: Cohort, folder: Path | None, **settings: Any) -> Trainer:
    """A trainer of a small model; where there is a checkpoint to resume from, its own weights are others."""
    has_checkpoint = folder is not None and bool(CheckpointStore(folder / "resume", 2).complete())
    model = make_model(seed=int(has_checkpoint), dropout=0.1)
    train, validation = make_data(cohort, range(18)), make_data(cohort, range(18, 24))
    return Trainer(model, train, validation, arguments(**{**LIVELY, **settings}), folder)


def at_the_end_of_epoch(trainer: Trainer, epoch: int, action: Callable[[], Any]) -> None:
    """Let something happen before an epoch's checkpoint is written."""
    validate = trainer._validate

    def act_and_validate() -> float | None:
        if trainer.state.epoch == epoch:
            action()
        return validate()

    trainer._validate = act_and_validate


# --- kills ---


def die() -> None:
    """As when the power goes."""
    os.kill(os.getpid(), signal.SIGKILL)


def train_undisturbed(dataset: Path, folder: Path, epochs: int) -> None:
    """Train without a stop, and without checkpoints on the way."""
    trainer = lively_trainer(load_cohort(dataset), None, epochs=epochs)
    write_result(trainer, trainer.train(), folder)


def write_result(trainer: Trainer, history: list[dict[str, Any]], folder: Path) -> None:
    """The final weights and the epochs' losses."""
    write_folder(folder / "result", lambda path: save_file(trainer.trained.state_dict(), path / "weights.safetensors"))
    (folder / "result.json").write_text(json.dumps(history))


def train_until_death(dataset: Path, folder: Path, epochs: int, death: tuple[str, int, float] | None) -> None:
    """Train or go on, and write the final weights; on the way, be killed.

    Args:
        dataset, folder (`Path`): data, and the run's folder.
        epochs (`int`): of the whole run.
        death (`tuple`, *optional*): a call inside a save, or "step"; which of these calls; seconds after it begins.
    """
    trainer = lively_trainer(load_cohort(dataset), folder, epochs=epochs, resume=(folder / "arguments.json").is_file())
    if death is not None:
        place, number, seconds = death
        if place == "step":
            _die_in_call(trainer, "_step", number, seconds)
        else:
            owner, _, name = place.rpartition(".")
            target = getattr(training.trainer.resume_store, owner) if owner else training.trainer.resume_store
            _die_in_call(target, name, number, seconds)
    write_result(trainer, trainer.train(), folder)


def _die_in_call(owner: Any, name: str, number: int, seconds: float) -> None:
    real, calls = getattr(owner, name), iter(range(number))

    def call(*given: Any, **named: Any) -> Any:
        if next(calls, None) is None:
            if seconds:
                threading.Timer(seconds, die).start()
            else:
                die()
        return real(*given, **named)

    setattr(owner, name, call)


def kill_loop(dataset: Path, folder: Path, epochs: int, kills: int, seed: int) -> list[str]:
    """Kill a run again and again, then compare it with one that was left alone; a line per life."""
    choose = random.Random(seed)
    log = []
    while len(log) < kills:
        # Every third inside a save; the others at a random moment after a random step, saving or not.
        inside = len(log) % 3 == 0
        place = choose.choice(INSIDE_A_SAVE) if inside else "step"
        death = (place, choose.randrange(1, 4), 0.0 if inside else choose.uniform(0, 0.05))
        code = run_one(train_until_death, dataset, folder / "killed", epochs, death, log=folder / "killed.log")
        assert code == -signal.SIGKILL, f"life {len(log)} ended with {code}, not by a kill in {death}"
        last = CheckpointStore(folder / "killed" / "resume", 2).complete()
        log.append(
            f"{len(log) + 1}: {death[0]} number {death[1]} + {death[2]:.3f} s; {last[-1].name if last else '-'}"
        )
    assert run_one(train_until_death, dataset, folder / "killed", epochs, None, log=folder / "killed.log") == 0
    assert run_one(train_undisturbed, dataset, folder / "whole", epochs, log=folder / "whole.log", timeout=600) == 0
    assert (folder / "killed" / "result.json").read_text() == (folder / "whole" / "result.json").read_text()
    killed, whole = (load_file(folder / run / "result" / "weights.safetensors") for run in ("killed", "whole"))
    assert killed.keys() == whole.keys()
    for name, value in whole.items():
        assert torch.equal(killed[name], value), name
    left = sorted(path.name for path in (folder / "killed" / "resume").iterdir() if not path.name.startswith("."))
    assert len(left) == 2
    return log


def test_killed_run_ends_with_the_same_bits(dataset: Path, tmp_path: Path) -> None:
    log = kill_loop(dataset, tmp_path, epochs=3, kills=3, seed=0)
    assert any("step" in line for line in log)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_run_killed_25_times_ends_with_the_same_bits(dataset: Path, tmp_path: Path) -> None:
    print("\n".join(kill_loop(dataset, tmp_path, epochs=20, kills=25, seed=1)))


# --- checkpoints ---


@pytest.mark.parametrize("step", [1, 3])
def test_resuming_within_an_epoch_continues_it_bit_by_bit(cohort: Cohort, tmp_path: Path, step: int) -> None:
    whole = lively_trainer(cohort, None, epochs=3)
    history = whole.train()
    cut = lively_trainer(cohort, tmp_path, epochs=3, checkpoint_every=0, checkpoint_every_steps=step)
    interrupt(cut, 2)
    with contextlib.suppress(Exception):
        cut.train()
    resumed = lively_trainer(cohort, tmp_path, epochs=3, resume=True)
    assert resumed.checkpoints.last().name == f"epoch_00001_step_000000{STEPS - STEPS % step}"
    assert resumed.train() == history
    assert_same_weights(whole.trained, resumed.trained)


def test_checkpoint_says_what_it_is_and_old_ones_go(cohort: Cohort, tmp_path: Path) -> None:
    lively_trainer(cohort, tmp_path, epochs=4, checkpoint_every_steps=0, keep_checkpoints=3).train()
    found = CheckpointStore(tmp_path / "resume", 3).complete()
    assert [path.name for path in found] == [f"epoch_0000{epoch}_step_0000000" for epoch in (2, 3, 4)]
    manifest = read_manifest(found[0])
    assert (manifest["epoch"], manifest["step"], manifest["stage"]) == (2, 0, "adaptive")
    assert manifest["settings"]["model.hidden_size"] == 16
    assert manifest["settings"]["training_scans"].startswith("18 with checksum ")
    assert manifest["versions"]["torch"] == torch.__version__
    assert "git_revision" in manifest
    wanted = {"model.safetensors", "optimizer.bin", "random_states_0.pkl", "best.safetensors"}
    assert wanted <= manifest["files"].keys()
    assert find_damage(found[0]) is None


def damage_byte(path: Path) -> None:
    """Change one byte in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "report"),
    [
        (damage_byte, "optimizer.bin has changed"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), "optimizer.bin has .* bytes, not"),
        (lambda path: path.unlink(), "optimizer.bin is missing"),
    ],
)
def test_damaged_checkpoint_is_passed_over(
    harm: Callable[[Path], Any], report: str, cohort: Cohort, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"epochs": 3, "checkpoint_every_steps": 0}
    history = lively_trainer(cohort, tmp_path, **settings).train()
    older, newest = CheckpointStore(tmp_path / "resume", 2).complete()
    harm(newest / "optimizer.bin")
    assert lively_trainer(cohort, tmp_path, **settings, resume=True).train() == history
    assert "is damaged (optimizer.bin" in caplog.text
    harm(older / "optimizer.bin")
    harm(newest / "optimizer.bin")
    with pytest.raises(ValueError, match=f"No checkpoint in .* can be read: {report}"):
        lively_trainer(cohort, tmp_path, **settings, resume=True).train()


def test_weights_that_did_not_arrive_are_noticed_when_written(
    cohort: Cohort, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = lively_trainer(cohort, tmp_path, epochs=1, checkpoint_every_steps=0)
    real = trainer.accelerator.save_state

    def save_wrong(folder: str) -> None:
        real(folder)
        weights = load_file(Path(folder) / "model.safetensors")
        weights["score.bias"] = weights["score.bias"] + 1
        save_file(weights, Path(folder) / "model.safetensors")

    monkeypatch.setattr(trainer.accelerator, "save_state", save_wrong)
    with pytest.raises(OSError, match=r"does not hold the weights that were written to it: score\.bias differs"):
        trainer.train()
    assert not list((tmp_path / "resume").iterdir())


def test_resume_is_refused_for_another_size_or_split(cohort: Cohort, tmp_path: Path) -> None:
    lively_trainer(cohort, tmp_path, epochs=1).train()
    settings = arguments(**LIVELY, epochs=1, resume=True)
    train, validation = make_data(cohort, range(18)), make_data(cohort, range(18, 24))
    wider = make_model(num_hidden_layers=3, dropout=0.1)
    with pytest.raises(ValueError, match=r"other settings: .*model.num_hidden_layers \(was 2, is 3\)"):
        Trainer(wider, train, validation, settings, tmp_path).train()
    other = make_data(cohort, range(17, 23))
    with pytest.raises(ValueError, match=r"other settings: validation_scans \(was '6 with checksum .*', is '6 with"):
        Trainer(make_model(dropout=0.1), train, other, settings, tmp_path).train()
    triangles = cohort.triangles[:]
    triangles[3, 7] += 0.25  # the same subjects, other scans
    data = make_data(replace(cohort, triangles=triangles), range(18))
    with pytest.raises(ValueError, match=r"other settings: training_scans_fc \(was '1 with checksum"):
        Trainer(make_model(dropout=0.1), data, validation, settings, tmp_path).train()
    train.labels["labels"] = train.labels["labels"].flip(0)
    with pytest.raises(ValueError, match=r"other settings: training_targets \(was"):
        Trainer(make_model(dropout=0.1), train, validation, settings, tmp_path).train()


def test_resume_before_the_first_checkpoint_starts_over(cohort: Cohort, tmp_path: Path) -> None:
    history = lively_trainer(cohort, None, epochs=2).train()
    first = lively_trainer(cohort, tmp_path, epochs=2)
    interrupt(first, 0)
    with contextlib.suppress(Exception):
        first.train()
    assert lively_trainer(cohort, tmp_path, epochs=2, resume=True).train() == history


def test_nothing_is_written_before_a_run_can_be_resumed(cohort: Cohort, tmp_path: Path) -> None:
    # A folder of logs alone could neither be resumed nor be used again.
    lively_trainer(cohort, tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no checkpoint to resume from"):
        lively_trainer(cohort, tmp_path, resume=True).train()
    assert not list(tmp_path.iterdir())


# --- stopping ---


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_can_go_on(cohort: Cohort, tmp_path: Path, number: int) -> None:
    whole = lively_trainer(cohort, None, epochs=3)
    history = whole.train()
    trainer = lively_trainer(cohort, tmp_path, epochs=3, checkpoint_every=0, checkpoint_every_steps=0)
    step = trainer._step

    def step_and_signal(*given: Any) -> float:
        if (trainer.state.epoch, trainer.state.step) == (1, 2):
            signal.raise_signal(number)
        return step(*given)

    trainer._step = step_and_signal
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="Interrupted in epoch 1 after 3 steps of it; everything is saved;"):
        trainer.train()
    assert signal.getsignal(number) is before
    resumed = lively_trainer(cohort, tmp_path, epochs=3, resume=True)
    assert resumed.train() == history
    assert_same_weights(whole.trained, resumed.trained)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_command_says_so_and_by_which_signal(
    dataset: Path,
    tmp_path: Path,
    pretrain_arguments: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
) -> None:
    step = Trainer._step

    def step_and_signal(trainer: Trainer, *given: Any) -> float:
        signal.raise_signal(number)
        return step(trainer, *given)

    monkeypatch.setattr(Trainer, "_step", step_and_signal)
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    flags = [f"--{name}={value}" for name, value in {**config, "epochs": 3, "batch_size": 8}.items()]
    with pytest.raises(SystemExit) as caught:
        pretrain.main(["--output", str(tmp_path / "out"), "--data", str(dataset), "--no_progress", *flags])
    assert caught.value.code == code
    assert "stopped: Interrupted in epoch 0 after 1 steps of it" in capsys.readouterr().err
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_nan_stops_with_the_last_good_checkpoint(cohort: Cohort, tmp_path: Path) -> None:
    trainer = lively_trainer(cohort, tmp_path, epochs=4, checkpoint_every_steps=0)
    train = trainer.train_data

    def spoil() -> None:
        train.cohort = replace(train.cohort, triangles=train.cohort.triangles[:])
        train.cohort.triangles[4] = np.nan

    at_the_end_of_epoch(trainer, 1, spoil)
    with pytest.raises(FloatingPointError, match=r"in epoch 2, in the batch of the subjects .*0005") as caught:
        trainer.train()
    good = tmp_path / "resume" / "epoch_00002_step_0000000"
    assert str(caught.value).endswith(f"The last complete checkpoint is {good}.")
    assert all(value.isfinite().all() for name, value in load_file(good / "model.safetensors").items())
    assert CheckpointStore(tmp_path / "resume", 2).newest() == good


def test_infinite_gradient_does_not_reach_the_weights(cohort: Cohort, tmp_path: Path) -> None:
    trainer = lively_trainer(cohort, tmp_path, epochs=2)
    trainer.trained.score.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = {name: value.clone() for name, value in trainer.trained.named_parameters()}
    with pytest.raises(FloatingPointError, match="The gradient became NaN or infinite in epoch 0, in the batch"):
        trainer.train()
    for name, value in trainer.trained.named_parameters():
        assert torch.equal(value, before[name]), name


def test_leftovers_of_killed_runs_are_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for name in (".partial", ".removed.epoch_00001_step_0000000"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    (store.begin() / "model.safetensors").write_bytes(b"whole")
    store.commit("epoch_00002_step_0000000", {})
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_00002_step_0000000"]
    shutil.rmtree(tmp_path / "epoch_00002_step_0000000")
    assert store.newest() is None
