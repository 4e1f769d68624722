"""What an evaluation found: one shape for one task or many, how it is read and written, and what results are called.

`metrics.json` holds [`Results`]; nothing heavy is imported here, so that whoever reads results waits for nothing.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..storage.files import write_json


# Models as the tables call them; the fitted baselines' names are in `evaluation/comparison.py`.
LCM = "LCM"
SINGLE = "LCM, one seed"  # mean over the members of an ensemble
OPTIMISTIC = "LCM, optimistic"  # best epoch on the test fold
SCRATCH = "LCM from scratch"
CONFOUNDS = "confounds alone"  # age, sex, motion and site, without FC
CONSTANT = {"classification": "majority", "regression": "mean"}  # predicts the same for every subject

METRIC_TITLES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "f1": "F1 (weighted)",
    "f1_positive": "F1 (positive class)",
    "roc_auc": "ROC AUC",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "brier": "Brier score",
    "ece": "expected calibration error",
    "mae": "mean absolute error",
    "rmse": "root mean squared error",
    "r2": "R²",
    "pearson_r": "Pearson r",
}
# What a table shows unless it is asked for more; the first that the results have also makes the summary sentence.
HEADLINE_METRICS = ("roc_auc", "accuracy", "balanced_accuracy", "f1", "mae", "r2", "pearson_r")
# What is shown of every site and sex: one number per kind of task, which no class balance or unit distorts.
MAIN_METRICS = ("roc_auc", "pearson_r")
ERRORS = ("mae", "rmse", "brier", "ece")  # lower is better
METRICS_WITH_UNIT = ("mae", "rmse")  # in the unit of the target, where two decimals say enough
MEAN_OF_GROUPS = "(mean, weighted by people)"
UNDEFINED = "undefined"


@dataclass
class Score:
    """One metric of one model; NaN where it is undefined.

    Args:
        mean, std (`float`): over folds; `std` with n - 1 in the denominator.
        per_fold (`list[float]`): in the order of repeats and folds.
        pooled (`float`, *optional*): of the predictions of all folds together, the mean over repeats.
        interval (`tuple[float, float]`, *optional*): 95 % bootstrap interval of `pooled`.
        p_value (`float`, *optional*): share of permuted labels that score as well.
        permuted_mean (`float`, *optional*): mean score with permuted labels.
    """

    mean: float
    std: float
    per_fold: list[float]
    pooled: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    permuted_mean: float | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Score":
        """JSON has no NaN: a number that is written as null is undefined."""
        optional = {name: _number(content[name]) for name in ("pooled", "p_value", "permuted_mean") if name in content}
        per_fold = [_number(value) for value in content.get("per_fold") or []]
        mean, std = _number(content["mean"]), _number(content.get("std"))
        return cls(mean, std, per_fold, interval=_ends(content.get("interval")), **optional)

    def to_json(self) -> dict[str, Any]:
        """Without what was not computed."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass
class Difference:
    """LCM beside the best of the linear models, on the same predictions of the same subjects.

    Which one is best is seen on the test subjects, in its favour.

    Args:
        baseline (`str`): the linear model.
        metric (`str`): ROC AUC, or Pearson r.
        value (`float`): LCM's pooled score minus the baseline's.
        sentence (`str`): all this in words.
        interval (`tuple[float, float]`, *optional*): 95 % paired bootstrap interval over subjects.
        verdict (`str`, *optional*): "ahead", "level" or "behind".
    """

    baseline: str
    metric: str
    value: float
    sentence: str
    interval: tuple[float, float] | None = None
    verdict: str | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Difference":
        """Read what `metrics.json` holds."""
        return cls(
            content["baseline"],
            content["metric"],
            _number(content["value"]),
            content["sentence"],
            _ends(content.get("interval")),
            content.get("verdict"),
        )


@dataclass
class Decisions:
    """What a model decides in every test fold with a threshold from other subjects; both errors cost alike.

    Args:
        threshold (`float`): probability of the positive label from which it is decided for; mean over folds.
        sensitivity, specificity, balanced_accuracy (`float`): of the decisions of all folds, mean over repeats.
    """

    threshold: float
    sensitivity: float
    specificity: float
    balanced_accuracy: float


Models = dict[str, dict[str, Score]]  # by model and metric


@dataclass
class Group:
    """Scores within one site or sex.

    Args:
        n_subjects (`int`): subjects in it.
        models (`dict[str, dict[str, float]]`): pooled scores by model and metric.
    """

    n_subjects: int
    models: dict[str, dict[str, float]]


