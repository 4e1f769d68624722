"""The one page: results, subjects, quality, maps that can be relied on, and what was done."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..data.dataset_folder import QUALITY
from ..evaluation.design import Design
from ..evaluation.report import Details, task_details
from ..explanation.pattern_sections import pattern_sections
from ..explanation.patterns import Patterns
from ..preparation.recognise import Recognised
from ..reporting.pages import Section
from ..reporting.results import Results
from ..reporting.tables import write_report
from ..storage.files import read_json
from .plan import Plan


MOST_NAMED = 5


def write_page(
    path: Path, plan: Plan, design: Design, results: Results, patterns: Sequence[Patterns], data: Path
) -> None:
    """Write the page.

    Args:
        path (`Path`): the HTML file.
        plan (`Plan`): what was asked for, and found before.
        design (`Design`): data and settings of the evaluation.
        results (`Results`): its results.
        patterns (`Sequence[Patterns]`): what the predictions follow.
        data (`Path`): the prepared data set.
    """
    task = design.recipe.tasks[0]
    outcome = results.tasks[task.name]
    folder = path.parent / "evaluation"
    folds = [
        read_json(place / "result.json")
        for place in sorted(folder.glob("*fold_*"))
        if (place / "result.json").is_file()
    ]
    details: Details = task_details(design, task, outcome, folds)
    outcome.notes = [*plan.notes, *outcome.notes]
    maps = pattern_sections(design.cohort.feature_extractor, patterns)
    sections = [*details.sections, _quality(data, plan.found), *maps]
    sections.append(_files(path.parent, data))
    write_report(
        path, outcome, details.figures, details.tables, results.settings, (), sections, details.curves
    )  # fmt: skip


def _quality(data: Path, found: Recognised) -> Section:
    quality = read_json(data / QUALITY) if (data / QUALITY).is_file() else {}
    excluded = quality.get("excluded", [])
    texts = [_without_folder(found.words)]
    if quality:
        left_out = f"; {len(excluded)} were left out" if excluded else "; none was left out"
        texts.append(f"{quality['scans']} scans of {quality['subjects']} subjects could be used{left_out}.")
    texts += [f"{Path(item['scan']).name}: {item['reason']}" for item in excluded[:MOST_NAMED]]
    texts += [f"... and {len(excluded) - MOST_NAMED} more."] if len(excluded) > MOST_NAMED else []
    texts += [quality["motion"]] if quality.get("motion") else []
    order = quality.get("region_order", "")
    texts += [f"{order[:1].upper()}{order[1:]}."] if order else []
    warnings = [quality["order_warning"]] if quality.get("order_warning") else []
    warnings += [f"To be confirmed: {text}" for text in quality.get("questions", [])[:MOST_NAMED]]
    return Section("Quality of the scans", texts, warnings)


def _without_folder(words: str) -> str:
    """A sentence whose paths are cut to their last part."""
    kept = []
    for word in words.split():
        core = word.rstrip(".,;:")
        is_path = core.startswith(("/", "~")) and len(core) > 1
        kept.append(Path(core).name + word[len(core) :] if is_path else word)
    return " ".join(kept)


def _files(output: Path, data: Path) -> Section:
    inside: list[Any] = [
        "checkpoint: the model trained on all subjects, for training.predict; it knows the limits of its predictions.",
        "evaluation: every prediction, split and score. explanation: tables of the maps.",
        "recipe: the settings, to repeat this with training.evaluate.",
    ]
    if data.is_relative_to(output):
        inside.insert(0, "dataset/quality.html: everything about the scans.")
    return Section("Beside this page", inside)
