"""Records of subjects in any usual form: columns of a table, and cells as stripped texts and numbers."""

import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from transformers.utils import logging


logger = logging.get_logger(__name__)

MISSING_TEXTS = frozenset({"", "n/a", "nan"})  # compared in lower case


class RecordTable:
    """Columns of records, whatever they came as: a dict or pandas row, a list of them, or a DataFrame.

    Raises:
        ValueError: There is no record.
        TypeError: The records are something else.
    """

    def __init__(self, records: Any) -> None:
        # Recognised by what it offers, so that pandas stays optional.
        self._frame = records if hasattr(records, "columns") and hasattr(records, "itertuples") else None
        self._rows = [] if self._frame is not None else _as_rows(records)
        self.count = len(self._rows if self._frame is None else self._frame)
        if self.count == 0:
            raise ValueError("The batch of records is empty; give at least one record ({} if nothing is known).")
        names = (name for row in self._rows for name in row) if self._frame is None else self._frame.columns
        self.names: list[Any] = list(dict.fromkeys(names))

    def column(self, name: str) -> list[Any]:
        """Values of one column, `None` where absent."""
        if self._frame is None:
            return [row.get(name) for row in self._rows]
        return self._frame[name].tolist() if name in self.names else [None] * self.count

    def where(self, row: int) -> str:
        """Name a row, counted from 0, together with the participant if the table tells."""
        participant = plain_value(self.column("participant_id")[row])
        return f"row {row}" if participant is None else f"row {row} ({participant})"

    def warn_of_misspelt(self, names: Iterable[str]) -> None:
        """Warn of columns that differ from a variable in case only: the variable would silently count as missing."""
        any_case = {str(column).casefold(): column for column in self.names}
        for name in names:
            if name not in self.names and name.casefold() in any_case:
                logger.warning(
                    f"The records have a column {any_case[name.casefold()]!r} but no {name!r}, which therefore "
                    f"counts as not recorded. Rename the column if it is meant."
                )


def _as_rows(records: Any) -> list[Mapping[str, Any]]:
    if isinstance(records, Mapping) or hasattr(records, "to_dict"):
        records = [records]
    if isinstance(records, str) or not isinstance(records, Iterable):
        raise TypeError(f"records must be a dict, a list of dicts or a DataFrame, got a {type(records).__name__}.")
    rows = [row.to_dict() if hasattr(row, "to_dict") else row for row in records]
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise TypeError(f"Record {index} must be a dict of variable name to value, got a {type(row).__name__}.")
    return rows


def plain_value(value: Any) -> Any:
    """One table cell as stripped text or a Python number; `None` if nothing was recorded."""
    if hasattr(value, "item") and getattr(value, "ndim", 0) == 0:  # NumPy scalars and 0-d tensors
        value = value.item()
    if isinstance(value, str):
        text = value.strip()
        return None if text.lower() in MISSING_TEXTS else text
    # pandas.NA and NaT are recognised by name, so that pandas stays optional.
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return None
    if not isinstance(value, numbers.Number):
        raise TypeError(f"got a {type(value).__name__}, but a record holds one text or number per variable.")
    return None if isinstance(value, float) and math.isnan(value) else value


def measurement(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{value!r} is not a finite number; correct it, or leave it empty if it is not known.")
    return number


def number_in(text: str) -> float | None:
    """The number that a text spells, so that "1", 1, 1.0 and True find the same label; `None` if it spells none."""
    try:
        return float({"true": "1", "false": "0"}.get(text.lower(), text))
    except ValueError:
        return None
