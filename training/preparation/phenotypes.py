"""Phenotypes as tables have them -> clean columns: numbers out of "24,5", "45-49", "90+", labels out of "male ".

A column is read as a whole: what one cell means often shows in the others only.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd

from modeling_lcm.bei_vocabulary import BEIVariable

from .cells import UNITS, Cell, Style, are_codes, read_cell, usual_unit
from .missing import MissingCodes, confirm, lines_of, outlying_codes, same_code, text_codes


# A text column in which at least this share are numbers is a column of numbers with some unreadable cells.
_MOSTLY_NUMBERS = 0.5
_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_HOW = {"range": "ranges, replaced by their middle", "bound": "bounds such as 90+, replaced by the bound"}


@dataclass(frozen=True)
class Column:
    """How one phenotype is found in a table and read.

    Args:
        variable (`BEIVariable`): name, kind, labels, aliases, unit and default.
        column (`str`): its name in the table.
        missing (`tuple[str, ...]`, *optional*): further spellings of "not recorded" in this column, such as "-9999";
            an empty one says that there are none, however far a value is from the others.
        low (`float`, *optional*): smallest value that is believed, in the variable's unit.
        high (`float`, *optional*): largest one.
        exclude (`tuple[str, ...]`): spellings whose rows are left out of the data set, by rule.
        factor (`float`): multiplies numbers, e.g. 1/12 for ages in months.
        value (`str`, *optional*): what every row has, instead of a column.
    """

    variable: BEIVariable
    column: str
    missing: tuple[str, ...] | None = None
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
        questions (`list[str]`): guesses that the user should confirm, and how.
    """

    table: pd.DataFrame
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)

    def add_notes(self, other: "Cleaned", told: bool = False) -> None:
        """Take over what was noted of another column, unless it was `told` before."""
        if not told:
            self.problems += other.problems
            self.remarks += other.remarks
            self.questions += other.questions


@dataclass
class _Texts:
    """One column of a table while it is read: its cells, and where notes about them go.

    Args:
        name (`str`): column of the table.
        cells (`list[str | None]`): the cells; `None` where nothing is recorded.
        lines (`list[int]`): their lines in the file.
        notes (`Cleaned`): gets problems, remarks and questions.
        certain (`bool`): whether no value is a code but those that were declared.
    """

    name: str
    cells: list[str | None]
    lines: list[int]
    notes: Cleaned
    certain: bool = False

    @property
    def recorded(self) -> list[str]:
        """Cells that hold something."""
        return [cell for cell in self.cells if cell is not None]

    def remark(self, text: str) -> None:
        """Say what was interpreted."""
        self.notes.remarks.append(f"{self.name}: {text}")

    def problem(self, row: int, reason: str) -> None:
        """List a cell that could not be used."""
        self.notes.problems.append(Problem(row, self.lines[row], self.name, reason))

    def drop(self, codes: Sequence[str]) -> None:
        """Empty the cells that hold a declared code."""
        for code in dict.fromkeys(codes):
            spellings = {cell for cell in set(self.recorded) if same_code(cell, code)}
            rows = [row for row, cell in enumerate(self.cells) if cell in spellings]
            for row in rows:
                self.cells[row] = None
            if rows:
                self.remark(f"{_cells(len(rows))} {code}, declared as missing")

    def ask(self, rows: Sequence[int], others: str, is_missing: bool) -> None:
        """Question about cells that probably hold a code; they are emptied if `is_missing`."""
        code = str(self.cells[rows[0]])
        where = f"{self.name}: {_cells(len(rows))} {code} ({lines_of([self.lines[row] for row in rows])})"
        if is_missing:
            for row in rows:
                self.cells[row] = None
            self.notes.questions.append(f"{where}, far from {others}: taken as missing. {confirm(self.name, code)}")
        else:
            self.notes.questions.append(f"{where}, often a code for missing: kept. {confirm(self.name, code)}")


def _cells(count: int) -> str:
    return "1 cell holds" if count == 1 else f"{count} cells hold"


def clean_columns(raw: pd.DataFrame, columns: Sequence[Column], codes: MissingCodes | None = None) -> Cleaned:
    """Clean declared phenotypes.

    Args:
        raw (`pd.DataFrame`): text cells, indexed by line in the file.
        columns (`Sequence[Column]`): what is wanted.
        codes (`MissingCodes`, *optional*): further codes for missing values.

    Returns:
        The phenotypes, named as the variables; a cell that cannot be used is missing and listed as a problem.
    """
    result = Cleaned(pd.DataFrame(index=range(len(raw))))
    for column in columns:
        variable = column.variable
        cells = [column.value] * len(raw) if column.value is not None else raw[column.column].tolist()
        texts = _texts(raw, column.column, variable.name, cells, codes, result)
        texts.drop(column.missing or ())
        texts.certain |= column.missing == ()
        if variable.kind == "continuous":
            unit = variable.unit if column.factor == 1 else None
            values = _read_numbers(texts, _read_cells(texts), unit)
            # A range says already which values are believed.
            has_range = column.low is not None or column.high is not None
            values = _believed(texts, values, column) if has_range else _without_codes(texts, values)
            result.table[variable.name] = pd.Series(values, dtype="float64") * column.factor
        else:
            result.table[variable.name] = pd.Series(_declared_labels(texts, column), dtype="object")
    order = [column.column or column.variable.name for column in columns]
    result.problems.sort(key=lambda problem: (order.index(problem.column), problem.row))
    return result


