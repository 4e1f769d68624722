"""Which source the settings ask for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from modeling_lcm.atlases import find_atlas, region_names

from .archives import archive_source
from .base import DEFAULT_ATLAS, Source
from .bids import bids_source
from .edge_tables import edge_source
from .fetchers import fetch_source
from .files import file_source, what_is_there
from .images import image_source
from .regions import Regions
from .tables import read_table


# Columns of a region table that may hold the values of the label image.
LABEL_COLUMNS = ("label", "code", "value", "index")
INPUTS = ("connectivity", "time_series", "images", "bids", "fetch")


@dataclass(frozen=True)
class _Whose:
    """Names subject and line of a row, for messages."""

    subjects: list[Any]
    lines: list[int]
    where: str

    def __call__(self, row: int) -> str:
        return f"subject {self.subjects[row]}, line {self.lines[row]} of {self.where}"


def open_source(arguments: Any, check: Callable[[pd.DataFrame], None]) -> Source:
    """Find the scans that the settings of training.prepare describe; none is read yet.

    Args:
        arguments (`PrepareArguments`): the settings.
        check (`Callable`): refuses a table that cannot be used, before scans are searched for.

    Raises:
        ValueError: none or several kinds of input, or settings that do not fit the table.
        FileNotFoundError: a table or folder, or every scan, is missing.
    """
    given = [name for name in INPUTS if getattr(arguments, name) is not None]
    if len(given) != 1:
        raise ValueError(
            "Give --input with what you have, or one of connectivity (FC matrices), time_series, images, bids and "
            f"fetch; got {', '.join(given) or 'none'}."
        )
    kind = given[0]
    if arguments.select and kind != "bids":
        raise ValueError("select chooses among the files of a BIDS folder: it goes with bids only.")
    if kind == "fetch":
        source: Source = fetch_source(
            arguments.fetch, arguments.data_dir, arguments.fetch_url, arguments.fetch_options, _regions(arguments)
        )
    elif kind == "bids":
        source = _from_bids(arguments)
    else:
        source = _from_table(kind, arguments, check)
    if len(source.table) == 0:
        reason = source.absent[0].reason if source.absent else "The table has no scans."
        pattern = getattr(arguments, kind) if kind in ("connectivity", "time_series", "images") else ""
        raise FileNotFoundError(f"{reason} {what_is_there(pattern)}".strip() if "{" in pattern else reason)
    if kind in ("bids", "fetch"):
        check(source.table)
    return source


def _from_bids(arguments: Any) -> Source:
    shorthand = {"task": arguments.bids_task, "space": arguments.bids_space}
    select = [*arguments.select, *(f"{key}={value}" for key, value in shorthand.items() if value is not None)]
    regions = None if arguments.regions is None else read_table(arguments.regions).get("name")
    return bids_source(
        arguments.bids, arguments.participants or None, select, arguments.confounds, arguments.atlas,
        None if regions is None else regions.tolist(), labels_img=arguments.labels_img, labels=arguments.labels,
    )  # fmt: skip


def _from_table(kind: str, arguments: Any, check: Callable[[pd.DataFrame], None]) -> Source:
    where = arguments.participants
    if not where:
        raise ValueError("No table of phenotypes was given: add --participants FILE.tsv.")
    table = expand_rows(read_table(where), arguments.expand)
    check(table)
    whose = _Whose(table[arguments.subject_column].tolist(), table.index.tolist(), where)
    pattern = getattr(arguments, kind)
    if kind == "images":
        options = _image_options(arguments)
        if arguments.confounds_files is None and _has_fmriprep_names(pattern):
            options["strategy"] = None if arguments.confounds == "none" else arguments.confounds
        return image_source(pattern, table, whose, arguments.confounds_files, **options)
    regions, triangle = _regions(arguments), arguments.triangle
    if pattern.lower().endswith(".npz") and "{" not in pattern:
        return archive_source(Path(pattern), kind, table, whose, where, arguments.subject_column, regions, triangle)
    if kind == "connectivity" and "{" not in pattern and Path(pattern).suffix.lower() in (".tsv", ".csv", ".txt"):
        return edge_source(Path(pattern), table, whose, regions, triangle)
    return file_source(pattern, kind, table, whose, regions, arguments.array_name, triangle)


def expand_rows(table: pd.DataFrame, expand: list[str]) -> pd.DataFrame:
    """Repeat every row once per scan that a subject may have.

    Args:
        table (`pd.DataFrame`): one row per subject.
        expand (`list[str]`): COLUMN=VALUE for each scan, one column throughout.

    Raises:
        ValueError: an item is not COLUMN=VALUE, or the columns differ.
    """
    if not expand:
        return table
    pairs = [item.partition("=") for item in expand]
    if len({column for column, _, _ in pairs}) != 1 or not all(sign for _, sign, _ in pairs):
        raise ValueError(f"expand needs COLUMN=VALUE with one COLUMN throughout, got {', '.join(expand)}.")
    return pd.concat([table.assign(**{column: value}) for column, _, value in pairs]).sort_index(kind="stable")


def _has_fmriprep_names(pattern: str) -> bool:
    return "_desc-preproc_bold.nii" in pattern


def _image_options(arguments: Any) -> dict[str, Any]:
    options = {name: getattr(arguments, name) for name in ("labels_img", "labels")}
    return {"atlas": arguments.atlas or DEFAULT_ATLAS, **options}


def _regions(arguments: Any) -> Regions:
    atlas = arguments.atlas or DEFAULT_ATLAS
    known = find_atlas(atlas)
    names, labels = None, None
    if arguments.regions is not None:
        names, labels = _region_table(arguments.regions)
    elif known is not None:
        names = region_names(known)
    count = len(names) if names is not None else known.num_regions if known is not None else None
    return Regions.of_atlas(atlas, count, names, labels)


def _region_table(path: str) -> tuple[list[str], dict[int, str] | None]:
    """Names in matrix order, and names of label values if the table has a column with these."""
    table = read_table(path)
    if "name" not in table.columns:
        raise ValueError(f"{path} has no column 'name'; it has {', '.join(table.columns)}.")
    names = table["name"].tolist()
    if None in names or len(set(names)) < len(names):
        raise ValueError(f"{path} needs another name in every row of its column 'name'; some are missing or double.")
    for column in LABEL_COLUMNS:
        values = table[column].tolist() if column in table.columns else []
        if values and all(value is not None and value.isdigit() for value in values):
            return names, dict(zip(map(int, values), names, strict=True))
    return names, None
