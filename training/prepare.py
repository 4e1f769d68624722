"""Tables and scans -> one data set folder: `python -m training.prepare --config FILE.yaml`."""

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from modeling_lcm import FCFeatureExtractor
from modeling_lcm.atlases import find_atlas, region_names

from .arguments import command_line, parse_arguments, setting
from .data import SCAN_COLUMNS, save_cohort, to_triangles
from .files import require_new, write_folder


MISSING = ["n/a", "N/A", "NA", "", "nan", "NaN", "None"]
SCAN_FORMATS = (".npy", ".tsv", ".csv", ".txt", ".1D")
ID_ARRAYS = ("scan_id", "participant_id", "subject_id")  # what an archive may call its ids
BATCH = 64  # scans that are checked at once

# Row of the table -> where its scan lies, for messages, and its array.
ScanReader = Callable[[int], tuple[str, np.ndarray]]


@dataclass
class PrepareArguments:
    """Make one data set of a phenotype table and scans."""

    output: str = setting("", "Folder for the data set.")
    participants: str = setting("", "Table of phenotypes, one row per scan: .tsv (BIDS participants.tsv) or .csv.")
    connectivity: str | None = setting(
        None,
        "FC matrices: one .npz for all scans, or a file per scan, as a pattern with column names in braces, such as "
        '"fc/{participant_id}.npy" (.npy .tsv .csv .txt .1D).',
    )
    time_series: str | None = setting(None, "ROI time series (volumes, regions) instead of FC, given the same way.")
    atlas: str = setting("aal-116", "Atlas id; decides how many regions are needed and their order.")
    regions: str | None = setting(
        None, "Table with a column `name`: regions in the order of the data. Default: the atlas's own, if known."
    )
    subject_column: str = setting("participant_id", "Column that identifies the person.")
    session_column: str | None = setting(None, "Column that tells several scans of a person apart.")
    phenotypes: list[str] = field(
        default_factory=list,
        metadata={"help": "Columns to keep, as NAME or NAME=COLUMN. Default: all but the identifiers."},
    )


def prepare(arguments: PrepareArguments) -> Path:
    """Read, check and store a cohort.

    Args:
        arguments (`PrepareArguments`): where everything lies.

    Returns:
        The folder of the data set: Arrow data with `subject_id`, `session`, phenotype columns and `connectivity`
        (float16 upper triangle), and `fc_definition.json`.

    Raises:
        ValueError: a table or scan that does not fit; the message names the file, scan or row.
        FileNotFoundError: a file is missing.
        FileExistsError: the output folder holds something already.
    """
    output = require_new(arguments.output)
    if (arguments.connectivity is None) == (arguments.time_series is None):
        raise ValueError("Give either connectivity (FC matrices) or time_series, one of the two.")
    table, source = read_participants(arguments)
    kind = "connectivity" if arguments.time_series is None else "time_series"
    read = _scan_reader(getattr(arguments, kind), kind, source, arguments)
    extractor = _extractor(arguments, read)
    batches = []
    for start in tqdm(range(0, len(source), BATCH), desc="scans", unit="batch", leave=False):
        batch = [read(row) for row in range(start, min(start + BATCH, len(source)))]
        batches.append(to_triangles(_connectivity(extractor, kind, batch)))
    triangles = np.concatenate(batches)
    return write_folder(output, lambda folder: save_cohort(folder, table, triangles, extractor))


def _extractor(arguments: PrepareArguments, read: ScanReader) -> FCFeatureExtractor:
    """The FC definition; the number of regions of an atlas that we do not know is that of the first scan."""
    if arguments.regions is not None:
        regions = read_table(arguments.regions)
        if "name" not in regions.columns:
            raise ValueError(f"{arguments.regions} has no column 'name'; it has {', '.join(regions.columns)}.")
        return FCFeatureExtractor(atlas=arguments.atlas, region_names=regions["name"].tolist())
    if find_atlas(arguments.atlas) is not None:
        return FCFeatureExtractor(atlas=arguments.atlas, region_names=region_names(arguments.atlas))
    return FCFeatureExtractor(atlas=arguments.atlas, num_regions=read(0)[1].shape[-1])


