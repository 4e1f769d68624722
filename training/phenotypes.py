"""Phenotypes as people write them -> clean columns: numbers out of "24,5", "45-49", "90+", labels out of "male "."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from modeling_lcm.bei_vocabulary import BEIVariable

from .sources.tables import number_of


_NUMBER = r"[+-]?\d+(?:[.,]\d+)?(?:[eE][+-]?\d+)?"
_UNIT = r"\s*(?:y|yr|yrs|year|years|y\.?o\.?|a|jahre?)?\.?"
_PLAIN = re.compile(rf"(?P<number>{_NUMBER})", re.ASCII)
_WITH_UNIT = re.compile(rf"(?P<number>\d+(?:[.,]\d+)?){_UNIT}", re.IGNORECASE)
_RANGE = re.compile(
    rf"(?P<low>\d+(?:[.,]\d+)?)\s*(?:-|\u2013|\u2014|to)\s*(?P<high>\d+(?:[.,]\d+)?){_UNIT}", re.IGNORECASE
)
_BOUND = re.compile(
    rf"(?:(?:>=?|<=?|≥|≤)\s*(?P<after>\d+(?:[.,]\d+)?)|(?P<before>\d+(?:[.,]\d+)?)\s*\+){_UNIT}", re.IGNORECASE
)
# A text column in which at least this share are numbers is a column of numbers with some unreadable cells.
_MOSTLY_NUMBERS = 0.5


@dataclass(frozen=True)
class Column:
    """How one phenotype is found in a table and read.

    Args:
        variable (`BEIVariable`): name, kind, labels, aliases, unit and default.
        column (`str`): its name in the table.
        missing (`tuple[str, ...]`): further spellings of "not recorded" in this column, such as "-9999".
        low (`float`, *optional*): smallest value that is believed, in the variable's unit.
        high (`float`, *optional*): largest one.
        exclude (`tuple[str, ...]`): spellings whose rows are left out of the data set, by rule.
        factor (`float`): multiplies numbers, e.g. 1/12 for ages in months.
        value (`str`, *optional*): what every row has, instead of a column.
    """

    variable: BEIVariable
    column: str
    missing: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    exclude: tuple[str, ...] = ()
    factor: float = 1.0
    value: str | None = None


@dataclass(frozen=True)
class Problem:
    """A cell that could not be used; its value became missing.

    Args:
        row (`int`): position in the table.
        line (`int`): line in the file.
        column (`str`): column of the table.
        reason (`str`): what is wrong with it.
    """

    row: int
    line: int
    column: str
    reason: str


@dataclass
class Cleaned:
    """Clean phenotypes.

    Args:
        table (`pd.DataFrame`): one column per phenotype: float64 or int64 numbers, or text; missing = None or NaN.
        problems (`list[Problem]`): cells that could not be used.
        remarks (`list[str]`): what was interpreted, with counts.
    """

    table: pd.DataFrame
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def parse_number(text: str) -> tuple[float, str]:
    """Read a number as it may be written in a phenotype table.

    Args:
        text (`str`): such as "24.5", "24,5", "45-49" (its middle, 47), "90+" and ">89" (the bound), "31 years".

    Returns:
        The number, and how it was read: "" as it stands, "range" or "bound".

    Raises:
        ValueError: it is none of these.

    Example:
        >>> parse_number("45-49")
        (47.0, 'range')
    """
    if _PLAIN.fullmatch(text):
        return number_of(text), ""
    if match := _RANGE.fullmatch(text):
        low, high = number_of(match["low"]), number_of(match["high"])
        if low > high:
            raise ValueError(f"the range {text!r} ends before it begins")
        return (low + high) / 2, "range"
    if match := _BOUND.fullmatch(text):
        return number_of(match["after"] or match["before"]), "bound"
    if match := _WITH_UNIT.fullmatch(text):
        return number_of(match["number"]), ""
    raise ValueError(f"{text!r} is no number (ranges such as 45-49 and bounds such as 90+ are understood)")


def clean_columns(raw: pd.DataFrame, columns: Sequence[Column]) -> Cleaned:
    """Clean declared phenotypes.

    Args:
        raw (`pd.DataFrame`): text cells, indexed by line in the file.
        columns (`Sequence[Column]`): what is wanted.

    Returns:
        The phenotypes, named as the variables; a cell that cannot be used is missing and listed as a problem.
    """
    result = Cleaned(pd.DataFrame(index=range(len(raw))))
    for column in columns:
        read = _read_number if column.variable.kind == "continuous" else _read_label
        values, known = [], {}
        for row, text in enumerate(
            [column.value] * len(raw) if column.value is not None else raw[column.column].tolist()
        ):
            if text is None or text in column.missing:
                values.append((None, ""))
                continue
            if text not in known:
                known[text] = _try(read, column, text)
            value, how, reason = known[text]
            if reason:
                result.problems.append(Problem(row, int(raw.index[row]), column.column, reason))
            values.append((value, how))
        kept = [value for value, _ in values]
        is_number = column.variable.kind == "continuous"
        result.table[column.variable.name] = pd.Series(kept, dtype="float64" if is_number else "object")
        result.remarks += _remarks(column.column, [how for _, how in values])
    return result


def _try(read: Any, column: Column, text: str) -> tuple[Any, str, str]:
    try:
        value, how = read(column, text)
    except ValueError as error:
        return None, "", str(error)
    return value, how, ""


def _read_number(column: Column, text: str) -> tuple[float, str]:
    value, how = parse_number(text)
    value *= column.factor
    if (column.low is not None and value < column.low) or (column.high is not None and value > column.high):
        raise ValueError(
            f"{text!r} is outside {column.low:g} to {column.high:g} {column.variable.unit or ''}".rstrip()
        )
    return value, how


def _read_label(column: Column, text: str) -> tuple[str, str]:
    if text in column.exclude:
        return text, ""
    index = column.variable.parse([text], lambda _: "value")[0]
    return column.variable.labels[int(index)], ""


def _remarks(name: str, how: Sequence[str]) -> list[str]:
    meaning = {"range": "ranges, replaced by their middle", "bound": "bounds such as 90+, replaced by the bound"}
    counts = Counter(how)
    return [f"{name}: {counts[kind]} values were {text}" for kind, text in meaning.items() if counts[kind]]


def infer_columns(raw: pd.DataFrame, wanted: Mapping[str, str]) -> Cleaned:
    """Clean phenotypes of which nothing was declared.

    A column becomes numbers when most of its values are; otherwise labels, of which spellings that differ in case only
    are joined to the most frequent one.

    Args:
        raw (`pd.DataFrame`): text cells, indexed by line in the file.
        wanted (`Mapping[str, str]`): name in the data set -> column of the table.
    """
    result = Cleaned(pd.DataFrame(index=range(len(raw))))
    for name, column in wanted.items():
        texts = raw[column].tolist()
        recorded = [text for text in texts if text is not None]
        numbers = sum(_is_number(text) for text in recorded)
        if recorded and numbers > _MOSTLY_NUMBERS * len(recorded):
            variable = Column(BEIVariable(name, "continuous"), column)
            part = clean_columns(raw, [variable])
            values = part.table[name]
            if values.notna().all() and all(re.fullmatch(r"[+-]?\d+", text) for text in recorded):
                values = values.astype("int64")
            result.table[name] = values
            result.problems += part.problems
            result.remarks += part.remarks
        else:
            spellings, joined = _join_cases(recorded)
            result.table[name] = pd.Series([None if t is None else spellings[t] for t in texts], dtype="object")
            result.remarks += [f"{column}: {text}" for text in joined]
    return result


def _is_number(text: str) -> bool:
    try:
        parse_number(text)
    except ValueError:
        return False
    return True


def _join_cases(texts: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Spelling to use for every text, and what was joined."""
    counts = Counter(texts)
    best: dict[str, str] = {}
    for text, _ in sorted(counts.items(), key=lambda item: -item[1]):
        best.setdefault(text.casefold(), text)
    spellings = {text: best[text.casefold()] for text in counts}
    joined = [
        f"{text!r} read as {chosen!r} ({counts[text]} rows)" for text, chosen in spellings.items() if text != chosen
    ]
    return spellings, joined
