"""Tables and scans -> one data set folder: `python -m training.prepare --config FILE.yaml`."""

import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from modeling_lcm import FCFeatureExtractor
from modeling_lcm.atlases import find_atlas, region_coordinates, region_names
from modeling_lcm.bei_vocabulary import BEIVariable

from .arguments import command_line, parse_arguments, setting
from .assemble import Excluded, PreparedCohort, assemble, summary_of
from .data import is_phenotype
from .files import require_new
from .first_scans import refuse_other_measures
from .identity import SAME_PERSON
from .labels import infer_variable, label_columns, read_positive
from .missing import MissingCodes
from .phenotypes import Cleaned, Column, clean_columns, clean_labels, infer_columns
from .quality import Rules, homotopic_pairs
from .recipes import Recipe, load_recipe
from .sources.base import DEFAULT_ATLAS, Source
from .sources.opening import open_source
from .sources.tables import read_table
from .store import FinishedScans, Shard, ShardWriter, open_plan, work_folder
from .workers import Job, run


PATHS = (
    "participants",
    "connectivity",
    "time_series",
    "images",
    "confounds_files",
    "bids",
    "labels_img",
    "labels",
    "regions",
)
BAD_SCANS = ("skip", "stop")
ABSENT_SCANS = ("report", "expected")


@dataclass
class PrepareArguments:
    """Make one data set of a phenotype table and scans."""

    output: str = setting("", "Folder for the data set.")
    recipe: str | None = setting(None, "Cohort recipe: a name in training/cohorts, or a YAML file of your own.")
    data_dir: str | None = setting(None, "Folder of your download of the recipe's cohort.")
    participants: str = setting("", "Table of phenotypes, one row per scan: .tsv (BIDS participants.tsv) or .csv.")
    connectivity: str | None = setting(
        None,
        "FC matrices: one .npz for all scans, or a file per scan, as a pattern with column names in braces, such as "
        '"fc/{participant_id}.npy" (.npy .npz .mat .tsv .csv .txt .1D).',
    )
    time_series: str | None = setting(None, "ROI time series (volumes, regions) instead of FC, given the same way.")
    images: str | None = setting(None, "Preprocessed 4-D NIfTI images in MNI space, as a pattern.")
    bids: str | None = setting(
        None, "Folder of derivatives: all runs of fMRIPrep in MNI space, or the tables that XCP-D made of them."
    )
    select: list[str] = field(
        default_factory=list,
        metadata={"help": "Only scans of --bids with these entities, as ENTITY=VALUE: res=2, echo=1, seg=Gordon."},
    )
    fetch: str | None = setting(None, 'Cohort that nilearn downloads: "abide_pcp".')
    fetch_url: str | None = setting(None, "Mirror to fetch from, in the same layout.")
    fetch_options: list[str] = field(
        default_factory=list, metadata={"help": "Arguments of nilearn's fetcher, as NAME=VALUE."}
    )
    triangle: str | None = setting(
        None,
        'Order of vectorised FC: "lower" (nilearn, numpy.tril_indices) or "upper" (numpy.triu_indices). Default: '
        "found from the values; where both are possible, you are asked.",
    )
    array_name: str | None = setting(None, "Array inside .mat or .npz files that hold several.")
    confounds: str = setting("simple", "fMRIPrep confounds: simple, scrubbing, compcor, ica_aroma, or none.")
    confounds_files: str | None = setting(
        None, "Tables to regress out of --images, as a pattern; all columns are used."
    )
    bids_task: str | None = setting(None, "Only this task of --bids.")
    bids_space: str | None = setting(
        None, "Only this space of --bids. Default: MNI152NLin2009cAsym, or the only MNI one."
    )
    expand: list[str] = field(
        default_factory=list,
        metadata={"help": "Repeat every row of the table, as COLUMN=VALUE for each scan of a person."},
    )
    absent_scans: str = setting("report", 'Rows without a scan: "report", or "expected" if they are no mistake.')
    atlas: str | None = setting(
        None,
        "Atlas id; decides how many regions are needed and their order. Default: aal-116, or that of --bids's tables.",
    )
    labels_img: str | None = setting(None, "Label image of the atlas, for NIfTI input. Default: fetched by nilearn.")
    labels: str | None = setting(None, "Names of its values: a table with columns index and name.")
    regions: str | None = setting(
        None, "Table with a column `name`: regions in the order of the data. Default: the atlas's own, if known."
    )
    estimator: str = setting("pearson", '"pearson" or "ledoit_wolf".')
    subject_column: str = setting("participant_id", "Column that identifies the person.")
    session_column: str | None = setting(None, "Column that tells several scans of a person apart.")
    site_column: str | None = setting(None, "Column with the site; stored as `site`.")
    scanner_column: str | None = setting(None, "Column with the scanner, beside the site; stored as `scanner`.")
    mean_fd_column: str | None = setting(None, "Column with the mean framewise displacement in mm, if files lack it.")
    phenotypes: list[str] = field(
        default_factory=list,
        metadata={"help": "Columns to keep, as NAME or NAME=COLUMN. Default: all but the identifiers."},
    )
    missing: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Codes for missing values, such as -9999 (all columns) or age=999 (one column; age= for none in "
            "it). Default: n/a, empty and the like; other codes that stand out are taken as missing, and asked about."
        },
    )
    positive: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Positive one of two labels, as VARIABLE=LABEL: what sensitivity and ROC AUC will speak of. Kept "
            "with the data set; training may choose another."
        },
    )
    keep_time_series: bool = setting(
        False, "Also store the ROI time series (float16, standardised): for fine-tuning on random windows of them."
    )
    bad_scans: str = setting(
        "skip", '"skip": leave scans out that cannot be used, list them and end with exit code 1; "stop" at the first.'
    )
    max_mean_fd: float | None = setting(None, "Rule: leave scans out that moved more (mean FD, mm).")
    min_volumes: int | None = setting(
        None, "Rule: leave scans out with fewer volumes. Below 20 they are refused anyway."
    )
    max_missing_regions: int | None = setting(None, "Rule: leave scans out with more regions without signal.")
    min_homotopic: float | None = setting(
        None, "Rule: leave scans out whose homotopic FC ranks lower (0.5 = by chance)."
    )
    duplicates: str = setting("report", 'Near-identical FC of two subjects: "report" or "drop" the second.')
    reference: str | None = setting(None, "Data set to compare FC with, usually the checkpoint's training data.")
    parquet: bool = setting(True, "Also write Parquet files for datasets.load_dataset and the Hub.")
    workers: int = setting(1, "Processes that read scans.")
    shard: str | None = setting(None, "Do only part INDEX/COUNT of the scans, such as 2/8, for several machines.")
    merge_shards: int | None = setting(None, "Make the data set out of so many finished shards.")


