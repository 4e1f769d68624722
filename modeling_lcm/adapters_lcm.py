"""Adapters (PEFT) of a pretrained model, one small folder a cohort: saved, loaded, stacked on one base, switched.

An adapter changes the network, but what its answers mean is not PEFT's business. So its folder also holds
`config.json` (the task: labels, kind, tokens, read-out), `processor/` (atlas, definition of FC, vocabulary) and
`adapter_base.json` (which weights it was made for). The processor has a folder of its own because PEFT takes a
tokenizer beside an adapter for a request to enlarge the base's vocabulary. PEFT itself is imported when needed.
"""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.utils import logging

from .configuration_lcm import LCMConfig
from .edges_lcm import LCMEdgeScore
from .loading_lcm import (
    ADAPTER_BASE,
    base_fingerprint,
    check_adapter,
    check_architecture,
    check_place,
    check_weights,
    file_of,
)
from .modeling_lcm import LCMForSequenceClassification
from .processing_lcm import LCMProcessor


PROCESSOR_FOLDER = "processor"
_TASK_MODULES = ("task_embeddings", "task_edge_score")  # only a task with tokens of its own has them
_FORMAT = {"format": "pt"}
# What a base needs to know of a task; everything else in the adapter's configuration is the base's.
_TASK_FIELDS = ("task_variable", "problem_type", "id2label", "label2id", "supervision", "readout", "bei_loss_weight")


def adapter_task(adapter: str | os.PathLike, **hub: Any) -> dict[str, Any]:
    """Arguments of `from_pretrained` with which a base model gets the task of an adapter.

    Args:
        adapter: Folder or Hub repository of the adapter.
        **hub: `revision`, `token`, `cache_dir` and the like.

    Returns:
        Task variable, kind, labels and read-out.

    Example:
        `AutoPeftModelForSequenceClassification.from_pretrained("me/adapter", **adapter_task("me/adapter"))`

    Raises:
        ValueError: The folder has no `config.json` of a task.
    """
    return _task_of(_adapter_config(adapter, **hub))


def load_adapter(
    adapter: str | os.PathLike, base: str | os.PathLike | None = None, **hub: Any
) -> tuple[Any, LCMProcessor]:
    """Load an adapter onto its base model, ready to predict.

    Args:
        adapter: Folder or Hub repository of the adapter.
        base: Its base model, if that lies elsewhere than where the adapter says.
        **hub: `revision`, `token`, `cache_dir` and the like, of the adapter.

    Returns:
        A `PeftModel` in evaluation mode, and its processor.

    Raises:
        ValueError: The base has another vocabulary, other regions or other weights than the one that the adapter was
            made for, or is not there; both are named.
        FileNotFoundError: There is no such adapter.
        ImportError: PEFT is not installed.
    """
    from peft import PeftConfig, PeftModel

    config = _adapter_config(adapter, **hub)
    settings = PeftConfig.from_pretrained(str(adapter), **hub)
    recorded = settings.base_model_name_or_path
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
    with expected_new_weights():
        model = LCMForSequenceClassification.from_pretrained(chosen, dtype=torch.float32, **_task_of(config), **origin)
    check_weights(model, adapter, recorded, chosen, **hub)
    with without_peft_warning():
        peft_model = PeftModel.from_pretrained(model, str(adapter), **hub).eval()
    model.adapter_configs = {"default": config}
    return peft_model, LCMProcessor.from_pretrained(str(adapter), subfolder=PROCESSOR_FOLDER, **hub)


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
        ValueError: The name is taken, or the adapter was made for another base.
    """
    inner = model.get_base_model()
    if name in model.peft_config:
        raise ValueError(f"There is already an adapter {name!r} on this model: choose another name.")
    config = _adapter_config(adapter, **hub)
    check_adapter(inner, adapter, **hub)
    with _room_for_tokens(inner, config.num_task_tokens):
        model.load_adapter(str(adapter), adapter_name=name, **hub)
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
    for field, value in _task_of(inner.adapter_configs[name]).items():
        setattr(inner.config, field, value)
    inner.num_labels = inner.config.num_labels
    model.set_adapter(name)
    model.eval()


def save_adapter(model: Any, processor: LCMProcessor, folder: str | os.PathLike) -> None:
    """Save the adapter of a `PeftModel` with all that a stranger needs to load and understand it.

    Args:
        model: A `PeftModel` around [`LCMForSequenceClassification`].
        processor: The processor with the task.
        folder: Where to.
    """
    model.save_pretrained(str(folder))
    _name_magnitudes(Path(folder) / "adapter_model.safetensors")
    inner = model.get_base_model()
    config = LCMConfig.from_dict(inner.config.to_dict())
    config.architectures = ["LCMForSequenceClassification"]
    config.save_pretrained(folder)
    processor.save_pretrained(str(Path(folder) / PROCESSOR_FOLDER))
    content = json.dumps({"weights_sha256": base_fingerprint(inner)}, indent=2)
    (Path(folder) / ADAPTER_BASE).write_text(content + "\n", encoding="utf-8")


def _name_magnitudes(path: Path) -> None:
    """Write the names of DoRA's magnitudes out, as PEFT and Transformers both read them.

    PEFT leaves off `.weight`, and `load_adapter` of a Transformers model then starts them anew.
    """
    weights = load_file(path)
    short = [name for name in weights if name.endswith("lora_magnitude_vector")]
    if short:
        save_file({f"{name}.weight" if name in short else name: weights[name] for name in weights}, path, _FORMAT)


def _adapter_config(adapter: str | os.PathLike, **hub: Any) -> LCMConfig:
    check_place(adapter)
    if file_of(adapter, "config.json", **hub) is None:  # Transformers would take the default configuration
        raise ValueError(
            f"{adapter} is no adapter of a Large Connectome Model: it has no config.json with its task, or "
            "is not within reach. Save adapters with modeling_lcm.save_adapter."
        )
    return LCMConfig.from_pretrained(str(adapter), **hub)


def _task_of(config: LCMConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in _TASK_FIELDS}


@contextmanager
def _room_for_tokens(inner: Any, tokens: int) -> Iterator[None]:
    """Let PEFT copy its next adapter's task modules from ones for its number of tokens, not the first adapter's.

    Without tokens of its own the adapter must not see those modules: PEFT goes by the end of a name, and would look
    for weights of `task_edge_score` because the adapter has a `score`.
    """
    device = inner.model.bei_embeddings.weight.device
    present = {name: getattr(inner, name) for name in _TASK_MODULES if hasattr(inner, name)}
    fresh: dict[str, nn.Module] = {}
    if tokens:
        fresh["task_embeddings"] = nn.Embedding(tokens, inner.config.hidden_size, device=device)
        if inner.config.edge_readout:
            fresh["task_edge_score"] = LCMEdgeScore(inner.config, tokens).to(device)
    # What PEFT has wrapped keeps an original beside the adapters' copies, and new copies are made of that.
    originals = {name: wrapper.original_module for name, wrapper in present.items()}
    for name, wrapper in present.items():
        if name in fresh:
            wrapper.original_module = fresh[name]
        else:
            delattr(inner, name)
    for name in fresh.keys() - present.keys():
        setattr(inner, name, fresh[name])
    try:
        yield
    finally:
        for name, wrapper in present.items():
            wrapper.original_module = originals[name]
            setattr(inner, name, wrapper)


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
