"""From a folder of scans and a table to the pattern that says which file belongs to which row."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .sources.arrays import read_array, scan_format
from .sources.images import IMAGE_FORMATS
from .sources.layout import is_vector
from .sources.tables import read_table


SESSION_COLUMNS = ("session", "session_id", "ses", "visit", "run", "timepoint", "scan", "scan_id")
_SUBJECT_COLUMNS = ("participant_id", "subject_id", "subject", "sub_id", "sub", "id", "participant", "subid")
_TABLES = (".tsv", ".csv", ".txt")
_SERIES_NAMES = re.compile(r"time[-_ ]?series|time[-_ ]?courses?|bold|(?<![a-z])ts(?![a-z])|rois?[-_]signals?")
_MATRIX_NAMES = re.compile(
    r"(?<![a-z])(?:r|s)?fc(?![a-z])|connect(?:ivity|ome)|relmat|conmat|corr|netcc|(?<![a-z])matri"
)
_REGION_TABLES = re.compile(r"(?:.*[-_])?(?:rois?|regions?|labels?|parcels?|nodes?|atlas)\.(?:tsv|csv|txt)")
_FEWEST = 0.5  # share of the rows that a pattern has to find a file for
_LOOKED_AT = 200  # rows that a pattern is found from
_MOST_FILES = 200_000


def scans_in(folder: Path) -> list[Path]:
    """Files in a folder, and in folders inside, that may hold a scan."""
    files = []
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.is_file() and (path.name.endswith(IMAGE_FORMATS) or scan_format(path) is not None):
            files.append(path)
        if len(files) > _MOST_FILES:
            raise ValueError(f"{folder} holds more than {_MOST_FILES} files: give a pattern instead of the folder.")
    return sorted(files)


def kind_of_scan(path: Path) -> str:
    """ "time_series" or "connectivity": by the file's name or, where it says nothing, by its content.

    Raises:
        ValueError: the file cannot be read.
    """
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as file:
            keys = set(file.files)
        if {"data", "offsets"} <= keys:
            return "time_series"
        if {"connectivity", "fc_triu", "fc_tril"} & keys:
            return "connectivity"
    name = path.name.casefold()
    is_series, is_matrix = _SERIES_NAMES.search(name) is not None, _MATRIX_NAMES.search(name) is not None
    if is_series != is_matrix:
        return "time_series" if is_series else "connectivity"
    values = read_array(path).values
    square = values.ndim == 2 and values.shape[0] == values.shape[1]
    is_matrix = is_vector(values) or (square and np.allclose(values, values.T, equal_nan=True, atol=1e-4))
    return "connectivity" if is_matrix else "time_series"


def find_table(folder: Path, files: Sequence[Path], given: str = "") -> tuple[Path, list[Path]]:
    """The table of phenotypes, and the files that are scans.

    Args:
        folder (`Path`): where the scans lie.
        files (`Sequence[Path]`): scans, the table perhaps among them.
        given (`str`): the table, where it was named.

    Raises:
        FileNotFoundError: there is none; the message names the setting.
        ValueError: several tables might be meant.
    """
    if given:
        return Path(given), list(files)
    for place in (folder, folder.parent):
        named = place / "participants.tsv"
        tables = [named] if named.is_file() else []
        if not tables:
            candidates = sorted(path for path in place.iterdir() if path.suffix.lower() in _TABLES and path.is_file())
            tables = [path for path in candidates if _is_of_subjects(path)]
        if len(tables) > 1:
            raise ValueError(
                f"{place} holds several tables, {', '.join(path.name for path in tables[:4])}: say which one has the "
                "phenotypes with --participants FILE."
            )
        if tables:
            return tables[0], [file for file in files if file != tables[0]]
    raise FileNotFoundError(
        f"There is no table of phenotypes in {folder}: put a participants.tsv there, with a column participant_id and "
        "a row for every scan, or name the table with --participants FILE."
    )


def find_regions(files: Sequence[Path]) -> tuple[Path | None, list[Path]]:
    """A table that names the regions, such as rois.tsv with a column `name`, and the files that are none."""
    for file in files:
        if _REGION_TABLES.fullmatch(file.name.casefold()) is None:
            continue
        try:
            columns = read_table(file).columns
        except ValueError:
            continue
        if "name" in columns:
            return file, [other for other in files if other != file]
    return None, list(files)


def _is_of_subjects(path: Path) -> bool:
    """Whether a file is a table with a column of subjects, and no scan."""
    try:
        table = read_table(path)
    except ValueError:
        return False
    return any(str(name).casefold() in _SUBJECT_COLUMNS for name in table.columns)


def find_pattern(folder: Path, files: Sequence[Path], table: pd.DataFrame, where: Path) -> tuple[str, str, str | None]:
    """The pattern of the files' names, with columns of the table in braces.

    Args:
        folder (`Path`): where the scans lie.
        files (`Sequence[Path]`): the scans.
        table (`pd.DataFrame`): text, one row per scan.
        where (`Path`): the table's file.

    Returns:
        The pattern, the column of the subjects, and that of the sessions where file names state it.

    Raises:
        ValueError: no column tells whose a file is, or a subject has several files and the table one row.
    """
    names = [str(file.relative_to(folder)) for file in files]
    best: tuple[float, str, Counter[str]] = (0.0, "", Counter())
    for column in sorted(map(str, table.columns), key=lambda name: name.casefold() not in _SUBJECT_COLUMNS):
        values = table[column].dropna()
        if values.nunique() < max(2, len(values) // 4):
            continue
        patterns = _patterns(column, values.iloc[:_LOOKED_AT].tolist(), names)
        share = max(patterns.values(), default=0) / min(len(table), _LOOKED_AT)
        if share > best[0]:
            best = (share, column, patterns)
    share, column, patterns = best
    if share < _FEWEST:
        subject = next((name for name in table.columns if str(name).casefold() in _SUBJECT_COLUMNS), table.columns[0])
        raise ValueError(
            f"No column of {where} tells whose the files are: {subject} has {table[subject].iloc[0]!r}, the files are "
            f"called like {names[0]}. Spell the ids alike, add a column with the files' names, or give a pattern: "
            f"--time_series '{folder}/{{COLUMN}}.tsv' (or --connectivity)."
        )
    session = _session_of(table, column, patterns, names)
    if session is not None:
        return f"{folder}/{session[0]}", column, session[1]
    several = [pattern for pattern, count in patterns.items() if count >= _FEWEST * max(patterns.values())]
    if len(several) > 1:
        raise ValueError(
            f"Every subject has {len(several)} files, such as {several[0]} and {several[1]}: give the table a row per "
            f"scan and a column `session` that the files' names state, or choose one pattern: --time_series "
            f"'{folder}/{several[0]}' (or --connectivity)."
        )
    return f"{folder}/{patterns.most_common(1)[0][0]}", column, None


def _patterns(column: str, values: Sequence[str], names: Sequence[str]) -> Counter[str]:
    """Patterns that a column's values make of the names, and how many different values each fits."""
    words = {name: set(re.split(r"[^A-Za-z0-9]+", name)) for name in names}
    fits: dict[str, set[str]] = {}
    for value in dict.fromkeys(values):
        parts = set(re.split(r"[^A-Za-z0-9]+", value))
        alone = re.compile(rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])")
        for name in names:
            if parts <= words[name] and alone.search(name):
                escaped = name.replace("{", "{{").replace("}", "}}")
                fits.setdefault(alone.sub(f"{{{column}}}", escaped), set()).add(value)
    return Counter({pattern: len(found) for pattern, found in fits.items()})


def _session_of(
    table: pd.DataFrame, column: str, patterns: Counter[str], names: Sequence[str]
) -> tuple[str, str] | None:
    """A pattern with the session's column, and this column, where the table and the files' names have sessions."""
    for session in (name for name in table.columns if str(name).casefold() in SESSION_COLUMNS and name != column):
        found = Counter[str]()
        for pattern, count in patterns.items():
            for value in table[session].dropna().unique():
                alone = re.compile(rf"(?<![A-Za-z0-9]){re.escape(value)}(?![A-Za-z0-9])")
                if alone.search(pattern.replace(f"{{{column}}}", "{}")):
                    found[alone.sub(f"{{{session}}}", pattern)] += count
        if found:
            return found.most_common(1)[0][0], str(session)
    return None
