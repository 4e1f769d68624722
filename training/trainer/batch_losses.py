"""Losses of batches: with noise, with mixup, and of the read-out as validation uses it."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributions import Beta

from modeling_lcm.loss_lcm import TargetLayout, labelled, layerwise_losses, multitask_loss

from .trainable import LCMHead


LABELS = ("labels", "bei_targets")  # label tensors of a batch; the second only where pretrained variables train too


def batch_loss(
    model: nn.Module, head: LCMHead, batch: dict[str, Tensor], counts: Tensor, noise: float, mixup: float
) -> Tensor:
    """Training loss of one batch; with mixup, of pairs of its scans, weighing both scans' labels by their shares.

    Args:
        model (`nn.Module`): what is called, wrapped for several processes or not.
        head (`LCMHead`): the LCM head in it.
        batch (`dict[str, Tensor]`): `connectivity` `(batch, regions, regions)` and label tensors.
        counts (`Tensor` of shape `(targets,)`): recorded labels in the whole optimisation step.
        noise (`float`): standard deviation of the symmetric noise that is added to FC; 0 for none.
        mixup (`float`): parameter of the Beta distribution of a scan's share; 0 for no mixup.

    Returns:
        A scalar.
    """
    connectivity = with_noise(batch["connectivity"], noise)
    labels = {name: batch[name] for name in LABELS if name in batch}
    if not mixup:
        return model(connectivity=connectivity, **labels, target_counts=counts).loss
    share = Beta(mixup, mixup).sample().item()
    partner = torch.randperm(len(connectivity), device=connectivity.device)
    outputs = model(connectivity=share * connectivity + (1 - share) * connectivity[partner])

    def loss_of(targets: dict[str, Tensor]) -> Tensor:
        return cast(Tensor, head.compute_loss(outputs.layer_logits, **targets, target_counts=counts))

    return share * loss_of(labels) + (1 - share) * loss_of({name: values[partner] for name, values in labels.items()})


def with_noise(connectivity: Tensor, std: float) -> Tensor:
    """FC `(batch, regions, regions)` with symmetric normal noise of a standard deviation off the diagonal."""
    if not std:
        return connectivity
    noise = torch.randn_like(connectivity) * (std / math.sqrt(2))
    return connectivity + noise + noise.transpose(1, 2)


def readout_loss(logits: Tensor, labels: Tensor, layout: TargetLayout) -> Tensor:
    """Multitask loss of read-out logits `(scans, tokens)` against labels `(scans, targets)`; a scalar."""
    losses, _ = layerwise_losses(logits[:, None], labels, layout)
    return multitask_loss(losses[:, 0], labels, layout)


def target_counts(batch: dict[str, Tensor]) -> Tensor:
    """Recorded labels per target: the task's (or all variables') first, then those of `bei_targets`."""
    columns = [batch[name].float().reshape(len(batch["positions"]), -1) for name in LABELS if name in batch]
    return torch.cat([labelled(column).sum(0) for column in columns])
