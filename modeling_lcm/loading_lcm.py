"""What is checked when weights are loaded or saved, so that what does not fit is an error with a name."""

import copy
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import cached_file


MANY = 4  # tensors that an error names
# Packages whose errors are sentences: this one, wherever it was installed, and those that stand beside it in a clone.
OURS = {__name__.partition(".")[0], "training", "conversion", "hub_cards"}
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
        ValueError: Tensors are missing, left over or (unless they may) of another shape; the first ones are named.
    """
    wanted = saved = set(head_modules(model))
    if saved_as is not type(model):
        saved = set(head_modules(without_weights(saved_as, model.config)))
    missing = [key for key in info["missing_keys"] if key.split(".")[0] not in wanted - saved]
    extra = [key for key in info["unexpected_keys"] if key.split(".")[0] not in saved - wanted]
    if missing or extra or info["error_msgs"]:
        raise ValueError(
            f"These weights do not fit {type(model).__name__} (saved as {saved_as.__name__}): "
            f"missing {_some(missing)}, not in the model {_some(extra)}. {' '.join(info['error_msgs'])}".rstrip()
        )
    shapes = [
        f"{name} is {tuple(saved_shape)} in the file and {tuple(shape)} in the model"
        for name, saved_shape, shape in sorted(info["mismatched_keys"])
    ]
    if shapes and not may_differ:
        more = f"; and {len(shapes) - MANY} more" if len(shapes) > MANY else ""
        raise ValueError(
            f"These weights do not fit {type(model).__name__}: {'; '.join(shapes[:MANY])}{more}. Load "
            "them with the configuration that they were saved with, or pass ignore_mismatched_sizes=True to start "
            "these tensors anew."
        )
    return sorted(
        {key.split(".")[0] for key in info["missing_keys"]} | {entry[0] for entry in info["mismatched_keys"]}
    )


def _some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MANY} more" if len(names) > MANY else ""
    return f"{sorted(names)[:MANY]}{more}"


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


@contextmanager
def foreign_errors_named(sentence: str) -> Iterator[None]:
    """Turn what other libraries raise into one sentence; our own errors, which are sentences, pass.

    Args:
        sentence: What it means here, without a full stop; the reason is put behind it.

    Raises:
        ValueError: Another library raised something.
    """
    try:
        yield
    except ImportError:  # says what to install
        raise
    except Exception as error:  # each library has its own
        last = error.__traceback__
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        raiser = last.tb_frame.f_globals.get("__name__", "") if last is not None else ""
        if isinstance(error, (ValueError, OSError)) and raiser.partition(".")[0] in OURS:
            raise
        raise ValueError(f"{sentence} ({short_reason(error)}).") from error


def short_reason(error: Exception) -> str:
    """The beginning of what an error says, in one line of printable characters."""
    text = "".join(letter for letter in " ".join(str(error).split()) if letter.isprintable())
    return text[:200] or type(error).__name__


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


def file_of(place: Any, name: str, **hub: Any) -> str | None:
    """Where a file of a folder or a Hub repository is; None without one, or without the repository in reach."""
    try:
        return cached_file(str(place), name, **hub)
    except OSError:
        return None
