"""Attention of the Large Connectome Model, with the exact short cuts that its two uses allow.

Cross-attention asks many regions few questions, so it can read the regions' memory without projecting it; the first
layer's self-attention has nothing to read yet. Both give the results of plain attention, and gradients as well.
Shapes: batch B, regions N, BEI tokens P, hidden size d, heads H.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_lcm import LCMConfig


# Multiplications that folded cross-attention has to save to make up for its additional small operations; on a CPU as
# measured, on an accelerator what it computes during the launch of those operations.
LEAST_SAVING = {"cpu": 4e6, "cuda": 1e9}


def is_plain(*modules: nn.Module, kind: type[nn.Module] = nn.Linear) -> bool:
    """Whether calling these modules does no more than PyTorch's own `kind` does with its weights.

    Adapters, quantised layers, offloading hooks and a `forward` put on the module itself work through its call: a
    short cut that reads its weight instead would pass them by.
    """
    return all(
        type(module) is kind
        and not module._forward_hooks
        and not module._forward_pre_hooks
        and not {"_hf_hook", "forward"} & module.__dict__.keys()
        for module in modules
    )


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
    """Plain attention that also returns its weights; query, key, value `(batch, heads, length, head_dim)`."""
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(-1), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class HeadProducts(nn.Module):
    """Per head, one product with its part of a key or value projection: `(H, rows, width)` -> `(H, rows, width')`.

    What a key or value projection of cross-attention becomes where its weight is kept in another form (see
    `quantization_lcm.py`). It has no way back to a product with the memory, so such attention is always folded.
    """


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
        self.k_proj: Any = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj: Any = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, from_zero: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from `query` `(B or 1, P, d)` to `key` and `value` `(B, length, d)`.

        Args:
            query (`Tensor` of shape `(batch or 1, tokens, d)`): 1 if all people ask the same.
            key, value (`Tensor` of shape `(batch, length, d)`): what is attended to; one tensor in cross-attention. A
                `key` may have batch 1 as well.
            from_zero (`bool`): `value` is zero everywhere, as in the first layer's self-attention.

        Returns:
            The result `(B, P, d)`, or `(1, 1 or P, d)` where it is the same for all of them; and the weights
            `(B, H, P, length)` where the attention implementation makes them (eager), else None.
        """
        implementation = self.config._attn_implementation
        if from_zero and implementation == "sdpa":
            attended = self._attend_to_nothing(query, key, value)
            if attended is not None:
                return attended, None
        # An attention implementation of the user's own is never passed by.
        if key is value and implementation in ("eager", "sdpa") and self._folds(query, key):
            output, weights = self._read_folded(query, key, keep_weights=implementation == "eager")
            return output, weights
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        keys, values = self._split_heads(self.k_proj(key)), self._split_heads(self.v_proj(value))
        batch = values.shape[0]
        output, weights = attention(
            self,
            self._split_heads(self.q_proj(query)).expand(batch, -1, -1, -1),
            keys.expand(batch, -1, -1, -1),
            values,
            None,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
        )
        return self.o_proj(output.flatten(2)), weights

    def _split_heads(self, states: Tensor) -> Tensor:
        """`(batch, length, d)` -> `(batch, heads, length, head_dim)`."""
        return states.view(*states.shape[:2], -1, self.head_dim).transpose(1, 2)

    def _attend_to_nothing(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
        """Self-attention over values that are all the same row, the value bias; None if only plain attention will do.

        Weights sum to 1, so the result is one row whatever the queries and keys are. Dropout changes the sums, person
        by person; but queries, keys and what a sum is multiplied with are the same for all people.
        """
        if not (self.training or torch.is_grad_enabled()):
            observed = any(m._forward_hooks or m._forward_pre_hooks for m in (self.q_proj, self.k_proj))
            return None if observed else self.o_proj(self.v_proj(value[:1, :1]))
        if not is_plain(self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            return None
        scores = self._split_heads(self.q_proj(query)) @ self._split_heads(self.k_proj(key)).transpose(2, 3)
        weights = (scores * self.scaling).softmax(-1)
        if self.training:
            weights = F.dropout(weights.expand(value.shape[0], -1, -1, -1), self.dropout)
        row_sums = weights.sum(-1).transpose(1, 2)  # (B or 1, P, H)
        row = self.v_proj(value[0, :1]).view(-1, self.head_dim, 1)
        heads = self.o_proj.weight.view(-1, row.shape[0], self.head_dim).transpose(0, 1) @ row  # (H, d, 1)
        return row_sums @ heads[..., 0].to(row_sums.dtype) + self.o_proj.bias

    def _folds(self, query: Tensor, memory: Tensor) -> bool:
        """Whether cross-attention leaves the memory unprojected: where that is allowed, and faster."""
        if isinstance(self.k_proj, HeadProducts):
            return True
        return is_plain(self.k_proj, self.v_proj) and self._folding_pays(query, memory)

    def _folding_pays(self, query: Tensor, memory: Tensor) -> bool:
        """Whether [`_read_folded`] is faster than projecting the memory: clearly fewer multiplications, and many."""
        tokens, (batch, length, width) = query.shape[1], memory.shape
        projected = length * width
        folded = tokens * (width + (width // self.head_dim - 1) * length)
        if folded > 0.8 * projected:
            return False
        # NOTE: a compiled graph is for any batch size, and does not pay for every small operation.
        least = LEAST_SAVING.get(query.device.type, LEAST_SAVING["cuda"])
        return torch.compiler.is_compiling() or 2 * batch * width * (projected - folded) >= least

    def _read_folded(self, query: Tensor, memory: Tensor, keep_weights: bool = False) -> tuple[Tensor, Tensor | None]:
        """Cross-attention without projecting the memory: the same result, with the products in another order.

        Per head, scores are (q W_k) M^T, since the key bias cancels in the softmax; the value projection is applied to
        the weighted sum of memory, and its bias once per row, times the row's sum (1 without dropout).
        """
        queries = self.q_proj(query)
        queries = queries.view(*queries.shape[:2], -1, self.head_dim) * self.scaling
        dropout = self.dropout if self.training else 0.0
        if isinstance(self.k_proj, HeadProducts):
            context, weights, _ = _weighted_memory(self.k_proj(_by_head(queries)), memory, queries.shape[1], dropout)
            return self.o_proj(_by_token(self.v_proj(context), memory.shape[0]).flatten(2)), weights
        key_weight, value_weight = (
            projection.weight.view(-1, self.head_dim, memory.shape[2]) for projection in (self.k_proj, self.v_proj)
        )
        # The key bias stays in the graph: distributed training waits for a gradient of every parameter.
        bias = (self.v_proj.bias + 0 * self.k_proj.bias).view(-1, self.head_dim)
        arguments = (queries, memory, key_weight, value_weight, bias, dropout)
        if not keep_weights and _can_recompute(queries, memory):
            return self.o_proj(FoldedAttention.apply(*arguments).flatten(2)), None
        output, weights, _ = _folded_attention(*arguments)
        return self.o_proj(output.flatten(2)), weights if keep_weights else None


def _by_head(states: Tensor) -> Tensor:
    """`(B, P, H, width)` -> `(H, B * P, width)`."""
    return states.permute(2, 0, 1, 3).flatten(1, 2)


def _by_token(states: Tensor, batch: int) -> Tensor:
    """`(H, B * P, width)` -> `(B, P, H, width)`."""
    return states.unflatten(1, (batch, -1)).permute(1, 2, 0, 3)


def _by_person(states: Tensor, tokens: int) -> Tensor:
    """`(H, B * P, width)` -> `(B, H * P, width)`."""
    return states.unflatten(1, (-1, tokens)).transpose(0, 1).flatten(1, 2)


def _weighted_memory(
    folded: Tensor, memory: Tensor, tokens: int, dropout: float
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor | None]]:
    """Sums of memory rows `(H, B * P, d)` by folded queries `(H, B * P or P, d)`.

    Returns also the weights `(B, H, P, N)` with dropout, and what the backward pass needs: the weights
    `(B, H * P, N)` before it and its mask.
    """
    plain = (_by_person(folded, tokens) @ memory.transpose(1, 2)).softmax(-1)
    weights, mask = torch.native_dropout(plain, dropout, True) if dropout else (plain, None)
    context = (weights @ memory).unflatten(1, (-1, tokens)).transpose(0, 1).flatten(1, 2)
    return context, weights.unflatten(1, (-1, tokens)), (plain, mask)


def _folded_attention(
    queries: Tensor, memory: Tensor, key_weight: Tensor, value_weight: Tensor, bias: Tensor, dropout: float
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor | None]]:
    """Folded cross-attention of scaled queries `(B or 1, P, H, head_dim)` over memory `(B, N, d)`.

    Weights are `(H, head_dim, d)`, the value bias `(H, head_dim)`. Returns the result `(B, P, H, head_dim)`, then as
    [`_weighted_memory`].
    """
    context, weights, saved = _weighted_memory(_by_head(queries) @ key_weight, memory, queries.shape[1], dropout)
    output = _by_token(context @ value_weight.transpose(1, 2), memory.shape[0])
    row_sums = weights.sum(-1).transpose(1, 2)[..., None] if dropout else 1.0  # (B, P, H, 1)
    return output + row_sums * bias, weights, saved


def _can_recompute(queries: Tensor, memory: Tensor) -> bool:
    """Whether [`FoldedAttention`] may stand in: it is for autograd alone, and does its products in one precision."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled(queries.device.type)
        and queries.shape[0] == memory.shape[0]
    )


class FoldedAttention(torch.autograd.Function):
    """[`_folded_attention`], keeping queries and weights for the backward pass and recomputing the wide tensors.

    Folded queries and sums of memory are H times as large as the queries; autograd would keep several of each.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        memory: Tensor,
        key_weight: Tensor,
        value_weight: Tensor,
        bias: Tensor,
        dropout: float,
    ) -> Tensor:
        output, _, (plain, mask) = _folded_attention(queries, memory, key_weight, value_weight, bias, dropout)
        ctx.save_for_backward(queries, memory, key_weight, value_weight, bias, plain, mask)
        ctx.dropout = dropout
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        queries, memory, key_weight, value_weight, bias, plain, mask = ctx.saved_tensors
        tokens = queries.shape[1]
        keep = 1.0 if mask is None else mask * (1 / (1 - ctx.dropout))
        weights = plain * keep
        by_head = _by_head(grad_output)
        grad_context = _by_person(by_head @ value_weight, tokens)  # (B, H * P, d)
        grad_weights = grad_context @ memory.transpose(1, 2)
        grad_value = grad_bias = None
        row_sums = weights.sum(-1).unflatten(1, (-1, tokens)).transpose(1, 2)[..., None]
        if mask is not None:
            grad_weights += (grad_output * bias).sum(-1).transpose(1, 2).flatten(1)[..., None]
        if ctx.needs_input_grad[3]:
            context = (weights @ memory).unflatten(1, (-1, tokens)).transpose(0, 1).flatten(1, 2)
            grad_value = by_head.transpose(1, 2) @ context
        if ctx.needs_input_grad[4]:
            grad_bias = (grad_output * (1.0 if mask is None else row_sums)).sum((0, 1))
        grad_plain = grad_weights * keep
        grad_scores = plain * (grad_plain - (grad_plain * plain).sum(-1, keepdim=True))
        grad_memory = None
        heads = _by_head(queries)
        if ctx.needs_input_grad[1]:
            folded = _by_person(heads @ key_weight, tokens)
            grad_memory = weights.transpose(1, 2) @ grad_context
            grad_memory.baddbmm_(grad_scores.transpose(1, 2), folded)
        grad_folded = (grad_scores @ memory).unflatten(1, (-1, tokens)).transpose(0, 1).flatten(1, 2)
        grad_key = heads.transpose(1, 2) @ grad_folded if ctx.needs_input_grad[2] else None
        grad_queries = _by_token(grad_folded @ key_weight.transpose(1, 2), memory.shape[0])
        return grad_queries, grad_memory, grad_key, grad_value, grad_bias, None
