"""Predictions as a table: `python -m training.predict --checkpoint DIR --data DIR --output table.tsv`."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from modeling_lcm import LCMForSequenceClassification, load_adapter

from .adapters import is_adapter
from .arguments import PredictArguments, command_line, parse_arguments
from .checkpoints import check_same_regions, load_model, load_processor
from .data import Cohort, load_cohort, to_matrices
from .files import require_new, require_writable, write_text
from .splits import Folds


@torch.no_grad()
def predict_logits(model: nn.Module, cohort: Cohort, rows: np.ndarray, batch_size: int = 64) -> dict[str, Tensor]:
    """Read-out logits of some scans.

    Args:
        model (`nn.Module`): an LCM head or a PEFT model around one; put into evaluation mode.
        cohort (`Cohort`): the prepared data.
        rows (`np.ndarray`): scans to predict.
        batch_size (`int`): scans per forward pass.

    Returns:
        `logits` `(scans, labels or tokens)` and, if fine-tuned, `bei_logits` `(scans, tokens)`; float32, on the CPU.
    """
    model.eval()
    device = next(model.parameters()).device
    found: dict[str, list[Tensor]] = {}
    for start in range(0, len(rows), batch_size):
        triangles = torch.from_numpy(cohort.triangles[rows[start : start + batch_size]])
        connectivity = to_matrices(triangles, cohort.feature_extractor.num_regions).to(device)
        outputs = model(connectivity=connectivity)
        for name in ("logits", "bei_logits"):
            if getattr(outputs, name, None) is not None:
                found.setdefault(name, []).append(getattr(outputs, name).float().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def predict_table(
    checkpoint: str, cohort: Cohort, rows: np.ndarray, batch_size: int = 32, adapter: str | None = None
) -> pd.DataFrame:
    """Predict some scans with a saved checkpoint.

    Args:
        checkpoint (`str`): folder or Hub repository: a pretrained model (all BEI variables), a fine-tuned one (the
            task), or an adapter, whose base model then is where the adapter says.
        cohort (`Cohort`): the prepared data.
        rows (`np.ndarray`): scans to predict.
        batch_size (`int`): scans per forward pass.
        adapter (`str`, *optional*): folder or Hub repository of an adapter of the checkpoint.

    Returns:
        One row per scan: `subject_id`, `session`, and per variable the predicted label with the probability of every
        label (columns `VARIABLE` and `VARIABLE=LABEL`), or the predicted value in its unit.

    Raises:
        ValueError: there is no such checkpoint, it is for other regions than the data, or the adapter was made for
            another base.
        FileNotFoundError: a folder is not there.
    """
    if adapter is not None or (checkpoint and is_adapter(checkpoint)):
        model, processor = load_adapter(adapter or checkpoint, base=checkpoint if adapter else None)
        finetuned = True
    else:
        processor, model = load_processor(checkpoint), load_model(checkpoint)
        finetuned = isinstance(model, LCMForSequenceClassification)
    check_same_regions(processor, cohort)
    logits = predict_logits(model, cohort, rows, batch_size)["logits"]
    tokenizer = processor.tokenizer
    names = [tokenizer.task] if finetuned else None
    columns: dict[str, list] = {}
    for record in tokenizer.batch_decode(logits, variables=names):
        for variable, entry in record.items():
            columns.setdefault(variable, []).append(entry.get("label", entry.get("value")))
            for label, probability in entry.get("probabilities", {}).items():
                columns.setdefault(f"{variable}={label}", []).append(probability)
    table = cohort.table[["subject_id", "session"]].iloc[rows].reset_index(drop=True)
    return pd.concat([table, pd.DataFrame(columns)], axis=1)


@command_line
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    arguments = parse_arguments(PredictArguments, argv)
    output = require_new(arguments.output)
    if output.is_dir():
        raise ValueError(f"{output} is a folder; the output is one table: give a file name such as predictions.tsv.")
    cohort = load_cohort(arguments.data)
    rows = np.arange(len(cohort.table))
    if (arguments.splits is None) != (arguments.fold is None):
        raise ValueError("Give both splits (a split file) and fold, or neither to predict every subject.")
    if arguments.splits is not None:
        rows = Folds.load(arguments.splits).rows(cohort.table["subject_id"].astype(str), arguments.fold)[1]
    require_writable(output.parent)
    table = predict_table(arguments.checkpoint, cohort, rows, arguments.batch_size, arguments.adapter)
    write_text(output, table.to_csv(sep="\t", index=False, float_format="%.4f"))
    print(f"{len(table)} predictions written to {output}")


if __name__ == "__main__":
    main()
