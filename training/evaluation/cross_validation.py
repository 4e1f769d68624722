"""Honest cross-validation of the whole recipe, fold by fold; nothing is chosen on a test fold."""

import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from modeling_lcm import BEIVariable
from modeling_lcm.closed_form_model import SHRINKAGES

from ..data.duplicates import near_identical
from ..data.folds import Folds
from ..data.identity import alike_subjects, seen_subjects
from ..data.labels import label_lines
from ..data.leakage import leaking_columns
from ..reporting.plain import write_table
from ..reporting.results import Results
from ..storage.files import claim, read_json, require_new, require_writable, write_json
from ..storage.locks import lock_of
from ..storage.manifest import seal
from ..trainer.checkpoints import read_record
from .arguments import EvaluateArguments
from .design import JOINS, Design, draw_folds, make_design, save_folds
from .features import SHRINKAGE, stored_log_fc
from .running import Place, fold_places, require_external_values, run_places
from .summary import prediction_tables, summary


SHARD = "shard"
_OF_SHARDS = re.compile(r"(settings|splits(_\d+)?)\.json$|(repeat_\d+_)?fold_\d+$|external_.*_\d+$")


def refuse_seen_subjects(checkpoint: str, tested: pd.DataFrame, allowed: bool) -> list[str]:
    """Check that a checkpoint was trained on none of the test subjects.

    Args:
        checkpoint (`str`): folder or Hub repository.
        tested (`pd.DataFrame`): one row per test scan.
        allowed (`bool`): go on nevertheless.

    Returns:
        Remarks for the report, if subjects were seen or may have been, or nothing is known.

    Raises:
        ValueError: it was, and that is not allowed.
    """
    record = read_record(checkpoint)
    seen = seen_subjects(record, tested)
    if seen and not allowed:
        raise ValueError(
            f"The checkpoint {checkpoint} was trained on {len(seen)} of the test subjects, {seen[0]} among them. Do "
            "without it, give a pretraining configuration, which is then run per fold, or accept an optimistic score "
            "with training.evaluate --allow_seen_subjects true. If only the ids are alike, put a prefix before yours."
        )
    if seen:
        return [f"The checkpoint was trained on {len(seen)} of the test subjects: these scores are optimistic."]
    if not {"training_subjects", "training_subject_hashes"} & set(record):
        return [
            "The checkpoint does not say whom it was trained on: whether test subjects are among them is not known."
        ]
    return alike_subjects(record, tested)


def evaluate(arguments: EvaluateArguments) -> Results:
    """Cross-validate a recipe.

    Args:
        arguments (`EvaluateArguments`): data, recipe and folds.

    Returns:
        What `metrics.json` holds. Beside it, the output gets `results.md`, `report.html`, tables of predictions, the
        split files and a folder per fold.

    Raises:
        ValueError: folds that cannot be made, or a checkpoint that has seen test subjects.
        FileExistsError: the output holds results and `resume` is false.
    """
    if arguments.shard is not None:
        raise ValueError("A shard has no results of its own: use evaluate_shard, and evaluate to join all shards.")
    with claim(arguments.output, arguments.resume) as output, ExitStack() as shards:
        # Taken while joining: refused if a shard is still being computed, and none begins meanwhile.
        for lock in sorted(output.glob(f".{SHARD}_*.lock")):
            shards.enter_context(lock_of(output / lock.name.removeprefix(".").removesuffix(".lock")))
        started = time.monotonic()
        run = _begin(arguments, output)
        _do(run, run.places)
        outcomes = [place.result() for place in run.places if place.external is None]
        external: dict[str, list[dict[str, Any]]] = {}
        for place in run.places:
            if place.external is not None:
                external.setdefault(Path(place.external).name, []).append(place.result())
        results = summary(run.design, run.folds, outcomes, external, run.remarks)
        results.seconds = round(time.monotonic() - started, 1)
        results.save(output / "metrics.json")
        for name, table in prediction_tables(run.design, outcomes, external).items():
            write_table(output / name, table, decimals=5)
        from .report import write_reports  # matplotlib, while workers may still use the time

        write_reports(output, run.design, results, outcomes)
        seal(output)
        return results


def evaluate_shard(arguments: EvaluateArguments) -> str:
    """Do the folds of one shard, in the output folder that all shards share.

    Args:
        arguments (`EvaluateArguments`): as for `evaluate`; `shard` says which folds.

    Returns:
        What was done, and how to go on.

    Raises:
        FileExistsError: the output holds something else.
        BlockingIOError: this shard is being computed already.
    """
    output = Path(os.path.realpath(require_new(arguments.output, resume=True)))
    number, count = arguments.share()
    foreign = [path.name for path in output.glob("[!.]*") if not _OF_SHARDS.match(path.name)]
    if foreign:
        raise FileExistsError(f"{output} holds {foreign[0]}, which is of no shard. Choose another output.")
    require_writable(output)
    with lock_of(output / f"{SHARD}_{number + 1}_of_{count}"):
        run = _begin(arguments, output)
        own = run.places[number::count]
        _do(run, own)
    return (
        f"Shard {number + 1} of {count}: {len(own)} of {len(run.places)} folds are done. When all shards are, the "
        "same command with --resume and without --shard joins them."
    )


