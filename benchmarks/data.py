"""Does the loader keep the training step fed? Samples a second, and the part of a training spent waiting for data.

    OMP_NUM_THREADS=2 python -m benchmarks.data --folder /some/scratch

The data set is on the disk, as `training.prepare` writes it, with random connectomes; the loop is the one of the
training scripts. Waiting is all time between the end of a step and the batch being there, as part of the whole.
"""

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining
from training.command_line.cli import command, setting
from training.data.cohort import Cohort
from training.data.torch_datasets import ConnectomeDataset
from training.data.triangles import StoredTriangles
from training.trainer.arguments import LoopArguments, Size
from training.trainer.loop import Trainer

from .memory import random_cohort, vocabulary


GOAL = 0.02  # of the step's time


def stored_cohort(folder: Path, scans: int, regions: int) -> Cohort:
    """Random connectomes, written to the disk and read from there row by row."""
    cohort = random_cohort(scans, regions)
    edges = cohort.triangles.shape[1]
    features = datasets.Features({"connectivity": datasets.List(datasets.Value("float16"), length=edges)})
    shutil.rmtree(folder, ignore_errors=True)
    content = {"connectivity": list(np.asarray(cohort.triangles))}
    datasets.Dataset.from_dict(content, features=features).save_to_disk(str(folder))
    stored = StoredTriangles(datasets.load_from_disk(str(folder)), edges)
    return Cohort(cohort.table, stored, cohort.feature_extractor)


class TimedLoader:
    """A loader that adds up how long its batches take."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.seconds, self.batches = loader, 0.0, 0

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        start = time.perf_counter()
        for batch in self.loader:
            self.seconds += time.perf_counter() - start
            self.batches += 1
            yield batch
            start = time.perf_counter()


def make_trainer(cohort: Cohort, size: str, batch_size: int, scans: int) -> Trainer:
    """The training loop of the scripts on the first scans."""
    tokenizer = vocabulary()
    torch.manual_seed(0)
    config = LCMConfig.from_size(size, num_regions=cohort.num_regions, bei_variables=tokenizer.model_variables)
    cohort = cohort.select(np.arange(scans))
    labels = dict(tokenizer(cohort.table, return_tensors="pt"))
    settings = LoopArguments(epochs=1, batch_size=batch_size, progress=False, checkpoint_every=0)
    return Trainer(LCMForMultitaskPretraining(config), ConnectomeDataset(cohort, labels), None, settings)


def measure(cohort: Cohort, size: str, batch_size: int, steps: int) -> dict[str, float]:
    """Samples a second of the loader alone, milliseconds of a step, and the part of it that is waiting."""
    make_trainer(cohort, size, batch_size, 2 * batch_size).train()  # caches and buffers are warm after two steps
    trainer = make_trainer(cohort, size, batch_size, steps * batch_size)
    start = time.perf_counter()
    samples = sum(len(batch["positions"]) for batch in trainer.loader)
    alone = samples / (time.perf_counter() - start)
    timed: Any = TimedLoader(trainer.loader)
    trainer.loader = timed
    start = time.perf_counter()
    trainer._train_epoch(0)
    whole = time.perf_counter() - start
    return {
        "samples_per_second": alone,
        "step_ms": 1000 * whole / timed.batches,
        "wait": timed.seconds / whole,
    }


@dataclass
class DataArguments:
    """Samples a second, and the part of a training spent waiting for data."""

    folder: str = setting("", "Scratch for the data set.", example="scratch", required=True)
    sizes: list[Size] = setting(["nano", "147m"], "Named sizes.")
    regions: int = setting(116, "Regions of the atlas.")
    batch_size: int = setting(16, "Scans in a batch.")
    steps: int = setting(30, "Training steps.")


@command(DataArguments)
def main(options: DataArguments) -> None:
    """Command line."""
    cohort = stored_cohort(Path(options.folder) / "random", options.steps * options.batch_size, options.regions)
    print(f"{options.regions} regions, batch {options.batch_size}, {torch.get_num_threads()} thread(s)")
    print(f"{'size':8}{'loader, samples/s':>19}{'step, ms':>10}{'waiting':>9}  goal: at most {GOAL:.0%}")
    for size in options.sizes:
        found = measure(cohort, size, options.batch_size, options.steps)
        row = f"{found['samples_per_second']:19.0f}{found['step_ms']:10.1f}{found['wait']:9.2%}"
        print(f"{size:8}{row}  {'reached' if found['wait'] <= GOAL else 'missed'}", flush=True)


if __name__ == "__main__":
    main()
