"""Settings of an explanation."""

from dataclasses import dataclass
from typing import Literal

from ..command_line.settings import require_choices, setting


@dataclass
class ExplainArguments:
    """Show which regions the tokens of a variable read, and whether that differs between labels."""

    checkpoint: str = setting(
        "",
        "Checkpoint folder or Hub repository; pretrained or fine-tuned. This or evaluation is needed.",
        example="runs/finetuned/checkpoint",
    )
    evaluation: str | None = setting(
        None, "Folder of training.evaluate instead: every fold's checkpoint is shown its own test subjects."
    )
    data: str = setting(
        "",
        "Folder made by training.prepare; with evaluation, the data set it was made with.",
        example="runs/dataset",
        required=True,
    )
    output: str = setting(
        "", "Folder for tables, pictures and the HTML page.", example="runs/explained", required=True
    )
    variables: list[str] = setting([], "Variables to explain; default: the task, or all pretrained ones.")
    atlas: str | None = setting(
        None, "Atlas whose regions are shown, where checkpoint and data have several in common.", example="aal-116"
    )
    method: Literal["mean", "rollout", "best_layer"] = setting(
        "mean",
        'What is drawn: "mean" (over heads and layers), "rollout" (followed through the layers), or "best_layer" (the '
        "layer that predicts the variable best, as the paper draws it). The table has all three.",
    )
    permutations: int = setting(5000, "Shuffles of the labels.")
    seed: int = setting(0, "Seed of the shuffles and of the halves.")
    batch_size: int = setting(32, "Scans per forward pass.")

    def __post_init__(self) -> None:
        """Refuse settings out of range, before any data are read."""
        require_choices(self)
        if self.permutations < 100:
            raise ValueError(f"permutations must be at least 100, got {self.permutations}.")
        if bool(self.checkpoint) == (self.evaluation is not None):
            raise ValueError("Give either checkpoint or evaluation (a folder of training.evaluate).")
