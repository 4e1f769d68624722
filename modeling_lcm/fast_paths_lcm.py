"""Exact short cuts of the model: the same results and gradients as its plain modules, for less time and memory.

Every entry point returns the result, or None where only the plain way will do, which then follows in the module that
asked:

- [`fast_attention`]: cross-attention asks many regions few questions, so it reads the regions' memory without
  projecting it; before the first layer all states are zero, so that its self-attention has nothing to read yet.
- [`fast_stem`]: Linear and batch norm as one product.
- [`fast_read_out`]: norm and read-out as one weighted sum.

Shapes: batch B, regions N, BEI tokens P, hidden size d, heads H.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


# Multiplications that folded cross-attention has to save to make up for its additional operations; see docs/gpu.md.
LEAST_SAVING = {"cpu": 4e6, "cuda": 5e10}
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


class HeadProducts(nn.Module):
    """Per head, one product with its part of a key or value projection: `(rows, H, width)` -> `(rows, H, width')`.

    What a key or value projection of cross-attention becomes where its weight is kept in another form (see
    `quantization_lcm.py`). It has no way back to a product with the memory, so such attention is always folded.
    """


def is_one_row(states: Tensor) -> bool:
    """Whether states `(B, P, d)` repeat one row for all subjects and tokens, as the zeros before the first layer do.

    Their strides of 0 say so: such a tensor was expanded, and is kept once.
    """
    return states.stride(0) == states.stride(1) == 0


def once(states: Tensor) -> Tensor:
    """The one row `(1, 1, d)` that states repeat, or states `(B, P, d)` as they are.

    What follows from it alone has a batch of 1, and is computed once for all subjects.
    """
    return states[:1, :1] if is_one_row(states) else states


def fast_attention(
    attention: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None
) -> tuple[Tensor, Tensor | None] | None:
    """Attention by a short cut, where one is exact and pays; an implementation of the user's own is never passed by.

    Args:
        attention (`LCMAttention`): its projections, settings and mode.
        query, key, value, mask (`Tensor`): as for its `forward`.

    Returns:
        What its `forward` returns, or None where only plain attention will do.
    """
    implementation = attention.config._attn_implementation
    if implementation == "sdpa" and is_one_row(value):
        attended = _attend_to_one_row(attention, query, key, value)
        if attended is not None:
            return attended, None
    if key is value and implementation in ("eager", "sdpa") and _folds(attention, query, key):
        return _read_folded(attention, query, key, mask, keep_weights=implementation == "eager")
    return None


def _attend_to_one_row(attention: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor | None:
    """Self-attention over values that are all the same row: `(B, P, d)`, or `(1, 1 or P, d)` if the same for all.

    Weights sum to 1, so the result is that row's, whatever the queries and keys are. Dropout changes the sums, subject
    by subject; but queries, keys and what a sum is multiplied with are the same for all subjects. None if only plain
    attention will do.
    """
    q_proj, k_proj, v_proj, o_proj = attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj
    if not (attention.training or torch.is_grad_enabled()):
        observed = any(module._forward_hooks or module._forward_pre_hooks for module in (q_proj, k_proj))
        return None if observed else o_proj(v_proj(value[:1, :1]))
    if not is_plain(q_proj, k_proj, v_proj, o_proj):
        return None
    scores = attention.split_heads(q_proj(query)) @ attention.split_heads(k_proj(key)).transpose(2, 3)
    weights = (scores * attention.scaling).softmax(-1)
    if attention.training:
        weights = F.dropout(weights.expand(value.shape[0], -1, -1, -1), attention.dropout)
    row_sums = weights.sum(-1).transpose(1, 2)  # (B or 1, P, H)
    row = v_proj(value[0, :1]).view(-1, attention.head_dim, 1)  # (H, head_dim, 1)
    # What each head adds to the result if its weights sum to 1.
    heads = o_proj.weight.view(-1, row.shape[0], attention.head_dim).transpose(0, 1) @ row  # (H, d, 1)
    return row_sums @ heads[..., 0].to(row_sums.dtype) + o_proj.bias


def _folds(attention: Any, query: Tensor, memory: Tensor) -> bool:
    """Whether cross-attention leaves the memory unprojected: where that is allowed, and faster."""
    if isinstance(attention.k_proj, HeadProducts):
        return True
    return is_plain(attention.k_proj, attention.v_proj) and folding_pays(query, memory, attention.head_dim)


def folding_pays(query: Tensor, memory: Tensor, head_dim: int) -> bool:
    """Whether [`_read_folded`] is faster than projecting the memory: clearly fewer multiplications, and many."""
    if memory.device.type != "cpu" and memory.dtype in (torch.bfloat16, torch.float16):
        return False  # there products are cheap, and what is read and written counts
    tokens, (batch, length, width) = query.shape[1], memory.shape
    projected = length * width
    folded = tokens * (width + (width // head_dim - 1) * length)
    if folded > 0.8 * projected:
        return False
    # NOTE: a compiled graph is for any batch size, and does not pay for every small operation.
    least = LEAST_SAVING.get(query.device.type, LEAST_SAVING["cuda"])
    return torch.compiler.is_compiling() or 2 * batch * width * (projected - folded) >= least


def _read_folded(
    attention: Any, query: Tensor, memory: Tensor, mask: Tensor | None, keep_weights: bool
) -> tuple[Tensor, Tensor | None]:
    """Cross-attention without projecting the memory: the same result, with the products in another order.

    Per head, scores are (q W_k) M^T, since the key bias cancels in the softmax; the value projection is applied to
    the weighted sum of memory, and its bias once per row, times the row's sum (1 without dropout).
    """
    head_dim, k_proj, v_proj, o_proj = attention.head_dim, attention.k_proj, attention.v_proj, attention.o_proj
    queries = attention.q_proj(query)
    queries = queries.view(*queries.shape[:2], -1, head_dim) * attention.scaling  # (B or 1, P, H, head_dim)
    dropout = attention.dropout if attention.training else 0.0
    if isinstance(k_proj, HeadProducts):
        keep = _draw_kept(queries, memory, dropout)
        context, weights = _weighted_memory(k_proj(queries.flatten(0, 1)), memory, queries.shape[1], keep, mask)
        output = v_proj(context).unflatten(0, (memory.shape[0], -1))
    else:
        key_weight, value_weight = (
            projection.weight.view(-1, head_dim, memory.shape[2])  # (H, head_dim, d)
            for projection in (k_proj, v_proj)
        )
        # The key bias stays in the graph: distributed training waits for a gradient of every parameter.
        bias = (v_proj.bias + 0 * k_proj.bias).view(-1, head_dim)
        arguments = (queries, memory, key_weight, value_weight, bias)
        if not keep_weights and _can_recompute(queries, memory):
            return o_proj(FoldedAttention.apply(*arguments, dropout, mask).flatten(2)), None
        keep = _draw_kept(queries, memory, dropout)
        output, weights = _folded_attention(*arguments, keep, mask)
    if not keep_weights:
        return o_proj(output.flatten(2)), None
    weights = weights if keep is None else weights * keep
    # (B, P * H, N) -> (B, H, P, N)
    return o_proj(output.flatten(2)), weights.unflatten(1, (queries.shape[1], -1)).transpose(1, 2)


def _draw_kept(queries: Tensor, memory: Tensor, dropout: float) -> Tensor | None:
    """Factors `(B, P * H, N)` of attention weights: 0 for a dropped one, else 1 / (1 - dropout); None without dropout.

    They are drawn in the order of plain attention, so that one seed drops the same weights in both.
    """
    if not dropout:
        return None
    ones = memory.new_ones(memory.shape[0], queries.shape[2], queries.shape[1], memory.shape[1])
    return F.dropout(ones, dropout).transpose(1, 2).flatten(1, 2)


def _groups(queries: Tensor, memory: Tensor, *others: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Parts of the batch `(queries, memory, ...)` for which the widest tensors, `(P, H, d)` a subject, stay small."""
    if queries.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        yield queries, memory, *others
        return
    subjects = max(1, GROUP_BYTES // (queries[0, ..., 0].numel() * memory.shape[2] * memory.element_size()))
    for start in range(0, memory.shape[0], subjects):
        part = slice(start, start + subjects)
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


def _by_subject(states: Tensor, tokens: int) -> Tensor:
    """`(B * P, H, width)` -> `(B, P * H, width)`."""
    return states.unflatten(0, (-1, tokens)).flatten(1, 2)


def _by_row(states: Tensor, heads: int) -> Tensor:
    """`(B, P * H, width)` -> `(B * P, H, width)`."""
    return states.unflatten(1, (-1, heads)).flatten(0, 1)


def _weighted_memory(
    folded: Tensor, memory: Tensor, tokens: int, keep: Tensor | None, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sums of memory rows `(B * P, H, d)` by folded queries `(B * P or P, H, d)`, and weights `(B, P * H, N)`.

    The weights are those before dropout; 0 where `mask` `(B, N)` is False.
    """
    scores = _by_subject(folded, tokens) @ memory.transpose(1, 2)
    weights = (scores if mask is None else scores.masked_fill(~mask[:, None], -torch.inf)).softmax(-1)
    kept = weights if keep is None else weights * keep
    return _by_row(kept @ memory, folded.shape[1]), weights


def _folded_attention(
    queries: Tensor,
    memory: Tensor,
    key_weight: Tensor,
    value_weight: Tensor,
    bias: Tensor,
    keep: Tensor | None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Folded cross-attention of scaled queries `(B or 1, P, H, head_dim)` over memory `(B, N, d)`.

    Projections are `(H, head_dim, d)`, the value bias `(H, head_dim)`; `keep` is as [`_draw_kept`] makes it. Returns
    the result `(B, P, H, head_dim)` and the weights before dropout `(B, P * H, N)`.
    """
    tokens, outputs, weights = queries.shape[1], [], []
    for asked, read, kept, there in _groups(queries, memory, keep, mask):
        context, part = _weighted_memory(_head_products(asked.flatten(0, 1), key_weight), read, tokens, kept, there)
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
        mask: Tensor | None = None,
    ) -> Tensor:
        keep = _draw_kept(queries, memory, dropout)
        output, weights = _folded_attention(queries, memory, key_weight, value_weight, bias, keep, mask)
        kept = None if keep is None else keep.bool()  # a quarter of its memory
        ctx.save_for_backward(queries, memory, key_weight, value_weight, bias, weights, kept)
        ctx.dropout = dropout
        return output

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        queries, memory, key_weight, value_weight, bias, weights, drawn = saved = ctx.saved_tensors
        keep = None if drawn is None else drawn * (1 / (1 - ctx.dropout))
        tokens, heads = queries.shape[1:3]
        needed = zip(saved[:5], ctx.needs_input_grad, strict=False)
        grads = [part.new_zeros(part.shape) if is_needed else None for part, is_needed in needed]
        grad_queries, grad_memory, grad_key, grad_value, grad_bias = grads
        groups = _groups(queries, memory, weights, keep, grad_output, grad_queries, grad_memory)
        for asked, read, plain, kept, grad, into_queries, into_memory in groups:
            used = plain if kept is None else plain * kept
            rows = grad.flatten(0, 1)
            grad_context = _by_subject(_head_products(rows, value_weight), tokens)  # (B, P * H, d)
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
                folded = _by_subject(_head_products(rows, key_weight), tokens)
                torch.bmm(used.transpose(1, 2), grad_context, out=into_memory)
                into_memory.baddbmm_(grad_scores.transpose(1, 2), folded)
            grad_folded = _by_row(grad_scores @ read, heads)
            if grad_key is not None:
                grad_key.baddbmm_(rows.permute(1, 2, 0), grad_folded.transpose(0, 1))
            if into_queries is not None:
                into_queries.copy_(_head_products(grad_folded, key_weight.transpose(1, 2)).unflatten(0, (-1, tokens)))
        return *grads, None, None


def fast_stem(proj: nn.Linear, norm: nn.BatchNorm1d, connectivity: Tensor, negative_slope: float) -> Tensor | None:
    """Linear, batch norm and LeakyReLU of the stem: the norm scales and shifts the rows of the Linear's weight.

    In training, mean and variance of the Linear's output follow from mean and covariance of its input, W m + b and
    diag(W C W^T), so that the output before the norm is never made, nor kept for the backward pass.

    Args:
        proj (`nn.Linear`): regions -> d.
        norm (`nn.BatchNorm1d`): over batch x regions; its running statistics are updated in training.
        connectivity (`Tensor` of shape `(batch, regions, regions)`): the stem's input.
        negative_slope (`float`): of the LeakyReLU.

    Returns:
        Memory `(batch, regions, d)`, or None where only the plain modules will do.
    """
    if not _norm_folds(proj, norm, connectivity):
        return None
    statistics: Any = norm
    if norm.training:
        inputs = connectivity.flatten(0, 1)  # (batch x regions, regions)
        input_mean = inputs.mean(0)
        centred = inputs - input_mean
        mean = proj(input_mean)
        var = ((proj.weight @ (centred.T @ centred / len(inputs))) * proj.weight).sum(1)
        _update_statistics(statistics, mean.detach(), var.detach() * (len(inputs) / (len(inputs) - 1)))
    else:
        mean, var = statistics.running_mean, statistics.running_var
    scale = norm.weight * (var + norm.eps).rsqrt()
    rows = F.linear(connectivity, proj.weight * scale[:, None], (proj.bias - mean) * scale + norm.bias)
    return F.leaky_relu_(rows, negative_slope)


def _norm_folds(proj: nn.Linear, norm: nn.BatchNorm1d, connectivity: Tensor) -> bool:
    """Whether [`fast_stem`] is exact: nothing else works through Linear or norm, and all is done in one precision."""
    if not (is_plain(proj) and is_plain(norm, kind=nn.BatchNorm1d)):
        return False
    if norm.training:
        is_possible = norm.momentum is not None and connectivity[..., 0].numel() > 1
    else:
        # Scaled weights round differently; gradients in evaluation mode are for looking at, so they stay plain.
        is_possible = not torch.is_grad_enabled()
    return is_possible and _is_one_precision(connectivity)


@torch.no_grad()
def _update_statistics(norm: Any, mean: Tensor, var: Tensor) -> None:
    """The norm's own update of its running statistics."""
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(var, norm.momentum)
    norm.num_batches_tracked += 1


def fast_read_out(states: Tensor, norm: nn.LayerNorm, score: nn.Linear) -> Tensor | None:
    """Layer norm and read-out as one weighted sum, a mean and a variance; keeps no normed copy for the backward pass.

    Args:
        states (`Tensor` of shape `(batch, tokens, d)`): after a layer.
        norm (`nn.LayerNorm`): over d.
        score (`nn.Linear`): d -> 1.

    Returns:
        Logits `(batch, tokens)`, or None where only the plain modules will do.
    """
    if not (_is_one_precision(states) and is_plain(score) and is_plain(norm, kind=nn.LayerNorm)):
        return None
    weight = norm.weight * score.weight[0]
    var, mean = torch.var_mean(states, -1, correction=0)
    return (states @ weight - mean * weight.sum()) * (var + norm.eps).rsqrt() + score(norm.bias)


def _is_one_precision(states: Tensor) -> bool:
    """Whether all is computed in float32, or all in float64."""
    return states.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(states.device.type)
