"""Settings of preparing and merging data sets."""

from dataclasses import dataclass, field

from ..cli import setting


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


BAD_SCANS = ("skip", "stop")


ABSENT_SCANS = ("report", "expected")


@dataclass
class PrepareArguments:
    """Make one data set of a phenotype table and scans."""

    output: str = setting("", "Folder for the data set.")
    recipe: str | None = setting(None, "Cohort recipe: a name in training/cohorts, or a YAML file of your own.")
    data_dir: str | None = setting(None, "Folder of your download of the recipe's cohort.")
    input: str | None = setting(
        None,
        "What you have, to be recognised: a folder of fMRIPrep or XCP-D, a folder of scans with their table, an "
        "archive, or one table of edges. The settings below say it in detail.",
    )
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


@dataclass
class MergeArguments:
    """Make one data set of several prepared ones."""

    inputs: list[str] = field(default_factory=list, metadata={"help": "Folders made by training.prepare."})
    output: str = setting("", "Folder for the merged data set.")
    by_atlas: bool = setting(
        False,
        "Cohorts of several atlases: one data set per atlas, in OUTPUT/ATLAS, with one vocabulary and the same ids.",
    )
    aliases: str | None = setting(None, "YAML file of labels that mean the same: {variable: {spelling: label}}.")
    prefix_sites: bool = setting(
        False, "Put the cohort before the names of sites and scanners: equal names are different ones."
    )
    reference: str | None = setting(None, "Data set to compare FC with, usually the checkpoint's training data.")
    parquet: bool = setting(True, "Also write Parquet files.")
