"""What is checked of a checkpoint's or an adapter's files before anything is made of them.

They may come from anywhere. Only this package's own classes are built, and code beside the weights is never run.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from modeling_lcm import BEITokenizer, FCFeatureExtractor, LCMConfig, LCMProcessor
from modeling_lcm.adapter_loading_lcm import ADAPTER_CONFIG
from modeling_lcm.limits_lcm import TrainingLimits
from modeling_lcm.loading_lcm import check_place, file_of

from .manifest import CARDS, CHECKSUMS, is_inside, read_checksums, require_intact


MODEST = 10_000_000  # weights, for which there is memory anywhere
PROCESSOR_CONFIG = "processor_config.json"
# Settings that name a class, and the one of ours that they may name.
OWN = {
    "model_type": LCMConfig.model_type,
    "processor_class": LCMProcessor.__name__,
    "tokenizer_class": BEITokenizer.__name__,
    "feature_extractor_type": FCFeatureExtractor.__name__,
}
NAMING = ("config.json", PROCESSOR_CONFIG, "preprocessor_config.json", "tokenizer_config.json")


def check_files(place: str) -> None:
    """Check that files are as they were written, and for this package's classes.

    Args:
        place (`str`): folder or Hub repository of a checkpoint or an adapter.

    Raises:
        ValueError: a file has changed since it was written, is damaged, or asks for foreign code; names the file.
        FileNotFoundError: a folder that is not there.
    """
    check_place(place)
    if Path(place).is_dir():
        require_intact(place, unread=("adapter/",))
    else:
        _require_intact_repository(place)
    for name in (*NAMING, *(f"processor/{name}" for name in NAMING)):
        _refuse_foreign_classes(place, name)
    names = weight_files(place)
    if read_settings_file(place, "config.json"):
        with _damage_named(place, "the settings in config.json"):
            config = LCMConfig.from_pretrained(place)
        _refuse_larger_than_weights(place, config, names)
    megatron = read_settings_file(place, ADAPTER_CONFIG).get("megatron_config")
    if megatron is not None:
        raise ValueError(f"{place}: {ADAPTER_CONFIG} asks for a module of its own (megatron_config); nothing was run.")


def check_adapter_files(adapter: str, base: str | None = None) -> None:
    """Check an adapter's files as [`check_files`] does, and those of its base model, if that is within reach.

    Args:
        adapter (`str`): folder or Hub repository.
        base (`str`, *optional*): its base model; default: where the adapter says.
    """
    check_files(adapter)
    base = base or read_settings_file(adapter, ADAPTER_CONFIG).get("base_model_name_or_path")
    with suppress(FileNotFoundError):  # whoever loads it says so, and which adapter needs it
        if isinstance(base, str) and base:
            check_files(base)


def load_own_processor(place: str) -> LCMProcessor:
    """The processor in a folder or Hub repository, by this package's classes whatever its files name.

    Transformers' Auto classes would look for the code that a checkpoint names.

    Raises:
        ValueError: its files are damaged.
        OSError: they are not there.
    """
    with _damage_named(place, "the processor's files"):
        processor = LCMProcessor(FCFeatureExtractor.from_pretrained(place), BEITokenizer.from_pretrained(place))
        processor.limits = TrainingLimits.load(place)
    return processor


@contextmanager
def _damage_named(place: str, what: str) -> Iterator[None]:
    """Turn whatever libraries say of damaged files into a sentence."""
    try:
        yield
    except OSError as error:
        if not Path(place).is_dir():
            raise
        raise ValueError(f"{place}: {what} are damaged or missing ({_short(error)}).") from error
    except Exception as error:  # each library has its own, and some raise plain TypeError or KeyError
        raise ValueError(f"{place}: {what} cannot be used ({_short(error)}).") from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:250] or type(error).__name__


def weight_files(place: str) -> list[str]:
    """Names of the weights' files of a checkpoint: what its index names, or the one file.

    Raises:
        ValueError: the index is damaged, or names files outside the folder.
    """
    index = read_settings_file(place, SAFE_WEIGHTS_INDEX_NAME)
    if not index:
        return [SAFE_WEIGHTS_NAME]
    names = index.get("weight_map")
    names = list(names.values()) if isinstance(names, dict) else [None]
    if not all(isinstance(name, str) and is_inside(name) and "/" not in name for name in names):
        raise ValueError(f"{place}: {SAFE_WEIGHTS_INDEX_NAME} is damaged, or names files outside the folder.")
    return sorted(set(names))


def _refuse_larger_than_weights(place: str, config: LCMConfig, names: list[str]) -> None:
    """Raise `ValueError` where a configuration describes more than its files hold, before memory is taken for it."""
    width, inner = config.hidden_size, config.intermediate_size
    described = config.num_hidden_layers * (4 * width**2 + 2 * width * inner) + config.num_regions * width
    if described < MODEST:
        return
    paths = [file_of(place, name) for name in names]
    held = sum(Path(path).stat().st_size for path in paths if path is not None)  # bytes: at least as many as weights
    if all(paths) and described > MODEST + 8 * held:  # packed weights have four bits
        raise ValueError(
            f"{place}: config.json describes far more weights than its files hold "
            f"({held / 1e6:.1f} MB): one of them is of another checkpoint."
        )


@torch.no_grad()
def refuse_broken_weights(model: nn.Module, place: str) -> None:
    """Raise `ValueError` for weights that are NaN or infinite, and for negative variances: they predict nothing."""
    moments = {name: tensor for name, tensor in model.named_buffers() if "running_" in name and "loss" not in name}
    for name, tensor in {**dict(model.named_parameters()), **moments}.items():
        if not tensor.sum(dtype=torch.float64).isfinite():
            raise ValueError(f"{place}: {name} holds NaN or infinite values; the checkpoint is broken.")
        if name.endswith("running_var") and (tensor < 0).any():
            raise ValueError(f"{place}: {name} has negative variances; the checkpoint is broken.")


def read_settings_file(place: str, name: str) -> dict[str, Any]:
    """Content of a JSON file of a folder or a Hub repository; empty where it has none.

    Raises:
        ValueError: it is damaged.
    """
    path = Path(place) / name if Path(place).is_dir() else file_of(place, name)
    if path is None or not Path(path).is_file():
        return {}
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no table of settings")
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{place}: {name} is damaged ({' '.join(str(error).split())[:100]}).") from error
    return content


def _refuse_foreign_classes(place: str, name: str) -> None:
    settings = read_settings_file(place, name)
    nested = settings.get("feature_extractor")
    for part in (settings, nested if isinstance(nested, dict) else {}):
        for key, own in OWN.items():
            if part.get(key) not in (None, own):
                raise ValueError(
                    f"{place} is no Large Connectome Model of this package: {name} says {key} {part[key]!r}, not "
                    f"{own!r}. Nothing of it was run."
                )


def repository_folder(repo_id: str, repo_type: str = "model", revision: str | None = None) -> Path | None:
    """The files of a Hub repository that its checksums list, downloaded; None where it has none within reach."""
    try:
        listed = hf_hub_download(repo_id, CHECKSUMS, repo_type=repo_type, revision=revision)
    except (EntryNotFoundError, RepositoryNotFoundError, HfHubHTTPError, HFValidationError, OSError):
        return None
    names = [name for name in read_checksums(Path(listed).parent) or () if name not in CARDS]
    return Path(snapshot_download(repo_id, repo_type=repo_type, revision=revision, allow_patterns=[CHECKSUMS, *names]))


def downloaded(repo_id: str, repo_type: str, revision: str) -> Path:
    """The files of a Hub repository that its checksums list, which it must have.

    Raises:
        FileNotFoundError: it is meant as a folder, and there is none.
        ValueError: it is not within reach, or has no checksums.
    """
    check_place(repo_id)
    found = repository_folder(repo_id, repo_type, revision)
    if found is None:
        raise ValueError(f"{repo_id} is neither a folder, nor a repository within reach that has checksums.")
    return found


def _require_intact_repository(repo_id: str) -> None:
    folder = repository_folder(repo_id)
    if folder is not None:
        # Without a network there is what was downloaded before; what is lacking cannot be loaded either.
        absent = tuple(name for name in read_checksums(folder) or () if not (folder / name).is_file())
        require_intact(folder, unread=absent)
