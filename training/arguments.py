"""Settings of both training stages, by their documented name; they live in `training.trainer.arguments`."""

from .command_line.cli import parse_arguments
from .trainer.arguments import DataArguments, FinetuneArguments, LoopArguments, PretrainArguments


__all__ = ["DataArguments", "FinetuneArguments", "LoopArguments", "PretrainArguments", "parse_arguments"]
