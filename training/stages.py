"""The two training stages as functions: a cohort in, a trained model with its processor out."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import set_seed
from peft import PeftModel
from torch import Tensor, nn

from modeling_lcm import (
    BEITokenizer,
    BEIVariable,
    LCMConfig,
    LCMForMultitaskPretraining,
    LCMForSequenceClassification,
    LCMProcessor,
)
from modeling_lcm.adapters_lcm import expected_new_weights
from modeling_lcm.loss_lcm import IGNORE_INDEX, balanced_class_weights

from .adapters import with_adapter
from .arguments import FinetuneArguments, PretrainArguments
from .augment import training_dataset
from .checkpoints import check_same_regions, load_processor
from .data import Cohort, make_dataset
from .engine import Trainer
from .labels import label_lines
from .leakage import leaking_columns
from .optimizers import freeze
from .splits import few_labels, hold_out
from .transfer import model_pseudo_labels, start_from_related_tokens, with_default_labels
from .vocabulary import only_labels, pretraining_variables, task_tokenizer


logger = logging.getLogger(__name__)


def pretrain(
    cohort: Cohort,
    rows: np.ndarray,
    arguments: PretrainArguments,
    folder: Path | None = None,
    after_epoch: Callable[[nn.Module], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> tuple[LCMForMultitaskPretraining, LCMProcessor, list[dict[str, Any]]]:
    """Learn every BEI variable from FC.

    Args:
        cohort (`Cohort`): the prepared data.
        rows (`np.ndarray`): rows of the training scans; no other row is looked at.
        arguments (`PretrainArguments`): settings.
        folder (`Path`, *optional*): where resumable checkpoints and logs go.
        after_epoch (`Callable`, *optional*): called with the model after every epoch; must not change it.
        announce (`Callable`, *optional*): called with a line for every variable with labels, before training.

    Returns:
        The trained model, its processor, and one record per epoch.

    Raises:
        ValueError: a variable that the data does not have, or with a single value in the training scans.
    """
    train_rows, validation_rows = hold_out(cohort.table, rows, arguments.validation_fraction, arguments.seed, None)
    tokenizer = _vocabulary(cohort, train_rows, arguments)
    _announce(announce, tokenizer.variables, cohort.table.iloc[train_rows], "--positive VARIABLE=LABEL")
    set_seed(arguments.seed)
    model = LCMForMultitaskPretraining(
        LCMConfig.from_size(
            arguments.size,
            num_regions=cohort.feature_extractor.num_regions,
            bei_variables=tokenizer.model_variables,
            **_overrides(arguments),
        )
    )
    train_labels, validation_labels = (_encode(cohort, part, tokenizer) for part in (train_rows, validation_rows))
    if arguments.class_weights == "balanced":
        model.config.class_weights = _class_weights(tokenizer.model_variables, train_labels["labels"])
    datasets = [
        training_dataset(cohort, train_rows, train_labels, arguments),
        make_dataset(cohort, validation_rows, validation_labels) if len(validation_rows) else None,
    ]
    trainer = Trainer(model, *datasets, arguments, folder)
    history = trainer.train(after_epoch)
    return trainer.trained, LCMProcessor(cohort.feature_extractor, tokenizer), history


def _vocabulary(cohort: Cohort, rows: np.ndarray, arguments: PretrainArguments) -> BEITokenizer:
    """The saved vocabulary, or one built from the training records; continuous variables scaled on these alone."""
    records = cohort.table.iloc[rows]
    if arguments.vocabulary is not None:
        tokenizer = BEITokenizer(variables=pretraining_variables(cohort, rows, arguments))
        names = [variable.name for variable in tokenizer.variables]
        if not set(names) & set(cohort.phenotypes()):
            raise ValueError(
                f"No variable of the vocabulary {arguments.vocabulary} ({', '.join(names)}) is in the data, which has "
                f"{', '.join(cohort.phenotypes())}."
            )
        return tokenizer
    if not arguments.categorical and not arguments.continuous:
        raise ValueError("There is nothing to learn: name phenotype columns in categorical or continuous.")
    return BEITokenizer(variables=pretraining_variables(cohort, rows, arguments)).fit_scaling(records)


def _overrides(arguments: PretrainArguments) -> dict[str, Any]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "edge_readout")
    chosen = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.dropout is not None:
        chosen |= dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout"), arguments.dropout)
    return chosen


def _encode(cohort: Cohort, rows: np.ndarray, tokenizer: BEITokenizer) -> dict[str, Tensor]:
    return dict(tokenizer(cohort.table.iloc[rows], return_tensors="pt")) if len(rows) else {}


def _class_weights(variables: list[dict[str, Any]], labels: Tensor) -> dict[str, list[float]]:
    """Balanced weights of every categorical variable, from training labels `(scans, variables)`."""
    return {
        variable["name"]: balanced_class_weights(labels[:, column], len(variable["labels"]))
        for column, variable in enumerate(variables)
        if variable["kind"] == "categorical"
    }


def finetune(
    cohort: Cohort,
    rows: np.ndarray,
    arguments: FinetuneArguments,
    folder: Path | None = None,
    after_epoch: Callable[[nn.Module], None] | None = None,
    check_leakage: bool = True,
    announce: Callable[[str], None] | None = None,
) -> tuple[LCMForSequenceClassification | PeftModel, LCMProcessor, list[dict[str, Any]]]:
    """Fine-tune a pretrained checkpoint for one downstream variable.

    Args:
        cohort (`Cohort`): the prepared data.
        rows (`np.ndarray`): rows of the training scans; no other row is looked at.
        arguments (`FinetuneArguments`): settings.
        folder (`Path`, *optional*): where resumable checkpoints and logs go.
        after_epoch (`Callable`, *optional*): called with the model after every epoch; must not change it.
        check_leakage (`bool`): warn of columns that tell the label.
        announce (`Callable`, *optional*): called with a line about the labels, before training.

    Returns:
        The fine-tuned model (a `PeftModel` with LoRA), its processor with the task, and one record per epoch.

    Raises:
        ValueError: no such checkpoint, an unknown column, a single class, a class without training scans or with a
            single person, no recorded label at all, a positive label that is none of two, or another atlas than the
            checkpoint's.
    """
    processor = load_processor(arguments.checkpoint)
    cohort.require_column(arguments.task)
    check_same_regions(processor, cohort)
    if not cohort.table[arguments.task].iloc[rows].notna().any():
        raise ValueError(f"{arguments.task!r} is recorded for none of the training scans.")
    tokenizer = task_tokenizer(with_default_labels(processor.tokenizer, arguments), cohort, rows, arguments)
    cohort = replace(cohort, table=only_labels(cohort.table, arguments))
    _announce(announce, [tokenizer.task_variable], cohort.table.iloc[rows], "--positive LABEL")
    if check_leakage:
        _warn_of_leakage(cohort.table.iloc[rows], tokenizer)
    set_seed(arguments.seed)
    model = _task_model(arguments, tokenizer)
    tokenizer.check_config(model.config)
    encoded = _training_labels(cohort, rows, tokenizer, arguments)
    kept, others, validation = _split(cohort, rows, encoded["labels"], tokenizer, arguments)
    position = {row: index for index, row in enumerate(rows)}

    def labels_of(part: np.ndarray) -> dict[str, Tensor]:
        index = torch.tensor([position[row] for row in part], dtype=torch.long)
        return {name: values[index] for name, values in encoded.items()}

    train = np.concatenate([kept, others])
    if arguments.class_weights == "balanced":
        model.config.class_weights = _task_class_weights(model.config, labels_of(train))
    datasets = [
        training_dataset(cohort, train, labels_of(train), arguments),
        make_dataset(cohort, validation, labels_of(validation)) if len(validation) else None,
    ]
    if arguments.new_tokens == "related" and model.config.num_task_tokens:
        start_from_related_tokens(model, cohort, kept, labels_of(kept)["labels"])
    freeze(model, arguments.frozen_layers, arguments.trainable == "tokens")
    if arguments.adapter != "none":
        model = with_adapter(model, arguments)
    trainer = Trainer(model, *datasets, arguments, folder)
    history = trainer.train(after_epoch)
    return trainer.trained, LCMProcessor(processor.feature_extractor, tokenizer), history


def _announce(
    announce: Callable[[str], None] | None, variables: Sequence[BEIVariable], records: pd.DataFrame, setting: str
) -> None:
    for line in label_lines(variables, records, setting) if announce is not None else ():
        announce(line)


def _split(
    cohort: Cohort, rows: np.ndarray, labels: Tensor, tokenizer: BEITokenizer, arguments: FinetuneArguments
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows with a label to train on, rows without one that train the pretrained tokens, and rows for validation."""
    has_label = (labels != IGNORE_INDEX).numpy()
    categorical = tokenizer.task_variable.kind == "categorical"
    stratify = arguments.task if categorical else None
    fraction, seed = arguments.validation_fraction, arguments.seed
    kept, validation = hold_out(cohort.table, rows[has_label], fraction, seed, stratify)
    if categorical:
        _require_classes(labels[torch.from_numpy(np.isin(rows, kept))], tokenizer.task_variable)
    others = rows[:0]
    # People without a label train the pretrained tokens, if those are trained at all; never another scan of somebody
    # who is held back for validation.
    if arguments.pseudo_labels != "none":
        subjects = cohort.table["subject_id"]
        others = np.setdiff1d(rows, rows[has_label])
        others = others[~subjects.iloc[others].isin(subjects.iloc[validation]).to_numpy()]
    return kept, others, validation


