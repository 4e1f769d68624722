"""Multitask loss, the supervision stages over layers, and the read-outs: everything between layer logits and a number.

A *target* is what one label column is about: a categorical BEI variable (several tokens, softmax), a continuous one
(one token, squared error) or a binary one (one token, sigmoid; multi-label tasks). `TargetLayout` says which tokens
belong to which target, so that all targets are handled at once, without a loop over variables, subjects or tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


IGNORE_INDEX = -100  # label of something that was not recorded: never trained on
UNSEEN = -1.0  # running loss of a target that has not been trained; a number that no loss can be


def balanced_class_weights(labels: Tensor, num_classes: int) -> list[float]:
    """Weights that give every label of a variable the same share in the loss, whatever its frequency.

    Args:
        labels (`Tensor`): class indices of the training scans; -100 or NaN where nothing was recorded.
        num_classes (`int`): labels of the variable.

    Returns:
        `recorded / (labels that occur * scans with this label)`, so that the mean over the scans is 1; 1 for a label
        that nobody has.
    """
    counts = torch.bincount(labels[labelled(labels.float())].long(), minlength=num_classes)
    weights = counts.sum() / (counts > 0).sum().clamp_min(1) / counts.clamp_min(1)
    return torch.where(counts > 0, weights, 1.0).tolist()


@dataclass(frozen=True)
class TargetLayout:
    """Which tokens belong to which target.

    Args:
        kinds (`tuple[str, ...]`): "categorical", "continuous" or "binary", one per target.
        sizes (`tuple[int, ...]`): tokens of each target, in token order.
        weights (`tuple[float, ...]`): weight of each target in the loss.
        class_weights (`tuple[tuple[float, ...], ...]`): weight of each label in its target's loss, one tuple per
            target, empty for a target whose labels all weigh 1; `()` where all targets are like that.
    """

    kinds: tuple[str, ...]
    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    class_weights: tuple[tuple[float, ...], ...] = ()

    @classmethod
    def from_variables(
        cls, variables: list[dict[str, Any]], class_weights: dict[str, list[float]] | None = None
    ) -> "TargetLayout":
        """Layout of `LCMConfig.bei_variables`, with `LCMConfig.class_weights`."""
        weighted = set(class_weights or {}) & {variable["name"] for variable in variables}
        return cls(
            tuple(variable["kind"] for variable in variables),
            tuple(max(1, len(variable["labels"])) for variable in variables),
            tuple(float(variable["loss_weight"]) for variable in variables),
            tuple(tuple((class_weights or {}).get(variable["name"], ())) for variable in variables)
            if weighted
            else (),
        )

    @classmethod
    def from_task(cls, problem_type: str, num_labels: int, class_weights: list[float] | None = None) -> "TargetLayout":
        """Layout of a downstream task: one softmax, or one regression or one sigmoid per label."""
        if problem_type == "single_label_classification":
            return cls(("categorical",), (num_labels,), (1.0,), (tuple(class_weights),) if class_weights else ())
        kind = "continuous" if problem_type == "regression" else "binary"
        return cls((kind,) * num_labels, (1,) * num_labels, (1.0 / num_labels,) * num_labels)

    @property
    def num_tokens(self) -> int:
        """Tokens of all targets together."""
        return sum(self.sizes)


_INDEX: dict[tuple[TargetLayout, torch.device], dict[str, Tensor]] = {}


def _layout_tensors(layout: TargetLayout, device: torch.device) -> dict[str, Tensor]:
    """Index tensors of a layout, made once; see [`_make_layout_tensors`]."""
    if torch.compiler.is_compiling():
        return _make_layout_tensors(layout, device)
    known = _INDEX.get((layout, device))
    if known is None:
        with torch.inference_mode(False):  # or no later training could use them
            known = _make_layout_tensors(layout, device)
        # Tensors made while a model is traced or its memory planned hold no data.
        if all(type(tensor) is Tensor for tensor in known.values()):
            _INDEX[layout, device] = known
    return known


def _make_layout_tensors(layout: TargetLayout, device: torch.device) -> dict[str, Tensor]:
    """Index tensors of a layout: padded token table `(targets, widest)`, its padding, and each token's target."""
    widest = max(layout.sizes)
    starts = [sum(layout.sizes[:target]) for target in range(len(layout.sizes))]
    rows = [
        [*range(start, start + size), *[0] * (widest - size)] for start, size in zip(starts, layout.sizes, strict=True)
    ]
    class_weights = [[*values, *[1.0] * (widest - len(values))] for values in layout.class_weights]
    lists: dict[str, list[Any]] = {
        "tokens": rows,
        "padding": [[place >= size for place in range(widest)] for size in layout.sizes],
        "target_of_token": [target for target, size in enumerate(layout.sizes) for _ in range(size)],
        "classes": [_num_classes(*target) for target in zip(layout.kinds, layout.sizes, strict=True)],
        "categorical": [kind == "categorical" for kind in layout.kinds],
        "binary": [kind == "binary" for kind in layout.kinds],
        "weights": list(layout.weights),
        "class_weights": class_weights or [[1.0] * widest] * len(layout.sizes),
    }
    return {name: torch.tensor(values, device=device) for name, values in lists.items()}


