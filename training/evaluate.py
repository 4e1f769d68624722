"""Honest cross-validation of the whole recipe: `python -m training.evaluate --config FILE.yaml`.

Per fold: pretrain (and fine-tune) on the training subjects alone, predict the test subjects once, and do the same with
simple models on the same subjects. Nothing is chosen on a test fold.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState

from modeling_lcm import BEIVariable

from .arguments import FinetuneArguments, PretrainArguments, command_line, parse_arguments
from .checkpoints import check_same_regions, load_processor
from .data import Cohort, load_cohort
from .evaluation_report import write_reports
from .files import require_new, require_writable, write_json, write_text
from .fold import MODEL, run_fold
from .labels import label_lines
from .leakage import leaking_columns, refuse_seen_subjects
from .pooling import join_people, pool
from .protocol import Design, EvaluateArguments, draw_folds, make_task, pretrained_tasks, save_folds
from .report import METRIC_TITLES, by_task, number_text, results_table_text
from .splits import Folds
from .summary import prediction_tables, summary
from .vocabulary import pretraining_variables


def evaluate(arguments: EvaluateArguments) -> dict[str, Any]:
    """Cross-validate a recipe.

    Args:
        arguments (`EvaluateArguments`): data, recipe and folds.

    Returns:
        What `metrics.json` holds: see `training.summary.summary`. Beside it, the output gets `results.md`,
        `report.html`, tables of predictions, the split files and a folder per fold.

    Raises:
        ValueError: folds that cannot be made, or a checkpoint that has seen test subjects.
        FileExistsError: the output holds results and `resume` is false.
    """
    started = time.monotonic()
    output = require_new(arguments.output, arguments.resume)
    design = make_design(arguments)
    settings = _settings(design)
    _require_same(output / "settings.json", settings)
    folds = draw_folds(design.table, design.tasks, arguments, output)
    remarks = _remarks(design)
    require_writable(output)
    # Only now: a refused evaluation leaves its output free.
    write_json(output / "settings.json", settings)
    save_folds(folds, output)
    for line in _label_lines(design):
        print(line, flush=True)
    for line in dict.fromkeys(line for lines in remarks.values() for line in lines):
        print(line, flush=True)
    results = _all_folds(design, folds, output)
    external = _external(design, output)
    metrics = summary(design, folds, results, external, remarks)
    metrics["seconds"] = round(time.monotonic() - started, 1)
    write_json(output / "metrics.json", metrics)
    for name, table in prediction_tables(design, results, external).items():
        write_text(output / name, table.to_csv(sep="\t", index=False, float_format="%.5f"))
    write_reports(output, design, metrics, results)
    return metrics


def _label_lines(design: Design) -> list[str]:
    """Labels of the tasks in the tested cohort, and which one is positive."""
    variables = [BEIVariable(task.name, "categorical", list(task.labels)) for task in design.tasks if task.labels]
    setting = "--positive LABEL" if design.tuning is not None else "--positive VARIABLE=LABEL"
    return label_lines(variables, design.table, setting)


def _remarks(design: Design) -> dict[str, list[str]]:
    """What a reader of a task's scores has to know: columns that tell the label, people who were seen before.

    Raises:
        ValueError: the checkpoint was trained on test subjects, and that is not allowed.
    """
    pretraining = design.pretraining
    pretrained = [*pretraining.categorical, *pretraining.continuous] if pretraining else []
    remarks = {}
    for task in design.tasks:
        rows = task.known(np.arange(design.num_tested))
        truth = task.truth(rows)
        remarks[task.name] = leaking_columns(
            design.table.iloc[rows], task.name, truth, task.is_classification, pretrained
        )
    if design.tuning is not None and pretraining is None:
        tested = np.concatenate([np.arange(design.num_tested), *design.external.values()])
        table = design.cohort.table.iloc[tested]
        seen = refuse_seen_subjects(design.tuning.checkpoint, table, design.arguments.allow_seen_subjects)
        remarks[design.tasks[0].name] += [seen] if seen else []
    return remarks


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
    if arguments.harmonise is not None:
        cohort.require_column(arguments.harmonise)
    if arguments.same_person is not None:
        cohort = join_people(cohort, arguments.same_person)
    tuning, pretraining = _with_positive(arguments.positive, tuning, pretraining)
    num_tested, external = len(cohort.table), {}
    if tuning is not None:
        tasks = (make_task(cohort, tuning, _pretrained_variable(cohort, tuning, pretraining)),)
    else:
        tasks = pretrained_tasks(cohort, pretraining, arguments.tasks)
    if arguments.train_data or arguments.external:
        cohort, parts = pool(cohort, arguments.data, [*arguments.train_data, *arguments.external])
        external = dict(zip(arguments.external, parts[len(arguments.train_data) :], strict=True))
        for rows in external.values():
            table = cohort.table.iloc[rows]
            tasks = tuple(task.extended(table, rows, len(cohort.table)) for task in tasks)
    return Design(cohort, num_tested, external, tasks, pretraining, tuning, arguments)


def _with_positive(
    entries: Sequence[str], tuning: FinetuneArguments | None, pretraining: PretrainArguments | None
) -> tuple[FinetuneArguments | None, PretrainArguments | None]:
    """The files' settings with the positive labels of the command line: a bare label is the task's."""
    for entry in entries:
        name, sign, label = entry.partition("=")
        if tuning is not None and (not sign or name == tuning.task):
            tuning = replace(tuning, positive=label if sign else entry)
        elif pretraining is not None:
            others = [other for other in pretraining.positive if other.partition("=")[0] != name]
            pretraining = replace(pretraining, positive=[*others, entry])
        else:
            raise ValueError(f"positive is {entry!r}, but the task is {tuning.task!r}: give one of its labels.")
    return tuning, pretraining


def _pretrained_variable(
    cohort: Cohort, tuning: FinetuneArguments, pretraining: PretrainArguments | None
) -> BEIVariable | None:
    """The downstream variable as the checkpoint knows it, or will know it; `None` if it is a new one."""
    if pretraining is None:
        known = load_processor(tuning.checkpoint).tokenizer.variables
    else:
        known = pretraining_variables(cohort, np.arange(len(cohort.table)), pretraining, [tuning.task])
    return next((variable for variable in known if variable.name == tuning.task), None)


def _external(design: Design, output: Path) -> dict[str, list[dict[str, Any]]]:
    """Train on the whole tested cohort (and those that join it), once per repeat, and predict the external data.

    Raises:
        ValueError: nobody in an external data set has a value of any task.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for folder, every in design.external.items():
        if not any(task.recorded[every].any() for task in design.tasks):
            raise ValueError(
                f"The external data set {folder} has no value of {', '.join(task.name for task in design.tasks)} "
                "that the tested cohort knows: it cannot be scored."
            )
        name = Path(folder).name
        for repeat in range(design.arguments.repeats):
            place = output / f"external_{name}_{repeat}"
            if not (place / "result.json").is_file():
                print(f"External data set {name}", flush=True)
                result = run_fold(design, design.external_rows(folder), place, 0, repeat)
                write_json(place / "result.json", result)
            found.setdefault(name, []).append(json.loads((place / "result.json").read_text(encoding="utf-8")))
    return found


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
            rows = design.fold_rows(folds[repeat], fold)
            write_json(path, run_fold(design, rows, path.parent, fold, repeat))
            done += 1
            print(_first_look(json.loads(path.read_text(encoding="utf-8"))), flush=True)
        results.append(json.loads(path.read_text(encoding="utf-8")))
    return results


