"""Names of the research code's tensors and of ours: data, and the renaming in both directions."""

from torch import Tensor


# Research name -> our name. "{}" stands for a layer index.
STEM = {
    "lin.0.weight": "model.stem.proj.weight",
    "lin.0.bias": "model.stem.proj.bias",
    "lin.1.weight": "model.stem.norm.weight",
    "lin.1.bias": "model.stem.norm.bias",
    "lin.1.running_mean": "model.stem.norm.running_mean",
    "lin.1.running_var": "model.stem.norm.running_var",
    "lin.1.num_batches_tracked": "model.stem.norm.num_batches_tracked",
}
HEAD = {
    "object_query.weight": "model.bei_embeddings.weight",
    "decoder.norm.weight": "model.norm.weight",
    "decoder.norm.bias": "model.norm.bias",
    "class_embed.weight": "score.weight",
    "class_embed.bias": "score.bias",
    "finetune_query.weight": "task_embeddings.weight",
}
LAYER_MODULES = {
    "self_attn.out_proj": "self_attn.o_proj",
    "multihead_attn.out_proj": "cross_attn.o_proj",
    "linear1": "fc1",
    "linear2": "fc2",
    "norm1": "self_attn_layer_norm",
    "norm2": "cross_attn_layer_norm",
    "norm3": "final_layer_norm",
}
# Fused projections: query, key and value stacked along the first axis.
FUSED_ATTENTION = {"self_attn": "self_attn", "multihead_attn": "cross_attn"}
PROJECTIONS = ("q_proj", "k_proj", "v_proj")
# In every research checkpoint, but no forward pass uses them.
UNUSED = ("sex_embed.weight", "sex_embed.bias", "age_embed.weight", "age_embed.bias")


def map_tensor(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Our tensors for one tensor of the research code.

    Args:
        name (`str`): key in the stem's or the head's state dict.
        tensor (`Tensor`): its value; a fused projection `(3 d, ...)` is split into query, key and value.

    Returns:
        Our names and tensors; empty for the tensors that the research code never uses.

    Raises:
        KeyError: the name is not part of a research checkpoint.
    """
    if name in UNUSED:
        return {}
    if name in STEM or name in HEAD:
        return {STEM.get(name) or HEAD[name]: tensor}
    prefix, _, rest = name.partition("decoder.layers.")
    index, _, local = rest.partition(".")
    module, _, kind = local.rpartition(".")
    if not prefix and index.isdigit():
        ours = f"model.layers.{index}"
        if module in LAYER_MODULES and kind in ("weight", "bias"):
            return {f"{ours}.{LAYER_MODULES[module]}.{kind}": tensor}
        if module in FUSED_ATTENTION and kind in ("in_proj_weight", "in_proj_bias"):
            parts = zip(PROJECTIONS, tensor.chunk(3), strict=True)
            suffix = kind.removeprefix("in_proj_")
            return {f"{ours}.{FUSED_ATTENTION[module]}.{part}.{suffix}": value for part, value in parts}
    raise KeyError(f"{name!r} is not a tensor of the research code's checkpoints.")
