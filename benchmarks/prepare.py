"""Preparing many simulated scans: scans a second, peak memory, and how fast the data set is read back.

    OMP_NUM_THREADS=1 python -m benchmarks.prepare --scans 100000 --workers 2 --folder /some/scratch

Writes one .npy of ROI time series per scan (23 kB at 50 volumes), prepares them, and compares the loader with the
training step of the smallest model.
"""

import multiprocessing
import resource
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from training.command_line.cli import command, setting


def write_scans(folder: Path, scans: int, volumes: int, regions: int) -> None:
    """Simulated scans with region structure, and their table."""
    import numpy as np
    import pandas as pd

    folder.mkdir(parents=True)
    ids = [f"s{number:06d}" for number in range(scans)]
    ages = np.random.default_rng(0).integers(18, 90, scans)
    pd.DataFrame({"participant_id": ids, "age": ages, "sex": ["M", "F"] * (scans // 2) + ["M"] * (scans % 2)}).to_csv(
        folder / "participants.tsv", sep="\t", index=False
    )
    generator = np.random.default_rng(1)
    for name in ids:
        np.save(folder / f"{name}.npy", generator.standard_normal((volumes, regions), dtype=np.float32))


class PeakMemory(threading.Thread):
    """Highest sum of resident memory of this process and its children, sampled every half second, in MB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = self.total = 0.0
        self.done = threading.Event()

    def run(self) -> None:
        """Sample until told to stop."""
        while not self.done.wait(0.5):
            self.peak = max(self.peak, sum(map(resident, family(multiprocessing.current_process().pid or 0))))

    def stop(self) -> float:
        """Stop, and give the peak."""
        self.done.set()
        self.join()
        return self.peak


def family(parent: int) -> list[int]:
    """A process and all below it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found, todo = [], [parent]
    while todo:
        found.append(todo.pop())
        todo += children.get(found[-1], [])
    return found


def resident(process: int) -> float:
    """Memory in MB that is this process's own: shared pages of forked workers count once, by their share."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1000 for line in lines if line.startswith("Pss:")), 0.0)


def read_back(folder: Path, batch: int = 32, batches: int = 60) -> tuple[float, float]:
    """Samples a second of the loader, and of the nano model's training step."""
    import torch

    from modeling_lcm import LCMConfig, LCMForMultitaskPretraining
    from training.data.cohort import load_cohort
    from training.data.torch_datasets import ConnectomeDataset

    cohort = load_cohort(folder)
    data = ConnectomeDataset(cohort, {"labels": torch.zeros(len(cohort), 2)})
    order = torch.randperm(len(cohort))[: batch * batches].split(batch)
    start = time.perf_counter()
    for part in order:
        loaded = data.__getitems__(part.tolist())
    loader = sum(map(len, order)) / (time.perf_counter() - start)
    variables = [
        {"name": "sex", "kind": "categorical", "labels": ["M", "F"], "loss_weight": 1.0},
        {"name": "age", "kind": "continuous", "labels": [], "loss_weight": 1.0},
    ]
    config = LCMConfig.from_size("nano", num_regions=cohort.num_regions, bei_variables=variables)
    model = LCMForMultitaskPretraining(config)
    optimiser = torch.optim.AdamW(model.parameters())
    start = time.perf_counter()
    for _ in range(20):
        model(connectivity=loaded["connectivity"], labels=loaded["labels"]).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    return loader, 20 * len(loaded["labels"]) / (time.perf_counter() - start)


@dataclass
class PrepareBenchmarkArguments:
    """Scans a second of training.prepare, and its memory."""

    folder: str = setting("", "Scratch for scans and the data set.", example="scratch", required=True)
    scans: int = setting(5000, "Scans.")
    volumes: int = setting(50, "Volumes of a scan.")
    regions: int = setting(116, "Regions of the atlas.")
    workers: int = setting(2, "Processes that read scans.")


@command(PrepareBenchmarkArguments)
def main(options: PrepareBenchmarkArguments) -> None:
    """Command line."""
    from training.preparation.arguments import PrepareArguments
    from training.preparation.build import prepare

    folder = Path(options.folder)
    scans = folder / "scans"
    write_scans(scans, options.scans, options.volumes, options.regions)
    memory = PeakMemory()
    memory.start()
    start = time.perf_counter()
    output = prepare(
        PrepareArguments(
            output=str(folder / "dataset"), participants=str(scans / "participants.tsv"),
            time_series=str(scans / "{participant_id}.npy"), atlas=f"simulated-{options.regions}",
            workers=options.workers,
        )
    )  # fmt: skip
    seconds = time.perf_counter() - start
    peak = memory.stop()
    shutil.rmtree(scans)
    size = sum(path.stat().st_size for path in output.glob("*.arrow")) / options.scans / 1000
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(f"{options.scans} scans in {seconds:.1f} s: {options.scans / seconds:.0f} scans a second")
    print(f"peak memory, all processes: {peak:.0f} MB (the main process alone: {own:.0f} MB resident)")
    print(f"stored: {size:.1f} kB a scan")
    loader, step = read_back(output)
    print(f"read back: {loader:.0f} samples a second; the nano model's training step uses {step:.0f}")


if __name__ == "__main__":
    main()
