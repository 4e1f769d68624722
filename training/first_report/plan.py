"""What a report will do, found before any scan is read: the scans, the task, and what it costs in time and memory."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from modeling_lcm.edges_lcm import matrix_logarithm

from ..data.cohort import load_cohort
from ..preparation.build import make_extractor
from ..preparation.recipes import load_recipe
from ..preparation.recognise import DATASET, Recognised, recognise
from ..preparation.sources.base import DEFAULT_ATLAS, Source
from ..preparation.sources.opening import open_source
from ..preparation.table import check_table, describe
from ..trainer.checkpoints import load_processor
from .arguments import ReportArguments
from .checks import folds_that_fit, task_kind
from .settings import prepare_arguments


GB = 1e9
LIBRARIES = 0.8 * GB  # Python, PyTorch and the rest, measured
IMAGE_BYTES_PER_SECOND = 30e6  # of compressed images, on one core
SECONDS_PER_TABLE = 0.03
SECONDS_OF_START = 12.0  # imports, folders, the page
LOOKED_AT = 3  # scans that are read before all
CHANNELS = 6  # forms of the edges that a ridge head tries, and products of each


@dataclass(frozen=True)
class Plan:
    """What will be done.

    Args:
        arguments (`ReportArguments`): with as many folds as the labels allow.
        found (`Recognised`): what the input was taken for.
        kind (`str`): of the task, "categorical" or "continuous".
        scans, subjects, regions (`int`): how many.
        counts (`dict[str, int]`): subjects by label; empty for a number.
        absent (`int`): scans that the table promises and that are not there.
        reading (`float`): seconds to read all scans.
        notes (`list[str]`): what has to be said about the data.
    """

    arguments: ReportArguments
    found: Recognised
    kind: str
    scans: int
    subjects: int
    regions: int
    counts: dict[str, int]
    absent: int
    reading: float
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The plan in words, with the estimates."""
        arguments = self.arguments
        who = (
            f"{self.scans} scans of {self.subjects} subjects"
            if self.scans != self.subjects
            else f"{self.scans} subjects"
        )
        labels = ", ".join(f"{label} {count}" for label, count in self.counts.items())
        missing = f"; {self.absent} rows have no scan" if self.absent else ""
        is_done = self.found.kind == DATASET
        return [
            self.found.words,
            f"Task: {arguments.task} ({labels or 'a number'}); {who}, {self.regions} regions{missing}.",
            *self.notes,
            "Steps:",
            "  1. "
            + ("nothing to prepare" if is_done else f"prepare {self.scans} scans (about {_text(self.reading)})"),
            f"  2. evaluate: {arguments.n_folds} folds by subject"
            + (f", {arguments.repeats} times" if arguments.repeats > 1 else "")
            + f", beside {', '.join(arguments.baselines)} (about {_text(self.evaluating)})",
            "  3. fine-tune on all subjects, for predictions of other scans",
            "  4. explain what the predictions follow",
            f"  5. one page, {Path(arguments.output) / 'report.html'}",
            f"About {_text(self.reading + self.evaluating + SECONDS_OF_START)} on this machine as it is now, and "
            f"{self.memory / GB:.1f} GB of memory. Nothing was written.",
        ]

    @property
    def evaluating(self) -> float:
        """Seconds of all folds: logarithms of FC, and fits of every model; measured on this machine, scaled."""
        logarithm, product = _speed(self.regions)
        edges, models = self.regions * (self.regions - 1) / 2, len(self.arguments.baselines) + 1
        fits = self.arguments.n_folds * self.arguments.repeats * models
        return self.scans * 4 * logarithm + fits * (CHANNELS * self.scans**2 * edges * product + 0.8)

    @property
    def memory(self) -> float:
        """Bytes at the peak: libraries, and log FC of all scans in a few forms."""
        edges = self.regions * (self.regions - 1) / 2
        return LIBRARIES + 4 * CHANNELS * self.scans * edges


def make_plan(arguments: ReportArguments) -> Plan:
    """Look at everything that can go wrong before it takes time.

    Args:
        arguments (`ReportArguments`): what to report on.

    Raises:
        ValueError: an input, a table or a task that cannot be used; says which setting to change.
        FileNotFoundError: there is no such input, table or scan.
    """
    found = recognise(arguments.input, arguments.participants, [arguments.atlas] if arguments.atlas else [])
    if arguments.checkpoint is not None:
        load_processor(arguments.checkpoint)
    if found.kind == DATASET:
        cohort = load_cohort(arguments.input)
        table, regions, absent, reading = cohort.table, cohort.num_regions, 0, 0.0
    else:
        table, regions, absent, reading = _unprepared(arguments, found)
    kind = task_kind(table, arguments)
    arguments, notes = folds_that_fit(table, arguments, kind)
    known = table[table[arguments.task].notna()]
    counts = {}
    if kind == "categorical":
        counts = {
            str(label): part["subject_id"].nunique() for label, part in known.groupby(arguments.task, observed=True)
        }
    return Plan(
        arguments, found, kind, len(table), table["subject_id"].nunique(), regions, counts, absent, reading, notes
    )


def _unprepared(arguments: ReportArguments, found: Recognised) -> tuple[pd.DataFrame, int, int, float]:
    """Table as it will be stored, regions, absent scans, and seconds to read the scans."""
    preparing, recipe = prepare_arguments(arguments, found, Path(arguments.output) / "dataset"), load_recipe(None)
    source = open_source(preparing, lambda table: check_table(table, preparing, recipe))
    preparing.atlas = source.atlas_id() or preparing.atlas or DEFAULT_ATLAS
    table = describe(preparing, recipe, source)[0]
    _look_at_some(source)
    regions = make_extractor(preparing, source).num_regions or 0
    return table, regions, len(source.absent), _reading(source)


def _look_at_some(source: Source) -> None:
    """Refuse scans of which the first few cannot be used; a spoilt one among good ones is left out later.

    Raises:
        ValueError: what the first one says.
    """
    if source.slow:
        return
    errors = []
    for row in range(min(LOOKED_AT, len(source.table))):
        try:
            source.read(row)
        except (ValueError, OSError) as error:
            errors.append(f"{Path(source.places[row].partition(' (')[0]).name}: {error}")
        else:
            return
    if errors:
        raise ValueError(errors[0])


def _reading(source: Source) -> float:
    paths = [Path(path) for path in getattr(source, "paths", [])]
    images = [path for path in paths if path.name.endswith((".nii", ".nii.gz"))]
    size = sum(path.stat().st_size for path in images if path.is_file())
    return size / IMAGE_BYTES_PER_SECOND + SECONDS_PER_TABLE * len(source.table)


def _speed(regions: int) -> tuple[float, float]:
    """Seconds of one matrix logarithm, and of one multiplication and addition of a product, on this machine now."""
    matrices = torch.eye(regions).repeat(4, 1, 1)
    started = time.perf_counter()
    matrix_logarithm(matrices, 0.1)
    logarithm = (time.perf_counter() - started) / len(matrices)
    values = np.ones((200, 2000), dtype=np.float32)
    started = time.perf_counter()
    values @ values.T
    return logarithm, (time.perf_counter() - started) / (200 * 200 * 2000)


def _text(seconds: float) -> str:
    return f"{max(1, round(seconds))} s" if seconds < 90 else f"{seconds / 60:.0f} min"
