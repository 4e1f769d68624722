"""Forward pass and training step of our model against the reference, in alternating runs: ratios, spread, memory.

    python -m benchmarks.speed --size nano --batch-size 8 --regions 200

Both models hold the same weights and run in the same process, one after the other, in changing order; what is reported
are medians with the middle half of the runs, and the ratio of each pair. A ratio above 1 means that ours is faster. On
a CPU the time is that of the processor, which other programs on the machine disturb less than the clock on the wall.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.reference import ReferenceLCM
from modeling_lcm import LCMConfig, LCMForMultitaskPretraining


MODELS = ("ours", "reference")
TOLERANCE = 1e-4  # of the largest logit: two ways to add up float32 numbers


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Speed and memory against the same network from PyTorch's own parts.")
    parser.add_argument("--size", default="nano", help="named size of the model (default: %(default)s)")
    parser.add_argument("--layers", type=int, help="decoder layers (default: those of the size)")
    parser.add_argument("--batch-size", type=int, default=8, help="people in a batch (default: %(default)s)")
    parser.add_argument("--regions", type=int, default=200, help="regions of the atlas (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=6, help="BEI tokens, at least 5 (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="timed pairs of runs (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON instead of the table")
    parser.add_argument(
        "--no-memory", action="store_true", help="leave out the memory measurement (two new processes)"
    )
    parser.add_argument("--memory-of", choices=MODELS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.tokens < 5:
        parser.error(f"--tokens must be at least 5 (two for sex, one for age, a group of two), got {options.tokens}")
    return options


def build(options: argparse.Namespace) -> LCMForMultitaskPretraining:
    """Our model."""
    torch.manual_seed(0)
    labels = [str(number) for number in range(options.tokens - 3)]
    variables = [
        {"name": "group", "kind": "categorical", "labels": labels, "loss_weight": 1.0},
        {"name": "sex", "kind": "categorical", "labels": ["M", "F"], "loss_weight": 1.0},
        {"name": "age", "kind": "continuous", "labels": [], "loss_weight": 1e-4},
    ]
    layers = {} if options.layers is None else {"num_hidden_layers": options.layers}
    config = LCMConfig.from_size(options.size, num_regions=options.regions, bei_variables=variables, **layers)
    with torch.device(options.device):
        return LCMForMultitaskPretraining(config)


def make_batch(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Random connectomes `(batch, regions, regions)` and complete labels `(batch, 3)`."""
    rng = np.random.default_rng(0)
    people = options.batch_size
    series = rng.standard_normal((people, options.regions, 2 * options.regions))
    connectivity = np.stack([np.corrcoef(scan) for scan in series])
    labels = np.stack(
        [rng.integers(0, options.tokens - 3, people), rng.integers(0, 2, people), rng.uniform(20, 80, people)], axis=1
    )
    return tuple(torch.tensor(array, dtype=torch.float32, device=options.device) for array in (connectivity, labels))


def largest_difference(
    ours: LCMForMultitaskPretraining, reference: ReferenceLCM, batch: tuple[Tensor, Tensor]
) -> float:
    """Largest difference of logits and loss in evaluation mode, relative to the largest logit and the loss.

    Raises:
        RuntimeError: the two do not compute the same, so that comparing their speed would mean nothing.
    """
    connectivity, labels = batch
    ours.eval()
    reference.eval()
    with torch.no_grad():
        outputs = ours(connectivity, labels=labels)
        logits, loss = reference(connectivity), reference.loss(connectivity, labels)
    difference = max(
        ((outputs.layer_logits - logits).abs().max() / logits.abs().max()).item(),
        ((outputs.loss - loss).abs() / loss).item(),
    )
    if difference > TOLERANCE:
        raise RuntimeError(f"The models differ by {difference:g} of their largest value; allowed is {TOLERANCE:g}.")
    return difference


