"""BEI vocabulary: the non-imaging variables of a model, how their values are spelt, and reading them from tables.

A vocabulary is an ordered list of brain-environment-interaction (BEI) variables: one token per label of a categorical
variable, one token per continuous variable. Everything here works on plain values and NumPy arrays.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from .bei_records import MISSING_TEXTS, RecordTable, measurement, number_in, plain_value
from .loss_lcm import IGNORE_INDEX


IDENTIFIER_COLUMNS = frozenset({"participant_id", "session_id", "scan_id", "subject", "subject_id"})
MAX_CATEGORICAL_NUMBERS = 10  # a numeric column with more distinct values is taken for a measurement
MAX_INFERRED_LABELS = 50  # a text column with more distinct values is taken for an identifier or free text
# How the label of a comparison group begins: of two labels, the other one is what a study looks for.
_REFERENCE = re.compile(
    r"(?:healthy\w*|controls?|unaffected|normal|typical\w*|negative|false|absent|placebo|non\w*|no|not|without|hcs?|cn|"
    r"nc|con|ctrl|tdc?)(?![a-z])",
    re.IGNORECASE,
)


@dataclass
class BEIVariable:
    """One non-imaging variable of the vocabulary.

    Args:
        name: Column of the record, e.g. `"sex"`; without `"="`, which separates name and label in a token.
        kind: `"categorical"` (one token per label) or `"continuous"` (one token).
        labels: Labels in token order, two or more; empty for a continuous variable.
        default: Pseudo-label for subjects of whom nothing is recorded (e.g. `"rest"`, `"healthy"`); only on request.
        positive: The label that sensitivity, F1 and ROC AUC speak of where two labels are told apart; the last one of
            two if `None`.
        aliases: Other spellings, `{"male": "M", "1": "M"}`.
        unit: Unit of a continuous variable, e.g. `"years"`.
        mean: Subtracted from a continuous value before training, in `unit`, or of its logarithm.
        std: Divides a continuous value before training, in `unit`, or of its logarithm.
        loss_weight: Weight of the variable in the multitask loss.
        description: Free text for readers.
        log: Whether the natural logarithm of a continuous value is learnt; for ages from childhood on, differences
            then count by their share of the age.

    Raises:
        ValueError: The fields contradict each other; the message names the variable and the value.
    """

    name: str
    kind: str
    labels: list[str] = field(default_factory=list)
    default: str | None = None
    positive: str | None = None
    aliases: dict[str, str] = field(default_factory=dict)
    unit: str | None = None
    mean: float = 0.0
    std: float = 1.0
    loss_weight: float = 1.0
    description: str = ""
    log: bool = False

    def __post_init__(self) -> None:
        self._require(not isinstance(self.labels, str), f"labels must be a list, got the text {self.labels!r}")
        # YAML and JSON bring labels such as 0 or 1 as numbers; everything below compares stripped text.
        self.labels = [str(label).strip() for label in self.labels]
        self.default = None if self.default is None else str(self.default).strip()
        self.positive = None if self.positive is None else str(self.positive).strip()
        if not isinstance(self.name, str) or not self.name.strip() or "=" in self.name:
            raise ValueError(f"A BEI variable needs a non-empty name without '=', got {self.name!r}.")
        kinds = ("categorical", "continuous")
        self._require(self.kind in kinds, f"kind must be one of {', '.join(kinds)}, got {self.kind!r}")
        self._require(0 <= self.loss_weight < math.inf, f"loss_weight must be at least 0, got {self.loss_weight}")
        if self.kind == "categorical":
            self._check_categorical()
        else:
            self._check_continuous()

    def _check_continuous(self) -> None:
        has_labels = self.labels or self.aliases or self.default is not None or self.positive is not None
        self._require(not has_labels, "a continuous variable has no labels, aliases or default, nor a positive label")
        valid_scaling = math.isfinite(self.mean) and 0 < self.std < math.inf
        self._require(valid_scaling, f"needs a finite mean and a std above 0, got {self.mean} and {self.std}")

    def _check_categorical(self) -> None:
        distinct = len(set(self.labels)) == len(self.labels) > 1
        self._require(distinct, f"a categorical variable needs two or more different labels, got {self.labels}")
        scaled = (self.mean, self.std, self.log) != (0, 1, False)
        self._require(not scaled, "mean and std are for continuous variables only, as is log; remove them")
        for what, label in (("default", self.default), ("positive", self.positive)):
            known = label is None or label in self.labels
            self._require(known, f"{what} {label!r} is not one of its labels {self.labels}")
        self._normalize_aliases()
        unusable = [text for text in (*self.labels, *self.aliases) if text.lower() in MISSING_TEXTS]
        self._require(not unusable, f"{unusable} reads as a missing value; write 'not applicable', for example")

    def _require(self, valid: bool, problem: str) -> None:
        if not valid:
            raise ValueError(f"BEI variable {self.name!r}: {problem}.")

    def _normalize_aliases(self) -> None:
        aliases: dict[str, str] = {}
        for key, target in self.aliases.items():
            alias, label = str(key).strip(), str(target).strip()
            self._require(label in self.labels, f"alias {alias!r} points to {label!r}, not one of {self.labels}")
            other = alias if alias in self.labels else aliases.get(alias, label)
            self._require(other == label, f"alias {alias!r} stands for two labels, {other!r} and {label!r}")
            aliases[alias] = label
        self.aliases = {alias: label for alias, label in aliases.items() if alias != label}

    @property
    def tokens(self) -> list[str]:
        """Token texts in order: `"sex=M"`, `"sex=F"`, or `"age"`."""
        return [f"{self.name}={label}" for label in self.labels] or [self.name]

    @property
    def positive_label(self) -> str | None:
        """The positive one of two labels; `None` for more labels, or none."""
        if len(self.labels) != 2:
            return None
        return self.labels[1] if self.positive is None else self.positive

    @property
    def task_settings(self) -> dict[str, Any]:
        """What an [`LCMConfig`] says of the variable as its downstream task."""
        names = self.labels or [self.name]
        return {
            "task_variable": self.name,
            "problem_type": "single_label_classification" if self.labels else "regression",
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
        }

    def label_of(self, value: Any) -> str:
        """The label that a recorded value stands for, in any spelling that [`parse`] takes; categorical only.

        Raises:
            ValueError: it is none of them; the message names those that are.
        """
        plain = plain_value(value)
        if plain is None:
            raise ValueError("nothing is recorded")
        return self.labels[self._label_finder()(plain)]

    def _label_finder(self) -> Callable[[Any], int]:
        """Function from a recorded value to its label's index: as spelt, in another case, or as an equal number."""
        labels = {label: index for index, label in enumerate(self.labels)}
        exact: dict[Any, int] = labels | {alias: labels[label] for alias, label in self.aliases.items()}
        any_case = _unambiguous((text.casefold(), index) for text, index in exact.items())
        as_number = _unambiguous((number_in(text), index) for text, index in exact.items())

        def find(value: Any) -> int:
            text = str(value)
            for table, key in ((exact, text), (any_case, text.casefold()), (as_number, number_in(text))):
                if key in table:
                    return table[key]
            aliases = "".join(f", {alias} (= {label})" for alias, label in self.aliases.items())
            raise ValueError(
                f"unknown label {text!r}. Known labels: {', '.join(self.labels)}{aliases}. Correct the record, or "
                f"declare the label or an alias in the vocabulary."
            )

        return find

    def knows(self, value: Any) -> bool:
        """Whether a recorded value is one of the labels, in any spelling that [`parse`] takes; categorical only."""
        try:
            self.label_of(value)
        except (TypeError, ValueError):
            return False
        return True

    def parse(self, values: Sequence[Any], where: Callable[[int], str]) -> np.ndarray:
        """Read one column of records as float64 `(batch,)`: label index or value in `unit`, NaN if not recorded.

        Args:
            values: One text, number or missing marker per subject.
            where: Names a row in error messages.

        Raises:
            ValueError: Unknown label, or a continuous value that is not a finite number.
            TypeError: A value that is neither text nor a number.
        """
        convert = measurement if self.kind == "continuous" else self._label_finder()
        parsed = np.full(len(values), np.nan)
        for row, raw in enumerate(values):
            try:
                value = plain_value(raw)
                if value is not None:
                    parsed[row] = convert(value)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{where(row)}, BEI variable {self.name!r}: {error}") from None
        return parsed

    def encode(self, values: Sequence[Any], where: Callable[[int], str], pseudo_labels: bool = False) -> np.ndarray:
        """Turn one column into float32 `(batch,)` training labels: like `parse`, but scaled and -100 if missing."""
        parsed = self.parse(values, where)
        for row in np.flatnonzero(parsed <= 0) if self.log else ():
            raise ValueError(
                f"{where(int(row))}, BEI variable {self.name!r}: {parsed[row]:g} has no logarithm, which is what is "
                "learnt of it; correct the record."
            )
        with np.errstate(over="ignore"):
            labels = self.scaled(parsed).astype(np.float32)
        for row in np.flatnonzero(np.isinf(labels) | (labels == IGNORE_INDEX)):
            raise ValueError(
                f"{where(int(row))}, BEI variable {self.name!r}: {parsed[row]:g} is {labels[row]:g} after scaling "
                f"with mean {self.mean:g} and std {self.std:g}, but labels are finite and -100 marks missing ones; "
                f"correct the record or the scaling."
            )
        filler = self.labels.index(self.default) if pseudo_labels and self.default is not None else IGNORE_INDEX
        return np.where(np.isnan(parsed), np.float32(filler), labels)

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Continuous values in `unit` as they are learnt: scaled, or the scaled logarithm."""
        return ((np.log(values) if self.log else values) - self.mean) / self.std

    def values(self, logits: np.ndarray) -> np.ndarray:
        """Continuous values in `unit` of their token's logits."""
        unscaled = logits * self.std + self.mean
        return np.exp(unscaled) if self.log else unscaled

    def decode(self, logits: np.ndarray, prevalence: np.ndarray | None = None) -> list[dict[str, Any]]:
        """Turn the variable's own logits into one readable entry per scan.

        Args:
            logits: `(batch, tokens of the variable)`.
            prevalence: Shares of the labels `(batch, labels)` where the logits speak of labels that are equally
                frequent: the label is theirs, probabilities are those at these shares.
        """
        if self.kind == "continuous":
            return [{"value": value, "unit": self.unit} for value in self.values(logits[:, 0]).tolist()]
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        best = odds.argmax(axis=1)
        odds = odds if prevalence is None else odds * prevalence
        entries = []
        for row, first in zip((odds / odds.sum(axis=1, keepdims=True)).tolist(), best.tolist(), strict=True):
            probabilities = dict(zip(self.labels, row, strict=True))
            label = self.labels[first]
            entries.append({"label": label, "probability": probabilities[label], "probabilities": probabilities})
        return entries


