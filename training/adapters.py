"""Adapters by their documented name; they live in `training.trainer.lora`."""

from .trainer.lora import with_adapter


__all__ = ["with_adapter"]