def _first_look(result: dict[str, Any]) -> str:
    """One line per task of a fold's result: every model's first headline metric."""
    lines = []
    for task, entry in result["tasks"].items():
        metric = next(name for name in ("roc_auc", "mae") if name in entry["metrics"][MODEL])
        scores = {name: metrics[metric] for name, metrics in entry["metrics"].items()}
        shown = [f"{name} {number_text(metric, score)}" for name, score in scores.items()]
        lines.append(f"  {task}, {METRIC_TITLES[metric]}: {'; '.join(shown)}")
    return "\n".join(lines)


def _settings(design: Design) -> dict[str, Any]:
    """What folds must have in common to stand in one table: settings and data."""
    free = {"output", "resume", "title", "keep_checkpoints", "resamples", "allow_seen_subjects"}
    settings = {
        **{name: value for name, value in asdict(design.arguments).items() if name not in free},
        "pretraining": None if design.pretraining is None else asdict(design.pretraining),
        "fine-tuning": None if design.tuning is None else asdict(design.tuning),
        "data (content)": design.cohort.checksum(),
    }
    if design.tuning is not None and design.pretraining is None:
        settings["checkpoint (content)"] = _checkpoint_content(design.tuning.checkpoint)
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
    recorded = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name in settings if recorded.get(name) != settings[name]]
    if changed:
        raise ValueError(
            f"The folds in {path.parent} were made with other settings of {', '.join(changed)} ({path}): use "
            "the same, or another output."
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