def as_variables(variables: Iterable[BEIVariable | Mapping[str, Any]]) -> list[BEIVariable]:
    """Check and copy a vocabulary given as `BEIVariable`s or as dictionaries of their fields.

    Raises:
        ValueError: A dictionary without name or kind or with an unknown field, or two variables of one name.
    """
    known = [item.name for item in fields(BEIVariable)]
    checked: list[BEIVariable] = []
    for variable in variables:
        if not isinstance(variable, (BEIVariable, Mapping)):
            raise ValueError(f"A BEI variable is a table of settings (name, kind, ...), got {variable!r:.100}.")
        settings = asdict(variable) if isinstance(variable, BEIVariable) else dict(variable)
        if not {"name", "kind"} <= set(settings) <= set(known):
            raise ValueError(
                f"A BEI variable needs name and kind, and may have {', '.join(known[2:])}; got {settings}."
            )
        if any(settings["name"] == other.name for other in checked):
            raise ValueError(f"Two BEI variables are called {settings['name']!r}; give each its own name.")
        try:
            checked.append(BEIVariable(**settings))
        except (TypeError, AttributeError) as error:  # a number where a list is needed, for example
            raise ValueError(
                f"BEI variable {settings['name']!r}: a setting is of the wrong kind ({error})."
            ) from error
    return checked


