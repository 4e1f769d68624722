"""Saving an adapter (PEFT) so that it loads as it is: whatever differs from the base model is in its folder.

PEFT saves what it has made. Training also changes what it has not: running means, the choice of layers, a new task's
tokens where nobody named them. So the base model's file is read once more and compared, tensor by tensor, and modules
that differ are saved with the adapter. Then what would be saved is put onto the base and compared with the model,
before anything is written. All unchanged weights are shared with the model: there is never a second copy of them.
"""

import copy
import json
import os
import tempfile
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from .adapter_loading_lcm import ADAPTER_BASE, FINGERPRINTED, base_fingerprint, base_tensors, by_own_name, fingerprints
from .adapters_lcm import IN_BASE, PROCESSOR_FOLDER, attach, own_names, some_of, without_repetitions
from .configuration_lcm import LCMConfig
from .loading_lcm import check_place, file_of, new_name, without_weights
from .modeling_lcm import LCMForSequenceClassification
from .processing_lcm import LCMProcessor


logger = logging.get_logger("transformers.models.lcm")

_FORMAT = {"format": "pt"}
_ROUNDING = 1e-3  # of predictions, relative to the largest; adapters that are not loaded as they were differ by more
_ROUNDING_HALF = 5e-2
_INSTEAD = "Save the merged model instead: merge_and_unload(), then save_pretrained."


def save_adapter(model: Any, processor: LCMProcessor, folder: str | os.PathLike) -> None:
    """Save the active adapter of a `PeftModel` with all that a stranger needs to load and understand it.

    The base model is read again to compare with, from where the model came from. A base model that is in memory alone
    can only be told by its layers: then all the rest is saved with the adapter.

    Args:
        model: A `PeftModel` around [`LCMForSequenceClassification`].
        processor: The processor with the task.
        folder: Where to.

    Raises:
        ValueError: It is no such model, no or several adapters are active, or the adapter is merged, disabled, on
            quantised weights, or would not predict as it does when it is loaded. Nothing is written then.
    """
    name = _active_adapter(model)
    inner = model.get_base_model()
    settings = copy.deepcopy(model.peft_config[name])
    settings.base_model_name_or_path = settings.base_model_name_or_path or inner.name_or_path or None
    config = _config_of(inner)
    weights = _adapter_weights(model, name)
    # Saving does not change what a run draws afterwards.
    with torch.random.fork_rng(devices=[inner.device] if inner.device.type == "cuda" else []):
        changed, new = _differences(inner, settings)
        base = _base_model(inner, changed, new)
        fingerprint: dict[str, Any] = {"weights_sha256": base_fingerprint(base), "dtype": str(base.dtype)}
        fingerprint["changes_base"] = _add_what_differs(inner, changed.keys(), new, settings, weights)
        saved = own_names(weights)
        others = [key for key in base.state_dict() if key not in saved and not FINGERPRINTED.match(key)]
        fingerprint["others_sha256"] = fingerprints(base, others)
        _check_that_it_loads(model, name, base, settings, weights)

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    # DoRA's magnitudes by their whole name: PEFT leaves `.weight` off, and Transformers' loader starts them anew.
    whole = {f"{key}.weight" if key.endswith("lora_magnitude_vector") else key: weights[key] for key in weights}
    save_file(whole, target / "adapter_model.safetensors", _FORMAT)
    _write_settings(settings, inner, target)
    config.save_pretrained(target)
    processor.save_pretrained(str(target / PROCESSOR_FOLDER))
    (target / ADAPTER_BASE).write_text(json.dumps(fingerprint, indent=2) + "\n", encoding="utf-8")


def _active_adapter(model: Any) -> str:
    from peft import PeftModel

    if not isinstance(model, PeftModel) or not isinstance(model.get_base_model(), LCMForSequenceClassification):
        inside = f" around {type(model.get_base_model()).__name__}" if isinstance(model, PeftModel) else ""
        raise ValueError(
            f"save_adapter needs a PeftModel around LCMForSequenceClassification (peft.get_peft_model makes one), got "
            f"{type(model).__name__}{inside}."
        )
    status = model.get_model_status()
    if len(status.active_adapters) != 1:
        active = ", ".join(map(str, status.active_adapters)) or "none"
        raise ValueError(f"One adapter has to be active to be saved, active are: {active}. model.set_adapter(name).")
    if status.merged_adapters or status.enabled is not True:
        state = "merged into its base: call unmerge_adapter()" if status.merged_adapters else "disabled: enable it"
        raise ValueError(f"The adapter {status.active_adapters[0]!r} is {state} before it is saved.")
    if getattr(model.get_base_model(), "is_quantized", False):
        raise ValueError(
            "The base model is quantised, and the adapter would be loaded onto the weights as they were before, with "
            "other predictions: train it on the base model without quantization_config."
        )
    return str(status.active_adapters[0])