def prepare(arguments: PrepareArguments) -> Path:
    """Read, check and store a cohort.

    Finished scans are kept beside the output until it is complete: a run that was killed goes on when it is repeated.

    Args:
        arguments (`PrepareArguments`): where everything lies.

    Returns:
        The folder of the data set: Arrow data with `subject_id`, `session`, phenotype columns, quality columns
        (`qc_...`) and `connectivity` (float16 upper triangle), `fc_definition.json`, `quality.json`, `quality.html`,
        `README.md`, and `parquet/`. With `shard`, the folder of finished scans.

    Raises:
        ValueError: a table or setting that does not fit, no usable scan, or with `bad_scans="stop"` a scan that cannot
            be used; the message names the file, scan or row.
        FileNotFoundError: a table or folder, or every scan, is missing.
        FileExistsError: the output folder holds something already.
    """
    recipe = load_recipe(arguments.recipe)
    arguments = recipe.complete(arguments, PATHS)
    output = require_new(arguments.output)
    if arguments.bad_scans not in BAD_SCANS:
        raise ValueError(f"bad_scans must be one of {', '.join(BAD_SCANS)}, got {arguments.bad_scans!r}.")
    if arguments.absent_scans not in ABSENT_SCANS:
        raise ValueError(f"absent_scans must be one of {', '.join(ABSENT_SCANS)}, got {arguments.absent_scans!r}.")
    if arguments.workers < 1:
        raise ValueError(f"workers must be at least 1, got {arguments.workers}.")
    rules = Rules(
        **{item.name: getattr(arguments, item.name) for item in fields(Rules) if hasattr(arguments, item.name)}
    )
    source = open_source(arguments, lambda table: check_table(table, arguments, recipe))
    arguments = replace(arguments, atlas=source.atlas_id() or arguments.atlas or DEFAULT_ATLAS)
    if arguments.keep_time_series and source.kind != "time_series":
        raise ValueError("keep_time_series needs time series or images; FC matrices hold none. Leave it out.")
    expected = arguments.absent_scans == "expected"
    excluded = [Excluded(absent.place, absent.reason, expected) for absent in source.absent]
    if arguments.bad_scans == "stop" and source.absent and not expected:
        raise FileNotFoundError(source.absent[0].reason)
    table, cleaned, excluded_rows = describe(arguments, recipe, source)
    positive = {variable.name: variable.positive for variable in recipe.variables if variable.positive is not None}
    labels = {name: infer_variable(table, name, "categorical").labels for name in label_columns(table)}
    positive |= read_positive(arguments.positive, labels)
    excluded += [Excluded(source.places[row], reason, True) for row, reason in excluded_rows.items()]
    extractor = make_extractor(arguments, source)
    rows = [row for row in range(len(source.table)) if row not in excluded_rows]
    refuse_other_measures(source, extractor, rows)
    work = work_folder(output)
    _read_scans(arguments, source, extractor, rows, work)
    if arguments.shard is not None:
        return work
    cohort = PreparedCohort(recipe, table, cleaned, source, extractor, rules, excluded, asdict(arguments), positive)
    edges = extractor.num_regions * (extractor.num_regions - 1) // 2
    scans = FinishedScans.open(work, arguments.merge_shards or 1, len(rows), edges)
    return assemble(output, cohort, scans, rows, work, arguments.reference, arguments.parquet)


