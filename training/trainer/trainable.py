"""Which weights train: parameter groups, frozen layers."""

import re
from collections.abc import Iterable
from typing import Any, cast

import torch
from peft import PeftModel
from torch import nn

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining, LCMForSequenceClassification
from modeling_lcm.edges_lcm import LCMEdgeFeatures

from .arguments import LoopArguments


LCMHead = LCMForMultitaskPretraining | LCMForSequenceClassification


def lcm_head(model: nn.Module) -> LCMHead:
    """The LCM head: the model itself, or the one that an adapter is put on."""
    return cast(LCMHead, model.get_base_model() if isinstance(model, PeftModel) else model)


def make_optimizer(model: nn.Module, arguments: LoopArguments) -> torch.optim.Optimizer:
    """The optimiser over the trainable parameters.

    "adamw" is fused AdamW, with two float32 numbers of state per weight. "adafactor" keeps a row and a column of
    second moments per matrix, next to nothing, and measures its steps relative to the size of each tensor.

    Args:
        model (`nn.Module`): an LCM head, or a PEFT model around one.
        arguments (`LoopArguments`): `optimizer`, `learning_rate` and `weight_decay` are used.

    Source:
        Adafactor: Shazeer and Stern 2018, as in `torch.optim.Adafactor`.
    """
    groups = parameter_groups(model, arguments)
    if arguments.optimizer == "adafactor":
        # Tensor by tensor: working on all of them at once would need a second copy of the gradients.
        return torch.optim.Adafactor(groups, lr=arguments.learning_rate, foreach=False)
    return torch.optim.AdamW(groups, lr=arguments.learning_rate, fused=True)


def parameter_groups(model: nn.Module, arguments: LoopArguments) -> list[dict]:
    """Trainable parameters in groups: matrices with weight decay, biases and norms without.

    With `layer_decay` below 1 there are two such groups per depth, the read-out's first, and the learning rate falls
    by that factor from depth to depth: read-out, final norm and new tokens; the last layer; ...; the first one; stem
    and pretrained tokens. With `decay_towards` "pretrained" the optimiser has no weight decay, and [`StartDecay`] has
    it from the groups' `start_decay`.
    """
    kind = "start_decay" if getattr(arguments, "decay_towards", "zero") == "pretrained" else "weight_decay"
    decay = getattr(arguments, "layer_decay", 1.0)
    depths: dict[int, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            depth = _depth(name, lcm_head(model).config.num_hidden_layers) if decay < 1 else 0
            depths.setdefault(depth, []).append(parameter)
    groups = []
    for depth, parameters in sorted(depths.items()):
        rate = {"lr": arguments.learning_rate * decay**depth} if depth else {}
        groups += [
            {
                "params": [p for p in parameters if p.ndim > 1],
                "weight_decay": 0.0,
                **rate,
                kind: arguments.weight_decay,
            },
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0, **rate},
        ]
    return groups


class StartDecay:
    """Decoupled weight decay towards the weights that training starts from, instead of towards zero.

    Its step follows the optimiser's: a weight goes the part `learning rate x weight decay` of its way back, at most
    all of it, so that a large decay holds it where it was.

    Args:
        optimizer (`torch.optim.Optimizer`): with groups of [`parameter_groups`]; its weights are those of the start.

    Source: L2-SP, Li et al. 2018, ICML; decoupled as in AdamW, Loshchilov and Hutter 2019.
    """

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer
        self.starts = [
            [weight.detach().clone() for weight in group["params"]] if group.get("start_decay") else []
            for group in optimizer.param_groups
        ]

    @torch.no_grad()
    def step(self) -> None:
        """Draw the weights towards their start, at the learning rates of the moment."""
        for group, starts in zip(self.optimizer.param_groups, self.starts, strict=True):
            for weight, start in zip(group["params"], starts, strict=True) if starts else ():
                weight.lerp_(start, min(1.0, group["lr"] * group["start_decay"]))


def _depth(name: str, num_layers: int) -> int:
    """How far a parameter is from the read-out: 0 there, 1 in the last layer, layers + 1 in stem and tokens."""
    layer = re.search(r"\blayers\.(\d+)\.", name)
    if layer:
        return num_layers - int(layer[1])
    return num_layers + 1 if re.search(r"\b(stem|bei_embeddings)\.", name) else 0


def trains_pretrained_tokens(config: LCMConfig) -> bool:
    """Whether fine-tuning has a loss on the pretrained tokens: one of their own, or because they are the task's."""
    return bool(config.bei_loss_weight) or not config.num_task_tokens


def freeze(
    model: LCMForSequenceClassification,
    frozen_layers: int = 0,
    tokens_only: bool = False,
    atlases: Iterable[str] | None = None,
) -> None:
    """Exclude parameters from training, in place.

    The pretrained tokens' edge read-out is always excluded where it receives no gradient, as weight decay alone would
    wear it down; so are stem and edge read-outs of an atlas that no scan has.

    Args:
        model (`LCMForSequenceClassification`): a head with a downstream task.
        frozen_layers (`int`): decoder layers, from the first one on, that stay as they are, together with the stem.
        tokens_only (`bool`): train the shared read-out, and tokens and edge read-out of the task alone. Those of the
            pretrained variables train too where they have a loss of their own, or are the task's.
        atlases (`Iterable[str]`, *optional*): those of the scans; default: all of the model's.

    Raises:
        ValueError: more layers than the model has.
    """
    config = model.config
    if frozen_layers > config.num_hidden_layers:
        raise ValueError(f"frozen_layers is {frozen_layers}, but the model has {config.num_hidden_layers} layers.")
    if config.edge_readout:
        model.bei_edge_readout.requires_grad_(trains_pretrained_tokens(config))
    if atlases is not None and len(config.atlas_regions) > 1:
        for name in config.atlas_regions.keys() - set(atlases):
            for part in parts_of_atlas(model, name):
                part.requires_grad_(False)
    if tokens_only:
        model.model.requires_grad_(False)
        model.model.bei_embeddings.requires_grad_(trains_pretrained_tokens(config))
    elif frozen_layers:
        model.model.stem.requires_grad_(False)
        model.model.layers[:frozen_layers].requires_grad_(False)


def parts_of_atlas(model: LCMHead, atlas: str) -> list[nn.Module]:
    """The stem and edge read-outs of one of a model's several atlases."""
    whole = re.compile(rf"(?:model\.stem|(?:bei|task)_edge_readout)\.{re.escape(atlas)}")
    return [module for name, module in model.named_modules() if whole.fullmatch(name)]


def set_training_mode(model: nn.Module) -> None:
    """`model.train()`, but a stem's norm that is not trained keeps its running statistics, and uses them.

    So does the running mean of the edge read-out then: both describe the cohort that the network has learnt from.
    """
    model.train()
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    kept: list[nn.Module] = [norm for norm in norms if not norm.weight.requires_grad]
    # With an adapter there is a frozen original beside the norm that trains.
    if len(kept) == len(norms):
        kept += [module for module in model.modules() if isinstance(module, LCMEdgeFeatures)]
    for module in kept:
        module.eval()
