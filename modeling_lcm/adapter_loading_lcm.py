"""What is checked when an adapter is loaded onto a base model, and how it is put into it."""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from .configuration_lcm import LCMConfig
from .loading_lcm import file_of, foreign_errors_named, new_name, short_reason, without_weights


ADAPTER_BASE = "adapter_base.json"
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's
NEEDS_PEFT = "Loading an adapter needs PEFT: run `pip install peft`."
# What an adapter leaves alone by its nature, and what its base model is known by.
FINGERPRINTED = re.compile(r"model\.(?:layers|stem(?:\.[^.]+)?\.proj|bei_embeddings)\.")
_WRAPPERS = {"base_layer", "original_module", "token_adapter"}  # where PEFT keeps what it has wrapped


def refuse_adapter_alone(place: Any, **hub: Any) -> None:
    """Explain why an adapter's folder could not be loaded as a model; quiet about anything else.

    Args:
        place: Folder or Hub repository whose weights were not found.
        **hub: `revision`, `token`, `cache_dir`.

    Raises:
        ValueError: It is an adapter.
    """
    file = file_of(place, ADAPTER_CONFIG, **(hub | {"local_files_only": True}))  # Transformers has looked for it
    if file is None:
        return
    above = Path(place).resolve().parent
    done = f" Here that has been done: load {above}." if (above / "config.json").is_file() else ""
    raise ValueError(
        f"{place} is an adapter of the base model {_recorded_base(file)}, not a whole model: load it with "
        "modeling_lcm.load_adapter. For from_pretrained, and for packed weights (LCMPackedConfig), merge it into its "
        f"base first (merge_and_unload(), then save_pretrained).{done}"
    )


def check_adapter(model: PreTrainedModel, adapter: str | os.PathLike, **hub: Any) -> LCMConfig | None:
    """Compare an adapter with the base model onto which it is about to be loaded.

    Args:
        model: The base, possibly with other adapters injected into it.
        adapter: Folder or Hub repository of the adapter.
        **hub: `revision`, `token`, `cache_dir`, of the adapter.

    Returns:
        The configuration saved with the adapter; None for one that PEFT saved without.

    Raises:
        ValueError: It was made for another vocabulary, other regions, another size or other weights; both are named.
    """
    if file_of(adapter, "config.json", **hub) is None:
        return None
    config = LCMConfig.from_pretrained(str(adapter), **hub)
    file = file_of(adapter, ADAPTER_CONFIG, **hub)
    recorded, chosen = file and _recorded_base(file), model.name_or_path
    check_architecture(config, model.config, adapter, recorded, chosen)
    check_weights(model, adapter, recorded, chosen, **hub)
    return config


def check_architecture(config: LCMConfig, base: Any, adapter: Any, recorded: str | None, chosen: str | None) -> None:
    """Raise `ValueError` unless an adapter's configuration and a base's have regions, vocabulary and size in common.

    Args:
        config: Saved with the adapter.
        base: The base model's configuration.
        adapter: Place of the adapter.
        recorded: Base that the adapter was made for.
        chosen: Place of the base.
    """
    for what, ours, theirs in (
        ("regions", config.num_regions, base.num_regions),
        ("vocabulary", _vocabulary(config), _vocabulary(base)),
        ("width", config.hidden_size, base.hidden_size),
        ("number of layers", config.num_hidden_layers, base.num_hidden_layers),
        ("number of heads", config.num_attention_heads, base.num_attention_heads),
        ("feed-forward width", config.intermediate_size, base.intermediate_size),
        ("edge read-out", config.edge_readout, base.edge_readout),
    ):
        if ours != theirs:
            raise ValueError(
                f"The adapter {adapter} was made for the base model {recorded}, not for {chosen}, which has another "
                f"{what}: {ours} in the adapter, {theirs} in the base."
            )


