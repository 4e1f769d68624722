"""Honest cross-validation of the whole recipe: `python -m training.evaluate --config FILE.yaml`.

Per fold: pretrain (and fine-tune) on the training subjects alone, predict the test subjects once, and do the same with
simple models on the same subjects. Nothing is chosen on a test fold.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import PartialState

from .arguments import FinetuneArguments, PretrainArguments, command_line, parse_arguments
from .checkpoints import check_same_regions, load_processor, read_record
from .data import load_cohort
from .files import require_new, write_json, write_text
from .fold import run_fold
from .pooling import join_people, pool
from .protocol import Design, EvaluateArguments, Task, draw_folds, make_task, pretrained_tasks
from .report import results_table_text
from .splits import Folds
from .summary import by_task, prediction_table, summary


__all__ = ["EvaluateArguments", "Task", "evaluate", "main", "make_task"]


def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Cross-validate a recipe.

    Args:
        arguments (`EvaluateArguments`): data, recipe and folds.

    Returns:
        What `metrics.json` holds: see `training.summary.summary`.

    Raises:
        ValueError: folds that cannot be made, or a checkpoint that has seen test subjects.
        FileExistsError: the output holds results and `resume` is false.
    """
    started = time.monotonic()
    output = require_new(arguments.output, arguments.resume)
    design = make_design(arguments)
    _same_settings(output / "settings.json", design)
    folds = draw_folds(design.table, design.tasks, arguments, output)
    if design.pretraining is None:
        _refuse_seen_subjects(design.tuning.checkpoint, folds)
    results = _all_folds(design, folds, output)
    metrics = summary(design, folds, results)
    metrics["seconds"] = round(time.monotonic() - started, 1)
    write_json(output / "metrics.json", metrics)
    for task in design.tasks:
        name = "predictions.tsv" if design.tuning else f"predictions_{task.name}.tsv"
        table = prediction_table(results, task.name)
        write_text(output / name, table.to_csv(sep="\t", index=False, float_format="%.5f"))
    return metrics


def make_design(arguments: EvaluateArguments) -> Design:
    """Read the recipe's files and the data, and settle what is predicted.

    Raises:
        ValueError: neither stage has settings, or the data do not fit them.
    """
    if not arguments.finetune and arguments.pretrain is None:
        raise ValueError(
            "There is nothing to train: add --finetune FILE.yaml (a downstream task) or --pretrain FILE.yaml (the "
            "pretrained variables are scored), or both."
        )
    if PartialState().num_processes > 1:
        raise ValueError("training.evaluate runs in one process: start it with python, not accelerate launch.")
    cohort = load_cohort(arguments.data)
    tuning = pretraining = None
    if arguments.finetune:
        tuning = parse_arguments(FinetuneArguments, ["--config", arguments.finetune])
    if arguments.pretrain is not None:
        pretraining = parse_arguments(PretrainArguments, ["--config", arguments.pretrain])
    else:
        check_same_regions(load_processor(tuning.checkpoint), cohort)
    if arguments.same_person is not None:
        cohort = join_people(cohort, arguments.same_person)
    num_tested = len(cohort.table)
    tasks = (make_task(cohort, tuning),) if tuning else pretrained_tasks(cohort.table, pretraining, arguments.tasks)
    if arguments.train_data:
        cohort = pool(cohort, arguments.data, arguments.train_data)
    return Design(cohort, num_tested, tasks, pretraining, tuning, arguments)


def _all_folds(design: Design, folds: Sequence[Folds], output: Path) -> list[dict[str, Any]]:
    """Run the folds that have no result yet; returns the results of all, in order."""
    places = [(repeat, fold) for repeat, each in enumerate(folds) for fold in range(len(each.test_subjects))]
    results, started, done = [], time.monotonic(), 0
    for number, (repeat, fold) in enumerate(places):
        name = f"repeat_{repeat}_fold_{fold}" if len(folds) > 1 else f"fold_{fold}"
        path = output / name / "result.json"
        if not path.is_file():
            minutes = (time.monotonic() - started) / max(1, done) * (len(places) - number) / 60
            left = f", about {minutes:.0f} min left" if done else ""
            print(f"Fold {number + 1} of {len(places)}{left}", flush=True)
            write_json(path, run_fold(design, folds[repeat], fold, path.parent, repeat))
            done += 1
        results.append(json.loads(path.read_text(encoding="utf-8")))
    return results


def _same_settings(path: Path, design: Design) -> None:
    """Record the settings, or refuse to go on with folds that were trained under others."""
    free = {"output", "resume", "title", "keep_checkpoints"}
    settings = {
        **{name: value for name, value in asdict(design.arguments).items() if name not in free},
        "pretraining": None if design.pretraining is None else asdict(design.pretraining),
        "fine-tuning": None if design.tuning is None else asdict(design.tuning),
    }
    if not path.is_file():
        write_json(path, settings)
        return
    recorded = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in settings if recorded.get(name) != settings[name]]
    if changed:
        raise ValueError(
            f"The folds in {path.parent} were made with other settings of {', '.join(changed)} ({path}): use "
            "those, or another output."
        )


def _refuse_seen_subjects(checkpoint: str, folds: Sequence[Folds]) -> None:
    seen = set(read_record(checkpoint).get("training_subjects", []))
    shared = seen & {subject for each in folds for subjects in each.test_subjects for subject in subjects}
    if shared:
        raise ValueError(
            f"The checkpoint {checkpoint} was trained on {len(shared)} of the test subjects, {sorted(shared)[0]} "
            "among them. Give a pretraining configuration instead, which is then run per fold."
        )


@command_line
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    metrics = evaluate(parse_arguments(EvaluateArguments, argv))
    for results in by_task(metrics).values():
        print(results["title"])
        print(results_table_text(results))


if __name__ == "__main__":
    main()
