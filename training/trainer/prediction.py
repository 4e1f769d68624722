"""Logits and tables of predictions from a model and a cohort."""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from modeling_lcm import BEIVariable, LCMForSequenceClassification, load_adapter
from modeling_lcm.limits_lcm import TrainingLimits

from ..checked_files import check_adapter_files
from ..data.cohort import Cohort
from ..data.combine import for_checkpoint
from ..data.identity import seen_subjects
from .checkpoints import is_adapter, load_model, load_processor, read_record
from .limits import limits_table


@torch.no_grad()
def predict_logits(model: nn.Module, cohort: Cohort, batch_size: int = 64) -> dict[str, Tensor]:
    """Read-out logits of scans.

    Args:
        model (`nn.Module`): an LCM head or a PEFT model around one; put into evaluation mode.
        cohort (`Cohort`): the scans.
        batch_size (`int`): scans per forward pass.

    Returns:
        `logits` `(scans, labels or tokens)` and, if fine-tuned, `bei_logits` `(scans, tokens)`; float32, on the CPU.
    """
    model.eval()
    device = next(model.parameters()).device
    found: dict[str, list[Tensor]] = {}
    for connectivity in cohort.batches(batch_size):
        outputs = model(connectivity=connectivity.to(device))
        for name in ("logits", "bei_logits"):
            if getattr(outputs, name, None) is not None:
                found.setdefault(name, []).append(getattr(outputs, name).float().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def predict_table(
    checkpoint: str, cohort: Cohort, batch_size: int = 32, adapter: str | None = None
) -> tuple[pd.DataFrame, list[BEIVariable]]:
    """Predict scans with a saved checkpoint.

    Args:
        checkpoint (`str`): folder or Hub repository: a pretrained model (all BEI variables), a fine-tuned one (the
            task), or an adapter, whose base model then is where the adapter says.
        cohort (`Cohort`): the scans.
        batch_size (`int`): scans per forward pass.
        adapter (`str`, *optional*): folder or Hub repository of an adapter of the checkpoint.

    Returns:
        A table of one row per scan: `subject_id`, `session`, and per variable the predicted label with the probability
        of every label (columns `VARIABLE` and `VARIABLE=LABEL`, of two labels the positive one last), or the predicted
        value in its unit; then what the scan is beside the training scans (see [`limits_table`]); and these variables.
        Where the checkpoint knows how far its predictions are off, `VARIABLE_possible` has the labels that cannot be
        ruled out, or `VARIABLE_low` and `VARIABLE_high` the range, that hold the truth nine times of ten.

    Raises:
        ValueError: there is no such checkpoint, it is for other regions than the data, or the adapter was made for
            another base.
        FileNotFoundError: a folder is not there.
    """
    if adapter is not None or (checkpoint and is_adapter(checkpoint)):
        check_adapter_files(adapter or checkpoint, base=checkpoint if adapter else None)
        model, processor = load_adapter(adapter or checkpoint, base=checkpoint if adapter else None)
        finetuned = True
    else:
        processor, model = load_processor(checkpoint), load_model(checkpoint)
        finetuned = isinstance(model, LCMForSequenceClassification)
    cohort = for_checkpoint(processor, cohort)
    logits = predict_logits(model, cohort, batch_size)["logits"]
    tokenizer = processor.tokenizer
    variables = [variable for variable in tokenizer.variables if not finetuned or variable.name == tokenizer.task]
    records = tokenizer.batch_decode(logits, variables=[variable.name for variable in variables])
    columns: dict[str, list] = {}
    for variable in variables:
        entries = [record[variable.name] for record in records]
        columns |= _columns(variable, entries) | _uncertainty(variable.name, entries, processor.limits)
    table = cohort.table[["subject_id", "session"]].reset_index(drop=True)
    seen = set(seen_subjects(_record_of(checkpoint, adapter), cohort.table))
    limits = limits_table(processor.limits, cohort, seen, batch_size)
    return pd.concat([table, pd.DataFrame(columns), limits], axis=1), variables


def _columns(variable: BEIVariable, entries: list[dict[str, Any]]) -> dict[str, list]:
    """Predicted label or value, and probabilities; of two labels the positive one last."""
    columns = {variable.name: [entry.get("label", entry.get("value")) for entry in entries]}
    for label in sorted(variable.labels, key=lambda label: label == variable.positive_label):
        columns[f"{variable.name}={label}"] = [entry["probabilities"][label] for entry in entries]
    return columns


def _uncertainty(name: str, entries: list[dict[str, Any]], limits: TrainingLimits | None) -> dict[str, list]:
    if limits is None:
        return {}
    ranges: list[Any] = [limits.uncertainty(name, entry.get("probabilities", entry.get("value"))) for entry in entries]
    if not entries or ranges[0] is None:
        return {}
    if isinstance(ranges[0], tuple):
        low, high = zip(*ranges, strict=True)
        return {f"{name}_low": list(low), f"{name}_high": list(high)}
    return {f"{name}_possible": ["|".join(labels) for labels in ranges]}


def _record_of(checkpoint: str, adapter: str | None) -> dict[str, Any]:
    """The training record; that of an adapter lies in the checkpoint folder around it."""
    place = adapter or checkpoint
    return read_record(place) or read_record(Path(place).parent if Path(place).is_dir() else checkpoint)
