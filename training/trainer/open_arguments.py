"""Settings of the open weights and of the study of few labels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..command_line.settings import require_choices, setting


OPEN_RECIPE = Path(__file__).parents[1] / "configs" / "open" / "weights.yaml"


@dataclass
class OpenWeightsArguments:
    """Fit the open checkpoint on prepared data sets of many cohorts."""

    data: str = setting("", "Folder of the data sets that the recipe names.", example="runs/open", required=True)
    output: str = setting("", "Folder for the checkpoint.", example="hub_cards/lcm-open", required=True)
    recipe: str = setting(str(OPEN_RECIPE), "YAML file of variables and cohorts.")
    site_relative: Literal["never", "auto", "always"] = setting(
        "never", "Compare scans with the mean of their site; see training.finetune."
    )
    folds: int = setting(5, "Parts of the subjects for the scores of subjects not seen; 0: no scores.")
    seed: int = setting(0, "Seed of the parts.")

    def __post_init__(self) -> None:
        """Refuse folds that are none."""
        require_choices(self)
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds must be 0, or 2 or more, got {self.folds}.")


@dataclass
class FewLabelsArguments:
    """Compare pretrained read-outs with none, over numbers of labels, in scans that pretraining has not seen."""

    data: str = setting("", "Folder of the data sets that the recipe names.", example="runs/open", required=True)
    output: str = setting("", "Folder for tables and figure.", example="runs/few_labels", required=True)
    recipe: str = setting(str(OPEN_RECIPE), "YAML file of variables and cohorts.")
    jobs: str = setting(str(OPEN_RECIPE.with_name("few_labels.yaml")), "YAML file of pairs of cohorts.")
    labels: list[int] = setting([10, 20, 52, 120, 240], "Numbers of labels.")
    draws: int = setting(20, "Draws of so many labels.")
    seed: int = setting(0, "Seed of the draws.")
