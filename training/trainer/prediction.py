"""Logits and tables of predictions from a model and a cohort."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling_lcm import BEIVariable, LCMConfig, LCMForSequenceClassification, LCMProcessor, load_adapter
from modeling_lcm.limits_lcm import TrainingLimits
from modeling_lcm.readouts_lcm import prevalences, sources
from modeling_lcm.sites_lcm import SiteMeans, compares_with_site, site_means

from ..data.cohort import Cohort
from ..data.combine import for_checkpoint
from ..data.identity import alike_subjects, seen_subjects
from ..storage.checked_files import check_adapter_files, refuse_broken_weights
from .checkpoints import is_adapter, load_model, load_processor, read_record
from .limits import limits_table


logger = logging.getLogger(__name__)


@torch.no_grad()
def predict_logits(
    model: nn.Module, cohort: Cohort, batch_size: int = 64, log_fc: Mapping[str, NDArray] | None = None
) -> dict[str, Tensor]:
    """Read-out logits of scans; of a model that compares scans with their site, beside the sites of these scans.

    Args:
        model (`nn.Module`): an LCM head or a PEFT model around one; put into evaluation mode.
        cohort (`Cohort`): the scans.
        batch_size (`int`): scans per forward pass.
        log_fc (`Mapping[str, np.ndarray]`, *optional*): [`log_edges`] of the scans by atlas, where it is known.

    Returns:
        `logits` `(scans, labels or tokens)` and, if fine-tuned, `bei_logits` `(scans, tokens)`; of a model that
        compares scans with their site, `site_logits` `(scans, all tokens)`, too; float32, on the CPU.
    """
    model.eval()
    device = next(model.parameters()).device
    found: dict[str, Tensor] = {}
    for number, connectivity in enumerate(cohort.batches(batch_size)):
        scans = slice(number * batch_size, (number + 1) * batch_size)
        given = {"connectivity": connectivity}
        if log_fc is not None:
            logs = {atlas: torch.from_numpy(each[scans]) for atlas, each in log_fc.items()}
            given["log_edges"] = next(iter(logs.values())) if isinstance(connectivity, Tensor) else logs
        outputs = model(**{name: for_model(model, cohort, each, device) for name, each in given.items()})
        for name in ("logits", "bei_logits", "site_logits"):
            values = getattr(outputs, name, None)
            if values is None:
                continue
            if name not in found:  # small tensors that stay between large ones that go would scatter the memory
                found[name] = torch.empty(len(cohort), values.shape[1])
            found[name][scans] = values
    if "site_logits" in found:
        config: Any = model.config
        means = site_means_of(config, cohort, found["site_logits"]).values
        pretrained = means[:, : config.num_bei_tokens]
        of_logits = means[:, config.token_slices[config.task_variable]] if "bei_logits" in found else pretrained
        found["logits"] = found["logits"] - of_logits
        if "bei_logits" in found:
            found["bei_logits"] = found["bei_logits"] - pretrained
    return found


def site_means_of(config: LCMConfig, cohort: Cohort, site_logits: Tensor) -> SiteMeans:
    """Means of the scans' sites: of all these scans, and of the training scans of the same sites; no label enters."""
    sites = cohort.table["site"].tolist() if "site" in cohort.table else [None] * len(cohort)
    return site_means(config, site_logits, sites, present_atlases(config, cohort))


def for_model(model: nn.Module, cohort: Cohort, connectivity: Any, device: torch.device) -> Any:
    """A batch of a cohort on the model's device; by atlas where the model reads several."""
    config: Any = model.config
    if isinstance(connectivity, Tensor):
        connectivity = {next(iter(cohort.atlases)): connectivity} if len(config.atlas_regions) > 1 else connectivity
    if isinstance(connectivity, Tensor):
        return connectivity.to(device)
    return {atlas: part.to(device) for atlas, part in connectivity.items()}


def present_atlases(config: LCMConfig, cohort: Cohort) -> list[tuple[str, ...]]:
    """The atlases of every scan of a cohort, by the model's ids."""
    if len(config.atlas_regions) == 1:
        return [tuple(config.atlas_regions)] * len(cohort)
    there = {atlas: cohort.has_atlas(atlas) for atlas in cohort.atlases}
    return [tuple(atlas for atlas, has in there.items() if has[row]) for row in range(len(cohort))]


