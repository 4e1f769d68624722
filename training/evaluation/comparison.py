"""What LCM has to beat in a fold: simple models on the same rows and labels, and LCM itself from random weights."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig, set_seed

from modeling_lcm import LCMForMultitaskPretraining

from ..trainer.arguments import FinetuneArguments
from ..trainer.checkpoints import load_processor
from .baselines import linear_baseline, log_linear_baseline, majority_baseline, mlp_baseline, svm_baseline
from .design import Design, Task


SCRATCH = "LCM from scratch"
FITTED: dict[str, tuple[str, Callable[..., NDArray[np.float64]]]] = {
    "linear": ("linear", linear_baseline),
    "linear_log": ("linear, log FC", log_linear_baseline),
    "svm": ("linear SVM", svm_baseline),
    "mlp": ("MLP", mlp_baseline),
}


def baseline_predictions(
    design: Design, task: Task, train: np.ndarray, test: np.ndarray, labelled: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Predictions of the simple models, trained on the labels that LCM had.

    Args:
        design (`Design`): data and settings.
        task (`Task`): what is predicted.
        train (`np.ndarray`): training rows of the tested cohort.
        test (`np.ndarray`): test rows that have a value.
        labelled (`np.ndarray`, *optional*): training rows with a label, if they are not all: every model is then
            fitted on them, and the linear one once more on all labels of the fold.
    """
    cohort, wanted = design.cohort, design.arguments.baselines
    stage = design.tuning or design.pretraining
    train = task.known(train)
    rows = train if labelled is None else labelled
    fits = {FITTED[name][0]: (FITTED[name][1], rows) for name in FITTED if name in wanted}
    if "mlp" in wanted:
        fits[FITTED["mlp"][0]] = (partial(mlp_baseline, hidden=design.arguments.mlp_hidden), rows)
    if labelled is not None and "linear" in wanted:
        fits["linear, all labels"] = (FITTED["linear"][1], train)
    found = {}
    test_fc = cohort.connectivity(test) if fits else None
    for name, (fit, subset) in fits.items():
        people = cohort.table["subject_id"].iloc[subset].tolist()
        found[name] = fit(
            cohort.connectivity(subset), task.truth(subset), test_fc, task.kind, stage.seed, groups=people
        )
    if "majority" in wanted:
        name = "majority" if task.is_classification else "mean"
        found[name] = majority_baseline(task.truth(train), len(test), task.kind)
    return found


def scratch_start(tuning: FinetuneArguments, folder: Path) -> FinetuneArguments:
    """Settings that fine-tune the same network from random weights, which are written to a folder.

    What only makes sense for pretrained weights is off: adapters, frozen layers, tokens that start at pretrained ones,
    and pseudo-labels by the pretrained model (those of the subjects' records are used instead).
    """
    set_seed(tuning.seed)
    LCMForMultitaskPretraining(AutoConfig.from_pretrained(tuning.checkpoint)).save_pretrained(folder)
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
