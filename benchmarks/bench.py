"""What got slower since it was recorded: `make bench`, two minutes on two cores.

Only ratios are compared, of two things that are measured in turns in one run: they hardly depend on the machine,
absolute times do. A ratio is reference / ours: above 1 means that ours is faster. What is recorded is in
`benchmarks/recorded.json`; `python -m benchmarks.bench --record true` replaces it, on an idle machine.
"""

import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from training.command_line.cli import command, setting


RECORDED = Path(__file__).with_name("recorded.json")
# A ratio that fell further than this share below the recorded one, and out of the spread of both, got slower.
TOLERANCE = 0.1
# Goals that may not be missed, whatever was recorded.
GOALS = {
    "int8, one scan, 6 tokens": 7.0,
    "training step, 8 scans, 6 tokens": 3.5,
    "--help beside import torch": 2.0,
    "import modeling_lcm beside torch and PreTrainedModel": 1 / 1.5,
}


@dataclass
class BenchArguments:
    """Compare today's ratios with the recorded ones, and say what got slower."""

    record: bool = setting(False, "Keep the ratios of this run as those to compare with.")
    repeats: int = setting(5, "Pairs of runs of each.")
    only: list[str] = setting([], "Only measures whose name holds one of these words.", example="int8 help")

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        if self.repeats < 3:
            raise ValueError(f"repeats must be at least 3, or there is no spread, got {self.repeats}.")


@dataclass(frozen=True)
class Ratio:
    """Reference / ours.

    Args:
        low, middle, high (`float`): quartiles over the pairs of runs.
    """

    low: float
    middle: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:6.2f} [{self.low:.2f}-{self.high:.2f}]"


@command(BenchArguments)
def main(arguments: BenchArguments) -> None:
    """Command line."""
    recorded = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.is_file() else {"ratios": {}}
    found: dict[str, Ratio] = {}
    problems = []
    for name, ratio in measures(arguments):
        found[name] = ratio
        before = Ratio(*recorded["ratios"][name]) if name in recorded["ratios"] else None
        words = verdict(name, ratio, before)
        problems += [name] if words not in ("as recorded", "faster", "new") else []
        print(f"{name:55}{ratio!s:22} recorded {before or '-'!s:22} {words}", flush=True)
    if arguments.record:
        kept = recorded["ratios"] | {name: [each.low, each.middle, each.high] for name, each in found.items()}
        content = {"machine": machine(), "ratios": {n: [round(x, 3) for x in three] for n, three in kept.items()}}
        RECORDED.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(f"Recorded in {RECORDED.name}.")
    elif problems:
        print(f"Slower: {', '.join(problems)}. On a busy machine, measure again before you believe it.")
        raise SystemExit(1)


def verdict(name: str, ratio: Ratio, before: Ratio | None) -> str:
    """What a ratio says beside the recorded one, and beside its goal."""
    goal = GOALS.get(name)
    if goal is not None and ratio.middle < goal:
        return f"below its goal of {goal:.2f}"
    if before is None:
        return "new"
    if ratio.middle < (1 - TOLERANCE) * before.middle and ratio.high < before.low:
        return f"slower, by {1 - ratio.middle / before.middle:.0%}"
    if ratio.middle > (1 + TOLERANCE) * before.middle and ratio.low > before.high:
        return "faster"
    return "as recorded"


def machine() -> str:
    """What the ratios were measured on, and beside how much else."""
    import joblib
    import torch

    busy = f"{os.getloadavg()[0]:.0f} processes at work on {joblib.cpu_count()} CPUs"
    return f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, PyTorch {torch.__version__}, {busy}"


def measures(arguments: BenchArguments) -> Iterator[tuple[str, Ratio]]:
    """Every measure that is asked for, one after the other."""
    wanted = arguments.only

    def is_wanted(name: str) -> bool:
        return not wanted or any(word in name for word in wanted)

    for name, measure in MEASURES.items():
        if is_wanted(name):
            yield name, measure(arguments.repeats)


