"""What reduced precision costs: error of the logits and AUC of a checkpoint on prepared data, beside float32.

    python -m benchmarks.precision --checkpoint DIR --data DIR --splits FILE --fold 0 --task sex
    python -m benchmarks.precision --size 147m

The second form has random weights and random connectomes: it shows the error of a size, and no AUC.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining
from modeling_lcm.quantization_lcm import LCMPackedConfig
from training.command_line.cli import command, setting
from training.data.cohort import load_cohort
from training.data.folds import Folds
from training.trainer.arguments import Size
from training.trainer.prediction import predict_logits


LARGEST_LOSS = 0.005  # of AUC, above which a precision is not recommended
MODES: dict[str, dict[str, Any]] = {
    "float32": {},
    "float32, packed": {"quantization_config": "float32"},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
    "int8": {"quantization_config": "int8"},
}


def load(checkpoint: str, mode: str) -> LCMForMultitaskPretraining:
    """The checkpoint in one precision."""
    settings = dict(MODES[mode])
    if "quantization_config" in settings:
        settings["quantization_config"] = LCMPackedConfig(settings["quantization_config"])
    return LCMForMultitaskPretraining.from_pretrained(checkpoint, **({"dtype": torch.float32} | settings)).eval()


def class_logits(model: LCMForMultitaskPretraining, logits: Tensor, task: str) -> np.ndarray:
    """Difference of the two logits of a variable with two labels, `(scans,)`.

    Raises:
        ValueError: the checkpoint has no such variable, or it has another number of labels.
    """
    start = 0
    for variable in model.config.bei_variables:
        size = max(1, len(variable["labels"]))
        if variable["name"] == task and size == 2:
            return (logits[:, start + 1] - logits[:, start]).numpy()
        start += size
    names = [v["name"] for v in model.config.bei_variables if len(v["labels"]) == 2]
    raise ValueError(f"The checkpoint cannot tell {task!r} with two labels; it can {', '.join(names) or 'none'}.")


@dataclass
class PrecisionArguments:
    """Output error and AUC of reduced precision beside float32."""

    checkpoint: str = setting("", "Folder of a pretrained checkpoint.")
    data: str = setting("", "Folder made by training.prepare.")
    task: str = setting("sex", "Variable with two labels.")
    splits: str | None = setting(None, "Split file; only the test subjects of --fold are predicted.")
    fold: int = setting(0, "Fold of the split file.")
    size: Size | None = setting(None, "Named size with random weights, instead of a checkpoint and data.")


def on_data(options: PrecisionArguments) -> None:
    """Error and AUC on the test subjects of a fold."""
    cohort = load_cohort(options.data)
    if options.splits:
        _, cohort = Folds.load(options.splits).split(cohort, options.fold)
    exact: Tensor | None = None
    reference = 0.0
    for mode in MODES:
        model = load(options.checkpoint, mode)
        logits = predict_logits(model, cohort)["logits"]
        exact = logits if exact is None else exact
        variable = next(v for v in model.config.bei_variables if v["name"] == options.task)
        known = cohort.table[options.task].isin(variable["labels"]).to_numpy()
        positive = (cohort.table[options.task] == variable["labels"][1]).to_numpy()
        auc = roc_auc_score(positive[known], class_logits(model, logits, options.task)[known])
        reference = auc if mode == "float32" else reference
        note = "  more than allowed" if abs(auc - reference) > LARGEST_LOSS else ""
        print(f"{mode:16} error {_error(logits, exact):.1e}  AUC {auc:.4f} ({auc - reference:+.4f}){note}", flush=True)


@torch.no_grad()
def of_size(options: PrecisionArguments) -> None:
    """Error of a size with random weights on random connectomes."""
    torch.manual_seed(0)
    labels = [str(number) for number in range(28)]
    variables = [
        {"name": "group", "kind": "categorical", "labels": labels, "loss_weight": 1.0},
        {"name": "sex", "kind": "categorical", "labels": ["M", "F"], "loss_weight": 1.0},
        {"name": "age", "kind": "continuous", "labels": [], "loss_weight": 1e-4},
    ]
    connectivity = torch.stack([torch.corrcoef(scan) for scan in torch.randn(4, 116, 200)])
    exact: Tensor | None = None
    with tempfile.TemporaryDirectory() as folder:
        LCMForMultitaskPretraining(LCMConfig.from_size(str(options.size), bei_variables=variables)).save_pretrained(
            folder
        )
        for mode in MODES:
            logits = load(folder, mode)(connectivity).logits
            exact = logits if exact is None else exact
            print(f"{mode:16} error {_error(logits, exact):.1e}", flush=True)


def _error(logits: Tensor, exact: Tensor) -> float:
    """Largest difference, as a share of the largest logit."""
    return ((logits - exact).abs().max() / exact.abs().max()).item()


@command(PrecisionArguments)
def main(options: PrecisionArguments) -> None:
    """Run the benchmark and print its table."""
    if options.size:
        of_size(options)
        return
    for name in ("checkpoint", "data"):
        if not getattr(options, name) or not Path(getattr(options, name)).is_dir():
            raise ValueError(f"{name} must be a folder, got {getattr(options, name)!r}; or give size.")
    on_data(options)


if __name__ == "__main__":
    main()