@dataclass
class TaskResults:
    """What was found for one predicted variable.

    Args:
        title (`str`): of its report.
        protocol (`dict`): how the numbers came about: `task`, `labels`, `positive` and words.
        n_subjects, n_scans (`int`): who was tested.
        models (`dict[str, dict[str, Score]]`): by model and metric; the order is that of the tables.
        chance (`dict[str, float]`): metrics without any knowledge of a subject.
        groups (`dict[str, dict[str, Group]]`): by column (site, sex) and value; the last entry is their mean.
        best_layers (`list[int]`): of every fold, the layer (from 0) with the lowest loss when pretraining ended.
        members (`list[list[dict[str, float]]]`): of an ensemble, metrics by fold and member.
        external (`dict[str, TaskResults]`): by data set that was only predicted.
        notes (`list[str]`): what a reader has to know.
        difference (`Difference`, *optional*): LCM beside the best linear model, where there is one.
        decisions (`dict[str, Decisions]`): of two labels, by model: what a threshold from other subjects decides.
    """

    title: str
    protocol: dict[str, Any]
    n_subjects: int
    models: Models
    n_scans: int | None = None
    chance: dict[str, float] = field(default_factory=dict)
    groups: dict[str, dict[str, Group]] = field(default_factory=dict)
    best_layers: list[int] = field(default_factory=list)
    members: list[list[dict[str, float]]] = field(default_factory=list)
    external: dict[str, "TaskResults"] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    difference: Difference | None = None
    decisions: dict[str, Decisions] = field(default_factory=dict)

    @property
    def main_metric(self) -> str:
        """ROC AUC of a category, Pearson r of a number."""
        return next(name for name in MAIN_METRICS if name in self.models[LCM])

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "TaskResults":
        """Read what [`to_json`] wrote; what is not known is left out.

        Raises:
            ValueError: a part without which nothing can be shown is missing.
        """
        _require(content, ("title", "protocol", "n_subjects", "models"))
        models = {
            model: {metric: Score.from_json(score) for metric, score in scores.items()}
            for model, scores in content["models"].items()
        }
        groups = {
            column: {
                value: Group(group["n_subjects"], {name: _numbers(part) for name, part in group["models"].items()})
                for value, group in values.items()
            }
            for column, values in (content.get("groups") or {}).items()
        }
        return cls(
            content["title"],
            dict(content["protocol"]),
            content["n_subjects"],
            models,
            content.get("n_scans"),
            _numbers(content.get("chance") or {}),
            groups,
            list(content.get("best_layers") or []),
            [[_numbers(member) for member in fold] for fold in content.get("members") or []],
            {name: cls.from_json(found) for name, found in (content.get("external") or {}).items()},
            list(content.get("notes") or []),
            None if content.get("difference") is None else Difference.from_json(content["difference"]),
            {name: Decisions(**_numbers(found)) for name, found in (content.get("decisions") or {}).items()},
        )

    def to_json(self) -> dict[str, Any]:
        """As in `metrics.json`."""
        content = {
            **vars(self),
            "models": {
                model: {metric: score.to_json() for metric, score in scores.items()}
                for model, scores in self.models.items()
            },
            "groups": {
                column: {value: vars(group) for value, group in values.items()}
                for column, values in self.groups.items()
            },
            "external": {name: found.to_json() for name, found in self.external.items()},
            "difference": self.difference and vars(self.difference),
            "decisions": {model: vars(found) for model, found in self.decisions.items()},
        }
        optional = ("members", "external", "difference", "decisions")
        return {name: value for name, value in content.items() if value or name not in optional}


@dataclass
class Results:
    """What an evaluation found, by task.

    Args:
        title (`str`): of the evaluation.
        protocol (`dict`): what all tasks have in common.
        n_subjects, n_scans (`int`): the tested cohort.
        tasks (`dict[str, TaskResults]`): by the variable's name.
        settings (`dict`): of both stages.
        seconds (`float`, *optional*): how long it took.
    """

    title: str
    protocol: dict[str, Any]
    n_subjects: int
    tasks: dict[str, TaskResults]
    n_scans: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Results":
        """Read what [`to_json`] wrote, or the results of a single task as earlier versions wrote them.

        Raises:
            ValueError: a part without which nothing can be shown is missing.
        """
        _require(content, ("title", "protocol", "n_subjects"))
        if "tasks" not in content:
            content = _one_of_many(content)
        tasks = {name: TaskResults.from_json(found) for name, found in content["tasks"].items()}
        return cls(
            content["title"],
            dict(content["protocol"]),
            content["n_subjects"],
            tasks,
            content.get("n_scans"),
            dict(content.get("settings") or {}),
            content.get("seconds"),
        )

    def to_json(self) -> dict[str, Any]:
        """As in `metrics.json`."""
        return vars(self) | {"tasks": {name: found.to_json() for name, found in self.tasks.items()}}

    @classmethod
    def load(cls, path: str | Path) -> "Results":
        """Read a `metrics.json`, of this version or an earlier one.

        Raises:
            ValueError: the file cannot be read, or is no `metrics.json` of training.evaluate.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls.from_json(content)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            reason = str(error) if isinstance(error, (OSError, ValueError)) else f"it has another form, {error}"
            raise ValueError(f"{path} cannot be read as the metrics.json of training.evaluate: {reason}") from error

    def save(self, path: str | Path) -> None:
        """Write a `metrics.json`, atomically."""
        write_json(path, self.to_json())


def _one_of_many(content: Mapping[str, Any]) -> dict[str, Any]:
    """The results of a single task, which once stood at the top, as those of one task among others."""
    own = ("task", "labels", "positive")
    return {
        "title": content["title"],
        "protocol": {name: value for name, value in content["protocol"].items() if name not in own},
        "n_subjects": content["n_subjects"],
        "n_scans": content.get("n_scans"),
        "tasks": {content["protocol"].get("task", ""): content},
        "settings": content.get("settings"),
        "seconds": content.get("seconds"),
    }


def _require(content: Mapping[str, Any], names: tuple[str, ...]) -> None:
    missing = [name for name in names if not content.get(name)]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}.")


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _ends(interval: Sequence[float | None] | None) -> tuple[float, float] | None:
    return None if interval is None else (_number(interval[0]), _number(interval[1]))


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: _number(value) for name, value in values.items()}


def number_text(metric: str, value: float | None) -> str:
    """A score with as many decimals as make sense for the metric."""
    if is_undefined(value):
        return UNDEFINED
    return f"{value:.2f}" if metric in METRICS_WITH_UNIT else f"{value:.3f}"


def is_undefined(value: float | None) -> bool:
    """Whether a score has no value; JSON writes NaN as null."""
    return value is None or math.isnan(value)
