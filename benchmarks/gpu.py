"""On a GPU: the same numbers as on a CPU, and how near a training step comes to what the card can do.

    python -m benchmarks.gpu --output gpu.json
    python -m benchmarks.gpu --parts speed --sizes 147m --cases 32:6 512:31

Ratios are medians of alternating runs in one process; the share of the card's rate is that of a large bfloat16 product
measured just before.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from modeling_lcm import fast_paths_lcm
from modeling_lcm.edges_lcm import matrix_logarithm
from training.command_line.cli import command, require_choices, setting
from training.trainer.arguments import Size
from training.trainer.memory import Setup, footprint

from .reference import ReferenceLCM
from .speed import SpeedArguments, build, make_batch, make_step, seconds


Part = Literal["correct", "processes", "speed", "folding", "edges", "memory"]
PARTS = get_args(Part)
NEVER = 1e30  # multiplications that folding would have to save


@dataclass
class GpuArguments:
    """Correctness, speed and memory on one CUDA GPU."""

    parts: list[Part] = setting(list(PARTS), "What to run.", example="correct speed")
    sizes: list[Size] = setting(["147m", "735m", "1.2b"], "Named sizes.")
    cases: list[str] = setting(["32:6", "128:6", "512:6", "128:31", "512:31"], "Batch size and tokens.", example="8:6")
    regions: int = setting(116, "Regions of the atlas.")
    repeats: int = setting(7, "Timed runs of each.")
    output: str = setting("", "JSON file of all numbers; default: printed only.")

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        require_choices(self)
        for case in self.cases:
            if len(case.split(":")) != 2 or not all(part.isdigit() for part in case.split(":")):
                raise ValueError(f'cases look like 32:6 (batch size, tokens), got "{case}".')
        if not torch.cuda.is_available():
            raise ValueError("PyTorch sees no CUDA GPU here: this benchmark is for one.")


def machine() -> dict[str, Any]:
    """Card, versions, and its measured rates: TFLOP/s of large products, TB/s of a copy (read and written)."""

    def best(run: Callable[[], Any], repeats: int = 10) -> float:
        return min(seconds(run, "cuda") for _ in range(repeats))

    rates = {}
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        one, other = torch.randn(2, 8192, 8192, device="cuda", dtype=dtype)
        rates[name] = 2e-12 * 8192**3 / best(partial(torch.mm, one, other))
    source = torch.randn(2**29, device="cuda")
    target = torch.empty_like(source)
    return {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "TFLOP/s": rates,
        "TB/s": 2e-12 * source.nbytes / best(partial(target.copy_, source)),
    }


@contextmanager
def folding_above(saving: float) -> Iterator[None]:
    """Cross-attention folds where it saves so many multiplications."""
    before = fast_paths_lcm.LEAST_SAVING["cuda"]
    fast_paths_lcm.LEAST_SAVING["cuda"] = saving
    try:
        yield
    finally:
        fast_paths_lcm.LEAST_SAVING["cuda"] = before


def results(model: nn.Module, batch: tuple[Tensor, Tensor], **autocast: Any) -> dict[str, Tensor]:
    """Layer logits and all gradients of a model without dropout, in float64 on the CPU."""
    model.zero_grad()
    with torch.autocast(batch[0].device.type, **({"enabled": False} | autocast)):
        outputs = model(batch[0], labels=batch[1])
    outputs.loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found["logits"] = outputs.layer_logits
    # A compiled model's names have a prefix.
    return {name.removeprefix("_orig_mod."): tensor.detach().double().cpu() for name, tensor in found.items()}


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference of a logit, as a share of the largest, and that of all gradients, of their norm."""
    logits = (one["logits"] - other["logits"]).abs().max() / other["logits"].abs().max()
    ours, theirs = (
        torch.cat([grads[name].flatten() for name in sorted(other) if name != "logits"]) for grads in (one, other)
    )
    return {"logits": float(logits), "gradients": float((ours - theirs).norm() / theirs.norm())}


def check_model(options: SpeedArguments, edges: bool) -> dict[str, dict[str, float]]:
    """Differences from float64 on the CPU, of every way to compute the same on the GPU."""
    model = build(options, hidden_dropout=0.0, attention_dropout=0.0, activation_dropout=0.0, edge_readout=edges)
    model.train()
    batch = connectivity, labels = make_batch(options)
    exact = results(model.double().cpu(), (connectivity.double().cpu(), labels.double().cpu()))
    model.float().cuda()

    def with_folding(saving: float, **autocast: Any) -> dict[str, Tensor]:
        with folding_above(saving):
            return results(model, batch, **autocast)

    def checkpointed() -> dict[str, Tensor]:
        model.activation_checkpointing_enable()
        try:
            return with_folding(0)
        finally:
            model.activation_checkpointing_disable()

    halved = {"dtype": torch.bfloat16, "enabled": True}
    ways = {
        "folded": lambda: with_folding(0),
        "plain": lambda: with_folding(NEVER),
        "activation checkpointing": checkpointed,
        "compiled": lambda: results(cast(nn.Module, torch.compile(model)), batch),
        "folded, bfloat16": lambda: with_folding(0, **halved),
        "plain, bfloat16": lambda: with_folding(NEVER, **halved),
    }
    return {name: differences(run(), exact) for name, run in ways.items()}


