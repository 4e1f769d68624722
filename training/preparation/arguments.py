"""Settings of preparing and merging data sets."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from ..command_line.settings import require_choices, setting


PATHS = (
    "input",
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


@dataclass
class PrepareArguments:
    """Make one data set of a phenotype table and scans."""

    output: str = setting("", "Folder for the data set.", example="runs/dataset", required=True)
    recipe: str | None = setting(
        None,
        "Cohort recipe: a name in training/cohorts, or a YAML file of your own.",
        group="where the scans are",
        example="abide1",
    )
    data_dir: str | None = setting(None, "Folder of your download of the recipe's cohort.")
    input: str | None = setting(
        None,
        "What you have, to be recognised: a folder of fMRIPrep or XCP-D, a folder of scans with their table, an "
        "archive, or one table of edges. The settings below say it in detail.",
        example="derivatives/xcp_d",
    )
    participants: str = setting(
        "",
        "Table of phenotypes, one row per scan: .tsv (BIDS participants.tsv) or .csv. Needed without recipe, input, "
        "bids and fetch.",
        example="participants.tsv",
    )
    connectivity: list[str] | str | None = setting(
        None,
        "FC matrices: one .npz for all scans, or a file per scan, as a pattern with column names in braces, such as "
        '"fc/{participant_id}.npy" (.npy .npz .mat .tsv .csv .txt .1D). Of several atlases: a pattern for each, or '
        "one with {atlas}.",
    )
    time_series: list[str] | str | None = setting(
        None, "ROI time series (volumes, regions) instead of FC, given the same way."
    )
    images: str | None = setting(None, "Preprocessed 4-D NIfTI images in MNI space, as a pattern.")
    bids: str | None = setting(
        None, "Folder of derivatives: all runs of fMRIPrep in MNI space, or the tables that XCP-D made of them."
    )
    select: list[str] = setting(
        [], "Only scans of --bids with these entities, as ENTITY=VALUE: res=2, echo=1, seg=Gordon."
    )
    fetch: str | None = setting(None, "Cohort that nilearn downloads.", example="abide_pcp")
    fetch_url: str | None = setting(None, "Mirror to fetch from, in the same layout.")
    fetch_options: list[str] = setting([], "Arguments of nilearn's fetcher, as NAME=VALUE.")
    triangle: Literal["lower", "upper"] | None = setting(
        None,
        'Order of vectorised FC: "lower" (nilearn, numpy.tril_indices) or "upper" (numpy.triu_indices). Default: '
        "found from the values; where both are possible, you are asked.",
    )
    array_name: str | None = setting(None, "Array inside .mat or .npz files that hold several.")
    confounds: Literal["simple", "scrubbing", "compcor", "ica_aroma", "none"] = setting(
        "simple", "nilearn's strategy for fMRIPrep confounds."
    )
    confounds_files: str | None = setting(
        None, "Tables to regress out of --images, as a pattern; all columns are used."
    )
    bids_task: str | None = setting(None, "Only this task of --bids.")
    bids_space: str | None = setting(
        None, "Only this space of --bids. Default: MNI152NLin2009cAsym, or the only MNI one."
    )
    expand: list[str] = setting([], "Repeat every row of the table, as COLUMN=VALUE for each scan of a subject.")
    absent_scans: Literal["report", "expected"] = setting(
        "report", 'Rows without a scan: "report", or "expected" if they are no mistake.'
    )
    atlas: list[str] | str | None = setting(
        None,
        "Atlas id; decides how many regions are needed and their order. Default: aal-116, or that of --bids's tables. "
        "Several: every scan is stored in each of them.",
        group="atlas and FC",
        example="schaefer-200",
    )
    labels_img: list[str] | str | None = setting(
        None, "Label image of the atlas (of each), for NIfTI input. Default: fetched by nilearn."
    )
    labels: list[str] | str | None = setting(None, "Names of its values: a table with columns index and name.")
    regions: list[str] | str | None = setting(
        None, "Table with a column `name`: regions in the order of the data. Default: the atlas's own, if known."
    )
    estimator: Literal["pearson", "ledoit_wolf"] = setting("pearson", "Estimator of the correlations.")
    subject_column: str = setting(
        "participant_id", "Column that identifies the subject.", group="columns of the table"
    )
    session_column: str | None = setting(None, "Column that tells several scans of a subject apart.")
    site_column: str | None = setting(None, "Column with the site; stored as `site`.")
    scanner_column: str | None = setting(None, "Column with the scanner, beside the site; stored as `scanner`.")
    mean_fd_column: str | None = setting(None, "Column with the mean framewise displacement in mm, if files lack it.")
    phenotypes: list[str] = setting([], "Columns to keep, as NAME or NAME=COLUMN. Default: all but the identifiers.")
    missing: list[str] = setting(
        [],
        "Codes for missing values, such as -9999 (all columns) or age=999 (one column; age= for none in "
        "it). Default: n/a, empty and the like; other codes that stand out are taken as missing, and asked about.",
    )
    positive: list[str] = setting(
        [],
        "Positive one of two labels, as VARIABLE=LABEL: what sensitivity and ROC AUC will speak of. Kept "
        "with the data set; training may choose another.",
    )
    keep_time_series: bool = setting(
        False, "Also store the ROI time series (float16, standardised): for fine-tuning on random windows of them."
    )
    bad_scans: Literal["skip", "stop"] = setting(
        "skip",
        '"skip": leave scans out that cannot be used, list them and end with exit code 1; "stop" at the first.',
        group="quality",
    )
    max_mean_fd: float | None = setting(None, "Rule: leave scans out that moved more (mean FD, mm).")
    min_volumes: int | None = setting(
        None, "Rule: leave scans out with fewer volumes. Below 20 they are refused anyway."
    )
    max_missing_regions: int | None = setting(None, "Rule: leave scans out with more regions without signal.")
    min_homotopic: float | None = setting(
        None, "Rule: leave scans out whose homotopic FC ranks lower (0.5 = by chance)."
    )
    duplicates: Literal["report", "drop"] = setting(
        "report", 'Near-identical FC of two subjects: "report" or "drop" the second.'
    )
    reference: str | None = setting(None, "Data set to compare FC with, usually the checkpoint's training data.")
    parquet: bool = setting(True, "Also write Parquet files for datasets.load_dataset and the Hub.", group="running")
    workers: int = setting(1, "Processes that read scans.")
    shard: str | None = setting(None, "Do only part INDEX/COUNT of the scans, for several machines.", example="2/8")
    merge_shards: int | None = setting(None, "Make the data set out of so many finished shards.", example="8")

    def __post_init__(self) -> None:
        """Refuse settings out of range, before any data are read."""
        require_choices(self)
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}.")


# Settings of which every atlas may have its own.
_OF_ATLAS = ("atlas", "connectivity", "time_series", "labels_img", "labels", "regions")


def in_each_atlas(arguments: PrepareArguments) -> list[PrepareArguments]:
    """The settings of every atlas, with one value where several may be given.

    Raises:
        ValueError: the settings name different numbers of atlases.
    """
    values = {name: getattr(arguments, name) for name in _OF_ATLAS}
    lists = {name: [value] if isinstance(value, str) else value for name, value in values.items() if value}
    most = max(lists, key=lambda name: len(lists[name]), default="atlas")
    count = len(lists.get(most, [None]))
    atlases = lists.get("atlas", [None])
    doubled = [atlas for atlas in atlases if atlases.count(atlas) > 1]
    if doubled:
        raise ValueError(f"atlas has {doubled[0]} twice: name every atlas once.")
    for name, given in lists.items():
        shares = name in ("connectivity", "time_series") and "{atlas}" in given[0]
        if len(given) != count and not (len(given) == 1 and shares):
            pattern = ", or a pattern with {atlas}" if name in ("connectivity", "time_series") else ""
            raise ValueError(
                f"{most} has {count} values and {name} has {len(given)}: with several atlases give one for each, in "
                f"the order of --atlas{pattern}."
            )
    if count > 1 and "atlas" not in lists:
        raise ValueError(f"{most} has {count} values: name the atlas of each with --atlas.")
    found = []
    for number in range(count):
        one: dict[str, Any] = dict.fromkeys(_OF_ATLAS)
        one |= {name: given[number if len(given) > 1 else 0] for name, given in lists.items()}
        for name in ("connectivity", "time_series"):
            if one[name] and one["atlas"]:
                one[name] = one[name].replace("{atlas}", one["atlas"])
        found.append(replace(arguments, **one))
    return found


@dataclass
class MergeArguments:
    """Make one data set of several prepared ones."""

    inputs: list[str] = setting([], "Folders made by training.prepare.", example="runs/abide runs/adhd", required=True)
    output: str = setting("", "Folder for the merged data set.", example="runs/both", required=True)
    by_atlas: bool = setting(
        False,
        "Cohorts of several atlases: one data set per atlas, in OUTPUT/ATLAS, with one vocabulary and the same ids.",
    )
    union: bool = setting(
        False,
        "Cohorts without an atlas in common, too, become one data set, for a model of several atlases; each scan then "
        "has the atlases of its own cohort.",
    )
    aliases: str | None = setting(None, "YAML file of labels that mean the same: {variable: {spelling: label}}.")
    prefix_sites: bool = setting(
        False, "Put the cohort before the names of sites and scanners: equal names are different ones."
    )
    reference: str | None = setting(None, "Data set to compare FC with, usually the checkpoint's training data.")
    parquet: bool = setting(True, "Also write Parquet files.")
