"""Settings of every step, from those of the report."""

from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import yaml

from ..evaluation.arguments import EvaluateArguments
from ..preparation.arguments import PrepareArguments
from ..preparation.recognise import Recognised
from ..storage.files import write_text
from ..trainer.arguments import FinetuneArguments
from .arguments import ReportArguments


# Settings that preparing has under the same name.
PREPARING = (
    "participants", "select", "atlas", "regions", "labels_img", "confounds", "triangle", "subject_column",
    "session_column", "site_column", "missing", "max_mean_fd", "min_volumes", "workers",
)  # fmt: skip


def prepare_arguments(arguments: ReportArguments, found: Recognised, data: Path) -> PrepareArguments:
    """Settings of training.prepare; what was said goes before what was recognised."""
    chosen = {name: getattr(arguments, name) for name in PREPARING}
    chosen = {name: value for name, value in chosen.items() if value not in (None, "", [])}
    if arguments.positive is not None:
        chosen["positive"] = [f"{arguments.task}={arguments.positive}"]
    return PrepareArguments(**{**found.settings, **chosen, "output": str(data), "parquet": False})


def finetune_arguments(arguments: ReportArguments, kind: str) -> FinetuneArguments:
    """Settings of training.finetune."""
    is_class = kind == "categorical"
    common: dict[str, Any] = {
        "checkpoint": arguments.checkpoint or "",
        "task": arguments.task,
        "kind": kind,
        "labels": arguments.labels or None,
        "positive": arguments.positive,
        "seed": arguments.seed,
        "log_with": "none",
        "progress": False,
    }
    if arguments.head == "ridge":
        return FinetuneArguments(head="ridge", **common)
    common["class_weights"] = "balanced" if is_class else "none"
    return FinetuneArguments(epochs=arguments.epochs, mixup=1.0, checkpoint_every=0, **common)


def evaluation_arguments(
    arguments: ReportArguments, tuning: FinetuneArguments, data: Path, output: Path
) -> EvaluateArguments:
    """Settings of training.evaluate; those of fine-tuning are written as YAML, so that anyone can repeat it."""
    recipe = output / "recipe" / "finetune.yaml"
    changed = {item.name: getattr(tuning, item.name) for item in fields(tuning) if not _is_default(tuning, item)}
    write_text(recipe, yaml.safe_dump(changed, sort_keys=False, allow_unicode=True))
    return EvaluateArguments(
        data=str(data),
        output=str(output / "evaluation"),
        finetune=[str(recipe)],
        n_folds=arguments.n_folds,
        repeats=arguments.repeats,
        baselines=list(arguments.baselines),
        positive=[arguments.positive] if arguments.positive is not None else [],
        resamples=arguments.resamples,
        site_column="site",
        seed=arguments.seed,
        keep_checkpoints=False,
        resume=True,
        # A closed form takes a second a fold, less than another process takes to start.
        workers=1 if arguments.head == "ridge" else 0,
        title=arguments.title or f"{arguments.task} from FC: {Path(arguments.input).resolve().name}",
    )


def _is_default(settings: Any, item: Field) -> bool:
    default = item.default_factory() if item.default_factory is not MISSING else item.default
    return bool(getattr(settings, item.name) == default)
