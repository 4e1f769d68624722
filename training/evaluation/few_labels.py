"""What a pretrained read-out is worth with few labels, in scans that pretraining has not seen; paired over draws."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.stats import t as student

from modeling_lcm import BEIVariable
from modeling_lcm.closed_form import Array, Edges, Target, fit_ridge
from modeling_lcm.closed_form_heads import Head, Scans, fit_head
from modeling_lcm.closed_form_model import DEFAULT_SHRINKAGE, SHRINKAGES

from ..command_line.settings import load_yaml
from ..trainer.open_heads import Pool


METHODS = ("pretrained", "from scratch", "ridge on log FC", "tangent space")
STYLES = ("-", "--", "-", ":")  # of these: equal scores stay visible
MOST = 0.75  # of the labelled scans may be drawn, so that enough are left to be tested
LEAST_PER_CLASS = 2


def load_jobs(path: str | Path) -> list[dict[str, Any]]:
    """Pairs of cohorts from a YAML file; see training/configs/open/few_labels.yaml."""
    return list(load_yaml(path)["jobs"])


def run_job(pool: Pool, job: Mapping[str, Any], sizes: list[int], draws: int, seed: int) -> Iterator[dict[str, Any]]:
    """Scores of all methods for one pair of cohorts.

    Args:
        pool (`Pool`): all scans.
        job (`Mapping`): an entry of training/configs/open/few_labels.yaml.
        sizes (`list[int]`): numbers of labels.
        draws (`int`): draws of so many labels; the others are tested.
        seed (`int`): of the draws.

    Yields:
        One row per draw and method: `job`, `variable`, `labels`, `draw`, `method`, `score` (AUC or r).
    """
    rows = pool.rows[job["atlas"]]
    table = pool.table.iloc[rows].reset_index(drop=True)
    subjects = pool.subjects[rows]
    source, tested = _where(table, job["from"]), _where(table, job["to"])
    # Subjects of both sides count for the tested one.
    source = source & ~np.isin(subjects, subjects[tested])
    edges, connectivity = pool.edges[job["atlas"]], pool.connectivity[job["atlas"]]
    for variable in (each for each in pool.variables if each.name in job["variables"]):
        scans = pool.scans(variable).select(rows)
        learnt = np.flatnonzero(source & np.isfinite(scans.values))
        head = fit_head(_edges(edges, learnt), scans.select(learnt), len(variable.labels)) if len(learnt) else None
        candidates = np.flatnonzero(tested & np.isfinite(scans.values))
        # The tested scans' mean, which no label enters, as the reference: also with few labels a good one.
        reference = _reference(edges[candidates, DEFAULT_SHRINKAGE], connectivity.shape[-1])
        tangents = np.full((len(rows), 1, edges.shape[-1]), np.nan, dtype=np.float32)
        tangents[candidates] = _tangent(connectivity[candidates], reference)
        for size in sizes:
            if size > MOST * len(candidates):
                continue
            generator = np.random.default_rng(seed)
            for draw in range(draws):
                chosen = _draw(candidates, scans.values, size, len(variable.labels), generator)
                others = np.setdiff1d(candidates, chosen)
                found = _scores(variable, edges, tangents, scans, chosen, others, head)
                for method, score in found.items():
                    yield {
                        "job": job["name"],
                        "variable": variable.name,
                        "labels": size,
                        "draw": draw,
                        "method": method,
                        "score": score,
                    }


def _where(table: pd.DataFrame, chosen: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Scans of a cohort, of some of its sites or ages."""
    here = table["cohort"] == chosen["cohort"]
    if "site" in chosen:
        here &= table["site"].isin(chosen["site"])
    if "not_site" in chosen:
        here &= ~table["site"].isin(chosen["not_site"])
    if "below" in chosen:
        here &= table["age"] < chosen["below"]
    if "from_age" in chosen:
        here &= table["age"] >= chosen["from_age"]
    return here.to_numpy(dtype=bool)


def _edges(edges: NDArray[np.float32], rows: NDArray[np.int64]) -> Edges:
    return Edges({"one": edges[rows]}, DEFAULT_SHRINKAGE)


