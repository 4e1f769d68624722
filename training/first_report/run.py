"""From an input to a page, step by step; what is finished is kept, so that the same command goes on."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from ..data.cohort import Cohort, load_cohort
from ..data.dataset_folder import FC_DEFINITION
from ..evaluation.arguments import EvaluateArguments
from ..evaluation.cross_validation import evaluate
from ..evaluation.design import make_design
from ..explanation.patterns import Patterns, edge_patterns
from ..preparation.assemble import summary_of
from ..preparation.build import prepare
from ..preparation.recognise import DATASET
from ..reporting.plain import write_table
from ..reporting.results import LCM, Results
from ..storage.files import claim, file_name, read_json, write_json
from ..trainer.arguments import FinetuneArguments
from ..trainer.checkpoints import save_checkpoint
from ..trainer.finetuning import finetune
from ..trainer.runs import record_of
from .arguments import ReportArguments
from .page import write_page
from .plan import Plan, make_plan
from .settings import evaluation_arguments, finetune_arguments, prepare_arguments


SETTINGS, PAGE, PREDICTIONS = "settings.json", "report.html", "evaluation/predictions.tsv"
FREE = ("output", "dry_run", "workers", "title")  # settings that change no number
Say = Callable[[str], None]


def make_report(arguments: ReportArguments, say: Say) -> Path:
    """Make everything and the page.

    Args:
        arguments (`ReportArguments`): what to report on.
        say (`Callable`): told every step.

    Returns:
        The page.

    Raises:
        ValueError: an input, a table or a task that cannot be used; says which setting to change.
        FileExistsError: the output holds something else, or a report with other settings.
    """
    _require_same(arguments)
    page = Path(arguments.output) / PAGE
    if page.is_file():
        say("Finished before. For another report, choose another output.")
        return page
    plan = make_plan(arguments)
    say("\n".join([plan.found.words, *plan.notes]))
    with claim(arguments.output, resume=True) as output:
        write_json(output / SETTINGS, _settings(arguments))
        steps = _Steps(say)
        data = _prepared(plan, output, steps)
        cohort = load_cohort(data)
        tuning = finetune_arguments(plan.arguments, plan.kind)
        evaluation = evaluation_arguments(plan.arguments, tuning, data, output)
        steps.begin("evaluating: every subject is predicted by models that have not seen them")
        results = _evaluated(evaluation)
        steps.begin("fine-tuning on all subjects")
        _train_on_all(tuning, cohort, output, results)
        steps.begin("explaining")
        predictions = pd.read_csv(output / PREDICTIONS, sep="\t", dtype={"subject_id": str, "session": str})
        patterns = _explained(cohort, predictions, results, plan.arguments, output)
        steps.begin("writing the page")
        write_page(page, plan, make_design(evaluation), results, patterns, data)
    return page


class _Steps:
    """Numbered lines about what is being done, with the time that it took so far."""

    COUNT = 5

    def __init__(self, say: Say) -> None:
        self.say, self.number, self.started = say, 0, time.monotonic()

    def begin(self, what: str) -> None:
        self.number += 1
        after = f" ({time.monotonic() - self.started:.0f} s so far)" if self.number > 1 else ""
        self.say(f"Step {self.number} of {self.COUNT}: {what}{after}")


def _settings(arguments: ReportArguments) -> dict[str, Any]:
    return {name: value for name, value in asdict(arguments).items() if name not in FREE}


def _require_same(arguments: ReportArguments) -> None:
    """Refuse an output that holds something else, or was begun with other settings."""
    output = Path(arguments.output)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    path = output / SETTINGS
    if not path.is_file():
        raise FileExistsError(f"{output} holds something else, and nothing is overwritten: choose another output.")
    before = read_json(path)
    changed = [name for name, value in _settings(arguments).items() if before.get(name) != value]
    if changed:
        raise FileExistsError(
            f"{output} was begun with another {', '.join(changed)}: use the same settings to go on, or choose another "
            "output."
        )


def _prepared(plan: Plan, output: Path, steps: _Steps) -> Path:
    """The data set: the input itself, the one that an earlier run has finished, or a new one."""
    if plan.found.kind == DATASET:
        steps.begin("nothing to prepare")
        return Path(plan.arguments.input)
    data = output / "dataset"
    if (data / FC_DEFINITION).is_file():
        steps.begin("scans are prepared already")
        return data
    steps.begin("preparing scans and checking their quality")
    prepare(prepare_arguments(plan.arguments, plan.found, data))
    steps.say(summary_of(data)[0])
    return data


def _evaluated(arguments: EvaluateArguments) -> Results:
    path = Path(arguments.output) / "metrics.json"
    return Results.load(path) if path.is_file() else evaluate(arguments)


def _train_on_all(tuning: FinetuneArguments, cohort: Cohort, output: Path, results: Results) -> None:
    """The checkpoint to keep; how far its predictions are off is learnt from those of the folds."""
    folder = output / "checkpoint"
    if (folder / "config.json").is_file():
        return
    model, processor, history = finetune(cohort, tuning, check_leakage=False)
    record = record_of(cohort, history, tuning.checkpoint or None)
    if processor.limits is not None:
        table = pd.read_csv(output / PREDICTIONS, sep="\t")
        labels = results.tasks[tuning.task].protocol["labels"]
        guesses: list[Any] = table[LCM].tolist() if not labels else [
            {label: row[f"{LCM}: {label}"] for label in labels} for row in table.to_dict("records")
        ]  # fmt: skip
        processor.limits.learn_errors(tuning.task, table[tuning.task].tolist(), guesses)
    save_checkpoint(folder, model, processor, tuning, record)


def _explained(
    cohort: Cohort, predictions: pd.DataFrame, results: Results, arguments: ReportArguments, output: Path
) -> list[Patterns]:
    """Maps of the edges that the predictions follow, one for every label, or for the number."""
    found = edge_patterns(cohort, predictions, results.tasks[arguments.task], arguments.seed)
    folder = output / "explanation"
    for each in found:
        name = each.label or arguments.task
        write_table(folder / f"regions_{file_name(name)}.tsv", each.regions, decimals=5)
        if len(each.pairs):
            write_table(folder / f"networks_{file_name(name)}.tsv", each.pairs, decimals=5)
    return found
