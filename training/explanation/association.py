"""Attention maps against labels: averages per class, permutation tests with false discovery rate, stability."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control

from modeling_lcm import BEIVariable


STABLE = 0.5  # least mean correlation between folds or halves of a map that is called stable
SIGNIFICANT = 0.05
HALVES = 50


@dataclass(frozen=True)
class Maps:
    """One way of drawing a token's attention together.

    Args:
        mean (`np.ndarray` of shape `(regions,)`): over subjects; 1 = every region is read equally.
        by_class (`dict[str, np.ndarray]`): the same per label (or "low" and "high" half of a continuous variable).
        correlation (`np.ndarray` of shape `(regions,)`): of attention with having the label, or with the value.
        p, q (`np.ndarray` of shape `(regions,)`): p-values against shuffled labels; with false discovery rate.
        mean_stability (`float`): mean correlation of the mean maps of folds or halves.
        effect_stability (`float`): the same for the maps of correlations with the label.
    """

    mean: np.ndarray
    by_class: dict[str, np.ndarray]
    correlation: np.ndarray
    p: np.ndarray
    q: np.ndarray
    mean_stability: float
    effect_stability: float


@dataclass(frozen=True)
class Explained:
    """Everything about one token.

    Args:
        variable (`str`), token (`str`), label (`str`): the label is "" for a continuous variable.
        subjects (`int`): how many were shown to the model.
        best_layers (`tuple[int, ...]`): per model, counted from 0.
        scans (`np.ndarray`), has_label (`np.ndarray`): scans, and whether each has the label (or a value above the
            median).
        maps (`dict[str, Maps]`): per method.
        compared (`str`): what stability was measured between.
    """

    variable: str
    token: str
    label: str
    people: int
    best_layers: tuple[int, ...]
    scans: np.ndarray
    has_label: np.ndarray
    maps: dict[str, Maps]
    compared: str

    def sentence(self, method: str) -> str:
        """The finding in words."""
        maps = self.maps[method]
        count, regions = int((maps.q < SIGNIFICANT).sum()), len(maps.q)
        what = f"having the label {self.label!r}" if self.label else f"{self.variable}"
        kinds = (("map", maps.mean_stability), ("relation to the label", maps.effect_stability))
        verdicts = [
            f"its {name} is {'stable' if value >= STABLE else 'UNSTABLE'} between {self.compared} (r {value:.2f})"
            for name, value in kinds
        ]
        return (
            f"{self.token}: attention to {count} of {regions} regions goes with {what} (q < {SIGNIFICANT}, "
            f"{self.people} subjects); {'; '.join(verdicts)}."
        )


def explain_token(
    variable: BEIVariable, number: int, token: str, parts: Sequence[dict[str, Any]], permutations: int, seed: int
) -> Explained:
    """Average, test and compare the maps of one token.

    Args:
        variable (`BEIVariable`): whose token it is.
        number (`int`): which of the variable's tokens.
        token (`str`): its name.
        parts (`Sequence[dict]`): per model `maps` (method -> `(scans, tokens, regions)`), `values`, `subjects`,
            `scans` and `best_layer`.
        permutations (`int`): shuffles of the labels.
        seed (`int`): of shuffles and halves.
    """
    label = variable.labels[number] if variable.labels else ""
    targets = [part["values"] == number if label else part["values"] for part in parts]
    high = np.concatenate([target if label else target > np.median(np.concatenate(targets)) for target in targets])
    return Explained(
        variable.name,
        token,
        label,
        len(set(np.concatenate([part["subjects"] for part in parts]))),
        tuple(part["best_layer"] for part in parts),
        np.concatenate([part["scans"] for part in parts]),
        high,
        {method: _maps(variable, number, method, parts, targets, permutations, seed) for method in parts[0]["maps"]},
        f"{len(parts)} folds" if len(parts) > 1 else "random halves of the subjects",
    )


def _maps(
    variable: BEIVariable,
    number: int,
    method: str,
    parts: Sequence[dict[str, Any]],
    targets: Sequence[np.ndarray],
    permutations: int,
    seed: int,
) -> Maps:
    persons = [
        _by_person(part["maps"][method][:, number], target, part["subjects"])
        for part, target in zip(parts, targets, strict=True)
    ]
    attention = np.concatenate([maps for maps, _ in persons]) * persons[0][0].shape[1]
    values = np.concatenate([target for _, target in persons])
    strata = np.repeat(np.arange(len(persons)), [len(target) for _, target in persons])
    correlation, p = region_permutation_test(attention, values, strata, permutations, seed)
    mean_stability, effect_stability = stability(attention, values, strata, seed)
    if variable.labels:
        groups = {variable.labels[number]: values > 0.5, "others": values <= 0.5}
    else:
        groups = {"upper half": values > np.median(values), "lower half": values <= np.median(values)}
    by_class = {name: attention[chosen].mean(0) for name, chosen in groups.items() if chosen.any()}
    q = false_discovery_control(p, method="bh")
    return Maps(attention.mean(0), by_class, correlation, p, q, mean_stability, effect_stability)


def _by_person(maps: np.ndarray, target: np.ndarray, subjects: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scans of a subject with one label become one, so that nobody counts several times."""
    keys = pd.DataFrame({"subject": subjects, "target": target.astype(float)})
    if not keys["subject"].duplicated().any():
        return maps.astype(np.float64), target.astype(np.float64)
    index = keys.groupby(["subject", "target"], sort=False).ngroup().to_numpy()
    counts = np.bincount(index)[:, None]
    sums = np.zeros((len(counts), maps.shape[1]))
    np.add.at(sums, index, maps)
    first = np.unique(index, return_index=True)[1]
    return sums / counts, target.astype(np.float64)[first]


