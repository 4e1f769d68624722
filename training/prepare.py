"""Tables and scans -> one data set folder: `python -m training.prepare --config FILE.yaml`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from modeling_lcm import FCFeatureExtractor

from .arguments import command_line, parse_arguments, setting
from .data import save_cohort, to_triangles
from .files import require_new, write_folder


MISSING = ["n/a", "N/A", "NA", "", "nan", "NaN", "None"]


@dataclass
class PrepareArguments:
    """Make one data set of a phenotype table and scans."""

    output: str = setting("", "Folder for the data set.")
    participants: str = setting("", "Table of phenotypes, one row per scan: .tsv (BIDS participants.tsv) or .csv.")
    connectivity: str | None = setting(
        None,
        "FC matrices: one .npz for all scans, or a file per scan, as a pattern with column names in braces, such as "
        '"fc/{participant_id}.npy" (.npy .tsv .csv).',
    )
    time_series: str | None = setting(None, "ROI time series (volumes, regions) instead of FC, given the same way.")
    atlas: str = setting("aal-116", "Atlas id; decides how many regions are needed and their order.")
    regions: str | None = setting(None, "Table with a column `name`: regions in the order of the data.")
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
    names = None if arguments.regions is None else read_table(arguments.regions)["name"].tolist()
    extractor = FCFeatureExtractor(atlas=arguments.atlas, region_names=names)
    kind = "connectivity" if arguments.time_series is None else "time_series"
    scans = _read_scans(getattr(arguments, kind), kind, source, arguments)
    batches = []
    for start in tqdm(range(0, len(source), 64), desc="scans"):
        batch = [next(scans) for _ in range(min(64, len(source) - start))]
        batches.append(to_triangles(_connectivity(extractor, kind, batch, table["subject_id"], start)))
    triangles = np.concatenate(batches)
    return write_folder(output, lambda folder: save_cohort(folder, table, triangles, extractor))


def read_table(path: str | Path) -> pd.DataFrame:
    """Read a .tsv or .csv table; "n/a" and empty cells are missing values.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is empty.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no table {path}.")
    separator = "," if path.suffix == ".csv" else "\t"
    table = pd.read_csv(path, sep=separator, na_values=MISSING, keep_default_na=False)
    if table.empty:
        raise ValueError(f"The table {path} has no rows.")
    return table


def read_participants(arguments: PrepareArguments) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table to store, and the table as it was read, row for row.

    Raises:
        ValueError: a column is missing, an id is missing, or two rows are the same scan.
    """
    source = read_table(arguments.participants)
    identifiers = [arguments.subject_column] + ([arguments.session_column] if arguments.session_column else [])
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
    if source[arguments.subject_column].isna().any():
        row = int(source[arguments.subject_column].isna().argmax()) + 2
        raise ValueError(f"{arguments.participants}, line {row}: {arguments.subject_column!r} is missing.")
    session = source[arguments.session_column].astype(str) if arguments.session_column else "1"
    table = pd.DataFrame({"subject_id": source[arguments.subject_column].astype(str), "session": session})
    repeated = table.duplicated()
    if repeated.any():
        subject = table.loc[repeated, "subject_id"].iloc[0]
        raise ValueError(
            f"{arguments.participants} has several rows for {subject} in one session; name the column that tells the "
            "scans apart with --session_column."
        )
    for name, column in wanted.items():
        table[name] = source[column]
    return table, source


def _read_scans(where: str, kind: str, source: pd.DataFrame, arguments: PrepareArguments) -> Any:
    """Yield one array per row of the table."""
    if where.endswith(".npz") and "{" not in where:
        yield from _read_npz(Path(where), kind, source[arguments.subject_column].astype(str).tolist())
        return
    for row in source.to_dict("records"):
        try:
            path = Path(where.format(**row))
        except KeyError as error:
            raise ValueError(
                f"The pattern {where!r} names the column {error}, which the table does not have."
            ) from None
        yield read_array(path)


def read_array(path: Path) -> np.ndarray:
    """One scan's array from a .npy, .tsv, .csv or .1D file (a header line is skipped).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not numbers in that format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no scan {path}.")
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        separator = "," if path.suffix == ".csv" else r"\s+" if path.suffix == ".1D" else "\t"
        array = pd.read_csv(path, sep=separator, header=None, comment="#", na_values=MISSING, low_memory=False)
        if array.iloc[0].map(lambda value: isinstance(value, str)).any():
            array = array.iloc[1:]
        return array.to_numpy(dtype=np.float64)
    except (ValueError, pd.errors.ParserError) as error:
        raise ValueError(f"{path} cannot be read as a table of numbers: {error}") from error


def _read_npz(path: Path, kind: str, subjects: list[str]) -> Any:
    """Yield the table's scans from one archive, whatever their order in it.

    The archive holds the ids (`participant_id`, `scan_id` or `subject_id`) and, for FC, `connectivity` `(scans,
    regions, regions)` or `fc_triu` `(scans, edges)`; for time series, `data` `(volumes of all scans, regions)` and
    `offsets` `(scans + 1,)`.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no archive {path}.")
    with np.load(path, allow_pickle=False) as archive:
        id_name = next((name for name in ("participant_id", "scan_id", "subject_id") if name in archive), None)
        needed = {"connectivity": [("connectivity",), ("fc_triu",)], "time_series": [("data", "offsets")]}[kind]
        found = next((names for names in needed if all(name in archive for name in names)), None)
        if id_name is None or found is None:
            raise ValueError(
                f"{path} holds {', '.join(archive.files)}; needed are participant_id and "
                f"{' or '.join(' + '.join(names) for names in needed)}."
            )
        ids = [str(name) for name in archive[id_name]]
        if len(set(ids)) != len(ids):
            raise ValueError(f"{path} holds several scans of {max(ids, key=ids.count)}; ids must be unique.")
        arrays = [archive[name] for name in found]
    position = {name: index for index, name in enumerate(ids)}
    absent = [subject for subject in subjects if subject not in position]
    if absent:
        raise ValueError(f"{path} has no scan of {len(absent)} participants, {absent[0]} among them.")
    for subject in subjects:
        index = position[subject]
        if kind == "time_series":
            yield arrays[0][arrays[1][index] : arrays[1][index + 1]]
        else:
            yield _square(arrays[0][index])


def _square(values: np.ndarray) -> np.ndarray:
    """An upper triangle `(edges,)` as its matrix; a matrix stays as it is."""
    if values.ndim == 2:
        return values
    regions = int((1 + np.sqrt(1 + 8 * len(values))) / 2)
    matrix = np.ones((regions, regions), dtype=np.float32)
    rows, columns = np.triu_indices(regions, k=1)
    matrix[rows, columns] = matrix[columns, rows] = values
    return matrix


def _connectivity(
    extractor: FCFeatureExtractor, kind: str, batch: list[np.ndarray], subjects: pd.Series, start: int
) -> np.ndarray:
    """FC of a batch; when it is refused, find the first scan that is, and name its subject."""
    try:
        return extractor(**{kind: np.stack(batch) if kind == "connectivity" else batch})["connectivity"]
    except ValueError:
        for index, scan in enumerate(batch):
            try:
                extractor(**{kind: [scan] if kind == "time_series" else scan})
            except ValueError as error:
                raise ValueError(f"Subject {subjects.iloc[start + index]}: {error}") from error
        raise


@command_line
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    arguments = parse_arguments(PrepareArguments, argv)
    folder = prepare(arguments)
    print(f"Data set written to {folder}")


if __name__ == "__main__":
    main()