def infer_columns(raw: pd.DataFrame, wanted: Mapping[str, str], codes: MissingCodes | None = None) -> Cleaned:
    """Clean phenotypes of which nothing was declared.

    A column becomes numbers when most of its values are, and none marks it as one of codes (007) or labels (1a);
    otherwise labels, of which spellings that differ in case only are joined to the most frequent one.

    Args:
        raw (`pd.DataFrame`): text cells, indexed by line in the file.
        wanted (`Mapping[str, str]`): name in the data set -> column of the table.
        codes (`MissingCodes`, *optional*): codes for missing values.
    """
    result = Cleaned(pd.DataFrame(index=range(len(raw))))
    for name, column in wanted.items():
        texts = _texts(raw, column, name, raw[column].tolist(), codes, result)
        cells = _read_cells(texts)
        share = sum(cell is not None for cell in cells) / max(1, len(texts.recorded))
        if share <= _MOSTLY_NUMBERS or _are_labels(texts, cells):
            result.table[name] = pd.Series(_free_labels(texts), dtype="object")
            continue
        values = _read_numbers(texts, cells, "years" if name.casefold() == "age" else None)
        numbers = pd.Series(_without_codes(texts, values), dtype="float64")
        whole = numbers.notna().all() and all(_WHOLE.fullmatch(text) for text in texts.recorded)
        result.table[name] = numbers.astype("int64") if whole else numbers
    return result


def clean_labels(raw: pd.DataFrame, name: str, column: str, codes: MissingCodes | None = None) -> Cleaned:
    """Clean a column that is text whatever it holds, such as the site: without codes for missing values.

    Args:
        raw (`pd.DataFrame`): text cells, indexed by line in the file.
        name (`str`): its name in the data set.
        column (`str`): column of the table.
        codes (`MissingCodes`, *optional*): codes for missing values.
    """
    result = Cleaned(pd.DataFrame(index=range(len(raw))))
    texts = _texts(raw, column, name, raw[column].tolist(), codes, result)
    _find_text_codes(texts)
    result.table[name] = pd.Series(texts.cells, dtype="object")
    return result


def _texts(
    raw: pd.DataFrame, column: str, name: str, cells: list[str | None], codes: MissingCodes | None, notes: Cleaned
) -> _Texts:
    """A column without its declared codes."""
    codes = codes or MissingCodes()
    certain = bool(codes.certain & {column, name})
    texts = _Texts(column or name, list(cells), list(map(int, raw.index)), notes, certain)
    texts.drop(codes.of(column, name))
    return texts


def _read_cells(texts: _Texts) -> list[Cell | None]:
    """What the cells of a column say as numbers; `None` for others."""
    known = {text: read_cell(text) for text in set(texts.recorded)}
    return [None if text is None else known[text] for text in texts.cells]


def _are_labels(texts: _Texts, cells: Sequence[Cell | None]) -> bool:
    """Whether a column that looks like numbers is one of codes or labels; says so."""
    recorded = [cell for cell, text in zip(cells, texts.cells, strict=True) if text is not None]
    reason = are_codes(recorded, texts.recorded)
    if reason:
        texts.remark(f"kept as text, not numbers: {reason}")
    return bool(reason)


def _read_numbers(texts: _Texts, cells: Sequence[Cell | None], unit: str | None) -> list[float | None]:
    """Values of a column; cells that are no numbers are problems.

    Args:
        texts (`_Texts`): the column.
        cells (`Sequence[Cell | None]`): what its cells say.
        unit (`str`, *optional*): unit that the values must be in, where cells say theirs.
    """
    found = [cell for cell in cells if cell is not None]
    style, usual = Style.of(found), usual_unit(found)
    wanted = UNITS.get((unit or "").lower(), unit) or usual
    values: list[float | None] = []
    for row, (text, cell) in enumerate(zip(texts.cells, cells, strict=True)):
        try:
            values.append(None if text is None else _number(text, cell, style, wanted, usual == "%"))
        except ValueError as error:
            texts.problem(row, str(error))
            values.append(None)
    used = [cell for cell, value in zip(cells, values, strict=True) if cell is not None and value is not None]
    how = Counter(cell.how for cell in used)
    for kind, meaning in _HOW.items():
        if how[kind]:
            texts.remark(f"{how[kind]} values were {meaning}")
    if usual not in ("", "years") and usual == wanted:
        texts.remark(f"{sum(cell.unit == usual for cell in used)} values are given in {usual}")
    for text in style.remarks:
        texts.remark(text)
    texts.notes.questions += [
        f"{texts.name}: {text}. If that is wrong, write the table without thousands separators"
        for text in style.doubts
    ]
    return values