def make_forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], None]:
    """A forward pass in evaluation mode."""

    def run() -> None:
        model.eval()
        with torch.no_grad():
            model(batch[0])

    return run


def make_step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], None]:
    """A whole training step as in our recipes: loss, gradients and fused AdamW."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def run() -> None:
        model.train()
        loss = model.loss(*batch) if isinstance(model, ReferenceLCM) else model(batch[0], labels=batch[1]).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return run


def seconds(run: Callable[[], None], device: str) -> float:
    """Time of one run: processor time of all threads on a CPU, wall time on a GPU."""
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(runs: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, list[float]]:
    """Quartiles of milliseconds per model and of the ratio reference / ours, from alternating runs."""
    for run in runs.values():
        for _ in range(2):
            seconds(run, device)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats):
        # Whoever comes second finds warmer caches, so the order changes.
        for name in MODELS if repeat % 2 else MODELS[::-1]:
            times[name].append(1000 * seconds(runs[name], device))
    times["ratio"] = [theirs / ours for ours, theirs in zip(times["ours"], times["reference"], strict=True)]
    return {name: np.percentile(values, [25, 50, 75]).tolist() for name, values in times.items()}


def peak_memory(options: argparse.Namespace) -> float:
    """Peak MiB of three training steps with one model: of this process, or of the GPU's tensors."""
    model: nn.Module = build(options)
    if options.memory_of == "reference":
        model = ReferenceLCM(model).to(options.device)
    step = make_step(model, make_batch(options))
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        step()
    if options.device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    # In KiB, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def peak_memory_of_both(arguments: Sequence[str]) -> dict[str, float]:
    """`peak_memory` of both models, each in a process of its own."""
    peaks = {}
    for name in MODELS:
        command = [sys.executable, "-m", "benchmarks.speed", *arguments, "--memory-of", name]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        peaks[name] = float(result.stdout.splitlines()[-1])
    return peaks


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its result."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    if options.memory_of:
        print(peak_memory(options))
        return
    # NOTE: first, because on Linux a new process starts with the peak of the one that started it.
    peaks = {} if options.no_memory else {"peak memory": peak_memory_of_both(arguments)}
    ours = build(options)
    reference = ReferenceLCM(ours).to(options.device)
    batch = make_batch(options)
    models = {"ours": ours, "reference": reference}
    result: dict = {
        "parameters": ours.num_parameters(),
        "difference": largest_difference(ours, reference, batch),
        "forward": compare({n: make_forward(m, batch) for n, m in models.items()}, options.repeats, options.device),
        "training step": compare({n: make_step(m, batch) for n, m in models.items()}, options.repeats, options.device),
        **peaks,
    }
    print(json.dumps(result) if options.json else table(options, result))


def table(options: argparse.Namespace, result: dict) -> str:
    """The result for people."""
    lines = [
        f"{options.size}: {result['parameters'] / 1e6:.2f} M parameters, batch {options.batch_size}, "
        f"{options.regions} regions, {options.tokens} tokens, {options.device}, {options.threads} thread(s)",
        f"same results: largest difference {result['difference']:.1e} of the largest value",
        f"{'':15}{'ours, ms':>30}{'reference, ms':>30}{'reference / ours':>30}",
    ]
    for name in ("forward", "training step"):
        cells = [result[name][column] for column in ("ours", "reference", "ratio")]
        lines.append(f"{name:15}" + "".join(f"{f'{mid:.2f} [{low:.2f}-{high:.2f}]':>30}" for low, mid, high in cells))
    if "peak memory" in result:
        peaks = result["peak memory"]
        cells = [f"{peaks['ours']:.0f} MiB", f"{peaks['reference']:.0f} MiB"]
        lines.append(f"{'peak memory':15}" + "".join(f"{cell:>30}" for cell in cells))
        if options.device == "cpu":
            lines.append("Memory is that of the whole training process, Python and its libraries included.")
    lines.append("Medians [middle half of the runs]; a ratio above 1 means that ours is faster.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
