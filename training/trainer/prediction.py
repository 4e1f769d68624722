"""Logits and tables of predictions from a model and a cohort."""

import pandas as pd
import torch
from torch import Tensor, nn

from modeling_lcm import BEIVariable, LCMForSequenceClassification, load_adapter

from ..checked_files import check_adapter_files
from ..data.cohort import Cohort
from ..data.combine import check_same_regions
from .checkpoints import is_adapter, load_model, load_processor


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
        value in its unit; and these variables.

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
    check_same_regions(processor, cohort)
    logits = predict_logits(model, cohort, batch_size)["logits"]
    tokenizer = processor.tokenizer
    variables = [variable for variable in tokenizer.variables if not finetuned or variable.name == tokenizer.task]
    records = tokenizer.batch_decode(logits, variables=[variable.name for variable in variables])
    columns: dict[str, list] = {}
    for variable in variables:
        entries = [record[variable.name] for record in records]
        columns[variable.name] = [entry.get("label", entry.get("value")) for entry in entries]
        for label in sorted(variable.labels, key=lambda label: label == variable.positive_label):
            columns[f"{variable.name}={label}"] = [entry["probabilities"][label] for entry in entries]
    table = cohort.table[["subject_id", "session"]].reset_index(drop=True)
    return pd.concat([table, pd.DataFrame(columns)], axis=1), variables