def _config_of(inner: LCMForSequenceClassification) -> LCMConfig:
    """A copy of the model's configuration, with the type that its weights have.

    Raises:
        ValueError: It could not be read from a file again.
    """
    config = copy.deepcopy(inner.config)
    config.dtype = inner.dtype
    config.architectures = [type(inner).__name__]
    with tempfile.TemporaryDirectory() as temporary:
        config.save_pretrained(temporary)
        LCMConfig.from_pretrained(temporary)
    return config


def _differences(inner: LCMForSequenceClassification, settings: Any) -> tuple[dict[str, Tensor], set[str]]:
    """Tensors of the base model that are others than the model's, and the names of those that it does not have.

    Of a base model that is nowhere to be found, only the layers count as what it has.
    """
    current, recorded = base_tensors(inner), settings.base_model_name_or_path
    for place in dict.fromkeys(place for place in (inner.name_or_path, recorded) if place):
        revision = {"revision": settings.revision} if place == recorded and settings.revision else {}
        changed, missing = {}, set(current)
        try:
            for name, tensor in _saved_tensors(place, **revision):
                if name not in current or current[name].shape != tensor.shape:
                    continue  # a head that was left aside, or of another task
                missing.discard(name)
                original = tensor.to(current[name].device, current[name].dtype)
                if not torch.equal(original, current[name]):
                    changed[name] = original
        except OSError:
            continue
        return changed, missing
    logger.warning(
        "The base model of this adapter was not loaded from a place within reach: all but its layers is saved with "
        "the adapter. Save the base model as well (save_pretrained), and give its folder to load_adapter."
    )
    return {}, {name for name in current if not FINGERPRINTED.match(name)}


def _saved_tensors(place: str, **hub: Any) -> Iterator[tuple[str, Tensor]]:
    """Read the tensors of a base model one by one, by the names that they have in a task's model."""
    check_place(place)
    inside = "model." if (LCMConfig.from_pretrained(place, **hub).architectures or [""])[0] == "LCMModel" else ""
    index = file_of(place, SAFE_WEIGHTS_INDEX_NAME, **hub)
    shards = {SAFE_WEIGHTS_NAME}
    if index is not None:
        shards = set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values())
    for shard in sorted(shards):
        file = file_of(place, shard, **hub)
        if file is None:
            raise FileNotFoundError(f"{place} has no {shard}.")
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no dictionary)
                yield inside + new_name(name), tensors.get_tensor(name)


def _base_model(
    inner: LCMForSequenceClassification, changed: dict[str, Tensor], new: set[str]
) -> LCMForSequenceClassification:
    """The base model without adapters, which shares all unchanged tensors with the model."""
    base: Any = without_weights(type(inner), inner.config)
    tensors = {name: tensor.detach() for name, tensor in base_tensors(inner).items()}
    tensors |= changed | {name: torch.zeros_like(tensors[name]) for name in new}
    base.load_state_dict(tensors, assign=True)
    return base.eval()


def _adapter_weights(model: Any, name: str) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    # Embedding layers need no rule of their own: they are compared with the base's like all others.
    found = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return {key: tensor.detach().cpu().clone().contiguous() for key, tensor in without_repetitions(found).items()}


def _add_what_differs(
    inner: LCMForSequenceClassification,
    changed: Set[str],
    new: set[str],
    settings: Any,
    weights: dict[str, Tensor],
) -> bool:
    """Add to an adapter the modules that differ from the base model's, in place.

    Args:
        inner: The model with adapters.
        changed: Names of tensors that are others in the base model.
        new: Names of those that it does not have.
        settings: PEFT's configuration; the modules are added to those that are saved whole.
        weights: The adapter's tensors.

    Returns:
        Whether the method itself changes weights of the base model when it starts (PiSSA); they are not added.
    """
    current = base_tensors(inner)
    places = {key: place for key, place in _places(inner).items() if "base_layer" in place.split(".")}
    adapted = places.keys()
    differing = (changed | new) - own_names(weights)
    for module in sorted({key.rpartition(".")[0] for key in differing - adapted}):
        if hasattr(settings, "modules_to_save"):
            settings.modules_to_save = [*(settings.modules_to_save or []), module]
        for key in current:
            if key.rpartition(".")[0] == module:
                weights[IN_BASE + key] = current[key].detach().cpu().clone().contiguous()
    for key in differing & adapted & new:  # an adapter on what only the task has
        weights[IN_BASE + places[key]] = current[key].detach().cpu().clone().contiguous()
    trained = {key for key in differing - adapted - new if FINGERPRINTED.match(key)}
    if trained:
        logger.warning("Changed besides the adapter, and saved whole with it: %s.", some_of(trained))
    return bool((differing & adapted) - new)


