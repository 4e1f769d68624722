"""Tables of docs/results.md: one per study, or one line per study in a comparison."""

import re
from collections import Counter
from typing import NamedTuple

from .ablation import ABLATIONS, ablation_table
from .results import (
    CONSTANT,
    LCM,
    MEAN_OF_GROUPS,
    METRIC_TITLES,
    Results,
    Score,
    is_undefined,
    number_text,
)
from .tables import results_table_markdown


# What a table shows of a category and of a number.
METRICS = {"roc_auc": ("roc_auc", "accuracy", "balanced_accuracy"), "pearson_r": ("pearson_r", "r2", "mae")}


class Comparison(NamedTuple):
    """Studies side by side, one line each.

    Args:
        studies (`dict[str, str]`): name -> what its line is called.
        columns (`tuple[tuple[str, str, str], ...]`): task, metric and model.
        shows_layers (`bool`): whether the layers that were best in the folds follow.
    """

    studies: dict[str, str]
    columns: tuple[tuple[str, str, str], ...]
    shows_layers: bool = False


STAGES = {
    "decoder": "momentum only",
    "adaptive": "momentum, then the best layer per variable",
    "adaptive_only": "the best layer per variable throughout",
    "adaptive_per_sample": "momentum, then the best layer per subject (research code)",
    "last_layer": "the last layer alone",
}
# The epoch of the optimistic protocol is the best by accuracy, or by mean absolute error.
HONEST_AND_OPTIMISTIC = tuple(
    column
    for task, score, chosen_by in (
        ("autism", "roc_auc", "accuracy"),
        ("sex", "roc_auc", "accuracy"),
        ("age", "pearson_r", "mae"),
    )
    for column in ((task, score, "LCM"), (task, chosen_by, "LCM"), (task, chosen_by, "LCM, optimistic"))
)
ABIDE_TASKS = (("autism", "roc_auc"), ("autism", "brier"), ("sex", "roc_auc"), ("age", "pearson_r"), ("age", "mae"))
COMPARISONS = {
    "abide_stages": Comparison({f"abide_{n}": title for n, title in STAGES.items()}, HONEST_AND_OPTIMISTIC, True),
    "lemon_stages": Comparison(
        {f"lemon_{n}": title for n, title in STAGES.items()},
        tuple(column for column in HONEST_AND_OPTIMISTIC if column[0] != "autism"),
        True,
    ),
    "abide_bei": Comparison(
        {
            "abide_bei_autism": "autism alone",
            "abide_bei_autism_sex": "autism, sex",
            "abide_bei_autism_age": "autism, age",
            "abide_decoder": "autism, sex, age",
            "abide_bei_all": "autism, sex, age, site",
        },
        (("autism", "roc_auc", "LCM"), ("autism", "accuracy", "LCM"), ("autism", "brier", "LCM")),
    ),
    "abide_sizes": Comparison(
        {
            "abide_size_32x2": "2 layers, 32 wide: 30,000 weights",
            "abide_size_64x2": "2 layers, 64 wide: 109,000",
            "abide_size_64x8": "8 layers, 64 wide: 410,000",
            "abide_size_128x4": "4 layers, 128 wide: 811,000",
        },
        tuple((*column, model) for column in ABIDE_TASKS for model in ("LCM", "MLP")),
    ),
    "transfer": Comparison(
        {
            "transfer_26": "ADHD-200, 26 labels a class",
            "transfer_130": "ADHD-200, 130 labels a class",
            "transfer_both_26": "ABIDE I and ADHD-200, 26 labels a class",
            "transfer_both_130": "ABIDE I and ADHD-200, 130 labels a class",
        },
        tuple(("autism", "roc_auc", model) for model in ("LCM", "LCM from scratch", "linear", "linear, log FC")),
    ),
    "pseudo_labels": Comparison(
        {
            "transfer_26": "none",
            "pseudo_recorded": "records of all subjects",
            "pseudo_defaults": "records, else default labels",
            "pseudo_model": "records, else confident predictions",
        },
        (("autism", "roc_auc", "LCM"), ("autism", "accuracy", "LCM"), ("autism", "brier", "LCM")),
    ),
}


def compared_studies() -> set[str]:
    """Names of the studies that stand in a table with others."""
    compared = {name for comparison in COMPARISONS.values() for name in comparison.studies}
    return compared | {name for ablation in ABLATIONS.values() for name in ablation.studies}


def tables(records: dict[str, Results]) -> dict[str, str]:
    """Content by mark: of every study that is in no comparison, and of every comparison and ablation."""
    compared = compared_studies()
    found = {name: study_tables(name, metrics) for name, metrics in records.items() if name not in compared}
    found |= {name: comparison_table(comparison, records) for name, comparison in COMPARISONS.items()}
    return found | {name: ablation_table(ablation, records) for name, ablation in ABLATIONS.items()}


