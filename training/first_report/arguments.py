"""Settings of a first report; those of preparing and evaluating keep their names."""

from dataclasses import dataclass
from typing import Literal

from ..command_line.cli import setting
from ..evaluation.arguments import Baseline


@dataclass
class ReportArguments:
    """From a folder of scans to one page: prepare, evaluate honestly, fine-tune on all subjects, explain."""

    input: str = setting(
        "",
        "What you have: a folder of fMRIPrep's or XCP-D's derivatives, a folder or pattern of time series or FC with "
        "a table, an archive (.npz), one wide table of edges, or a data set made by training.prepare.",
        group="needed",
        example="derivatives/fmriprep",
        required=True,
    )
    output: str = setting("", "Folder for everything; the page is report.html in it.", example="report", required=True)
    task: str = setting("", "Column to predict, such as a diagnosis or age.", example="Group", required=True)
    participants: str = setting(
        "", "Table of phenotypes, where it does not lie beside the scans.", group="subjects and labels"
    )
    kind: Literal["auto", "categorical", "continuous"] = setting("auto", "Whether the task has labels or numbers.")
    labels: list[str] = setting([], "Only subjects with these labels of the task.", example="control patient")
    positive: str | None = setting(None, "The positive one of two labels: of it speak sensitivity and ROC AUC.")
    subject_column: str | None = setting(None, "Column that identifies the subject.")
    session_column: str | None = setting(None, "Column that tells several scans of a subject apart.")
    site_column: str | None = setting(None, "Column with the site or scanner. Default: site.")
    missing: list[str] = setting([], "Codes for missing values, such as -9999 or age=999.")
    select: list[str] = setting([], "Only scans with these BIDS entities, as ENTITY=VALUE.", group="scans")
    atlas: str | None = setting(None, "Atlas id. Default: that of the files, else aal-116.")
    regions: str | None = setting(None, "Table with a column name: regions in the order of the data.")
    labels_img: str | None = setting(None, "Label image of the atlas, for images. Default: fetched by nilearn.")
    confounds: str | None = setting(
        None, "fMRIPrep's confounds to remove: simple, scrubbing, compcor, ica_aroma, none."
    )
    triangle: Literal["upper", "lower"] | None = setting(None, "Order of vectorised FC.")
    max_mean_fd: float | None = setting(None, "Leave scans out that moved more (mean framewise displacement, mm).")
    min_volumes: int | None = setting(None, "Leave scans out with fewer volumes.")
    checkpoint: str | None = setting(
        None, "Pretrained checkpoint to start from. Default: none.", group="model and evaluation"
    )
    head: Literal["ridge", "decoder"] = setting(
        "ridge", "A closed form, in seconds, or training by gradients, which needs a checkpoint."
    )
    n_folds: int = setting(5, "Folds, by subject; fewer where a label has fewer subjects.")
    repeats: int = setting(1, "Cross-validations with other folds.")
    baselines: list[Baseline] = setting(
        ["majority", "linear_best", "confounds"], "Models that LCM is held against; see training.evaluate."
    )
    epochs: int = setting(12, "Passes over the training subjects, with the decoder.")
    resamples: int = setting(1000, "Bootstrap resamples and permutations.")
    seed: int = setting(0, "Seed of folds and weights.")
    workers: int = setting(1, "Processes that read scans.")
    title: str = setting("", "Title of the page. Default: made of the task and the input.")
    dry_run: bool = setting(False, "Say what would be done, and what time and memory it takes; nothing is written.")

    def __post_init__(self) -> None:
        """Refuse settings out of range, before anything is read."""
        for name, least in (("n_folds", 2), ("repeats", 1), ("epochs", 1), ("resamples", 0), ("workers", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.positive is not None and self.kind == "continuous":
            raise ValueError(f"positive is {self.positive!r}, but kind is continuous: leave one of them out.")
        if self.head == "decoder" and not self.checkpoint:
            raise ValueError("head is decoder, which needs a checkpoint: add --checkpoint, or leave head out.")
        if self.labels and len(set(self.labels)) < 2:
            raise ValueError(f"labels needs two or more labels of the task, got {' '.join(self.labels)}.")