def check_weights(model: PreTrainedModel, adapter: Any, recorded: str | None, chosen: str | None, **hub: Any) -> None:
    """Raise `ValueError` unless a base has the weights that an adapter was made for; arguments as above.

    Quantised and offloaded weights, and weights of another precision, cannot be compared and pass, and so does an
    adapter saved by PEFT alone.
    """
    expected = read_base_record(adapter, **hub)
    is_packed = getattr(model, "is_quantized", False) or any(tensor.is_meta for tensor in model.parameters())
    if expected is None or is_packed:
        return
    if str(model.dtype) != expected.get("dtype", str(torch.float32)):
        return
    found = base_fingerprint(model)
    if found != expected["weights_sha256"]:
        raise ValueError(
            f"The adapter {adapter} was made for the base model {recorded} (weights {expected['weights_sha256'][:12]})"
            f", but {chosen} has other weights ({found[:12]})."
        )
    others = expected.get("others_sha256", {})
    tensors = fingerprints(model, others)
    differing = [name for name in others if tensors.get(name) != others[name]]
    if differing:
        raise ValueError(
            f"The adapter {adapter} was made for the base model {recorded}, but {chosen} has another "
            f"{', '.join(differing[:3])}{f' and {len(differing) - 3} more' if len(differing) > 3 else ''}."
        )


def read_base_record(adapter: Any, **hub: Any) -> dict[str, Any] | None:
    """Content of `adapter_base.json`: the weights that an adapter was made for; None where it has none.

    Args:
        adapter: Folder or Hub repository of the adapter.
        **hub: `revision`, `token`, `cache_dir`.

    Raises:
        ValueError: It is damaged.
    """
    file = file_of(adapter, ADAPTER_BASE, **hub)
    if file is None:
        return None
    content = _read_json(file)
    others = content.get("others_sha256", {})
    hashes = [content.get("weights_sha256"), *(others.values() if isinstance(others, dict) else [None])]
    if not all(isinstance(each, str) and re.fullmatch("[0-9a-f]{64}", each) for each in hashes):
        raise ValueError(f"{file} is damaged: it has no SHA-256 of the base's weights.")
    return content


def _read_json(file: str) -> dict[str, Any]:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no table")
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is damaged ({short_reason(error)}).") from error
    return content


def read_settings(adapter: Any, **hub: Any) -> Any:
    """PEFT's configuration of an adapter.

    Args:
        adapter: Folder or Hub repository of the adapter.
        **hub: `revision`, `token`, `cache_dir`.

    Raises:
        ValueError: It is damaged, or of a method that the installed PEFT does not know.
        ImportError: PEFT is not installed.
    """
    try:  # also, Transformers asks for every import of remote code that is not guarded
        from peft import PeftConfig
    except ImportError as error:
        raise ImportError(NEEDS_PEFT) from error
    with foreign_errors_named(f"{adapter}: {ADAPTER_CONFIG} cannot be used"):
        return PeftConfig.from_pretrained(str(adapter), **hub)


def refuse_oversized(settings: Any, weights: dict[str, Any], adapter: Any) -> None:
    """Raise `ValueError` where an adapter's configuration asks for more than its file holds, before PEFT allocates it.

    Args:
        settings: PEFT's configuration.
        weights: Tensors of the file.
        adapter: Place of the adapter.
    """
    largest = max((size for tensor in weights.values() for size in tensor.shape), default=0)
    pattern = getattr(settings, "rank_pattern", None)
    ranks = {"r": settings.to_dict().get("r"), **(pattern if isinstance(pattern, dict) else {})}
    for name, rank in ranks.items():
        if isinstance(rank, int) and rank > largest:
            raise ValueError(
                f"{adapter}: {ADAPTER_CONFIG} has rank {str(rank)[:20]} ({str(name)[:50]}), but no tensor of the "
                f"adapter is larger than {largest}."
            )


