"""The optimiser of a run: which parameters it holds, in which groups, and how it keeps its state."""

import torch
from torch import nn

from .arguments import LoopArguments


def make_optimizer(model: nn.Module, arguments: LoopArguments) -> torch.optim.Optimizer:
    """Fused AdamW over the trainable parameters.

    Args:
        model (`nn.Module`): an LCM head, or a PEFT model around one.
        arguments (`LoopArguments`): `learning_rate` and `weight_decay` are used.
    """
    return torch.optim.AdamW(parameter_groups(model, arguments), lr=arguments.learning_rate, fused=True)


def parameter_groups(model: nn.Module, arguments: LoopArguments) -> list[dict]:
    """Trainable parameters in two groups: matrices with weight decay, biases and norms without."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": arguments.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
