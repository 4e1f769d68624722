"""Seconds to load a model's weights: safetensors against a pickle of the same tensors, alternating in one process.

    python -m benchmarks.load --size 147m --folder /some/scratch

Both files are read once before, so that they come from memory and not from the disk. What is timed is file to tensors
with every page of them touched, since safetensors maps the file and reads it when it is used; a model also has to be
built, which both ways have in common.
"""

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from training.command_line.cli import command, setting
from training.trainer.arguments import Size


def measure(folder: Path, size: str, repeats: int) -> dict[str, list[float]]:
    """Quartiles of milliseconds of both ways to load, and of the ratio pickle / safetensors, pair by pair.

    Args:
        folder (`Path`): where the two files go; they are deleted afterwards.
        size (`str`): named size of the model.
        repeats (`int`): timed pairs.
    """
    import numpy as np
    import torch
    from safetensors.torch import load_file, save_file

    from modeling_lcm import LCMConfig, LCMForMultitaskPretraining

    state = LCMForMultitaskPretraining(LCMConfig.from_size(size)).state_dict()
    ways = {"safetensors": load_file, "pickle": lambda path: torch.load(path, weights_only=True)}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        paths = {name: Path(scratch) / f"weights.{name}" for name in ways}
        save_file(state, paths["safetensors"])
        torch.save(state, paths["pickle"])
        times: dict[str, list[float]] = {name: [] for name in ways}
        for repeat in range(repeats + 1):
            for name in sorted(ways, reverse=bool(repeat % 2)):
                start = time.perf_counter()
                loaded = ways[name](paths[name])
                for tensor in loaded.values():
                    tensor.flatten()[:: 4096 // tensor.element_size()].max()
                elapsed = 1000 * (time.perf_counter() - start)
                if repeat:  # the first pair warms up
                    times[name].append(elapsed)
                if not all(torch.equal(loaded[key], value) for key, value in state.items()):
                    raise RuntimeError(f"{name} gave other tensors back.")
    times["ratio"] = [theirs / ours for ours, theirs in zip(times["safetensors"], times["pickle"], strict=True)]
    return {name: np.percentile(values, [25, 50, 75]).tolist() for name, values in times.items()}


@dataclass
class LoadArguments:
    """Loading weights: safetensors against pickle."""

    size: Size = setting("147m", "Named size of the model.")
    folder: str = setting("", "Scratch folder; default: the system's.")
    repeats: int = setting(9, "Timed pairs.")


@command(LoadArguments)
def main(options: LoadArguments) -> None:
    """Run the benchmark and print its result."""
    folder = Path(options.folder or tempfile.gettempdir())
    if not folder.is_dir():
        raise ValueError(f"folder {folder} is not a folder: create it, or name another.")
    for name, (low, middle, high) in measure(folder, options.size, options.repeats).items():
        unit = "" if name == "ratio" else " ms"
        print(f"{name:12} {middle:.2f} [{low:.2f}-{high:.2f}]{unit}")


if __name__ == "__main__":
    main()