def _quartiles(ratios: list[float]) -> Ratio:
    ordered = sorted(ratios)
    half = len(ordered) // 2
    return Ratio(median(ordered[: half + 1]), median(ordered), median(ordered[-half - 1 :]))


def _commands(ours: list[str], reference: list[str]) -> Callable[[int], Ratio]:
    """Processor time of two commands of Python."""

    def measure(repeats: int) -> Ratio:
        from .startup import processor_seconds

        pairs = [(processor_seconds(reference), processor_seconds(ours)) for _ in range(repeats)]
        return _quartiles([theirs / mine for theirs, mine in pairs])

    return measure


def _speed(part: str, count: int, packed: bool = False, **case: Any) -> Callable[[int], Ratio]:
    """A part of `benchmarks.speed`: the same network from PyTorch's own layers is the reference."""

    def measure(repeats: int) -> Ratio:
        from training.trainer.threads import threads

        from .speed import SpeedArguments
        from .speed import measure as measured

        parts: list[Any] = [] if packed else ["step" if "step" in part else part]
        options = SpeedArguments(
            parts=parts, packed=packed, repeats=repeats, regions=116, tokens=6, optimiser="official", **case
        )
        with threads(count):
            return Ratio(*measured(options)[part]["ratio"])

    return measure


def _closed_form(repeats: int) -> Ratio:
    """Fitting a task to 300 scans of 116 regions, beside scikit-learn's ridge that chooses its penalty as well."""
    import time

    import numpy as np
    from sklearn.linear_model import RidgeClassifierCV
    from threadpoolctl import threadpool_limits

    from modeling_lcm.closed_form import Edges, Target, fit_ridge

    rng = np.random.default_rng(0)
    logs = rng.normal(size=(300, 3, 116 * 115 // 2)).astype(np.float32)
    is_second = np.arange(300) % 2 == 1
    target = Target.make(is_second, True, range(300))
    ratios = []
    with threadpool_limits(1):
        for _ in range(repeats + 1):
            start = time.process_time()
            fit_ridge(Edges({"one": logs.copy()}, 1), target)
            between = time.process_time()
            # One model per form of the edges: three shrinkages, plain and standardised.
            for number in range(6):
                edges = logs[:, number // 2] if number % 2 else (logs[:, number // 2] / logs[:, number // 2].std(0))
                RidgeClassifierCV(np.geomspace(1e-3, 100, 11), class_weight="balanced").fit(edges, is_second)
            ratios.append((time.process_time() - between) / (between - start))
    return _quartiles(ratios[1:])


def _throughput(repeats: int) -> Ratio:
    """Scans a second of the closed-form model's prediction, beside nilearn's and scikit-learn's own pipeline."""
    from training.trainer.threads import threads

    from .throughput import Case, ratio_to_peer

    with threads(1):  # processor time of eigenvalues on two threads is four times as much
        return Ratio(*ratio_to_peer(Case(model="linear", scans=512), repeats))


MEASURES: dict[str, Callable[[int], Ratio]] = {
    "--help beside import torch": _commands(["-m", "training.evaluate", "--help"], ["-c", "import torch"]),
    "import modeling_lcm beside torch and PreTrainedModel": _commands(
        ["-c", "import modeling_lcm"], ["-c", "import torch; from transformers import PreTrainedModel"]
    ),
    "closed form, 300 scans, beside RidgeClassifierCV": _closed_form,
    "predict, closed form, beside scikit-learn": _throughput,
    "nano, forward, 8 scans, 6 tokens": _speed("forward", 1, size="nano", batch_size=8),
    "nano, training step, 8 scans, 6 tokens": _speed("training step", 1, size="nano", batch_size=8),
    "int8, one scan, 6 tokens": _speed("forward, int8 packed", 1, packed=True, size="147m", layers=4, batch_size=1),
    "training step, 8 scans, 6 tokens": _speed("training step", 2, size="147m", layers=4, batch_size=8),
}


if __name__ == "__main__":
    main()
