"""Low-rank adapters: from the settings (rank, kind, frozen layers) to PEFT's configuration."""

from peft import LoraConfig, PeftModel, get_peft_model

from modeling_lcm import LCMForSequenceClassification
from modeling_lcm.adapters_lcm import without_peft_warning
from modeling_lcm.loading_lcm import head_modules

from .arguments import FinetuneArguments
from .trainable import trains_pretrained_tokens


RSLORA_ALPHA = 16  # its scale, alpha / sqrt(rank), is meant for one alpha at all ranks


def with_adapter(model: LCMForSequenceClassification, arguments: FinetuneArguments) -> PeftModel:
    """Put low-rank updates on attention and feed-forward; the task's tokens and what they need train whole.

    Whole are the head (new tokens, read-outs, running means of the edges, the choice of layers) and the stem's batch
    norm with its running statistics, which follow the cohort. What gets no gradient stays: the pretrained tokens' edge
    read-out without a loss on them, and with frozen layers the stem and the running means.

    Args:
        model (`LCMForSequenceClassification`): changed in place.
        arguments (`FinetuneArguments`): `adapter`, `lora_rank` and `frozen_layers` are used.

    Source: LoRA, Hu et al. 2021; DoRA, Liu et al. 2024; rank-stabilised scaling, Kalajdzievski 2023.
    """
    norms, means = {"stem.norm"}, {"edge_features"} & {*head_modules(model)}
    if len(model.config.atlas_regions) > 1:  # of an atlas that no scan has, nothing trains
        trained = [name for name, stem in model.model.stem.items() if stem.norm.weight.requires_grad]
        norms = {f"stem.{name}.norm" for name in trained}
        means = {f"edge_features.{name}" for name in trained if means}
    whole = {*head_modules(model)} - {"edge_features"}
    if not arguments.frozen_layers:
        whole |= norms | means
    if not trains_pretrained_tokens(model.config):
        whole -= {"bei_edge_readout"}
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=arguments.lora_rank,
        lora_alpha=RSLORA_ALPHA if arguments.adapter == "rslora" else 2 * arguments.lora_rank,
        lora_dropout=0.0,
        use_dora=arguments.adapter == "dora",
        use_rslora=arguments.adapter == "rslora",
        target_modules=adapted_modules(model.config.num_hidden_layers, arguments.frozen_layers),
        modules_to_save=sorted(whole),
    )
    with without_peft_warning():
        return get_peft_model(model, config)


def adapted_modules(num_layers: int, frozen_layers: int = 0) -> str:
    """Pattern of every projection of attention and feed-forward above the frozen layers.

    The first layer's self-attention is left out, because the token state is zero there: its queries and keys never
    receive a gradient.

    Raises:
        ValueError: all layers are frozen.
    """
    layers = range(frozen_layers, num_layers)
    if not layers:
        raise ValueError(f"frozen_layers is {frozen_layers}: no layer of {num_layers} is left for an adapter.")
    every = "|".join(map(str, layers))
    later = "|".join(str(layer) for layer in layers if layer) or "none"
    return rf".*layers\.(?:(?:{every})\.(?:cross_attn\.[qkvo]_proj|fc[12])|(?:{later})\.self_attn\.[qkvo]_proj)"
