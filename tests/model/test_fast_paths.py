"""The fast paths give what plain attention, batch norm and read-out give: outputs and gradients, in every mode."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining, attention_lcm, fast_paths_lcm, stem_lcm
from modeling_lcm import modeling_lcm as modeling
from modeling_lcm.fast_paths_lcm import FoldedAttention, once
from tests.conftest import randomise


SHAPES = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 5),
        "regions": st.integers(3, 24),
        "labels": st.integers(2, 9),
        "heads": st.sampled_from([1, 2, 4]),
        "head_dim": st.sampled_from([2, 5, 8]),
        "layers": st.integers(1, 3),
        "seed": st.integers(0, 2**16),
    }
)


@contextmanager
def fast() -> Iterator[None]:
    """All fast paths wherever they are allowed, whatever they cost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_paths_lcm, "folding_pays", lambda *_: True)
        yield


@contextmanager
def grouped() -> Iterator[None]:
    """The fast paths as for a large batch: subject by subject, products head by head."""
    with fast(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_paths_lcm, "GROUP_BYTES", 1)
        patch.setattr(fast_paths_lcm, "LEAST_SIDE_BY_SIDE", 0)
        yield


@contextmanager
def plain() -> Iterator[None]:
    """No fast path."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((attention_lcm, "attention"), (stem_lcm, "stem"), (modeling, "read_out")):
            patch.setattr(module, f"fast_{name}", lambda *_: None)
        yield


def make_model(shape: dict[str, int], dropout: float = 0.0, **overrides: Any) -> LCMForMultitaskPretraining:
    """A model whose biases and norms matter."""
    labels = [str(number) for number in range(shape["labels"])]
    torch.manual_seed(shape["seed"])
    config = LCMConfig(
        num_regions=shape["regions"],
        hidden_size=shape["heads"] * shape["head_dim"],
        num_attention_heads=shape["heads"],
        num_hidden_layers=shape["layers"],
        intermediate_size=12,
        hidden_dropout=0.0,
        activation_dropout=0.0,
        attention_dropout=dropout,
        bei_variables=[
            {"name": "group", "kind": "categorical", "labels": labels, "loss_weight": 1.0},
            {"name": "age", "kind": "continuous", "labels": [], "loss_weight": 0.1},
        ],
        **overrides,
    )
    model = LCMForMultitaskPretraining(config)
    randomise(model)
    return model


def make_batch(shape: dict[str, int], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Symmetric matrices like FC, and labels."""
    connectivity = torch.rand(shape["batch"], shape["regions"], shape["regions"], dtype=dtype) * 2 - 1
    labels = torch.stack([torch.randint(0, shape["labels"], (shape["batch"],)), torch.randn(shape["batch"])], dim=1)
    return {"connectivity": (connectivity + connectivity.mT) / 2, "labels": labels}


def run(model: nn.Module, batch: dict[str, Tensor], path: Callable) -> dict[str, Tensor]:
    """Logits, loss, gradients and batch-norm statistics of one step; the model itself stays as it is."""
    model = deepcopy(model)
    torch.manual_seed(1)  # the same weights are dropped
    with path():
        outputs = model(**batch)
        outputs.loss.backward()
    result = {"logits": outputs.layer_logits, "loss": outputs.loss}
    result |= {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.requires_grad}
    return result | {name: buffer for name, buffer in model.named_buffers() if "running" in name}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """No element further away than `tolerance` of the largest value; gradients are compared on one common scale."""
    assert one.keys() == other.keys()
    gradients = [value for name, value in other.items() if name.startswith("gradient")]
    scale = max(value.abs().max().item() for value in gradients)
    for name, value in one.items():
        assert value is not None, name
        largest = scale if name.startswith("gradient") else other[name].nan_to_num(posinf=0).abs().max().item()
        assert torch.allclose(value, other[name], atol=tolerance * max(largest, 1.0), rtol=tolerance), name


