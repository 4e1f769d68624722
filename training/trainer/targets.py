"""Which scans train on which labels: encoding, few labels, pseudo-labels, class weights."""

from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from modeling_lcm import BEITokenizer, BEIVariable, LCMConfig, LCMForMultitaskPretraining
from modeling_lcm.adapters_lcm import expected_new_weights
from modeling_lcm.loss_lcm import IGNORE_INDEX, balanced_class_weights

from ..data.cohort import Cohort
from ..data.folds import few_labels, hold_out
from ..data.torch_datasets import ConnectomeDataset
from .arguments import FinetuneArguments
from .prediction import predict_logits
from .vocabulary import task_of


def class_weights(variables: list[dict[str, Any]], labels: Tensor) -> dict[str, list[float]]:
    """Balanced weights of every categorical variable, from training labels `(scans, variables)`."""
    return {
        variable["name"]: balanced_class_weights(labels[:, column], len(variable["labels"]))
        for column, variable in enumerate(variables)
        if variable["kind"] == "categorical"
    }


def task_class_weights(config: LCMConfig, labels: dict[str, Tensor]) -> dict[str, list[float]]:
    """Balanced weights of the task and, where they train, of the pretrained variables."""
    weights = class_weights(config.bei_variables, labels["bei_targets"]) if config.bei_loss_weight else {}
    if config.problem_type == "single_label_classification":
        task, classes = cast(str, config.task_variable), cast(int, config.num_labels)
        weights[task] = balanced_class_weights(labels["labels"], classes)
    return weights


def task_scans(cohort: Cohort, tokenizer: BEITokenizer, arguments: FinetuneArguments) -> ConnectomeDataset:
    """Training scans with the labels of the task and of the pretrained tokens.

    Pseudo-labels and few-label subsets are as asked for.

    Args:
        cohort (`Cohort`): the training scans.
        tokenizer (`BEITokenizer`): with the task.
        arguments (`FinetuneArguments`): settings.

    Raises:
        ValueError: no label at all, a class without scans or with a single subject, or too few for `labels_per_class`.
    """
    defaults = arguments.pseudo_labels in ("defaults", "model")
    encoded = dict(tokenizer(cohort.table, pseudo_labels=defaults, return_tensors="pt"))
    labels = encoded["labels"]
    if not (labels != IGNORE_INDEX).any():
        raise ValueError(f"{arguments.task!r} is recorded for none of the training scans.")
    task = task_of(tokenizer)
    if task.kind == "categorical":
        _require_classes(labels, task)
        _require_subjects(labels, cohort.subjects, task)
        if arguments.labels_per_class is not None:
            chosen = few_labels(labels.numpy(), arguments.labels_per_class, arguments.seed)
            hidden = np.setdiff1d(np.arange(len(cohort)), chosen)
            labels[torch.from_numpy(hidden)] = IGNORE_INDEX
    if arguments.pseudo_labels == "model":
        guesses = model_pseudo_labels(arguments.checkpoint, cohort, arguments.pseudo_label_threshold)
        names = [variable["name"] for variable in tokenizer.model_variables]
        if arguments.task in names:
            guesses[:, names.index(arguments.task)] = IGNORE_INDEX
        missing = encoded["bei_targets"] == IGNORE_INDEX
        encoded["bei_targets"] = torch.where(missing, guesses, encoded["bei_targets"])
    return ConnectomeDataset(cohort, encoded)


def split_scans(
    scans: ConnectomeDataset, tokenizer: BEITokenizer, arguments: FinetuneArguments
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which scans train on their label, which without one train the pretrained tokens, and which validate.

    Args:
        scans (`ConnectomeDataset`): as [`task_scans`] makes them.
        tokenizer (`BEITokenizer`): with the task.
        arguments (`FinetuneArguments`): settings.

    Returns:
        Their positions.

    Raises:
        ValueError: nobody can be held back, or a class is left without training scans.
    """
    labels, table = scans.labels["labels"], scans.cohort.table
    has_label = (labels != IGNORE_INDEX).numpy()
    labelled = np.flatnonzero(has_label)
    task = task_of(tokenizer)
    categorical = task.kind == "categorical"
    stratify = arguments.task if categorical else None
    kept, validation = (
        labelled[part]
        for part in hold_out(table.iloc[labelled], arguments.validation_fraction, arguments.seed, stratify)
    )
    if categorical:
        _require_classes(labels[torch.from_numpy(kept)], task)
    if arguments.pseudo_labels == "none":
        return kept, labelled[:0], validation
    # Subjects without a label train the pretrained tokens; never another scan of one held back for validation.
    others = np.flatnonzero(~has_label)
    held_back = table["subject_id"].iloc[others].isin(table["subject_id"].iloc[validation])
    return kept, others[~held_back.to_numpy()], validation


def _require_classes(labels: Tensor, variable: BEIVariable) -> None:
    """Raise `ValueError` naming the labels that no scan has."""
    present = set(labels.tolist())
    absent = [name for index, name in enumerate(variable.labels) if index not in present]
    if absent:
        raise ValueError(f"No training scan has the label {', '.join(absent)} of {variable.name!r}.")


def _require_subjects(labels: Tensor, subjects: pd.Series, variable: BEIVariable) -> None:
    """Raise `ValueError` naming the labels that a single subject has: one subject says nothing about a group."""
    counts = subjects.groupby(labels.numpy()).nunique()
    alone = [name for index, name in enumerate(variable.labels) if counts[index] == 1]
    if alone:
        raise ValueError(
            f"A single subject of the training set has the label {', '.join(alone)} of {variable.name!r}: every label "
            "needs two subjects or more. Leave the label out, or join it with another one."
        )


def model_pseudo_labels(checkpoint: str, cohort: Cohort, threshold: float) -> Tensor:
    """The pretrained model's own confident predictions as labels.

    Args:
        checkpoint (`str`): the pretrained checkpoint. A model with a downstream task would not do: the task's new
            tokens are random at first, and the pretrained ones attend to them.
        cohort (`Cohort`): scans to predict.
        threshold (`float`): least probability for a categorical variable; continuous ones always get -100, because a
            regression has no confidence.

    Returns:
        `Tensor` of shape `(scans, variables)`, float32; -100 where the model is not confident.
    """
    with expected_new_weights():
        model = LCMForMultitaskPretraining.from_pretrained(checkpoint, dtype=torch.float32)
    logits = predict_logits(model, cohort)["logits"]
    columns, slices = [], model.config.token_slices
    for variable in model.config.bei_variables:
        best = logits[:, slices[variable["name"]]].softmax(-1).max(-1)
        confident = (best.values >= threshold) & (variable["kind"] == "categorical")
        columns.append(torch.where(confident, best.indices.float(), torch.tensor(float(IGNORE_INDEX))))
    return torch.stack(columns, dim=1)
