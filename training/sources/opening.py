"""Which source the settings ask for."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from modeling_lcm.atlases import find_atlas, region_names

from .arrays import Regions
from .base import DEFAULT_ATLAS, Source
from .bids import bids_source
from .fetchers import fetch_source
from .files import archive_source, file_source
from .images import image_source
from .tables import read_table


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
            f"Give either connectivity (FC matrices) or time_series, or one of images, bids and fetch; got "
            f"{', '.join(given) or 'none'}."
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
        raise FileNotFoundError(reason)
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
    if pattern.endswith(".npz") and "{" not in pattern:
        return archive_source(Path(pattern), kind, table, whose, where, arguments.subject_column)
    return file_source(pattern, kind, table, whose, _regions(arguments), arguments.array_name)


def expand_rows(table: pd.DataFrame, expand: list[str]) -> pd.DataFrame:
    """Repeat every row once per scan that a person may have.

    Args:
        table (`pd.DataFrame`): one row per person.
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
    names = None
    if arguments.regions is not None:
        table = read_table(arguments.regions)
        names = table["name"].tolist() if "name" in table.columns else None
    elif known is not None:
        names = region_names(known)
    count = len(names) if names is not None else known.num_regions if known is not None else None
    return Regions.of_atlas(atlas, count, names)
