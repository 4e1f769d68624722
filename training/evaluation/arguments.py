"""Settings of an evaluation."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from ..command_line.settings import parse_arguments, require_choices, setting
from ..trainer.arguments import FinetuneArguments, PretrainArguments


Baseline = Literal["majority", "linear", "linear_log", "linear_best", "confounds", "svm", "mlp", "scratch"]


@dataclass
class EvaluateArguments:
    """Cross-validate pretraining and fine-tuning by subject, beside simple baselines."""

    data: str = setting("", "Folder made by training.prepare.", example="runs/dataset", required=True)
    output: str = setting(
        "", "Folder for metrics, predictions, splits and checkpoints.", example="runs/evaluation", required=True
    )
    finetune: list[str] = setting(
        [],
        "YAML file for training.finetune, or several with a task each; data, output and checkpoint are set per fold. "
        "Without it the pretrained variables themselves are predicted and scored. This or pretrain is needed.",
        group="what is trained and scored",
        example="finetune.yaml",
    )
    pretrain: str | None = setting(
        None,
        "YAML file for training.pretrain, run in every fold on its training subjects. Without it the checkpoint of "
        "the fine-tuning file is used, which must not have seen any test subject.",
        example="pretrain.yaml",
    )
    tasks: list[str] = setting(
        [], "Without --finetune: the pretrained variables to score; default: all that the data have."
    )
    split: Literal["kfold", "leave_site_out"] = setting(
        "kfold", '"kfold" (by subject), or "leave_site_out" (one fold per site).', group="folds"
    )
    n_folds: int = setting(5, "Number of folds of kfold; sites and split files bring their own.")
    repeats: int = setting(1, "Cross-validations, each with its own fold seed and training seed.")
    splits: str | None = setting(None, "Existing split file; default: drawn with the seed, balanced by the task.")
    positive: list[str] = setting(
        [],
        "Positive one of two labels, as LABEL or VARIABLE=LABEL; goes before that of the other files. "
        "Sensitivity, F1 and ROC AUC speak of it.",
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
    train_data: list[str] = setting(
        [], "Data sets of other cohorts that join the pretraining of every fold; never tested."
    )
    baselines: list[Baseline] = setting(
        ["majority", "linear", "linear_best", "confounds"],
        "Models to score beside LCM on the same folds: majority (or the mean), linear (logistic or ridge "
        "regression), linear_log (the same on the matrix logarithm of FC), linear_best (the better of the two "
        "inside the training subjects, on log FC), confounds (age, sex, motion and site, no FC), svm (linear), "
        "mlp, scratch (fine-tuning alone, from random weights).",
        group="beside it",
        example="linear_best confounds",
    )
    confounds: list[str] = setting(
        [],
        "Columns of the baseline confounds; default: age, sex, mean framewise displacement and the site column, as "
        "far as they are recorded.",
    )
    mlp_hidden: int = setting(64, "Hidden units of the baseline mlp.")
    external: list[str] = setting(
        [], "Data sets that are only predicted, by models trained on the whole tested cohort."
    )
    optimistic: bool = setting(
        False,
        "Also score the test fold after every epoch and report the best, as optimistic, beside the honest score.",
    )
    resamples: int = setting(
        1000, "Bootstrap resamples and permutations for intervals and p-values; 0: none.", group="running"
    )
    allow_seen_subjects: bool = setting(False, "Go on although a checkpoint was trained on test subjects.")
    harmonise: str | None = setting(
        None, "Column with the site: FC is harmonised across sites (ComBat), fitted on each fold's training scans."
    )
    keep_checkpoints: bool = setting(True, "Keep the checkpoints of every fold.")
    workers: int = setting(
        0,
        "Processes that share folds, members of ensembles and baselines; 0: as many as this process may use CPUs, or "
        "one where a GPU does the work. Fewer, with a sentence, where memory does not suffice. No number changes.",
    )
    threads: int = setting(1, "CPU threads of each worker; more may change the last digits of the numbers.")
    shard: str | None = setting(
        None,
        "I/N: do only every N-th fold, beginning with the I-th, as one task of a cluster's array. The same command "
        "with --resume and without --shard joins them.",
        example="1/4",
    )
    resume: bool = setting(False, "Keep the folds that are finished in --output and do the others.")
    title: str = setting("Cross-validation", "Title of the report.")

    def __post_init__(self) -> None:
        """Refuse settings out of range, before any data are read."""
        least_of = {"repeats": 1, "ensemble": 1, "mlp_hidden": 1, "resamples": 0, "workers": 0, "threads": 1}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        require_choices(self)
        files: Any = self.finetune
        if isinstance(files, str):  # a single file, given by name in Python
            self.finetune = [files] if files else []
        if self.shard is not None:
            self.share()
        fixed = "splits (a split file)" if self.splits is not None else f"split {self.split!r}"
        if self.repeats > 1 and (self.splits is not None or self.split != "kfold"):
            raise ValueError(f"repeats draws new folds each time, which {fixed} cannot: use ensemble for more seeds.")
        if self.finetune and self.tasks:
            raise ValueError("tasks chooses pretrained variables to score; with finetune its tasks are scored.")
        if self.train_data and self.pretrain is None:
            raise ValueError("train_data joins the pretraining of every fold: give its settings with --pretrain.")
        if "scratch" in self.baselines and not self.finetune:
            raise ValueError("The baseline scratch is fine-tuning without pretrained weights: it needs finetune.")

    def share(self) -> tuple[int, int]:
        """Number of this shard (from 0), and how many there are.

        Raises:
            ValueError: `shard` is not I/N with I from 1 to N.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", self.shard or "1/1")
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            raise ValueError(f"shard must be I/N with I from 1 to N, such as 1/4, got {self.shard!r}.")
        return int(found[1]) - 1, int(found[2])


def read_stages(arguments: EvaluateArguments) -> tuple[tuple[FinetuneArguments, ...], PretrainArguments | None]:
    """Settings of every fine-tuning and of the pretraining, from the files that an evaluation names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: neither stage has settings, or some that are refused, or two fine-tunings have one task.
    """
    if not arguments.finetune and arguments.pretrain is None:
        raise ValueError(
            "There is nothing to train: add --finetune FILE.yaml (a downstream task) or --pretrain FILE.yaml (the "
            "pretrained variables are scored), or both."
        )
    tunings = tuple(parse_arguments(FinetuneArguments, ["--config", path]) for path in arguments.finetune)
    tasks = [tuning.task for tuning in tunings]
    twice = next((task for task in tasks if tasks.count(task) > 1), None)
    if twice is not None:
        raise ValueError(f"Two files of finetune have the task {twice!r}: evaluate one after the other.")
    pretraining = None
    if arguments.pretrain is not None:
        pretraining = parse_arguments(PretrainArguments, ["--config", arguments.pretrain])
    return tunings, pretraining