def infer_variables(table: RecordTable, columns: Sequence[str] | None = None) -> list[BEIVariable]:
    """Propose a vocabulary for a table: see `BEITokenizer.from_records`."""
    chosen = [name for name in table.names if name not in IDENTIFIER_COLUMNS] if columns is None else columns
    absent = [name for name in chosen if name not in table.names]
    if absent:
        raise ValueError(
            f"The records have no column {', '.join(absent)}; they have {', '.join(map(str, table.names))}."
        )
    variables = []
    for name in chosen:
        values = {value for value in map(plain_value, table.column(name)) if value is not None}
        numeric = all(number_in(str(value)) is not None and not isinstance(value, bool) for value in values)
        texts = {str(int(value) if isinstance(value, float) and value.is_integer() else value) for value in values}
        if columns is None and len(texts) < 2:
            continue  # a constant or empty column tells nothing
        if numeric and len(values) > MAX_CATEGORICAL_NUMBERS:
            variables.append(BEIVariable(name, "continuous"))
            continue
        if columns is None and len(texts) > MAX_INFERRED_LABELS:
            raise ValueError(
                f"Column {name!r} has {len(texts)} different texts, more than a categorical variable should have "
                f"({MAX_INFERRED_LABELS}); name the columns that are wanted with columns=[...]."
            )
        labels = sorted(texts, key=lambda text: (number_in(text) if numeric else 0.0, text))
        variables.append(BEIVariable(name, "categorical", comparison_first(labels)))
    return variables


def comparison_first(labels: Sequence[str]) -> list[str]:
    """Labels in their order, but of two the comparison group's first, such as `control`: the last one is positive."""
    found = [label for label in labels if _REFERENCE.match(label)]
    if len(labels) == 2 and len(found) == 1:
        return sorted(labels, key=lambda label: label != found[0])
    return list(labels)


def _unambiguous(pairs: Iterable[tuple[Any, int]]) -> dict[Any, int]:
    """Look-up table without the keys that are `None` or stand for two labels."""
    targets: dict[Any, set[int]] = {}
    for key, index in pairs:
        targets.setdefault(key, set()).add(index)
    return {key: min(indices) for key, indices in targets.items() if len(indices) == 1 and key is not None}


def read_vocabulary(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Variables of a saved vocabulary, as dictionaries of their fields.

    Args:
        path (`str` or `os.PathLike`): a `bei_vocab.json`.

    Raises:
        ValueError: it is not a complete vocabulary of a known version.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a complete JSON file ({error}); fetch or save it again.") from error
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != ("bei-vocabulary", 1):
        raise ValueError(f"{path} is not a BEI vocabulary of version 1; it may come from another or a newer package.")
    if not isinstance(content.get("variables"), list):
        raise ValueError(f"{path} has no list of variables: it is damaged; fetch or save it again.")
    return content["variables"]