class TestProperties:
    """Fast equals plain over shapes, types and modes."""

    @settings(max_examples=25, deadline=None)
    @given(SHAPES, st.sampled_from([0.0, 0.3]), st.booleans(), st.booleans(), st.sampled_from([fast, grouped]))
    def test_outputs_and_gradients(
        self, shape: dict, dropout: float, training: bool, normalise: bool, path: Callable
    ) -> None:
        # Float64: batch norm over few regions, and layer norm over few channels, magnify float32's rounding at will.
        model = make_model(shape, dropout, normalize_rows=normalise).double().train(training)
        batch = make_batch(shape, torch.float64)
        assert_same(run(model, batch, path), run(model, batch, plain))

    @settings(max_examples=8, deadline=None)
    @given(SHAPES, st.booleans())
    def test_float32(self, shape: dict, training: bool) -> None:
        # As wide as keeps layer norm well-conditioned.
        shape |= {"head_dim": 16, "heads": 2, "regions": shape["regions"] + 20, "batch": shape["batch"] + 2}
        model, batch = make_model(shape, 0.2).train(training), make_batch(shape)
        assert_same(run(model, batch, fast), run(model, batch, plain), 2e-5)

    @settings(max_examples=8, deadline=None)
    @given(SHAPES)
    def test_inference(self, shape: dict) -> None:
        model, batch = make_model(shape).double().eval(), make_batch(shape, torch.float64)
        results = []
        for path in (fast, grouped, plain):
            with torch.no_grad(), path():
                results.append(model(batch["connectivity"]).layer_logits)
        assert torch.allclose(results[0], results[2], atol=1e-10)
        assert torch.allclose(results[1], results[2], atol=1e-10)

    @settings(max_examples=6, deadline=None)
    @given(SHAPES, st.sampled_from([torch.bfloat16, torch.float16]), st.booleans())
    def test_reduced_precision(self, shape: dict, dtype: torch.dtype, autocast: bool) -> None:
        shape |= {"head_dim": 8, "heads": 4, "regions": shape["regions"] + 20}
        model, batch = make_model(shape).eval(), make_batch(shape)
        with torch.no_grad(), plain():
            exact = model(batch["connectivity"]).layer_logits
        model = model if autocast else model.to(dtype)
        errors = []
        for path in (fast, grouped, plain):
            with torch.no_grad(), path(), torch.autocast("cpu", dtype=dtype, enabled=autocast):
                errors.append((model(batch["connectivity"]).layer_logits.float() - exact).abs().max())
        # Both round, neither more than the other.
        assert max(errors[:2]) < 0.05 * exact.abs().max() + 3 * errors[2]

    @settings(max_examples=6, deadline=None)
    @given(SHAPES, st.sampled_from([0.0, 0.3]))
    def test_checkpointing(self, shape: dict, dropout: float) -> None:
        model, batch = make_model(shape, dropout).double().train(), make_batch(shape, torch.float64)
        checkpointed = deepcopy(model)
        checkpointed.activation_checkpointing_enable()
        assert_same(run(checkpointed, batch, fast), run(model, batch, plain))


SHAPE = {"batch": 3, "regions": 12, "labels": 4, "heads": 2, "head_dim": 8, "layers": 2, "seed": 0}


