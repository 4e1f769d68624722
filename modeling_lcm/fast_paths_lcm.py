"""Attention of the Large Connectome Model, with the exact short cuts that its two uses allow.

Cross-attention asks many regions few questions, so it can read the regions' memory without projecting it; the first
layer's self-attention has nothing to read yet. Both give the results of plain attention, and gradients as well.
Shapes: batch B, regions N, BEI tokens P, hidden size d, heads H.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_lcm import LCMConfig


# Multiplications that folded cross-attention has to save to make up for its additional small operations; on a CPU as
# measured, on an accelerator what it computes during the launch of those operations.
LEAST_SAVING = {"cpu": 4e6, "cuda": 1e9}
# For so many multiplications, products head by head, written side by side, beat a batched one and its transposed copy.
LEAST_SIDE_BY_SIDE = 8e8
GROUP_BYTES = 2**24  # of a wide tensor on a CPU; larger ones leave its cache, and get fresh memory each time


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
    """Per head, one product with its part of a key or value projection: `(rows, H, width)` -> `(rows, H, width')`.

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
            keep = _draw_kept(queries, memory, dropout)
            context, weights = _weighted_memory(self.k_proj(queries.flatten(0, 1)), memory, queries.shape[1], keep)
            output = self.v_proj(context).unflatten(0, (memory.shape[0], -1))
        else:
            key_weight, value_weight = (
                projection.weight.view(-1, self.head_dim, memory.shape[2]) for projection in (self.k_proj, self.v_proj)
            )
            # The key bias stays in the graph: distributed training waits for a gradient of every parameter.
            bias = (self.v_proj.bias + 0 * self.k_proj.bias).view(-1, self.head_dim)
            arguments = (queries, memory, key_weight, value_weight, bias)
            if not keep_weights and _can_recompute(queries, memory):
                return self.o_proj(FoldedAttention.apply(*arguments, dropout).flatten(2)), None
            keep = _draw_kept(queries, memory, dropout)
            output, weights = _folded_attention(*arguments, keep)
        if not keep_weights:
            return self.o_proj(output.flatten(2)), None
        weights = weights if keep is None else weights * keep
        return self.o_proj(output.flatten(2)), weights.unflatten(1, (queries.shape[1], -1)).transpose(1, 2)


def _draw_kept(queries: Tensor, memory: Tensor, dropout: float) -> Tensor | None:
    """Factors `(B, P * H, N)` of attention weights: 0 for a dropped one, else 1 / (1 - dropout); None without dropout.

    They are drawn in the order of plain attention, so that one seed drops the same weights in both.
    """
    if not dropout:
        return None
    ones = memory.new_ones(memory.shape[0], queries.shape[2], queries.shape[1], memory.shape[1])
    return F.dropout(ones, dropout).transpose(1, 2).flatten(1, 2)


