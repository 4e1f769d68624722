"""Which edges the predictions follow: patterns, not weights, with their stability over folds.

The weights of a linear read-out say what it needs to cancel noise, as much as what it measures. What a score measures
is its covariance with each edge (Haufe et al. 2014, doi:10.1016/j.neuroimage.2013.10.067), which also holds for the
score of a whole network. Only predictions of left-out subjects are used, and each fold's subjects are others, so that
folds do not agree on a map just because they were trained on the same subjects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, rankdata

from modeling_lcm.edges_lcm import log_edges

from ..data.cohort import Cohort
from ..reporting.networks import networks_of
from ..reporting.results import LCM, TaskResults
from .association import SIGNIFICANT, STABLE, region_permutation_test


SHRINKAGE = 0.1
MOST_EDGES = 50_000_000  # of all scans that are held at once
FEWEST = 5  # scans of a fold for a map of its own
PERMUTATIONS = 1000

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Patterns:
    """What the score of one label, or of a number, goes with.

    Args:
        label (`str`): "" for a number.
        regions (`pd.DataFrame`): `region`, `network`, `pattern` (mean over the region's edges of their correlation
            with the score), `share` (of all squared correlations).
        pairs (`pd.DataFrame`): per pair of networks `first`, `second`, `pattern` (correlation of its mean log FC with
            the score), `label_r` (with the label itself), `p` and `q` of that; empty where no networks are known.
        stability (`float`): mean correlation between the folds' maps, of pairs if there are some, else of regions.
        folds (`int`): that were compared.
        p_value (`float`, *optional*): of the predictions against shuffled labels.
        scans (`int`): that were used.
    """

    label: str
    regions: pd.DataFrame
    pairs: pd.DataFrame
    stability: float
    folds: int
    p_value: float | None
    scans: int

    @property
    def is_shown(self) -> bool:
        """Whether folds agree on the map, and the predictions are beyond chance."""
        beyond = self.p_value is None or self.p_value < SIGNIFICANT
        return beyond and self.stability >= STABLE

    @property
    def sentence(self) -> str:
        """Whether there is a map to look at, and the figures that say so."""
        agree = f"maps of {self.folds} folds correlate by {self.stability:.2f} on average ({STABLE} is needed)"
        if np.isnan(self.stability):
            agree = "too few scans for a map of each fold"
        if self.is_shown:
            chance = "" if self.p_value is None else f", and predictions are beyond chance (p {self.p_value:.3f})"
            return f"The map is stable: {agree}{chance}."
        chance = ""
        if self.p_value is not None:
            beyond = self.p_value < SIGNIFICANT
            chance = f", {'although predictions are' if beyond else 'and predictions are not'} beyond chance"
            chance += f" (p {self.p_value:.3f})"
        return f"No map is drawn, since there is none to rely on: {agree}{chance}."


def edge_patterns(cohort: Cohort, predictions: pd.DataFrame, results: TaskResults, seed: int = 0) -> list[Patterns]:
    """Patterns of an evaluation's predictions for left-out subjects.

    Args:
        cohort (`Cohort`): the tested data set.
        predictions (`pd.DataFrame`): its predictions, as `predictions.tsv` has them; of several repeats the first.
        results (`TaskResults`): of the task.
        seed (`int`): of the permutations.

    Returns:
        One entry for a number or the positive one of two labels, or one for each of several labels.
    """
    first = cohort.by_atlas[0]
    table = (
        predictions[predictions["repeat"] == predictions["repeat"].min()] if "repeat" in predictions else predictions
    )
    number = {key: row for row, key in enumerate(_keys(cohort.table))}
    rows = np.array([number[key] for key in _keys(table)])
    there = first.are_there()[rows]
    regions = int(first.feature_extractor.num_regions or 0)
    edges = regions * (regions - 1) // 2
    kept = np.flatnonzero(there)
    if len(kept) * edges > MOST_EDGES:
        kept = kept[np.unique(np.linspace(0, len(kept) - 1, max(100, MOST_EDGES // edges), dtype=int))]
    table, rows = table.iloc[kept], rows[kept]
    folds = table["fold"].to_numpy() if "fold" in table else np.zeros(len(table))
    logs = _centred(log_edges(first.matrices(rows), [SHRINKAGE])[:, 0], folds)
    labels = results.protocol["labels"]
    wanted = labels if len(labels) > 2 else labels[1:] or [""]
    names = first.feature_extractor.region_names or [f"region {number + 1}" for number in range(regions)]
    p_value = results.models[LCM][results.main_metric].p_value
    return [_patterns(label, table, logs, folds, names, p_value, results.protocol["task"], seed) for label in wanted]


def _keys(table: pd.DataFrame) -> list[tuple[str, str]]:
    return list(zip(table["subject_id"].astype(str), table["session"].astype(str), strict=True))


def _patterns(
    label: str,
    table: pd.DataFrame,
    logs: NDArray,
    folds: NDArray,
    names: Sequence[str],
    p_value: float | None,
    task: str,
    seed: int,
) -> Patterns:
    if label:
        share = table[f"{LCM}: {label}"].to_numpy(dtype=float).clip(1e-6, 1 - 1e-6)
        scores, target = np.log(share / (1 - share)), (table[task].astype(str) == label).to_numpy(dtype=float)
    else:
        scores, target = table[LCM].to_numpy(dtype=float), table[task].to_numpy(dtype=float)
    scores = _within(scores, folds)
    pattern = _correlations(logs, scores)
    groups = networks_of(names)
    regions = _region_table(names, groups, pattern)
    every = [fold for fold in np.unique(folds) if (folds == fold).sum() >= FEWEST]
    membership = None if groups is None else _pair_membership([network for network, _ in groups])
    if membership is None:
        pairs = pd.DataFrame()
        parts = [_correlations(logs[folds == fold], scores[folds == fold]) for fold in every]
        maps = [_by_region(each, len(names)) for each in parts]
    else:
        keys, matrix = membership
        means = logs @ matrix  # mean log FC of every pair of networks, (scans, pairs)
        maps = [_correlations(means[folds == fold], scores[folds == fold]) for fold in every]
        label_r, p = region_permutation_test(means, target, folds, PERMUTATIONS, seed)
        pairs = pd.DataFrame(keys, columns=["first", "second"])
        pairs = pairs.assign(
            pattern=_correlations(means, scores), label_r=label_r, p=p, q=false_discovery_control(p, method="bh")
        )
    stability = [float(np.corrcoef(one, other)[0, 1]) for one, other in combinations(maps, 2)]
    agreement = float(np.mean(stability)) if stability else float("nan")
    return Patterns(label, regions, pairs, agreement, len(every), p_value, len(table))


def _centred(values: NDArray, folds: NDArray) -> NDArray:
    """Without the mean of each fold: scores of different models have different ones."""
    for fold in np.unique(folds):
        values[folds == fold] -= values[folds == fold].mean(0)
    return values


def _within(scores: Array, folds: NDArray) -> Array:
    """Ranks within each fold, from -1 to 1: another model's scores may be spread otherwise."""
    found = np.zeros(len(scores))
    for fold in np.unique(folds):
        part = folds == fold
        ranks = rankdata(scores[part]) - (part.sum() + 1) / 2
        found[part] = ranks / max(np.abs(ranks).max(), 1)
    return found


