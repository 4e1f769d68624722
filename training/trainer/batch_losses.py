"""Losses of batches: with noise, with mixup, and of the read-out as validation uses it."""

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Beta

from modeling_lcm.loss_lcm import TargetLayout, labelled, layerwise_losses, multitask_loss

from .trainable import LCMHead


LABELS = ("labels", "bei_targets")  # label tensors of a batch; the second only where pretrained variables train too


def batch_loss(
    model: nn.Module,
    head: LCMHead,
    batch: dict[str, Any],
    counts: Tensor,
    noise: float,
    mixup: float,
    atlas_dropout: float = 0.0,
) -> Tensor:
    """Training loss of one batch; with mixup, of pairs of its scans, weighing both scans' labels by their shares.

    Of scans in several atlases, those with the same ones are mixed.

    Args:
        model (`nn.Module`): what is called, wrapped for several processes or not.
        head (`LCMHead`): the LCM head in it.
        batch (`dict[str, Any]`): `connectivity` `(batch, regions, regions)`, or a dictionary of these by atlas, and
            label tensors; `log_edges` `(batch, shrinkages, edges)`, or by atlas, where FC is fixed.
        counts (`Tensor` of shape `(targets,)`): recorded labels in the whole optimisation step.
        noise (`float`): standard deviation of the symmetric noise that is added to FC; 0 for none.
        mixup (`float`): parameter of the Beta distribution of a scan's share; 0 for no mixup.
        atlas_dropout (`float`): probability of a scan to lose an atlas; one always stays.

    Returns:
        A scalar.
    """
    given = batch["connectivity"]
    scans = {name: with_noise(part, noise) for name, part in _parts(given).items()}
    labels = {name: batch[name] for name in LABELS if name in batch}
    logs = _parts(batch["log_edges"]) if "log_edges" in batch else {}

    def inputs(scans: dict[str, Tensor], logs: Mapping[str, Tensor]) -> dict[str, Any]:
        found = {"connectivity": without_atlases(scans, atlas_dropout), "log_edges": logs}
        return {name: each if isinstance(given, Mapping) else each[""] for name, each in found.items() if each}

    if not mixup:
        return model(**inputs(scans, logs), **labels, target_counts=counts).loss
    share = Beta(mixup, mixup).sample().item()
    partner = _partners(scans)

    def mixed(parts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: share * part + (1 - share) * part[partner] for name, part in parts.items()}

    outputs = model(**inputs(mixed(scans), mixed(logs)))

    def loss_of(targets: dict[str, Tensor]) -> Tensor:
        return cast(Tensor, head.compute_loss(outputs.layer_logits, **targets, target_counts=counts))

    return share * loss_of(labels) + (1 - share) * loss_of({name: values[partner] for name, values in labels.items()})


def _parts(connectivity: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return connectivity if isinstance(connectivity, Mapping) else {"": connectivity}


def _present(scans: Mapping[str, Tensor]) -> Tensor:
    """Which atlases every scan has, bool `(batch, atlases)`."""
    return torch.stack([~part[:, 0, 0].isnan() for part in scans.values()], 1)


def _partners(scans: Mapping[str, Tensor]) -> Tensor:
    """For every scan another one to be mixed with, `(batch,)`: of those that have the same atlases."""
    some = next(iter(scans.values()))
    partner = torch.randperm(len(some), device=some.device)
    if len(scans) == 1:
        return partner
    _, kind = _present(scans).unique(dim=0, return_inverse=True)
    # Scans by kind, in their own order and in a random one.
    found = torch.empty_like(partner)
    found[kind.argsort(stable=True)] = partner[kind[partner].argsort(stable=True)]
    return found


def without_atlases(scans: dict[str, Tensor], probability: float) -> dict[str, Tensor]:
    """Scans of which each has lost each of its atlases with a probability, but never its last one.

    Args:
        scans (`dict[str, Tensor]`): FC by atlas `(batch, regions, regions)`, NaN where a scan lacks the atlas.
        probability (`float`): 0 for none.
    """
    if not probability or len(scans) == 1:
        return scans
    present = _present(scans)
    draw = torch.rand(present.shape, device=present.device).masked_fill(~present, -1.0)
    # The atlas with the largest number stays in any case: as often one as another.
    kept = (draw >= probability) | (draw == draw.amax(1, keepdim=True))
    columns = zip(scans.items(), kept.T, strict=True)
    return {name: part.masked_fill(~stays[:, None, None], torch.nan) for (name, part), stays in columns}


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


def target_counts(batch: dict[str, Any]) -> Tensor:
    """Recorded labels per target: the task's (or all variables') first, then those of `bei_targets`."""
    columns = [batch[name].float().reshape(len(batch["positions"]), -1) for name in LABELS if name in batch]
    return torch.cat([labelled(column).sum(0) for column in columns])
