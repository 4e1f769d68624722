"""PEFT's own tests of adapters, run on our model with every method that tests/ has of ours too."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch

from modeling_lcm import LCMConfig, LCMForSequenceClassification
from tests.peers.sources import import_test_module


# Only asked whether a model is one of theirs.
common = import_test_module("peft", "testing_common", top__diffusers={"StableDiffusionPipeline": type(None)})
utilities = import_test_module("peft", "testing_utils")

PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
METHODS: dict[str, tuple[type, dict[str, Any]]] = {
    "lora": (peft.LoraConfig, {"r": 8, "lora_alpha": 16, "target_modules": PROJECTIONS}),
    "dora": (peft.LoraConfig, {"r": 8, "lora_alpha": 16, "use_dora": True, "target_modules": PROJECTIONS}),
    # A small alpha: with 16, rounding alone exceeds PEFT's tolerance of 1e-6 (1.2e-6 measured).
    "rslora": (peft.LoraConfig, {"r": 8, "lora_alpha": 4, "use_rslora": True, "target_modules": PROJECTIONS}),
    "trainable tokens": (
        peft.LoraConfig,
        {"r": 8, "target_modules": PROJECTIONS, "trainable_token_indices": {"bei_embeddings": [0, 2]}},
    ),
    "ia3": (peft.IA3Config, {"target_modules": PROJECTIONS, "feedforward_modules": ["fc2"]}),
    "loha": (peft.LoHaConfig, {"r": 4, "target_modules": PROJECTIONS}),
    "lokr": (peft.LoKrConfig, {"r": 4, "target_modules": PROJECTIONS}),
    "oft": (peft.OFTConfig, {"oft_block_size": 8, "target_modules": PROJECTIONS}),
    "boft": (peft.BOFTConfig, {"boft_block_size": 8, "target_modules": PROJECTIONS}),
    "vera": (
        peft.VeraConfig,
        {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "save_projection": True},
    ),
    "adalora": (peft.AdaLoraConfig, {"init_r": 4, "total_step": 1, "target_modules": PROJECTIONS}),
}
TESTS = (
    "model_attr",
    "adapter_name",
    "load_model_low_cpu_mem_usage",
    "save_pretrained",
    "save_pretrained_selected_adapters",
    "save_pretrained_adapter_name_substring",
    "from_pretrained_config_construction",
    "load_multiple_adapters",
    "merge_layers_nan",
    "merge_layers",
    "merge_layers_multi",
    "merge_layers_is_idempotent",
    "safe_merge",
    "training",
    "inference_safetensors",
    "training_layer_indexing",
    "training_gradient_checkpointing",
    "peft_model_device_map",
    "delete_adapter",
    "delete_inactive_adapter",
    "delete_unknown_adapter_raises",
    "unload_adapter",
    "weighted_combination_of_adapters",
    "disable_adapter",
    "adding_multiple_adapters_with_bias_raises",
    "lora_conversion",
    "get_base_model_state_dict",
)
# What of these does not apply, and why; tests of text generation and of prompts are not in TESTS at all.
NOT_APPLICABLE = {
    ("rslora", "weighted_combination_of_adapters"): "the test takes the scaling of plain LoRA for granted",
    ("adalora", "save_pretrained_adapter_name_substring"): "AdaLoRA trains one adapter at a time, the test adds two",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved small model, with every weight other than 0."""
    torch.manual_seed(0)
    config = LCMConfig(
        num_regions=10,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        num_labels=3,
        edge_readout=True,
        normalize_rows=True,
    )
    model = LCMForSequenceClassification(config)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return folder


class Scored(LCMForSequenceClassification):
    """Our model, with its logits where PEFT's tests look for them in models of texts."""

    def generate(self, connectivity: torch.Tensor, **kwargs: Any) -> SimpleNamespace:
        """The logits as the scores of a first token."""
        return SimpleNamespace(scores=[self(connectivity).logits])


class TestAdapters(common.PeftCommonTester):
    """Connectomes go through every method."""

    transformers_class = Scored

    def prepare_inputs_for_testing(self) -> dict[str, torch.Tensor]:
        """Connectomes of three subjects."""
        generator = torch.Generator().manual_seed(1)
        series = torch.randn(3, 10, 40, generator=generator)
        return {"connectivity": torch.stack([scan.corrcoef() for scan in series])}

    @pytest.mark.parametrize("test", TESTS)
    @pytest.mark.parametrize("method", METHODS)
    def test_of_peft(self, base: Path, method: str, test: str) -> None:
        if (method, test) in NOT_APPLICABLE:
            pytest.skip(NOT_APPLICABLE[method, test])
        kind, settings = METHODS[method]
        # Weights that change something from the start; PEFT's default is to begin as the base model.
        getattr(self, f"_test_{test}")(str(base), kind, utilities.set_init_weights_false(kind, settings))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("method", METHODS)
    def test_adapter_types(self, base: Path, method: str, dtype: torch.dtype) -> None:
        kind, settings = METHODS[method]
        self._test_add_adapter_no_autocast_adapter_dtype(str(base), kind, dict(settings), dtype=dtype)
