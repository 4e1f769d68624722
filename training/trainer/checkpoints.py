"""Checkpoints: model, processor and the run's record in one folder, written atomically and checked when loaded."""

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers.utils import find_adapter_config_file

from modeling_lcm import (
    LCMConfig,
    LCMForMultitaskPretraining,
    LCMForSequenceClassification,
    LCMProcessor,
    save_adapter,
)
from modeling_lcm.adapter_loading_lcm import ADAPTER_CONFIG
from modeling_lcm.loading_lcm import check_place

from ..data.identity import require_subjects
from ..storage.checked_files import check_files, load_own_processor, read_settings_file, refuse_broken_weights
from ..storage.files import read_json, write_folder, write_json
from ..storage.manifest import seal
from .arguments import LoopArguments
from .trainable import lcm_head


logger = logging.getLogger(__name__)

RECORD = "training_record.json"


def save_checkpoint(
    folder: Path, model: nn.Module, processor: LCMProcessor, arguments: LoopArguments, record: dict[str, Any]
) -> Path:
    """Write model, processor and the run's record as one folder, atomically.

    A LoRA model is written twice: merged, as a checkpoint that loads without PEFT, and as `adapter/`.

    Args:
        folder (`Path`): the checkpoint folder.
        model (`nn.Module`): trained model, possibly a `PeftModel`.
        processor (`LCMProcessor`): saved beside it.
        arguments (`LoopArguments`): settings of the run.
        record (`dict`): subjects, history and whatever else identifies the run.
    """

    def fill(path: Path) -> None:
        whole = model
        if isinstance(model, PeftModel):
            save_adapter(model, processor, path / "adapter")
            seal(path / "adapter")
            whole = model.merge_and_unload(safe_merge=True)
        lcm_head(whole).save_pretrained(path)
        processor.save_pretrained(path)
        write_json(path / RECORD, {"arguments": asdict(arguments), **record})
        seal(path)

    return write_folder(folder, fill)


def read_record(checkpoint: str | Path) -> dict[str, Any]:
    """The run's record beside a checkpoint, a folder or a Hub repository; empty where none is within reach.

    Raises:
        ValueError: it, or another file of the checkpoint, is damaged.
    """
    try:
        check_files(str(checkpoint))
    except FileNotFoundError:
        return {}
    record = read_settings_file(str(checkpoint), RECORD)
    require_subjects(record, f"{checkpoint}: {RECORD}")
    return record


def load_processor(checkpoint: str) -> LCMProcessor:
    """The processor saved with a checkpoint.

    Raises:
        ValueError: there is no checkpoint of that name, or it is an adapter.
    """
    if not checkpoint:
        raise ValueError("No checkpoint was given: add --checkpoint FOLDER (made by training.pretrain).")
    folder = Path(checkpoint)
    if (folder / ADAPTER_CONFIG).is_file():
        raise ValueError(_about_adapter(folder))
    if folder.is_dir() and not (folder / "config.json").is_file():
        inside = folder / "checkpoint"
        hint = f" Is {inside} meant?" if inside.is_dir() else ""
        raise ValueError(f"The folder {checkpoint} holds no checkpoint (no config.json).{hint}")
    try:
        check_files(checkpoint)
        return load_own_processor(checkpoint)
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{checkpoint} is neither a checkpoint folder nor a repository within reach: {reason}"
        ) from error


def _about_adapter(folder: Path) -> str:
    base = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    above = folder.resolve().parent
    merged = f"the checkpoint that it was merged into, {above}, or " if (above / "config.json").is_file() else ""
    return f"{folder} is an adapter, a checkpoint is needed: give {merged}its base model, {base}."


def load_model(checkpoint: str, **options: Any) -> LCMForMultitaskPretraining | LCMForSequenceClassification:
    """The model of a checkpoint: with its task, if it was fine-tuned, else with all pretrained variables.

    Args:
        checkpoint (`str`): folder or Hub repository.
        **options: for `from_pretrained`.
    """
    check_files(checkpoint)
    architectures = LCMConfig.from_pretrained(checkpoint).architectures or []
    finetuned = "LCMForSequenceClassification" in architectures
    kind = LCMForSequenceClassification if finetuned else LCMForMultitaskPretraining
    model = kind.from_pretrained(checkpoint, **options)
    refuse_broken_weights(model, checkpoint)
    return model


def is_adapter(checkpoint: str) -> bool:
    """Whether a name stands for an adapter: a folder or a Hub repository with `adapter_config.json`.

    Raises:
        FileNotFoundError: it is meant as a folder, and there is none.
    """
    check_place(checkpoint)
    return find_adapter_config_file(checkpoint) is not None
