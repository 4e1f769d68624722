"""Numbers in text files as programs write them: any separator, decimal commas, headers, row names, comments."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from modeling_lcm.atlases import ATLASES, region_labels
from modeling_lcm.connectivity_checks import find_counters

from .tables import MISSING_TEXTS


Cells = list[list[str]]

# What starts a comment: AFNI, NumPy and FSL; MATLAB and Octave.
_COMMENTS = ("#", "%")
_SEPARATORS = ("\t", ";", "|", ",", None)  # None: any white space
_WITH_POINT = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
_WITH_COMMA = re.compile(r"[+-]?\d+(?:,\d+)?(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf|infinity)", re.IGNORECASE)
# Halves of a number that was cut at its decimal comma; whole numbers are not written so.
_CUT_DECIMAL = re.compile(r"-0|0\d+")
_QUOTED = re.compile(r'"([^"]*)"|(\S+)')
# Names of columns that are never a region.
_INDEX_NAMES = re.compile(
    r"|index|unnamed:? ?\d+|row[ _.]?names?|rows?|times?(?:[ _.]?\(?(?:s|sec|seconds|ms)\)?)?|time[ _.]?points?"
    r"|frames?|volumes?|vols?|trs?|dynamics?|file|sub-brick|(?:subject|participant|session)(?:[ _]?id)?|run",
    re.IGNORECASE,
)
_SAMPLE = 20  # lines from which the format is found


@dataclass(frozen=True)
class FileArray:
    """An array and what its file says about it.

    Args:
        values (`np.ndarray`): numbers.
        header (`list[str]`, *optional*): names of the columns.
        rows (`list[str]`, *optional*): names of the rows.
        remarks (`tuple[str, ...]`): what was left out.
    """

    values: np.ndarray
    header: list[str] | None = None
    rows: list[str] | None = None
    remarks: tuple[str, ...] = ()

    def without(self, columns: np.ndarray, *remarks: str) -> "FileArray":
        """Without some columns (bool, one per column)."""
        header = None if self.header is None else [self.header[j] for j in np.flatnonzero(~columns)]
        return replace(self, values=self.values[:, ~columns], header=header, remarks=(*self.remarks, *remarks))


@dataclass(frozen=True)
class _Format:
    """How cells are separated (`None`: white space) and what stands before decimals."""

    separator: str | None
    decimal: str

    def split(self, line: str) -> list[str]:
        if self.separator is None:
            return line.split() if '"' not in line else [a or b for a, b in _QUOTED.findall(line)]
        cells = line.split(self.separator) if '"' not in line else next(csv.reader([line], delimiter=self.separator))
        return [cell.strip() for cell in cells]

    def is_number(self, cell: str) -> bool:
        pattern = _WITH_POINT if self.decimal == "." else _WITH_COMMA
        return pattern.fullmatch(cell) is not None

    def number(self, cell: str) -> float:
        if self.decimal == ".":
            return float(cell)
        return float(cell.replace(",", ".") if "." not in cell else "a point may separate thousands")


@dataclass
class _Table:
    """Rows of cells, and the header above them."""

    format: _Format
    rows: Cells
    lines: list[int]  # number of every row's line in the file
    header: list[str] | None = None
    remarks: list[str] = field(default_factory=list)

    def drop(self, column: int) -> None:
        for row in self.rows:
            del row[column]
        if self.header is not None and len(self.header) > len(self.rows[0]):
            del self.header[column]


def read_numbers(text: str) -> FileArray:
    """Read a text file's one table of numbers.

    Lines that begin with # or % are comments; the last one before the numbers may be the header. Columns of text, of
    row names and of time, and separators at the ends of lines, are left out with a remark.

    Raises:
        ValueError: no numbers, rows of different lengths, or a cell that is no number; the message names the line.
    """
    comments, lines, numbers = _without_comments(text)
    separators: tuple[str | None, ...] = _SEPARATORS
    if lines and (declared := re.fullmatch(r"sep=(.)", lines[0].strip(' "'), re.IGNORECASE)):  # for Excel
        separators, lines, numbers = (declared[1],), lines[1:], numbers[1:]
    form = _find_format(lines, separators)
    table = _Table(form, [form.split(line) for line in lines], numbers)
    words = [sum(_is_text(form, cell) for cell in row) for row in table.rows[:3]]
    if len(words) > 2 and min(words[:2]) > words[2] + 1:
        raise ValueError("it has two lines of words above the numbers; keep the one that names the columns")
    if _has_header(table):
        table.header = [_clean(name) for name in table.rows.pop(0)]
        table.lines.pop(0)
    _trim(table)
    width = _check_widths(table)
    if table.header is None:
        table.header = _header_in_comments(comments, form, {width, width - 1} if _has_row_names(table) else {width})
    _align_header(table, width)
    return _to_array(table)


def _without_comments(text: str) -> tuple[list[str], list[str], list[int]]:
    """Comments above the numbers, lines that are none, and the numbers of these lines."""
    comments: list[str] = []
    lines: list[str] = []
    numbers: list[int] = []
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        bare = line.strip()
        if bare.startswith(_COMMENTS):
            comments += [bare] if not lines else []
        elif bare:
            lines.append(re.sub(r"\s+#.*$", "", line) if lines else line)
            numbers.append(number)
    return comments, lines, numbers


def _find_format(lines: list[str], separators: Sequence[str | None]) -> _Format:
    """The format in which most cells are numbers, and there the one with the most columns.

    Raises:
        ValueError: there are no numbers in any.
    """
    sample = lines[1 : _SAMPLE + 1] or lines  # the first line may be a header
    if not sample:
        raise ValueError("it is empty")
    scores = {
        form: score
        for separator in separators
        for form in (_Format(separator, "."), _Format(separator, ","))
        if (score := _score(form, sample))[0] > 0
    }
    if scores:
        return max(scores, key=lambda form: scores[form])
    if any(re.search(r"\d,\d", line) for line in sample):
        raise ValueError(
            "its decimal commas cannot be told from commas between columns; save it with semicolons or tabs between "
            "columns, or with decimal points"
        )
    raise ValueError("it holds no table of numbers in text: one line per volume (or region), columns separated")


def _score(form: _Format, sample: list[str]) -> tuple[float, int]:
    """Share of cells that are numbers, in rows of the usual width, and that width."""
    rows = [form.split(line) for line in sample]
    width, usual = Counter(map(len, rows)).most_common(1)[0]
    cells = [cell for row in rows for cell in row if cell.lower() not in MISSING_TEXTS]
    if not cells:
        return 0.0, width
    whole = form.separator == "," and all(re.fullmatch(r"[+-]?\d+", cell) for cell in cells)
    if whole and any(map(_CUT_DECIMAL.fullmatch, cells)):
        return 0.0, width
    return round(sum(map(form.is_number, cells)) / len(cells) * usual / len(rows), 2), width


def _has_header(table: _Table) -> bool:
    """Whether the first row names the columns, in words or numbers."""
    if len(table.rows) < 2:
        return False
    first, second, form = table.rows[0], table.rows[1], table.format
    shift = max(len(second) - len(first), 0)  # R's row names have no name
    pairs = list(zip(first, second[shift:], strict=False))
    if any(_is_text(form, top) and not _is_text(form, below) for top, below in pairs):
        return True
    if all(_is_text(form, top) for top in first) and len(first) > 1 and len(set(first)) == len(first):
        return any(map(form.is_number, second))
    named = first[1:] if first[0] == "" else first
    return _names_by_number([_clean(name) for name in named], table.rows[1:])


def _names_by_number(named: list[str], rows: Cells) -> bool:
    """Whether a row of whole numbers is a header: counts, or label values of an atlas."""
    if len(named) < 3 or not all(re.fullmatch(r"\d+", name) for name in named) or len(set(named)) < len(named):
        return False
    values = [int(name) for name in named]
    if values in (list(range(len(values))), list(range(1, len(values) + 1))):
        return True
    tables = (region_labels(atlas) for atlas in ATLASES.values() if atlas.has_table)
    if len(values) >= 10 and any(set(values) <= labels.keys() for labels in tables if labels):
        return True
    whole = all(re.fullmatch(r"[+-]?\d+", cell) for row in rows[:_SAMPLE] for cell in row)
    return not whole and (values == sorted(values) or len(values) >= 6)


def _is_text(form: _Format, cell: str) -> bool:
    return cell.lower() not in MISSING_TEXTS and not form.is_number(cell)


def _clean(name: str) -> str:
    return name.strip().strip("\"'").lstrip("#").strip()


def _trim(table: _Table) -> None:
    """Drop columns that only separators at the ends, or beginnings, of lines make."""
    widths = [len(row) for row in table.rows]
    if {max(widths), max(widths) - 1} == set(widths):  # some lines end with a separator, some do not
        longer = [row for row in table.rows if len(row) == max(widths)]
        for row in longer if all(row[-1] == "" for row in longer) else ():
            row.pop()
    for column in (-1, 0):
        while len(table.rows[0]) > 1 and all(row and row[column] == "" for row in table.rows):
            if table.header is not None and len(table.header) >= len(table.rows[0]) and table.header[column]:
                break  # a named region without values
            table.drop(column)
            table.remarks.append(f"separators at the {'end' if column else 'beginning'} of lines ignored")


def _check_widths(table: _Table) -> int:
    widths = [len(row) for row in table.rows]
    width = Counter(widths).most_common(1)[0][0]
    if len(set(widths)) == 1:
        return width
    if len(widths) > 2 and widths in (sorted(set(widths)), sorted(set(widths), reverse=True)):
        raise ValueError(
            f"its lines have {widths[0]}, {widths[1]}, {widths[2]}, ... numbers, as one triangle of a matrix; save "
            "the whole matrix"
        )
    odd = next(number for number, found in enumerate(widths) if found != width)
    raise ValueError(
        f"line {table.lines[odd]} has {widths[odd]} columns, but most lines have {width}; check the separator, "
        "and cells that are not filled"
    )


def _has_row_names(table: _Table) -> bool:
    """Whether the first column names or numbers the rows."""
    first = [row[0] for row in table.rows]
    if all(_is_text(table.format, cell) for cell in first):
        return True
    numbers = [table.format.number(cell) if table.format.is_number(cell) else np.nan for cell in first]
    return bool(find_counters(np.array(numbers)[:, None])[0])


def _header_in_comments(comments: list[str], form: _Format, widths: set[int]) -> list[str] | None:
    """Names of the columns in the last comment that has as many; NumPy's savetxt and AFNI write them so."""
    for comment in reversed(comments):
        bare = comment.lstrip("".join(_COMMENTS)).strip()
        for cells in (form.split(bare), re.split(r"[\s,;#]+", bare)):
            names = [_clean(name) for name in cells]
            if len(names) in widths and len(names) > 1 and _may_be_names(names):
                return names
    return None


