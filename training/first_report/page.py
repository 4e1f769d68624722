"""The one page: results, subjects, quality, maps that can be relied on, and what was done."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from modeling_lcm.atlases import find_atlas, region_coordinates

from ..data.dataset_folder import QUALITY
from ..evaluation.design import Design
from ..evaluation.report import Details, task_details
from ..explanation.association import SIGNIFICANT
from ..explanation.figures import plot_network_pairs, plot_region_shares
from ..explanation.patterns import Patterns
from ..preparation.recognise import Recognised
from ..reporting.figures import plot_region_attention
from ..reporting.pages import Section
from ..reporting.results import Results
from ..reporting.tables import write_report
from .plan import Plan


MOST_NAMED = 5
MOST_PAIRS = 8


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
        json.loads((place / "result.json").read_text(encoding="utf-8"))
        for place in sorted(folder.glob("*fold_*"))
        if (place / "result.json").is_file()
    ]
    details: Details = task_details(design, task, outcome, folds)
    outcome.notes = [*plan.notes, *outcome.notes]
    sections = [*details.sections, _quality(data, plan.found), *_maps(design, patterns)]
    sections.append(_files(path.parent, data))
    write_report(
        path, outcome, details.figures, details.tables, results.settings, (), sections, details.curves
    )  # fmt: skip


def _quality(data: Path, found: Recognised) -> Section:
    quality = json.loads((data / QUALITY).read_text(encoding="utf-8")) if (data / QUALITY).is_file() else {}
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


def _maps(design: Design, patterns: Sequence[Patterns]) -> list[Section]:
    extractor = design.cohort.feature_extractor
    sections = []
    for each in patterns:
        title = f"What the prediction of {each.label} follows" if each.label else "What the prediction follows"
        if not each.is_shown:
            sections.append(Section(title, [each.sentence]))
            continue
        known = find_atlas(extractor.atlas) if extractor.atlas else None
        places = region_coordinates(known) if known is not None and known.has_table else None
        figures: dict[str, Figure] = {}
        if len(each.pairs):
            figure = plot_network_pairs(each.pairs, SIGNIFICANT)
            strongest = each.pairs.iloc[int(each.pairs["pattern"].abs().to_numpy().argmax())]
            figure.set_label(
                f"Pairs of networks. Strongest: {strongest['first']} with {strongest['second']}, "
                f"r = {strongest['pattern']:.2f}."
            )
            figures["Networks: correlation of log FC with the score; a dot where it goes with the label itself"] = (
                figure
            )
        figure = plot_region_shares(each.regions)
        named = ", ".join(each.regions["region"].head(3))
        figure.set_label(f"Regions with the largest share of the pattern: {named}.")
        figures["Regions by their share of the pattern; orange where FC rises with the score, blue where it falls"] = (
            figure
        )
        if places is not None and extractor.region_names is not None:
            share = each.regions.set_index("region")["share"].loc[extractor.region_names]
            figure = plot_region_attention(share.to_numpy() * len(share), places, "Share of the pattern (1 = even)")
            figure.set_label(f"The same in a glass brain; largest: {named}.")
            figures["The same regions in a glass brain; larger and darker means a larger share"] = figure
        texts = [
            each.sentence + " Shown is which edges go with the score of left-out subjects (patterns, not weights: "
            "Haufe et al. 2014). It says what the model measures, not why the labels differ.",
        ]
        sections.append(Section(title, texts, figures=figures, tables=_pair_table(each)))
    return sections


def _pair_table(patterns: Patterns) -> dict[str, list[list[str]]]:
    if not len(patterns.pairs):
        return {}
    order = patterns.pairs["pattern"].abs().sort_values(ascending=False).index[:MOST_PAIRS]
    rows = [["networks", "r with the score", "r with the label", "q"]]
    for row in patterns.pairs.loc[order].to_dict("records"):
        within = row["first"] == row["second"]
        name = f"within {row['first']}" if within else f"{row['first']} with {row['second']}"
        rows.append([name, f"{row['pattern']:+.2f}", f"{row['label_r']:+.2f}", f"{row['q']:.3f}"])
    return {"Pairs of networks that go most with the score": rows}


def _files(output: Path, data: Path) -> Section:
    inside: list[Any] = [
        "checkpoint: the model trained on all subjects, for training.predict; it knows the limits of its predictions.",
        "evaluation: every prediction, split and score. explanation: tables of the maps.",
        "recipe: the settings, to repeat this with training.evaluate.",
    ]
    if data.is_relative_to(output):
        inside.insert(0, "dataset/quality.html: everything about the scans.")
    return Section("Beside this page", inside)
