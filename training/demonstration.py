"""The demo: prepare, pretrain on sex and age, fine-tune for young vs elderly with few labels, predict, report."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from modeling_lcm import LCMForSequenceClassification
from modeling_lcm.atlases import region_coordinates

from .data.cohort import Cohort, load_cohort
from .data.folds import Folds
from .evaluation.arguments import EvaluateArguments
from .evaluation.cross_validation import evaluate
from .explanation.attention import region_attention
from .files import claim, write_folder
from .preparation.arguments import PrepareArguments
from .preparation.build import prepare
from .reporting.figures import plot_confusion, plot_network_bars, plot_region_attention, plot_roc, plot_training_curves
from .reporting.results import Results, TaskResults
from .reporting.tables import write_report
from .settings import parse_arguments
from .trainer.checkpoints import load_processor


CONFIGS = Path(__file__).parent / "configs" / "demo"
DEMO_DATA = Path(__file__).parent / "demo_data" / "lemon-schaefer200"

NOTES = [
    "Pretraining sees sex and age of the training subjects, and young or elderly is a matter of age: this shows that "
    "the pipeline works, not that pretraining helps a diagnosis.",
    "The linear model is fitted on the same few labels as LCM, and once more on all labels of the training fold.",
    "The recipe was chosen on other folds of the same people (CHANGELOG.md), so the numbers are a little optimistic.",
    "The pictures of regions and networks show the decoder's attention. Most of the prediction comes from the edge "
    "read-out beside it, which they do not show.",
    "Age is known as the middle of a five-year bin.",
    "Data: MPI-LEMON (Babayan et al. 2019, doi:10.1038/sdata.2018.308); FC matrices of Yadav et al. 2023.",
]


def demo(output: Path) -> Results:
    """Run the demo.

    Args:
        output (`Path`): new folder; gets `dataset/`, `folds/`, `checkpoint/`, `metrics.json` and `report.html`.

    Returns:
        What `metrics.json` holds.

    Raises:
        FileExistsError: the folder holds results already.
    """
    with claim(output) as folder:
        return _demo(folder)


def _demo(output: Path) -> Results:
    preparing = parse_arguments(PrepareArguments, ["--config", str(CONFIGS / "prepare.yaml")])
    prepare(
        replace(
            preparing,
            output=str(output / "dataset"),
            participants=str(DEMO_DATA / "participants.tsv"),
            connectivity=str(DEMO_DATA / "fc.npz"),
            regions=str(DEMO_DATA / "rois.tsv"),
        )
    )
    evaluating = parse_arguments(EvaluateArguments, ["--config", str(CONFIGS / "evaluate.yaml")])
    results = evaluate(
        replace(
            evaluating,
            data=str(output / "dataset"),
            output=str(output / "folds"),
            pretrain=str(CONFIGS / "pretrain.yaml"),
            finetune=str(CONFIGS / "finetune.yaml"),
        )
    )
    (found,) = results.tasks.values()
    found.notes = NOTES
    cohort = load_cohort(output / "dataset")
    write_report(
        output / "report.html", replace(found, notes=[]), figures(output, cohort, found), None, results.settings, NOTES
    )
    # The checkpoint that stays is fold 0's: its test subjects are known.
    write_folder(
        output / "checkpoint",
        partial(shutil.copytree, output / "folds" / "fold_0" / "checkpoint", dirs_exist_ok=True),
    )
    results.save(output / "metrics.json")
    return results


def figures(output: Path, cohort: Cohort, results: TaskResults) -> dict[str, Figure]:
    """The report's pictures by caption."""
    folds = [
        json.loads((output / "folds" / f"fold_{fold}" / "result.json").read_text(encoding="utf-8"))
        for fold in range(results.protocol["folds"])
    ]
    predictions = pd.read_csv(output / "folds" / "predictions.tsv", sep="\t")
    labels = results.protocol["labels"]
    positive = results.protocol["positive"]
    curves = {
        model: [
            ((part["cohort"] == positive).to_numpy(dtype=int), part[f"{model}: {positive}"].to_numpy())
            for _, part in predictions.groupby("fold")
        ]
        for model in results.models
        if model != "majority"
    }
    truth = (predictions["cohort"] == positive).to_numpy(dtype=int)
    predicted = (predictions[f"LCM: {positive}"] > 0.5).to_numpy(dtype=int)
    drawn = {
        f"Training curves, {stage}": plot_training_curves([fold["histories"][stage] for fold in folds])
        for stage in folds[0]["histories"]
    }
    drawn["ROC over folds"] = plot_roc(curves)
    drawn["Confusion matrix of LCM, all test folds"] = plot_confusion(truth, predicted, labels)
    return drawn | attention_figures(output, cohort, positive)


def attention_figures(output: Path, cohort: Cohort, label: str) -> dict[str, Figure]:
    """Where the token of one label looks: glass brain and networks, mean over fold 0's test subjects."""
    checkpoint = output / "folds" / "fold_0" / "checkpoint"
    model = LCMForSequenceClassification.from_pretrained(checkpoint, attn_implementation="eager")
    tokenizer = load_processor(str(checkpoint)).tokenizer
    splits = Folds.load(output / "folds" / "splits.json")
    tested = splits.split(cohort, 0)[1]
    token = tokenizer.convert_tokens_to_ids(f"{tokenizer.task}={label}")
    # 1 = every region is read equally.
    scores = region_attention(model, tested)[token] * cohort.num_regions
    # The demo's atlas is one whose names and places the package knows.
    names = cast(list[str], cohort.feature_extractor.region_names)
    places = cast(np.ndarray, region_coordinates(str(cohort.feature_extractor.atlas)))
    title = f"Cross-attention of the token {tokenizer.task}={label} (1 = even)"
    return {
        f"Regions that the token “{label}” reads": plot_region_attention(np.asarray(scores), places, title),
        f"Networks that the token “{label}” reads": plot_network_bars(np.asarray(scores), names),
    }
