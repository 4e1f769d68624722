"""Text from data (ids, labels, sites, titles) in tables and pages: it is shown, never run and never read as markup."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from ..storage.files import write_text


_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\r]")  # noqa: RUF001 (full-width signs are formulas as well)
# What Markdown and HTML would take for something else than text. Brackets alone are no link.
_MARKUP = re.compile(r"[\\`*$|]|~~|\](?=[(\[:])|(?<!\w)_|_(?!\w)")
_ENTITIES = ((re.compile(r"&(?=#?\w+;)"), "&amp;"), (re.compile("<"), "&lt;"), (re.compile(">"), "&gt;"))


def write_table(path: Path, table: pd.DataFrame, decimals: int) -> None:
    """Write a table with tabs between its cells, which a spreadsheet reads without running anything in it.

    Args:
        path (`Path`): the file.
        table (`pd.DataFrame`): its index is left out.
        decimals (`int`): of numbers.
    """
    columns = table.select_dtypes(exclude="number").columns
    texts: dict[str, Any] = {str(name): table[name].map(spreadsheet_cell) for name in columns}
    shown = table.assign(**texts).rename(columns=spreadsheet_cell)
    write_text(path, shown.to_csv(sep="\t", index=False, float_format=f"%.{decimals}f"))


def spreadsheet_cell(value: Any) -> Any:
    """A cell; an apostrophe goes before text that a spreadsheet would run as a formula (`=`, `+`, `-`, `@` first)."""
    if isinstance(value, str) and _FORMULA.match(value) and not _is_number(value):
        return f"'{value}"
    return value


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()


def markdown_text(value: Any) -> str:
    """Text in one line, whose signs Markdown and HTML show instead of obeying them."""
    text = " ".join(str(value).split())
    for pattern, entity in _ENTITIES:
        text = pattern.sub(entity, text)
    return _MARKUP.sub(lambda found: f"\\{found[0]}", text)


def markdown_code(value: Any) -> str:
    """Text between backticks."""
    return " ".join(str(value).split()).replace("`", "'")
