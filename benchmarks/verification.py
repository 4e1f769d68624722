"""What comparing checksums adds to loading: a checkpoint, an adapter and a data set, with their list and without it.

    python -m benchmarks.verification --size 147m --folder /some/scratch

Each is loaded as the commands load it, in turns from a folder that has `checksums.json` and from a copy that has none.
Processor time is compared: the files are in memory, and other processes do not count. "first" is the load that reads
all files to compare them, "later" one that finds them unchanged since.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np

from modeling_lcm import LCMForSequenceClassification, LCMProcessor, load_adapter, save_adapter
from modeling_lcm.bei_vocabulary import BEIVariable
from training.command_line.cli import command, hide_bars_of_files, setting
from training.data.cohort import load_cohort
from training.data.dataset_folder import FC_DEFINITION
from training.data.triangles import count_edges
from training.storage.checked_files import check_adapter_files
from training.storage.manifest import TICK, seal
from training.trainer.arguments import FinetuneArguments, Size
from training.trainer.checkpoints import load_model, load_processor, read_record
from training.trainer.lora import with_adapter

from .memory import make_checkpoint, random_cohort


GOAL = 0.1  # of the time of loading
SCANS, REGIONS = 1000, 116


def load_checkpoint(folder: Path) -> None:
    """Everything of a checkpoint that a command reads."""
    load_processor(str(folder))
    load_model(str(folder))
    read_record(str(folder))


def make_adapter(base: Path, folder: Path) -> None:
    """An adapter of rank 8 for a diagnosis."""
    processor = load_processor(str(base))
    tokenizer = processor.tokenizer.add_variable(BEIVariable("dx", "categorical", ["case", "control"]), task=True)
    task = {"task_variable": "dx", "id2label": {0: "case", 1: "control"}, "label2id": {"case": 0, "control": 1}}
    model = with_adapter(LCMForSequenceClassification.from_pretrained(base, **task), FinetuneArguments(lora_rank=8))
    save_adapter(model, LCMProcessor(processor.feature_extractor, tokenizer), folder)


def make_dataset(folder: Path) -> None:
    """A data set of random connectomes, as `training.prepare` leaves one."""
    cohort = random_cohort(SCANS, REGIONS)
    edges = datasets.List(datasets.Value("float16"), length=count_edges(cohort.feature_extractor))
    content = datasets.Dataset.from_pandas(cohort.table, preserve_index=False)
    triangles = datasets.Dataset.from_dict(
        {"connectivity": list(np.asarray(cohort.triangles))}, features=datasets.Features({"connectivity": edges})
    )
    datasets.concatenate_datasets([content, triangles], axis=1).save_to_disk(str(folder))
    cohort.feature_extractor.to_json_file(folder / FC_DEFINITION)


def load_dataset(folder: Path) -> None:
    """A data set with all its connectomes, as training reads them."""
    cohort = load_cohort(folder)
    for _ in cohort.batches(64):
        pass


def measure(folder: Path, load: Callable[[Path], Any], notes: Path, repeats: int) -> dict[str, float]:
    """Medians of processor seconds to load a sealed folder, and a copy without checksums, in turns.

    Args:
        folder (`Path`): has no checksums yet.
        load (`Callable`): loads it.
        notes (`Path`): where it is remembered what was compared.
        repeats (`int`): turns.
    """
    plain = folder.with_name(f"{folder.name}-plain")
    shutil.copytree(folder, plain)
    seal(folder)
    times: dict[str, list[float]] = {"without": [], "first": [], "later": []}
    for repeat in range(repeats + 1):
        for name, place in (("without", plain), ("first", folder), ("later", folder)):
            if name == "first":
                shutil.rmtree(notes, ignore_errors=True)
                for path in folder.rglob("*"):
                    path.touch()
                time.sleep(TICK / 1e9)  # files that have changed just now are read each time
            start = time.process_time()
            load(place)
            if repeat:  # the first turn warms up
                times[name].append(time.process_time() - start)
    shutil.rmtree(plain)
    return {name: float(np.median(values)) for name, values in times.items()}


@dataclass
class VerificationArguments:
    """Share of loading that comparing checksums takes."""

    size: Size = setting("147m", "Named size of the larger checkpoint.")
    folder: str = setting("", "Scratch folder; default: the system's.")
    repeats: int = setting(9, "Turns.")


@command(VerificationArguments)
def main(options: VerificationArguments) -> None:
    """Run the benchmark and print its result."""
    hide_bars_of_files()
    with tempfile.TemporaryDirectory(dir=options.folder or None) as scratch:
        place = Path(scratch)
        os.environ["XDG_CACHE_HOME"] = str(place / "cache")
        make_checkpoint("nano", "fp32", place / "nano")
        make_checkpoint(options.size, "fp32", place / options.size)
        make_adapter(place / "nano", place / "adapter")
        make_dataset(place / "dataset")

        def load_one_adapter(folder: Path) -> None:
            check_adapter_files(str(folder), str(place / "nano"))
            load_adapter(folder, place / "nano")

        print(f"{'':12} {'MB':>7} {'without':>9} {'first':>9} {'later':>9}   share, first and later")
        for name, load in (
            ("nano", load_checkpoint),
            (options.size, load_checkpoint),
            ("adapter", load_one_adapter),
            ("dataset", load_dataset),
        ):
            found = measure(place / name, load, place / "cache", options.repeats)
            size = sum(path.stat().st_size for path in (place / name).rglob("*") if path.is_file()) / 1e6
            shares = [found[each] / found["without"] - 1 for each in ("first", "later")]
            shown = "  ".join(f"{1000 * value:6.1f} ms" for value in found.values())
            print(
                f"{name:12} {size:7.1f} {shown}   {shares[0]:.0%} and {shares[1]:.0%} (goal: {GOAL:.0%})", flush=True
            )


if __name__ == "__main__":
    main()
