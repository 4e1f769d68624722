"""How far a scan lies from those that a model was trained on, so that a prediction says when it means nothing.

Three measures, each compared with what it is for training scans whose subject is left out: the distance of the scan's
log FC from the training mean (a root mean square of deviations), how its FC agrees with the training mean edge by edge
(another order of regions, another atlas and noise do not), and its mean FC (which follows the preprocessing: without
the global signal it is 0). None of them knows the label. Of a variable that only some of the training scans have, as
diagnoses in a pool of cohorts, ages and mean FC of these are kept, too. The statistics are saved beside the processor.
"""

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from transformers.utils import cached_file

from .edges_lcm import matrix_logarithm


LIMITS_FILE = "training_limits.safetensors"
NOT_KNOWN = "Limits not known: this checkpoint has no statistics of its training scans."
LEAST_SUBJECTS = 10  # with fewer, their spread says nothing
CELLS = 2_000_000  # edges of all scans that the statistics are made from
TAIL = 0.01  # share of the training scans on either side that may lie beyond a limit ...
MARGIN = 0.25  # ... which is this share of its distance from the median further away
FLOOR = 0.05  # of the mean variance, in an edge's variance
SHRINKAGE = 0.1
COVERAGE = 0.9  # of sets and intervals
STEPS = 101  # quantiles that are kept of each measure
PART = 0.95  # of the training scans: a variable that fewer have has limits of its own
REFERENCE = ("log_mean", "log_deviation", "fc_mean")
MEASURES = ("distance", "profile", "mean_fc")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class ScanCheck:
    """What is known of a scan beside its prediction.

    Args:
        distance (`float`): root mean square deviation of its log FC from the training mean, in deviations.
        beyond (`float`): share of the training scans that lie further away.
        profile (`float`): correlation of its FC with the training mean, over edges; low where regions are in another
            order.
        mean_fc (`float`): mean correlation of all pairs of regions.
        reasons (`tuple[str, ...]`): a sentence for every limit that is passed.
        of_variables (`dict[str, str]`): by variable that was learnt from unlike scans alone, a sentence that says so.
    """

    distance: float
    beyond: float
    profile: float
    mean_fc: float
    reasons: tuple[str, ...]
    of_variables: dict[str, str] = field(default_factory=dict)

    @property
    def out_of_distribution(self) -> bool:
        """Whether a limit is passed: the prediction then is about something that the model has not learnt."""
        return bool(self.reasons)


