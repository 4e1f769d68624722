"""Which scans a run trains on, and what its record says about it."""

import platform
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from accelerate.utils import broadcast_object_list

from ..data.cohort import Cohort
from ..data.folds import Folds
from ..data.identity import bare_ids, hash_names, recorded_ids, scan_names
from ..storage.files import claim, remove_leftovers, require_writable
from .arguments import DataArguments, LoopArguments
from .batches import batch_shares
from .checkpoints import read_record
from .distributed import start_processes
from .tracking import chosen_trackers


@contextmanager
def output_folder(arguments: LoopArguments) -> Iterator[Path]:
    """The run's new output folder, claimed by the first process for all of them.

    Raises:
        ValueError: no output was given, an FSDP configuration without GPUs, or a number of processes that does not
            divide the batch.
        FileExistsError: the folder holds results, and the run does not resume.
        BlockingIOError: another run writes to it.
        OSError: the folder cannot be written to.
        ImportError: the experiment tracker is not installed.
    """
    state = start_processes(arguments.process_timeout)
    batch_shares(arguments, state.num_processes)
    chosen_trackers(arguments.log_with)
    with ExitStack() as stack:
        answer: list[Path | Exception | None] = [None]
        if state.is_main_process:
            try:
                answer[0] = _claimed(arguments, stack)
            except (ValueError, OSError) as error:
                answer[0] = error
        if state.num_processes > 1:
            broadcast_object_list(answer)
        folder = answer[0]
        if isinstance(folder, Exception):
            raise folder
        yield cast(Path, folder)


def _claimed(arguments: LoopArguments, stack: ExitStack) -> Path:
    folder = stack.enter_context(claim(arguments.output, arguments.resume))
    require_writable(folder)
    remove_leftovers(folder / "checkpoint")
    return folder


def training_scans(cohort: Cohort, arguments: DataArguments) -> Cohort:
    """What a run may train on: all scans, or those outside the test subjects of the given fold."""
    if arguments.splits is None or arguments.fold is None:  # both, or neither
        return cohort
    return Folds.load(arguments.splits).split(cohort, arguments.fold)[0]


def record_of(cohort: Cohort, history: list[dict[str, Any]], checkpoint: str | None = None) -> dict[str, Any]:
    """What a checkpoint says about its making: subjects seen, epochs, versions.

    Args:
        cohort (`Cohort`): the training scans (validation included).
        history (`list[dict]`): one record per epoch.
        checkpoint (`str`, *optional*): what training started from; its training subjects are this one's, too.
    """
    subjects = {*cohort.subjects, *recorded_ids(cohort.table)}
    hashes = [hash_names(scan_names(cohort.table))]
    cohorts: dict[str, int] = {}
    if "dataset" in cohort.table:
        cohorts = {str(name): int(count) for name, count in cohort.table["dataset"].value_counts(sort=False).items()}
    if checkpoint is not None:
        earlier = read_record(checkpoint)
        named = set(earlier.get("training_subjects", []))
        subjects |= named
        # Shared checkpoints have hashes alone; those of older versions, names alone.
        older = [hash_names(bare_ids(named, keep_width=False))] if named else []
        hashes += earlier.get("training_subject_hashes", older)
        cohorts = earlier.get("cohorts", {}) | cohorts
    return {
        "training_subjects": sorted(subjects),
        "training_subject_hashes": hashes,
        "cohorts": cohorts,
        "num_training_scans": len(cohort),
        "history": history,
        "versions": library_versions(),
        "git_revision": git_revision(),
    }


def library_versions() -> dict[str, str]:
    """Versions that decide on a run's numbers."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def git_revision() -> str | None:
    """Commit of this repository, or None outside a checkout."""
    if not (Path(__file__).parents[2] / ".git").exists():  # installed, perhaps inside a repository of the user's
        return None
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return found.stdout.strip() or None
