"""Training adapters: their gradients, and Transformers' own methods from `add_adapter` to `load_adapter`."""

import re
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeling_lcm import LCMForSequenceClassification
from tests.training.trainer.test_adapters import KINDS, connectivity, make_adapter


__all__ = ["connectivity"]  # a fixture
TARGETS = ["q_proj", "v_proj", "fc1"]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_adapter(pretrained: Path, connectivity: Tensor, kind: str) -> None:
    """Each trained tensor has the gradient that the loss itself shows along it, in float64, where rounding is far."""
    adapted, _ = make_adapter(pretrained, "group", kind)
    adapted.get_base_model().config.supervision = "momentum"
    model = adapted.double().train()
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def loss() -> Tensor:
        model.load_state_dict(statistics, strict=False)  # every pass moves the running means
        torch.manual_seed(1)  # the same weights are dropped
        return model(connectivity=connectivity.double(), labels=torch.tensor([0, 1, 0, 1, 1])).loss

    loss().backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    without = {name for name, parameter in trained.items() if parameter.grad.norm() < 1e-9}
    # One bias for all tokens: it cancels in the softmax over the classes.
    assert {name.split("model.")[-1] for name in without} == {"score.modules_to_save.default.bias"}
    for name in trained.keys() - without:
        if kind == "dora" and re.search("lora_[AB]", name):
            continue  # DoRA takes the norm of the adapted weight for a constant, so this is not the loss's own slope
        parameter, length = trained[name], trained[name].grad.norm()
        step = 1e-5 * parameter.grad / length
        losses = []
        with torch.no_grad():
            for sign in (1, -1):
                parameter.add_(sign * step)
                losses.append(loss())
                parameter.sub_(sign * step)
        assert ((losses[0] - losses[1]) / 2e-5).item() == pytest.approx(length.item(), rel=1e-3), name


@pytest.fixture
def base(pretrained: Path) -> LCMForSequenceClassification:
    """A pretrained model for one of its own variables, in evaluation mode."""
    return load_base(pretrained)


def load_base(place: Path) -> LCMForSequenceClassification:
    """The tiny checkpoint, for one of its own variables."""
    return LCMForSequenceClassification.from_pretrained(place, task_variable="sex", num_labels=2).eval()


def train_a_little(model: LCMForSequenceClassification, connectivity: Tensor) -> None:
    """A few steps on what has a gradient."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(5):
        model(connectivity=connectivity, labels=torch.tensor([0, 1, 0, 1, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_transformers_own_methods_from_adding_to_loading(
    base: LCMForSequenceClassification, pretrained: Path, connectivity: Tensor, tmp_path: Path
) -> None:
    plain = base(connectivity=connectivity).logits.detach()
    base.add_adapter(LoraConfig(r=2, target_modules=TARGETS, modules_to_save=["score"]), adapter_name="mine")
    assert base.active_adapters() == ["mine"]
    train_a_little(base, connectivity)
    trained = base(connectivity=connectivity).logits.detach()
    assert (trained - plain).abs().max() > 1e-2
    base.disable_adapters()
    torch.testing.assert_close(base(connectivity=connectivity).logits, plain)
    base.enable_adapters()
    base.save_pretrained(tmp_path / "adapter")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()

    other = load_base(pretrained)
    other.load_adapter(str(tmp_path / "adapter"), "theirs")
    assert other.active_adapters() == ["theirs"]
    torch.testing.assert_close(other(connectivity=connectivity).logits, trained)
    assert not any(parameter.requires_grad for name, parameter in other.named_parameters() if "theirs" in name)
    with pytest.raises(ValueError, match="already an adapter 'theirs' on this model: choose another adapter_name"):
        other.load_adapter(str(tmp_path / "adapter"), "theirs")
    other.add_adapter(LoraConfig(r=2, target_modules=TARGETS, modules_to_save=["score"]), adapter_name="fresh")
    other.set_adapter("theirs")
    torch.testing.assert_close(other(connectivity=connectivity).logits, trained)


def test_an_adapter_is_loaded_with_its_base(
    base: LCMForSequenceClassification, connectivity: Tensor, tmp_path: Path
) -> None:
    base.add_adapter(LoraConfig(r=2, target_modules=TARGETS))
    train_a_little(base, connectivity)
    base.save_pretrained(tmp_path / "adapter")
    loaded = LCMForSequenceClassification.from_pretrained(tmp_path / "adapter", task_variable="sex", num_labels=2)
    expected = base(connectivity=connectivity).logits
    torch.testing.assert_close(loaded.eval()(connectivity=connectivity).logits, expected)


def test_a_loaded_adapter_goes_on_training(
    base: LCMForSequenceClassification, pretrained: Path, connectivity: Tensor, tmp_path: Path
) -> None:
    base.add_adapter(LoraConfig(r=2, target_modules=TARGETS))
    base.save_pretrained(tmp_path / "adapter")
    other = load_base(pretrained)
    other.load_adapter(str(tmp_path / "adapter"), is_trainable=True)
    before = other(connectivity=connectivity).logits.detach()
    assert all(p.requires_grad == ("lora_" in name) for name, p in other.named_parameters())
    train_a_little(other, connectivity)
    assert (other(connectivity=connectivity).logits - before).abs().max() > 1e-2


def test_weights_that_do_not_fit_are_refused(
    base: LCMForSequenceClassification, pretrained: Path, tmp_path: Path
) -> None:
    base.add_adapter(LoraConfig(r=2, target_modules=TARGETS))
    base.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    (name, *_) = weights
    for change, problem in (
        ({name: None}, "not in the file: .*lora_"),
        ({"base_model.model.foreign.lora_A.weight": torch.zeros(2)}, "not in the model: foreign"),
        ({name: torch.zeros(1, 1)}, "size mismatch"),
    ):
        changed = {key: tensor for key, tensor in (weights | change).items() if tensor is not None}
        save_file(changed, file, {"format": "pt"})
        with pytest.raises(ValueError, match=f"weights of the adapter .*adapter do not fit this model: .*{problem}"):
            load_base(pretrained).load_adapter(str(tmp_path / "adapter"))
