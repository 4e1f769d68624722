"""Settings of an evaluation."""

from dataclasses import dataclass, field

from ..cli import setting


SPLITS = ("kfold", "leave_site_out")


BASELINES = ("majority", "linear", "linear_log", "linear_best", "confounds", "svm", "mlp", "scratch")


@dataclass
class EvaluateArguments:
    """Cross-validate pretraining and fine-tuning by subject, beside simple baselines."""

    data: str = setting("", "Folder made by training.prepare.")
    output: str = setting("", "Folder for metrics, predictions, splits and checkpoints.")
    finetune: str = setting(
        "",
        "YAML file for training.finetune; data, output and checkpoint are set per fold. Without it the pretrained "
        "variables themselves are predicted and scored.",
    )
    pretrain: str | None = setting(
        None,
        "YAML file for training.pretrain, run in every fold on its training subjects. Without it the checkpoint of "
        "the fine-tuning file is used, which must not have seen any test subject.",
    )
    tasks: list[str] = field(
        default_factory=list,
        metadata={"help": "Without --finetune: the pretrained variables to score; default: all that the data have."},
    )
    split: str = setting("kfold", '"kfold" (by subject), or "leave_site_out" (one fold per site).')
    n_folds: int = setting(5, "Number of folds of kfold; sites and split files bring their own.")
    repeats: int = setting(1, "Cross-validations, each with its own fold seed and training seed.")
    splits: str | None = setting(None, "Existing split file; default: drawn with the seed, balanced by the task.")
    positive: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Positive one of two labels, as LABEL or VARIABLE=LABEL; goes before that of the other files. "
            "Sensitivity, F1 and ROC AUC speak of it."
        },
    )
    stratify: str | None = setting(
        None, "Column whose classes k folds balance; default: the task, or the first categorical variable."
    )
    site_column: str = setting("site", "Column with the site (or scanner).")
    same_person: str | None = setting(
        None, "Column whose value several scans of one subject, twins or a family share: no split parts them."
    )
    seed: int = setting(0, "Seed of the folds.")
    ensemble: int = setting(1, "Training seeds per fold whose predictions are averaged; each is also scored alone.")
    train_data: list[str] = field(
        default_factory=list,
        metadata={"help": "Data sets of other cohorts that join the pretraining of every fold; never tested."},
    )
    baselines: list[str] = field(
        default_factory=lambda: ["majority", "linear", "linear_best", "confounds"],
        metadata={
            "help": "Models to score beside LCM on the same folds: majority (or the mean), linear (logistic or ridge "
            "regression), linear_log (the same on the matrix logarithm of FC), linear_best (the better of the two "
            "inside the training subjects, on log FC), confounds (age, sex, motion and site, no FC), svm (linear), "
            "mlp, scratch (fine-tuning alone, from random weights)."
        },
    )
    confounds: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Columns of the baseline confounds; default: age, sex, mean framewise displacement and the site "
            "column, as far as they are recorded."
        },
    )
    mlp_hidden: int = setting(64, "Hidden units of the baseline mlp.")
    external: list[str] = field(
        default_factory=list,
        metadata={"help": "Data sets that are only predicted, by models trained on the whole tested cohort."},
    )
    optimistic: bool = setting(
        False,
        "Also score the test fold after every epoch and report the best, as optimistic, beside the honest score.",
    )
    resamples: int = setting(1000, "Bootstrap resamples and permutations for intervals and p-values; 0: none.")
    allow_seen_subjects: bool = setting(False, "Go on although a checkpoint was trained on test subjects.")
    harmonise: str | None = setting(
        None, "Column with the site: FC is harmonised across sites (ComBat), fitted on each fold's training scans."
    )
    keep_checkpoints: bool = setting(True, "Keep the checkpoints of every fold.")
    resume: bool = setting(False, "Keep the folds that are finished in --output and do the others.")
    title: str = setting("Cross-validation", "Title of the report.")

    def __post_init__(self) -> None:
        """Refuse settings out of range, before any data are read."""
        for name, least in (("repeats", 1), ("ensemble", 1), ("mlp_hidden", 1), ("resamples", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}.")
        fixed = "splits (a split file)" if self.splits is not None else f"split {self.split!r}"
        if self.repeats > 1 and (self.splits is not None or self.split != "kfold"):
            raise ValueError(f"repeats draws new folds each time, which {fixed} cannot: use ensemble for more seeds.")
        if self.finetune and self.tasks:
            raise ValueError("tasks chooses pretrained variables to score; with finetune its task is scored.")
        if self.train_data and self.pretrain is None:
            raise ValueError("train_data joins the pretraining of every fold: give its settings with --pretrain.")
        if "scratch" in self.baselines and not self.finetune:
            raise ValueError("The baseline scratch is fine-tuning without pretrained weights: it needs finetune.")
        unknown = sorted(set(self.baselines) - set(BASELINES))
        if unknown:
            raise ValueError(f"Unknown baselines {', '.join(unknown)}; there are {', '.join(BASELINES)}.")
