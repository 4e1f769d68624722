"""Multi-head attention of the Large Connectome Model: among BEI tokens, and from tokens to the regions' memory."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_lcm import LCMConfig
from .fast_paths_lcm import fast_attention


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Plain attention that also returns its weights: softmax(scaling Q K^T) V.

    Args:
        module (`nn.Module`): the attention; says whether it is training.
        query, key, value (`Tensor` of shape `(batch, heads, length, head_dim)`): projected.
        attention_mask (`Tensor`, *optional*): added to the scores `(batch, heads, length of query, length of key)`.
        scaling (`float`): of the scores.
        dropout (`float`): share of the weights that is dropped in training.
        **kwargs: of other implementations; not used.

    Returns:
        Result `(batch, length, heads, head_dim)` and weights, of the scores' shape.
    """
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(-1), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class LCMAttention(nn.Module):
    """Multi-head attention with separate query, key, value and output projections, all with biases."""

    # SDPA would otherwise take the module as causal; LCM has no causal mask anywhere.
    is_causal = False

    def __init__(self, config: LCMConfig) -> None:
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_dropout
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj: nn.Module = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj: nn.Module = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from queries to keys and values.

        Args:
            query (`Tensor` of shape `(batch or 1, tokens, d)`): 1 if it is the same for all subjects.
            key (`Tensor` of shape `(batch or 1, length, d)`): what is attended to.
            value (`Tensor` of shape `(batch, length, d)`): what is read there; in cross-attention the keys' tensor.
            mask (`Tensor` of shape `(batch, length)`, *optional*): False for what is not there, and is not read.

        Returns:
            The result `(batch, tokens, d)`, or `(1, 1 or tokens, d)` where it is the same for all of them; and the
            weights `(batch, heads, tokens, length)` where the attention implementation makes them (eager), else None.
        """
        shortcut = fast_attention(self, query, key, value, mask)
        if shortcut is not None:
            return shortcut
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        keys, values = self.split_heads(self.k_proj(key)), self.split_heads(self.v_proj(value))
        batch = values.shape[0]
        added = None if mask is None else keys.new_zeros(mask.shape).masked_fill(~mask, -torch.inf)[:, None, None]
        output, weights = attention(
            self,
            self.split_heads(self.q_proj(query)).expand(batch, -1, -1, -1),
            keys.expand(batch, -1, -1, -1),
            values,
            added,  # to the scores `(batch, heads, tokens, length)`
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
        )
        return self.o_proj(output.flatten(2)), weights  # heads side by side: (batch, tokens, d)

    def split_heads(self, states: Tensor) -> Tensor:
        """`(batch, length, d)` -> `(batch, heads, length, head_dim)`."""
        return states.view(*states.shape[:2], -1, self.head_dim).transpose(1, 2)
