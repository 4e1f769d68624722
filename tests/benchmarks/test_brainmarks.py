"""The plugin for Brainmarks: what its models return, and Brainmarks' own checks of them where it is installed."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from scipy.linalg import logm

from modeling_lcm import BEITokenizer, FCFeatureExtractor, LCMConfig, LCMForMultitaskPretraining, LCMProcessor
from tests.conftest import REPOSITORY


PLUGIN = REPOSITORY / "benchmarks" / "brainmarks_plugin"
INSTALLED = importlib.util.find_spec("brainmarks") is not None


class Embeddings(NamedTuple):
    """Brainmarks' type of an answer."""

    cls_embeds: torch.Tensor | None
    reg_embeds: torch.Tensor | None
    patch_embeds: torch.Tensor | None


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The plugin's module; where Brainmarks is not installed, with the two names that it takes from there."""
    base, registry = ModuleType("brainmarks.models.base"), ModuleType("brainmarks.models.registry")
    base.Embeddings, registry.register_model = Embeddings, lambda function: function
    for name, module in (
        ("brainmarks", ModuleType("brainmarks")),
        ("brainmarks.models", ModuleType("brainmarks.models")),
        ("brainmarks.models.base", base),
        ("brainmarks.models.registry", registry),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("lcm_plugin", PLUGIN / "brainmarks" / "models" / "lcm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


def make_sample(rng: np.random.Generator, regions: int = 400) -> dict[str, Any]:
    """As Brainmarks makes them."""
    bold = torch.from_numpy(rng.standard_normal((160, regions))).float()
    return {"tr": 1.0, "bold": bold, "mean": torch.zeros(1, regions), "std": torch.ones(1, regions)}


def save(folder: Path, regions: int, atlas: str) -> Path:
    """A checkpoint with random weights."""
    tokenizer = BEITokenizer.from_records([{"sex": "F"}, {"sex": "M"}])
    config = LCMConfig.from_size("nano", num_regions=regions, bei_variables=tokenizer.model_variables)
    LCMForMultitaskPretraining(config).save_pretrained(folder)
    LCMProcessor(FCFeatureExtractor(atlas=atlas, num_regions=regions), tokenizer).save_pretrained(folder)
    return folder


def test_log_connectome_is_the_matrix_logarithm(plugin: Any, rng: np.random.Generator) -> None:
    transform, model = plugin.log_connectome_schaefer400()
    sample = make_sample(rng, 12)
    batch = {"connectivity": transform(sample)["connectivity"][None]}
    truth = logm(0.9 * np.corrcoef(sample["bold"].numpy().T) + 0.1 * np.eye(12))[np.triu_indices(12, 1)]
    embeddings = model(batch)
    assert embeddings.reg_embeds is None
    np.testing.assert_allclose(embeddings.cls_embeds.numpy(), truth[None, None], atol=1e-4)


def test_checkpoint_answers_as_itself(plugin: Any, rng: np.random.Generator, tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint", 400, "schaefer-400-17networks")
    transform, model = plugin.lcm_schaefer400(ckpt_path=folder)
    batch = {"connectivity": torch.stack([transform(make_sample(rng))["connectivity"] for _ in range(2)])}
    embeddings = model(batch)
    with torch.no_grad():
        own = LCMForMultitaskPretraining.from_pretrained(folder).eval()(connectivity=batch["connectivity"]).logits
    torch.testing.assert_close(embeddings.cls_embeds[:, 0], own, atol=1e-5, rtol=1e-5)
    assert embeddings.cls_embeds.shape == (2, 1, 2)
    assert embeddings.reg_embeds.shape == (2, 2, 64)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("regions", "atlas"), [(116, "aal-116"), (400, "schaefer-400")])
def test_other_regions_and_another_order_are_refused(regions: int, atlas: str, plugin: Any, tmp_path: Path) -> None:
    folder = save(tmp_path / "checkpoint", regions, atlas)
    with pytest.raises(
        ValueError, match=rf"{regions} regions of {atlas}; Brainmarks has .*order of 17 networks"
    ) as error:
        plugin.lcm_schaefer400(ckpt_path=folder)
    assert len(str(error.value)) < 400 + len(str(folder))


@pytest.mark.skipif(not INSTALLED, reason="needs Brainmarks: pip install brainmarks (with a PyTorch of its choice)")
def test_brainmarks_own_checks(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{PLUGIN}{os.pathsep}{REPOSITORY}"}
    command = [sys.executable, "-m", "brainmarks.models.test_models", "lcm_schaefer400", "log_connectome"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout
