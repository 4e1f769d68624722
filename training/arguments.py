"""Settings of the training scripts: one dataclass per script, read from a YAML file, from flags, or from both."""

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from transformers import HfArgumentParser

from modeling_lcm.configuration_lcm import SUPERVISIONS


def setting(default: Any, text: str) -> Any:
    """A dataclass field with a default value and the help text that `--help` prints."""
    return field(default=default, metadata={"help": text})


@dataclass
class DataArguments:
    """Which scans are used, and how they are split."""

    data: str = setting("", "Folder made by training.prepare.")
    splits: str | None = setting(None, "Split file (JSON) of subject-wise folds; made by training.evaluate.")
    fold: int | None = setting(None, "Fold whose test subjects are kept out. Needs --splits.")
    validation_fraction: float = setting(
        0.0, "Part of the training subjects held back to choose the epoch. 0: train for all epochs, no choice."
    )


@dataclass
class LoopArguments:
    """The training loop, the same for both stages."""

    output: str = setting("", "Folder for the checkpoint and its records. Refused if it already holds results.")
    epochs: int = setting(40, "Passes over the training subjects.")
    batch_size: int = setting(16, "Scans per process and forward pass.")
    gradient_accumulation_steps: int = setting(1, "Batches per optimisation step.")
    learning_rate: float = setting(1e-3, "Peak learning rate of AdamW; cosine decay to zero (paper: 1e-4 at 147M).")
    weight_decay: float = setting(0.1, "Weight decay of weight matrices; biases and norms have none.")
    warmup_fraction: float = setting(0.1, "Part of the steps over which the learning rate rises.")
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this norm.")
    input_noise: float = setting(0.1, "Standard deviation of symmetric Gaussian noise on training FC; 0 for none.")
    mixup: float = setting(
        0.0,
        "Mix pairs of scans, and their losses, by a share drawn from Beta(mixup, mixup); 0: never. 1 suits cohorts "
        "of hundreds, where it is the regulariser that helps most.",
    )
    momentum_epochs: int = setting(5, "Length of the momentum stage (the mean over layers is supervised).")
    adaptive: str = setting(
        "momentum",
        'Supervision after it: "adaptive" (layer per variable), "adaptive_per_sample" (research code), or "momentum".',
    )
    patience: int = setting(0, "Stop after so many epochs without a better validation loss; 0: never.")
    mixed_precision: str = setting("no", '"no", "bf16" or "fp16".')
    checkpoint_every: int = setting(5, "Epochs between resumable checkpoints; 0: none.")
    resume: bool = setting(False, "Go on from the last checkpoint in --output.")
    seed: int = setting(0, "Seed of weights, order, dropout and noise.")
    progress: bool = setting(True, "Show progress bars.")

    def __post_init__(self) -> None:
        """Refuse settings out of range, before any data are read."""
        for name in ("epochs", "batch_size", "gradient_accumulation_steps"):
            _require(self, name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            _require(self, name, getattr(self, name) > 0, "must be above 0")
        for name in ("weight_decay", "input_noise", "mixup", "momentum_epochs", "patience", "checkpoint_every"):
            _require(self, name, getattr(self, name) >= 0, "must not be negative")
        _require(self, "warmup_fraction", 0 <= self.warmup_fraction <= 1, "must lie between 0 and 1")
        _require(self, "adaptive", self.adaptive in SUPERVISIONS, f"must be one of {', '.join(SUPERVISIONS)}")
        precisions = ("no", "bf16", "fp16")
        _require(
            self, "mixed_precision", self.mixed_precision in precisions, f"must be one of {', '.join(precisions)}"
        )


def _require(arguments: Any, name: str, valid: bool, need: str) -> None:
    if not valid:
        raise ValueError(f"{name} {need}, got {getattr(arguments, name)!r}.")


@dataclass
class PretrainArguments(DataArguments, LoopArguments):
    """Pretrain on brain-environment interactions: predict every BEI variable from FC."""

    categorical: list[str] = field(
        default_factory=lambda: ["sex"], metadata={"help": "Phenotype columns with labels to learn from."}
    )
    continuous: list[str] = field(
        default_factory=lambda: ["age"], metadata={"help": "Phenotype columns with numbers to learn from."}
    )
    vocabulary: str | None = setting(
        None, "Folder of a saved BEI tokenizer, instead of a vocabulary built from the training records."
    )
    size: str = setting("nano", 'Named size: "nano", "147m", "735m" or "1.2b".')
    hidden_size: int | None = setting(None, "Overrides the size's width.")
    num_hidden_layers: int | None = setting(None, "Overrides the size's depth.")
    num_attention_heads: int | None = setting(None, "Overrides the size's heads.")
    intermediate_size: int | None = setting(None, "Overrides the size's feed-forward width.")
    dropout: float | None = setting(None, "Overrides all three of the size's dropout rates.")


PSEUDO_LABELS = ("none", "recorded", "defaults", "model")


@dataclass
class FinetuneArguments(DataArguments, LoopArguments):
    """Fine-tune a pretrained checkpoint for one downstream variable."""

    checkpoint: str = setting("", "Pretrained checkpoint: folder or Hub repository.")
    task: str = setting("", "Phenotype column to predict.")
    kind: str = setting("categorical", '"categorical" (labels) or "continuous" (numbers).')
    labels: list[str] | None = field(
        default=None, metadata={"help": "Class names in order; the last of two is the positive one. Default: sorted."}
    )
    labels_per_class: int | None = setting(None, "Use only so many labelled scans per class (few-label studies).")
    new_tokens: str = setting(
        "related",
        'Start of a new task\'s tokens: "related" (pretrained tokens whose predictions follow the training labels, '
        'where there are such) or "random" (as in the paper).',
    )
    lora_rank: int = setting(0, "Rank of LoRA adapters on attention and feed-forward; 0: full fine-tuning.")
    pseudo_labels: str = setting(
        "none",
        'Training of the pretrained tokens: "none"; "recorded" (the subjects\' own records); "defaults" (also the '
        "vocabulary's default labels where nothing is recorded); \"model\" (also the pretrained model's own confident "
        "predictions).",
    )
    pseudo_label_threshold: float = setting(0.9, 'Least probability of a pseudo-label with pseudo_labels="model".')

    def __post_init__(self) -> None:
        """Refuse settings out of range, before any data are read."""
        super().__post_init__()
        _require(self, "lora_rank", self.lora_rank >= 0, "must not be negative")
        _require(
            self, "pseudo_labels", self.pseudo_labels in PSEUDO_LABELS, f"must be one of {', '.join(PSEUDO_LABELS)}"
        )
        _require(self, "new_tokens", self.new_tokens in ("related", "random"), "must be related or random")
        _require(self, "pseudo_label_threshold", 0 <= self.pseudo_label_threshold <= 1, "must lie between 0 and 1")


@dataclass
class PredictArguments:
    """Predict with a checkpoint and write one row per scan."""

    checkpoint: str = setting("", "Checkpoint folder or Hub repository.")
    data: str = setting("", "Folder made by training.prepare.")
    output: str = setting("", "Table to write (.tsv).")
    splits: str | None = setting(None, "Split file; with --fold, only that fold's test subjects are predicted.")
    fold: int | None = setting(None, "Fold of the split file.")
    batch_size: int = setting(32, "Scans per forward pass.")


Arguments = TypeVar("Arguments")


def parse_arguments(kind: type[Arguments], argv: list[str] | None = None, positional: str | None = None) -> Arguments:
    """Read settings from `--config FILE.yaml` and from flags; flags win.

    Args:
        kind (`type`): a dataclass whose fields are made by [`setting`].
        argv (`list[str]`, *optional*): command line without the program's name; defaults to `sys.argv[1:]`.
        positional (`str`, *optional*): a setting that must be given, and may be given as a bare word.

    Raises:
        ValueError: an unknown setting, the positional one is missing, or the YAML file is not a table of settings.
    """
    parser = HfArgumentParser(
        kind,
        description=(kind.__doc__ or "").split("\n")[0],
        usage=f"%(prog)s {(positional or '').upper()} [--config FILE.yaml] [--SETTING VALUE ...]",
        allow_abbrev=False,  # a misspelt flag must not pass as the beginning of another one
    )
    parser.add_argument("--config", help="YAML file with any of these settings; flags on the command line win.")
    argv = list(sys.argv[1:] if argv is None else argv)
    path = None if {"-h", "--help"} & set(argv) else _config_path(argv)
    settings = {} if path is None else _read_settings(path, kind)
    # An empty list cannot be written as a flag.
    parser.set_defaults(**{name: value for name, value in settings.items() if value == []})
    parsed, _, unknown = parser.parse_args_into_dataclasses(
        _as_flags(settings) + argv, return_remaining_strings=True, look_for_args_file=False
    )
    if positional is not None and len(unknown) == 1 and not unknown[0].startswith("-"):
        parsed = replace(parsed, **{positional: unknown.pop()})
    if unknown:
        raise ValueError(f"Unknown settings or too many values: {' '.join(unknown)}. See --help.")
    if positional is not None and not getattr(parsed, positional):
        raise ValueError(f"No {positional} was given. See --help.")
    return parsed


def _config_path(argv: list[str]) -> str | None:
    for position, flag in enumerate(argv):
        if flag.startswith("--config="):
            return flag.partition("=")[2]
        if flag == "--config" and position + 1 < len(argv):
            return argv[position + 1]
    return None


def _read_settings(path: str, kind: type) -> dict[str, Any]:
    settings = load_yaml(path)
    known = set(kind.__dataclass_fields__)
    unknown = sorted(str(name) for name in set(settings) - known)
    if unknown:
        raise ValueError(f"{path}: unknown settings {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
    return settings


def _as_flags(settings: dict[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        if value is not None and values:
            flags += [f"--{name}", *map(str, values)]
    return flags


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a table of settings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not valid YAML, or not a table.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration file {path}.")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a table of settings (name: value), got {type(settings).__name__}.")
    return settings


def to_json(arguments: Any) -> str:
    """Settings as sorted JSON, for the run's record."""
    return json.dumps(asdict(arguments), indent=2, sort_keys=True)


def command_line(main: Callable[[list[str] | None], None]) -> Callable[..., None]:
    """Decorator of a script's `main`: a user's mistake ends it with one line, `error: ...`, and exit code 2."""

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None) -> None:
        try:
            main(argv)
        except (ValueError, FileNotFoundError, FileExistsError, FloatingPointError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from error

    return wrapper
