"""What is checked when weights or adapters are loaded, so that what does not fit is an error with a name."""

import copy
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import cached_file

from .configuration_lcm import LCMConfig


ADAPTER_BASE = "adapter_base.json"
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's
# What an adapter leaves alone by its nature, and what its base model is known by.
FINGERPRINTED = ("model.layers.", "model.stem.proj.", "model.bei_embeddings.")
_WRAPPERS = {"base_layer", "original_module", "token_adapter"}  # where PEFT keeps what it has wrapped
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
# Parts that had another name in folders of earlier versions, as patterns of their tensors' names.
RENAMED = {r"^edge_score\.": "bei_edge_readout.", r"^task_edge_score\.": "task_edge_readout."}
# Settings that a model reads when it is built and never again: changed later, they no longer describe it.
BUILT_IN = (
    "num_regions",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "layer_norm_eps",
    "batch_norm_eps",
    "normalize_rows",
    "edge_readout",
    "edge_shrinkage",
    "edge_shrinkages",
    "edge_bias",
    "atlases",
)


def new_names(model: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Give tensors of an earlier version their new names, in place; a hook of `load_state_dict`.

    Args:
        model: What they are about to be loaded into.
        state_dict: Tensors of a whole model, or of one around this.
        prefix: Where this model's tensors stand in it.
        *args: The hook's other arguments.
    """
    for name in [name for name in state_dict if name.startswith(prefix)]:
        state_dict[prefix + new_name(name.removeprefix(prefix))] = state_dict.pop(name)


def new_name(name: str) -> str:
    """The name that a tensor has today."""
    for pattern, replacement in RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return name


def head_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules outside the base model, by name; none of [`LCMModel`], which is the base model."""
    children: dict[str, nn.Module] = dict(model.named_children())
    base = children.pop(str(model.base_model_prefix), None)
    return {} if base is None else children


def without_weights(kind: type[PreTrainedModel], config: Any) -> PreTrainedModel:
    """A model of a class whose tensors have names and shapes, but no memory."""
    with torch.device("meta"):
        return kind(copy.deepcopy(config))


def check_loaded(
    model: PreTrainedModel, info: dict[str, Any], may_differ: bool, saved_as: type[PreTrainedModel]
) -> list[str]:
    """Compare what a weights file holds with what a model needs.

    What the head of one class has and that of the other lacks may be new, or is left aside.

    Args:
        model: The model that was loaded.
        info: Transformers' loading information.
        may_differ: Whether tensors may have another shape than in the file; they then start anew.
        saved_as: Class of the model that was saved.

    Returns:
        Modules of the head that start anew.

    Raises:
        ValueError: Tensors are missing, left over or (unless they may) of another shape; each is named.
    """
    wanted = saved = set(head_modules(model))
    if saved_as is not type(model):
        saved = set(head_modules(without_weights(saved_as, model.config)))
    missing = [key for key in info["missing_keys"] if key.split(".")[0] not in wanted - saved]
    extra = [key for key in info["unexpected_keys"] if key.split(".")[0] not in saved - wanted]
    if missing or extra or info["error_msgs"]:
        raise ValueError(
            f"These weights do not fit {type(model).__name__} (saved as {saved_as.__name__}): "
            f"missing {sorted(missing)}, not in the model {sorted(extra)}. {' '.join(info['error_msgs'])}".rstrip()
        )
    shapes = [
        f"{name} is {tuple(saved_shape)} in the file and {tuple(shape)} in the model"
        for name, saved_shape, shape in sorted(info["mismatched_keys"])
    ]
    if shapes and not may_differ:
        raise ValueError(
            f"These weights do not fit {type(model).__name__}: {'; '.join(shapes)}. Load them with the configuration "
            "that they were saved with, or pass ignore_mismatched_sizes=True to start these tensors anew."
        )
    return sorted(
        {key.split(".")[0] for key in info["missing_keys"]} | {entry[0] for entry in info["mismatched_keys"]}
    )


def check_saveable(model: PreTrainedModel, built: dict[str, Any], state_dict: dict[str, Any] | None) -> None:
    """Check before anything is written that what is saved will load again, and be the same model.

    Args:
        model: The model that is about to be saved.
        built: Settings of [`BUILT_IN`] as they were when it was built.
        state_dict: Weights given in place of its own.

    Raises:
        ValueError: The configuration was changed in what the model does not follow or `config.json` cannot hold, or
            `state_dict` does not have exactly the model's tensors; each difference is named.
    """
    model.config.check_saveable()
    now = {name: getattr(model.config, name) for name in built}
    changed = [f"{name} from {old} to {now[name]}" for name, old in built.items() if now[name] != old]
    task = getattr(model, "task_embeddings", None)
    for embeddings, name in ((model.get_input_embeddings(), "num_bei_tokens"), (task, "num_task_tokens")):
        wanted = getattr(model.config, name)
        if type(embeddings) is nn.Embedding and embeddings.num_embeddings != wanted:  # not a wrapper of PEFT's
            changed.append(f"{name} from {embeddings.num_embeddings} to {wanted}")
    if changed:
        raise ValueError(
            f"The configuration and this model no longer fit together ({', '.join(changed)}): it would load as "
            "another model. Set back what was changed after it was built, or build one of the configuration."
        )
    if state_dict is not None and not getattr(model, "_hf_peft_config_loaded", False):
        own = model.state_dict().keys()
        if own != state_dict.keys():
            raise ValueError(
                f"state_dict does not fit {type(model).__name__}: missing {sorted(own - state_dict.keys())}, "
                f"not in the model {sorted(state_dict.keys() - own)}."
            )


@contextmanager
def without_load_report() -> Iterator[None]:
    """Leave Transformers' table of missing tensors out of its log; [`check_loaded`] says the same, and refuses."""
    theirs = logging.getLogger("transformers.modeling_utils")

    def is_other(record: logging.LogRecord) -> bool:
        return " LOAD REPORT" not in str(record.msg)

    theirs.addFilter(is_other)
    try:
        yield
    finally:
        theirs.removeFilter(is_other)


def hub_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Those of some arguments of `from_pretrained` that say where on the Hub to look."""
    return {name: given[name] for name in HUB_ARGUMENTS if given.get(name) is not None}


def check_place(place: str | os.PathLike) -> None:
    """Refuse a folder that is not there before the Hub is asked for it, which takes minutes without a network.

    Args:
        place: Folder or Hub repository.

    Raises:
        FileNotFoundError: It can only be meant as a folder (it starts with ".", "/" or "~", has more than one "/", or
            lies in a folder that exists), and there is none.
    """
    name, parent = str(place), Path(place).parent
    starts_local = name.startswith((".", "~")) or Path(name).is_absolute()
    is_local = starts_local or name.count("/") > 1 or (parent != Path() and parent.is_dir())
    if is_local and not Path(name).exists():
        raise FileNotFoundError(f"There is no folder {name}{_nearest(Path(name))}.")


def _nearest(path: Path) -> str:
    """How far a path leads, for an error message."""
    found = next((parent for parent in path.parents if parent.is_dir()), None)
    return f" ({path.relative_to(found)} is not in {found.resolve()})" if found else ""


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
    file = cached_file(str(adapter), ADAPTER_BASE, _raise_exceptions_for_missing_entries=False, **hub)
    if file is None or getattr(model, "is_quantized", False) or any(tensor.is_meta for tensor in model.parameters()):
        return
    expected = json.loads(Path(file).read_text(encoding="utf-8"))
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
    try:  # also, Transformers asks for every import of remote code that is not guarded
        from peft import PeftConfig, inject_adapter_in_model, load_peft_weights, set_peft_model_state_dict
    except ImportError as error:
        raise ImportError("Loading an adapter needs PEFT: run `pip install peft`.") from error
    if name in getattr(model, "peft_config", {}):
        raise ValueError(f"There is already an adapter {name!r} on this model: choose another adapter_name.")
    settings = PeftConfig.from_pretrained(str(adapter), **hub)
    settings.inference_mode = not is_trainable
    renamed = getattr(model, "_checkpoint_conversion_mapping", None)  # names of earlier versions
    weights = load_peft_weights(str(adapter), device="cpu", key_mapping=renamed, **hub)
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
        if name.startswith(FINGERPRINTED):
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


def file_of(place: Any, name: str, **hub: Any) -> str | None:
    """Where a file of a folder or a Hub repository is; None without one, or without the repository in reach."""
    try:
        return cached_file(str(place), name, _raise_exceptions_for_missing_entries=False, **hub)
    except OSError:
        return None


def _recorded_base(file: str) -> str | None:
    return json.loads(Path(file).read_text(encoding="utf-8")).get("base_model_name_or_path")
