"""Graphs of whole models: torch.export with any batch size, ONNX, and compilation without a break."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining, LCMForSequenceClassification, LCMModel
from modeling_lcm.edges_lcm import matrix_logarithm
from modeling_lcm.logarithm_lcm import logarithm_by_products
from tests.conftest import NEEDS_RECENT_TORCH, randomise


MakeConfig = Callable[..., LCMConfig]
MakeConnectivity = Callable[..., Tensor]

# Wide and of many regions: cross-attention folds as soon as a graph is made. Read-outs and tasks, one by one.
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "folding": {"hidden_size": 128, "num_attention_heads": 2, "num_regions": 40},
    "eager": {"attn_implementation": "eager"},
    "best layer": {"supervision": "adaptive"},
    "max": {"readout": "max"},
    "last layer": {"readout": "last_layer"},
    "rows normalised": {"normalize_rows": True},
    "pretrained task": {"task_variable": "state"},
    "regression": {"num_labels": 1},
    "edges": {"edge_readout": True},
}


def make_model(make_config: MakeConfig, settings: dict[str, Any], kind: type = LCMForSequenceClassification) -> Any:
    """Model in evaluation mode with weights that all matter."""
    model = kind(make_config(**{"num_labels": 3, "num_hidden_layers": 2, **settings}))
    randomise(model)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "edge" in name:
                weight.normal_(std=0.1)
    return model.eval()


def read_out(outputs: Any) -> Tensor:
    """What a model is used for."""
    return outputs.logits if "logits" in outputs else outputs.last_hidden_state


def export(model: torch.nn.Module, connectivity: Tensor, strict: bool = False) -> torch.nn.Module:
    """Exported program for batches of 2 to 64."""
    batch = torch.export.Dim("batch", min=2, max=64)
    shapes = {"connectivity": {0: batch}}
    return torch.export.export(
        model, (), {"connectivity": connectivity}, dynamic_shapes=shapes, strict=strict
    ).module()


@NEEDS_RECENT_TORCH
class TestExport:
    @pytest.mark.parametrize("name", SETTINGS)
    def test_takes_any_batch(self, make_config: MakeConfig, make_connectivity: MakeConnectivity, name: str) -> None:
        model = make_model(make_config, SETTINGS[name])
        people = make_connectivity(40, model.config.num_regions)
        with torch.no_grad():
            program = export(model, people[:6])
            for batch in (people[:2], people[:3], people):
                torch.testing.assert_close(
                    program(connectivity=batch).logits, model(batch).logits, atol=1e-5, rtol=1e-5
                )

    @pytest.mark.parametrize("kind", [LCMModel, LCMForMultitaskPretraining])
    def test_the_other_models(self, make_config: MakeConfig, make_connectivity: MakeConnectivity, kind: type) -> None:
        model, people = make_model(make_config, {}, kind), make_connectivity(9)
        with torch.no_grad():
            program = export(model, people[:4])
            found, expected = (read_out(called(connectivity=people)) for called in (program, model))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_with_gradients_and_strictly(self, make_config: MakeConfig, make_connectivity: MakeConnectivity) -> None:
        model, people = make_model(make_config, {"supervision": "adaptive"}), make_connectivity(9)
        program = export(model, people[:4], strict=True)
        torch.testing.assert_close(program(connectivity=people).logits, model(people).logits, atol=1e-5, rtol=1e-5)

    def test_leaves_the_model_as_it_was(self, make_config: MakeConfig, make_connectivity: MakeConnectivity) -> None:
        """Tensors made for a graph hold no data, and must not be kept for later calls."""
        variables = [{"name": "site", "kind": "categorical", "labels": list("abcde"), "loss_weight": 1.0}]
        model = make_model(make_config, {"readout": "max", "num_labels": 5, "bei_variables": variables})
        people, labels = make_connectivity(4), torch.tensor([0, 4, 2, 1])
        with torch.no_grad():
            export(model, people)
        model.train()(people, labels=labels).loss.backward()
        assert model.score.weight.grad.isfinite().all()

    def test_training_after_inference_mode(self, make_config: MakeConfig, make_connectivity: MakeConnectivity) -> None:
        variables = [{"name": "site", "kind": "categorical", "labels": list("abcdef"), "loss_weight": 1.0}]
        model = make_model(make_config, {"num_labels": 6, "bei_variables": variables})
        people, labels = make_connectivity(4), torch.tensor([0, 5, 2, 1])
        with torch.inference_mode():
            model(people, labels=labels)
        model.train()(people, labels=labels).loss.backward()
        assert model.score.weight.grad.isfinite().all()


@NEEDS_RECENT_TORCH
class TestOnnx:
    @pytest.mark.parametrize(
        "name",
        ["plain", *(pytest.param(name, marks=pytest.mark.slow) for name in ("folding", "best layer", "max", "edges"))],
    )
    def test_onnx_runtime_agrees(
        self, make_config: MakeConfig, make_connectivity: MakeConnectivity, tmp_path: Path, name: str
    ) -> None:
        pytest.importorskip("onnxscript", reason="exports to ONNX need onnx and onnxscript")
        runtime = pytest.importorskip("onnxruntime")
        model = make_model(make_config, SETTINGS[name])
        people = make_connectivity(40, model.config.num_regions)
        shapes = {"connectivity": {0: torch.export.Dim("batch", min=2, max=64)}}
        with torch.no_grad():
            program = torch.onnx.export(
                model, (), kwargs={"connectivity": people[:6]}, dynamic_shapes=shapes, dynamo=True, verbose=False
            )
        program.save(str(tmp_path / "model.onnx"))
        session = runtime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
        for batch in (people[:2], people[:3], people):
            logits = session.run(None, {"connectivity": batch.numpy()})[0]
            with torch.no_grad():
                np.testing.assert_allclose(logits, model(batch).logits.numpy(), atol=1e-4, rtol=1e-4)

    def test_the_former_exporter(
        self, make_config: MakeConfig, make_connectivity: MakeConnectivity, tmp_path: Path
    ) -> None:
        runtime = pytest.importorskip("onnxruntime")
        path, names = tmp_path / "model.onnx", {"input_names": ["connectivity"], "output_names": ["logits"]}
        axes = {"connectivity": {0: "batch"}, "logits": {0: "batch"}}
        people = make_connectivity(9)
        with torch.no_grad():
            model = make_model(make_config, {"normalize_rows": True})
            torch.onnx.export(model, (people[:4],), path, dynamo=False, dynamic_axes=axes, **names)
            logits = runtime.InferenceSession(path).run(["logits"], {"connectivity": people.numpy()})[0]
            np.testing.assert_allclose(logits, model(people).logits.numpy(), atol=1e-4, rtol=1e-4)
            model = make_model(make_config, {"edge_readout": True})
            with pytest.raises(ValueError, match="pass dynamo=True"):
                torch.onnx.export(model, (people[:4],), path, dynamo=False, dynamic_axes=axes, **names)

    @pytest.mark.parametrize("regions", [2, 12, 120])
    @pytest.mark.parametrize("shrinkage", [0.05, 0.2, 0.9])
    def test_logarithm_by_products(self, make_connectivity: MakeConnectivity, regions: int, shrinkage: float) -> None:
        """The logarithm that needs no eigenvalues equals the one by eigenvalues, for FC of too few volumes too."""
        connectivity = make_connectivity(3, regions, volumes=30).double()
        mixed = (1 - shrinkage) * connectivity + shrinkage * torch.eye(regions, dtype=torch.float64)
        expected = matrix_logarithm(connectivity, shrinkage)
        torch.testing.assert_close(logarithm_by_products(mixed, shrinkage / 2), expected, atol=1e-9, rtol=1e-9)

    @pytest.mark.parametrize("eigenvalue", [1e-4, 0.0, -0.1])
    def test_logarithm_of_what_is_no_correlation(self, eigenvalue: float) -> None:
        """Out of its range it gives no number, rather than a wrong one; others of the batch keep theirs."""
        matrices = torch.eye(6).repeat(2, 1, 1)
        matrices[1, 5, 5] = eigenvalue
        logarithm = logarithm_by_products(matrices, 0.1)
        assert logarithm[0].abs().max() < 1e-6
        assert logarithm[1].isnan().all()


@NEEDS_RECENT_TORCH
class TestCompiled:
    """One graph, labels included; what the C++ compiler makes of it is among the slow tests of the fast paths."""

    @pytest.mark.parametrize(
        ("supervision", "training"),
        [("momentum", False), ("adaptive", True), ("adaptive_per_sample", True), ("last_layer", False)],
    )
    def test_with_labels(
        self, make_config: MakeConfig, make_connectivity: MakeConnectivity, supervision: str, training: bool
    ) -> None:
        off = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}
        settings = {"supervision": supervision, "bei_loss_weight": 0.5, "edge_readout": True, **off}
        people, targets = make_connectivity(8), torch.tensor([[0.0, 1.0, 0.3], [-100.0, 0.0, -1.2]]).repeat(4, 1)
        torch.compiler.reset()
        losses, gradients = [], []
        for compiled in (True, False):
            torch.manual_seed(0)
            model = make_model(make_config, settings).train(training)
            called = torch.compile(model, fullgraph=True, backend="eager") if compiled else model
            loss = called(people, labels=torch.arange(8) % 3, bei_targets=targets).loss
            loss.backward()
            losses.append(loss.detach())
            gradients.append(model.score.weight.grad)
        torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)

    def test_the_multitask_model(self, tiny_config: LCMConfig, connectivity: Tensor, labels: Tensor) -> None:
        torch.compiler.reset()
        model = LCMForMultitaskPretraining(tiny_config).eval()
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        expected = model(connectivity, labels=labels)
        found = compiled(connectivity, labels=labels)
        torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