def check_correctness(arguments: GpuArguments) -> dict[str, Any]:
    """Every way to compute the same, for the small model with edges and the width of the published ones."""
    nano = SpeedArguments(size="nano", batch_size=8, regions=arguments.regions, device="cuda")
    wide = replace(nano, size="147m", layers=2)
    return {"nano, with edges": check_model(nano, True), "147m, two layers": check_model(wide, False)}


def check_processes() -> dict[str, Any]:
    """The same short training alone, with NCCL and with FSDP2, one process each: seconds, difference of weights."""
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        run = [sys.executable, "-m"]
        demo = "training/demo_data/lemon-schaefer200"
        prepare = ["training.prepare", "--recipe", "training/cohorts/lemon.yaml", "--data_dir", demo]
        subprocess.run([*run, *prepare, "--output", str(data)], check=True, capture_output=True)
        settings = "--size nano --epochs 2 --checkpoint_every 0 --progress false --log_with none --mixed_precision no"
        train = ["training.pretrain", "--data", str(data), *settings.split()]
        fsdp = ["--config_file", "training/configs/accelerate/fsdp2.yaml", "--num_processes", "1", "-m"]
        ways = {
            "alone": [*run, *train],
            "NCCL": [*run, "torch.distributed.run", "--nproc_per_node", "1", "-m", *train],
            "FSDP2": [*run, "accelerate.commands.launch", *fsdp, *train],
        }
        found: dict[str, Any] = {}
        weights = {}
        for name, start in ways.items():
            began = time.perf_counter()
            done = subprocess.run([*start, "--output", f"{scratch}/{name}"], capture_output=True, text=True)
            if done.returncode:
                found[name] = {"error": done.stderr[-600:]}
                continue
            weights[name] = load_file(f"{scratch}/{name}/checkpoint/model.safetensors")
            found[name] = {"seconds": time.perf_counter() - began}
            if "alone" in weights:
                found[name]["difference"] = max(
                    float((tensor.float() - weights["alone"][key].float()).abs().max())
                    for key, tensor in weights[name].items()
                )
        return found


def training_step(model: nn.Module, batch: tuple[Tensor, Tensor], precision: str, official: bool = False) -> Callable:
    """A step as in training: forward pass in mixed precision or float32, fused AdamW; or the official code's Adam."""
    if precision == "float32":
        return make_step(model, batch, official)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def run() -> None:
        model.train()
        with torch.autocast("cuda", torch.bfloat16):
            loss = model.loss(*batch) if isinstance(model, ReferenceLCM) else model(batch[0], labels=batch[1]).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    return run


