"""How numbers are written in the cells of a phenotype table, which only the whole column can tell.

`1,234` is 1234 beside 987 and 1.234 beside 0,567; `1a` is a label beside `1b`; `007` is a code.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np


_NUMBER = r"[+-]?(?:\d+(?:[.,' ]\d+)*\.?|[.,]\d+)(?:[eE][+-]?\d+)?"
_UNIT = r"\s*(?P<unit>[A-Za-z%][A-Za-z0-9./²³ ]*)?"
_PLAIN = re.compile(rf"(?P<first>{_NUMBER}){_UNIT}")
_RANGE = re.compile(rf"(?P<first>\d[\d.,]*)\s*(?:-|to)\s*(?P<second>\d[\d.,]*){_UNIT}")
_BOUND = re.compile(rf"(?:(?:>=?|<=?|≥|≤)\s*(?P<first>\d[\d.,]*)|(?P<second>\d[\d.,]*)\s*\+){_UNIT}")
_CODE = re.compile(r"\d+[A-Za-z]+\d*")  # a label such as 1a or 3T1
# Spreadsheets and word processors put these for a minus and an apostrophe.
_PLAIN_SIGNS = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2014": "-", "\u2019": "'"})
# Single letters are no units: 1a, 2m and 3T may be labels. The years' y is the exception that tables really have.
_SPELLINGS = {
    "years": "y yr yrs year years yo y/o yearold yearsold jahr jahre ans",
    "months": "mo mos month months monate",
    "weeks": "wk wks week weeks",
    "days": "day days",
    "hours": "hr hrs hour hours",
    "minutes": "min mins minute minutes",
    "seconds": "sec secs second seconds",
    "ms": "ms", "kg": "kg", "mg": "mg", "cm": "cm", "mm": "mm", "mm3": "mm3 mm³", "ml": "ml", "hz": "hz",
    "kg/m2": "kg/m2 kg/m²", "mmHg": "mmhg", "bpm": "bpm", "points": "pts points", "%": "% percent",
}  # fmt: skip
UNITS = {spelling: unit for unit, spellings in _SPELLINGS.items() for spelling in spellings.split()}
MOST_DIGITS = 15  # more are an identifier, and float64 would change them
# A column of whole numbers in which more cells than this are such as 1a is one of labels.
_MOST_CODES = 0.05


@dataclass(frozen=True)
class Number:
    """One number as it is written.

    Args:
        text (`str`): such as "1,234.5".
        decimal (`str`): the mark before its decimals, "" if there is none for certain.
        group (`str`): the mark between thousands, "" if there is none for certain.
        open (`str`): the one mark, a point or a comma, that may be either; "" if there is no doubt.
    """

    text: str
    decimal: str = ""
    group: str = ""
    open: str = ""

    @classmethod
    def read(cls, text: str) -> "Number | None":
        """Tell decimals from thousands, where one number alone tells; `None` for what is no number."""
        body = re.split("[eE]", text.lstrip("+-"))[0]
        marks = re.findall(r"[.,' ]", body)
        kinds = list(dict.fromkeys(marks))
        if not marks:
            return cls(text)
        if len(kinds) > 2 or (len(kinds) == 2 and (marks.count(kinds[1]) > 1 or kinds[1] not in ".,")):
            return None
        group = kinds[0] if len(kinds) == 2 or len(marks) > 1 or kinds[0] in "' " else ""
        if group:
            whole = body.split(kinds[1])[0] if len(kinds) == 2 else body
            if not re.fullmatch(rf"\d{{1,3}}(?:{re.escape(group)}\d{{3}})+", whole):
                return None
            return cls(text, kinds[1] if len(kinds) == 2 else "", group)
        if body == text.lstrip("+-") and re.fullmatch(r"[1-9]\d{0,2}[.,]\d{3}", body):
            return cls(text, open=kinds[0])
        return cls(text, kinds[0])

    @property
    def is_code(self) -> bool:
        """Whether a zero before other digits, or more digits than a measurement has, mark an identifier."""
        digits = self.text.lstrip("+-")
        return bool(re.match(r"0\d", digits)) or (digits.isdigit() and len(digits) > MOST_DIGITS)


@dataclass(frozen=True)
class Cell:
    """What a cell says that holds a number.

    Args:
        text (`str`): the cell.
        numbers (`tuple[Number, ...]`): one, or the two ends of a range.
        how (`str`): "" as it stands, "range" or "bound".
        unit (`str`): "years", "kg", ...; "" without one.
    """

    text: str
    numbers: tuple[Number, ...]
    how: str = ""
    unit: str = ""


def read_cell(text: str) -> Cell | None:
    """Read a cell as a number, a range such as 45-49, or a bound such as 90+ or >89; `None` if it is none of these."""
    plain = text.translate(_PLAIN_SIGNS)
    for how, pattern in (("", _PLAIN), ("range", _RANGE), ("bound", _BOUND)):
        match = pattern.fullmatch(plain)
        if match is None or (how == "range" and not _is_range(match["first"], match["second"])):
            continue
        unit = re.sub(r"[\s.]", "", match["unit"] or "").lower()
        if unit and unit not in UNITS:
            continue
        given = [match[name] for name in ("first", "second") if name in match.groupdict() and match[name]]
        numbers = [Number.read(part.strip()) for part in given]
        if all(number is not None for number in numbers):
            return Cell(text, tuple(number for number in numbers if number is not None), how, UNITS.get(unit, ""))
    return None


def _is_range(low: str, high: str) -> bool:
    """Whether two numbers with a dash between them are a range, and no month and year (1990-05, 5-1990)."""
    first, second = (float(re.sub("[.,]", "", text)) for text in (low, high))
    return first <= second and not (first <= 12 and re.fullmatch(r"(?:19|20)\d\d", high))


def are_codes(cells: Sequence[Cell | None], texts: Sequence[str]) -> str:
    """Why the cells of a column, most of which look like numbers, are codes; "" if they are numbers.

    Args:
        cells (`Sequence[Cell]`): recorded cells, `None` for those that are no numbers.
        texts (`Sequence[str]`): the same cells.
    """
    found = [cell for cell in cells if cell is not None]
    # Units, decimals and ranges belong to measurements: there 07 was written for 7.
    measured = any(cell.unit or cell.how or cell.numbers[0].decimal for cell in found if not _has_code(cell))
    for cell in found:
        if not _has_code(cell) or cell.unit:
            continue
        if not re.match(r"[+-]?0\d", cell.numbers[0].text) and not cell.how:
            return f"{cell.text} has more digits than a measurement"
        if not (measured and not cell.how and not cell.numbers[0].decimal):
            return f"{cell.text} begins with a zero"
    # Words among age groups (20-25, adult) are labels, too; among numbers they are mistakes.
    groups = all(cell.how or cell.unit for cell in found) and any(cell.how for cell in found)
    odd = [text for cell, text in zip(cells, texts, strict=True) if cell is None and (groups or _CODE.fullmatch(text))]
    if (groups or not measured) and len(odd) > _MOST_CODES * len(texts):
        return f"{odd[0]} is none"
    return ""


def _has_code(cell: Cell) -> bool:
    return any(number.is_code for number in cell.numbers)


@dataclass
class Style:
    """What a point and a comma stand for in a column.

    Args:
        roles (`dict[str, str]`): mark -> "decimal" or "group", where that is known.
        remarks (`list[str]`): how doubtful cells were read.
        doubts (`list[str]`): readings that the user should confirm.
    """

    roles: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, cells: Iterable[Cell]) -> "Style":
        """Decide from all cells: marks that are certain elsewhere in the column, or the size of the other numbers."""
        numbers = [number for cell in cells for number in cell.numbers]
        style = cls()
        for mark in ".,":
            doubtful = [number for number in numbers if number.open == mark]
            if doubtful:
                style._settle(mark, doubtful, [number for number in numbers if not number.open])
        return style

    def _settle(self, mark: str, doubtful: Sequence[Number], certain: Sequence[Number]) -> None:
        """Find the role of a mark that some cells leave open."""
        other = "," if mark == "." else "."
        decimals, groups = ({getattr(number, name) for number in certain} for name in ("decimal", "group"))
        example = doubtful[0].text
        role, is_certain = "", mark in decimals
        if (mark in decimals) != (mark in groups):
            role = "decimal" if mark in decimals else "group"
        elif mark not in decimals and (other in decimals) != (other in groups):
            role = "group" if other in decimals else "decimal"
        elif mark not in decimals:
            role = _by_size(doubtful, certain)
            if mark == "." and role == "group":
                self.doubts.append(
                    f"{example} was read as {_value(doubtful[0], mark, 'group'):g}, like its neighbours"
                )
            elif mark == ".":
                role = "decimal"
        if role:
            self.roles[mark] = role
            if not (mark == "." and is_certain):
                self.remarks.append(f"cells such as {example} were read as {_value(doubtful[0], mark, role):g}")

    def value(self, number: Number) -> float:
        """The number.

        Raises:
            ValueError: the column does not tell what its point or comma stands for, or it is too large.
        """
        mark = number.open or number.decimal
        role = self.roles.get(number.open, "") if number.open else "decimal"
        if not role:
            small, large = (_value(number, mark, role) for role in ("decimal", "group"))
            raise ValueError(
                f"{number.text!r} may be {large:g} or {small:g}, and the column does not tell: write it without a "
                "thousands separator"
            )
        value = _value(number, mark, role)
        if not math.isfinite(value):
            raise ValueError(f"{number.text!r} is too large")
        return value


def _value(number: Number, mark: str, role: str) -> float:
    group = mark if role == "group" else number.group
    text = number.text.replace(group, "") if group else number.text
    return float(text.replace(mark, ".") if mark and role == "decimal" else text)


def _by_size(doubtful: Sequence[Number], certain: Sequence[Number]) -> str:
    """The reading that puts doubtful numbers near the others: "decimal", "group", or "" where both are as far."""
    sizes = [abs(_value(number, number.decimal, "decimal")) for number in certain]
    sizes = [size for size in sizes if 0 < size < math.inf]
    if not sizes:
        return ""
    usual = np.median(sizes)
    typical = np.median([abs(_value(number, number.open, "decimal")) for number in doubtful])
    as_decimal, as_group = (abs(math.log10(typical * factor / usual)) for factor in (1, 1000))
    if abs(as_decimal - as_group) < 1:
        return ""
    return "decimal" if as_decimal < as_group else "group"


def usual_unit(cells: Iterable[Cell]) -> str:
    """The unit that most of a column's cells with a unit have; "" if none has one.

    Percentages are of another size than plain numbers, so for them the cells without a unit are counted as well.
    """
    counts = Counter(cell.unit for cell in cells)
    plain = counts.pop("", 0)
    if not counts:
        return ""
    unit, count = counts.most_common(1)[0]
    return "" if unit == "%" and plain > count else unit
