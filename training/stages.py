"""The two training stages as functions: a cohort in, a trained model with its processor out."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import set_seed
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoProcessor
from transformers.utils import logging as transformers_logging

from modeling_lcm import (
    BEITokenizer,
    BEIVariable,
    LCMConfig,
    LCMForMultitaskPretraining,
    LCMForSequenceClassification,
    LCMProcessor,
)
from modeling_lcm.loss_lcm import IGNORE_INDEX

from .arguments import FinetuneArguments, LoopArguments, PretrainArguments
from .data import Cohort, make_dataset, to_matrices
from .engine import Trainer
from .files import write_folder, write_json
from .splits import few_labels, hold_out


logger = logging.getLogger(__name__)

# Every projection of attention and feed-forward. The first layer's self-attention is left out of LoRA because the
# token state is zero there: its projections never receive a gradient.
LORA_TARGETS = r".*layers\.\d+\.(cross_attn\.[qkvo]_proj|fc[12])|.*layers\.(?!0\.)\d+\.self_attn\.[qkvo]_proj"


def pretrain(
    cohort: Cohort, rows: np.ndarray, arguments: PretrainArguments, folder: Path | None = None
) -> tuple[LCMForMultitaskPretraining, LCMProcessor, list[dict[str, Any]]]:
    """Learn every BEI variable from FC.

    Args:
        cohort (`Cohort`): the prepared data.
        rows (`np.ndarray`): rows of the training scans; no other row is looked at.
        arguments (`PretrainArguments`): settings.
        folder (`Path`, *optional*): where resumable checkpoints and logs go.

    Returns:
        The trained model, its processor, and one record per epoch.

    Raises:
        ValueError: a variable that the data does not have, or with a single value in the training scans.
    """
    if arguments.vocabulary is None:
        for name in (*arguments.categorical, *arguments.continuous):
            cohort.require_column(name)
    train_rows, validation_rows = hold_out(cohort.table, rows, arguments.validation_fraction, arguments.seed, None)
    tokenizer = _vocabulary(cohort, train_rows, arguments)
    set_seed(arguments.seed)
    model = LCMForMultitaskPretraining(
        LCMConfig.from_size(
            arguments.size,
            num_regions=cohort.feature_extractor.num_regions,
            bei_variables=tokenizer.model_variables,
            **_overrides(arguments),
        )
    )
    datasets = [_encode(cohort, part, tokenizer) for part in (train_rows, validation_rows)]
    history = Trainer(model, *datasets, arguments, folder).train()
    return model, LCMProcessor(cohort.feature_extractor, tokenizer), history


def _vocabulary(cohort: Cohort, rows: np.ndarray, arguments: PretrainArguments) -> BEITokenizer:
    """The saved vocabulary, or one built from the training records; continuous variables scaled on these alone."""
    records = cohort.table.iloc[rows]
    if arguments.vocabulary is not None:
        return BEITokenizer.from_pretrained(arguments.vocabulary)
    variables = [infer_variable(records, name, "categorical") for name in arguments.categorical]
    variables += [infer_variable(records, name, "continuous") for name in arguments.continuous]
    return BEITokenizer(variables=variables).fit_scaling(records)


def infer_variable(records: pd.DataFrame, name: str, kind: str, labels: list[str] | None = None) -> BEIVariable:
    """The BEI variable of a phenotype column.

    Args:
        records (`pd.DataFrame`): training records.
        name (`str`): the column.
        kind (`str`): "categorical" or "continuous".
        labels (`list[str]`, *optional*): labels in token order; default: those in the records, sorted.

    Raises:
        ValueError: an unknown kind, a column with a single value, or one with too many values to be labels.
    """
    if kind == "continuous":
        return BEIVariable(name, kind, unit="years" if name == "age" else None)
    if labels is not None:
        return BEIVariable(name, kind, labels)
    variable = BEITokenizer.from_records(records, columns=[name]).variables[0]
    if variable.kind != kind:
        raise ValueError(
            f"The column {name!r} holds numbers with many different values: declare it continuous, or list its labels."
        )
    return variable


def _overrides(arguments: PretrainArguments) -> dict[str, Any]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    chosen = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.dropout is not None:
        chosen |= dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout"), arguments.dropout)
    return chosen


def _encode(cohort: Cohort, rows: np.ndarray, tokenizer: BEITokenizer) -> Any:
    if not len(rows):
        return None
    labels = tokenizer(cohort.table.iloc[rows], return_tensors="pt")
    return make_dataset(cohort, rows, dict(labels))


def finetune(
    cohort: Cohort,
    rows: np.ndarray,
    arguments: FinetuneArguments,
    folder: Path | None = None,
) -> tuple[LCMForSequenceClassification | PeftModel, LCMProcessor, list[dict[str, Any]]]:
    """Fine-tune a pretrained checkpoint for one downstream variable.

    Args:
        cohort (`Cohort`): the prepared data.
        rows (`np.ndarray`): rows of the training scans; no other row is looked at.
        arguments (`FinetuneArguments`): settings.
        folder (`Path`, *optional*): where resumable checkpoints and logs go.

    Returns:
        The fine-tuned model (a `PeftModel` with LoRA), its processor with the task, and one record per epoch.

    Raises:
        ValueError: an unknown column, a single class, a class without training scans, or another atlas than the
            checkpoint's.
    """
    cohort.require_column(arguments.task)
    processor = AutoProcessor.from_pretrained(arguments.checkpoint)
    check_same_regions(processor, cohort)
    tokenizer = task_tokenizer(processor.tokenizer, cohort, rows, arguments)
    set_seed(arguments.seed)
    model = _task_model(arguments, tokenizer)
    tokenizer.check_config(model.config)
    encoded = _training_labels(cohort, rows, tokenizer, model, arguments)
    labelled = np.flatnonzero((encoded["labels"] != IGNORE_INDEX).numpy())
    stratify = arguments.task if tokenizer.task_variable.kind == "categorical" else None
    kept, validation = hold_out(cohort.table, rows[labelled], arguments.validation_fraction, arguments.seed, stratify)
    # People without a label train the pretrained tokens, if those are trained at all.
    others = np.setdiff1d(rows, rows[labelled]) if arguments.pseudo_labels != "none" else rows[:0]
    position = {row: index for index, row in enumerate(rows)}
    datasets = []
    for part in (np.concatenate([kept, others]), validation):
        index = torch.tensor([position[row] for row in part], dtype=torch.long)
        labels = {name: values[index] for name, values in encoded.items()}
        datasets.append(make_dataset(cohort, part, labels) if len(part) else None)
    if arguments.lora_rank:
        model = _with_lora(model, arguments.lora_rank)
    history = Trainer(model, *datasets, arguments, folder).train()
    return model, LCMProcessor(processor.feature_extractor, tokenizer), history


def check_same_regions(processor: LCMProcessor, cohort: Cohort) -> None:
    """Raise `ValueError` unless the cohort has the checkpoint's regions, in the same order."""
    ours, theirs = processor.feature_extractor, cohort.feature_extractor
    if ours.num_regions != theirs.num_regions or ours.region_fingerprint != theirs.region_fingerprint:
        raise ValueError(
            f"The checkpoint was made for {ours.num_regions} regions of {ours.atlas}, the data has "
            f"{theirs.num_regions} of {theirs.atlas}, or in another order. Prepare it with the checkpoint's atlas."
        )
    for name in ("estimator", "fisher_z", "window", "padding"):
        if getattr(ours, name) != getattr(theirs, name):
            logger.warning(
                "FC is defined differently: %s is %r in the checkpoint, %r in the data.",
                name,
                getattr(ours, name),
                getattr(theirs, name),
            )