def _correlations(logs: NDArray, scores: Array) -> Array:
    """Correlation of every edge with the scores, `(edges,)`; 0 where either is constant."""
    norms = np.linalg.norm(logs, axis=0) * np.linalg.norm(scores)
    return np.divide(scores @ logs, norms, out=np.zeros(logs.shape[1]), where=norms > 1e-9)


def _by_region(pattern: Array, regions: int) -> Array:
    """Mean over the edges of every region."""
    rows, columns = np.triu_indices(regions, 1)
    sums = np.bincount(rows, pattern, regions) + np.bincount(columns, pattern, regions)
    return sums / (regions - 1)


def _region_table(names: Sequence[str], groups: list[tuple[str, str]] | None, pattern: Array) -> pd.DataFrame:
    squared = _by_region(pattern**2, len(names))
    table = pd.DataFrame({"region": list(names), "network": "" if groups is None else [group for group, _ in groups]})
    table = table.assign(pattern=_by_region(pattern, len(names)), share=squared / max(squared.sum(), 1e-12))
    return table.sort_values("share", ascending=False, ignore_index=True)


def _pair_membership(networks: Sequence[str]) -> tuple[list[tuple[str, str]], Array]:
    """Pairs of networks, and the matrix `(edges, pairs)` that takes the mean over the edges of each."""
    order = list(dict.fromkeys(networks))
    code = np.array([order.index(network) for network in networks])
    rows, columns = np.triu_indices(len(networks), 1)
    low, high = np.minimum(code[rows], code[columns]), np.maximum(code[rows], code[columns])
    keys, position = np.unique(np.stack([low, high]), axis=1, return_inverse=True)
    matrix = np.zeros((len(rows), keys.shape[1]))
    matrix[np.arange(len(rows)), position.ravel()] = 1
    return [(order[one], order[other]) for one, other in keys.T], matrix / matrix.sum(0)