def _read_scans(
    arguments: PrepareArguments, source: Source, extractor: FCFeatureExtractor, rows: list[int], work: Path
) -> None:
    """Compute FC of every scan that is not finished yet."""
    plan = {"scans": [source.places[row] for row in rows], "fc": extractor.to_dict(), "settings": source.settings}
    plan["keep_time_series"] = arguments.keep_time_series
    plan["shards"] = arguments.merge_shards or (Shard.parse(arguments.shard).count if arguments.shard else 1)
    open_plan(work, plan)
    if arguments.merge_shards is not None:
        return
    shard = Shard() if arguments.shard is None else Shard.parse(arguments.shard)
    writer = ShardWriter(work, shard)
    try:
        todo = [number for number in shard.rows(len(rows)) if number not in writer.finished]
        number_of = {rows[number]: number for number in todo}
        job = Job(source, extractor, pairs_of(extractor), arguments.keep_time_series)
        results = run(job, [rows[number] for number in todo], arguments.workers)
        for result in tqdm(results, total=len(todo), desc="scans", unit="scan", leave=False):
            if "error" in result.record and arguments.bad_scans == "stop":
                raise ValueError(f"{source.places[result.row]}: {result.record['error']}")
            writer.write(number_of[result.row], result.triangle, result.record, result.series)
    finally:
        writer.close()


def make_extractor(arguments: PrepareArguments, source: Source) -> FCFeatureExtractor:
    """The FC definition; regions of an atlas that we do not know are those that the files agree on."""
    options = {"atlas": arguments.atlas, "estimator": arguments.estimator}
    names = source.region_names()
    if arguments.regions is not None:
        regions = read_table(arguments.regions)
        if "name" not in regions.columns:
            raise ValueError(f"{arguments.regions} has no column 'name'; it has {', '.join(regions.columns)}.")
        names = regions["name"].tolist()
    elif names is None and find_atlas(arguments.atlas) is not None:
        names = region_names(arguments.atlas)
    if names is not None:
        return FCFeatureExtractor(region_names=names, **options)
    if find_atlas(arguments.atlas) is not None:
        return FCFeatureExtractor(**options)
    if source.num_regions() is None:  # no file can be read
        try:
            source.read(0)
        except (ValueError, OSError) as error:
            raise ValueError(f"{source.places[0]}: {error}") from error
    return FCFeatureExtractor(num_regions=source.num_regions(), **options)


def pairs_of(extractor: FCFeatureExtractor) -> np.ndarray:
    """Homotopic regions of an FC definition, `(pairs, 2)`."""
    known = find_atlas(extractor.atlas) if extractor.atlas else None
    same = known is not None and extractor.region_names == region_names(known)
    return homotopic_pairs(extractor.region_names, region_coordinates(known) if same else None)


def check_table(raw: pd.DataFrame, arguments: PrepareArguments, recipe: Recipe) -> None:
    """Refuse a table whose scans cannot be told apart or that lacks a column.

    Raises:
        ValueError: a column or an id is missing, or two rows are the same scan.
    """
    where = arguments.participants or arguments.bids or "the table"
    identifiers = _identifiers(arguments)
    extra = [name for name in (arguments.site_column, arguments.scanner_column, arguments.mean_fd_column) if name]
    _require_columns(
        raw,
        [*identifiers, *extra, *recipe.keep_rows, *(item.column for item in recipe.columns if item.value is None)],
        where,
    )
    if not recipe.columns:
        _require_columns(raw, list(_wanted(arguments, raw).values()), where)
    _missing_codes(arguments, recipe, raw)
    for column in identifiers:
        if raw[column].isna().any():
            raise ValueError(f"{where}, line {raw.index[raw[column].isna()][0]}: {column!r} is missing.")
    repeated = raw.duplicated(subset=identifiers).to_numpy()
    if repeated.any():
        row = int(repeated.argmax())
        raise ValueError(
            f"{where}, line {raw.index[row]}: another row of {raw[arguments.subject_column].iloc[row]} in one "
            "session; name the column that tells the scans apart with --session_column."
        )


def _identifiers(arguments: PrepareArguments) -> list[str]:
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
        wanted = {name: name for name in raw.columns if name not in _identifiers(arguments)}
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
        raise ValueError(
            f"{where} has no column {', '.join(map(repr, missing))}; it has {', '.join(map(str, raw.columns))}."
        )


@command_line
def main(argv: list[str] | None = None) -> None:
    """Command line; exit code 1 when scans or values were dropped without a rule, or a guess is to be confirmed."""
    arguments = parse_arguments(PrepareArguments, argv)
    recipe = load_recipe(arguments.recipe)
    if recipe.name:
        print(f"{recipe.title}\nTerms of use: {recipe.terms}\n{recipe.url}\n")
    folder = prepare(arguments)
    if arguments.shard is not None:
        print(f"Shard {arguments.shard} is finished: {folder}. When all are, repeat with --merge_shards COUNT.")
        return
    text, dropped = summary_of(folder)
    print(text)
    if dropped:
        sys.exit(1)


if __name__ == "__main__":
    main()
