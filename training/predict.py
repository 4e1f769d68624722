"""Predictions as a table: `python -m training.predict --checkpoint DIR --data DIR --output table.tsv`."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from modeling_lcm import BEIVariable, LCMForSequenceClassification, load_adapter

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
        label (columns `VARIABLE` and `VARIABLE=LABEL`, of two labels the positive one last), or the predicted value
        in its unit.

    Raises:
        ValueError: there is no such checkpoint, it is for other regions than the data, or the adapter was made for
            another base.
        FileNotFoundError: a folder is not there.
    """
    return _predict(checkpoint, cohort, rows, batch_size, adapter)[0]


def _predict(
    checkpoint: str, cohort: Cohort, rows: np.ndarray, batch_size: int, adapter: str | None
) -> tuple[pd.DataFrame, list[BEIVariable]]:
    """The table of predictions, and the variables in it."""
    if adapter is not None or (checkpoint and is_adapter(checkpoint)):
        model, processor = load_adapter(adapter or checkpoint, base=checkpoint if adapter else None)
        finetuned = True
    else:
        processor, model = load_processor(checkpoint), load_model(checkpoint)
        finetuned = isinstance(model, LCMForSequenceClassification)
    check_same_regions(processor, cohort)
    logits = predict_logits(model, cohort, rows, batch_size)["logits"]
    tokenizer = processor.tokenizer
    variables = [variable for variable in tokenizer.variables if not finetuned or variable.name == tokenizer.task]
    records = tokenizer.batch_decode(logits, variables=[variable.name for variable in variables])
    columns: dict[str, list] = {}
    for variable in variables:
        entries = [record[variable.name] for record in records]
        columns[variable.name] = [entry.get("label", entry.get("value")) for entry in entries]
        for label in sorted(variable.labels, key=lambda label: label == variable.positive_label):
            columns[f"{variable.name}={label}"] = [entry["probabilities"][label] for entry in entries]
    table = cohort.table[["subject_id", "session"]].iloc[rows].reset_index(drop=True)
    return pd.concat([table, pd.DataFrame(columns)], axis=1), variables


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
    table, variables = _predict(arguments.checkpoint, cohort, rows, arguments.batch_size, arguments.adapter)
    write_text(output, table.to_csv(sep="\t", index=False, float_format="%.4f"))
    print(f"{len(table)} predictions written to {output}")
    positive = [f"{variable.name}={variable.positive_label}" for variable in variables if variable.positive_label]
    if positive:
        print(f"Positive of two labels: {', '.join(positive)}")


if __name__ == "__main__":
    main()