def _num_classes(kind: str, size: int) -> float:
    return {"categorical": float(size), "binary": 2.0, "continuous": float("inf")}[kind]


def labelled(labels: Tensor) -> Tensor:
    """Boolean mask of the labels that were recorded: neither -100 nor NaN. Same shape as `labels`."""
    return (labels != IGNORE_INDEX) & ~labels.isnan()


def check_labels(labels: Tensor, layout: TargetLayout) -> None:
    """Raise `ValueError` when labels have the wrong shape or a class index that does not exist.

    Args:
        labels (`Tensor` of shape `(batch, targets)`): float labels.
        layout (`TargetLayout`): the targets they belong to.
    """
    if labels.ndim != 2 or labels.shape[1] != len(layout.kinds):
        raise ValueError(
            f"labels have shape {tuple(labels.shape)}, needed is (batch, {len(layout.kinds)}): one column per "
            "variable in vocabulary order, -100 where nothing was recorded."
        )
    classes = _layout_tensors(layout, labels.device)["classes"]
    wrong = ((labels < 0) | (labels > classes - 1)) & labelled(labels) & classes.isfinite()
    if wrong.any():
        column = int(wrong.any(0).nonzero()[0])
        values = ", ".join(f"{value:g}" for value in labels[wrong[:, column], column].unique().tolist())
        raise ValueError(
            f"Label column {column} has the class index {values}; needed are 0 to {classes[column] - 1:g}, or -100 "
            "where nothing was recorded."
        )


