"""Codes that stand for a missing value, such as -9999: those that the user names, and those that stand out."""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .cells import read_cell


# What tables have for "not recorded", "not applicable", "refused": nines, or eights and sevens of three digits on.
_POSITIVE = re.compile(r"9{2,6}|8{3,6}|7{3,6}|2147483647")
_NEGATIVE = re.compile(r"-(?:[1-9]|9{2,6}|8{2,6}|7{2,6}|2147483648)")
_OF_TWO = (7.0, 8.0, 9.0)  # beside labels that are 0, 1 or 2
# A code is far outside when its distance to the other values is more than so many times their largest gap, and more
# than so many times their whole spread.
_GAPS, _SPREADS = 3.0, 0.5
_LIKELY_VALUES = 3.0  # sevens and eights may be values: they must be so many times the largest other one
_LONE = 5.0  # distance, in sizes of the value, beside a single other value
MOST_LINES = 4


@dataclass(frozen=True)
class MissingCodes:
    """The codes of the setting `missing`.

    Args:
        everywhere (`tuple[str, ...]`): codes of every column.
        of_column (`dict[str, tuple[str, ...]]`): codes of one column.
        certain (`frozenset[str]`): columns in which nothing else is a code, however far it stands out.
    """

    everywhere: tuple[str, ...] = ()
    of_column: dict[str, tuple[str, ...]] = field(default_factory=dict)
    certain: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, items: Iterable[str], columns: Sequence[str]) -> "MissingCodes":
        """Read the setting.

        Args:
            items (`Iterable[str]`): CODE, COLUMN=CODE, or COLUMN= for a column without (further) codes.
            columns (`Sequence[str]`): names that a column may be given by.

        Raises:
            ValueError: there is no such column.
        """
        everywhere: list[str] = []
        of_column: dict[str, list[str]] = {}
        for item in items:
            column, sign, code = item.rpartition("=")
            if not sign:
                everywhere.append(item.strip())
                continue
            if column not in columns:
                raise ValueError(
                    f"missing has {item!r}, but there is no column {column!r}; there are {', '.join(columns)}."
                )
            of_column.setdefault(column, []).append(code.strip())
        return cls(
            tuple(everywhere),
            {name: tuple(filter(None, codes)) for name, codes in of_column.items()},
            frozenset(name for name, codes in of_column.items() if "" in codes),
        )

    def of(self, *names: str) -> tuple[str, ...]:
        """Codes of a column.

        Args:
            names (`str`): its name in the table, and that in the data set.
        """
        return (*self.everywhere, *(code for name in names for code in self.of_column.get(name, ())))


def same_code(text: str, code: str) -> bool:
    """Whether a cell is a code, written as text or as an equal number (-999 and -999.0, but not 7 and 007)."""
    return _key(text) == _key(code)


def _key(text: str) -> str | float:
    cell = read_cell(text)
    if cell is None or cell.how or cell.unit or cell.numbers[0].is_code or cell.numbers[0].open:
        return text.casefold()
    return float(cell.numbers[0].text.replace(",", ".")) if not cell.numbers[0].group else text.casefold()


def outlying_codes(values: Iterable[float]) -> dict[float, bool]:
    """Values of a column that are probably codes.

    Args:
        values (`Iterable[float]`): all numbers of the column.

    Returns:
        Code -> whether it is far outside the other values, and so taken as missing; `False` for a negative code that
        is not, beside values none of which is negative.
    """
    distinct = np.unique(np.fromiter(values, dtype=float))
    suspects = [value for value in distinct if _is_code(value)]
    rest = np.setdiff1d(distinct, suspects)
    two_labels = len(rest) == 2 and set(rest) <= {0.0, 1.0, 2.0}
    found: dict[float, bool] = {}
    if not len(rest):
        # Nothing but codes: one of three digits or more says nothing else.
        return {float(value): True for value in suspects if abs(value) >= 100}
    # The nearest first: what is no code belongs to the rest then.
    for value in sorted(suspects, key=lambda suspect: _distance(suspect, rest)):
        beside_two = two_labels and (value in _OF_TWO or (value < 0 and _distance(value, rest) > np.ptp(rest)))
        if beside_two or (value not in _OF_TWO and _is_far(value, rest)):
            found[float(value)] = True
        else:
            rest = np.union1d(rest, [value])
    negative = rest[rest < 0]
    if len(negative) == 1 and _is_code(negative[0]) and len(set(np.abs(rest))) > 1:  # -1 and 1 are two labels
        found[float(negative[0])] = False
    return found


def _is_code(value: float) -> bool:
    text = f"{value:.0f}" if float(value).is_integer() else ""
    return bool(_POSITIVE.fullmatch(text) or _NEGATIVE.fullmatch(text)) or value in _OF_TWO


def _distance(value: float, rest: np.ndarray) -> float:
    """From the range of the other values; 0 inside it."""
    return float(max(rest.min() - value, value - rest.max(), 0))


def _is_far(value: float, rest: np.ndarray) -> bool:
    distance = _distance(value, rest)
    if len(rest) == 1:
        return distance > _LONE * max(1.0, abs(rest[0]))
    if -9 < value < 0 and rest.min() < 0:
        return False  # one of several negative values
    if value > 0 and not str(int(value)).startswith("9") and value < _LIKELY_VALUES * np.abs(rest).max():
        return False
    return bool(distance > max(_GAPS * np.diff(rest).max(), _SPREADS * np.ptp(rest)))


def text_codes(texts: Iterable[str]) -> set[str]:
    """Cells of a column of labels that are codes: the only numbers in it, such as -9999 beside PD and control."""
    distinct = set(texts)
    keys = {text: key for text in distinct if isinstance(key := _key(text), float)}
    words = len(distinct) - len(keys)
    suspects = {text for text, key in keys.items() if _is_code(key) and not (key in _OF_TWO and words != 2)}
    return suspects if words and set(keys) == suspects else set()


def confirm(column: str, code: str) -> str:
    """What the user should do about a code that was found."""
    declared, kept = (f"--missing {shlex.quote(f'{column}={text}')}" for text in (code, ""))
    return f"Confirm with {declared}; if it is a value: {kept}"


def lines_of(lines: Sequence[int]) -> str:
    """Lines of a file, for messages: "line 3", "lines 3, 5, 8, 9 and 12 more"."""
    shown = ", ".join(map(str, lines[:MOST_LINES]))
    more = f" and {len(lines) - MOST_LINES} more" if len(lines) > MOST_LINES else ""
    return f"line{'s' if len(lines) > 1 else ''} {shown}{more}"
