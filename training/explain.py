"""Which regions a BEI token reads: cross-attention, averaged over heads, layers and people."""

import numpy as np
import torch
from transformers import PreTrainedModel

from .data import Cohort, to_matrices


@torch.no_grad()
def region_attention(model: PreTrainedModel, cohort: Cohort, rows: np.ndarray, batch_size: int = 64) -> np.ndarray:
    """Mean cross-attention of every token over regions (paper, section 3.2; maps averaged over heads and layers).

    Args:
        model (`PreTrainedModel`): an LCM head loaded with `attn_implementation="eager"`, which makes the maps.
        cohort (`Cohort`): the prepared data.
        rows (`np.ndarray`): scans to average over.
        batch_size (`int`): scans per forward pass.

    Returns:
        `(tokens, regions)`, float32: pretrained tokens first, then the task's; each row sums to 1.

    Raises:
        ValueError: the model's attention implementation makes no maps.
    """
    if model.config._attn_implementation != "eager":
        raise ValueError('Attention maps need a model loaded with attn_implementation="eager".')
    model.eval()
    total: torch.Tensor | float = 0.0
    for start in range(0, len(rows), batch_size):
        triangles = torch.from_numpy(cohort.triangles[rows[start : start + batch_size]])
        connectivity = to_matrices(triangles, cohort.feature_extractor.num_regions).to(model.device)
        maps = model(connectivity=connectivity, output_attentions=True).cross_attentions
        total = total + torch.stack(maps).mean((0, 2)).sum(0)  # layers and heads averaged, people summed
    return (total / len(rows)).float().cpu().numpy()
