"""Numbers in text as programs write them: separators, decimals, headers, row names, columns that are no region."""

import csv
import gzip
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_lcm.atlases import region_labels, region_names
from training.preparation.sources.arrays import read_array, scan_format
from training.preparation.sources.text import FileArray, read_numbers


NAMES = ["Insula_L", "Insula_R", "Left Thalamus", "V1", "A-1 (left)"]


def numbers(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Values with four decimals, so that text holds them exactly."""
    return np.random.default_rng(seed).normal(size=(rows, columns)).round(4)


def as_text(values: np.ndarray, separator: str, decimal: str, header: list[str] | None = None) -> str:
    """A table as spreadsheets write it: cells with the separator in quotes."""
    file = io.StringIO()
    writer = csv.writer(file, delimiter=separator, lineterminator="\n")
    writer.writerows([header] if header else [])
    writer.writerows([[f"{value:.4f}".replace(".", decimal) for value in row] for row in values])
    return file.getvalue()


def check(array: FileArray, values: np.ndarray, header: list[str] | None = None) -> None:
    """The array holds these values under these names."""
    np.testing.assert_allclose(array.values, values, atol=1e-9)
    assert array.header == header


# Separators, decimals, headers --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    separator=st.sampled_from([",", ";", "\t", "|", " "]),
    decimal=st.sampled_from([".", ","]),
    named=st.booleans(),
    rows=st.integers(3, 30),
    columns=st.integers(3, 5),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    end=st.booleans(),
    beginning=st.sampled_from(["", "\n\n", "# by a program, 2.0.1\n", "% TR = 2.0\n", "# TR: 2\n", "# a b\n"]),
    seed=st.integers(0, 99),
)
def test_any_separator_with_any_decimals(separator, decimal, named, rows, columns, newline, end, beginning, seed):
    header = NAMES[:columns] if named else None
    values = numbers(rows, columns, seed)
    text = as_text(values, separator, decimal, header)
    if end and separator != " ":
        text = "\n".join(line + separator for line in text.splitlines())
    array = read_numbers((beginning + text).replace("\n", newline))
    check(array, values, header)
    assert bool(array.remarks) == (end and separator != " ")


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;"])
def test_the_separator_that_excel_is_told(line: str) -> None:
    check(read_numbers(f"{line}\n{as_text(numbers(5, 3), ';', ',', NAMES[:3])}"), numbers(5, 3), NAMES[:3])
    check(read_numbers("sep=\t\n" + as_text(numbers(5, 3), "\t", ".", NAMES[:3])), numbers(5, 3), NAMES[:3])


@pytest.mark.parametrize("delimiter", [" ", ",", ";", "\t"])
@pytest.mark.parametrize("comments", ["# ", "#", "", "% "])
def test_numpys_savetxt(tmp_path: Path, delimiter: str, comments: str) -> None:
    names, values = ["Insula_L", "Insula_R", "Thalamus_L"], numbers(6, 3)
    for joint in {delimiter, " "} if comments else {delimiter}:
        header = "volumes by regions, TR 2 s\n" * bool(comments) + joint.join(names)
        np.savetxt(tmp_path / "scan.txt", values, delimiter=delimiter, header=header, comments=comments)
        check(read_array(tmp_path / "scan.txt"), values, names)


@pytest.mark.parametrize("quote", ['"', ""])
@pytest.mark.parametrize("separator", [" ", ",", ";", "\t"])
def test_rs_row_names(quote: str, separator: str) -> None:
    """`write.table` gives row names no name: the header is one shorter."""
    values, names = numbers(12, 3), ["X7Networks_LH_Vis_1", "Insula.L", "V3"]
    decimal = "," if separator == ";" else "."
    cells = [[f"{quote}{n}{quote}", *(f"{v}".replace(".", decimal) for v in row)] for n, row in enumerate(values, 1)]
    header = [f"{quote}{name}{quote}" for name in names]
    for first in ([], [f"{quote}{quote}"]) if separator != " " else ([],):
        text = "\n".join(separator.join(row) for row in [first + header, *cells])
        array = read_numbers(text)
        check(array, values, names)
        assert len(array.remarks) == 1


def test_row_names_are_kept_for_matrices(tmp_path: Path) -> None:
    values = numbers(3, 3)
    table = pd.DataFrame(values, index=pd.Index(NAMES[:3], name="Node"), columns=NAMES[1:4])
    table.to_csv(tmp_path / "a_relmat.tsv", sep="\t")
    array = read_array(tmp_path / "a_relmat.tsv")
    check(array, values, NAMES[1:4])
    assert array.rows == NAMES[:3]


def test_afnis_statistics_of_regions() -> None:
    labels = list(region_labels("aal-116"))[:4]
    lines = ["\t".join(["File", "Sub-brick", *(f"Mean_{label} " for label in labels)])]
    lines += ["\t".join(["rest+tlrc", f"{n}[?]", *map(str, row)]) for n, row in enumerate(numbers(9, 4))]
    check(read_numbers("\n".join(lines)), numbers(9, 4), [f"Mean_{label}" for label in labels])


# Headers of numbers -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(kept=st.sets(st.integers(0, 115), min_size=6), seed=st.integers(0, 99), index=st.booleans())
def test_label_values_in_a_header_are_no_signal(kept: set[int], seed: int, index: bool) -> None:
    labels = list(region_labels("aal-116"))
    header = [str(labels[n]) for n in np.random.default_rng(seed).permutation(sorted(kept))]
    values = numbers(15, len(header), seed)
    table = pd.DataFrame(values, columns=header)
    check(read_numbers(table.to_csv(index=index)), values, header)


def test_label_values_above_whole_numbers() -> None:
    """Raw signals are whole numbers, too: an atlas's labels are still its labels."""
    labels = [str(label) for label in region_labels("aal-116")]
    values = np.random.default_rng(0).integers(500, 9000, size=(20, 116))
    check(read_numbers(pd.DataFrame(values, columns=labels).to_csv(index=False)), values, labels)
    check(read_numbers(pd.DataFrame(values).to_csv(index=False, header=False)), values)


@pytest.mark.parametrize("first", [0, 1])
def test_counted_columns_are_a_header(first: int) -> None:
    header = [str(number) for number in range(first, first + 5)]
    check(read_numbers(as_text(numbers(8, 5), "\t", ".", header)), numbers(8, 5), header)


# Columns that are no region -----------------------------------------------------------------------------------------

OTHERS = {
    "index": np.arange(30),
    "": np.arange(30),
    "Unnamed: 0": np.arange(30),
    "Time": np.round(0.735 * np.arange(30), 2),
    "time (s)": 2.0 * np.arange(30),
    "frame": np.arange(1, 31),
    "volume": np.r_[0, 1, 3:20, 25:36],  # censored
    "TR": np.arange(30),
    "X": np.arange(1, 31),
    "row names": [f"vol{n}" for n in range(30)],
    "clock": [f"00:00:{n:02}" for n in range(30)],
    "subject": ["sub-01"] * 30,
}


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("place", [0, 4])
def test_what_is_no_region_is_left_out_with_a_remark(tmp_path: Path, name: str, header: bool, place: int) -> None:
    table = pd.DataFrame(numbers(30, 4), columns=NAMES[:4])
    table.insert(place, name, OTHERS[name])
    table.to_csv(tmp_path / "scan.csv", index=False, header=header)
    array = read_array(tmp_path / "scan.csv")
    check(array, numbers(30, 4), NAMES[:4] if header else None)
    assert len(array.remarks) == 1 or array.rows == list(OTHERS[name])


def test_time_points_above_regions_in_rows(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "scan.txt", np.vstack([2.2 * np.arange(30), numbers(4, 30)]))
    array = read_array(tmp_path / "scan.txt")
    check(array, numbers(4, 30))
    assert array.remarks == ("a first row that counts the columns, or says their time, is no region: left out",)


@settings(deadline=None, max_examples=40)
@given(rows=st.integers(10, 60), columns=st.integers(1, 9), seed=st.integers(0, 999), whole=st.booleans())
def test_signals_are_never_taken_for_counts(rows: int, columns: int, seed: int, whole: bool) -> None:
    values = np.random.default_rng(seed).normal(size=(rows, columns)).cumsum(axis=0)
    values = (1000 + 50 * values).round() if whole else values.round(4)
    assert read_numbers(as_text(values, "\t", ".")).values.shape == values.shape


# Files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "A.CSV", "a.tsv.gz", "a.TXT", "a.1D", "a.1D.gz", "a.dat", "a.txt.GZ"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_suffixes_and_encodings(tmp_path: Path, name: str, encoding: str) -> None:
    text = as_text(numbers(5, 3), ";", ",", ["Größe_L", "Insula_R", "V1"]).encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(text) if name.lower().endswith("gz") else text)
    assert scan_format(tmp_path / name) is not None
    check(read_array(tmp_path / name), numbers(5, 3), ["Größe_L", "Insula_R", "V1"])


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.gz", "a.npy.gz", "a.nii.gz"])
def test_other_formats_are_none(name: str) -> None:
    assert scan_format(Path(name)) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "it is empty"),
        ("words\nand more words\n", "holds no table of numbers"),
        ("0,57,-0,23,0,0114\n0,11,-0,05,0,0071\n", "decimal commas cannot be told from commas between columns"),
        ("1.5\t2.5\n1.5\tthree\n1.5\t2.0\n", "line 2, column 2 holds 'three'"),
        ("1,5;2\n1,5;1.234\n1,5;2,5\n1,5;2,5\n", r"line 2, column 2 holds '1\.234'"),
        ("1.5 2.5 3.5\n1.5 2.5\n1.5 2.5 3.5\n", "line 2 has 2 columns, but most lines have 3"),
        ("1.0\n0.5 1.0\n0.1 0.2 1.0\n0.1 0.3 0.2 1.0\n", "one triangle of a matrix"),
        ("aal\taal\nA\tB\n0.1\t0.2\n0.3\t0.4\n", "two lines of words above the numbers"),
        ("A\tB\na.u.\ta.u.\n0.1\t0.2\n0.3\t0.4\n", "two lines of words above the numbers"),
        ("a b\n0.1 0.2 0.3\n0.3 0.4 0.1\n", "header names 2 columns, but its lines have 3"),
        ("Left Insula Right Insula\n0.1 0.2\n0.3 0.4\n", "header names 4 columns, but its lines have 2"),
        ("a\tb\nx\ty\nz\tw\n", "holds no table of numbers"),
    ],
)
def test_what_cannot_be_read_is_told_in_a_sentence(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "scan.txt").write_text(text)
    with pytest.raises(ValueError, match=problem) as told:
        read_array(tmp_path / "scan.txt")
    assert str(told.value).startswith("scan.txt cannot be read as a table of numbers: ")
    assert len(str(told.value)) < 300 and "\n" not in str(told.value)


@settings(deadline=None, max_examples=100)
@given(st.text(alphabet="0123456789.,;-+e# \t\nabLR\"'|%", max_size=80))
def test_any_text_is_numbers_or_a_sentence(text: str) -> None:
    try:
        array = read_numbers(text)
    except ValueError as error:
        assert 10 < len(str(error)) < 300
        assert "could not convert" not in str(error) and "Error" not in str(error)
        return
    assert array.values.ndim == 2 and array.values.shape[1] > 0
    assert array.header is None or len(array.header) == array.values.shape[1]
    assert array.rows is None or len(array.rows) == len(array.values)


def test_the_names_of_the_tables_here_are_read_as_names() -> None:
    for atlas in ("aal-116", "schaefer-200"):
        names = region_names(atlas)
        assert read_numbers(as_text(numbers(4, len(names)), ",", ".", names)).header == names
