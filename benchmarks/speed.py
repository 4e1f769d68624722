"""Forward pass and training step of our model against the reference, in alternating runs: ratios, spread, memory.

    python -m benchmarks.speed --size nano --batch-size 8 --regions 200

Both models hold the same weights and run in the same process, one after the other, in changing order; what is reported
are medians with the middle half of the runs, and the ratio of each pair. A ratio above 1 means that ours is faster. On
a CPU the time is that of the processor, which other programs on the machine disturb less than the clock on the wall;
with several threads on a busy machine set OMP_WAIT_POLICY=PASSIVE, or threads that wait for each other count as well.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining
from modeling_lcm.quantization_lcm import pack
from training.command_line.cli import command, require_choices, setting
from training.trainer.arguments import Size

from .reference import ReferenceLCM


MODELS = ("ours", "reference")
Part = Literal["forward", "step", "activations"]
PARTS = get_args(Part)
TIMES = ("forward", "training step", "forward, float32 packed", "forward, int8 packed")
# What --growth varies, one at a time from the first values.
GROWTH = {
    "regions": (116, 50, 200, 400),
    "tokens": (6, 16, 31, 62),
    "layers": (4, 1, 8, 12),
    "batch_size": (8, 1, 4, 16),
}
TOLERANCE = 1e-4  # of the largest logit: two ways to add up float32 numbers


@dataclass
class SpeedArguments:
    """Speed and memory against the same network from PyTorch's own parts."""

    size: Size = setting("nano", "Named size of the model.", group="model")
    layers: int | None = setting(None, "Decoder layers; default: those of the size.")
    batch_size: int = setting(8, "Subjects in a batch.")
    regions: int = setting(200, "Regions of the atlas.")
    tokens: int = setting(6, "BEI tokens, at least 5.")
    repeats: int = setting(20, "Timed pairs of runs.", group="measurement")
    threads: int = setting(0, "Threads; 0: as many as PyTorch takes.")
    device: Literal["cpu", "cuda"] = setting("cpu", "Where.")
    optimiser: Literal["same", "official"] = setting(
        "same", "Optimiser of the reference: fused AdamW as ours, or the official code's Adam."
    )
    parts: list[Part] = setting(list(PARTS), "What to measure.", example="forward step")
    packed: bool = setting(False, "Also time packed weights, float32 and int8 (CPU).")
    grid: list[str] = setting([], "Several cases, one short line each.", example="1:6:116 8:31:116")
    growth: str = setting("", "Picture (PNG) of how time and memory grow with all four dimensions.")
    json: bool = setting(False, "Print one line of JSON instead of the table.")
    memory: bool = setting(True, "Also measure memory, in two new processes.")
    memory_of: Literal["ours", "reference"] | None = setting(None, "Only the memory of this model.")

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        require_choices(self)
        if self.growth and set(self.parts) != set(PARTS):
            raise ValueError("growth draws all parts: leave parts out.")
        if self.tokens < 5:
            raise ValueError(
                f"tokens must be at least 5 (two for sex, one for age, a group of two), got {self.tokens}."
            )


def build(options: SpeedArguments, **settings: Any) -> LCMForMultitaskPretraining:
    """Our model, with other settings of its configuration if any are given."""
    torch.manual_seed(0)
    labels = [str(number) for number in range(options.tokens - 3)]
    variables = [
        {"name": "group", "kind": "categorical", "labels": labels, "loss_weight": 1.0},
        {"name": "sex", "kind": "categorical", "labels": ["M", "F"], "loss_weight": 1.0},
        {"name": "age", "kind": "continuous", "labels": [], "loss_weight": 1e-4},
    ]
    # The official formulation has no edge read-out.
    chosen: dict[str, Any] = {"edge_readout": False} | settings
    if options.layers is not None:
        chosen["num_hidden_layers"] = options.layers
    config = LCMConfig.from_size(options.size, num_regions=options.regions, bei_variables=variables, **chosen)
    with torch.device(options.device):
        return LCMForMultitaskPretraining(config)


def make_batch(options: SpeedArguments) -> tuple[Tensor, Tensor]:
    """Random connectomes `(batch, regions, regions)` and complete labels `(batch, 3)`."""
    rng = np.random.default_rng(0)
    people = options.batch_size
    series = rng.standard_normal((people, options.regions, 2 * options.regions))
    connectivity = np.stack([np.corrcoef(scan) for scan in series])
    labels = np.stack(
        [rng.integers(0, options.tokens - 3, people), rng.integers(0, 2, people), rng.uniform(20, 80, people)], axis=1
    )
    kind: dict[str, Any] = {"dtype": torch.float32, "device": options.device}
    return torch.tensor(connectivity, **kind), torch.tensor(labels, **kind)


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


