"""The memory calculator agrees with measured memory; the benchmarks of memory and data run; frugal settings train."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import data as data_benchmark
from benchmarks import memory
from tests.training.trainer.test_engine import arguments, make_data, make_model
from training.data.cohort import Cohort
from training.trainer.arguments import PlanArguments
from training.trainer.loop import Trainer
from training.trainer.memory import HEADROOM, Setup, _make, footprint, parse_gpus, plan
from training.trainer.trainable import make_optimizer


def kept_by_a_real_forward(setup: Setup) -> int:
    """Bytes that a forward pass with content keeps for the backward pass, parameters apart."""
    model, kept = _make(setup, None), {}
    own = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(connectivity=torch.rand(setup.batch_size, setup.regions, setup.regions))
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("mode", ["pretrain", "lora"])
def test_activations_are_those_of_a_real_forward_pass(mode: str) -> None:
    setup = Setup("nano", mode, batch_size=4, regions=20, tokens=6)
    found = footprint(setup)
    real = kept_by_a_real_forward(setup)
    layer = real - kept_by_a_real_forward(Setup("nano", mode, 4, 20, 6, overrides=(("num_hidden_layers", 7),)))
    assert found.activations == pytest.approx(real + layer, rel=0.05)


def test_parts_of_the_footprint() -> None:
    setup = Setup("nano", "pretrain")
    found = footprint(setup)
    count = found.weights / 4
    assert count == pytest.approx(625_000, rel=0.02)
    assert found.gradients == pytest.approx(4 * count, rel=0.02)  # buffers have no gradient
    assert found.optimizer == 2 * found.gradients
    assert footprint(Setup("nano", "pretrain", optimizer="adafactor")).optimizer < 0.6 * found.optimizer
    assert footprint(Setup("nano", "pretrain", checkpointing=True)).activations < 0.5 * found.activations
    adapters = footprint(Setup("nano", "lora"))
    assert adapters.gradients < 0.6 * found.gradients
    assert footprint(Setup("nano", "predict", precision="bf16")).weights == 2 * count
    sharded = footprint(Setup("nano", "pretrain", shards=2, device="gpu"))
    assert sharded.optimizer == found.optimizer / 2
    assert found.weights / 2 < sharded.weights < 1.5 * found.weights


def test_plan_says_what_fits() -> None:
    lines = plan(PlanArguments(size="147m", mode="pretrain", gpus="1x3.3GB"))
    assert "-> --optimizer adafactor" in lines[-1]
    small = plan(PlanArguments(size="147m", mode="pretrain", gpus="1x1.4GB"))
    assert "nothing of these fits" in small[-1]
    roomy = plan(PlanArguments(size="nano", memory=8))
    assert [line.split("-> ")[1] for line in roomy if "->" in line] == ["defaults"] * 3 + ["float32"]
    assert "CPU with 8.0 GB of memory" in roomy[0]
    shared = plan(PlanArguments(size="nano", mode="pretrain", gpus="2x24GB"))
    assert any("fsdp2.yaml on 2 GPUs" in line for line in shared)


def test_plan_of_several_atlases() -> None:
    lines = plan(PlanArguments(size="nano", atlases=["aal-116", "schaefer-200"], memory=8))
    assert "116 + 200 regions" in lines[0]
    both, one, other = (footprint(Setup("nano", "pretrain", **kind)) for kind in (
        {"atlases": (116, 200)}, {"regions": 116}, {"regions": 200}))  # fmt: skip
    shared = 4 * sum(p.numel() for name, p in _make(Setup("nano", "pretrain"), None).named_parameters()
                     if not name.startswith(("model.stem", "bei_edge_readout")))  # fmt: skip
    weights = 4 * 2 * 31  # what each atlas counts for each token
    assert both.gradients == one.gradients + other.gradients - shared + weights
    assert both.activations > max(one.activations, other.activations)
    with pytest.raises(ValueError, match="nowhere-9"):
        plan(PlanArguments(atlases=["nowhere-9"], memory=8))


@pytest.mark.parametrize("text", ["24GB", "x24GB", "0x24GB", "1x24TB", "two"])
def test_gpus_in_another_form(text: str) -> None:
    with pytest.raises(ValueError, match=f'gpus must look like 1x24GB or 8x80GB, got "{text}"'):
        parse_gpus(text)
    assert parse_gpus("8x80GB") == (8, 80.0)


@pytest.mark.parametrize(("given", "problem"), [({"mode": "train"}, "mode must be one of"), ({"tokens": 2}, "tokens")])
def test_what_cannot_be_planned(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        PlanArguments(**given)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory as Linux reports it")
def test_measured_memory_agrees_with_the_plan(tmp_path: Path) -> None:
    memory.make_checkpoint("nano", "float32", tmp_path / "nano-float32")
    # Mostly libraries at this size; the large sizes are the slow test's.
    found = memory.measure("finetune-nano", tmp_path, batch_size=8)
    assert found["peak_gb"] == pytest.approx(memory.estimate("finetune-nano", 8), abs=0.25)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("case", [case for case in memory.CASES if not case.endswith("nano")])
def test_memory_goals(case: str, tmp_path: Path) -> None:
    found, goal = memory.measure(case, tmp_path, batch_size=8), memory.CASES[case][3]
    planned = memory.estimate(case, 8)
    print(f"\n{case}: {found}, planned {planned:.2f} GB")
    assert 0.75 * planned < found["peak_gb"] < HEADROOM * planned
    assert goal is None or found["peak_gb"] < goal


def test_waiting_for_data_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = data_benchmark.stored_cohort(tmp_path / "data", scans=16, regions=20)
    assert cohort.triangles[np.array([3, 1])].shape == (2, 190)
    trainer = data_benchmark.make_trainer(cohort, "nano", batch_size=4, scans=16)
    clock = iter(range(10**6))
    monkeypatch.setattr(data_benchmark.time, "perf_counter", lambda: next(clock))
    trainer.loader = data_benchmark.TimedLoader(trainer.loader)
    trainer._train_epoch(0)
    assert trainer.loader.batches == 4
    assert trainer.loader.seconds >= 4  # one tick a batch, and those of others who look at the clock meanwhile
    monkeypatch.undo()
    found = data_benchmark.measure(cohort, "nano", batch_size=4, steps=4)
    assert 0 < found["wait"] < 1
    assert found["samples_per_second"] > 0


# --- frugal training ---


def test_checkpointing_trains_the_same(cohort: Cohort) -> None:
    plain, frugal = (make_model(dropout=0.1) for _ in range(2))
    first = Trainer(plain, make_data(cohort), None, arguments()).train()
    second = Trainer(frugal, make_data(cohort), None, arguments(activation_checkpointing=True)).train()
    for one, two in zip(first, second, strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], abs=1e-5)
    norm = frugal.model.stem.norm
    torch.testing.assert_close(norm.running_var, plain.model.stem.norm.running_var, rtol=1e-4, atol=1e-5)
    assert norm.num_batches_tracked == plain.model.stem.norm.num_batches_tracked
    assert not frugal.is_activation_checkpointing


def test_adafactor_learns_and_keeps_little(cohort: Cohort) -> None:
    model = make_model()
    settings = arguments(epochs=15, learning_rate=2e-2, optimizer="adafactor")
    trainer = Trainer(model, make_data(cohort), None, settings)
    history = trainer.train()
    assert history[-1]["train_loss"] < 0.7 * history[0]["train_loss"]
    state = trainer.optimizer.state[model.model.layers[1].fc1.weight]
    assert sum(value.numel() for value in state.values() if torch.is_tensor(value)) <= 2 * 16 + 1
    assert isinstance(make_optimizer(model, arguments()), torch.optim.AdamW)