def _task_class_weights(config: LCMConfig, labels: dict[str, Tensor]) -> dict[str, list[float]]:
    """Balanced weights of the task and, where they train, of the pretrained variables."""
    weights = _class_weights(config.bei_variables, labels["bei_targets"]) if config.bei_loss_weight else {}
    if config.problem_type == "single_label_classification":
        weights[config.task_variable] = balanced_class_weights(labels["labels"], config.num_labels)
    return weights


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
            class_weights=None,
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
        _require_people(labels, records["subject_id"], tokenizer.task_variable)
        if arguments.labels_per_class is not None:
            chosen = few_labels(labels.numpy(), np.arange(len(rows)), arguments.labels_per_class, arguments.seed)
            hidden = np.setdiff1d(np.arange(len(rows)), chosen)
            labels[torch.from_numpy(hidden)] = IGNORE_INDEX
    if arguments.pseudo_labels == "model":
        guesses = model_pseudo_labels(arguments.checkpoint, cohort, rows, arguments.pseudo_label_threshold)
        names = [variable["name"] for variable in tokenizer.model_variables]
        if arguments.task in names:
            guesses[:, names.index(arguments.task)] = IGNORE_INDEX
        missing = encoded["bei_targets"] == IGNORE_INDEX
        encoded["bei_targets"] = torch.where(missing, guesses, encoded["bei_targets"])
    return encoded


