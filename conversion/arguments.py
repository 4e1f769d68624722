"""Settings of conversion, of the way back, and of the comparison. Nothing heavy is imported here."""

from dataclasses import dataclass
from typing import Literal

from training.command_line.cli import require_choices, setting


TOLERANCE = 1e-5  # of a quantity's largest value
DEFAULT_HEADS = 8  # of the research code


@dataclass(frozen=True)
class Options:
    """How to convert."""

    vocabulary: str | None = setting(
        None,
        "Vocabulary (JSON), see conversion/vocabularies/seven_datasets.json; without one, labels are unnamed.",
        group="what the weights do not say",
        example="vocabulary.json",
    )
    group_sizes: list[int] | None = setting(None, "Tokens of every group, where nothing else tells.", example="3 5 8")
    fc_definition: Literal["pearson-whole-scan", "pearson-windows-500", "pearson-windows-500-padded"] = setting(
        "pearson-whole-scan", "How the FC was made that the weights were trained on."
    )
    atlas: str | None = setting(
        None, "Atlas id; default: the research code's atlas of as many regions.", example="aal-116"
    )
    heads: int | None = setting(None, f"Attention heads, which no shape tells; default: {DEFAULT_HEADS}.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting(
        "float32", "Type of the weights that are written.", group="writing and checking"
    )
    max_shard_size: str = setting("2GB", "Most weights in a file.")
    reference: str | None = setting(None, "Recording of a run of the research code, to measure the agreement with.")

    def __post_init__(self) -> None:
        """Refuse other choices."""
        require_choices(self)


@dataclass(frozen=True)
class ConvertArguments(Options):
    """Convert a pair of research-code pickles to a folder for from_pretrained."""

    run_dir: str = setting(
        "", "Folder with bb_fold*.pt and head_fold*.pt.", example="weights/none_decoder4_...", required=True
    )
    output: str = setting("", "New folder.", example="lcm-147m", required=True)
    fold: int | None = setting(None, "Fold, where the folder holds several.", group="which of several")
    dataset: str | None = setting(None, "Data set that the epoch was chosen on, where there are several.")
    metric: Literal["y", "sex", "age"] | None = setting(None, "What the epoch was chosen by, likewise.")
    head: str | None = setting(None, "Another head file for this stem, such as a fine-tuned one.")


@dataclass(frozen=True)
class ExportArguments:
    """Write a checkpoint as a pair of pickles for the research code."""

    checkpoint: str = setting("", "Checkpoint folder.", example="lcm-147m", required=True)
    output: str = setting("", "New folder.", example="for-the-research-code", required=True)
    dataset: str | None = setting(None, "Data set in the files' names; default: the source's, or the first group.")
    fold: int = setting(0, "Fold in the files' names, unless the source has one.")


@dataclass(frozen=True)
class VerifyArguments:
    """Compare a checkpoint with a recorded run of the research code."""

    checkpoint: str = setting("", "Converted folder.", example="lcm-147m", required=True)
    reference: str = setting("", "Folder with meta.json and expected.safetensors.", example="recording", required=True)
    tolerance: float = setting(TOLERANCE, "Largest difference that passes, relative to a quantity's largest value.")