def _draw(
    candidates: NDArray[np.int64], values: Array, size: int, num_labels: int, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Scans at random, with two or more of each class."""
    while True:
        chosen = np.sort(generator.permutation(candidates)[:size])
        counts = np.bincount(values[chosen].astype(int), minlength=num_labels) if num_labels else np.array([size])
        if counts.min() >= LEAST_PER_CLASS:
            return chosen


def _scores(
    variable: BEIVariable,
    edges: NDArray[np.float32],
    tangents: NDArray[np.float32],
    scans: Scans,
    chosen: NDArray[np.int64],
    others: NDArray[np.int64],
    head: Head | None,
) -> dict[str, float]:
    few, truth = scans.select(chosen), scans.values[others]
    tested = {"one": edges[others]}
    predicted = {}
    for method, prior in (("pretrained", head), ("from scratch", None)):
        tokens = fit_head(_edges(edges, chosen), few, len(variable.labels), prior).tokens
        score = tokens[-1].combined(1.0, tokens[0], -1.0) if len(tokens) == 2 else tokens[0]
        predicted[method] = score(tested)
    is_class = bool(variable.labels)
    spread = 1.0 if is_class else few.values.std()
    values = few.values if is_class else (few.values - few.values.mean()) / spread
    target = Target.make(values, is_class, few.subjects)
    plain = fit_ridge(_edges(edges, chosen), target, is_plain=True)
    predicted["ridge on log FC"] = plain.score(tested)
    tangent = fit_ridge(Edges({"one": tangents[chosen]}, 0), target, is_plain=True)
    predicted["tangent space"] = tangent.score({"one": tangents[others]})
    return {method: _agreement(truth, predicted[method], is_class) for method in METHODS}


def _reference(logarithms: NDArray[np.float32], regions: int) -> torch.Tensor:
    """What whitens FC: the inverse root of the scans' log-Euclidean mean."""
    mean = np.zeros((regions, regions))
    rows, columns = np.triu_indices(regions, 1)
    mean[rows, columns] = mean[columns, rows] = logarithms.mean(0)
    values, vectors = np.linalg.eigh(mean)
    return torch.from_numpy((vectors * np.exp(-values / 2)) @ vectors.T).float()


def _tangent(connectivity: NDArray[np.float32], whitener: torch.Tensor) -> NDArray[np.float32]:
    """Edges of the logarithm of whitened FC `(scans, 1, edges)`: tangent space, Varoquaux et al. 2010."""
    share = SHRINKAGES[DEFAULT_SHRINKAGE]
    shrunk = (1 - share) * torch.from_numpy(connectivity) + share * torch.eye(connectivity.shape[-1])
    values, vectors = torch.linalg.eigh(whitener @ shrunk @ whitener)
    logarithms = (vectors * values.clamp_min(1e-3).log()[:, None]) @ vectors.transpose(1, 2)
    rows, columns = np.triu_indices(connectivity.shape[-1], 1)
    return logarithms[:, rows, columns].numpy()[:, None]


def _agreement(truth: Array, predicted: Array, is_class: bool) -> float:
    if not is_class:
        return float(np.corrcoef(truth, predicted)[0, 1]) if np.ptp(predicted) else 0.0
    ranks = pd.Series(predicted).rank().to_numpy()
    positive = int((truth == 1).sum())
    return float((ranks[truth == 1].sum() - positive * (positive + 1) / 2) / (positive * (len(truth) - positive)))


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over draws, and paired differences with 95 % intervals (Student's t over draws).

    Args:
        rows (`pd.DataFrame`): of [`run_job`].

    Returns:
        One row per job, variable and number of labels: the methods' means, and `pretrained - from scratch` and
        `pretrained - best other` (the one with the best mean), each with `low` and `high`.
    """
    found = []
    for (job, variable, labels), part in rows.groupby(["job", "variable", "labels"], sort=False):
        wide = part.pivot(index="draw", columns="method", values="score")
        means = wide.mean()
        best = means[[method for method in METHODS if method != "pretrained"]].idxmax()
        row: dict[str, Any] = {"job": job, "variable": variable, "labels": labels, "draws": len(wide)}
        row |= {method: means[method] for method in METHODS}
        for name, other in (("from scratch", "from scratch"), ("best other", best)):
            difference = wide["pretrained"] - wide[other]
            half = (
                student.ppf(0.975, len(wide) - 1) * difference.std() / np.sqrt(len(wide)) if len(wide) > 1 else np.nan
            )
            row |= {f"- {name}": difference.mean(), f"- {name} low": difference.mean() - half}
            row[f"- {name} high"] = difference.mean() + half
        found.append(row)
    return pd.DataFrame(found)


def as_markdown(summary: pd.DataFrame) -> str:
    """The summary as a table for docs/results.md."""
    lines = [
        "| from, to | variable | labels | "
        + " | ".join(METHODS)
        + " | minus from scratch [95 %] | minus best other [95 %] |",
        "| --- " * (len(METHODS) + 5) + "|",
    ]
    for row in summary.to_dict("records"):
        means = " | ".join(f"{row[method]:.3f}" for method in METHODS)
        differences = " | ".join(
            f"{row[f'- {name}']:+.3f} [{row[f'- {name} low']:+.3f}, {row[f'- {name} high']:+.3f}]"
            for name in ("from scratch", "best other")
        )
        lines.append(f"| {row['job']} | {row['variable']} | {row['labels']} | {means} | {differences} |")
    return "\n".join(lines) + "\n"


def figure(summary: pd.DataFrame) -> Any:
    """Score over labels, one panel per pair of cohorts and variable."""
    from matplotlib.figure import Figure

    panels = list(summary.groupby(["job", "variable"], sort=False))
    columns = 3
    lines = -(-len(panels) // columns)
    drawn = Figure(figsize=(4 * columns, 3 * lines), layout="constrained")
    axes = np.atleast_1d(drawn.subplots(lines, columns)).ravel()
    for axis, ((job, variable), part) in zip(axes, panels, strict=False):
        for method, style in zip(METHODS, STYLES, strict=True):
            axis.plot(part["labels"], part[method], style, marker="o", markersize=4, label=method)
        axis.set(title=f"{job}: {variable}", xlabel="labels", ylabel="r" if variable == "age" else "AUC", xscale="log")
        axis.set_xticks(part["labels"], [str(count) for count in part["labels"]])
        axis.title.set_fontsize(9)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    axes[0].legend(fontsize=8)
    return drawn