def task_tokenizer(
    pretrained: BEITokenizer, cohort: Cohort, rows: np.ndarray, arguments: FinetuneArguments
) -> BEITokenizer:
    """The checkpoint's vocabulary with the downstream variable as its task: its own tokens if it was pretrained."""
    if any(variable.name == arguments.task for variable in pretrained.variables):
        return pretrained.for_task(arguments.task)
    records = cohort.table.iloc[rows]
    variable = infer_variable(records, arguments.task, arguments.kind, arguments.labels)
    tokenizer = pretrained.add_variable(variable, task=True)
    return tokenizer.fit_scaling(records, [arguments.task]) if variable.kind == "continuous" else tokenizer


def _task_model(arguments: FinetuneArguments, tokenizer: BEITokenizer) -> LCMForSequenceClassification:
    variable = tokenizer.task_variable
    names = variable.labels or [variable.name]
    problem = "single_label_classification" if variable.kind == "categorical" else "regression"
    with expected_new_weights():
        return LCMForSequenceClassification.from_pretrained(
            arguments.checkpoint,
            id2label=dict(enumerate(names)),
            label2id={name: index for index, name in enumerate(names)},
            problem_type=problem,
            task_variable=variable.name,
            bei_loss_weight=0.0 if arguments.pseudo_labels == "none" else 1.0,
            dtype=torch.float32,
        )