def make_step(model: nn.Module, batch: tuple[Tensor, Tensor], official: bool = False) -> Callable[[], None]:
    """A whole training step: loss, gradients and, as in our recipes, fused AdamW; or the `official` code's Adam."""
    kind = torch.optim.Adam if official else torch.optim.AdamW
    optimiser = kind(model.parameters(), lr=1e-5, fused=None if official else True)

    def run() -> None:
        model.train()
        loss = model.loss(*batch) if isinstance(model, ReferenceLCM) else model(batch[0], labels=batch[1]).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return run


def seconds(run: Callable[[], Any], device: str) -> float:
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


def compare(part: str, runs: dict[str, Callable[[], None]], repeats: int, device: str) -> dict[str, list[float]]:
    """Quartiles of milliseconds per model and of the ratio reference / ours, from alternating runs.

    Also says so on the error stream at once, so that a long measurement that is cut off leaves what it had.
    """
    for run in runs.values():
        for _ in range(min(2, repeats)):
            seconds(run, device)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats):
        # Whoever comes second finds warmer caches, so the order changes.
        for name in runs if repeat % 2 else reversed(runs):
            times[name].append(1000 * seconds(runs[name], device))
    times["ratio"] = [theirs / ours for ours, theirs in zip(times["ours"], times["reference"], strict=True)]
    result = {name: np.percentile(values, [25, 50, 75]).tolist() for name, values in times.items()}
    print(f"{part}:", *(f"{name} {_spread(three)}" for name, three in result.items()), file=sys.stderr, flush=True)
    return result