def read_table(path: str | Path, as_text: bool = False) -> pd.DataFrame:
    """Read a .tsv or .csv table; "n/a" and empty cells are missing values.

    Args:
        path (`str` or `Path`): the table.
        as_text (`bool`): keep every cell as it is written: an id such as 0051 is not the number 51.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty, or no such table.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no table {path}.")
    separator = "," if path.suffix == ".csv" else "\t"
    try:
        table = pd.read_csv(
            path, sep=separator, na_values=MISSING, keep_default_na=False, dtype=str if as_text else None
        )
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    if table.empty:
        raise ValueError(f"The table {path} has no rows.")
    return table


def read_participants(arguments: PrepareArguments) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table to store, and the table as it was read (text only), row for row.

    Raises:
        ValueError: a column is missing, an id is missing, or two rows are the same scan.
    """
    where = arguments.participants
    if not where:
        raise ValueError("No table of phenotypes was given: add --participants FILE.tsv.")
    source, typed = read_table(where, as_text=True), read_table(where)
    identifiers = [arguments.subject_column] + ([arguments.session_column] if arguments.session_column else [])
    columns = _phenotype_columns(arguments, source, identifiers)
    for column in identifiers:
        if source[column].isna().any():
            raise ValueError(f"{where}, {_line(int(source[column].isna().argmax()))}: {column!r} is missing.")
    session = source[arguments.session_column] if arguments.session_column else "1"
    table = pd.DataFrame({"subject_id": source[arguments.subject_column], "session": session})
    repeated = table.duplicated()
    if repeated.any():
        row = int(repeated.argmax())
        raise ValueError(
            f"{where}, {_line(row)}: another row of {table['subject_id'].iloc[row]} in one session; name the column "
            "that tells the scans apart with --session_column."
        )
    return pd.concat([table, typed[list(columns.values())].set_axis(list(columns), axis=1)], axis=1), source


def _phenotype_columns(arguments: PrepareArguments, source: pd.DataFrame, identifiers: list[str]) -> dict[str, str]:
    """Name in the data set -> column of the table, of every phenotype that is kept."""
    wanted = {}
    for item in arguments.phenotypes:
        name, _, column = item.partition("=")
        wanted[name] = column or name
    if not wanted:
        wanted = {name: name for name in source.columns if name not in identifiers}
    missing = [column for column in [*identifiers, *wanted.values()] if column not in source.columns]
    if missing:
        raise ValueError(
            f"{arguments.participants} has no column {', '.join(map(repr, missing))}; it has "
            f"{', '.join(source.columns)}."
        )
    taken = [name for name in wanted if name in SCAN_COLUMNS]
    if taken:
        raise ValueError(
            f"A phenotype cannot be called {taken[0]!r}, which describes the scan: choose the columns to keep with "
            f"--phenotypes, renamed as NAME={taken[0]}, or name it with --session_column."
        )
    return wanted


def _line(row: int) -> str:
    return f"line {row + 2}"  # counted from 1, after the header


def _scan_reader(where: str, kind: str, source: pd.DataFrame, arguments: PrepareArguments) -> ScanReader:
    """How to read the scan of a row; every scan is located here, before any is read."""
    if where.endswith(".npz") and "{" not in where:
        return _npz_reader(Path(where), kind, source, arguments)
    paths: list[Path] = []
    for row, record in enumerate(source.to_dict("records")):
        try:
            path = Path(where.format(**record))
        except (KeyError, IndexError, AttributeError, ValueError) as error:
            raise ValueError(
                f"The pattern {where!r} does not fit the table ({error}): write names of its columns in braces, "
                f"{', '.join(source.columns)}."
            ) from None
        whose = _whose(source, row, arguments)
        if not path.is_file():
            raise FileNotFoundError(f"There is no scan {path} ({whose}).")
        if path.suffix not in SCAN_FORMATS:
            raise ValueError(f"{path} ({whose}) has none of the formats {', '.join(SCAN_FORMATS)}.")
        paths.append(path)
    if len(set(paths)) < len(paths):
        path = max(paths, key=paths.count)
        raise ValueError(
            f"The pattern {where!r} leads to {path} for {paths.count(path)} rows of the table: write columns in "
            "braces that tell the scans apart."
        )
    return lambda row: (f"{paths[row]} ({_whose(source, row, arguments)})", read_array(paths[row]))


def _whose(source: pd.DataFrame, row: int, arguments: PrepareArguments) -> str:
    subject = source[arguments.subject_column].iloc[row]
    return f"subject {subject}, {_line(row)} of {arguments.participants}"


def read_array(path: Path) -> np.ndarray:
    """One scan's array from a .npy, .tsv, .csv, .txt or .1D file (a header line is skipped).

    Raises:
        ValueError: it is not numbers in that format.
    """
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        separator = {".csv": ",", ".tsv": "\t"}.get(path.suffix, r"\s+")
        array = pd.read_csv(path, sep=separator, header=None, comment="#", na_values=MISSING, low_memory=False)
        first = array.iloc[0]
        names = first.map(lambda value: isinstance(value, str)).any()
        # Tables written without region names have their column numbers as header.
        if names or first.tolist() in (list(range(len(first))), list(range(1, len(first) + 1))):
            array = array.iloc[1:]
        return array.to_numpy(dtype=np.float64)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a table of numbers: {error}") from error


