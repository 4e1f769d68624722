"""What commands cost before they say anything: `python -m benchmarks.startup`.

Processor time of `--help`, of a typing error and of refused settings, beside `import torch`; in turns, medians.
"""

import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from training.command_line.cli import command, setting
from training.command_line.doors import DOORS


@dataclass
class StartupArguments:
    """Processor time until a command answers, beside that of importing torch."""

    runs: int = setting(5, "Runs of each.")
    commands: list[str] = setting(list(DOORS), "Commands to start.", example="prepare finetune")


@command(StartupArguments)
def main(arguments: StartupArguments) -> None:
    """Command line."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "results").touch()
        cases = {"import torch": ["-c", "import torch"], "import modeling_lcm": ["-c", "import modeling_lcm"]}
        both = "import torch; from transformers import PreTrainedModel"
        cases["import torch, PreTrainedModel"] = ["-c", both]
        for name in arguments.commands:
            module = ["-m", DOORS[name][0]]
            cases |= {f"{name} --help": [*module, "--help"], f"{name}, mistyped": [*module, "--mistyped"]}
            cases[f"{name}, refused"] = [*module, "--output", folder]
        seconds: dict[str, list[float]] = {case: [] for case in cases}
        for _ in range(arguments.runs):
            for case, words in cases.items():
                seconds[case].append(processor_seconds(words))
    torch = median(seconds["import torch"])
    for case, taken in seconds.items():
        print(f"{case:28} {median(taken):6.3f} s, {median(taken) / torch:5.2f} of import torch")


def processor_seconds(words: list[str]) -> float:
    """User and system time of a process of Python."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
