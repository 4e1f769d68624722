"""Stage two: fine-tune a pretrained checkpoint for one downstream variable."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import set_seed
from peft import PeftModel
from torch import Tensor, nn

from modeling_lcm import (
    BEITokenizer,
    LCMConfig,
    LCMForMultitaskPretraining,
    LCMForSequenceClassification,
    LCMProcessor,
)
from modeling_lcm.adapters_lcm import expected_new_weights
from modeling_lcm.loading_lcm import without_weights
from modeling_lcm.readouts_lcm import edge_readouts

from ..data.cohort import Cohort
from ..data.combine import for_checkpoint
from ..data.torch_datasets import ConnectomeDataset
from ..storage.checked_files import refuse_broken_weights
from .arguments import FinetuneArguments
from .batches import require_two_atlases, training_dataset
from .checkpoints import load_processor
from .closed_form import SharedFits, fit_ridge
from .limits import training_limits
from .loop import Trainer
from .lora import with_adapter
from .prediction import predict_logits
from .targets import split_scans, task_class_weights, task_scans
from .trainable import freeze
from .vocabulary import (
    announce_labels,
    only_labels,
    task_of,
    task_tokenizer,
    warn_of_leakage,
    with_default_labels,
)


MIN_CORRELATION = 0.5  # below this a pretrained token says too little about a label to start from it
JITTER = 0.1  # keeps two new tokens apart that start at the same pretrained one; embeddings have deviation 1


logger = logging.getLogger(__name__)


def finetune(
    cohort: Cohort,
    arguments: FinetuneArguments,
    folder: Path | None = None,
    after_epoch: Callable[[nn.Module], None] | None = None,
    check_leakage: bool = True,
    announce: Callable[[str], None] | None = None,
    shared: SharedFits | None = None,
) -> tuple[LCMForSequenceClassification | PeftModel, LCMProcessor, list[dict[str, Any]]]:
    """Fine-tune a pretrained checkpoint for one downstream variable.

    Args:
        cohort (`Cohort`): the training scans.
        arguments (`FinetuneArguments`): settings.
        folder (`Path`, *optional*): where resumable checkpoints and logs go.
        after_epoch (`Callable`, *optional*): called with the model after every epoch; must not change it.
        check_leakage (`bool`): warn of columns that tell the label.
        announce (`Callable`, *optional*): called with a line about the labels, before training.
        shared (`SharedFits`, *optional*): what the ridge head shares with other tasks of the same scans.

    Returns:
        The fine-tuned model (a `PeftModel` with LoRA), its processor with the task, and one record per epoch (none of
        the ridge head).

    Raises:
        ValueError: no such checkpoint, an unknown column, a single class, a class without training scans or with a
            single subject, no recorded label at all, a positive label that is none of two, or another atlas than the
            checkpoint's.
    """
    if arguments.head == "ridge":
        shared = shared or SharedFits()
        model, fitted = fit_ridge(cohort, arguments, announce, check_leakage, shared)
        known = [atlas for atlas in cohort.atlases if atlas in fitted.feature_extractor.by_atlas]
        fitted.limits = shared.limits(cohort.with_atlases(known) if known else cohort)
        return model, fitted, []
    processor = load_processor(arguments.checkpoint)
    cohort.require_column(arguments.task)
    cohort = for_checkpoint(processor, cohort)
    require_two_atlases(cohort, arguments)
    if not cohort.table[arguments.task].notna().any():
        raise ValueError(f"{arguments.task!r} is recorded for none of the training scans.")
    tokenizer = task_tokenizer(with_default_labels(processor.tokenizer, arguments), cohort, arguments)
    cohort = replace(cohort, table=only_labels(cohort.table, arguments))
    announce_labels(announce, [task_of(tokenizer)], cohort.table, "--positive LABEL")
    if check_leakage:
        warn_of_leakage(cohort.table, task_of(tokenizer), [each["name"] for each in tokenizer.model_variables])
    set_seed(arguments.seed)
    model = _task_model(arguments, tokenizer)
    tokenizer.check_config(model.config)
    scans = task_scans(cohort, tokenizer, arguments)
    kept, others, validation = split_scans(scans, tokenizer, arguments)
    training = scans.select(np.concatenate([kept, others]))
    if arguments.class_weights == "balanced":
        model.config.class_weights = task_class_weights(model.config, training.labels)
    if arguments.new_tokens == "related" and model.config.num_task_tokens:
        start_from_related_tokens(model, scans.select(kept))
    freeze(model, arguments.frozen_layers, arguments.trainable == "tokens", cohort.atlases)
    trainable = with_adapter(model, arguments) if arguments.adapter != "none" else model
    held_out = scans.select(validation) if len(validation) else None
    trainer = Trainer(trainable, training_dataset(training, arguments), held_out, arguments, folder)
    history = trainer.train(after_epoch)
    made = LCMProcessor(processor.feature_extractor, tokenizer)
    made.limits = training_limits(training.cohort)
    return trainer.trained, made, history


def _task_model(arguments: FinetuneArguments, tokenizer: BEITokenizer) -> LCMForSequenceClassification:
    if LCMConfig.from_pretrained(arguments.checkpoint).closed_form:
        raise ValueError(
            f"{arguments.checkpoint} was fitted in closed form, and has no decoder to train: fine-tune it with "
            "--head ridge."
        )
    with expected_new_weights():
        model = LCMForSequenceClassification.from_pretrained(
            arguments.checkpoint,
            **task_of(tokenizer).task_settings,
            bei_loss_weight=0.0 if arguments.pseudo_labels == "none" else 1.0,
            class_weights=None,
            dtype=torch.float32,
        )
    refuse_broken_weights(model, arguments.checkpoint)
    return model


@torch.no_grad()
def start_from_related_tokens(model: LCMForSequenceClassification, scans: ConnectomeDataset) -> list[str]:
    """Start a new token at the pretrained token whose logit follows its label most closely, if one does.

    Beyond the paper, whose new tokens start at random: where the task is a pretrained variable in another form (age,
    for young or elderly), that token asks nearly the right question already. With few labels some token follows them
    by chance, and the start does harm: not the default.

    Args:
        model (`LCMForSequenceClassification`): as loaded from the pretrained checkpoint; its `task_embeddings` are
            changed in place.
        scans (`ConnectomeDataset`): labelled training scans; validation and test scans must not be among them.

    Returns:
        Per new token the pretrained token it starts from, as "variable=label" or "variable"; "random" where no
        pretrained token correlates with the label by at least 0.5.
    """
    logits, labels = predict_logits(_pretrained_part(model), scans.cohort)["logits"], scans.labels["labels"]
    tokens = model.config.num_task_tokens
    targets = labels.float()[:, None]
    if model.config.problem_type != "regression":
        targets = torch.nn.functional.one_hot(labels.long(), tokens).float()
    correlation = _standardise(logits).T @ _standardise(targets) / len(scans)  # (pretrained tokens, new tokens)
    strength, best = correlation.max(0)
    follows = strength >= MIN_CORRELATION
    start = model.model.bei_embeddings.weight[best]
    start = start + JITTER * torch.randn_like(start)
    model.task_embeddings.weight.copy_(torch.where(follows[:, None], start, model.task_embeddings.weight))
    if model.config.edge_readout:
        pretrained, new = (edge_readouts(part) for part in (model.bei_edge_readout, model.task_edge_readout))
        for key, own in new.items():
            own.weight.copy_(torch.where(follows[:, None], pretrained[key].weight[best], own.weight))
    names = [
        f"{variable['name']}={label}" if label else variable["name"]
        for variable in model.config.bei_variables
        for label in variable["labels"] or [""]
    ]
    return [names[index] if close else "random" for index, close in zip(best.tolist(), follows.tolist(), strict=True)]


def _pretrained_part(model: LCMForSequenceClassification) -> LCMForMultitaskPretraining:
    """The pretrained model that a task model was loaded from, sharing its tensors: a second copy may not fit."""
    pretrained = without_weights(LCMForMultitaskPretraining, model.config)
    for name, _ in pretrained.named_children():
        setattr(pretrained, name, getattr(model, name))
    return cast(LCMForMultitaskPretraining, pretrained)


def _standardise(columns: Tensor) -> Tensor:
    """Columns `(scans, any)` with mean 0 and deviation 1; a constant column becomes 0."""
    centred = columns - columns.mean(0)
    return centred / columns.std(0, correction=0).clamp_min(1e-6)