def saved_activations(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    """MiB per subject that a training step keeps for its backward pass, weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}
    kept = []  # or a freed tensor's address would come back as another one's

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage.data_ptr() != batch[0].untyped_storage().data_ptr():
            storages[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.loss(*batch) if isinstance(model, ReferenceLCM) else model(batch[0], labels=batch[1])
    return sum(storages.values()) / 2**20 / len(batch[0])


def gemm_rate(device: str) -> float:
    """GFLOP/s of a large float32 product, the best of five."""
    size = 2048
    one, other = torch.randn(2, size, size, device=device)
    return 2e-9 * size**3 / min(seconds(lambda: one @ other, device) for _ in range(5))


def floating_point_operations(model: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
    """GFLOP of a forward pass, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        make_forward(model, batch)()
    return counter.get_total_flops() / 1e9


def peak_memory(options: SpeedArguments) -> float:
    """Peak MiB of three training steps with one model: of this process, or of the GPU's tensors."""
    ours = build(options)
    model = ReferenceLCM(ours).to(options.device) if options.memory_of == "reference" else ours
    step = make_step(model, make_batch(options))
    if options.device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(3):
        step()
    if options.device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    # In KiB, but bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def peak_memory_of_both(options: SpeedArguments) -> dict[str, float]:
    """`peak_memory` of both models, each in a process of its own."""
    names = ("size", "layers", "batch_size", "regions", "tokens", "threads", "device")
    case = [f"--{name}={getattr(options, name)}" for name in names if getattr(options, name) is not None]
    peaks = {}
    for name in MODELS:
        start = [sys.executable, "-m", "benchmarks.speed", *case, f"--memory_of={name}"]
        result = subprocess.run(start, check=True, capture_output=True, text=True)
        peaks[name] = float(result.stdout.splitlines()[-1])
    return peaks


@command(SpeedArguments)
def main(options: SpeedArguments) -> None:
    """Run the benchmark and print its result."""
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.memory_of:
        print(peak_memory(options))
        return
    # NOTE: first, because on Linux a new process starts with the peak of the one that started it.
    peaks = {"peak memory": peak_memory_of_both(options)} if options.memory else {}
    if options.grid:
        run_grid(options)
        return
    if options.growth:
        draw_growth(measure_growth(options), options.growth)
        return
    result = {**measure(options), **peaks}
    print(json.dumps(result) if options.json else table(options, result))


def measure(options: SpeedArguments) -> dict:
    """All numbers of one case."""
    ours = build(options)
    reference = ReferenceLCM(ours).to(options.device)
    batch = make_batch(options)
    models = {"ours": ours, "reference": reference}
    result: dict = {
        "parameters": ours.num_parameters(),
        "difference": largest_difference(ours, reference, batch),
        "GFLOP": {n: floating_point_operations(m, batch) for n, m in models.items()},
        "GEMM GFLOP/s": gemm_rate(options.device),
    }
    if "forward" in options.parts:
        forwards = {n: make_forward(m, batch) for n, m in models.items()}
        result["forward"] = compare("forward", forwards, options.repeats, options.device)
    if "step" in options.parts:
        official = options.optimiser == "official"
        steps = {n: make_step(m, batch, official and n == "reference") for n, m in models.items()}
        result["training step"] = compare("training step", steps, options.repeats, options.device)
        del steps
        ours.zero_grad()
    if "activations" in options.parts:
        result["activations"] = {n: saved_activations(m, batch) for n, m in models.items()}
        ours.activation_checkpointing_enable()
        result["activations"]["checkpointing"] = saved_activations(ours, batch)
    if options.packed:
        for weights in ("float32", "int8"):
            runs = {
                "ours": make_forward(pack(deepcopy(ours), weights), batch),
                "reference": make_forward(reference, batch),
            }
            part = f"forward, {weights} packed"
            result[part] = compare(part, runs, options.repeats, options.device)
    return result


def run_grid(options: SpeedArguments) -> None:
    """Several cases, printed as they are measured; ratios are reference / ours, activations ours / reference."""
    columns = "forward, step, packed float32 and int8 if asked for; activations (checkpointed); share of GEMM rate"
    print(f"{'batch:tokens:regions':22}{columns}", flush=True)
    for case in options.grid:
        batch_size, tokens, regions = (int(part) for part in case.split(":"))
        result = measure(replace(options, batch_size=batch_size, tokens=tokens, regions=regions))
        cells = [_spread(result[part]["ratio"]) for part in TIMES if part in result]
        if "activations" in result:
            kept = {name: value / result["activations"]["reference"] for name, value in result["activations"].items()}
            cells.append(
                f"{kept['ours']:.2f} of {result['activations']['reference']:.1f} MiB ({kept['checkpointing']:.3f})"
            )
        if "forward" in result:
            rate = result["GFLOP"]["ours"] / result["forward"]["ours"][1] * 1000
            cells.append(f"{rate / result['GEMM GFLOP/s']:.0%}")
        print(f"{case:22}" + "  ".join(cells), flush=True)


def _spread(quartiles: list[float]) -> str:
    low, middle, high = quartiles
    return f"{middle:.2f} [{low:.2f}-{high:.2f}]"


def measure_growth(options: SpeedArguments) -> dict[str, dict[int, dict]]:
    """Results by dimension and its value; the other three stay at the first of their values in `GROWTH`."""
    start: dict[str, Any] = {name: values[0] for name, values in GROWTH.items()}
    return {
        name: {value: measure(replace(options, **(start | {name: value}))) for value in sorted(values)}
        for name, values in GROWTH.items()
    }


def draw_growth(results: dict[str, dict[int, dict]], path: str) -> None:
    """Milliseconds of forward pass and training step, and MiB kept for a batch, over each dimension."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), layout="constrained")
    axes = figure.subplots(2, len(results))
    colours = {"ours": "tab:blue", "reference": "tab:orange", "checkpointing": "tab:green"}
    for column, (name, cases) in zip(axes.T, results.items(), strict=True):
        values = list(cases)
        for model in MODELS:
            for part, style in (("training step", "o-"), ("forward", "o:")):
                heights = [case[part][model][1] for case in cases.values()]
                column[0].plot(values, heights, style, color=colours[model], label=f"{part}, {model}")
        people = values if name == "batch_size" else [GROWTH["batch_size"][0]] * len(values)
        for kept, colour in colours.items():
            heights = [n * case["activations"][kept] for n, case in zip(people, cases.values(), strict=True)]
            column[1].plot(values, heights, "o-", color=colour, label=kept)
        for axis in column:
            axis.set_ylim(bottom=0)
            axis.set_xlim(left=0)
        column[0].set_title(name.replace("_", " "))
    axes[0, 0].set_ylabel("ms of processor time")
    axes[1, 0].set_ylabel("kept for the backward pass, MiB")
    for row in axes:
        row[0].legend(fontsize=8)
    figure.savefig(path, dpi=90)


def table(options: SpeedArguments, result: dict) -> str:
    """The result as text."""
    lines = [
        f"{options.size}: {result['parameters'] / 1e6:.2f} M parameters, batch {options.batch_size}, "
        f"{options.regions} regions, {options.tokens} tokens, {options.device}, {torch.get_num_threads()} thread(s)",
        f"same results: largest difference {result['difference']:.1e} of the largest value",
        f"{'':25}{'ours, ms':>30}{'reference, ms':>30}{'reference / ours':>30}",
    ]
    for name in (part for part in TIMES if part in result):
        cells = [result[name][column] for column in ("ours", "reference", "ratio")]
        lines.append(f"{name:25}" + "".join(f"{f'{mid:.2f} [{low:.2f}-{high:.2f}]':>30}" for low, mid, high in cells))
    if "activations" in result:
        ours, theirs, least = (f"{result['activations'][name]:.2f}" for name in (*MODELS, "checkpointing"))
        lines.append(f"kept for the backward pass, MiB a subject: {ours}, reference {theirs}; checkpointing {least}")
    if "peak memory" in result:
        peaks = result["peak memory"]
        cells = [f"{peaks['ours']:.0f} MiB", f"{peaks['reference']:.0f} MiB"]
        lines.append(f"{'peak memory':25}" + "".join(f"{cell:>30}" for cell in cells))
        if options.device == "cpu":
            lines.append("Memory is that of the whole training process, Python and its libraries included.")
    lines.append("Medians [middle half of the runs]; a ratio above 1 means that ours is faster.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
