"""Fine-tuning by the ridge head: a cohort's scans and labels for `modeling_lcm`'s closed form."""

import copy
import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from modeling_lcm import LCMForSequenceClassification, LCMProcessor
from modeling_lcm.closed_form_fit import fit_log_edges
from modeling_lcm.closed_form_heads import Scans
from modeling_lcm.closed_form_model import SHRINKAGES, SharedEdges
from modeling_lcm.edges_lcm import log_edges
from modeling_lcm.limits_lcm import TrainingLimits
from modeling_lcm.loss_lcm import IGNORE_INDEX

from ..data.cohort import Cohort
from ..data.combine import for_checkpoint
from ..data.folds import few_labels
from ..data.identity import alike_subjects, seen_subjects
from .arguments import FinetuneArguments
from .checkpoints import load_model, load_processor, read_record
from .limits import training_limits
from .vocabulary import announce_labels, only_labels, task_variable, warn_of_leakage


logger = logging.getLogger(__name__)


class SharedFits:
    """What closed-form fits of several tasks to the same scans have in common, computed once.

    Args:
        log_fc (`Callable`, *optional*): gives log FC of a cohort by atlas, `(scans, shrinkages, edges)`, where it is
            kept somewhere.
        with_limits (`bool`): whether checkpoints that are kept will need statistics of the training scans.
    """

    def __init__(
        self, log_fc: Callable[[Cohort], dict[str, NDArray[np.float32]]] | None = None, with_limits: bool = True
    ) -> None:
        self.edges = SharedEdges()
        self.with_limits = with_limits
        self._log_fc = log_fc
        self._kept: tuple[bytes, dict[str, NDArray[np.float32]]] | None = None
        self._limits: tuple[bytes, TrainingLimits | None] | None = None

    def log_fc(self, cohort: Cohort) -> dict[str, NDArray[np.float32]]:
        """Log FC of some scans, by atlas."""
        if self._log_fc is None:
            return self._computed(cohort)
        if self._kept is None or self._kept[0] != name_of(cohort):
            self._kept = None
            self._kept = name_of(cohort), self._log_fc(cohort)
        return self._kept[1]

    @staticmethod
    def _computed(cohort: Cohort) -> dict[str, NDArray[np.float32]]:
        return {part.id: log_edges(part.matrices(slice(None)), SHRINKAGES) for part in cohort.by_atlas}

    def limits(self, cohort: Cohort) -> TrainingLimits | None:
        """Statistics of some scans, see [`training_limits`]; None where nobody needs them."""
        if not self.with_limits:
            return None
        scans = name_of(cohort)
        if self._limits is None or self._limits[0] != scans:
            self._limits = scans, training_limits(cohort)
        return copy.deepcopy(self._limits[1])


def name_of(cohort: Cohort) -> bytes:
    """The same for the same scans of one data set, in the same atlases."""
    return "/".join(cohort.atlases).encode() + np.asarray(cohort.table.index).tobytes()


def fit_ridge(
    cohort: Cohort,
    arguments: FinetuneArguments,
    announce: Callable[[str], None] | None = None,
    check_leakage: bool = True,
    shared: SharedFits | None = None,
) -> tuple[LCMForSequenceClassification, LCMProcessor]:
    """Fit a task in closed form, from every atlas of the cohort that the checkpoint has, or from all without one.

    Args:
        cohort (`Cohort`): the training scans.
        arguments (`FinetuneArguments`): settings; `checkpoint` may be empty.
        announce (`Callable`, *optional*): called with lines about labels, scores and prior.
        check_leakage (`bool`): warn of columns that tell the label.
        shared (`SharedFits`, *optional*): of other tasks that are fitted to the same scans.

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
        record = read_record(arguments.checkpoint)
        for line in alike_subjects(record, cohort.table):
            logger.warning("%s", line)
        if seen_subjects(record, cohort.table):
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
    shared = shared or SharedFits()
    scans = Scans(values, cohort.subjects.tolist(), sites, name_of(cohort))
    tokenizer = None if processor is None else processor.tokenizer
    # A checkpoint of one atlas has an id of its own for it.
    ids = {name: name for name in cohort.atlases}
    if base is not None and len(base.config.atlas_regions) == 1:
        (own_id,) = base.config.atlas_regions
        ids = {next(iter(ids)): own_id}
    extractors = {ids[name]: each for name, each in cohort.atlases.items() if name in ids}
    fitted = fit_log_edges(
        lambda: {ids[name]: each for name, each in shared.log_fc(cohort).items() if name in ids},
        extractors,
        scans,
        variable,
        base,
        tokenizer,
        shared.edges,
        arguments.site_relative,
    )
    if announce is not None:
        for line in fitted.lines():
            announce(line)
    return fitted.model, fitted.processor
