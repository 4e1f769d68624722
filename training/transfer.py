"""What the pretrained model already knows, handed on to fine-tuning: pseudo-labels, and where new tokens start."""

from dataclasses import replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from modeling_lcm import BEITokenizer, LCMForMultitaskPretraining, LCMForSequenceClassification
from modeling_lcm.adapters_lcm import expected_new_weights
from modeling_lcm.loading_lcm import without_weights
from modeling_lcm.loss_lcm import IGNORE_INDEX

from .arguments import FinetuneArguments
from .data import Cohort
from .predict import predict_logits


MIN_CORRELATION = 0.5  # below this a pretrained token says too little about a label to start from it
JITTER = 0.1  # keeps two new tokens apart that start at the same pretrained one; embeddings have deviation 1


def with_default_labels(tokenizer: BEITokenizer, arguments: FinetuneArguments) -> BEITokenizer:
    """The pretrained vocabulary with the settings' default labels (paper: "rest", "healthy") in place of its own.

    Raises:
        ValueError: a default is not a token of the vocabulary, or defaults are asked for and there are none.
    """
    if arguments.pseudo_labels not in ("defaults", "model"):
        return tokenizer
    chosen = dict(token.partition("=")[::2] for token in arguments.default_labels or [])
    tokens = [token for variable in tokenizer.variables if variable.labels for token in variable.tokens]
    unknown = set(arguments.default_labels or []) - set(tokens)
    if unknown:
        raise ValueError(
            f"default_labels: {', '.join(sorted(unknown))} is no categorical token of {arguments.checkpoint}; it has "
            f"{', '.join(tokens)}."
        )
    variables = [replace(item, default=chosen.get(item.name, item.default)) for item in tokenizer.variables]
    if arguments.pseudo_labels == "defaults" and all(item.default is None for item in variables):
        raise ValueError(
            f'pseudo_labels="defaults", but no variable of {arguments.checkpoint} has a default label: give some in '
            f'default_labels (tokens among {", ".join(tokens)}), or take pseudo_labels="recorded".'
        )
    return BEITokenizer(variables=variables, task=tokenizer.task, task_is_new=tokenizer.task_is_new)


def model_pseudo_labels(checkpoint: str, cohort: Cohort, rows: np.ndarray, threshold: float) -> Tensor:
    """The pretrained model's own confident predictions as labels.

    Args:
        checkpoint (`str`): the pretrained checkpoint. A model with a downstream task would not do: the task's new
            tokens are random at first, and the pretrained ones attend to them.
        cohort (`Cohort`): the prepared data.
        rows (`np.ndarray`): scans to predict.
        threshold (`float`): least probability for a categorical variable; continuous ones always get -100, because a
            regression has no confidence.

    Returns:
        `Tensor` of shape `(scans, variables)`, float32; -100 where the model is not confident.
    """
    with expected_new_weights():
        model = LCMForMultitaskPretraining.from_pretrained(checkpoint, dtype=torch.float32)
    logits = predict_logits(model, cohort, rows)["logits"]
    columns, start = [], 0
    for variable in model.config.bei_variables:
        size = max(1, len(variable["labels"]))
        best = logits[:, start : start + size].softmax(-1).max(-1)
        confident = (best.values >= threshold) & (variable["kind"] == "categorical")
        columns.append(torch.where(confident, best.indices.float(), torch.tensor(float(IGNORE_INDEX))))
        start += size
    return torch.stack(columns, dim=1)


@torch.no_grad()
def start_from_related_tokens(
    model: LCMForSequenceClassification, cohort: Cohort, rows: np.ndarray, labels: Tensor
) -> list[str]:
    """Start a new token at the pretrained token whose logit follows its label most closely, if one does.

    Beyond the paper, whose new tokens start at random: with a few dozen labels a random token hardly learns to ask,
    while the best pretrained one (age, for young or elderly) often asks nearly the right question already.

    Args:
        model (`LCMForSequenceClassification`): as loaded from the pretrained checkpoint; its `task_embeddings` are
            changed in place.
        cohort (`Cohort`): the prepared data.
        rows (`np.ndarray`): labelled training scans; validation and test scans must not be among them.
        labels (`Tensor` of shape `(scans,)`): class index, or scaled value of a continuous task.

    Returns:
        Per new token the pretrained token it starts from, as "variable=label" or "variable"; "random" where no
        pretrained token correlates with the label by at least 0.5.
    """
    logits = predict_logits(_pretrained_part(model), cohort, rows)["logits"]
    tokens = model.config.num_task_tokens
    targets = labels.float()[:, None]
    if model.config.problem_type != "regression":
        targets = torch.nn.functional.one_hot(labels.long(), tokens).float()
    correlation = _standardise(logits).T @ _standardise(targets) / len(rows)  # (pretrained tokens, new tokens)
    strength, best = correlation.max(0)
    follows = strength >= MIN_CORRELATION
    start = model.model.bei_embeddings.weight[best]
    start = start + JITTER * torch.randn_like(start)
    model.task_embeddings.weight.copy_(torch.where(follows[:, None], start, model.task_embeddings.weight))
    if model.config.edge_readout:
        edges = model.bei_edge_readout.weight[best]
        model.task_edge_readout.weight.copy_(torch.where(follows[:, None], edges, model.task_edge_readout.weight))
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