def _number(text: str, cell: Cell | None, style: Style, unit: str, with_unit: bool) -> float:
    """Value of one cell; the middle of a range.

    Raises:
        ValueError: it is no number, or one in another unit.
    """
    if cell is None:
        raise ValueError(f"{text!r} is no number (ranges such as 45-49 and bounds such as 90+ are understood)")
    if cell.unit and cell.unit != unit:
        raise ValueError(
            f"{text!r} is in {cell.unit}, needed is {unit or 'a plain number'} (a recipe's factor converts)"
        )
    if with_unit and not cell.unit:
        raise ValueError(f"{text!r} has no %, as the other values have")
    ends = [style.value(number) for number in cell.numbers]
    if ends[0] > ends[-1]:
        raise ValueError(f"the range {text!r} ends before it begins")
    return (ends[0] + ends[-1]) / 2


def _without_codes(texts: _Texts, values: Sequence[float | None]) -> list[float | None]:
    """Values of a column without those that stand out as codes for missing ones."""
    if texts.certain:
        return list(values)
    found = outlying_codes(value for value in values if value is not None)
    rest = [value for value in values if value is not None and not found.get(value)]
    others = f"the others ({min(rest):g} to {max(rest):g})" if rest else "any measurement"
    for code, is_missing in found.items():
        texts.ask([row for row, value in enumerate(values) if value == code], others, is_missing)
    return [None if cell is None else value for cell, value in zip(texts.cells, values, strict=True)]


def _find_text_codes(texts: _Texts) -> None:
    """Empty the cells of a column of labels that stand out as codes for missing ones."""
    recorded = [] if texts.certain else texts.recorded
    if recorded and all(_WHOLE.fullmatch(text) for text in recorded):
        found = outlying_codes(map(float, recorded))
        verdicts = {text: found[float(text)] for text in set(recorded) if float(text) in found}
    else:
        verdicts = dict.fromkeys(text_codes(recorded), True)
    labels = [text for text, _ in Counter(text for text in recorded if text not in verdicts).most_common(2)]
    for code, is_missing in sorted(verdicts.items()):
        rows = [row for row, cell in enumerate(texts.cells) if cell == code]
        texts.ask(rows, f"labels such as {', '.join(labels)}", is_missing)


def _believed(texts: _Texts, values: Sequence[float | None], column: Column) -> list[float | None]:
    """Values of a column; those outside its range are problems."""
    low = -math.inf if column.low is None else column.low
    high = math.inf if column.high is None else column.high
    kept = list(values)
    for row, value in enumerate(values):
        if value is not None and not low <= value * column.factor <= high:
            unit = column.variable.unit or ""
            texts.problem(row, f"{texts.cells[row]!r} is outside {low:g} to {high:g} {unit}".rstrip())
            kept[row] = None
    return kept


def _declared_labels(texts: _Texts, column: Column) -> list[str | None]:
    """Labels of the vocabulary; cells that are none of them are problems."""
    known: dict[str, tuple[str | None, str]] = {}
    kept: list[str | None] = []
    for row, text in enumerate(texts.cells):
        if text is None:
            kept.append(None)
            continue
        if text not in known:
            known[text] = _label(column, text)
        label, reason = known[text]
        if reason:
            texts.problem(row, reason)
        kept.append(label)
    return kept


def _label(column: Column, text: str) -> tuple[str | None, str]:
    """Label that a spelling stands for, and why there is none."""
    if text in column.exclude:
        return text, ""
    try:
        index = column.variable.parse([text], lambda _: "value")[0]
    except ValueError as error:
        return None, str(error)
    return column.variable.labels[int(index)], ""


def _free_labels(texts: _Texts) -> list[str | None]:
    """Labels as they are written, the spellings of one label joined."""
    _find_text_codes(texts)
    spellings, joined = _join_spellings(texts.recorded)
    for text in joined:
        texts.remark(text)
    return [None if cell is None else spellings[cell] for cell in texts.cells]


def _join_spellings(texts: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Spelling to use for every text (the most frequent of those that differ in case only), and what was joined."""
    counts = Counter(texts)
    best: dict[str, str] = {}
    for text, _ in sorted(counts.items(), key=lambda item: -item[1]):
        best.setdefault(text.casefold(), text)
    spellings = {text: best[text.casefold()] for text in counts}
    joined = [
        f"{text!r} read as {chosen!r} ({counts[text]} rows)" for text, chosen in spellings.items() if text != chosen
    ]
    return spellings, joined