@contextmanager
def expected_new_weights() -> Iterator[None]:
    """Silence Transformers' report of new weights where they are meant to be new; our strict check stays."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _training_labels(
    cohort: Cohort,
    rows: np.ndarray,
    tokenizer: BEITokenizer,
    model: LCMForSequenceClassification,
    arguments: FinetuneArguments,
) -> dict[str, Tensor]:
    """Labels of the task and of the pretrained tokens, with pseudo-labels and few-label subsets as asked for."""
    records = cohort.table.iloc[rows]
    defaults = arguments.pseudo_labels in ("defaults", "model")
    encoded = dict(tokenizer(records, pseudo_labels=defaults, return_tensors="pt"))
    labels = encoded["labels"]
    if tokenizer.task_variable.kind == "categorical":
        present = set(labels[labels != IGNORE_INDEX].tolist())
        absent = [name for index, name in enumerate(tokenizer.task_variable.labels) if index not in present]
        if absent:
            raise ValueError(f"No training scan has the label {', '.join(absent)} of {arguments.task!r}.")
        if arguments.labels_per_class is not None:
            chosen = few_labels(labels.numpy(), np.arange(len(rows)), arguments.labels_per_class, arguments.seed)
            hidden = np.setdiff1d(np.arange(len(rows)), chosen)
            labels[torch.from_numpy(hidden)] = IGNORE_INDEX
    if arguments.pseudo_labels == "model":
        guesses = model_pseudo_labels(model, cohort, rows, arguments.pseudo_label_threshold)
        own_task = [
            index
            for index, variable in enumerate(model.config.bei_variables)
            if variable["name"] == model.config.task_variable
        ]
        guesses[:, own_task] = IGNORE_INDEX
        missing = encoded["bei_labels"] == IGNORE_INDEX
        encoded["bei_labels"] = torch.where(missing, guesses, encoded["bei_labels"])
    return encoded


@torch.no_grad()
def model_pseudo_labels(
    model: LCMForSequenceClassification, cohort: Cohort, rows: np.ndarray, threshold: float
) -> Tensor:
    """The pretrained model's own confident predictions as labels.

    Args:
        model (`LCMForSequenceClassification`): before fine-tuning.
        cohort (`Cohort`): the prepared data.
        rows (`np.ndarray`): scans to predict.
        threshold (`float`): least probability for a categorical variable; continuous ones always get -100, because a
            regression has no confidence.

    Returns:
        `Tensor` of shape `(scans, variables)`, float32; -100 where the model is not confident.
    """
    logits = predict_logits(model, cohort, rows)["bei_logits"]
    columns, start = [], 0
    for variable in model.config.bei_variables:
        size = max(1, len(variable["labels"]))
        part = logits[:, start : start + size].softmax(-1)
        best = part.max(-1)
        confident = best.values >= threshold if variable["kind"] == "categorical" else torch.zeros(len(part)).bool()
        columns.append(torch.where(confident, best.indices.float(), torch.tensor(float(IGNORE_INDEX))))
        start += size
    return torch.stack(columns, dim=1)


def _with_lora(model: LCMForSequenceClassification, rank: int) -> PeftModel:
    """LoRA on attention and feed-forward; the task's tokens, read-out and batch norm are trained and saved whole."""
    whole = ["score", "stem.norm", "bei_layer_choice", "task_layer_choice"]
    if model.config.num_task_tokens:
        whole.append("task_embeddings")
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=LORA_TARGETS,
        modules_to_save=whole,
    )
    return get_peft_model(model, config)


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
            model.save_pretrained(str(path / "adapter"))
            whole = model.merge_and_unload(safe_merge=True)
        whole.save_pretrained(path)
        processor.save_pretrained(path)
        write_json(path / "training_record.json", {"arguments": asdict(arguments), **record})

    return write_folder(folder, fill)


def read_record(checkpoint: str | Path) -> dict[str, Any]:
    """The run's record beside a checkpoint; empty where there is none (a Hub repository, a converted model)."""
    path = Path(checkpoint) / "training_record.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
