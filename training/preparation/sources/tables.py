"""Reading the tables that laboratories have: any of the usual separators and encodings, never guessing at ids."""

import csv
import io
import re
from pathlib import Path

import pandas as pd

from .bounds import unpack_text


# How missing values are written; compared in lower case and without spaces around them.
MISSING_TEXTS = frozenset({"", "n/a", "na", "nan", "none", "null", "#n/a", ".", "-"})
ENCODINGS = ("utf-8-sig", "cp1252")
SEPARATORS = ("\t", ";", ",", "|")
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f]")  # a terminal obeys some of them
# Characters that look like a space or like nothing; spreadsheets leave them behind.
_ODD_SPACES = str.maketrans({"\u00a0": " ", "\u2007": " ", "\u202f": " ", "\u200b": None, "\ufeff": None})


def clean_text(value: object) -> str | None:
    """A cell without stray spaces, `None` where nothing was recorded."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    text = " ".join(str(value).translate(_ODD_SPACES).split())
    return None if text.lower() in MISSING_TEXTS else text


def as_text_table(table: pd.DataFrame) -> pd.DataFrame:
    """All cells as clean text, `None` where nothing was recorded."""
    cleaned = {name: [clean_text(value) for value in table[name].tolist()] for name in table.columns}
    return pd.DataFrame(cleaned, index=table.index, dtype=object)


def decode(path: Path) -> str:
    """Content of a text file in UTF-8 (with or without a byte order mark), UTF-16 or Windows-1252; `.gz` is unpacked.

    Raises:
        ValueError: it is none of these, or no text.
        OSError: it is damaged.
    """
    content = unpack_text(path) if path.suffix.lower() == ".gz" else path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings: tuple[str, ...] = ("utf-16",)
    else:
        encodings = ENCODINGS
    for encoding in encodings:
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        text = text.rstrip("\x1a")  # how DOS ended a file
        if not _CONTROL.search(text):
            return text
    raise ValueError(
        f"{path} cannot be read as a table: it is no text in UTF-8, UTF-16 or Windows-1252, or has control characters."
    )


def find_separator(header: str, suffix: str) -> str:
    """Separator of a table, from its first line; the file's name decides only between equals."""
    usual = "," if suffix == ".csv" else "\t"
    if ";" in header or "\t" in header:  # then a comma between digits belongs to a number
        header = re.sub(r"(?<=\d),(?=\d)", ".", header)
    counts = {separator: len(next(csv.reader([header], delimiter=separator), [])) for separator in SEPARATORS}
    return max(SEPARATORS, key=lambda separator: (counts[separator], separator == usual))


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a table as text: an id such as 0051 is not the number 51.

    Tabs, commas, semicolons and bars separate columns, whatever the file is called. Cells lose spaces around them;
    empty ones, "n/a", "NA", "NaN", "None", "." and "-" are missing.

    Args:
        path (`str` or `Path`): the table.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or no table.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no table {path}.")
    text = decode(path)
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = find_separator(first, path.suffix.lower())
    try:
        rows = list(csv.reader(io.StringIO(text), delimiter=separator))
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a table: {error}.") from error
    top = next((number for number, row in enumerate(rows) if any(map(str.strip, row))), None)
    if top is None:
        raise ValueError(f"{path} cannot be read as a table: it is empty.")
    header = [clean_text(name) or f"column {number}" for number, name in enumerate(rows[top], start=1)]
    doubled = [name for name in header if header.count(name) > 1]
    if doubled:
        raise ValueError(f"{path} has two columns called {doubled[0]!r}; rename one of them.")
    body = [_as_wide_as(header, row, path, top + number) for number, row in enumerate(rows[top + 1 :], start=2)]
    table = as_text_table(pd.DataFrame(body, columns=header, dtype=object))
    table.index = pd.Index(range(top + 2, top + 2 + len(table)))  # line in the file, for messages
    table = table[table.notna().any(axis=1)]
    if table.empty:
        raise ValueError(f"The table {path} has no rows.")
    return table


def _as_wide_as(header: list[str], row: list[str], path: Path, line: int) -> list[str | None]:
    """A row with a cell for every column; absent ones at its end are missing.

    Raises:
        ValueError: it has more cells: one of them was cut at a separator, and all behind it stand in a wrong column.
    """
    if any(map(str.strip, row[len(header) :])):
        raise ValueError(
            f"{path}, line {line} has {len(row)} cells, but the header has {len(header)}. A cell may hold the "
            'separator, as 1,234 does: write it in quotes ("1,234"). Or the first column has no name (row names of '
            "R): give it one."
        )
    return [*row[: len(header)], *[None] * (len(header) - len(row))]