def _groups(queries: Tensor, memory: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Parts of the batch `(queries, memory, ...)` for which the widest tensors, `(P, H, d)` a person, stay small."""
    if queries.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        yield queries, memory, *others
        return
    people = max(1, GROUP_BYTES // (queries[0, ..., 0].numel() * memory.shape[2] * memory.element_size()))
    for start in range(0, memory.shape[0], people):
        part = slice(start, start + people)
        asked = queries if queries.shape[0] == 1 else queries[part]
        yield asked, memory[part], *(other if other is None else other[part] for other in others)


def _head_products(rows: Tensor, weight: Tensor) -> Tensor:
    """Per head, one product: `(rows, H, width)` and `(H, width, width')` -> `(rows, H, width')`."""
    side_by_side = (
        rows.device.type == "cpu"
        and rows.shape[0] * weight.numel() >= LEAST_SIDE_BY_SIDE
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )
    if not side_by_side:
        return (rows.transpose(0, 1) @ weight).transpose(0, 1)
    products = rows.new_empty(*rows.shape[:2], weight.shape[2])
    for head in range(rows.shape[1]):
        torch.mm(rows[:, head], weight[head], out=products[:, head])
    return products


def _by_person(states: Tensor, tokens: int) -> Tensor:
    """`(B * P, H, width)` -> `(B, P * H, width)`."""
    return states.unflatten(0, (-1, tokens)).flatten(1, 2)


def _by_row(states: Tensor, heads: int) -> Tensor:
    """`(B, P * H, width)` -> `(B * P, H, width)`."""
    return states.unflatten(1, (-1, heads)).flatten(0, 1)


def _weighted_memory(folded: Tensor, memory: Tensor, tokens: int, keep: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums of memory rows `(B * P, H, d)` by folded queries `(B * P or P, H, d)`, and weights `(B, P * H, N)`.

    The weights are those before dropout.
    """
    weights = (_by_person(folded, tokens) @ memory.transpose(1, 2)).softmax(-1)
    kept = weights if keep is None else weights * keep
    return _by_row(kept @ memory, folded.shape[1]), weights


def _folded_attention(
    queries: Tensor, memory: Tensor, key_weight: Tensor, value_weight: Tensor, bias: Tensor, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Folded cross-attention of scaled queries `(B or 1, P, H, head_dim)` over memory `(B, N, d)`.

    Projections are `(H, head_dim, d)`, the value bias `(H, head_dim)`; `keep` is as [`_draw_kept`] makes it. Returns
    the result `(B, P, H, head_dim)` and the weights before dropout `(B, P * H, N)`.
    """
    tokens, outputs, weights = queries.shape[1], [], []
    for asked, read, kept in _groups(queries, memory, keep):
        context, part = _weighted_memory(_head_products(asked.flatten(0, 1), key_weight), read, tokens, kept)
        outputs.append(_head_products(context, value_weight.transpose(1, 2)).unflatten(0, (-1, tokens)))
        weights.append(part)
    output, weight = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in (outputs, weights))
    row_sums = 1.0 if keep is None else (weight * keep).sum(-1).view(*output.shape[:3], 1)
    return output + row_sums * bias, weight


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
        keep = _draw_kept(queries, memory, dropout)
        output, weights = _folded_attention(queries, memory, key_weight, value_weight, bias, keep)
        mask = None if keep is None else keep.bool()  # a quarter of its memory
        ctx.save_for_backward(queries, memory, key_weight, value_weight, bias, weights, mask)
        ctx.dropout = dropout
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        queries, memory, key_weight, value_weight, bias, weights, mask = saved = ctx.saved_tensors
        keep = None if mask is None else mask * (1 / (1 - ctx.dropout))
        tokens, heads = queries.shape[1:3]
        needed = zip(saved[:5], ctx.needs_input_grad, strict=False)
        grads = [part.new_zeros(part.shape) if is_needed else None for part, is_needed in needed]
        grad_queries, grad_memory, grad_key, grad_value, grad_bias = grads
        groups = _groups(queries, memory, weights, keep, grad_output, grad_queries, grad_memory)
        for asked, read, plain, kept, grad, into_queries, into_memory in groups:
            used = plain if kept is None else plain * kept
            rows = grad.flatten(0, 1)
            grad_context = _by_person(_head_products(rows, value_weight), tokens)  # (B, P * H, d)
            grad_used = grad_context @ read.transpose(1, 2)
            if kept is not None:
                grad_used += (grad * bias).sum(-1).flatten(1)[..., None]
            if grad_value is not None:
                grad_value.baddbmm_(rows.permute(1, 2, 0), _by_row(used @ read, heads).transpose(0, 1))
            if grad_bias is not None:
                row_sums = 1.0 if kept is None else used.sum(-1).view(*grad.shape[:3], 1)
                grad_bias += (grad * row_sums).sum((0, 1))
            grad_plain = grad_used if kept is None else grad_used * kept
            grad_scores = plain * (grad_plain - (grad_plain * plain).sum(-1, keepdim=True))
            rows = asked.flatten(0, 1)
            if into_memory is not None:
                folded = _by_person(_head_products(rows, key_weight), tokens)
                torch.bmm(used.transpose(1, 2), grad_context, out=into_memory)
                into_memory.baddbmm_(grad_scores.transpose(1, 2), folded)
            grad_folded = _by_row(grad_scores @ read, heads)
            if grad_key is not None:
                grad_key.baddbmm_(rows.permute(1, 2, 0), grad_folded.transpose(0, 1))
            if into_queries is not None:
                into_queries.copy_(_head_products(grad_folded, key_weight.transpose(1, 2)).unflatten(0, (-1, tokens)))
        return *grads, None
