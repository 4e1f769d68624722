"""Adapters (PEFT) of a pretrained model, one small folder a cohort: loaded, stacked on one base, switched.

An adapter changes the network, but what its answers mean is not PEFT's business. So its folder also holds
`config.json` (the task: labels, kind, tokens, read-out, and all other settings of the model), `processor/` (atlas,
definition of FC, vocabulary) and `adapter_base.json` (which weights it was made for). The processor has a folder of
its own because PEFT takes a tokenizer beside an adapter for a request to enlarge the base's vocabulary. PEFT itself is
imported when needed. Saving is in `adapter_saving_lcm.py`.
"""

import copy
import os
import warnings
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import logging

from .adapter_loading_lcm import (
    by_own_name,
    check_adapter,
    check_architecture,
    check_weights,
    read_base_record,
    read_settings,
    refuse_oversized,
)
from .configuration_lcm import LCMConfig
from .loading_lcm import check_place, file_of, foreign_errors_named, head_modules, new_name, without_weights
from .modeling_lcm import LCMForSequenceClassification
from .processing_lcm import LCMProcessor


PROCESSOR_FOLDER = "processor"
IN_BASE = "base_model.model."  # where PEFT's files place the base model's tensors
# What the base's weights decide on; all other settings are an adapter's own.
_OF_BASE = {
    "num_regions",
    "bei_variables",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "edge_readout",
    "edge_shrinkages",
    "edge_bias",
    "atlases",
    "closed_form",
}
# What modules take over when they are made, and predictions depend on: the same for all adapters of one base model.
_MADE_WITH = ("normalize_rows", "edge_shrinkage", "layer_norm_eps", "batch_norm_eps", "dtype")
_OF_A_FILE = {"_name_or_path", "architectures", "auto_map", "dtype", "model_type", "transformers_version"}


def adapter_task(adapter: str | os.PathLike, **hub: Any) -> dict[str, Any]:
    """Arguments of `from_pretrained` with which a base model gets the task of an adapter.

    Args:
        adapter: Folder or Hub repository of the adapter.
        **hub: `revision`, `token`, `cache_dir` and the like.

    Returns:
        Task variable, kind, labels, read-out, and every other setting that is not fixed by the base's weights.

    Example:
        `AutoPeftModelForSequenceClassification.from_pretrained("me/adapter", **adapter_task("me/adapter"))`

    Raises:
        ValueError: The folder has no `config.json` of a task.
    """
    config = _adapter_config(adapter, **hub)
    own = {field.name for field in fields(LCMConfig)} - {field.name for field in fields(PreTrainedConfig)} - _OF_BASE
    return {name: getattr(config, name) for name in ("problem_type", "id2label", "label2id", *sorted(own))}


def load_adapter(
    adapter: str | os.PathLike, base: str | os.PathLike | None = None, **hub: Any
) -> tuple[Any, LCMProcessor]:
    """Load an adapter onto its base model, ready to predict as it did when it was saved.

    Args:
        adapter: Folder or Hub repository of the adapter.
        base: Its base model, if that lies elsewhere than where the adapter says.
        **hub: `revision`, `token`, `cache_dir` and the like, of the adapter.

    Returns:
        A `PeftModel` in evaluation mode, and its processor.

    Raises:
        ValueError: The base has another vocabulary, other regions or other weights than the one that the adapter was
            made for, or is not there; both are named. Or tensors are in neither of them.
        FileNotFoundError: There is no such adapter.
        ImportError: PEFT is not installed.
    """
    config = _adapter_config(adapter, **hub)
    settings, weights = _read(adapter, **hub)
    recorded = settings.base_model_name_or_path
    if base is None and not recorded:
        raise ValueError(f"The adapter {adapter} does not say what its base model is: give its place (base).")
    chosen = str(recorded if base is None else base)
    revision = {"revision": settings.revision} if chosen == recorded and settings.revision else {}
    origin = {name: value for name, value in hub.items() if name in ("token", "cache_dir")} | revision
    try:
        check_place(chosen)
        base_config = LCMConfig.from_pretrained(chosen, **origin)
    except OSError as error:
        raise ValueError(
            f"The base model {chosen} of the adapter {adapter} is not within reach: give its place, as a folder or a "
            f"repository ({str(error).strip().splitlines()[0]})."
        ) from error
    check_architecture(config, base_config, adapter, recorded, chosen)
    model, new = _load_base(chosen, config, base_config, **origin)
    check_weights(model, adapter, recorded, chosen, **hub)
    _require_all(new - own_names(weights), adapter)
    settings.base_model_name_or_path = chosen
    peft_model = attach(model, settings, weights, "default", adapter)
    model.adapter_configs = {"default": config}
    model.adapter_modules = {"default": head_modules(model)}
    model.new_modules = {name.split(".")[0] for name in new}
    return peft_model, LCMProcessor.from_pretrained(str(adapter), subfolder=PROCESSOR_FOLDER, **hub)