class TestModes:
    """What hangs on a model is honoured."""

    def test_backward_of_folded_attention(self) -> None:
        torch.manual_seed(0)
        shapes = [(2, 3, 2, 4), (2, 5, 8), (2, 4, 8), (2, 4, 8), (2, 4)]
        inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
        assert torch.autograd.gradcheck(lambda *tensors: FoldedAttention.apply(*tensors, 0.0), inputs)

    @pytest.mark.parametrize("order", [[1, 0], [1, 1], [0, 0]])
    @pytest.mark.parametrize("training", [False, True])
    def test_layers_in_another_order(self, order: list[int], training: bool) -> None:
        # Which layer comes first is seen from the states that it gets, not from the layer.
        model, batch = make_model(SHAPE, 0.3).double().train(training), make_batch(SHAPE, torch.float64)
        model.model.layers = nn.ModuleList(model.model.layers[index] for index in order)
        assert_same(run(model, batch, fast), run(model, batch, plain))

    def test_only_expanded_states_are_taken_for_one_row(self) -> None:
        for batch, tokens in ((1, 1), (1, 3), (2, 1), (2, 3)):
            assert once(torch.zeros(1).expand(batch, tokens, 8)).shape == (1, 1, 8)
            other = torch.randn(batch, tokens, 8)
            assert once(other) is other
            of_subjects, of_tokens = torch.randn(tokens, 8).expand(batch + 1, -1, -1), other[:, :1].expand(-1, 4, -1)
            assert once(of_subjects) is of_subjects
            assert once(of_tokens) is of_tokens

    @pytest.mark.parametrize("frozen", ["k_proj", "v_proj", "q_proj", "stem"])
    def test_frozen_parts(self, frozen: str) -> None:
        model, batch = make_model(SHAPE).train(), make_batch(SHAPE)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(frozen not in name)
        assert_same(run(model, batch, fast), run(model, batch, plain))

    @pytest.mark.parametrize("targets", [["q_proj"], ["k_proj", "v_proj"], ["o_proj", "fc1"], "all-linear"])
    @pytest.mark.parametrize("dora", [False, True])
    def test_adapters_equal_their_merged_weights(self, targets: Any, dora: bool) -> None:
        peft = pytest.importorskip("peft")
        model, batch = make_model(SHAPE).eval(), make_batch(SHAPE)
        config = peft.LoraConfig(target_modules=targets, init_lora_weights=False, use_dora=dora)
        adapted = peft.get_peft_model(deepcopy(model), config)
        with torch.no_grad(), fast():
            before = model(batch["connectivity"]).layer_logits
            logits = adapted(batch["connectivity"]).layer_logits
            merged = adapted.merge_and_unload()(batch["connectivity"]).layer_logits
        assert not torch.allclose(before, logits, atol=1e-3)
        assert torch.allclose(logits, merged, atol=1e-5)

    @pytest.mark.parametrize("training", [False, True])
    def test_adapters_get_their_gradients(self, training: bool) -> None:
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], init_lora_weights=False)
        model = peft.get_peft_model(make_model(SHAPE, 0.3), config).train(training)
        batch = make_batch(SHAPE)
        assert_same(run(model, batch, fast), run(model, batch, plain))

    def test_offloaded_weights(self) -> None:
        accelerate = pytest.importorskip("accelerate")
        model, batch = make_model(SHAPE).eval(), make_batch(SHAPE)
        with torch.no_grad(), plain():
            expected = model(batch["connectivity"]).logits
        accelerate.cpu_offload(model, execution_device="cpu")
        with torch.no_grad(), fast():
            assert torch.allclose(model(batch["connectivity"]).logits, expected, atol=1e-5)

    @pytest.mark.parametrize("name", ["self_attn.q_proj", "cross_attn.v_proj"])
    def test_hooks_are_called(self, name: str) -> None:
        model, batch, calls = make_model(SHAPE).eval(), make_batch(SHAPE), []
        model.model.layers[0].get_submodule(name).register_forward_hook(lambda *_: calls.append(name))
        with torch.no_grad(), fast():
            model(batch["connectivity"])
        assert calls == [name]

    def test_export(self) -> None:
        model, batch = make_model(SHAPE).eval(), make_batch(SHAPE)
        inputs = batch["connectivity"]
        with torch.no_grad():
            exported = torch.export.export(
                model,
                (),
                {"connectivity": inputs},
                dynamic_shapes={"connectivity": {0: torch.export.Dim.AUTO}},
                strict=False,
            ).module()
            for people in (inputs, torch.cat([inputs, inputs])):
                expected = model(people).layer_logits
                assert torch.allclose(exported(connectivity=people).layer_logits, expected, atol=1e-5)

    @pytest.mark.slow
    @pytest.mark.skipif(
        torch.backends.cpu.get_cpu_capability() == "DEFAULT", reason="PyTorch compiles vector code all the same"
    )
    @pytest.mark.parametrize("training", [False, True])
    def test_compiled(self, training: bool) -> None:
        model, batch = make_model(SHAPE).train(training), make_batch(SHAPE)
        compiled = torch.compile(deepcopy(model))
        with fast():
            outputs = compiled(**batch)
            outputs.loss.backward()
        gradients = {name.removeprefix("_orig_mod."): p.grad for name, p in compiled.named_parameters()}
        expected = run(model, batch, plain)
        assert torch.allclose(outputs.layer_logits, expected["logits"], atol=1e-4)
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, expected[f"gradient of {name}"], atol=1e-3), name


class TestSavings:
    """The fast paths do less, and keep less."""

    def test_first_layer_is_computed_once_for_all_people(self) -> None:
        model, batch, rows = make_model(SHAPE).eval(), make_batch(SHAPE), []
        layer = model.model.layers[0]
        for module in (layer.self_attn.v_proj, layer.self_attn.o_proj, layer.cross_attn.q_proj):
            module.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].shape[:2]))
        with torch.no_grad():
            model(batch["connectivity"])
        assert rows == [(1, 1), (1, 1), (1, 5)]

    def test_fewer_activations_are_kept(self) -> None:
        shape = {**SHAPE, "batch": 8, "regions": 40}
        model, batch = make_model(shape, 0.1).train(), make_batch(shape)
        kept = {}
        for path in (fast, plain):
            storages: dict[int, int] = {}
            weights = {parameter.data_ptr() for parameter in model.parameters()}

            def pack(tensor: Tensor, storages: dict[int, int] = storages, weights: set[int] = weights) -> Tensor:
                if tensor.untyped_storage().data_ptr() not in weights:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            with path(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                model(**batch)
            kept[path.__name__] = sum(storages.values())
        assert kept["fast"] < 0.55 * kept["plain"]

    def test_base_model_returns_the_states_of_every_layer(self) -> None:
        model, batch = make_model(SHAPE).eval(), make_batch(SHAPE)
        outputs = model.model(batch["connectivity"])
        assert outputs.layer_logits is None
        logits = model.score(outputs.layer_states)[..., 0]
        assert torch.allclose(logits, model(batch["connectivity"]).layer_logits, atol=1e-5)