def flops(run: Callable[[], None]) -> float:
    """TFLOP of the products in a run, as PyTorch counts them."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e12


def measure_speed(options: SpeedArguments, repeats: int, rates: dict[str, float]) -> dict[str, Any]:
    """Milliseconds of a training step: ours in bfloat16, the official formulation in float32 and in bfloat16."""
    ours = build(options)
    reference = ReferenceLCM(ours).to("cuda")
    batch = make_batch(options)
    runs = {
        "ours": training_step(ours, batch, "bfloat16"),
        "ours, float32": training_step(ours, batch, "float32"),
        "official": training_step(reference, batch, "float32", official=True),
        "official, bfloat16": training_step(reference, batch, "bfloat16"),
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 2):
        for name, run in runs.items():
            elapsed = 1000 * seconds(run, "cuda")
            if repeat > 1:
                times[name].append(elapsed)
    middle = {name: float(np.median(values)) for name, values in times.items()}
    work = {name: flops(runs[name]) for name in ("ours", "official")}
    rate = rates["bfloat16"]
    return {
        "ms": middle,
        "TFLOP": work,
        "ratio": middle["official"] / middle["ours"],
        "ratio, same precision": middle["official, bfloat16"] / middle["ours"],
        "ratio, float32": middle["official"] / middle["ours, float32"],
        "share of rate": work["ours"] / (middle["ours"] / 1000) / rate,
        "share of rate, official's products": work["official"] / (middle["ours"] / 1000) / rate,
        "scans a second": 1000 * options.batch_size / middle["ours"],
    }


def measure_folding(repeats: int, regions: int) -> dict[str, dict[str, float]]:
    """Plain / folded time of a bfloat16 training step over the multiplications that folding saves in a layer."""
    found = {}
    small: list[tuple[Size, int, int]] = [("nano", batch_size, 6) for batch_size in (8, 32, 128, 512)]
    large: list[tuple[Size, int, int]] = [("147m", size, tokens) for size in (2, 8, 32, 128) for tokens in (6, 31)]
    for size, batch_size, tokens in small + large:
        options = SpeedArguments(size=size, batch_size=batch_size, tokens=tokens, regions=regions, device="cuda")
        model, batch = build(options), make_batch(options)
        width, heads = model.config.hidden_size, model.config.num_attention_heads
        saved = 2 * batch_size * width * (regions * width - tokens * (width + (heads - 1) * regions))
        times: dict[float, list[float]] = {0.0: [], NEVER: []}
        run = training_step(model, batch, "bfloat16")
        for repeat in range(repeats + 2):
            for saving, values in times.items():
                with folding_above(saving):
                    elapsed = seconds(run, "cuda")
                if repeat > 1:
                    values.append(elapsed)
        ratio = float(np.median(times[NEVER]) / np.median(times[0.0]))
        found[f"{size} {batch_size}:{tokens}"] = {"saved": saved, "ratio": ratio}
    return found


def measure_edges(repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of the edge read-out's matrix logarithm of 32 scans, on the GPU and on the CPU."""
    found = {}
    for regions in (116, 200, 400):
        connectivity, _ = make_batch(SpeedArguments(batch_size=32, regions=regions))
        where = {"cuda": connectivity.cuda(), "cpu": connectivity}
        times = {
            device: [seconds(partial(matrix_logarithm, each, 0.2), "cuda") for _ in range(repeats + 1)][1:]
            for device, each in where.items()
        }
        found[str(regions)] = {device: 1000 * float(np.median(values)) for device, values in times.items()}
    return found


def measure_memory(options: SpeedArguments) -> dict[str, float]:
    """Peak GB of the tensors of two training steps beside `training.plan`, and the largest batch (a power of two)."""

    def peak(batch_size: int) -> float:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        model = build(options)
        connectivity, labels = make_batch(options)
        times = batch_size // options.batch_size
        run = training_step(model, (connectivity.repeat(times, 1, 1), labels.repeat(times, 1)), "bfloat16")
        for _ in range(2):
            run()
        return torch.cuda.max_memory_allocated() / 1e9

    planned = footprint(
        Setup(options.size, "pretrain", options.batch_size, options.regions, options.tokens, precision="bf16")
    )
    found = {"measured, GB": peak(options.batch_size), "planned, GB": (planned.total - planned.base) / 1e9}
    largest, batch_size = options.batch_size, 2 * options.batch_size
    try:
        while batch_size <= 2**15:
            peak(batch_size)
            largest, batch_size = batch_size, 2 * batch_size
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
    return found | {"largest batch": largest}


@command(GpuArguments)
def main(arguments: GpuArguments) -> None:
    """Run the parts and print their numbers."""
    found: dict[str, Any] = {"machine": machine()}

    def note(part: str, case: str, numbers: Any) -> None:
        found.setdefault(part, {})[case] = numbers
        print(part, case, json.dumps(numbers), flush=True)
        if arguments.output:
            Path(arguments.output).write_text(json.dumps(found, indent=1) + "\n")

    print(json.dumps(found["machine"]), flush=True)
    if "correct" in arguments.parts:
        for case, ways in check_correctness(arguments).items():
            note("correct", case, ways)
    if "processes" in arguments.parts:
        note("processes", "nano, two epochs", check_processes())
    if "folding" in arguments.parts:
        note("folding", "plain / folded", measure_folding(arguments.repeats, arguments.regions))
    if "edges" in arguments.parts:
        note("edges", "logarithm of 32 scans, ms", measure_edges(arguments.repeats))
    for size in arguments.sizes:
        base = SpeedArguments(size=size, batch_size=32, regions=arguments.regions, device="cuda")
        for case in arguments.cases if "speed" in arguments.parts else []:
            batch_size, tokens = map(int, case.split(":"))
            options = replace(base, batch_size=batch_size, tokens=tokens)
            note("speed", f"{size} {case}", measure_speed(options, arguments.repeats, found["machine"]["TFLOP/s"]))
            torch.cuda.empty_cache()
        if "memory" in arguments.parts:
            note("memory", f"{size} 32:31", measure_memory(replace(base, tokens=31)))


if __name__ == "__main__":
    main()
