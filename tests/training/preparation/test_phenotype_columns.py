"""A phenotype is read as a column: separators, units, codes for missing values, codes that are no numbers."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modeling_lcm.bei_vocabulary import BEIVariable
from training.preparation.missing import MissingCodes, outlying_codes
from training.preparation.phenotypes import Cleaned, Column, clean_columns, clean_labels, infer_columns
from training.preparation.sources.tables import as_text_table, read_table


AGES = ["22", "24.5", "31", "28", "19", "40", "35"]


def raw_table(cells: list[str | None], name: str = "x") -> pd.DataFrame:
    table = as_text_table(pd.DataFrame({name: cells}, dtype=object))
    table.index = pd.Index(range(2, len(table) + 2))
    return table


def read(cells: list[str | None], name: str = "x", missing: tuple[str, ...] = ()) -> tuple[list, Cleaned]:
    """Values of an undeclared column, and all that was noted."""
    cleaned = infer_columns(raw_table(cells, name), {name: name}, MissingCodes.parse(missing, [name]))
    values = [None if pd.isna(value) else value for value in cleaned.table[name]]
    return values, cleaned


# --- numbers ---


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("24", 24), ("24.5", 24.5), ("24,5", 24.5), ("-3", -3), ("1e2", 100), (".5", 0.5), ("-,25", -0.25),
        ("\u22122.5", -2.5), ("45-49", 47), ("45 \u2013 49", 47), ("20 to 25 years", 22.5), ("90+", 90), ("> 89", 89),
        ("\u226489,5", 89.5), ("90 +", 90), ("31 years", 31), ("25 y", 25), ("031Y", 31), ("31 yrs.", 31),
        ("1,234.5", 1234.5), ("1.234,5", 1234.5), ("1 234", 1234), ("1\u2019234", 1234), ("1,234,567", 1234567),
    ],
)  # fmt: skip
def test_numbers_as_people_write_them(text: str, value: float) -> None:
    assert read([text, text])[0] == [value, value]


@pytest.mark.parametrize("text", ["old", "49-45", "24 lb", "1-2-3", "+", "12:30", "12.05.2020", "1990-05", "27/30"])
def test_what_is_no_number_stays_text_alone_and_is_a_problem_among_numbers(text: str) -> None:
    assert read([text, text])[0] == [text, text]
    values, notes = read([*AGES, text])
    assert values[-1] is None
    assert [(problem.line, text in problem.reason) for problem in notes.problems] == [(9, True)]


@given(st.lists(st.floats(0, 1000).map(lambda value: round(value, 3)), min_size=1, max_size=8))
def test_decimal_point_and_comma_agree(values: list[float]) -> None:
    points = [f"{value:.3f}" for value in [*values, 0.123]]
    commas = [text.replace(".", ",") for text in points]
    found = [read(cells, missing=("x=",))[0] for cells in (points, commas)]
    assert found[0] == found[1] == pytest.approx([*values, 0.123])


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1,234", "987", "1,345"], [1234, 987, 1345]),
        (["1,234", "2", "3,105"], [1.234, 2, 3.105]),
        (["1,234", "24,5"], [1.234, 24.5]),
        (["1,234", "24.5"], [1234, 24.5]),
        (["1,234", "1,234,567"], [1234, 1234567]),
        (["1.234", "1.234.567"], [1234, 1234567]),
        (["1.234", "24,5"], [1234, 24.5]),
        (["1.234", "2", "3.105"], [1.234, 2, 3.105]),
    ],
)
def test_the_other_cells_tell_thousands_from_decimals(cells: list[str], values: list[float]) -> None:
    found, notes = read(cells)
    assert found == values
    assert any(cells[0] in remark for remark in notes.remarks)


def test_a_point_between_thousands_is_a_guess_to_confirm() -> None:
    values, notes = read(["1.234", "987", "1.345"])
    assert values == [1234, 987, 1345]
    assert "1.234 was read as 1234" in notes.questions[0]


def test_a_comma_that_nothing_explains_is_refused() -> None:
    values, notes = read(["1,234", "1,345"])
    assert values == [None, None]
    assert "'1,234' may be 1234 or 1.234" in notes.problems[0].reason


@given(st.lists(st.integers(1, 10**7), min_size=1, max_size=12), st.sampled_from(",' "))
def test_thousands_separators_never_change_a_value(numbers: list[int], mark: str) -> None:
    values, notes = read([f"{number:,}".replace(",", mark) for number in numbers])
    problems = {problem.row for problem in notes.problems}
    asked = " ".join(notes.questions)
    for row, (number, value) in enumerate(zip(numbers, values, strict=True)):
        right = value == number or (value is None and (row in problems or "taken as missing" in asked))
        # A comma alone may also mean decimals: then the reading is told.
        assert right or (mark == "," and any("were read as" in remark for remark in notes.remarks))


# --- units ---


def test_one_unit_is_read_and_told_and_another_one_refused() -> None:
    values, notes = read(["70 kg", "80kg", "65"])
    assert values == [70, 80, 65]
    assert "2 values are given in kg" in notes.remarks[0]
    values, notes = read(["2 years", "3 years", "24 months"])
    assert values == [2, 3, None]
    assert "'24 months' is in months, needed is years" in notes.problems[0].reason
    assert read(["24 months", "30 months"], "age")[0] == [None, None]
    assert read(["24 months", "30 months"], "duration")[0] == [24, 30]


def test_percentages_are_not_mixed_with_plain_numbers() -> None:
    assert read(["45%", "50 %", "60%"])[0] == [45, 50, 60]
    assert read(["45%", "50 %", "0.6"])[0] == [45, 50, None]
    assert read(["0.5", "0.6", "45%"])[0] == [0.5, 0.6, None]


# --- codes that are no numbers ---


@given(st.lists(st.integers(0, 500), min_size=1, max_size=10), st.integers(2, 6))
def test_codes_with_leading_zeros_stay_as_they_are(numbers: list[int], width: int) -> None:
    cells = [f"{number:0{width}d}" for number in numbers]
    assume(any(text[0] == "0" and text != "0" for text in cells))
    values, notes = read(cells)
    asked = {text for text in cells if any(f" {text} " in question for question in notes.questions)}
    assert [text for text in cells if text not in asked] == [value for value in values if value is not None]
    assert "begins with a zero" in notes.remarks[0]


@pytest.mark.parametrize(
    "cells",
    [
        ["007", "7", "008", "8"],
        ["1a", "1", "2", "3", "1", "2", "1", "2"],
        ["1a", "1a", "1b", "2a"],
        ["3T", "1.5T", "3T"],
        ["12345678901234567", "12345678901234568"],
        ["05.1990", "11.1990"],
        ["5-1990", "11-2001"],
        ["20-25", "26-30", "adult", "adult"],
        ["2020-05-17", "2021-06-18"],
        ["17/05/2020", "18/06/2021"],
    ],
)
def test_labels_that_look_like_numbers_stay_text(cells: list[str]) -> None:
    values, notes = read(cells)
    assert values == cells
    assert not notes.problems


def test_a_zero_typed_before_a_measurement_does_not_make_it_a_code() -> None:
    assert read(["07", "12.5", "33"])[0] == [7, 12.5, 33]


# --- codes for missing values ---


@pytest.mark.parametrize("code", ["-9999", "-999", "999", "9999", "-1", "-9", "99", "-99", "999.0", "-999,0"])
def test_a_code_far_from_the_other_values_is_missing_and_asked_about(code: str) -> None:
    values, notes = read([code, *AGES], "age")
    assert values == [None, *map(float, AGES)]
    (question,) = notes.questions
    assert f"age: 1 cell holds {code} (line 2), far from the others (19 to 40): taken as missing" in question
    assert f"--missing age={code}" in question
    # What was declared is no question, nor what was declared to be a value.
    values, notes = read([code, *AGES], "age", (f"age={code}",))
    assert values[0] is None
    assert (notes.questions, len(notes.remarks)) == ([], 1)
    values, notes = read([code, *AGES], "age", ("age=",))
    assert values[0] == float(code.replace(",", "."))
    assert not notes.questions


@pytest.mark.parametrize(
    ("cells", "missing"),
    [
        (["-9999", "1", "2", "1"], "-9999"),
        (["9", "1", "2", "1"], "9"),
        (["-1", "1", "2", "1"], "-1"),
        (["-9999", "PD", "control", "PD"], "-9999"),
        (["999", "PD", "control", "PD"], "999"),
        (["9", "M", "F", "M"], "9"),
        (["99", "1", "2", "3", "4", "5"], "99"),
    ],
)
def test_codes_beside_labels(cells: list[str], missing: str) -> None:
    values, notes = read(cells)
    assert values[0] is None
    assert f"holds {missing} " in notes.questions[0]


@pytest.mark.parametrize(
    "cells",
    [
        ["60", "88", "92", "95", "99"],
        ["950", "970", "999", "1020"],
        ["-1", "1", "-1", "1"],
        ["-2", "-1", "0", "3"],
        ["3", "4", "5", "9"],
        [str(site) for site in range(1, 13)],
        ["site9", "site99"],
    ],
)
def test_values_that_only_look_like_codes_stay(cells: list[str]) -> None:
    values, notes = read(cells)
    assert [str(value).removesuffix(".0") for value in values] == cells
    assert not notes.questions


def test_a_lone_negative_code_near_the_others_is_kept_and_asked_about() -> None:
    values, notes = read(["-1", "0", "1", "1"])
    assert values == [-1, 0, 1, 1]
    assert "often a code for missing: kept" in notes.questions[0]


@given(
    st.lists(st.integers(0, 120), min_size=2, max_size=40),
    st.sampled_from([-9999, -999, 9999, -99999, 99999]),
    st.integers(1, 3),
)
def test_large_codes_are_found_in_any_column_of_usual_numbers(numbers: list[int], code: int, times: int) -> None:
    assume(max(numbers) > 2)
    found = outlying_codes([*map(float, numbers), *[float(code)] * times])
    assert found[code] is True
    assert {value for value, is_missing in found.items() if is_missing} <= {code, 99, 7, 8, 9}


@given(st.lists(st.floats(-4, 4).map(lambda value: round(value, 2)), min_size=4, max_size=30))
def test_measurements_between_integers_are_no_codes(values: list[float]) -> None:
    found = outlying_codes(value for value in values if not value.is_integer())
    assert found == {}


@given(st.lists(st.one_of(st.none(), st.text(max_size=6), st.integers(-9999, 9999).map(str)), max_size=12))
def test_no_cell_is_lost_without_a_word(cells: list[str | None]) -> None:
    """Whatever the cells are: each is kept, or its line or text is named."""
    raw = raw_table(cells)
    cleaned = infer_columns(raw, {"x": "x"})
    problems = {problem.row for problem in cleaned.problems}
    told = [question for question in cleaned.questions if "taken as missing" in question]
    for row, text in enumerate(raw["x"].tolist()):
        value = cleaned.table["x"][row]
        is_missing = value is None or (isinstance(value, float) and math.isnan(value))
        named = row in problems or any(f" {text} (" in question for question in told)
        assert is_missing == (text is None or named)


def test_codes_of_all_columns_and_of_one() -> None:
    raw = raw_table(["-7", "1", "2"], "first")
    raw["second"] = ["-7", "5", "3,5"]
    codes = MissingCodes.parse(["-7", "second=5"], ["first", "second"])
    cleaned = infer_columns(raw, {"first": "first", "other": "second"}, codes)
    np.testing.assert_array_equal(cleaned.table["first"], [np.nan, 1, 2])
    np.testing.assert_array_equal(cleaned.table["other"], [np.nan, np.nan, 3.5])
    assert cleaned.remarks == [
        "first: 1 cell holds -7, declared as missing",
        "second: 1 cell holds -7, declared as missing",
        "second: 1 cell holds 5, declared as missing",
    ]
    with pytest.raises(ValueError, match=r"'agee=5', but there is no column 'agee'; there are first, second"):
        MissingCodes.parse(["agee=5"], ["first", "second"])


def test_declared_columns_are_not_guessed_at_where_a_range_decides() -> None:
    raw = raw_table(["99", "-9999", "20", "30"], "Age")
    age = BEIVariable("age", "continuous", unit="years")
    ranged = clean_columns(raw, [Column(age, "Age", low=0, high=120)])
    np.testing.assert_array_equal(ranged.table["age"], [99, np.nan, 20, 30])
    assert (len(ranged.problems), ranged.questions) == (1, [])
    free = clean_columns(raw, [Column(age, "Age")])
    np.testing.assert_array_equal(free.table["age"], [np.nan, np.nan, 20, 30])
    assert len(free.questions) == 2
    certain = clean_columns(raw, [Column(age, "Age", missing=())])
    np.testing.assert_array_equal(certain.table["age"], [99, -9999, 20, 30])


def test_a_constant_that_is_no_label_is_a_problem_of_every_row() -> None:
    state = BEIVariable("state", "categorical", ["rest", "task"])
    cleaned = clean_columns(raw_table(["1", "2"]), [Column(state, "", value="sleep"), Column(state, "x")])
    assert [(problem.column, problem.line) for problem in cleaned.problems] == [
        ("state", 2), ("state", 3), ("x", 2), ("x", 3),
    ]  # fmt: skip


def test_sites_are_text_without_codes() -> None:
    found = clean_labels(raw_table(["1", "2", "-9999", "03"]), "site", "x")
    assert found.table["site"].tolist() == ["1", "2", None, "03"]
    assert "x: 1 cell holds -9999" in found.questions[0]


# --- tables ---


def test_a_row_with_a_cell_too_many_is_refused(tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("id,volume,age\ns1,1,234,30\ns2,987,40\n")
    with pytest.raises(ValueError, match=r"people\.csv, line 2 has 4 cells, but the header has 3.*in quotes"):
        read_table(tmp_path / "people.csv")
    (tmp_path / "people.csv").write_text('\nid,volume,age\ns1,"1,234",30,\n\ns2,987\n')
    table = read_table(tmp_path / "people.csv")
    assert table.to_numpy().tolist() == [["s1", "1,234", "30"], ["s2", "987", None]]
    assert table.index.tolist() == [3, 5]