def _require_classes(labels: Tensor, variable: BEIVariable) -> None:
    """Raise `ValueError` naming the labels that no scan has."""
    present = set(labels.tolist())
    absent = [name for index, name in enumerate(variable.labels) if index not in present]
    if absent:
        raise ValueError(f"No training scan has the label {', '.join(absent)} of {variable.name!r}.")


def _require_people(labels: Tensor, subjects: pd.Series, variable: BEIVariable) -> None:
    """Raise `ValueError` naming the labels that a single person has: one person says nothing about a group."""
    people = subjects.astype(str).groupby(labels.numpy()).nunique()
    alone = [name for index, name in enumerate(variable.labels) if people[index] == 1]
    if alone:
        raise ValueError(
            f"A single person of the training set has the label {', '.join(alone)} of {variable.name!r}: every label "
            "needs two people or more. Leave the label out, or join it with another one."
        )


def _warn_of_leakage(records: pd.DataFrame, tokenizer: BEITokenizer) -> None:
    """Warn of columns from which the label can be told for certain, such as a site with patients only."""
    task = tokenizer.task_variable
    known = records[records[task.name].notna()]
    is_class = task.kind == "categorical"
    truth = pd.factorize(known[task.name])[0] if is_class else known[task.name].to_numpy(dtype=float)
    pretrained = [variable["name"] for variable in tokenizer.model_variables]
    for line in leaking_columns(known, task.name, truth, is_class, pretrained):
        logger.warning("Possible leakage. %s", line)
