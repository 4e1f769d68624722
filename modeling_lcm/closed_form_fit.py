"""Fine-tuning in closed form: a task from few labels, with what a checkpoint knows of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers.utils import logging

from .bei_vocabulary import BEIVariable
from .closed_form_heads import WARN_PER_CLASS, Scans
from .closed_form_model import SHRINKAGES, Heads, SharedEdges, build_model, can_be_prior, fit_heads, heads_of
from .edges_lcm import log_edges
from .feature_extraction_lcm import FCFeatureExtractor
from .limits_lcm import TrainingLimits, most_scans
from .modeling_lcm import LCMForSequenceClassification
from .processing_lcm import LCMProcessor
from .tokenization_bei import BEITokenizer


logger = logging.get_logger("transformers.models.lcm")

LOG_BELOW = 0.75  # of a number's skewness: from there on its logarithm is what is learnt


@dataclass(frozen=True)
class FittedTask:
    """A task fitted in closed form.

    Args:
        model ([`LCMForSequenceClassification`]): with the checkpoint's other variables, as far as they are read from
            the same atlases.
        processor ([`LCMProcessor`]): for it.
        report (`dict[str, dict]`): the record of every read-out, by its atlases.
    """

    model: LCMForSequenceClassification
    processor: LCMProcessor
    report: dict[str, dict[str, Any]]

    def lines(self) -> list[str]:
        """What a user should know: scores on left-out subjects, threshold, and what the prior was worth."""
        task = str(self.processor.tokenizer.task)
        return [line for key, record in self.report.items() for line in _lines(task, key, record)]


def fit_task(
    connectivity: Mapping[str, NDArray[np.float32]],
    extractors: Mapping[str, FCFeatureExtractor],
    scans: Scans,
    variable: BEIVariable,
    base: Any = None,
    vocabulary: BEITokenizer | None = None,
    site_relative: str = "never",
) -> FittedTask:
    """Fit a task to labelled scans, with a checkpoint's read-outs of the same variable as prior.

    Args:
        connectivity: Pearson matrices by atlas `(scans, regions, regions)`, NaN for scans without one.
        extractors: FC definition of these atlases.
        scans: Label indices, or numbers in their own unit; NaN where nothing is recorded.
        variable: The task. Where the checkpoint has a variable of this name, that one counts.
        base: The checkpoint's model.
        vocabulary: The checkpoint's tokenizer.
        site_relative: Whether scans are compared with their sites: "never", "auto" (as far as that helps at left-out
            sites) or "always".

    Raises:
        ValueError: Labels that the checkpoint's variable does not have, a single class or a class with one scan, or
            numbers that are all the same.
    """
    fitted = fit_log_edges(
        lambda: {name: log_edges(matrices, SHRINKAGES) for name, matrices in connectivity.items()},
        extractors,
        scans,
        variable,
        base,
        vocabulary,
        site_relative=site_relative,
    )
    limits = {}
    for name, matrices in connectivity.items():
        here = np.flatnonzero(np.isfinite(scans.values) & np.isfinite(matrices[:, 0, 0]))
        most = min(len(here), most_scans(matrices.shape[-1]))
        chosen = here[np.unique(np.linspace(0, len(here) - 1, most, dtype=int))]
        limits[name] = TrainingLimits.of(matrices[chosen], scans.select(chosen).subjects)
    first, *others = limits.values()
    fitted.processor.limits = TrainingLimits.several(limits) if others else first
    return fitted


def fit_log_edges(
    make_edges: Callable[[], Mapping[str, NDArray[np.float32]]],
    extractors: Mapping[str, FCFeatureExtractor],
    scans: Scans,
    variable: BEIVariable,
    base: Any = None,
    vocabulary: BEITokenizer | None = None,
    shared: SharedEdges | None = None,
    site_relative: str = "never",
) -> FittedTask:
    """Fit a task to log FC, without the statistics that tell other scans from these.

    Args:
        make_edges: Gives [`log_edges`] by atlas; called when the labels were found to be usable.
        extractors: FC definition of these atlases.
        scans, variable, base, vocabulary: As for [`fit_task`].
        shared: What earlier tasks of the same scans were fitted with.
        site_relative: As for [`fit_task`].

    Raises:
        ValueError: As [`fit_task`].
    """
    known: Heads = {}
    if base is not None and can_be_prior(base.config):
        known = heads_of(base, list(extractors))
    names = {name for of_key in known.values() for name in of_key}
    pretrained = [each for each in (vocabulary.variables if vocabulary is not None else []) if each.name in names]
    own = next((each for each in pretrained if each.name == variable.name), None)
    if own is not None:
        scans, variable = _in_own_terms(scans, variable, own)
    elif not variable.labels:
        variable = _scaled(variable, scans.values)
    if not variable.labels:
        scans = replace(scans, values=variable.scaled(scans.values))
    _warn_of_few(scans, variable)
    if base is not None and own is None:
        logger.warning("Prior used: none, %s.", _why_none(base, vocabulary, variable.name))
    edges = make_edges()
    fitted = fit_heads(edges, scans, variable, known, shared, site_relative)
    # The checkpoint's other variables stay; of the task, what was fitted here counts alone.
    heads = {key: {name: head for name, head in of.items() if name != variable.name} for key, of in known.items()}
    for key, of_key in fitted.items():
        heads.setdefault(key, {}).update(of_key)
    tokenizer = _tokenizer(pretrained, variable, is_new=own is None)
    means = {name: _mean(each) for name, each in edges.items()}
    model: Any = build_model({key: of for key, of in heads.items() if of}, means, extractors, tokenizer)
    report = {key: of[variable.name].record for key, of in fitted.items()}
    return FittedTask(model, LCMProcessor(one_extractor(extractors), tokenizer), report)


def _mean(edges: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean over the scans that have the atlas, `(shrinkages, edges)`."""
    there = ~np.isnan(edges[:, 0, 0])
    return (edges if there.all() else edges[there]).mean(0, dtype=np.float64)