def _places(inner: nn.Module) -> dict[str, str]:
    """Where a model with adapters keeps the tensors of the base model: their own names, and those in the model."""
    return {next(iter(by_own_name({place: tensor}))): place for place, tensor in inner.state_dict().items()}


def _is_same(first: Tensor, second: Tensor) -> bool:
    if first.data_ptr() == second.data_ptr() and first.shape == second.shape:
        return True
    first, second = (tensor.detach().cpu().double() for tensor in (first, second))
    if first.shape != second.shape:
        return False
    # Some methods compute weights anew when they are loaded, perhaps on another device.
    finite = second[second.isfinite()].abs()
    scale = float(finite.max()) if len(finite) else 1.0
    return torch.allclose(first, second, rtol=1e-4, atol=1e-5 * scale, equal_nan=True)


def _check_that_it_loads(
    model: Any, name: str, base: LCMForSequenceClassification, settings: Any, weights: dict[str, Tensor]
) -> None:
    """Put what is about to be saved onto the base model, and compare.

    Raises:
        ValueError: It cannot be read, or differs from the model; what differs is named.
    """
    method = str(getattr(settings.peft_type, "value", settings.peft_type))
    start = getattr(settings, "init_lora_weights", None)
    method += f", init_lora_weights={start!r}" if isinstance(start, str) else ""
    with tempfile.TemporaryDirectory() as temporary:
        _write_settings(settings, model.get_base_model(), Path(temporary))
        try:
            again = type(settings).from_pretrained(temporary)
            again.base_model_name_or_path = None
            loaded = attach(base, again, weights, name, method)
        except (ValueError, TypeError, KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:150]
            raise ValueError(f"This adapter ({method}) could not be loaded again: {reason}. {_INSTEAD}") from error
    current, found = _as_used(model, name), _as_used(loaded, name)
    differing = [key for key in found if key not in current or not _is_same(current[key], found[key])]
    if differing:
        raise ValueError(
            f"This adapter ({method}) would not load as it is: PEFT does not save {some_of(differing)}, which would "
            f"have other values. {_INSTEAD}"
        )
    _compare_predictions(model, loaded, method)


def _as_used(model: Any, adapter: str) -> dict[str, Tensor]:
    """Tensors by their own names, where an adapter has a copy of a module that copy."""
    shared, copies = {}, {}
    for key, tensor in model.state_dict().items():
        module, is_copy, rest = key.removeprefix(IN_BASE).partition(".modules_to_save.")
        if not is_copy:
            shared[module] = tensor
        elif rest.startswith(f"{adapter}."):
            copies[f"{module}.{rest.removeprefix(f'{adapter}.')}"] = tensor
    return by_own_name(shared) | copies


def _compare_predictions(model: Any, loaded: Any, method: str) -> None:
    """Raise `ValueError` unless both predict alike, and a subject's results are the same in a batch and alone."""
    inner = model.get_base_model()
    generator = torch.Generator().manual_seed(0)
    scans: dict[str, Tensor] = {}
    for atlas, regions in inner.config.atlas_regions.items():
        series = torch.randn(3, regions, 2 * regions + 20, generator=generator)
        scans[atlas] = torch.stack([torch.corrcoef(scan) for scan in series])
    rounding = _ROUNDING if inner.dtype in (torch.float32, torch.float64) else _ROUNDING_HALF
    current, found = _logits(model, scans), _logits(loaded, scans)
    each = ({atlas: part[row : row + 1] for atlas, part in scans.items()} for row in range(3))
    alone = torch.cat([_logits(model, scan) for scan in each])
    tolerance = rounding * max(1.0, float(current.abs().max()))
    for what, other in (("other predictions when it is loaded", found), ("results that depend on the batch", alone)):
        if not torch.allclose(current, other, rtol=0, atol=tolerance, equal_nan=True):
            raise ValueError(f"This adapter ({method}) has {what}, by {(current - other).abs().max():.2g}. {_INSTEAD}")


@torch.no_grad()
def _logits(model: Any, connectivity: dict[str, Tensor]) -> Tensor:
    """Logits of every layer, as predictions are made."""
    device = model.get_base_model().device
    with _evaluating(model):
        given = {atlas: part.to(device) for atlas, part in connectivity.items()}
        return model(connectivity=given).layer_logits.float().cpu()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _write_settings(settings: Any, inner: nn.Module, folder: Path) -> None:
    """PEFT's `adapter_config.json`, for prediction."""
    written = copy.deepcopy(settings)
    written.inference_mode = True
    if getattr(written, "modules_to_save", None) is not None:
        written.modules_to_save = list(dict.fromkeys(written.modules_to_save))  # PEFT adds `score` each time it loads
    classes = {"base_model_class": type(inner).__name__, "parent_library": type(inner).__module__}
    written.save_pretrained(str(folder), auto_mapping_dict=None if written.task_type else classes)
