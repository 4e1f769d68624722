"""What LCM has to beat in a fold: simple models on the same rows and labels, and LCM itself from random weights."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import set_seed

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining

from ..data.cohort import Cohort
from ..reporting.results import CONSTANT
from ..trainer.arguments import FinetuneArguments
from ..trainer.checkpoints import load_processor
from .baselines import linear_baseline, log_linear_baseline, majority_baseline, mlp_baseline, svm_baseline
from .design import Recipe, Task


FITTED: dict[str, tuple[str, Callable[..., NDArray[np.float64]]]] = {
    "linear": ("linear", linear_baseline),
    "linear_log": ("linear, log FC", log_linear_baseline),
    "svm": ("linear SVM", svm_baseline),
    "mlp": ("MLP", mlp_baseline),
}


def baseline_predictions(
    recipe: Recipe, task: Task, training: Cohort, test: Cohort, labelled: Cohort | None
) -> dict[str, np.ndarray]:
    """Predictions of the simple models, trained on the labels that LCM had.

    Args:
        recipe (`Recipe`): settings.
        task (`Task`): what is predicted.
        training (`Cohort`): training scans of the tested cohort.
        test (`Cohort`): test scans that have a value.
        labelled (`Cohort`, *optional*): training scans with a label, if they are not all: every model is then fitted
            on them, and the linear one once more on all labels of the fold.
    """
    wanted = recipe.arguments.baselines
    training = task.known(training)
    shown = training if labelled is None else labelled
    fits = {FITTED[name][0]: (FITTED[name][1], shown) for name in FITTED if name in wanted}
    if "mlp" in wanted:
        fits[FITTED["mlp"][0]] = (partial(mlp_baseline, hidden=recipe.arguments.mlp_hidden), shown)
    if labelled is not None and "linear" in wanted:
        fits["linear, all labels"] = (FITTED["linear"][1], training)
    predictions = {}
    test_fc = test.connectivity() if fits else None
    for name, (fit, fitted) in fits.items():
        truth, subjects = task.truth(fitted), fitted.table["subject_id"].tolist()
        predictions[name] = fit(fitted.connectivity(), truth, test_fc, task.kind, recipe.seed, groups=subjects)
    if "majority" in wanted:
        predictions[CONSTANT[task.kind]] = majority_baseline(task.truth(training), len(test), task.kind)
    return predictions


def scratch_start(tuning: FinetuneArguments, folder: Path) -> FinetuneArguments:
    """Settings that fine-tune the same network from random weights, which are written to a folder.

    What only makes sense for pretrained weights is off: adapters, frozen layers, tokens that start at pretrained ones,
    and pseudo-labels by the pretrained model (those of the subjects' records are used instead).
    """
    set_seed(tuning.seed)
    LCMForMultitaskPretraining(LCMConfig.from_pretrained(tuning.checkpoint)).save_pretrained(folder)
    load_processor(tuning.checkpoint).save_pretrained(folder)
    pseudo_labels = "recorded" if tuning.pseudo_labels == "model" else tuning.pseudo_labels
    return replace(
        tuning,
        checkpoint=str(folder),
        adapter="none",
        lora_rank=0,
        trainable="all",
        frozen_layers=0,
        layer_decay=1.0,
        new_tokens="random",
        pseudo_labels=pseudo_labels,
    )