@dataclass
class AdapterInfo:
    """What Transformers wants to know of an adapter that was loaded; all is empty, as what does not fit is refused."""

    missing_keys: set[str] = field(default_factory=set)
    unexpected_keys: set[str] = field(default_factory=set)
    mismatched_keys: set[str] = field(default_factory=set)
    error_msgs: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The same as a dictionary."""
        return asdict(self)


def put_adapter(
    model: PreTrainedModel, adapter: str | os.PathLike, name: str, is_trainable: bool, **hub: Any
) -> AdapterInfo:
    """Put an adapter into a model, in place, by PEFT's public functions.

    Args:
        model: The base, possibly with other adapters in it.
        adapter: Folder or Hub repository of the adapter.
        name: What to call it.
        is_trainable: Whether it will be trained further; otherwise the model is left in evaluation mode.
        **hub: `revision`, `token` and the like.

    Raises:
        ValueError: There is one of that name, or its weights do not fit the model.
        ImportError: PEFT is not installed.
    """
    try:
        from peft import inject_adapter_in_model, load_peft_weights, set_peft_model_state_dict
    except ImportError as error:
        raise ImportError(NEEDS_PEFT) from error
    if name in getattr(model, "peft_config", {}):
        raise ValueError(f"There is already an adapter {name!r} on this model: choose another adapter_name.")
    settings = read_settings(adapter, **hub)
    settings.inference_mode = not is_trainable
    renamed = getattr(model, "_checkpoint_conversion_mapping", None)  # names of earlier versions
    weights = load_peft_weights(str(adapter), device="cpu", key_mapping=renamed, **hub)
    refuse_oversized(settings, weights, adapter)
    with foreign_errors_named(f"The adapter {adapter} cannot be put onto this model"):
        inject_adapter_in_model(settings, model, name)
    # Their names are those of a model that PEFT has wrapped; here it is not.
    own = {new_name(key.removeprefix("base_model.model.")): tensor for key, tensor in weights.items()}
    try:
        found: Any = set_peft_model_state_dict(model, own, name)
        problems = [f"not in the model: {key}" for key in found.unexpected_keys]
        # The base's own are all missing.
        problems += [f"not in the file: {key}" for key in found.missing_keys if name in key.split(".")]
    except KeyError as error:  # what is trained whole
        problems = [f"not in the file: {error.args[0]}"]
    except RuntimeError as error:  # torch's, one line for each tensor of another shape
        problems = [line.strip().rstrip(".") for line in str(error).splitlines()[1:]]
    if problems:
        more = f"; and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise ValueError(
            f"The weights of the adapter {adapter} do not fit this model: {'; '.join(problems[:2])}{more}. Load them "
            "into the base and the task that they were made for."
        )
    model._hf_peft_config_loaded = True  # Transformers' methods for adapters then know of it
    if not is_trainable:
        model.eval()
    return AdapterInfo()


@torch.no_grad()
def base_fingerprint(model: PreTrainedModel) -> str:
    """SHA-256 of the pretrained weights that an adapter leaves alone, as float32; the same with and without one.

    Args:
        model: [`LCMForSequenceClassification`], possibly with adapters injected into it.
    """
    digest = hashlib.sha256()
    weights = base_tensors(model)
    for name in sorted(weights):
        if FINGERPRINTED.match(name):
            digest.update(name.encode())
            digest.update(_bytes(weights[name]))
    return digest.hexdigest()


def fingerprints(model: PreTrainedModel, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of single tensors of a base model, by name, as far as it has them."""
    tensors = base_tensors(model)
    return {name: hashlib.sha256(_bytes(tensors[name])).hexdigest() for name in names if name in tensors}


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()


def base_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters and buffers of a base model under the adapters that are injected into it, by their own names."""
    own = without_weights(type(model), model.config).state_dict().keys()
    return {name: tensor for name, tensor in by_own_name(model.state_dict()).items() if name in own}


def by_own_name(tensors: dict[str, Any]) -> dict[str, Any]:
    """Tensors of a model with adapters, those of the base model by the names that they have without."""
    return {".".join(part for part in name.split(".") if part not in _WRAPPERS): tensors[name] for name in tensors}


def _vocabulary(config: LCMConfig) -> str:
    """Variables with their labels, in order: `sex (F, M), age (a number)`."""
    return ", ".join(
        f"{variable['name']} ({', '.join(map(str, variable['labels'])) or 'a number'})"
        for variable in config.bei_variables
    )


def _recorded_base(file: str) -> str | None:
    return _read_json(file).get("base_model_name_or_path")
