"""Adapters by their documented name; they live in `training.trainer.trainable`."""

from .trainer.trainable import with_adapter


__all__ = ["with_adapter"]
