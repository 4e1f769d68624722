"""Labels of variables: their order, which of two is positive, and what is shown of them before training."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from modeling_lcm import BEITokenizer, BEIVariable

from ..storage.manifest import require_intact
from .cohort import is_phenotype


MOST_SHOWN = 10  # labels of a variable; more are no diagnosis
_MOST_NUMBERS = 5  # different whole numbers that may be labels


def load_vocabulary(place: str | Path) -> list[BEIVariable]:
    """The variables of a saved vocabulary.

    Args:
        place (`str` or `Path`): a data set's `vocabulary/`, a checkpoint, or a repository of the Hub.

    Raises:
        ValueError: it has changed since it was written, or is none.
    """
    if Path(place).is_dir():
        require_intact(place)
    return BEITokenizer.from_pretrained(place).variables


def infer_variable(records: pd.DataFrame, name: str, kind: str, labels: list[str] | None = None) -> BEIVariable:
    """The BEI variable of a phenotype column.

    Args:
        records (`pd.DataFrame`): training records.
        name (`str`): the column.
        kind (`str`): "categorical" or "continuous".
        labels (`list[str]`, *optional*): labels in token order; default: those in the records, sorted, of two the
            comparison group's first.

    Raises:
        ValueError: an unknown kind, a column with a single value, or one with too many values to be labels.
    """
    if kind not in ("categorical", "continuous"):
        raise ValueError(f"kind must be categorical or continuous, got {kind!r}.")
    if kind == "continuous":
        return BEIVariable(name, kind, unit="years" if name == "age" else None)
    if labels is not None:
        return BEIVariable(name, kind, labels)
    variable = BEITokenizer.from_records(records, columns=[name]).variables[0]
    if variable.kind != kind:
        raise ValueError(
            f"The column {name!r} holds numbers with many different values: declare it continuous, or list its labels."
        )
    return variable


def read_positive(entries: Iterable[str], labels: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The setting `positive`: the positive label of each variable that it names.

    Args:
        entries (`Iterable[str]`): VARIABLE=LABEL, or LABEL where one variable alone has it.
        labels (`Mapping[str, Sequence[str]]`): labels of the categorical variables that may be meant.

    Raises:
        ValueError: no or several variables have the label.
    """
    found = {}
    for entry in entries:
        name, sign, label = entry.partition("=")
        named = [name] if sign and name in labels else list(labels)
        wanted = (label if sign and name in labels else entry).strip()
        having = [each for each in named if wanted.casefold() in (text.casefold() for text in labels[each])]
        if len(having) != 1:
            known = "; ".join(f"{each}: {', '.join(labels[each])}" for each in (having or named)[:4])
            problem = "several variables have this label" if having else "no variable has this label"
            raise ValueError(f"positive is {entry!r}, but {problem}; give VARIABLE=LABEL ({known or 'no labels'}).")
        found[having[0]] = next(text for text in labels[having[0]] if text.casefold() == wanted.casefold())
    return found


def with_positive(variable: BEIVariable, label: str | None, keep_order: bool = False) -> BEIVariable:
    """A variable with one of its two labels as the positive one; the last one, unless its tokens keep their order.

    Args:
        variable (`BEIVariable`): the variable.
        label (`str`, *optional*): its positive label, in any spelling; `None` leaves the variable as it is.
        keep_order (`bool`): whether the labels' tokens exist already. There may be more than two of them then: which
            ones the data have shows later.

    Raises:
        ValueError: it has no such label, or not two labels.
    """
    if label is None:
        return variable
    if (len(variable.labels) != 2 and not (variable.labels and keep_order)) or not variable.knows(label):
        raise ValueError(
            f"positive is {label!r}, but {variable.name!r} has "
            f"{'the labels ' + ', '.join(variable.labels) if variable.labels else 'no labels'}: needed is one of two "
            "labels. Name the two that are wanted with labels."
        )
    positive = variable.label_of(label)
    order = variable.labels if keep_order else sorted(variable.labels, key=lambda text: text == positive)
    return replace(variable, labels=order, positive=positive)


def label_lines(variables: Iterable[BEIVariable], table: pd.DataFrame, setting: str = "--positive LABEL") -> list[str]:
    """What is shown of the labels before training: how many subjects have each, and which one is positive.

    Args:
        variables (`Iterable[BEIVariable]`): the variables; those without labels are left out.
        table (`pd.DataFrame`): training records.
        setting (`str`): what chooses another positive label.
    """
    lines = []
    for variable in variables:
        if not variable.labels or variable.name not in table:
            continue
        values = table[variable.name]
        labels = values.map({each: variable.label_of(each) for each in values.unique() if variable.knows(each)})
        subjects = table["subject_id"].astype(str)
        counts = [
            f"{label} {subjects[labels == label].nunique()}"
            + (" (positive)" if label == variable.positive_label else "")
            for label in variable.labels
        ]
        absent = subjects[~subjects.isin(subjects[labels.notna()])].nunique()
        line = f"{variable.name}, subjects: {', '.join(counts)}" + (f"; {absent} without a label" if absent else "")
        lines.append(line + (f". Another positive label: {setting}" if variable.positive_label else ""))
    return lines


def label_columns(table: pd.DataFrame) -> list[str]:
    """Phenotypes of a data set that may be labels: few different texts, or very few whole numbers."""
    found = []
    for name in filter(is_phenotype, table.columns):
        values = table[name].dropna().unique()
        is_number = pd.api.types.is_numeric_dtype(table[name])
        few = "=" not in name and 1 < len(values) <= (_MOST_NUMBERS if is_number else MOST_SHOWN)
        if few and (not is_number or all(float(value).is_integer() for value in values)):
            found.append(str(name))
    return found


def data_set_labels(table: pd.DataFrame, positive: Mapping[str, str]) -> list[str]:
    """The lines of [`label_lines`] for a data set, as training will see its labels.

    Args:
        table (`pd.DataFrame`): one row per scan.
        positive (`Mapping[str, str]`): declared positive labels, by variable.
    """
    variables = [infer_variable(table, name, "categorical") for name in label_columns(table) if name != "site"]
    known = [
        with_positive(each, positive[each.name])
        if len(each.labels) == 2 and each.name in positive and each.knows(positive[each.name])
        else each
        for each in variables
    ]
    return label_lines(known, table, "--positive VARIABLE=LABEL")
