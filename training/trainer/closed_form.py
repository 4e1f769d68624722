"""Fine-tuning by the ridge head: a cohort's scans and labels for `modeling_lcm`'s closed form."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from modeling_lcm import LCMForSequenceClassification, LCMProcessor
from modeling_lcm.closed_form_fit import fit_task
from modeling_lcm.closed_form_heads import Scans
from modeling_lcm.loss_lcm import IGNORE_INDEX

from ..data.cohort import Cohort
from ..data.combine import for_checkpoint
from ..data.folds import few_labels
from ..data.identity import seen_subjects
from .arguments import FinetuneArguments
from .checkpoints import load_model, load_processor, read_record
from .vocabulary import announce_labels, only_labels, task_variable, warn_of_leakage


logger = logging.getLogger(__name__)


def fit_ridge(
    cohort: Cohort,
    arguments: FinetuneArguments,
    announce: Callable[[str], None] | None = None,
    check_leakage: bool = True,
) -> tuple[LCMForSequenceClassification, LCMProcessor]:
    """Fit a task in closed form, from every atlas of the cohort that the checkpoint has, or from all without one.

    Args:
        cohort (`Cohort`): the training scans.
        arguments (`FinetuneArguments`): settings; `checkpoint` may be empty.
        announce (`Callable`, *optional*): called with lines about labels, scores and prior.
        check_leakage (`bool`): warn of columns that tell the label.

    Raises:
        ValueError: an unknown column, labels or atlases that the checkpoint does not have, or too few labels.
    """
    cohort.require_column(arguments.task)
    if arguments.site_relative != "never":
        cohort.require_column("site")
    processor, base = None, None
    if arguments.checkpoint:
        processor, base = load_processor(arguments.checkpoint), load_model(arguments.checkpoint)
        cohort = for_checkpoint(processor, cohort)
        if seen_subjects(read_record(arguments.checkpoint), cohort.table):
            # Its read-outs fit these subjects' labels already: leaving them out here would show nothing.
            logger.warning(
                "Prior used: none, subjects of the data were among those that %s was trained on.", arguments.checkpoint
            )
            base = None
    if not cohort.table[arguments.task].notna().any():
        raise ValueError(f"{arguments.task!r} is recorded for none of the training scans.")
    known = [] if processor is None else processor.tokenizer.variables
    own = next((variable for variable in known if variable.name == arguments.task), None)
    cohort = replace(cohort, table=only_labels(cohort.table, arguments))
    variable = task_variable(cohort.table, arguments, own, cohort.positive)
    announce_labels(announce, [variable], cohort.table, "--positive LABEL")
    values = variable.parse(cohort.table[arguments.task].tolist(), lambda row: f"row {row}")
    if check_leakage:
        warn_of_leakage(cohort.table, variable, [each.name for each in known])
    if arguments.labels_per_class is not None and variable.labels:
        indices = np.where(np.isfinite(values), values, IGNORE_INDEX).astype(int)
        chosen = few_labels(indices, arguments.labels_per_class, arguments.seed)
        values[np.setdiff1d(np.arange(len(values)), chosen)] = np.nan
    cohort, values = cohort.select(np.isfinite(values)), values[np.isfinite(values)]
    sites = cohort.table["site"].tolist() if "site" in cohort.table else None
    scans = Scans(values, cohort.subjects.tolist(), sites)
    tokenizer = None if processor is None else processor.tokenizer
    extractors, matrices = matrices_of(cohort, base)
    fitted = fit_task(matrices, extractors, scans, variable, base, tokenizer, arguments.site_relative)
    if announce is not None:
        for line in fitted.lines():
            announce(line)
    return fitted.model, fitted.processor


def matrices_of(cohort: Cohort, base: Any = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """FC definitions and FC of a cohort by atlas, by the ids of a checkpoint of one atlas where there is one."""
    found = cohort.connectivity()
    by_atlas = dict(found) if isinstance(found, Mapping) else {next(iter(cohort.atlases)): found}
    extractors = dict(cohort.atlases)
    if base is not None and len(base.config.atlas_regions) == 1:
        (name,) = base.config.atlas_regions
        return {name: next(iter(extractors.values()))}, {name: next(iter(by_atlas.values()))}
    return extractors, by_atlas