def region_permutation_test(
    attention: np.ndarray, values: np.ndarray, strata: np.ndarray, permutations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of every region's attention with a label, and its two-sided p-value against shuffled labels.

    Args:
        attention (`np.ndarray` of shape `(subjects, regions)`).
        values (`np.ndarray` of shape `(subjects,)`): 0/1 or numbers.
        strata (`np.ndarray` of shape `(subjects,)`): the model that each subject was shown to; differences between
            models are taken out, and labels are shuffled within them.
        permutations (`int`): shuffles.
        seed (`int`): of the shuffles.

    Returns:
        Two arrays `(regions,)`; a region that everybody reads alike has correlation 0 and p 1.
    """
    generator = np.random.default_rng(seed)
    scaled, target = _centred(attention, strata), _centred(values[:, None], strata)[:, 0]
    spread = np.sqrt((scaled**2).sum(0))
    scaled = np.divide(scaled, spread, out=np.zeros_like(scaled), where=spread > 1e-9 * len(scaled))
    norm = np.sqrt((target**2).sum())
    if norm == 0:
        return np.zeros(attention.shape[1]), np.ones(attention.shape[1])
    observed = target @ scaled / norm
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    reached = np.zeros(attention.shape[1])
    for _ in range(permutations):
        shuffled = np.empty_like(target)
        for rows in members:
            shuffled[rows] = target[generator.permutation(rows)]
        reached += np.abs(shuffled @ scaled / norm) >= np.abs(observed) - 1e-12
    return observed, (1 + reached) / (1 + permutations)


def stability(attention: np.ndarray, values: np.ndarray, strata: np.ndarray, seed: int) -> tuple[float, float]:
    """Mean correlation over regions of the mean maps, and of the maps of label effects.

    Between the models, if there are several (each with other subjects, so that both the chance of training and that of
    sampling count); else between random halves of the subjects, where only the latter does.
    """
    if len(np.unique(strata)) > 1:
        groups = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
        pairs = list(combinations(groups, 2))
    else:
        generator = np.random.default_rng(seed)
        orders = [generator.permutation(len(values)) for _ in range(HALVES)]
        pairs = [(order[: len(order) // 2], order[len(order) // 2 :]) for order in orders]
    means, effects = [], []
    for first, second in pairs:
        means.append(_correlation(attention[first].mean(0), attention[second].mean(0)))
        effects.append(_correlation(*(_effect(attention[rows], values[rows]) for rows in (first, second))))
    return float(np.mean(means)), float(np.mean(effects))


def _effect(attention: np.ndarray, values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) @ (attention - attention.mean(0))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson correlation; 0 where a map is flat."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    return float(np.corrcoef(first, second)[0, 1])


def _centred(values: np.ndarray, strata: np.ndarray) -> np.ndarray:
    found = values.astype(np.float64).copy()
    for stratum in np.unique(strata):
        found[strata == stratum] -= found[strata == stratum].mean(0)
    return found
