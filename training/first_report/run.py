"""From an input to a page, step by step; what is finished is kept, so that the same command goes on."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ..data.cohort import FC_DEFINITION, Cohort, load_cohort
from ..evaluation.arguments import EvaluateArguments
from ..evaluation.cross_validation import evaluate
from ..evaluation.design import make_design
from ..explanation.patterns import Patterns, edge_patterns
from ..files import claim, write_json, write_text
from ..preparation.arguments import PrepareArguments
from ..preparation.assemble import summary_of
from ..preparation.build import prepare
from ..preparation.recognise import DATASET, Recognised, recognise
from ..reporting.results import LCM, Results
from ..trainer.arguments import FinetuneArguments, PretrainArguments
from ..trainer.checkpoints import save_checkpoint
from ..trainer.finetuning import finetune
from ..trainer.pretraining import pretrain
from ..trainer.runs import record_of
from .arguments import ReportArguments
from .checks import folds_that_fit, task_kind
from .page import write_page


SETTINGS, PAGE = "settings.json", "report.html"
FREE = ("output", "dry_run", "workers", "title")  # settings that change no number
# Settings that preparing has under the same name.
PREPARING = (
    "participants", "select", "atlas", "regions", "labels_img", "confounds", "triangle", "subject_column",
    "session_column", "site_column", "missing", "max_mean_fd", "min_volumes", "workers",
)  # fmt: skip

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
    found = recognise(arguments.input, arguments.participants, [arguments.atlas] if arguments.atlas else [])
    say(found.words)
    _require_same(arguments)
    with claim(arguments.output, resume=True) as output:
        page = output / PAGE
        if page.is_file():
            say(f"Finished before: {page}. For another one, choose another output.")
            return page
        write_json(output / SETTINGS, _settings(arguments))
        steps = _Steps(say)
        data = _prepared(arguments, found, output, steps)
        cohort = load_cohort(data)
        kind = task_kind(cohort, arguments)
        arguments, notes = folds_that_fit(cohort, arguments, kind)
        for line in notes:
            say(line)
        stage = stage_of(arguments, kind)
        evaluation = evaluation_arguments(arguments, stage, data, output)
        steps.begin("evaluating: every subject is predicted by models that have not seen them")
        results = _evaluated(evaluation)
        steps.begin("fine-tuning on all subjects")
        _train_on_all(arguments, stage, cohort, output, results)
        steps.begin("explaining")
        design = make_design(evaluation)
        predictions = pd.read_csv(_predictions(output, arguments.task), sep="\t", dtype={"subject_id": str})
        patterns = _explained(cohort, predictions, results, arguments, output)
        steps.begin("writing the page")
        write_page(page, arguments, found, design, results, patterns, data, notes)
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
    before = json.loads(path.read_text(encoding="utf-8"))
    changed = [name for name, value in _settings(arguments).items() if before.get(name) != value]
    if changed:
        raise FileExistsError(
            f"{output} was begun with another {', '.join(changed)}: use the same settings to go on, or choose another "
            "output."
        )


def _prepared(arguments: ReportArguments, found: Recognised, output: Path, steps: _Steps) -> Path:
    """The data set: the input itself, the one that an earlier run has finished, or a new one."""
    if found.kind == DATASET:
        steps.begin(f"the data set {arguments.input} is prepared already")
        return Path(arguments.input)
    data = output / "dataset"
    if (data / FC_DEFINITION).is_file():
        steps.begin("scans are prepared already")
        return data
    steps.begin("preparing scans and checking their quality")
    prepare(prepare_arguments(arguments, found, data))
    steps.say(summary_of(data)[0])
    return data


def prepare_arguments(arguments: ReportArguments, found: Recognised, data: Path) -> PrepareArguments:
    """Settings of training.prepare; what was said goes before what was recognised."""
    chosen = {name: getattr(arguments, name) for name in PREPARING}
    chosen = {name: value for name, value in chosen.items() if value not in (None, "", [])}
    if arguments.positive is not None:
        chosen["positive"] = [f"{arguments.task}={arguments.positive}"]
    return PrepareArguments(**{**found.settings, **chosen, "output": str(data), "parquet": False})


def stage_of(arguments: ReportArguments, kind: str) -> PretrainArguments | FinetuneArguments:
    """How the model is trained: from a checkpoint, or a small network from random weights."""
    common: dict[str, Any] = {
        "epochs": arguments.epochs, "batch_size": 16, "mixup": 1.0, "checkpoint_every": 0, "seed": arguments.seed,
        "log_with": "none", "progress": False, "class_weights": "balanced" if kind == "categorical" else "none",
    }  # fmt: skip
    if arguments.checkpoint is not None:
        labels, positive = arguments.labels or None, arguments.positive
        return FinetuneArguments(
            checkpoint=arguments.checkpoint, task=arguments.task, kind=kind, labels=labels, positive=positive, **common
        )
    columns: dict[str, Any] = {"categorical": [], "continuous": [], kind: [arguments.task]}
    positive = [f"{arguments.task}={arguments.positive}"] if arguments.positive is not None else []
    return PretrainArguments(size="nano", learning_rate=2e-3, positive=positive, **columns, **common)


def evaluation_arguments(
    arguments: ReportArguments, stage: PretrainArguments | FinetuneArguments, data: Path, output: Path
) -> EvaluateArguments:
    """Settings of training.evaluate; those of the stage are written as YAML, so that anyone can repeat it."""
    is_tuning = isinstance(stage, FinetuneArguments)
    name = "finetune" if is_tuning else "pretrain"
    recipe = output / "recipe" / f"{name}.yaml"
    write_text(recipe, yaml.safe_dump(asdict(stage), sort_keys=False))
    return EvaluateArguments(
        data=str(data),
        output=str(output / "evaluation"),
        n_folds=arguments.n_folds,
        repeats=arguments.repeats,
        baselines=list(arguments.baselines),
        positive=[arguments.positive] if arguments.positive is not None and is_tuning else [],
        resamples=arguments.resamples,
        site_column=arguments.site_column or "site",
        seed=arguments.seed,
        keep_checkpoints=False,
        resume=True,
        title=arguments.title or f"First report on {Path(arguments.input).resolve().name}",
        **{name: str(recipe)},
    )


def _evaluated(arguments: EvaluateArguments) -> Results:
    path = Path(arguments.output) / "metrics.json"
    return Results.load(path) if path.is_file() else evaluate(arguments)


def _predictions(output: Path, task: str) -> Path:
    names = ("predictions.tsv", f"predictions_{task}.tsv")
    return next(output / "evaluation" / name for name in names if (output / "evaluation" / name).is_file())


def _train_on_all(
    arguments: ReportArguments,
    stage: PretrainArguments | FinetuneArguments,
    cohort: Cohort,
    output: Path,
    results: Results,
) -> None:
    """The checkpoint to keep; how far its predictions are off is learnt from those of the folds."""
    folder = output / "checkpoint"
    if (folder / "config.json").is_file():
        return
    if isinstance(stage, FinetuneArguments):
        model, processor, history = finetune(cohort, stage, check_leakage=False)
        record = record_of(cohort, history, stage.checkpoint)
    else:
        model, processor, history = pretrain(cohort, stage)
        record = record_of(cohort, history)
    if processor.limits is not None:
        table = pd.read_csv(_predictions(output, arguments.task), sep="\t")
        labels = results.tasks[arguments.task].protocol["labels"]
        guesses: list[Any] = table[LCM].tolist() if not labels else [
            {label: row[f"{LCM}: {label}"] for label in labels} for row in table.to_dict("records")
        ]  # fmt: skip
        processor.limits.learn_errors(arguments.task, table[arguments.task].tolist(), guesses)
    save_checkpoint(folder, model, processor, stage, record)


def _explained(
    cohort: Cohort, predictions: pd.DataFrame, results: Results, arguments: ReportArguments, output: Path
) -> list[Patterns]:
    """Maps of the edges that the predictions follow, one for every label, or for the number."""
    found = edge_patterns(cohort, predictions, results.tasks[arguments.task], arguments.seed)
    folder = output / "explanation"
    for each in found:
        name = each.label or arguments.task
        safe = "".join(character if character.isalnum() else "_" for character in name)
        write_text(folder / f"regions_{safe}.tsv", each.regions.to_csv(sep="\t", index=False, float_format="%.5f"))
        if len(each.pairs):
            write_text(folder / f"networks_{safe}.tsv", each.pairs.to_csv(sep="\t", index=False, float_format="%.5f"))
    return found