def predict_table(
    checkpoint: str, cohort: Cohort, batch_size: int = 32, adapter: str | None = None
) -> tuple[pd.DataFrame, list[BEIVariable]]:
    """Predict scans with a saved checkpoint.

    Args:
        checkpoint (`str`): folder or Hub repository: a pretrained model (all BEI variables), a fine-tuned one (the
            task), or an adapter, whose base model then is where the adapter says.
        cohort (`Cohort`): the scans.
        batch_size (`int`): scans per forward pass.
        adapter (`str`, *optional*): folder or Hub repository of an adapter of the checkpoint.

    Returns:
        A table of one row per scan: `subject_id`, `session`, and per variable the predicted label with the probability
        of every label (columns `VARIABLE` and `VARIABLE=LABEL`, of two labels the positive one last), or the predicted
        value in its unit; then what the scan is beside the training scans (see [`limits_table`]); and these variables.
        Where the checkpoint knows how far its predictions are off, `VARIABLE_possible` has the labels that cannot be
        ruled out, or `VARIABLE_low` and `VARIABLE_high` the range, that hold the truth nine times of ten. Where some
        variable is compared with the scan's site, `site_mean` says what the site's mean was made from.

    Raises:
        ValueError: there is no such checkpoint, it is for other regions than the data, or the adapter was made for
            another base.
        FileNotFoundError: a folder is not there.
    """
    if adapter is not None or (checkpoint and is_adapter(checkpoint)):
        check_adapter_files(adapter or checkpoint, base=checkpoint if adapter else None)
        model, processor = load_adapter(adapter or checkpoint, base=checkpoint if adapter else None)
        refuse_broken_weights(model, adapter or checkpoint)
        finetuned = True
    else:
        processor, model = load_processor(checkpoint), load_model(checkpoint)
        finetuned = isinstance(model, LCMForSequenceClassification)
    cohort = for_checkpoint(processor, cohort)
    _warn_of_order(processor, cohort)
    found = predict_logits(model, cohort, batch_size)
    logits = found["logits"]
    tokenizer = processor.tokenizer
    variables = [variable for variable in tokenizer.variables if not finetuned or variable.name == tokenizer.task]
    config: Any = model.config
    shares = prevalences(config, present_atlases(config, cohort))
    variables = _readable(config, cohort, variables)
    slices, names = tokenizer.token_slices, [variable.name for variable in variables]
    if not finetuned:
        logits = torch.cat([logits[:, slices[name]] for name in names], 1)
    records = tokenizer.batch_decode(logits, names, shares)
    columns: dict[str, list] = {}
    for variable in variables:
        entries = [record.get(variable.name, {}) for record in records]
        columns |= _columns(variable, entries) | _uncertainty(variable.name, entries, processor.limits)
    if compares_with_site(config, names):
        columns["site_mean"] = site_means_of(config, cohort, found["site_logits"]).remarks
    table = cohort.table[["subject_id", "session"]].reset_index(drop=True)
    record = _record_of(checkpoint, adapter)
    for line in alike_subjects(record, cohort.table):
        logger.warning("%s", line)
    seen = set(seen_subjects(record, cohort.table))
    limits = limits_table(processor.limits, cohort, seen, batch_size)
    return pd.concat([table, pd.DataFrame(columns), limits], axis=1), variables


def _warn_of_order(processor: LCMProcessor, cohort: Cohort) -> None:
    """Say which atlases' regions nothing names, so that nobody knows whether they are in the checkpoint's order."""
    known = processor.feature_extractor.by_atlas
    own = next(iter(known))
    wanted = known if len(known) > 1 else dict.fromkeys(cohort.atlases, known[own])
    unnamed = [name for name in cohort.atlases if name in wanted and not wanted[name].knows_regions]
    if unnamed:
        logger.warning("Order of regions not checked: nothing names those of %s.", ", ".join(unnamed))


def _readable(config: LCMConfig, cohort: Cohort, variables: list[BEIVariable]) -> list[BEIVariable]:
    """Those of some variables that can be read from the atlases of the cohort's scans."""
    kinds = set(present_atlases(config, cohort))
    found = [each for each in variables if any(sources(config, each.name, present) for present in kinds)]
    if variables and not found:
        names, fitted = ", ".join(each.name for each in variables), " or ".join(config.closed_form or {})
        raise ValueError(f"The checkpoint reads {names} from {fitted}; the data have {', '.join(cohort.atlases)}.")
    return found


def _columns(variable: BEIVariable, entries: list[dict[str, Any]]) -> dict[str, list]:
    """Predicted label or value, and probabilities; of two labels the positive one last."""
    columns = {variable.name: [entry.get("label", entry.get("value")) for entry in entries]}
    for label in sorted(variable.labels, key=lambda label: label == variable.positive_label):
        columns[f"{variable.name}={label}"] = [entry.get("probabilities", {}).get(label) for entry in entries]
    return columns


def _uncertainty(name: str, entries: list[dict[str, Any]], limits: TrainingLimits | None) -> dict[str, list]:
    if limits is None:
        return {}
    ranges: list[Any] = [limits.uncertainty(name, entry.get("probabilities", entry.get("value"))) for entry in entries]
    if not entries or ranges[0] is None:
        return {}
    if isinstance(ranges[0], tuple):
        low, high = zip(*ranges, strict=True)
        return {f"{name}_low": list(low), f"{name}_high": list(high)}
    return {f"{name}_possible": ["|".join(labels) for labels in ranges]}


def _record_of(checkpoint: str, adapter: str | None) -> dict[str, Any]:
    """The training record; that of an adapter lies in the checkpoint folder around it."""
    place = adapter or checkpoint
    return read_record(place) or read_record(Path(place).parent if Path(place).is_dir() else checkpoint)