def _in_own_terms(scans: Scans, given: BEIVariable, own: BEIVariable) -> tuple[Scans, BEIVariable]:
    """Labels by the numbers that the checkpoint's variable has for them."""
    if own.kind != given.kind:
        raise ValueError(
            f"The checkpoint has {own.name!r} as a {own.kind} variable, not a {given.kind} one: give the task another "
            "name."
        )
    if not own.labels:
        return scans, own
    unknown = [label for label in given.labels if not own.knows(label)]
    if unknown or len(given.labels) != len(own.labels):
        numbered = all(label.isdecimal() for label in given.labels)
        why = " (scikit-learn numbers them for cross_val_predict(method='predict_proba') and in ensembles)" * numbered
        meant = ", ".join(f'{label}: "{name}"' for label, name in zip(given.labels, own.labels, strict=False))
        way = f"say which is which (label_names={{{meant}}} or the like)" if numbered else "spell them alike"
        raise ValueError(
            f"The checkpoint has {own.name!r} with the labels {', '.join(own.labels)}, the data has "
            f"{', '.join(given.labels)}{why}: {way}, or give the task another name to do without."
        )
    position = np.array([own.labels.index(own.label_of(label)) for label in given.labels], dtype=float)
    here = np.isfinite(scans.values)
    values = np.where(here, position[np.where(here, scans.values, 0).astype(int)], np.nan)
    return replace(scans, values=values), own


def _scaled(variable: BEIVariable, values: NDArray) -> BEIVariable:
    """A new number's scale: mean 0 and deviation 1, of its logarithm where that is clearly less skewed."""
    found = values[np.isfinite(values)]
    is_log = bool((found > 0).all()) and abs(_skewness(np.log(found))) < LOG_BELOW * abs(_skewness(found))
    found = np.log(found) if is_log else found
    return replace(variable, log=is_log, mean=float(found.mean()), std=float(found.std()) or 1.0)


def _skewness(values: NDArray) -> float:
    return float(((values - values.mean()) ** 3).mean() / max(values.std() ** 3, 1e-12))


def _warn_of_few(scans: Scans, variable: BEIVariable) -> None:
    if not variable.labels:
        return
    counts = np.bincount(scans.values[np.isfinite(scans.values)].astype(int), minlength=len(variable.labels))
    few = [f"{label}: {count}" for label, count in zip(variable.labels, counts, strict=True) if count < WARN_PER_CLASS]
    if few:
        logger.warning("Few training scans (%s): what is left out of them says little.", ", ".join(few))


def _why_none(base: Any, vocabulary: BEITokenizer | None, name: str) -> str:
    if not can_be_prior(base.config):
        return "the checkpoint's read-outs were not fitted in closed form"
    if vocabulary is not None and name in [each.name for each in vocabulary.variables]:
        return f"the checkpoint reads {name!r} from other atlases"
    return f"the checkpoint does not know {name!r}"


def _tokenizer(pretrained: list[BEIVariable], variable: BEIVariable, is_new: bool) -> BEITokenizer:
    """The variables that the model keeps, with the task among them, or behind them."""
    if not pretrained:
        return BEITokenizer(variables=[variable], task=variable.name)
    if is_new:
        return BEITokenizer(variables=pretrained).add_variable(variable, task=True)
    return BEITokenizer(variables=pretrained).for_task(variable.name)


def one_extractor(extractors: Mapping[str, FCFeatureExtractor]) -> FCFeatureExtractor:
    """One extractor for all atlases.

    Raises:
        ValueError: FC is not computed the same way in all of them.
    """
    first, *others = extractors.values()
    if not others:
        return first
    atlases = {
        name: {"num_regions": each.num_regions}
        | ({} if each.region_names is None else {"region_names": each.region_names})
        for name, each in extractors.items()
    }
    for name in ("estimator", "fisher_z"):
        found = {str(each.atlas): getattr(each, name) for each in extractors.values()}
        if len(set(found.values())) > 1:
            raise ValueError(f"FC is computed differently in the atlases: {name} is {found}. Prepare all alike.")
    options = {name: getattr(first, name) for name in ("estimator", "fisher_z", "constant_regions", "min_volumes")}
    return FCFeatureExtractor(atlases=atlases, **options)


def _lines(task: str, key: str, record: dict[str, Any]) -> list[str]:
    score = f"AUC {record['auc']:.3f}" if "auc" in record else f"r {record['r']:.3f}"
    found = [f"{task} from {key}: {record['scans']} scans, left out by subject {score}"]
    if "sensitivity" in record:
        found[0] += f", sensitivity {record['sensitivity']:.2f}, specificity {record['specificity']:.2f}"
    gates = [each["site_gate"] for each in record.get("of_labels", [record]) if "site_gate" in each]
    if gates:
        found.append(f"  compared with the site by {', '.join(f'{gate:g}' for gate in gates)}{_compared(record)}")
    if record.get("prior"):
        found.append(
            f"  prior used: {record['prior']:.2f} of the checkpoint's read-out, {record['ridge']:.2f} of ridge"
        )
    return found


def _compared(record: dict[str, Any]) -> str:
    """What the left-out sites said."""
    scores = record.get("left_out_sites")
    if not scores:
        return "" if "of_labels" in record else ", with too few sites or scans to choose"
    measure = "AUC" if "auc" in record else "r"
    shown = ", ".join(f"{score:.3f} at {gate}" for gate, score in scores.items())
    return f"; {measure} within left-out sites {shown}"
