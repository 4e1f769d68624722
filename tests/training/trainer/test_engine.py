"""The training loop: accumulation, resuming, best epoch, stages, precision, several processes."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining
from tests.training.conftest import REGIONS, SHORT
from training.data.cohort import Cohort
from training.data.torch_datasets import ConnectomeDataset
from training.trainer.arguments import LoopArguments
from training.trainer.batch_losses import with_noise
from training.trainer.loop import Trainer


VARIABLES = [
    {"name": "sex", "kind": "categorical", "labels": ["M", "F"], "loss_weight": 1.0},
    {"name": "age", "kind": "continuous", "labels": [], "loss_weight": 0.5},
]
# Their gradient is zero but for rounding (a softmax does not see them), which Adam blows up to full steps.
WITHOUT_GRADIENT = ("k_proj.bias", "layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj.weight")


def make_model(seed: int = 0, dropout: float = 0.0, **settings: Any) -> LCMForMultitaskPretraining:
    """A tiny model with two layers."""
    torch.manual_seed(seed)
    rates = dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout"), dropout)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    return LCMForMultitaskPretraining(
        LCMConfig(num_regions=REGIONS, bei_variables=VARIABLES, **{**size, **rates, **settings})
    )


def freeze_statistics(model: LCMForMultitaskPretraining) -> LCMForMultitaskPretraining:
    """Keep the batch norm in evaluation mode: otherwise every batch has its own statistics."""
    norm = model.model.stem.norm.eval()
    norm.train = lambda mode=True: norm
    return model


def make_data(cohort: Cohort, rows: range = range(24), seed: int = 0) -> ConnectomeDataset:
    """Scans of the cohort with sex (missing here and there) and age."""
    table = cohort.table.iloc[list(rows)]
    sex = (table["sex"] == "F").to_numpy(dtype=np.float32)
    sex[np.random.default_rng(seed).random(len(sex)) < 0.4] = -100
    age = ((table["age"] - 45) / 15).to_numpy(dtype=np.float32)
    labels = torch.from_numpy(np.stack([sex, age], axis=1))
    return ConnectomeDataset(cohort.select(np.array(rows)), {"labels": labels})


def arguments(**overrides: Any) -> LoopArguments:
    """Short settings without noise."""
    return LoopArguments(**{**SHORT, "input_noise": 0.0, **overrides})


def assert_same_weights(first: Any, second: Any, tolerance: float = 0.0) -> None:
    """All tensors agree, those without a gradient apart unless they must be bit-identical."""
    one, other = first.state_dict(), second.state_dict()
    assert one.keys() == other.keys()
    for name, value in one.items():
        if tolerance and any(part in name for part in WITHOUT_GRADIENT):
            continue
        torch.testing.assert_close(value, other[name], rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


def test_accumulated_batches_equal_one_big_batch(cohort: Cohort) -> None:
    data = make_data(cohort)
    counts = [(data.labels["labels"][start : start + 4, 0] != -100).sum().item() for start in range(0, 24, 4)]
    assert len(set(counts)) > 1  # with equal counts a mean of means would pass, too
    big, small = freeze_statistics(make_model()), freeze_statistics(make_model())
    history = Trainer(big, data, None, arguments(batch_size=16)).train()
    accumulated = Trainer(small, data, None, arguments(batch_size=4, gradient_accumulation_steps=4)).train()
    for one, other in zip(history, accumulated, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
        assert one["lr"] == other["lr"]
    small.bei_layer_choice.load_state_dict(big.bei_layer_choice.state_dict())  # updated once per batch
    assert_same_weights(big, small, tolerance=1e-5)


def test_training_learns_and_leaves_evaluation_mode(cohort: Cohort) -> None:
    model = make_model()
    history = Trainer(model, make_data(cohort), None, arguments(epochs=15, learning_rate=5e-3)).train()
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    assert [record["epoch"] for record in history] == list(range(15))
    assert history[0]["validation_loss"] is None
    assert history[-1]["lr"] == pytest.approx(0.0, abs=1e-9)
    assert not model.training


def test_input_noise_is_symmetric_and_of_the_stated_size() -> None:
    clean = torch.zeros(200, REGIONS, REGIONS)
    noise = with_noise(clean, 0.2)
    assert torch.equal(noise, noise.transpose(1, 2))
    off_diagonal = noise[:, ~torch.eye(REGIONS, dtype=torch.bool)]
    assert off_diagonal.std().item() == pytest.approx(0.2, rel=0.03)
    assert not clean.any()


class Interrupted(Exception):
    """Stands for a power cut."""


def interrupt(trainer: Trainer, epoch: int) -> None:
    """Let a training stop when an epoch begins."""
    train_epoch = trainer._train_epoch

    def train_until(current: int) -> float:
        if current == epoch:
            raise Interrupted
        return train_epoch(current)

    trainer._train_epoch = train_until


@pytest.mark.parametrize(("stop", "momentum_epochs"), [(3, 1), (5, 3)])
def test_resumed_run_equals_uninterrupted_one(cohort: Cohort, tmp_path: Path, stop: int, momentum_epochs: int) -> None:
    train, validation = make_data(cohort, range(18)), make_data(cohort, range(18, 24))
    settings: dict[str, Any] = {
        "epochs": 6,
        "checkpoint_every": 2,
        "input_noise": 0.1,
        "learning_rate": 1e-2,
        "momentum_epochs": momentum_epochs,
        "adaptive": "adaptive",
    }
    whole = make_model(dropout=0.1)
    history = Trainer(whole, train, validation, arguments(**settings), tmp_path / "whole").train()
    first = Trainer(make_model(dropout=0.1), train, validation, arguments(**settings), tmp_path / "cut")
    interrupt(first, stop)
    with pytest.raises(Interrupted):
        first.train()
    # Weights of another seed: everything has to come from the checkpoint.
    resumed = make_model(seed=1, dropout=0.1)
    trainer = Trainer(resumed, train, validation, arguments(**settings, resume=True), tmp_path / "cut")
    assert trainer.train() == history
    assert_same_weights(whole, resumed)
    assert resumed.config.supervision == whole.config.supervision
    assert json.loads((tmp_path / "cut" / "history.json").read_text()) == history


def test_resuming_a_finished_run_gives_its_model_back(cohort: Cohort, tmp_path: Path) -> None:
    settings = {"epochs": 2, "checkpoint_every": 1, "momentum_epochs": 1, "adaptive": "adaptive"}
    first, second = make_model(), make_model(seed=1)
    history = Trainer(first, make_data(cohort), None, arguments(**settings), tmp_path).train()
    again = Trainer(second, make_data(cohort), None, arguments(**settings, resume=True), tmp_path).train()
    assert again == history
    assert_same_weights(first, second)
    assert second.config.supervision == "adaptive"


def test_resume_is_refused_under_other_settings(cohort: Cohort, tmp_path: Path) -> None:
    data = make_data(cohort)
    Trainer(make_model(), data, None, arguments(checkpoint_every=1), tmp_path).train()
    changed = arguments(checkpoint_every=2, resume=True, learning_rate=0.5, batch_size=3, progress=True)
    with pytest.raises(
        ValueError, match=r"other settings: batch_size \(was 8, is 3\); learning_rate \(was 0.001, is 0.5\)\.$"
    ):
        Trainer(make_model(), data, None, changed, tmp_path).train()
    others = make_data(cohort, range(20))
    with pytest.raises(ValueError, match=r"other settings: training_scans \(was"):
        Trainer(make_model(), others, None, arguments(resume=True), tmp_path).train()
    with pytest.raises(ValueError, match=r"no checkpoint to resume from in .*nowhere"):
        Trainer(make_model(), data, None, arguments(resume=True), tmp_path / "nowhere").train()


def test_nan_loss_names_epoch_and_subjects(cohort: Cohort, tmp_path: Path) -> None:
    damaged = replace(cohort, triangles=cohort.triangles[:])
    damaged.triangles[13] = float("nan")
    data = make_data(damaged)
    with pytest.raises(FloatingPointError, match=r"in epoch 0, .* subjects .*0014") as caught:
        Trainer(make_model(), data, None, arguments(batch_size=2), tmp_path).train()
    assert len(str(caught.value).split("subjects ")[1].split(".")[0].split(",")) == 2
    assert "checkpoint" not in str(caught.value)  # there is none yet


def test_early_stopping_restores_the_best_epoch(cohort: Cohort) -> None:
    model = make_model()
    train, validation = make_data(cohort, range(18)), make_data(cohort, range(18, 24))
    trainer = Trainer(
        model, train, validation, arguments(epochs=9, patience=3, adaptive="adaptive", learning_rate=1e-2)
    )
    losses, seen = iter([3.0, 2.0, 1.0, 1.5, float("nan"), 1.0, 0.1]), []

    def validate() -> float:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(losses)

    trainer._validate = validate
    history = trainer.train()
    assert len(history) == 6  # epochs 3, 4 and 5 were no better than 2
    assert trainer.state.best_epoch == 2
    for name, value in model.state_dict().items():
        assert torch.equal(value, seen[2][name]), name
    assert any(not torch.equal(seen[2][name], seen[5][name]) for name in seen[2])


def test_best_epoch_of_the_momentum_stage_is_read_out_by_the_mean(cohort: Cohort) -> None:
    model = make_model()
    train, validation = make_data(cohort, range(18)), make_data(cohort, range(18, 24))
    trainer = Trainer(model, train, validation, arguments(epochs=3, momentum_epochs=1, adaptive="adaptive"))
    losses = iter([1.0, 2.0, 3.0])
    trainer._validate = lambda: next(losses)
    history = trainer.train()
    assert [record["stage"] for record in history] == ["momentum", "adaptive", "adaptive"]
    assert model.config.supervision == "momentum"
    assert model.config.effective_readout == "mean"


def test_last_epoch_is_taken_without_validation(cohort: Cohort) -> None:
    model = make_model()
    history = Trainer(model, make_data(cohort), None, arguments(epochs=2, adaptive="adaptive_per_sample")).train()
    assert [record["stage"] for record in history] == ["momentum", "adaptive_per_sample"]
    assert model.config.effective_readout == "max"


def test_validation_loss_is_the_loss_of_the_readout(cohort: Cohort) -> None:
    model = make_model()
    train, validation = make_data(cohort, range(18)), make_data(cohort, range(18, 24))
    trainer = Trainer(model, train, validation, arguments(epochs=1, batch_size=1))  # validation in batches of 4 and 2
    history = trainer.train()
    labels = validation.labels["labels"]
    with torch.no_grad():
        logits = model(torch.from_numpy(cohort.connectivity(np.arange(18, 24)))).logits
    known = labels[:, 0] != -100
    expected = torch.nn.functional.cross_entropy(logits[known, :2], labels[known, 0].long())
    expected += 0.5 * (logits[:, 2] - labels[:, 1]).square().mean()
    assert history[0]["validation_loss"] == pytest.approx(expected.item(), abs=1e-5)


def test_patience_needs_validation(cohort: Cohort) -> None:
    with pytest.raises(ValueError, match="patience stops on the validation loss: set validation_fraction"):
        Trainer(make_model(), make_data(cohort), None, arguments(patience=2))


def test_mixed_precision_trains_and_leaves_a_full_precision_model(cohort: Cohort) -> None:
    model = make_model()
    history = Trainer(model, make_data(cohort), None, arguments(mixed_precision="bf16")).train()
    assert np.isfinite(history[-1]["train_loss"])
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    connectivity = torch.from_numpy(cohort.connectivity(np.arange(4)))
    copy = make_model(seed=1).eval()
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(connectivity).logits, copy(connectivity).logits)
    # Another precision afterwards, in the same process, as cross-validation of two stages may want.
    full = make_model()
    plain = Trainer(full, make_data(cohort), None, arguments()).train()
    assert plain[-1]["train_loss"] == pytest.approx(history[-1]["train_loss"], rel=0.05)
    assert plain[-1]["train_loss"] != history[-1]["train_loss"]


def test_records_of_a_run(cohort: Cohort, tmp_path: Path) -> None:
    history = Trainer(make_model(), make_data(cohort), None, arguments(epochs=3, checkpoint_every=2), tmp_path).train()
    assert json.loads((tmp_path / "history.json").read_text()) == history
    assert json.loads((tmp_path / "arguments.json").read_text())["epochs"] == 3
    assert list((tmp_path / "logs").rglob("events.out.tfevents*"))
    (checkpoint,) = (tmp_path / "resume").iterdir()
    assert checkpoint.name == "epoch_00002_step_0000000"
    assert (checkpoint / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("setting", "value", "problem"),
    [
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("gradient_accumulation_steps", 0, "gradient_accumulation_steps must be at least 1"),
        ("learning_rate", 0.0, "learning_rate must be above 0"),
        ("input_noise", -0.1, "input_noise must not be negative"),
        ("mixup_of", "log", "mixup_of"),
        ("warmup_fraction", 1.5, "warmup_fraction must lie between 0 and 1"),
        (
            "adaptive",
            "best",
            "adaptive must be one of momentum, adaptive, adaptive_per_sample, last_layer, got 'best'",
        ),
        ("mixed_precision", "fp8", "mixed_precision must be one of no, bf16, fp16"),
    ],
)
def test_settings_out_of_range_are_refused(setting: str, value: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        arguments(**{setting: value})


def test_settings_of_the_scripts_are_checked_like_those_of_the_loop(
    pretrain_arguments: Callable[..., LoopArguments],
) -> None:
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        pretrain_arguments(epochs=0)
