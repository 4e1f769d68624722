"""How many threads there are for what."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from ..command_line import cli


FEW_WEIGHTS = 8e6  # below, threads that wait passively wait longer than they compute


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch and the linear algebra libraries use so many threads, whatever the machine would give."""
    before, ours = torch.get_num_threads(), cli.threads_are_ours
    cli.threads_are_ours = False  # who names a number gets it, for every network
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)
        cli.threads_are_ours = ours


@contextmanager
def threads_to_train(head: Any, device: str) -> Iterator[None]:
    """One thread for the training of a small network on a CPU, unless the user set threads.

    Args:
        head (`LCMHead`): what is trained.
        device (`str`): "cpu" or another type of device.
    """
    weights = sum(weight.numel() for weight in head.model.parameters())
    if device == "cpu" and weights < FEW_WEIGHTS and cli.threads_are_ours:
        with threads(1):
            yield
    else:
        yield
