"""Which adapters (PEFT) are exact on this model; the others are refused by name. Needs no PEFT."""

from typing import Any

import torch
from torch import nn


# Methods that would be wrong or fail, by PEFT's name of them.
_METHODS = {
    "LILY": "its router averages over the batch, so that subjects would change each other's results",
    "POLY": "it picks its weights subject by subject, and BEI tokens are shared by the whole batch",
    "SHADOW": "it calls the base model by itself, with the inputs of a language model",
    "XLORA": "it scales adapters by the tokens of a text",
}
# Settings of LoRA, likewise.
_SETTINGS = {
    "alora_invocation_tokens": "they are looked for in a text",
    "arrow_config": "it routes the tokens of a text",
    "layer_replication": "the copies of a layer share its weights, so that merging them would be wrong",
}
_MIXED = (
    "adapter_names: a batch of a Large Connectome Model has one adapter, because tokens, running means and the choice "
    "of layers are an adapter's and not a subject's. Predict each adapter's subjects by themselves, after "
    "modeling_lcm.use_adapter(model, name) or model.set_adapter(name)."
)


def refuse_inexact(model: nn.Module, settings: dict[str, Any]) -> None:
    """Raise `ValueError` for adapters whose results would be wrong.

    Args:
        model: The model that PEFT has put them into.
        settings: PEFT's configurations, by adapter.
    """
    _refuse_methods(settings)
    _refuse_tokens_of_linears(model)
    if not any(config.inference_mode for config in settings.values()):  # loaded weights are yet to come
        _refuse_zero_lengths(model)


def _refuse_methods(settings: dict[str, Any]) -> None:
    for config in settings.values():
        method = str(getattr(config.peft_type, "value", config.peft_type))
        reasons = {f"{name} of {method}": why for name, why in _SETTINGS.items() if getattr(config, name, None)}
        reasons |= {method: _METHODS[method]} if method in _METHODS else {}
        for what, why in reasons.items():
            raise ValueError(
                f"{what} (PEFT) is not for Large Connectome Models: {why}. Load the base model anew, and adapt it "
                "with another method, such as LoRA, DoRA or IA3."
            )


def _refuse_tokens_of_linears(model: nn.Module) -> None:
    """PEFT takes a Linear with trainable tokens for a read-out that shares an embedding's weights, without a bias."""
    for name, module in model.named_modules():
        if hasattr(module, "trainable_tokens_delta") and not isinstance(module.base_layer, nn.Embedding):
            raise ValueError(
                f"Trainable tokens (PEFT) are rows of an embedding, and {name.removesuffix('.token_adapter')} is "
                "none. Load the base model anew, and name bei_embeddings or task_embeddings."
            )


def _refuse_zero_lengths(model: nn.Module) -> None:
    """DoRA divides by the length of weights; the edge read-outs' are zero before they are trained."""
    found = [
        name.partition(".lora_magnitude_vector.")[0]
        for name, tensor in model.named_parameters()
        if ".lora_magnitude_vector." in name and not tensor.is_meta and not tensor.all()
    ]
    if found:
        raise ValueError(
            f"DoRA divides by the length of weights, and those of {', '.join(found)} are zero before training. Load "
            f"the base model anew, and leave them out with exclude_modules={found}, or use LoRA."
        )


def refuse_mixed_batch(adapter_names: list[str] | None) -> None:
    """Raise `ValueError` where `adapter_names` ask for more than one adapter in a batch."""
    if adapter_names is not None:
        raise ValueError(_MIXED)


def check_adapters(model: nn.Module) -> None:
    """Refuse adapters that are not exact, and batches that are meant for several of them, before anything is computed.

    Args:
        model: A model, with or without adapters.

    Raises:
        ValueError: There are such.
    """
    settings = model.__dict__.get("peft_config")
    if not settings or torch.compiler.is_compiling():
        return
    _refuse_methods(settings)
    if any(config.inference_mode for config in settings.values()):
        _refuse_untrained(model)
    asked = None
    for module in model.modules():
        for key, hook in list(module._forward_pre_hooks.items()):
            if "adapter_names" in getattr(hook, "keywords", {}):
                asked = hook.keywords["adapter_names"]  # type: ignore[attr-defined]
                # PEFT would leave its hook behind when this call fails, and every later one would fail as well.
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)
    refuse_mixed_batch(asked)


def _refuse_untrained(model: Any) -> None:
    """Raise `ValueError` where an adapter was loaded that does not bring what the base model lacks."""
    uses_choice = model.config.effective_readout == "best_layer"
    left = [
        name
        for name in sorted(model.__dict__.get("untrained", ()))
        if not hasattr(getattr(model, name), "modules_to_save")
        and (uses_choice or any(True for _ in getattr(model, name).parameters()))
    ]
    if left:
        raise ValueError(
            f"{', '.join(left)}: neither the base model nor the adapter brings them, and they are untrained. Load an "
            "adapter with modeling_lcm.load_adapter, or its base model with **modeling_lcm.adapter_task(adapter), and "
            "save it with modeling_lcm.save_adapter."
        )


def refuse_unmerged(model: nn.Module) -> None:
    """Raise `ValueError` for a model in which adapters are, and whose tensors therefore have other names."""
    found = [name for name in model.state_dict() if {"base_layer", "modules_to_save"} & set(name.split("."))]
    if found:
        raise ValueError(
            f"This model holds adapters ({found[0]} and the like), and would not load again from what save_pretrained "
            "writes. Save the adapter with modeling_lcm.save_adapter, or the result of merge_and_unload()."
        )
