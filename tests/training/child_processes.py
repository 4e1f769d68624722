"""Test functions in processes of their own, forked from one server that has imported everything already."""

import faulthandler
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch


CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["tests.training.conftest", "training.trainer.loop", "training.pretrain", "torch.distributed"]
)


def start(function: Callable[..., None], *arguments: Any, log: Path, environment: dict[str, str]) -> BaseProcess:
    """Run a module's function in a process of its own; what it prints goes to a file."""
    process = CONTEXT.Process(target=_child, args=(function, arguments, log, environment), daemon=True)
    process.start()
    return process


def _child(function: Callable[..., None], arguments: tuple, log: Path, environment: dict[str, str]) -> None:
    for number in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115 (open until the process ends)
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    faulthandler.enable()
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*arguments)


def run_one(function: Callable[..., None], *arguments: Any, log: Path, timeout: float = 120) -> int:
    """Run a function in one process to its end; its exit code, negative for the signal that killed it."""
    process = start(function, *arguments, log=log, environment={"ACCELERATE_USE_CPU": "true"})
    return finish([process], timeout)[0]


def start_ranks(function: Callable[..., None], *arguments: Any, folder: Path, ranks: int = 2) -> list[BaseProcess]:
    """Run a function in processes that find each other as under `torchrun`; rank r prints to `folder`/rank_r.log."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    shared |= {"ACCELERATE_USE_CPU": "true", "LOCAL_WORLD_SIZE": str(ranks)}
    return [
        start(
            function,
            *arguments,
            log=folder / f"rank_{rank}.log",
            environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]


def finish(processes: list[BaseProcess], timeout: float = 120) -> list[int]:
    """Wait for all and return their exit codes; what has not ended by then logs where it stands, with code None."""
    for process in processes:
        process.join(timeout)
    codes = [process.exitcode for process in processes]
    for process, code in zip(processes, codes, strict=True):
        if code is None:
            os.kill(process.pid, signal.SIGABRT)
            process.join(10)
        process.kill()
        process.join()
    return codes