def between_marks(text: str, name: str, content: str) -> str:
    """Replace what stands between `<!-- NAME -->` and the next `<!-- end -->`.

    Raises:
        ValueError: the page has no such marks.
    """
    mark = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not mark.search(text):
        raise ValueError(f"The page has no place for {name}: add <!-- {name} --> and <!-- end --> on two lines.")
    return mark.sub(lambda found: f"{found[1]}{content}{found[2]}", text)


def summary_table(records: dict[str, Results]) -> str:
    """Markdown table of the headline metric of the studies with a linear baseline."""
    rows = ["| study | predicted | subjects | metric | LCM | linear on FC | linear on log FC |", "|" + " --- |" * 7]
    compared = compared_studies()
    for name, record in records.items():
        for task, results in record.tasks.items() if name not in compared else ():
            if "linear" not in results.models:
                continue
            headline = results.main_metric
            # A study that tests elsewhere is about the subjects there.
            for tested in (results.external or {"": results}).values():
                scores = [
                    _score(tested.models.get(model, {}).get(headline)) for model in (LCM, "linear", "linear, log FC")
                ]
                cells = [record.title, task, str(tested.n_subjects), METRIC_TITLES[headline], *scores]
                rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _score(score: Score | None) -> str:
    """Mean ± standard deviation over folds; of a single test, its score."""
    if score is None:
        return "-"
    return f"{score.mean:.3f}" + ("" if is_undefined(score.std) else f" ± {score.std:.3f}")


def comparison_table(comparison: Comparison, records: dict[str, Results]) -> str:
    """Markdown of a comparison: mean ± standard deviation over folds, of the studies that have been run."""
    titles = [
        f"{task}, {METRIC_TITLES[metric]}" + ("" if model == "LCM" else f": {model.removeprefix('LCM, ')}")
        for task, metric, model in comparison.columns
    ]
    done = {name: title for name, title in comparison.studies.items() if name in records}
    rows = [["", *titles]]
    rows += [
        [title, *(_cell(records[name], *column) for column in comparison.columns)] for name, title in done.items()
    ]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|" + " --- |" * len(rows[0]))
    if comparison.shows_layers:
        lines += ["", "Layers with the lowest training loss after pretraining (folds):", ""]
        layers = {title: _layers(records[name]) for name, title in done.items()}
        lines += [f"- {title}: {text}" for title, text in layers.items() if text]
    minutes = sum(records[name].seconds or 0 for name in done) / 60
    names = " ".join(done)
    return "\n".join(lines) + f"\n\n`python -m training.studies --studies {names}` ({minutes:.0f} minutes)\n"


def _cell(record: Results, task: str, metric: str, model: str) -> str:
    score = record.tasks[task].models.get(model, {}).get(metric)
    if score is None:
        return "-"
    return f"{number_text(metric, score.mean)} ± {number_text(metric, score.std)}"


def _layers(record: Results) -> str:
    """autism 8 (4), 7 (1); sex ..."""
    parts = []
    for task, results in record.tasks.items():
        folds = Counter(layer + 1 for layer in results.best_layers)
        if folds:
            parts.append(f"{task} {', '.join(f'{layer} ({count})' for layer, count in sorted(folds.items()))}")
    return "; ".join(parts)


def study_tables(name: str, record: Results) -> str:
    """Markdown of one study: per variable the table, the interval of LCM and how it was tested."""
    parts = []
    for task, results in record.tasks.items():
        headline = results.main_metric
        ours = results.models[LCM][headline]
        lines = [f"**{task}**, {results.n_subjects} subjects, {results.n_scans} scans:\n"]
        lines += [results_table_markdown(results, METRICS[headline]), ""]
        if ours.interval is not None:
            low, high = ours.interval
            lines.append(
                f"Pooled over folds: {ours.pooled:.3f}, 95 % interval {low:.3f} to {high:.3f}, permutation "
                f"p = {ours.p_value:.3f}."
            )
        if "site" in results.groups:
            within = results.groups["site"][MEAN_OF_GROUPS].models
            scores = [
                f"{model} {score[headline]:.3f}" for model, score in within.items() if model not in CONSTANT.values()
            ]
            lines.append(f"\nMean within sites, weighted by people: {'; '.join(scores)}.")
        for place, elsewhere in results.external.items():
            lines.append(f"\nTrained on all of them, tested on the {elsewhere.n_subjects} subjects of {place}:\n")
            lines.append(results_table_markdown(elsewhere, METRICS[headline]))
        parts.append("\n".join(lines))
    checksums = record.protocol["split_checksum"]
    splits = ", ".join(checksums) if isinstance(checksums, list) else checksums
    # What a run that was taken up again needed before is not known.
    seconds = record.seconds or 0
    time = f", {seconds / 60:.0f} minutes" if seconds > 60 else ""
    parts.append(f"`python -m training.studies --studies {name}` (splits {splits}{time})\n")
    return "\n\n".join(parts)