class TrainingLimits:
    """Statistics of training scans.

    Args:
        arrays (`dict[str, np.ndarray]`): `log_mean`, `log_deviation` and `fc_mean` `(edges,)`, and the quantiles
            `distance`, `profile` and `mean_fc` `(101,)` over training scans with their subject left out.
        facts (`dict`): `scans`, `subjects`, `atlas`, `age` (the range of the training subjects' ages, or None) and
            `errors`: per variable and label (or "") what predictions of left-out subjects are off by, nine times of
            ten at most. `ranges`, where variables were learnt from a part of the scans: of each its `scans`, `age`,
            `mean_fc` and `cohorts`.
    """

    def __init__(self, arrays: dict[str, Array], facts: dict[str, Any]) -> None:
        self.arrays = arrays
        self.facts = facts

    @classmethod
    def of(cls, connectivity: ArrayLike, subjects: Sequence[Hashable]) -> "TrainingLimits | None":
        """Statistics of scans.

        Args:
            connectivity: FC as the model gets it, `(scans, regions, regions)`; see [`most_scans`].
            subjects: subject of every scan; its scans are left out together.

        Returns:
            None with fewer than 10 subjects.
        """
        groups = np.unique(np.asarray([str(subject) for subject in subjects]), return_inverse=True)[1]
        if not len(groups) or groups.max() + 1 < LEAST_SUBJECTS:
            return None
        edges, logs = _edges(connectivity)
        total = _sums(edges, logs)
        measured = []
        for group in range(groups.max() + 1):
            scans = groups == group
            others = _reference(total - _sums(edges[scans], logs[scans]), int((~scans).sum()))
            measured.append(_measure(edges[scans], logs[scans], *others))
        quantiles = np.quantile(np.concatenate(measured, axis=1), np.linspace(0, 1, STEPS), axis=1)
        arrays = dict(zip(REFERENCE, _reference(total, len(groups)), strict=True))
        arrays |= dict(zip(MEASURES, quantiles.T, strict=True))
        return cls(arrays, {"scans": len(groups), "subjects": int(groups.max()) + 1, "age": None, "errors": {}})

    @classmethod
    def several(cls, by_atlas: "Mapping[str, TrainingLimits | None]") -> "TrainingLimits | None":
        """Statistics of scans in several atlases, each by its own; None where none is known."""
        known = {atlas: limits for atlas, limits in by_atlas.items() if limits is not None}
        if not known:
            return None
        arrays = {f"{atlas}/{name}": values for atlas, each in known.items() for name, values in each.arrays.items()}
        return cls(arrays, {"errors": {}, "atlases": {atlas: each.facts for atlas, each in known.items()}})

    def of_atlas(self, atlas: str | None) -> "TrainingLimits | None":
        """Those of one atlas: of several its own, or None; of one, these."""
        facts = self.facts.get("atlases")
        if facts is None:
            return self
        if atlas not in facts:
            return None
        start = f"{atlas}/"
        arrays = {name.removeprefix(start): each for name, each in self.arrays.items() if name.startswith(start)}
        return TrainingLimits(arrays, facts[atlas] | {"atlas": atlas})

    def check_each(self, connectivity: Any, age: ArrayLike | None = None) -> list[ScanCheck | None]:
        """Compare scans with the training scans in every atlas that they have.

        Args:
            connectivity: `(scans, regions, regions)`, or a dictionary of these by atlas, NaN for scans without one.
            age: age of every subject in years, NaN where it is not known.

        Returns:
            None for a scan in none of them. Of several atlases the sentences, and the measures of the one in which the
            scan lies furthest out.
        """
        given = connectivity if isinstance(connectivity, Mapping) else {None: connectivity}
        found: list[dict[str, ScanCheck]] = [{} for _ in range(max(map(len, given.values())))]
        ages = np.full(len(found), np.nan) if age is None else np.asarray(age, dtype=np.float64)
        for atlas in self.facts.get("atlases", [None]):
            limits: Any = self.of_atlas(atlas)
            part = limits.part_of(given if atlas is None else {atlas: given.get(atlas)})
            if part is not None:
                there = np.flatnonzero(~np.isnan(np.asarray(part)[:, 0, 0]))
                checks = limits.check(np.asarray(part)[there], ages[there])
                for row, check in zip(there.tolist(), checks, strict=True):
                    found[row][atlas] = check
        return [_together(of_scan) if of_scan else None for of_scan in found]

    def part_of(self, connectivity: Any) -> Any:
        """The matrices that can be compared: those of the atlas that the statistics are of; None without it.

        Args:
            connectivity: `(scans, regions, regions)`, or a dictionary of these by atlas.
        """
        if isinstance(connectivity, Mapping):
            one = next(iter(connectivity.values())) if len(connectivity) == 1 else None
            connectivity = connectivity.get(self.facts.get("atlas"), one)
        regions = 0 if connectivity is None else connectivity.shape[-1]
        return connectivity if regions * (regions - 1) // 2 == len(self.arrays["fc_mean"]) else None

    def check(self, connectivity: ArrayLike, age: ArrayLike | None = None) -> list[ScanCheck]:
        """Compare scans with the training scans.

        Args:
            connectivity: FC as the model gets it, `(scans, regions, regions)`.
            age: age of every subject in years, NaN where it is not known.

        Raises:
            ValueError: other regions than those of the training scans.
        """
        edges, logs = _edges(connectivity)
        if edges.shape[1] != len(self.arrays["fc_mean"]):
            raise ValueError(
                f"The scans have {edges.shape[1]} edges, the training scans had {len(self.arrays['fc_mean'])}: give "
                "scans of the checkpoint's atlas."
            )
        reference = (self.arrays[name] for name in REFERENCE)
        measured = _measure(edges, logs, *reference).T
        ages = np.full(len(edges), np.nan) if age is None else np.asarray(age, dtype=np.float64)
        return [
            self._judge(float(distance), float(profile), float(mean_fc), float(years))
            for (distance, profile, mean_fc), years in zip(measured, ages, strict=True)
        ]

    def learn_ages(self, age: ArrayLike) -> None:
        """Learn the range of the training subjects' ages, in years; NaN where one is not known."""
        self.facts["age"] = _span(age)

    def learn_errors(self, variable: str, truth: Sequence[Any], predicted: Sequence[Any]) -> None:
        """Learn how far predictions are off, from training subjects whose predictions come from a fit without them.

        Args:
            variable: what is predicted.
            truth: label or value of every scan.
            predicted: probabilities by label of every scan, or its value.

        Source: split conformal prediction, by class (Vovk et al. 2005; Angelopoulos and Bates 2023).
        """
        scores: dict[str, list[float]] = {}
        for true, guess in zip(truth, predicted, strict=True):
            label = str(true) if isinstance(guess, dict) else ""
            scores.setdefault(label, []).append(1 - guess[label] if label else abs(float(guess) - float(true)))
        self.facts["errors"][variable] = {label: _conformal(np.array(found)) for label, found in scores.items()}

    def learn_range(
        self, variable: str, connectivity: ArrayLike, age: ArrayLike | None = None, cohorts: Sequence[str] = ()
    ) -> None:
        """Learn what the scans are like that a variable is learnt from, where these are a part of the training scans.

        Args:
            variable: what is learnt.
            connectivity: FC of these scans as the model gets it, `(scans, regions, regions)`.
            age: age of their subjects in years, NaN where it is not known.
            cohorts: names of their cohorts.
        """
        matrices = np.asarray(connectivity)
        rows, columns = np.triu_indices(matrices.shape[-1], 1)
        mean_fc = np.array([matrix[rows, columns].mean() for matrix in matrices])
        low, _, high = _ends(np.quantile(mean_fc, np.linspace(0, 1, STEPS)))
        found = {"scans": len(matrices), "age": _span(age), "mean_fc": [low, high], "cohorts": sorted(cohorts)}
        self.facts.setdefault("ranges", {})[variable] = found

    def uncertainty(self, variable: str, predicted: Any) -> list[str] | tuple[float, float] | None:
        """What the truth is nine times of ten.

        Args:
            variable: what is predicted.
            predicted: probabilities by label, or the value.

        Returns:
            The labels that cannot be ruled out, or the lowest and highest value; None where errors are not known.
        """
        errors = self.facts.get("errors", {}).get(variable)
        if not errors:
            return None
        if isinstance(predicted, dict):
            return [label for label, share in predicted.items() if 1 - share <= (errors.get(label) or 1.0)]
        width = errors[""]
        return None if width is None else (predicted - width, predicted + width)

    def _judge(self, distance: float, profile: float, mean_fc: float, age: float) -> ScanCheck:
        low, _, high = self._limits("mean_fc")
        least_profile, usual_profile, _ = self._limits("profile")
        _, usual_distance, most_distance = self._limits("distance")
        reasons = []
        usual_mean = low <= mean_fc <= high
        if not usual_mean:
            hint = "was the global signal removed, or is this noise?" if mean_fc < low else "were confounds left in?"
            reasons.append(f"Mean FC is {mean_fc:.2f}, in training scans {low:.2f} to {high:.2f}: {hint}")
        if profile < least_profile:
            hint = (
                "are the regions in another order?" if usual_mean else "other preprocessing, another atlas or noise."
            )
            reasons.append(
                f"FC follows the training mean with r = {profile:.2f}, usual is {usual_profile:.2f}, at least "
                f"{least_profile:.2f}: {hint}"
            )
        if distance > most_distance:
            reasons.append(
                f"Log FC lies {distance:.2f} deviations from the training mean, usual are {usual_distance:.2f}, at "
                f"most {most_distance:.2f}."
            )
        span = self.facts.get("age")
        if span is not None and not np.isnan(age) and not span[0] <= age <= span[1]:
            reasons.append(f"Age {age:g} lies outside the training subjects' {span[0]:g} to {span[1]:g} years.")
        quantiles = self.arrays["distance"]
        beyond = float(1 - np.interp(distance, quantiles, np.linspace(0, 1, STEPS)))
        said = {name: self._unlike(name, mean_fc, age) for name in self.facts.get("ranges", {})}
        of_variables = {name: sentence for name, sentence in said.items() if sentence}
        return ScanCheck(distance, beyond, profile, mean_fc, tuple(reasons), of_variables)

    def _unlike(self, variable: str, mean_fc: float, age: float) -> str:
        """A sentence if a scan is unlike those that a variable was learnt from; else nothing."""
        known = self.facts["ranges"][variable]
        (low, high), span = known["mean_fc"], known["age"]
        outside = [] if low <= mean_fc <= high else [f"mean FC {mean_fc:.2f} (there {low:.2f} to {high:.2f})"]
        if span is not None and not np.isnan(age) and not span[0] <= age <= span[1]:
            outside.append(f"age {age:g} (there {span[0]:g} to {span[1]:g})")
        if not outside:
            return ""
        cohorts = f" of {', '.join(known['cohorts'])}" if known["cohorts"] else ""
        return f"{variable} was learnt from {known['scans']} scans{cohorts}, unlike this one: {', '.join(outside)}."

    def _limits(self, name: str) -> tuple[float, float, float]:
        return _ends(self.arrays[name])

    def save(self, folder: str | os.PathLike) -> None:
        """Write `training_limits.safetensors`; statistics of edges in half precision."""
        stored = {
            name: values.astype(np.float32 if len(values) == STEPS else np.float16)
            for name, values in self.arrays.items()
        }
        save_file(stored, Path(folder) / LIMITS_FILE, {"format": "np", "facts": json.dumps(self.facts)})

    @classmethod
    def load(cls, place: str | os.PathLike, **hub: Any) -> "TrainingLimits | None":
        """Read what [`save`] wrote.

        Args:
            place: folder or Hub repository.
            **hub: `revision`, `subfolder`, `token` and so on.

        Returns:
            None where there is no such file, as in checkpoints of older versions.

        Raises:
            ValueError: the file is damaged.
        """
        path: str | Path | None = Path(place) / hub.get("subfolder", "") / LIMITS_FILE
        if not Path(place).is_dir():
            try:
                path = cached_file(str(place), LIMITS_FILE, **hub)
            except OSError:  # no such file, or no repository within reach
                path = None
        if path is None or not Path(path).is_file():
            return None
        try:
            with safe_open(path, framework="np") as file:
                arrays = {name: file.get_tensor(name).astype(np.float64) for name in file.keys()}  # noqa: SIM118
                return cls(arrays, json.loads(file.metadata()["facts"]))
        except Exception as error:
            raise ValueError(
                f"{path} is damaged ({error}): copy the checkpoint again, or delete this file."
            ) from error


