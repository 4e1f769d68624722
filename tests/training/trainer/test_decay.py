"""Weight decay towards the weights that fine-tuning starts from."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.conftest import SHORT, TINY
from training.data.cohort import Cohort
from training.trainer.arguments import FinetuneArguments, PretrainArguments
from training.trainer.checkpoints import save_checkpoint
from training.trainer.finetuning import finetune
from training.trainer.pretraining import pretrain
from training.trainer.trainable import StartDecay


@pytest.fixture(scope="module")
def with_edges(_loaded: Cohort, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with edge read-outs that are not zero."""
    settings = PretrainArguments(**{**TINY, **SHORT, "edge_readout": True})
    model, processor, _ = pretrain(_loaded, settings)
    return save_checkpoint(tmp_path_factory.mktemp("edges") / "checkpoint", model, processor, settings, {})


@pytest.fixture
def settings(with_edges: Path, finetune_arguments: Callable[..., FinetuneArguments]) -> Callable[..., Any]:
    """Factory of settings that fine-tune that checkpoint's own variable sex."""
    return lambda **overrides: finetune_arguments(**{"checkpoint": str(with_edges), "task": "sex", **overrides})


def test_a_huge_decay_holds_the_pretrained_weights(cohort: Cohort, with_edges: Path, settings: Any) -> None:
    start = load_file(with_edges / "model.safetensors")
    held, _, _ = finetune(cohort, settings(weight_decay=1e9, decay_towards="pretrained", epochs=3))
    for name, value in held.named_parameters():
        if value.ndim > 1:
            assert torch.equal(value, start[name]), name
    assert not torch.equal(held.score.bias, start["score.bias"])  # biases and norms have no decay
    some, _, _ = finetune(cohort, settings(weight_decay=30.0, decay_towards="pretrained", epochs=3))
    none, _, _ = finetune(cohort, settings(weight_decay=0.0, decay_towards="pretrained", epochs=3))
    for name in ("bei_edge_readout.weight", "model.bei_embeddings.weight", "model.layers.1.fc1.weight"):
        moved = [(model.state_dict()[name] - start[name]).norm() for model in (some, none)]
        assert 0 < moved[0] < moved[1], name


def test_without_a_decay_it_leads_nowhere(cohort: Cohort, settings: Any) -> None:
    first, second = (
        finetune(cohort, settings(weight_decay=0.0, decay_towards=where))[0] for where in ("pretrained", "zero")
    )
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_a_step_goes_its_part_of_the_way_back() -> None:
    weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
    optimizer = torch.optim.SGD([{"params": [weight], "lr": 0.5, "start_decay": 0.4}], lr=0.5)
    decay = StartDecay(optimizer)
    weight.grad = torch.tensor([[2.0, 0.0]])
    optimizer.step()  # to 0, -2
    decay.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[0.2, -2.0]]))


@pytest.mark.parametrize("adapter", ["none", "lora"])
def test_resumed_run_equals_uninterrupted_one(cohort: Cohort, settings: Any, tmp_path: Path, adapter: str) -> None:
    given = settings(epochs=4, checkpoint_every=1, weight_decay=20.0, decay_towards="pretrained", adapter=adapter)
    whole, _, history = finetune(cohort, given, tmp_path / "whole")
    stopped = RuntimeError("stopped")
    seen: list[Any] = []

    def stop(model: Any) -> None:
        seen.append(model)
        if len(seen) == 3:
            raise stopped

    with pytest.raises(RuntimeError, match="stopped"):
        finetune(cohort, given, tmp_path / "cut", stop)
    again, _, repeated = finetune(cohort, replace(given, resume=True), tmp_path / "cut")
    assert repeated == history
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
