"""The demo: prepare, pretrain on sex and age, fine-tune for young vs elderly with few labels, predict, report."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from ..command_line.settings import parse_arguments
from ..data.cohort import Cohort, load_cohort
from ..evaluation.arguments import EvaluateArguments
from ..evaluation.cross_validation import evaluate
from ..evaluation.design import make_design
from ..evaluation.report import task_details
from ..explanation.pattern_sections import pattern_sections
from ..explanation.patterns import edge_patterns
from ..preparation.arguments import PrepareArguments
from ..preparation.build import prepare
from ..reporting.results import Results, TaskResults
from ..reporting.tables import write_report
from ..storage.files import claim, write_folder


CONFIGS = Path(__file__).parents[1] / "configs" / "demo"
DEMO_DATA = Path(__file__).parents[1] / "demo_data" / "lemon-schaefer200"

NOTES = [
    "Pretraining sees sex and age of the training subjects, and young or elderly is a matter of age: this shows that "
    "the pipeline works, not that pretraining helps a diagnosis.",
    "The linear model is fitted on the same few labels as LCM, and once more on all labels of the training fold.",
    "The recipe was chosen on other folds of the same subjects (CHANGELOG.md): the numbers are a little optimistic.",
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
    evaluating = replace(
        parse_arguments(EvaluateArguments, ["--config", str(CONFIGS / "evaluate.yaml")]),
        data=str(output / "dataset"),
        output=str(output / "folds"),
        pretrain=str(CONFIGS / "pretrain.yaml"),
        finetune=[str(CONFIGS / "finetune.yaml")],
    )
    results = evaluate(evaluating)
    (found,) = results.tasks.values()
    found.notes = NOTES
    cohort = load_cohort(output / "dataset")
    _write_page(output, evaluating, found, cohort, results.settings)
    # The checkpoint that stays is fold 0's: its test subjects are known.
    write_folder(
        output / "checkpoint",
        partial(shutil.copytree, output / "folds" / "fold_0" / "checkpoint", dirs_exist_ok=True),
    )
    results.save(output / "metrics.json")
    return results


def _write_page(
    output: Path, evaluating: EvaluateArguments, found: TaskResults, cohort: Cohort, settings: dict[str, Any]
) -> None:
    """The evaluation's page, with what the predictions follow."""
    design = make_design(evaluating)
    folds = [
        json.loads((output / "folds" / f"fold_{fold}" / "result.json").read_text(encoding="utf-8"))
        for fold in range(found.protocol["folds"])
    ]
    details = task_details(design, design.recipe.tasks[0], found, folds)
    ids = {"subject_id": str, "session": str}
    predictions = pd.read_csv(output / "folds" / "predictions.tsv", sep="\t", dtype=ids)
    patterns = edge_patterns(cohort, predictions, found)
    sections = [*details.sections, *pattern_sections(cohort.feature_extractor, patterns)]
    write_report(
        output / "report.html", replace(found, notes=[]), details.figures, details.tables, settings, NOTES, sections,
        details.curves,
    )  # fmt: skip