def most_scans(num_regions: int) -> int:
    """How many scans the statistics are made from at most: 300 of AAL's 116 regions, 100 of a thousand."""
    return max(100, CELLS // (num_regions * (num_regions - 1) // 2))


def _ends(quantiles: Array) -> tuple[float, float, float]:
    """Lower limit, median and upper limit, of the quantiles of a measure `(101,)`."""
    low, middle, high = (float(each) for each in np.interp([TAIL, 0.5, 1 - TAIL], np.linspace(0, 1, STEPS), quantiles))
    return low - MARGIN * (middle - low), middle, high + MARGIN * (high - middle)


def _span(ages: ArrayLike | None) -> list[float] | None:
    """Lowest and highest of those that are known; None without any."""
    known = np.asarray([] if ages is None else ages, dtype=np.float64)
    known = known[np.isfinite(known)]
    return [float(known.min()), float(known.max())] if len(known) else None


def _together(checks: Mapping[str, ScanCheck]) -> ScanCheck:
    """Of one scan in several atlases."""
    worst = max(checks.values(), key=lambda check: (check.out_of_distribution, -check.beyond))
    by_reason: dict[str, list[str]] = {}
    for atlas, check in checks.items():
        for reason in check.reasons:
            by_reason.setdefault(reason, []).append(atlas)
    # What every atlas says alike, as an age, is about the subject.
    reasons = tuple(
        reason if len(atlases) == len(checks) else f"{', '.join(atlases)}: {reason}"
        for reason, atlases in by_reason.items()
    )
    of_variables = {name: said for check in checks.values() for name, said in check.of_variables.items()}
    return replace(worst, reasons=reasons, of_variables=of_variables)


def _conformal(scores: Array) -> float | None:
    """What new scores stay below nine times of ten; None where there are too few to say."""
    rank = int(np.ceil((len(scores) + 1) * COVERAGE))
    return None if rank > len(scores) else float(np.sort(scores)[rank - 1])


def _edges(connectivity: ArrayLike) -> tuple[Array, Array]:
    """FC and log FC of every edge, `(scans, edges)` each."""
    matrices = torch.as_tensor(np.asarray(connectivity), dtype=torch.float64)
    rows, columns = np.triu_indices(matrices.shape[-1], 1)
    logs = [matrix_logarithm(part, SHRINKAGE)[:, rows, columns].numpy() for part in matrices.split(64)]
    return matrices[:, rows, columns].numpy(), np.concatenate(logs)


def _sums(edges: Array, logs: Array) -> Array:
    """Sums over scans of log FC, its square and FC, `(3, edges)`."""
    return np.stack([logs.sum(0), (logs**2).sum(0), edges.sum(0)])


def _reference(sums: Array, scans: int) -> tuple[Array, Array, Array]:
    """What scans are measured by: mean and deviation of log FC, and mean FC, `(edges,)` each."""
    log_mean, square, fc_mean = sums / scans
    variance = (square - log_mean**2).clip(0)
    return log_mean, np.sqrt(variance + FLOOR * variance.mean() + 1e-12), fc_mean


def _measure(edges: Array, logs: Array, log_mean: Array, log_deviation: Array, fc_mean: Array) -> Array:
    """Distance, profile and mean FC of scans, `(3, scans)`."""
    distance = np.sqrt((((logs - log_mean) / log_deviation) ** 2).mean(1))
    centred, reference = edges - edges.mean(1, keepdims=True), fc_mean - fc_mean.mean()
    lengths = np.linalg.norm(centred, axis=1) * np.linalg.norm(reference)
    return np.stack([distance, centred @ reference / np.maximum(lengths, 1e-12), edges.mean(1)])
