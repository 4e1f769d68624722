"""Which regions a token reads: cross-attention of the decoder, by layer or rolled out."""

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..data.cohort import Cohort
from ..trainer.prediction import for_model


@torch.no_grad()
def region_attention(model: PreTrainedModel, cohort: Cohort, batch_size: int = 64) -> np.ndarray:
    """Mean cross-attention of every token over regions (paper, section 3.2; maps averaged over heads and layers).

    Args:
        model (`PreTrainedModel`): an LCM head loaded with `attn_implementation="eager"`, which makes the maps.
        cohort (`Cohort`): scans to average over.
        batch_size (`int`): scans per forward pass.

    Returns:
        `(tokens, regions)`, float32: pretrained tokens first, then the task's; each row sums to 1.

    Raises:
        ValueError: the model's attention implementation makes no maps.
    """
    tokens = slice(None)
    return attention_by_scan(model, cohort, tokens, batch_size)[0].mean((0, 1), dtype=np.float64).astype("float32")


@torch.no_grad()
def attention_by_scan(
    model: PreTrainedModel, cohort: Cohort, tokens: slice, batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cross-attention of some tokens, scan by scan.

    Args:
        model (`PreTrainedModel`): an LCM head loaded with `attn_implementation="eager"`.
        cohort (`Cohort`): the scans.
        tokens (`slice`): which tokens.
        batch_size (`int`): scans per forward pass.

    Returns:
        Maps of every layer, averaged over heads, `(scans, layers, tokens, regions)`; the rollout `(scans, tokens,
        regions)`; and the layers' logits `(scans, layers, tokens)`; float32.

    Raises:
        ValueError: the model's attention implementation makes no maps.
    """
    if model.config._attn_implementation != "eager":
        raise ValueError('Attention maps need a model loaded with attn_implementation="eager".')
    model.eval()
    layers, rolled, logits = [], [], []
    for connectivity in cohort.batches(batch_size):
        outputs = model(connectivity=for_model(model, cohort, connectivity, model.device), output_attentions=True)
        cross = torch.stack([maps.float().mean(1) for maps in outputs.cross_attentions], dim=1)
        own = torch.stack([maps.float().mean(1) for maps in outputs.attentions], dim=1)
        layers.append(cross[:, :, tokens].cpu().numpy())
        rolled.append(rollout(own, cross)[:, tokens].cpu().numpy())
        logits.append(outputs.layer_logits[..., tokens].float().cpu().numpy())
    return np.concatenate(layers), np.concatenate(rolled), np.concatenate(logits)


def rollout(own: Tensor, cross: Tensor) -> Tensor:
    """Follow what tokens read through the layers: a token also carries what other tokens had read before.

    Each residual block is taken as half of what was there and half of what its attention brings; the first layer's
    self-attention has nothing to pass on.

    Args:
        own (`Tensor` of shape `(batch, layers, tokens, tokens)`): self-attention, averaged over heads.
        cross (`Tensor` of shape `(batch, layers, tokens, regions)`): cross-attention, averaged over heads.

    Returns:
        `(batch, tokens, regions)`; rows sum to 1.

    Source: Abnar and Zuidema 2020, ACL, doi:10.18653/v1/2020.acl-main.385, for a decoder with cross-attention.
    """
    carried = torch.zeros_like(cross[:, 0])
    for layer in range(cross.shape[1]):
        carried = (carried + own[:, layer] @ carried) / 2
        carried = (carried + cross[:, layer]) / 2
    return carried / carried.sum(-1, keepdim=True)


def best_layer(logits: np.ndarray, values: np.ndarray, kind: str) -> int:
    """The layer with the lowest loss of a variable on these scans.

    Args:
        logits (`np.ndarray` of shape `(scans, layers, tokens)`): of the variable's tokens.
        values (`np.ndarray` of shape `(scans,)`): class index, or scaled value.
        kind (`str`): "categorical" or "continuous".
    """
    if kind == "continuous":
        losses = (logits[..., 0] - values[:, None]) ** 2
    else:
        log_probabilities = torch.from_numpy(logits).double().log_softmax(-1).numpy()
        losses = -np.take_along_axis(log_probabilities, values.astype(int)[:, None, None], axis=2)[..., 0]
    return int(losses.mean(0).argmin())
