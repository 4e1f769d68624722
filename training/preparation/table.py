"""The phenotype table: which rows and columns are kept, and what they must hold."""

import pandas as pd

from modeling_lcm.bei_vocabulary import BEIVariable

from ..command_line.cli import did_you_mean
from ..data.cohort import is_phenotype
from ..data.identity import SAME_PERSON
from .arguments import PrepareArguments
from .missing import MissingCodes
from .phenotypes import Cleaned, Column, clean_columns, clean_labels, infer_columns
from .recipes import Recipe
from .sources.base import Source


MANY_COLUMNS, LONG_NAME = 15, 40  # an error lists so many, of so many characters


def check_table(raw: pd.DataFrame, arguments: PrepareArguments, recipe: Recipe) -> None:
    """Refuse a table whose scans cannot be told apart or that lacks a column.

    Raises:
        ValueError: a column or an id is missing, or two rows are the same scan.
    """
    where = arguments.participants or arguments.bids or "the table"
    own = identifiers(arguments)
    extra = [name for name in (arguments.site_column, arguments.scanner_column, arguments.mean_fd_column) if name]
    _require_columns(
        raw,
        [*own, *extra, *recipe.keep_rows, *(item.column for item in recipe.columns if item.value is None)],
        where,
    )
    if not recipe.columns:
        _require_columns(raw, list(_wanted(arguments, raw).values()), where)
    _missing_codes(arguments, recipe, raw)
    for column in own:
        if raw[column].isna().any():
            raise ValueError(f"{where}, line {raw.index[raw[column].isna()][0]}: {column!r} is missing.")
    repeated = raw.duplicated(subset=own).to_numpy()
    if repeated.any():
        row = int(repeated.argmax())
        raise ValueError(
            f"{where}, line {raw.index[row]}: another row of {raw[arguments.subject_column].iloc[row]} in one "
            "session; name the column that tells the scans apart with --session_column."
        )


def identifiers(arguments: PrepareArguments) -> list[str]:
    """The columns that tell the scans apart."""
    return [arguments.subject_column] + ([arguments.session_column] if arguments.session_column else [])


def describe(
    arguments: PrepareArguments, recipe: Recipe, source: Source
) -> tuple[pd.DataFrame, Cleaned, dict[int, str]]:
    """Table to store, cleaned phenotypes, and rows that the recipe leaves out with the reason.

    Phenotypes of rows that are left out are not read: what they hold is no problem of the data set.
    """
    raw = source.table
    left_out = _left_out(recipe, raw)
    read = raw.astype("object")
    read.iloc[list(left_out)] = None
    session = raw[arguments.session_column].tolist() if arguments.session_column else "1"
    table = pd.DataFrame({"subject_id": raw[arguments.subject_column].tolist(), "session": session})
    codes = _missing_codes(arguments, recipe, raw)
    wanted = {} if recipe.columns else _wanted(arguments, raw)
    cleaned = clean_columns(read, recipe.columns, codes) if recipe.columns else infer_columns(read, wanted, codes)
    told = {*wanted.values(), *(item.column for item in recipe.columns)}  # what is said of a column, is said once
    if recipe.name:
        table["dataset"] = recipe.name
    for name, column in (("site", arguments.site_column), ("scanner", arguments.scanner_column)):
        if column and name not in cleaned.table.columns:
            found = clean_labels(read, name, column, codes)
            table[name] = found.table[name]
            cleaned.add_notes(found, column in told)
    if arguments.mean_fd_column:
        variable = BEIVariable("mean_fd", "continuous", unit="mm")
        found = clean_columns(read, [Column(variable, arguments.mean_fd_column)], codes)
        table["qc_mean_fd"] = found.table["mean_fd"]
        cleaned.add_notes(found, arguments.mean_fd_column in told)
    for other, column in recipe.same_person.items():
        table[f"{SAME_PERSON}{other}"] = raw[column].tolist() if column in raw.columns else None
    return pd.concat([table, cleaned.table], axis=1), cleaned, left_out


def _missing_codes(arguments: PrepareArguments, recipe: Recipe, raw: pd.DataFrame) -> MissingCodes:
    names = [*map(str, raw.columns), *(variable.name for variable in recipe.variables)]
    if not recipe.columns:
        names += _wanted(arguments, raw)
    return MissingCodes.parse(arguments.missing, list(dict.fromkeys(names)))


def _left_out(recipe: Recipe, raw: pd.DataFrame) -> dict[int, str]:
    reasons: dict[int, str] = {}
    for column, values in recipe.keep_rows.items():
        for row, text in enumerate(raw[column].tolist()):
            if text not in values:
                reasons[row] = f"{column} is {text or 'missing'}; the recipe keeps {', '.join(values)}"
    for item in recipe.columns:
        for row, text in enumerate(raw[item.column].tolist() if item.exclude else ()):
            if text in item.exclude:
                reasons.setdefault(row, f"{item.column} is {text}, which the recipe leaves out")
    return reasons


def _wanted(arguments: PrepareArguments, raw: pd.DataFrame) -> dict[str, str]:
    """Name in the data set -> column of the table, of every phenotype that is kept."""
    wanted = {}
    for item in arguments.phenotypes:
        name, _, column = item.partition("=")
        wanted[name] = column or name
    if not wanted:
        wanted = {name: name for name in raw.columns if name not in identifiers(arguments)}
    taken = [name for name in wanted if not is_phenotype(name)]
    if taken:
        raise ValueError(
            f"A phenotype cannot be called {taken[0]!r}, which describes the scan: choose the columns to keep with "
            f"--phenotypes, renamed as NAME={taken[0]}, or name it with --session_column."
        )
    return wanted


def _require_columns(raw: pd.DataFrame, names: list[str], where: str) -> None:
    missing = sorted({name for name in names if name not in raw.columns})
    if missing:
        listed = ", ".join(name[:LONG_NAME] for name in raw.columns[:MANY_COLUMNS])
        more = f" and {len(raw.columns) - MANY_COLUMNS} more" if len(raw.columns) > MANY_COLUMNS else ""
        raise ValueError(
            f"{where} has no column {', '.join(map(repr, missing))}; it has {listed}{more}."
            f"{did_you_mean(missing[0], raw.columns)}"
        )
