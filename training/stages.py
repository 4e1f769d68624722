"""The two training stages as functions: a cohort in, a trained model with its processor out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import set_seed
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from modeling_lcm import (
    BEITokenizer,
    BEIVariable,
    LCMConfig,
    LCMForMultitaskPretraining,
    LCMForSequenceClassification,
    LCMProcessor,
)
from modeling_lcm.loss_lcm import IGNORE_INDEX

from .arguments import FinetuneArguments, PretrainArguments
from .checkpoints import check_same_regions, expected_new_weights, load_processor
from .data import Cohort, make_dataset
from .engine import Trainer
from .splits import few_labels, hold_out
from .transfer import model_pseudo_labels, start_from_related_tokens


# Every projection of attention and feed-forward. The first layer's self-attention is left out of LoRA because the
# token state is zero there: its projections never receive a gradient.
LORA_TARGETS = r".*layers\.\d+\.(cross_attn\.[qkvo]_proj|fc[12])|.*layers\.(?!0\.)\d+\.self_attn\.[qkvo]_proj"


def pretrain(
    cohort: Cohort,
    rows: np.ndarray,
    arguments: PretrainArguments,
    folder: Path | None = None,
    after_epoch: Callable[[nn.Module], None] | None = None,
) -> tuple[LCMForMultitaskPretraining, LCMProcessor, list[dict[str, Any]]]:
    """Learn every BEI variable from FC.

    Args:
        cohort (`Cohort`): the prepared data.
        rows (`np.ndarray`): rows of the training scans; no other row is looked at.
        arguments (`PretrainArguments`): settings.
        folder (`Path`, *optional*): where resumable checkpoints and logs go.
        after_epoch (`Callable`, *optional*): called with the model after every epoch; must not change it.

    Returns:
        The trained model, its processor, and one record per epoch.

    Raises:
        ValueError: a variable that the data does not have, or with a single value in the training scans.
    """
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
    history = Trainer(model, *datasets, arguments, folder).train(after_epoch)
    return model, LCMProcessor(cohort.feature_extractor, tokenizer), history


def _vocabulary(cohort: Cohort, rows: np.ndarray, arguments: PretrainArguments) -> BEITokenizer:
    """The saved vocabulary, or one built from the training records; continuous variables scaled on these alone."""
    records = cohort.table.iloc[rows]
    if arguments.vocabulary is not None:
        tokenizer = BEITokenizer.from_pretrained(arguments.vocabulary)
        names = [variable.name for variable in tokenizer.variables]
        if not set(names) & set(cohort.phenotypes()):
            raise ValueError(
                f"No variable of the vocabulary {arguments.vocabulary} ({', '.join(names)}) is in the data, which has "
                f"{', '.join(cohort.phenotypes())}."
            )
        return tokenizer
    if not arguments.categorical and not arguments.continuous:
        raise ValueError("There is nothing to learn: name phenotype columns in categorical or continuous.")
    for name in (*arguments.categorical, *arguments.continuous):
        cohort.require_column(name)
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
    if kind not in ("categorical", "continuous"):
        raise ValueError(f"kind must be categorical or continuous, got {kind!r}.")
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
    after_epoch: Callable[[nn.Module], None] | None = None,
) -> tuple[LCMForSequenceClassification | PeftModel, LCMProcessor, list[dict[str, Any]]]:
    """Fine-tune a pretrained checkpoint for one downstream variable.

    Args:
        cohort (`Cohort`): the prepared data.
        rows (`np.ndarray`): rows of the training scans; no other row is looked at.
        arguments (`FinetuneArguments`): settings.
        folder (`Path`, *optional*): where resumable checkpoints and logs go.
        after_epoch (`Callable`, *optional*): called with the model after every epoch; must not change it.

    Returns:
        The fine-tuned model (a `PeftModel` with LoRA), its processor with the task, and one record per epoch.

    Raises:
        ValueError: no such checkpoint, an unknown column, a single class, a class without training scans, or another
            atlas than the checkpoint's.
    """
    processor = load_processor(arguments.checkpoint)
    cohort.require_column(arguments.task)
    check_same_regions(processor, cohort)
    tokenizer = task_tokenizer(processor.tokenizer, cohort, rows, arguments)
    set_seed(arguments.seed)
    model = _task_model(arguments, tokenizer)
    tokenizer.check_config(model.config)
    encoded = _training_labels(cohort, rows, tokenizer, arguments)
    labelled = np.flatnonzero((encoded["labels"] != IGNORE_INDEX).numpy())
    categorical = tokenizer.task_variable.kind == "categorical"
    stratify = arguments.task if categorical else None
    kept, validation = hold_out(cohort.table, rows[labelled], arguments.validation_fraction, arguments.seed, stratify)
    position = {row: index for index, row in enumerate(rows)}
    if categorical:
        _require_classes(encoded["labels"][[position[row] for row in kept]], tokenizer.task_variable)
    others = rows[:0]
    # People without a label train the pretrained tokens, if those are trained at all; never another scan of somebody
    # who is held back for validation.
    if arguments.pseudo_labels != "none":
        subjects = cohort.table["subject_id"]
        others = np.setdiff1d(rows, rows[labelled])
        others = others[~subjects.iloc[others].isin(subjects.iloc[validation]).to_numpy()]
    datasets = []
    for part in (np.concatenate([kept, others]), validation):
        index = torch.tensor([position[row] for row in part], dtype=torch.long)
        labels = {name: values[index] for name, values in encoded.items()}
        datasets.append(make_dataset(cohort, part, labels) if len(part) else None)
    if arguments.new_tokens == "related" and model.config.num_task_tokens:
        labels = encoded["labels"][[position[row] for row in kept]]
        start_from_related_tokens(model, arguments.checkpoint, cohort, kept, labels)
    if arguments.lora_rank:
        model = _with_lora(model, arguments.lora_rank)
    history = Trainer(model, *datasets, arguments, folder).train(after_epoch)
    return model, LCMProcessor(processor.feature_extractor, tokenizer), history


def task_tokenizer(
    pretrained: BEITokenizer, cohort: Cohort, rows: np.ndarray, arguments: FinetuneArguments
) -> BEITokenizer:
    """The checkpoint's vocabulary with the downstream variable as its task: its own tokens if it was pretrained."""
    known = next((variable for variable in pretrained.variables if variable.name == arguments.task), None)
    if known is not None:
        if known.kind != arguments.kind:
            raise ValueError(
                f"The checkpoint was pretrained on {known.name!r} as a {known.kind} variable: set kind to that."
            )
        if arguments.labels is not None and set(arguments.labels) != set(known.labels):
            raise ValueError(
                f"The checkpoint was pretrained on {known.name!r} with the labels {', '.join(known.labels)}: give "
                "these, or none."
            )
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


