"""Packed models: one argument at load, close to float32, and refused where they would be wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining, LCMPackedConfig, quantization_lcm
from modeling_lcm.quantization_lcm import pack


MakeConfig = Callable[..., LCMConfig]


@pytest.fixture
def folder(make_config: MakeConfig, tmp_path: Path) -> Path:
    """A saved model whose biases matter."""
    model = LCMForMultitaskPretraining(make_config(hidden_size=64, num_attention_heads=4))
    for name, tensor in model.state_dict().items():
        if name.endswith("bias"):
            tensor.normal_(std=0.3)
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(("weights", "tolerance"), [("float32", 1e-5), ("int8", 0.1)])
@pytest.mark.parametrize("people", [1, 4])
def test_close_to_float32(folder: Path, connectivity: Tensor, weights: str, tolerance: float, people: int) -> None:
    plain = LCMForMultitaskPretraining.from_pretrained(folder).eval()
    packed = LCMForMultitaskPretraining.from_pretrained(folder, quantization_config=LCMPackedConfig(weights))
    with torch.no_grad():
        expected = plain(connectivity[:people]).layer_logits
        found = packed(connectivity[:people]).layer_logits
    difference = (found - expected).abs().max() / expected.abs().max()
    assert difference < tolerance
    assert (difference > 1e-4) == (weights == "int8")
    with pytest.raises(ValueError, match="not serializable"):
        packed.save_pretrained(folder / "again")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(folder: Path, connectivity: Tensor, dtype: torch.dtype) -> None:
    plain = LCMForMultitaskPretraining.from_pretrained(folder).eval()
    half = LCMForMultitaskPretraining.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        expected, found = plain(connectivity).logits, half(connectivity).logits
    assert half.model.stem.proj.weight.dtype == dtype
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_unknown_precision() -> None:
    with pytest.raises(ValueError, match=r"float32, int8, got 'int4'.*dtype=torch.bfloat16"):
        LCMPackedConfig("int4")


def test_processor_without_int8_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization_lcm, "has_int8_products", lambda: False)
    with pytest.raises(ValueError, match="no int8 products for this processor"):
        LCMPackedConfig("int8")


def test_other_device(folder: Path) -> None:
    with pytest.raises(ValueError, match="device_map asks for cuda"):
        LCMForMultitaskPretraining.from_pretrained(
            folder, quantization_config=LCMPackedConfig("int8"), device_map="cuda"
        )


def test_unmerged_adapters(folder: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    model = LCMForMultitaskPretraining.from_pretrained(folder)
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(ValueError, match=r"adapter .*adapter cannot be put on packed weights.*merge it"):
        LCMForMultitaskPretraining.from_pretrained(tmp_path / "adapter", quantization_config=LCMPackedConfig("int8"))
    with pytest.raises(ValueError, match="Merge adapters first"):
        pack(adapted)
    merged = adapted.merge_and_unload()
    assert pack(merged) is merged


def test_packed_models_do_not_train(folder: Path, connectivity: Tensor) -> None:
    packed = LCMForMultitaskPretraining.from_pretrained(folder, quantization_config=LCMPackedConfig("float32"))
    for model in (packed, packed.model, pack(LCMForMultitaskPretraining.from_pretrained(folder), "float32")):
        with pytest.raises(ValueError, match=r"prediction only: load it without quantization_config"):
            model.train()
        assert not any(module.training for module in model.modules())
        assert model.eval() is model
    plain = LCMForMultitaskPretraining.from_pretrained(folder).train()
    assert plain.training
    labels = torch.zeros(len(connectivity), len(plain.config.bei_variables))
    with torch.no_grad():
        loss = packed(connectivity, labels=labels).loss
    torch.testing.assert_close(loss, plain.eval()(connectivity, labels=labels).loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weights", ["float32", "int8"])
def test_what_the_first_layer_remembers_changes_nothing(folder: Path, connectivity: Tensor, weights: str) -> None:
    packed = LCMForMultitaskPretraining.from_pretrained(folder, quantization_config=LCMPackedConfig(weights))
    tokens = packed.model.bei_embeddings
    with torch.no_grad():
        first = packed(connectivity).layer_logits
        asked_before = tokens.weight.clone()
        tokens.weight.mul_(-1)
        other = packed(connectivity).layer_logits
        tokens.weight.copy_(asked_before)
        again = packed(connectivity).layer_logits
    assert not torch.allclose(first, other)
    assert torch.equal(first, again)