def _may_be_names(names: list[str]) -> bool:
    """Whether words may be names of columns, or label values, rather than a remark such as "TR = 2 s"."""
    numbers = sum(re.fullmatch(r"[\d.]+", name) is not None for name in names)
    return numbers in (0, len(names)) and not any(re.search(r"[=:]", name) for name in names)


def _align_header(table: _Table, width: int) -> None:
    if table.header is None:
        return
    while len(table.header) > width and table.header[-1] == "":
        table.header.pop()
    if len(table.header) == width:
        return
    if len(table.header) == width - 1 and _has_row_names(table):  # R's write.table gives row names no name
        table.header.insert(0, "")
        return
    raise ValueError(
        f"its header names {len(table.header)} columns, but its lines have {width}; names with spaces need quotes"
    )


def _to_array(table: _Table) -> FileArray:
    values, text = _parse(table)
    header = table.header or [""] * values.shape[1]
    rows = None
    if text[0] and len({row[0] for row in table.rows}) == len(table.rows):
        rows = [_clean(row[0]) for row in table.rows]
    array = FileArray(values, table.header, rows, tuple(table.remarks))
    if rows is not None:
        array = array.without(np.arange(len(text)) == 0)
        text, header = text[1:], header[1:]
    if text.any():
        named = [name for name, is_text in zip(header, text, strict=True) if is_text and name]
        array = array.without(text, f"column {', '.join(named) or 'without a name'} is text and no region: left out")
    if array.header is not None:
        other = np.array([_INDEX_NAMES.fullmatch(name) is not None for name in array.header])
        if other.any() and not other.all():
            names = [name or "without a name" for name, is_other in zip(array.header, other, strict=True) if is_other]
            array = array.without(other, f"column {', '.join(names)} is no region: left out")
    if array.values.shape[1] == 0:
        raise ValueError("it holds no numbers beside names")
    return array


def _parse(table: _Table) -> tuple[np.ndarray, np.ndarray]:
    """Numbers, NaN where nothing was recorded, and which columns are text throughout (bool)."""
    form, width = table.format, len(table.rows[0])
    values = np.full((len(table.rows), width), np.nan)
    unreadable: list[tuple[int, int]] = []
    for number, row in enumerate(table.rows):
        try:
            values[number] = [form.number(cell) for cell in row]
        except ValueError:
            for column, cell in enumerate(row):
                if form.is_number(cell):
                    values[number, column] = form.number(cell)
                elif cell.lower() not in MISSING_TEXTS:
                    unreadable.append((number, column))
    text = np.zeros(width, dtype=bool)
    for column in {column for _, column in unreadable}:
        text[column] = np.isnan(values[:, column]).all()
    for number, column in unreadable:
        if not text[column]:
            raise ValueError(
                f"line {table.lines[number]}, column {column + 1} holds {table.rows[number][column][:30]!r}, which is "
                "no number"
            )
    return values, text