def attach(model: Any, settings: Any, weights: dict[str, Tensor], name: str, origin: Any) -> Any:
    """Put an adapter onto a model.

    Args:
        model: The base model, or a `PeftModel` around it.
        settings: PEFT's configuration of the adapter.
        weights: Its tensors, as in its file.
        name: What it is called there.
        origin: What it is called in an error.

    Returns:
        The `PeftModel`, in evaluation mode.

    Raises:
        ValueError: Tensors are missing or left over.
    """
    from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    refuse_oversized(settings, weights, origin)
    with without_peft_warning(), foreign_errors_named(f"The adapter {origin} cannot be put onto this model"):
        if isinstance(model, PeftModel):
            model.add_adapter(name, settings)
        else:
            model = get_peft_model(model, settings, adapter_name=name)
        # A copy: some releases of PEFT take tensors out of what they are given.
        result: Any = set_peft_model_state_dict(model, dict(weights), adapter_name=name)
        expected = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    missing = _magnitudes(without_repetitions(expected)) - _magnitudes(weights)
    _require_all({name for name in missing if not own_names({name: None}) <= own_names(weights)}, origin)
    if result.unexpected_keys:
        raise ValueError(
            f"The adapter {origin} has tensors that the model has not: {some_of(result.unexpected_keys)}."
        )
    model.get_base_model().untrained = []
    return model.eval()


def stack_adapter(model: Any, adapter: str | os.PathLike, name: str, **hub: Any) -> LCMProcessor:
    """Load one more adapter, of whatever task, onto a base that carries one already; [`use_adapter`] switches.

    Args:
        model: From [`load_adapter`].
        adapter: Folder or Hub repository of the other adapter.
        name: What to call it.
        **hub: As for [`load_adapter`].

    Returns:
        The other adapter's processor.

    Raises:
        ValueError: The name is taken or a module's, or the adapter was made for another base, or changes the base.
    """
    inner = model.get_base_model()
    if name in model.peft_config:
        raise ValueError(f"There is already an adapter {name!r} on this model: choose another name.")
    if any(name in path.split(".") for path, _ in inner.named_modules()):
        raise ValueError(f"{name!r} is also the name of a part of the model: call the adapter something else.")
    config = _adapter_config(adapter, **hub)
    check_adapter(inner, adapter, **hub)
    settings, weights = _read(adapter, **hub)
    _check_stackable(inner, config, settings, adapter, **hub)
    fitting = _modules_that_fit(inner, config)
    missing = [name for name in fitting if name in inner.new_modules and not _has_module(weights, name)]
    _require_all(missing, adapter)
    in_use = head_modules(inner)
    _put(inner, fitting)
    try:
        attach(model, settings, weights, name, adapter)
        inner.adapter_modules[name] = head_modules(inner)
    except Exception:  # raised again: the model is left as it was
        if name in model.peft_config:
            model.delete_adapter(name)
        raise
    finally:
        _put(inner, in_use)
    inner.adapter_configs[name] = config
    return LCMProcessor.from_pretrained(str(adapter), subfolder=PROCESSOR_FOLDER, **hub)


def use_adapter(model: Any, name: str) -> None:
    """Switch a model to one of its adapters: weights, tokens, labels and read-out.

    Args:
        model: From [`load_adapter`], with others stacked on it.
        name: "default" for the first one.

    Raises:
        ValueError: There is no adapter of that name.
    """
    inner = model.get_base_model()
    if name not in inner.adapter_configs:
        raise ValueError(f"There is no adapter {name!r}; there are {', '.join(inner.adapter_configs)}.")
    for setting, value in inner.adapter_configs[name].to_dict().items():
        if setting not in _OF_A_FILE:
            setattr(inner.config, setting, value)
    inner.num_labels = inner.config.num_labels
    for module in inner.adapter_modules[name].values():
        module.to(inner.device)  # what was not in use has not been moved with the rest
    _put(inner, inner.adapter_modules[name])
    model.set_adapter(name)
    model.eval()


def _load_base(place: str, config: LCMConfig, base: LCMConfig, **hub: Any) -> tuple[Any, set[str]]:
    """A base model with the settings of an adapter, and the names of tensors that it lacks, which are random."""
    chosen = copy.deepcopy(config)
    chosen.architectures = base.architectures
    with expected_new_weights():
        model, info = LCMForSequenceClassification.from_pretrained(
            place,
            config=chosen,
            dtype=config.dtype or torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **hub,
        )
    return model, {*info["missing_keys"], *(name for name, *_ in info["mismatched_keys"])}


def _adapter_config(adapter: str | os.PathLike, **hub: Any) -> LCMConfig:
    check_place(adapter)
    if file_of(adapter, "config.json", **hub) is None:  # Transformers would take the default configuration
        raise ValueError(
            f"{adapter} is no adapter of a Large Connectome Model: it has no config.json with its task, or "
            "is not within reach. Save adapters with modeling_lcm.save_adapter."
        )
    return LCMConfig.from_pretrained(str(adapter), **hub)