def _training_labels(
    cohort: Cohort, rows: np.ndarray, tokenizer: BEITokenizer, arguments: FinetuneArguments
) -> dict[str, Tensor]:
    """Labels of the task and of the pretrained tokens, with pseudo-labels and few-label subsets as asked for."""
    records = cohort.table.iloc[rows]
    defaults = arguments.pseudo_labels in ("defaults", "model")
    encoded = dict(tokenizer(records, pseudo_labels=defaults, return_tensors="pt"))
    labels = encoded["labels"]
    if not (labels != IGNORE_INDEX).any():
        raise ValueError(f"{arguments.task!r} is recorded for none of the training scans.")
    if tokenizer.task_variable.kind == "categorical":
        _require_classes(labels, tokenizer.task_variable)
        if arguments.labels_per_class is not None:
            chosen = few_labels(labels.numpy(), np.arange(len(rows)), arguments.labels_per_class, arguments.seed)
            hidden = np.setdiff1d(np.arange(len(rows)), chosen)
            labels[torch.from_numpy(hidden)] = IGNORE_INDEX
    if arguments.pseudo_labels == "model":
        guesses = model_pseudo_labels(arguments.checkpoint, cohort, rows, arguments.pseudo_label_threshold)
        names = [variable["name"] for variable in tokenizer.model_variables]
        if arguments.task in names:
            guesses[:, names.index(arguments.task)] = IGNORE_INDEX
        missing = encoded["bei_labels"] == IGNORE_INDEX
        encoded["bei_labels"] = torch.where(missing, guesses, encoded["bei_labels"])
    return encoded


def _require_classes(labels: Tensor, variable: BEIVariable) -> None:
    """Raise `ValueError` naming the labels that no scan has."""
    present = set(labels.tolist())
    absent = [name for index, name in enumerate(variable.labels) if index not in present]
    if absent:
        raise ValueError(f"No training scan has the label {', '.join(absent)} of {variable.name!r}.")


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
