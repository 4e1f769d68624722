"""Checks before anything is uploaded: the folder loads strictly, computes, and its metadata are what the Hub reads."""

from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import DatasetCard, ModelCard, RepoCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining, LCMForSequenceClassification, LCMModel, load_adapter
from modeling_lcm.configuration_lcm import SIZES
from training.data.cohort import load_cohort
from training.storage.checked_files import check_adapter_files, check_files, load_own_processor

from .bundle import Bundle, code_files, code_place


CLASSES = {kind.__name__: kind for kind in (LCMModel, LCMForMultitaskPretraining, LCMForSequenceClassification)}


def check_model(folder: Path, size: str | None = None) -> None:
    """Load a checkpoint strictly and run it once.

    Args:
        folder (`Path`): checkpoint folder.
        size (`str`, *optional*): named size that it has to have.

    Raises:
        ValueError: it does not load, is of another size, or its output is not finite.
    """
    check_files(str(folder))
    config = LCMConfig.from_pretrained(folder)
    if size is not None:
        for name, value in SIZES[size].items():
            if getattr(config, name) != value:
                raise ValueError(f"This is not the size {size}: {name} is {getattr(config, name)}, needed is {value}.")
    name = (config.architectures or [""])[0]
    if name not in CLASSES:
        raise ValueError(f"config.json names the class {name!r}; needed is one of {', '.join(CLASSES)}.")
    missing = [file for file in code_files(folder) if not (code_place(folder) / file).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks the code {', '.join(sorted(missing))}, so that it would not load without the package: "
            "save model and processor again with save_pretrained."
        )
    model = CLASSES[name].from_pretrained(folder).eval()
    _run_once(model, folder, config)


@torch.no_grad()
def _run_once(model: torch.nn.Module, folder: Path, config: LCMConfig) -> None:
    processor = load_own_processor(str(folder))
    processor.check_config(config)
    generator = torch.Generator().manual_seed(0)
    volumes = max(40, processor.feature_extractor.min_volumes)
    scans: Any = {
        name: torch.randn(2, volumes, regions, generator=generator).numpy()
        for name, regions in config.atlas_regions.items()
    }
    batch = processor(time_series=scans if len(scans) > 1 else next(iter(scans.values())), return_tensors="pt")
    outputs = model(connectivity=batch["connectivity"])
    if not outputs[0].isfinite().all():
        raise ValueError(f"{folder}: the model's output is not finite for two random scans; do not publish it.")


def check_adapter(folder: Path) -> None:
    """Load an adapter onto its base model, and run it once.

    Raises:
        ValueError: the base model is not there or has other weights, or the output is not finite.
    """
    check_adapter_files(str(folder))
    check_files(str(folder.parent))
    _run_once(load_adapter(folder)[0], folder.parent, LCMConfig.from_pretrained(folder.parent))


def check_dataset(folder: Path) -> None:
    """Load a prepared data set; raises as `training.data.load_cohort` does, or `ValueError` where it is empty."""
    if not len(load_cohort(folder).table):
        raise ValueError(f"The data set {folder} has no scans.")


def check_card(bundle: Bundle) -> dict[str, Any]:
    """Read the card as the Hub does, without a network.

    Returns:
        The metadata.

    Raises:
        ValueError: metadata that the Hub could not read, or would read as something else.
    """
    text = bundle.readme
    try:
        card: RepoCard = DatasetCard(text) if bundle.kind == "dataset" else ModelCard(text)
        metadata = yaml.safe_load(card.data.to_yaml())
        # The results must survive the Hub's own reading and writing of them.
        if "model-index" in metadata:
            name, read = model_index_to_eval_results(metadata["model-index"])
            if len(read) != len(getattr(card.data, "eval_results", None) or []) or not name:
                raise ValueError("the results in model-index do not read back")
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(f"The card's metadata are not valid: {error}") from error
    if not metadata.get("license") or not card.text.strip():
        raise ValueError("The card has no licence or no text.")
    return metadata