def _full_precision(logits: Tensor) -> Tensor:
    """float32, or float64 for a model in float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def layerwise_losses(layer_logits: Tensor, labels: Tensor, layout: TargetLayout) -> tuple[Tensor, Tensor]:
    """Loss of every subject, layer and target, and the logit that the true class got.

    Args:
        layer_logits (`Tensor` of shape `(batch, layers, tokens)`): float32 or float64.
        labels (`Tensor` of shape `(batch, targets)`): class index, scaled value or 0/1; -100 or NaN = not recorded.
        layout (`TargetLayout`): which tokens belong to which target.

    Returns:
        Two tensors of shape `(batch, layers, targets)`: the losses (0 where not recorded) and the true class's logit.
    """
    index = _layout_tensors(layout, layer_logits.device)
    known = labelled(labels)
    targets = torch.where(known, labels, torch.zeros_like(labels)).to(layer_logits.dtype)[
        :, None
    ]  # (batch, 1, targets)
    table = layer_logits[..., index["tokens"]]  # (batch, layers, targets, widest)
    first = table[..., 0]
    class_index = targets.long().clamp(0, table.shape[-1] - 1)[..., None].expand(*table.shape[:-1], 1)
    # One log-softmax, not logsumexp minus logit: its gradients are several times more accurate in float32.
    log_probabilities = table.masked_fill(index["padding"], float("-inf")).log_softmax(-1)
    cross_entropy = -log_probabilities.gather(-1, class_index)[..., 0]
    squared_error = (first - targets) ** 2
    losses = torch.where(index["categorical"], cross_entropy, squared_error)
    if "binary" in layout.kinds:
        sigmoid_loss = F.binary_cross_entropy_with_logits(first, targets.expand_as(first), reduction="none")
        losses = torch.where(index["binary"], sigmoid_loss, losses)
    if layout.class_weights:
        # Weighed here and divided by the number of labels, not by their weights: sums over parts of a batch add up.
        of_label = index["class_weights"].to(losses.dtype).expand(*table.shape).gather(-1, class_index)[..., 0]
        losses = torch.where(index["categorical"], losses * of_label, losses)
    return losses * known[:, None], table.gather(-1, class_index)[..., 0]


def supervised_losses(
    layer_logits: Tensor, labels: Tensor, layout: TargetLayout, supervision: str, best_layer: Tensor | None = None
) -> Tensor:
    """Loss of every subject and target under one supervision stage.

    - "momentum": the loss of the mean of the logits over layers (paper, stage 1).
    - "adaptive": the loss of the layer chosen for the target, the same for everybody (`best_layer`).
    - "adaptive_per_sample": categorical targets are supervised only at the layer whose true class has the highest
      logit, subject by subject; continuous and binary ones keep the mean over layers (paper, stage 2, research code).
    - "last_layer": the loss of the last layer.

    Args:
        layer_logits (`Tensor` of shape `(batch, layers, tokens)`): logits after every layer.
        labels (`Tensor` of shape `(batch, targets)`): see [`layerwise_losses`].
        layout (`TargetLayout`): which tokens belong to which target.
        supervision (`str`): one of those above.
        best_layer (`Tensor` of shape `(targets,)`, *optional*): layer index per target, needed by "adaptive".

    Returns:
        `Tensor` of shape `(batch, targets)`, float32, 0 where nothing was recorded.
    """
    layer_logits = _full_precision(layer_logits)
    if supervision == "last_layer":
        return layerwise_losses(layer_logits[:, -1:], labels, layout)[0][:, 0]
    if supervision == "adaptive":
        if best_layer is None:
            raise ValueError('supervision="adaptive" needs best_layer, the layer chosen for each target.')
        losses, _ = layerwise_losses(layer_logits, labels, layout)
        chosen = best_layer.to(losses.device).expand(losses.shape[0], 1, -1)
        return losses.gather(1, chosen)[:, 0]
    mean_losses, _ = layerwise_losses(layer_logits.mean(1, keepdim=True), labels, layout)
    if supervision == "momentum":
        return mean_losses[:, 0]
    losses, true_logit = layerwise_losses(layer_logits, labels, layout)
    per_sample = losses.gather(1, true_logit.argmax(1, keepdim=True))[:, 0]
    return torch.where(_layout_tensors(layout, losses.device)["categorical"], per_sample, mean_losses[:, 0])


def multitask_loss(
    losses: Tensor, labels: Tensor, layout: TargetLayout, target_counts: Tensor | None = None
) -> Tensor:
    """Weighted sum over targets of the mean loss over the subjects whose label was recorded.

    Args:
        losses (`Tensor` of shape `(batch, targets)`): from [`supervised_losses`].
        labels (`Tensor` of shape `(batch, targets)`): to count who was recorded.
        layout (`TargetLayout`): holds the weights (paper: 1 for classes, 1e-4 for age in years).
        target_counts (`Tensor` of shape `(targets,)`, *optional*): recorded labels in the whole optimisation step,
            when this batch is only a part of it (gradient accumulation, several processes). Defaults to this batch's.

    Returns:
        Scalar float32 tensor; a target that nobody was labelled for contributes 0.
    """
    counts = labelled(labels).sum(0) if target_counts is None else target_counts.to(losses.device)
    weights = _layout_tensors(layout, losses.device)["weights"]
    return (losses.sum(0) * weights / counts.clamp_min(1)).sum()


def read_out(layer_logits: Tensor, layout: TargetLayout, readout: str, best_layer: Tensor | None = None) -> Tensor:
    """One logit per token from the logits of all layers.

    Args:
        layer_logits (`Tensor` of shape `(batch, layers, tokens)`): logits after every layer.
        layout (`TargetLayout`): which tokens belong to which target.
        readout (`str`): "mean", "max" (class by class; continuous targets use the mean, as the research code does),
            "best_layer" or "last_layer".
        best_layer (`Tensor` of shape `(targets,)`, *optional*): layer index per target, for "best_layer".

    Returns:
        `Tensor` of shape `(batch, tokens)`, float32.
    """
    layer_logits = _full_precision(layer_logits)
    if readout == "mean":
        return layer_logits.mean(1)
    if readout == "last_layer":
        return layer_logits[:, -1]
    index = _layout_tensors(layout, layer_logits.device)
    if readout == "max":
        is_class = index["categorical"][index["target_of_token"]]
        return torch.where(is_class, layer_logits.amax(1), layer_logits.mean(1))
    if best_layer is None:
        raise ValueError('readout="best_layer" needs best_layer, the layer chosen for each target.')
    layer_of_token = best_layer.to(layer_logits.device)[index["target_of_token"]]
    return layer_logits.gather(1, layer_of_token.expand(layer_logits.shape[0], 1, -1))[:, 0]


class LayerChoice(nn.Module):
    """The layer that is best for each target, by an exponential running mean of its training loss.

    Both buffers are saved with the checkpoint. All processes of a distributed run agree: losses and counts are summed
    over them before every update.

    Attributes:
        running_loss (`Tensor` of shape `(targets, layers)`): float32 running mean loss; -1 before the first.
        best_layer (`Tensor` of shape `(targets,)`): int64, the argmin; the last layer before the first update.
    """

    running_loss: Tensor
    best_layer: Tensor
    weight = None  # PEFT asks for one when it takes a copy of a module back

    def __init__(self, num_targets: int, num_layers: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_loss", torch.full((num_targets, num_layers), UNSEEN))
        self.register_buffer("best_layer", torch.full((num_targets,), num_layers - 1))

    @property
    def is_trained(self) -> bool:
        """Whether any target has been trained."""
        return not bool(_unseen(self.running_loss).all())

    @torch.no_grad()
    def observe(self, layer_logits: Tensor, labels: Tensor, layout: TargetLayout) -> None:
        """Take one batch of training data into account.

        Args:
            layer_logits (`Tensor` of shape `(batch, layers, tokens)`): logits after every layer.
            labels (`Tensor` of shape `(batch, targets)`): see [`layerwise_losses`].
            layout (`TargetLayout`): which tokens belong to which target.
        """
        losses, _ = layerwise_losses(_full_precision(layer_logits), labels, layout)
        totals = losses.sum(0).T.contiguous()  # (targets, layers); NCCL takes nothing else
        counts = labelled(labels).sum(0).to(totals.dtype)[:, None]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(totals)
            torch.distributed.all_reduce(counts)
        mean = totals / counts.clamp_min(1)
        running = self.running_loss.float()
        mixed = torch.where(_unseen(running), mean, self.momentum * running + (1 - self.momentum) * mean)
        running = torch.where(counts > 0, mixed, running)
        self.running_loss.copy_(running)
        self.best_layer.copy_(torch.where(_unseen(running[:, 0]), self.best_layer, running.argmin(1)))


def _unseen(running_loss: Tensor) -> Tensor:
    """Where nothing has been trained; folders of the first versions have infinity there."""
    return (running_loss < 0) | running_loss.isinf()
