"""Switching from the momentum stage to the adaptive stage, for `transformers.Trainer` and for our own scripts."""

from typing import Any

from transformers import TrainerCallback


def supervision_at(epoch: int, momentum_epochs: int, adaptive: str = "adaptive") -> str:
    """Supervision stage of an epoch: "momentum" for the first `momentum_epochs`, then `adaptive` (paper, section 3.3).

    Args:
        epoch (`int`): epoch that begins, counted from 0.
        momentum_epochs (`int`): length of the first stage (5 in the research code).
        adaptive (`str`): "adaptive", "adaptive_per_sample" or "last_layer", or "momentum" to have no second stage.
    """
    return "momentum" if epoch < momentum_epochs else adaptive


class SupervisionCallback(TrainerCallback):
    """Sets `model.config.supervision` at the start of every epoch; resuming in the second stage stays in it.

    Args:
        momentum_epochs (`int`, *optional*, defaults to 5): length of the momentum stage.
        adaptive (`str`, *optional*, defaults to "adaptive"): supervision of the epochs after it.

    Example:
        `Trainer(model, args, train_dataset=data, callbacks=[SupervisionCallback(momentum_epochs=5)])`
    """

    def __init__(self, momentum_epochs: int = 5, adaptive: str = "adaptive") -> None:
        self.momentum_epochs = momentum_epochs
        self.adaptive = adaptive

    def on_epoch_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Choose the stage of the epoch that begins."""
        inner = getattr(model, "module", model)  # data-parallel wrappers keep the model one level down
        inner.config.supervision = supervision_at(int(state.epoch or 0), self.momentum_epochs, self.adaptive)