def _npz_reader(path: Path, kind: str, source: pd.DataFrame, arguments: PrepareArguments) -> ScanReader:
    """Reader of one archive with all scans, whatever their order in it.

    The archive holds ids and, for FC, `connectivity` `(scans, regions, regions)` or `fc_triu` `(scans, edges)`; for
    time series, `data` `(volumes of all scans, regions)` and `offsets` `(scans + 1,)`. Ids are `participant_id` or
    `subject_id`, as in the subject column, or `scan_id`, as in the table's column of that name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no archive {path}.")
    id_name, ids, arrays = _open_npz(path, kind)
    column = id_name if id_name in source.columns else arguments.subject_column
    if len(set(ids)) != len(ids):
        raise ValueError(f"{path} holds several scans of {max(ids, key=ids.count)}; its {id_name} must be unique.")
    wanted = source[column].tolist()
    if len(set(wanted)) != len(wanted):
        raise ValueError(
            f"Several rows of {arguments.participants} would get the one scan of {max(wanted, key=wanted.count)} in "
            f"{path}: give the archive and the table a scan_id each."
        )
    position = {name: index for index, name in enumerate(ids)}
    absent = [name for name in wanted if name not in position]
    if absent:
        raise ValueError(
            f"{path} has no scan of {len(absent)} of {len(wanted)} rows of {arguments.participants}, {absent[0]} "
            f"among them (its {id_name} begins with {', '.join(ids[:3])})."
        )

    def read(row: int) -> tuple[str, np.ndarray]:
        index = position[wanted[row]]
        place = f"{path} ({_whose(source, row, arguments)})"
        if kind == "time_series":
            return place, arrays[0][arrays[1][index] : arrays[1][index + 1]]
        return place, _square(arrays[0][index], place)

    return read


def _open_npz(path: Path, kind: str) -> tuple[str, list[str], list[np.ndarray]]:
    """Name of the ids, ids, and the arrays of an archive."""
    needed = {"connectivity": [("connectivity",), ("fc_triu",)], "time_series": [("data", "offsets")]}[kind]
    try:
        with np.load(path, allow_pickle=False) as archive:
            id_name = next((name for name in ID_ARRAYS if name in archive), None)
            found = next((names for names in needed if all(name in archive for name in names)), None)
            if id_name is None or found is None:
                raise ValueError(
                    f"it holds {', '.join(archive.files)}; needed are participant_id (or scan_id) and "
                    f"{' or '.join(' + '.join(names) for names in needed)}"
                )
            ids, arrays = [str(name) for name in archive[id_name]], [archive[name] for name in found]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be used: {error}.") from error
    scans = len(arrays[-1]) - (kind == "time_series")
    if scans != len(ids):
        raise ValueError(f"{path} holds {scans} scans but {len(ids)} ids in {id_name}.")
    return id_name, ids, arrays


def _square(values: np.ndarray, place: str) -> np.ndarray:
    """An upper triangle `(edges,)` as its matrix; a matrix stays as it is."""
    if values.ndim != 1:
        return values
    regions = round((1 + np.sqrt(1 + 8 * len(values))) / 2)
    if regions * (regions - 1) // 2 != len(values):
        raise ValueError(
            f"{place}: {len(values)} values are no upper triangle without diagonal: regions * (regions - 1) / 2 "
            "would be needed."
        )
    matrix = np.ones((regions, regions), dtype=np.float32)
    rows, columns = np.triu_indices(regions, k=1)
    matrix[rows, columns] = matrix[columns, rows] = values
    return matrix


def _connectivity(extractor: FCFeatureExtractor, kind: str, batch: list[tuple[str, np.ndarray]]) -> np.ndarray:
    """FC of a batch; when it is refused, find the first scan that is, and say where it lies."""
    scans = [scan for _, scan in batch]
    try:
        return extractor(**{kind: np.stack(scans) if kind == "connectivity" else scans})["connectivity"]
    except (ValueError, TypeError):
        for place, scan in batch:
            try:
                extractor(**{kind: scan if kind == "connectivity" else [scan]})
            except (ValueError, TypeError) as error:
                raise ValueError(f"{place}: {error}") from error
        raise


@command_line
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    arguments = parse_arguments(PrepareArguments, argv)
    folder = prepare(arguments)
    print(f"Data set written to {folder}")


if __name__ == "__main__":
    main()
