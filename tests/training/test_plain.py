"""Text from data is shown as it is: no formula in a table, no markup in Markdown, no mathematics in pictures."""

import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.reporting.figures import plot_confusion
from training.reporting.pages import _as_base64_png
from training.reporting.plain import markdown_code, markdown_text, spreadsheet_cell, write_table
from training.storage.files import file_name


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", " =1", "\t=1", "\r=1", "-", "＝1"])  # noqa: RUF001
def test_formulas_get_an_apostrophe(text: str) -> None:
    assert spreadsheet_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["-1", "+5", "-1e5", "-.5", "-inf", "sub-01", "a=b", "", "M", -1, 2.5, None, "'=1"])
def test_other_cells_stay(value: object) -> None:
    assert spreadsheet_cell(value) == value


@given(st.text())
def test_no_cell_of_any_text_is_a_formula(text: str) -> None:
    cell = spreadsheet_cell(text)
    assert cell.lstrip()[:1] not in ("=", "@") or cell.startswith("'")


def test_table_with_numbers_texts_and_hostile_names(tmp_path: Path) -> None:
    columns = {"subject_id": ["=a", "-1", "b"], "=x": [-1.5, 2, None], "n": [1, -2, 3], "sex": ["M", None, "@"]}
    table = pd.DataFrame(columns)
    write_table(tmp_path / "table.tsv", table, decimals=2)
    lines = (tmp_path / "table.tsv").read_text().splitlines()
    assert lines == ["subject_id\t'=x\tn\tsex", "'=a\t-1.50\t1\tM", "-1\t2.00\t-2\t", "b\t\t3\t'@"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("[x](javascript:1)", r"[x\](javascript:1)"),
        ("![x][y]", r"![x\][y]"),
        ("a|b", r"a\|b"),
        ("*bold* __init__ `code` $x$", r"\*bold\* \__init_\_ \`code\` \$x\$"),
        ("&lt;b&gt; A&B", "&amp;lt;b&amp;gt; A&B"),
        ("0.66 [0.61, 0.70], p 0.001 ± 0.1 qc_mean_fd", "0.66 [0.61, 0.70], p 0.001 ± 0.1 qc_mean_fd"),
        ("two\nlines", "two lines"),
    ],
)
def test_markdown_is_shown(text: str, shown: str) -> None:
    assert markdown_text(text) == shown


@given(st.text(alphabet="<>[]()`|\\*_$&;#a! \n"))
def test_no_text_is_markup(text: str) -> None:
    shown = markdown_text(text)
    assert not re.search(r"[<>\n]|(?<!\\)(\\\\)*[`|*$]|(?<!\\)\]\(", shown)
    assert "`" not in markdown_code(text)


def test_labels_with_dollars_are_drawn() -> None:
    labels = ["$x^$", "\\frac{", "<b>"]
    assert _as_base64_png(plot_confusion([0, 1, 2], [0, 1, 2], labels))


@given(st.text(min_size=1, max_size=12))
def test_names_from_data_stay_in_their_folder(text: str) -> None:
    try:
        name = file_name(text)
    except ValueError:
        assert any(0xD800 <= ord(letter) < 0xE000 for letter in text)
        return
    assert Path("/a/b", name).resolve().parent == Path("/a/b")
    assert "/" not in name
    assert not name.startswith(".")


def test_ordinary_names_stay_and_long_ones_are_refused() -> None:
    assert [file_name(name) for name in ("schaefer-200", "fluid intelligence", "é")] == [
        "schaefer-200", "fluid intelligence", "é",
    ]  # fmt: skip
    assert file_name("../x") == "%2E.%2Fx"
    for name in ("", "a" * 200):
        with pytest.raises(ValueError, match="cannot name a file"):
            file_name(name)
