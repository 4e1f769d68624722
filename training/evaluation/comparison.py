"""What LCM has to beat in a fold: simple models on the same rows and labels, and LCM itself from random weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from transformers import set_seed

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining

from ..data.cohort import Cohort
from ..reporting.results import CONFOUNDS, CONSTANT
from ..trainer.arguments import FinetuneArguments
from ..trainer.checkpoints import load_processor
from .baselines import (
    Baseline,
    Span,
    best_linear_baseline,
    linear_baseline,
    log_linear_baseline,
    majority_baseline,
    mlp_baseline,
    svm_baseline,
)
from .confounds import confound_baseline
from .design import Recipe
from .features import StoredLogFC, features
from .tasks import Task


# What the settings call a model, what the tables call it, and the model.
FITTED: dict[str, tuple[str, Baseline]] = {
    "linear": ("linear", linear_baseline),
    "linear_log": ("linear, log FC", log_linear_baseline),
    "linear_best": ("linear, best", best_linear_baseline),
    "svm": ("linear SVM", svm_baseline),
    "mlp": ("MLP", mlp_baseline),
}


def baseline_predictions(
    recipe: Recipe,
    task: Task,
    training: Cohort,
    test: Cohort,
    labelled: Cohort | None,
    edges: "FoldEdges",
) -> dict[str, np.ndarray]:
    """Predictions of the simple models, trained on the labels that LCM had.

    Args:
        recipe (`Recipe`): settings.
        task (`Task`): what is predicted.
        training (`Cohort`): training scans of the tested cohort.
        test (`Cohort`): test scans that have a value.
        labelled (`Cohort`, *optional*): training scans with a label, if they are not all: every model is then fitted
            on them, and the linear one once more on all labels of the fold.
        edges (`FoldEdges`): features of the fold's scans.
    """
    wanted = recipe.arguments.baselines
    training = task.known(training)
    shown = training if labelled is None else labelled
    fits = {FITTED[name][0]: (FITTED[name][1], shown) for name in FITTED if name in wanted}
    if labelled is not None and "linear" in wanted:
        fits["linear, all labels"] = (FITTED["linear"][1], training)
    predictions = {}
    for name, (baseline, fitted) in fits.items():
        options = {"hidden": recipe.arguments.mlp_hidden} if name == FITTED["mlp"][0] else {}
        predictions[name] = baseline.in_span(
            edges.span(baseline, fitted, test),
            task.truth(fitted),
            task.kind,
            recipe.seed,
            groups=fitted.table["subject_id"].tolist(),
            **options,
        )
    if "confounds" in wanted and task.confounds:
        subjects = shown.table["subject_id"].tolist()
        predictions[CONFOUNDS] = confound_baseline(
            task.confounds, shown, task.truth(shown), test, task.kind, recipe.seed, subjects
        )
    if "majority" in wanted:
        predictions[CONSTANT[task.kind]] = majority_baseline(task.truth(training), len(test), task.kind)
    return predictions


class FoldEdges:
    """Features of a fold's scans in the span of those that are fitted, each once for all models and tasks.

    Args:
        stored (`StoredLogFC`, *optional*): log FC of all scans; none where FC is another one in every fold.
    """

    def __init__(self, stored: StoredLogFC | None = None) -> None:
        self.stored = stored
        self._spans: dict[tuple[object, ...], Span] = {}

    def span(self, baseline: Baseline, training: Cohort, test: Cohort) -> Span:
        """What a model sees of training scans, and of test scans in their span."""
        kind, is_linear = baseline.edges, baseline.is_linear
        key = (kind.name, is_linear, *(np.asarray(cohort.table.index).tobytes() for cohort in (training, test)))
        if key not in self._spans:
            edges, others = (features(kind, cohort, self.stored) for cohort in (training, test))
            self._spans[key] = Span.of(edges, others, is_linear)
        return self._spans[key]


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
