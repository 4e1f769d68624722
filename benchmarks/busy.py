"""How much slower a small training gets beside two busy processes on two cores: `python -m benchmarks.busy`.

Each run trains once alone and once beside processes that only count, in processes of their own and with the threads
that commands take. Start-up (imports, data, model) is not counted. Other work on the machine spoils it: run it idle.
"""

import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from training.command_line.cli import command, setting


COUNT = "while True: pass"


@dataclass
class BusyArguments:
    """Slow-down of a small training beside busy processes."""

    runs: int = setting(10, "Pairs of trainings, alone and beside the others.")
    busy: int = setting(2, "Busy processes.")
    cores: int = setting(2, "CPUs that all of it shares.")
    epochs: int = setting(8, "Epochs of a training.")
    alone: bool = setting(False, "Only train once, and print its seconds.")

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if min(self.runs, self.cores, self.epochs) < 1 or self.busy < 0:
            raise ValueError("runs, cores and epochs must be at least 1, busy not negative.")


@command(BusyArguments)
def main(arguments: BusyArguments) -> None:
    """Command line."""
    if arguments.alone:
        print(f"{train(arguments.epochs):.4f}")
        return
    cpus = sorted(os.sched_getaffinity(0))[: arguments.cores]
    if len(cpus) < arguments.cores:
        raise ValueError(f"This process may use {len(cpus)} CPUs, and {arguments.cores} are asked for: see --cores.")
    os.sched_setaffinity(0, cpus)  # children have it, too
    ratios = []
    for run in range(arguments.runs):
        alone, beside = measure(0, arguments.epochs), measure(arguments.busy, arguments.epochs)
        ratios.append(beside / alone)
        print(
            f"run {run + 1}: {alone:.2f} s alone, {beside:.2f} s beside {arguments.busy}: {ratios[-1]:.2f}", flush=True
        )
    print(f"slow-down: median {sorted(ratios)[len(ratios) // 2]:.2f}, worst {max(ratios):.2f}")


def measure(busy: int, epochs: int) -> float:
    """Seconds of a training in a process of its own, beside so many busy ones."""
    # What this process has set for itself is no wish of the user's: the child finds its threads on its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    with ExitStack() as stack:
        for _ in range(busy):
            other = stack.enter_context(subprocess.Popen([sys.executable, "-c", COUNT]))
            stack.callback(other.kill)
        command = [sys.executable, "-m", "benchmarks.busy", "--alone", "--epochs", str(epochs)]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def train(epochs: int) -> float:
    """Seconds that a pretraining of `nano` on 160 random scans takes, after one epoch that warms everything up."""
    import time

    from training.trainer.arguments import PretrainArguments
    from training.trainer.pretraining import pretrain

    from .memory import random_cohort

    cohort = random_cohort(160, 116)
    settings: dict[str, Any] = {"categorical": ["group"], "progress": False, "checkpoint_every": 0, "log_with": "none"}
    pretrain(cohort, PretrainArguments(epochs=1, **settings))
    started = time.perf_counter()
    pretrain(cohort, PretrainArguments(epochs=epochs, **settings))
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