class _Run(NamedTuple):
    """An evaluation that may begin: nothing was refused."""

    design: Design
    folds: list[Folds]
    places: list[Place]
    remarks: dict[str, list[str]]


def _begin(arguments: EvaluateArguments, output: Path) -> _Run:
    """Settle everything and write it down; a refused evaluation leaves its output free."""
    design = make_design(arguments)
    settings = _settings(design)
    _require_same(output / "settings.json", settings)
    folds = draw_folds(design, output)
    remarks = _remarks(design)
    require_external_values(design)
    require_writable(output)
    write_json(output / "settings.json", settings)
    save_folds(folds, output)
    for line in _label_lines(design):
        print(line, flush=True)
    for line in dict.fromkeys(line for lines in remarks.values() for line in lines):
        print(line, flush=True)
    return _Run(design, folds, fold_places(design, folds, output), remarks)


def _do(run: _Run, places: Sequence[Place]) -> None:
    with _with_log_fc(run.design) as ready:
        run_places(ready, run.folds, places)


@contextmanager
def _with_log_fc(design: Design) -> Iterator[Design]:
    """The design with the log FC that its fits need, if harmonisation does not make it another one per fold."""
    arguments = design.recipe.arguments
    wanted = set()
    if {"linear_log", "linear_best"} & set(arguments.baselines):
        wanted.add(SHRINKAGE)
    if any(tuning.head == "ridge" for tuning in design.recipe.tunings):
        wanted |= set(SHRINKAGES)
    if arguments.harmonise is not None or not wanted:
        yield design
        return
    with stored_log_fc(design.cohort, arguments.data, sorted(wanted)) as stored:
        yield replace(design, log_fc=stored)


def _label_lines(design: Design) -> list[str]:
    """Labels of the tasks in the tested cohort, and which one is positive."""
    variables = [
        BEIVariable(task.name, "categorical", list(task.labels)) for task in design.recipe.tasks if task.labels
    ]
    setting = "--positive LABEL" if design.recipe.is_one_tuning else "--positive VARIABLE=LABEL"
    return label_lines(variables, design.tested.table, setting)


def _remarks(design: Design) -> dict[str, list[str]]:
    """What a reader of a task's scores has to know: columns that tell the label, subjects who were seen before.

    Raises:
        ValueError: the checkpoint was trained on test subjects, and that is not allowed.
    """
    pretraining, twins = design.recipe.pretraining, _near_identical(design)
    pretrained = [*pretraining.categorical, *pretraining.continuous] if pretraining else []
    remarks = {}
    for task in design.recipe.tasks:
        known = task.known(design.tested)
        remarks[task.name] = leaking_columns(
            known.table, task.name, task.truth(known), task.is_classification, pretrained
        )
        remarks[task.name] += twins
    for tuning in design.recipe.tunings if pretraining is None else ():
        if tuning.checkpoint:
            table, allowed = design.cohort.table[design.part != JOINS], design.recipe.arguments.allow_seen_subjects
            remarks[tuning.task] += refuse_seen_subjects(tuning.checkpoint, table, allowed)
    return remarks


def _near_identical(design: Design) -> list[str]:
    """A sentence if scans of different subjects, which may be trained on and tested, have near-identical FC."""
    pairs = [pair for pair in near_identical(design.cohort) if set(design.part[[*pair[:2]]]) != {JOINS}]
    if not pairs:
        return []
    first, second, r = max(pairs, key=lambda pair: pair[2])
    ids = design.cohort.subjects
    return [
        f"{len(pairs)} pairs of scans of different subjects have near-identical FC, such as {ids.iloc[first]} and "
        f"{ids.iloc[second]} (r = {r:.3f}): one may be trained on when the other is tested. If they are one subject, "
        "say so with same_person; if one file was copied, leave it out."
    ]


def _settings(design: Design) -> dict[str, Any]:
    """What folds must have in common to stand in one table: settings and data."""
    free = {"output", "resume", "title", "keep_checkpoints", "resamples", "allow_seen_subjects"}
    free |= {"workers", "threads", "shard"}
    recipe = design.recipe
    settings = {
        **{name: value for name, value in asdict(recipe.arguments).items() if name not in free},
        "finetune": ", ".join(recipe.arguments.finetune),
        **recipe.stages(),
        "data (content)": design.cohort.checksum(),
    }
    checkpoints = {tuning.checkpoint for tuning in recipe.tunings if tuning.checkpoint and recipe.pretraining is None}
    contents = {path: _checkpoint_content(path) for path in sorted(checkpoints)}
    if contents:
        settings["checkpoint (content)"] = contents if len(contents) > 1 else contents.popitem()[1]
    return settings


def _checkpoint_content(checkpoint: str) -> dict[str, str]:
    """SHA-256 of a local checkpoint's weights by file; nothing for one on the Hub."""
    found = {}
    for path in sorted(Path(checkpoint).glob("*.safetensors")):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _require_same(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on with folds that were trained under other settings or on other data."""
    if not path.is_file():
        return
    recorded = read_json(path)
    changed = [name for name in settings if recorded.get(name) != settings[name]]
    if changed:
        raise ValueError(
            f"The folds in {path.parent} were made with other settings of {', '.join(changed)} ({path}): use "
            "the same, or another output."
        )