def _read(adapter: str | os.PathLike, **hub: Any) -> tuple[Any, dict[str, Tensor]]:
    """PEFT's configuration and the tensors of an adapter, also of one saved by an earlier version."""
    from peft import load_peft_weights

    settings = read_settings(adapter, **hub)
    try:
        found = without_repetitions(load_peft_weights(str(adapter), device="cpu", **hub))
    except SafetensorError as error:
        raise ValueError(
            f"The weights of the adapter {adapter} cannot be read ({error}): the file is truncated or damaged. "
            "Download or copy it again."
        ) from error
    weights = {
        IN_BASE + new_name(name.removeprefix(IN_BASE)) if name.startswith(IN_BASE) else name: tensor
        for name, tensor in found.items()
    }
    for field in ("modules_to_save", "target_modules"):
        if isinstance(getattr(settings, field, None), (list, set)):
            kind = type(getattr(settings, field))
            renamed = [new_name(f"{module}.").removesuffix(".") for module in getattr(settings, field)]
            setattr(settings, field, kind(dict.fromkeys(renamed)))
    # PEFT once saved the edge read-outs whole because their names ended in `score`.
    more = sorted({name.removeprefix(IN_BASE).split(".")[0] for name in weights.keys() - found.keys()})
    if more and getattr(settings, "modules_to_save", None) is not None:
        settings.modules_to_save = list(dict.fromkeys([*settings.modules_to_save, *more]))
    return settings, weights


def without_repetitions(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """An adapter's tensors without the copies of biases that PEFT adds where all are trained (`bias="all"`)."""
    copies = {"modules_to_save", "original_module"}
    return {name: tensor for name, tensor in weights.items() if not copies & set(name.split("."))}


def own_names(weights: dict[str, Any]) -> Set[str]:
    """Names of an adapter's tensors; those of the base model as they are there."""
    return by_own_name({name.removeprefix(IN_BASE): tensor for name, tensor in weights.items()}).keys()


def _magnitudes(names: Any) -> set[str]:
    """DoRA's magnitudes have two spellings."""
    return {name.removesuffix(".weight") if "lora_magnitude_vector" in name else name for name in names}


def _require_all(missing: Any, origin: Any) -> None:
    if missing:
        raise ValueError(
            f"{some_of(missing)} are neither in the adapter {origin} nor in its base model, so that predictions would "
            "come from random numbers. Save the adapter again, with modeling_lcm.save_adapter."
        )


def some_of(names: Any) -> str:
    """The first names, and how many more there are."""
    listed = sorted(name.removeprefix(IN_BASE) for name in names)
    more = f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    return ", ".join(listed[:3]) + more


def _check_stackable(inner: Any, config: LCMConfig, settings: Any, adapter: Any, **hub: Any) -> None:
    """Raise `ValueError` for an adapter that cannot share a base model with others."""
    for name in _MADE_WITH:
        ours, theirs = getattr(config, name), getattr(inner.config, name)
        if ours != theirs:
            raise ValueError(
                f"The adapter {adapter} was made with {name}={ours}, the model that it is stacked on with {theirs}: "
                "load it by itself, with load_adapter."
            )
    changes = (read_base_record(adapter, **hub) or {}).get("changes_base", False)
    if changes or not hasattr(settings, "modules_to_save"):
        raise ValueError(
            f"The adapter {adapter} ({settings.peft_type.value}) changes weights of its base model, which other "
            "adapters share: load it by itself, with load_adapter."
        )


def _modules_that_fit(inner: Any, config: LCMConfig) -> dict[str, nn.Module]:
    """Head modules for an adapter's task: those that the base model has, and new ones for what it has not."""
    fitting = {}
    for name, module in head_modules(without_weights(LCMForSequenceClassification, config)).items():
        known = inner.adapter_modules["default"].get(name)
        if known is not None and name not in inner.new_modules:
            fitting[name] = known
            continue
        fitting[name] = module.to_empty(device=inner.device).to(inner.dtype)
        for tensor in module.state_dict().values():
            tensor.zero_()
    return fitting


def _has_module(weights: dict[str, Tensor], name: str) -> bool:
    return any(key.startswith(f"{IN_BASE}{name}.") for key in weights)


def _put(inner: Any, modules: dict[str, nn.Module]) -> None:
    """Make these the head modules of a model."""
    for name in head_modules(inner).keys() - modules.keys():
        delattr(inner, name)
    for name, module in modules.items():
        setattr(inner, name, module)


@contextmanager
def expected_new_weights() -> Iterator[None]:
    """Silence Transformers' report of new weights where they are meant to be new; what is not new is still checked."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def without_peft_warning() -> Iterator[None]:
    """Silence what Transformers says of a property's old name, which PEFT still uses: nobody else can change it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        yield
