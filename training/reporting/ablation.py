"""Tables of docs/results.md in which every model is compared with one of them, on the same folds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t as student

from .results import LCM, METRIC_TITLES, Results, Score, number_text


LINEAR = "linear, log FC"  # shown beside the reference, from the reference's own folds


class Ablation(NamedTuple):
    """Studies `ROW_MODEL`, whose scores are compared with those of one model in the same row, fold by fold.

    Args:
        corner (`str`): what the rows are.
        rows (`dict[str, str]`): first part of the studies' names -> what the row is called.
        models (`dict[str, str]`): last part of their names -> what the column is called; the first is the reference.
    """

    corner: str
    rows: dict[str, str]
    models: dict[str, str]

    @property
    def studies(self) -> list[str]:
        """Names of all studies."""
        return [f"{row}_{model}" for row in self.rows for model in self.models]


ABLATIONS = {
    "decoder": Ablation(
        "cohort",
        {
            "decoder_abide": "ABIDE I",
            "decoder_adhd": "ADHD-200",
            "decoder_fcp": "FCP-1000",
            "decoder_lemon": "MPI-LEMON",
        },
        {
            "edges": "edges alone",
            "nano": "64 x 8 (nano)",
            "128x4": "128 x 4",
            "256x8": "256 x 8",
            "512x4": "512 x 4",
            "512x4_slow": "512 x 4, slow",
            "147m": "147M",
            "147m_paper": "147M, paper",
        },
    ),
    "atlases": Ablation(
        "model",
        {"atlases_edges": "edges alone", "atlases_nano": "nano"},
        {"one": "AAL-116", "two": "and Harvard-Oxford-111", "dropout": "both, each scan losing one half the time"},
    ),
    "more": Ablation(
        "model",
        {"more_edges": "edges alone", "more_nano": "nano"},
        {
            "alone": "ABIDE I alone",
            "windows": "windows",
            "cohorts": "with ADHD-200 and Neurocon",
            "both": "with both",
        },
    ),
}


def ablation_table(ablation: Ablation, records: dict[str, Results]) -> str:
    """Markdown: the reference's scores, and what the other models differ from them by; empty before any is run.

    Args:
        ablation (`Ablation`): what stands in it.
        records (`dict[str, Results]`): the studies that have been run, by name.
    """
    reference, *others = ablation.models
    titles = [ablation.models[reference], *(f"{ablation.models[name]}, difference" for name in others)]
    lines = [[ablation.corner, "predicted", "metric", LINEAR, *titles]]
    means: dict[str, list[float]] = {name: [] for name in others}
    for row, title in ablation.rows.items():
        base = records.get(f"{row}_{reference}")
        for task, results in base.tasks.items() if base is not None else ():
            metric = results.main_metric
            ours = results.models[LCM][metric]
            cells = [title, task, METRIC_TITLES[metric], _score(metric, results.models.get(LINEAR, {}).get(metric))]
            cells.append(_score(metric, ours))
            for name in others:
                other = records.get(f"{row}_{name}")
                if other is None:
                    cells.append("-")
                    continue
                differences = np.subtract(other.tasks[task].models[LCM][metric].per_fold, ours.per_fold)
                means[name].append(float(np.nanmean(differences)))
                cells.append(_difference(differences, 1 / (int(other.protocol["folds"]) - 1)))
            lines.append(cells)
    if len(lines) == 1:
        return ""
    every = ["**mean over the rows**", "", "", "", ""]
    lines.append([*every, *(_difference(found, 0.0) if len(found) > 1 else "-" for found in means.values())])
    lines.insert(1, ["---"] * len(lines[0]))
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    done = " ".join(name for name in ablation.studies if name in records)
    return f"{text}\n\n`python -m training.studies --studies {done}`\n"


def _score(metric: str, score: Score | None) -> str:
    return "-" if score is None else f"{number_text(metric, score.mean)} ± {number_text(metric, score.std)}"


def _difference(values: Sequence[float] | np.ndarray, test_by_train: float) -> str:
    """Mean and 95 % interval of paired differences.

    Args:
        values (`Sequence[float]`): one per fold, or per row.
        test_by_train (`float`): tested subjects by training subjects, because folds share these (Nadeau and Bengio,
            2003); 0 for differences that share nothing.
    """
    known = np.asarray(values, dtype=float)
    known = known[np.isfinite(known)]
    if len(known) < 2:
        return "-"
    half = student.ppf(0.975, len(known) - 1) * known.std(ddof=1) * np.sqrt(1 / len(known) + test_by_train)
    mean = known.mean()
    return f"{mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}]"
