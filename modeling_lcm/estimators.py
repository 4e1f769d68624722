"""LCM in closed form as scikit-learn estimators: fitted in seconds on a CPU, saved as ordinary checkpoints.

They need neither scikit-learn nor the training code; where scikit-learn is installed, they are its estimators
(`clone`, `GridSearchCV`, `cross_val_predict`).
"""

import inspect
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import AutoConfig, AutoProcessor
from transformers.utils import logging

from .bei_vocabulary import BEIVariable
from .closed_form_fit import fit_task
from .closed_form_heads import Scans
from .decisions import at_prevalence
from .estimator_inputs import as_matrices, extract, extractor_of
from .feature_extraction_lcm import FCFeatureExtractor
from .limits_lcm import ScanCheck
from .loading_lcm import check_place
from .modeling_lcm import LCMForMultitaskPretraining, LCMForSequenceClassification
from .processing_lcm import LCMProcessor
from .readouts_lcm import record_of
from .sites_lcm import compares_with_site, site_means


try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
except ImportError:  # what of them is used here

    class BaseEstimator:  # type: ignore[no-redef]
        """Parameters by name, as scikit-learn's estimators have them."""

        def get_params(self, deep: bool = True) -> dict[str, Any]:
            """Parameters of the constructor."""
            return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

        def set_params(self, **params: Any) -> Self:
            """Set parameters of the constructor."""
            for name, value in params.items():
                setattr(self, name, value)
            return self

    class ClassifierMixin:  # type: ignore[no-redef]
        """Nothing."""

    class RegressorMixin:  # type: ignore[no-redef]
        """Nothing."""


logger = logging.get_logger("transformers.models.lcm")
PREVALENCES = ("training", "balanced")
_AT_ONCE = 64


class _ClosedFormEstimator(BaseEstimator):
    """What classifier and regressor share: connectomes in, a fitted model, logits out, saving."""

    model_: LCMForSequenceClassification
    processor_: LCMProcessor

    def __init__(
        self,
        checkpoint: str | os.PathLike | None = None,
        *,
        task: str = "target",
        triangle: str = "lower",
        site_relative: str = "never",
    ) -> None:
        self.checkpoint = checkpoint
        self.task = task
        self.triangle = triangle
        self.site_relative = site_relative

    def __sklearn_tags__(self) -> Any:
        """X may have three axes; regions without signal may be NaN."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = True
        return tags

    def _fit(
        self,
        connectivity: Any,
        values: NDArray,
        variable: BEIVariable,
        groups: Sequence[Hashable] | None,
        sites: Sequence[Hashable] | None,
    ) -> Self:
        if self.site_relative != "never" and sites is None:
            raise ValueError(
                f"site_relative is {self.site_relative!r}, but the sites are not known: call fit(X, y, sites=sites), "
                "or leave it at 'never'."
            )
        base, processor = _load(self.checkpoint)
        given = self._by_atlas(connectivity, None if processor is None else processor.feature_extractor)
        extractor = extractor_of(given) if processor is None else processor.feature_extractor
        matrices = extract(extractor, given)
        scans = len(next(iter(matrices.values())))
        for what, labels in (("y", values), ("groups", groups), ("sites", sites)):
            if labels is not None and len(labels) != scans:
                raise ValueError(f"X has {scans} scans, {what} has {len(labels)} values: give one per scan.")
        subjects = list(range(scans)) if groups is None else list(groups)
        tokenizer = None if processor is None else processor.tokenizer
        extractors = {name: extractor.by_atlas[name] for name in matrices}
        known = Scans(values, subjects, None if sites is None else list(sites))
        fitted = fit_task(matrices, extractors, known, variable, base, tokenizer, self.site_relative)
        self.model_, self.processor_, self.report_ = fitted.model, fitted.processor, fitted.report
        self.n_features_in_ = sum(part.shape[1] * (part.shape[1] - 1) // 2 for part in matrices.values())
        return self

    def _by_atlas(self, connectivity: Any, extractor: FCFeatureExtractor | None) -> Any:
        """X as matrices; a dictionary by atlas stays one."""
        if isinstance(connectivity, Mapping):
            return {
                name: None if part is None else as_matrices(part, self.triangle) for name, part in connectivity.items()
            }
        known = None if extractor is None or extractor.atlases is not None else extractor.num_regions
        return as_matrices(connectivity, self.triangle, known)

    @torch.no_grad()
    def _logits(self, X: Any, sites: Sequence[Hashable] | None) -> tuple[NDArray[np.float64], list[dict[str, Any]]]:
        """Logits `(scans, tokens)` of the task, and for every scan the record of the read-out that gave them."""
        if not hasattr(self, "model_"):
            raise ValueError(f"This {type(self).__name__} is not fitted yet: call fit(X, y) first.")
        extractor = self.processor_.feature_extractor
        matrices = extract(extractor, self._by_atlas(X, extractor))
        scans = len(next(iter(matrices.values())))
        outputs, records = [], []
        for start in range(0, scans, _AT_ONCE):
            part = {name: torch.from_numpy(each[start : start + _AT_ONCE]) for name, each in matrices.items()}
            outputs.append(self.model_(part))
        every = [[name for name, each in matrices.items() if not np.isnan(each[row, 0, 0])] for row in range(scans)]
        for row, present in enumerate(every):
            record = record_of(self.model_.config, self.task, present)
            if record is None:
                fitted = " or ".join(self.model_.config.closed_form or {})
                raise ValueError(f"Scan {row} has {' and '.join(present)}; {self.task!r} was fitted on {fitted}.")
            records.append(record)
        logits = torch.cat([each.logits for each in outputs]).double()
        if outputs[0].site_logits is not None:
            logits = logits - self._site_means(
                torch.cat([each.site_logits for each in outputs]).double(), sites, every
            )
        return logits.numpy(), records

    def _site_means(
        self, site_logits: torch.Tensor, sites: Sequence[Hashable] | None, present: Sequence[Sequence[str]]
    ) -> torch.Tensor:
        """What is subtracted from the task's logits `(scans, tokens)`."""
        config: Any = self.model_.config
        if sites is None and compares_with_site(config, [self.task]):
            logger.warning("No sites are given: the scans are compared with the mean of the training scans.")
        known = [None] * len(site_logits) if sites is None else sites
        return site_means(config, site_logits, known, present).values[:, config.token_slices[self.task]]

    def limits(self, X: Any, age: ArrayLike | None = None) -> list[ScanCheck]:
        """How far scans lie from those of `fit`: read it beside the predictions.

        Args:
            X: As for `predict`.
            age: Age of each subject in years `(scans,)`.

        Raises:
            ValueError: Not fitted, fewer than 10 subjects were fitted, or X lacks the atlas that is compared.
        """
        if not hasattr(self, "model_"):
            raise ValueError(f"This {type(self).__name__} is not fitted yet: call fit(X, y) first.")
        extractor, known = self.processor_.feature_extractor, self.processor_.limits
        if known is None:
            raise ValueError("The limits are not known: fit saw fewer than 10 subjects.")
        found = known.check_each(extract(extractor, self._by_atlas(X, extractor)), age)
        checks = [check for check in found if check is not None]
        if len(checks) < len(found):
            atlases = " or ".join(known.facts.get("atlases", [known.facts.get("atlas")]))
            raise ValueError(f"Limits compare scans of {atlases}: give every scan in one of these.")
        return checks

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Save the fitted model with its processor as an ordinary checkpoint, for `from_pretrained` and pipelines."""
        self.model_.save_pretrained(folder)
        self.processor_.save_pretrained(folder)


def _load(checkpoint: Any) -> tuple[Any, LCMProcessor | None]:
    if checkpoint is None:
        return None, None
    check_place(checkpoint)
    architectures = AutoConfig.from_pretrained(checkpoint).architectures or []
    is_task = "LCMForSequenceClassification" in architectures
    kind = LCMForSequenceClassification if is_task else LCMForMultitaskPretraining
    return kind.from_pretrained(checkpoint).eval(), AutoProcessor.from_pretrained(checkpoint)


def names_of(classes: ArrayLike, label_names: Mapping[Any, str] | None) -> list[str]:
    """What classes are called: as they are written, or by a table.

    Args:
        classes: The classes of `y`.
        label_names: Name of each; may name others, too.

    Raises:
        ValueError: A class without a name, or two with the same one.
    """
    found = np.asarray(classes).tolist()
    if label_names is None:
        return [str(label).strip() for label in found]
    if not isinstance(label_names, Mapping):
        raise ValueError(f'label_names must be a dictionary such as {{0: "F", 1: "M"}}, got {label_names!r:.80}.')
    unnamed = [label for label in found if label not in label_names]
    if unnamed:
        raise ValueError(
            f"label_names has no name for {', '.join(map(repr, unnamed))} of y; it has names for "
            f"{', '.join(map(repr, label_names)) or 'nothing'}."
        )
    names = [str(label_names[label]).strip() for label in found]
    if len(set(names)) < len(names):
        raise ValueError(f"label_names gives two classes the same name: {dict(zip(found, names, strict=True))}.")
    return names


class LCMClassifier(ClassifierMixin, _ClosedFormEstimator):
    """Tell classes apart by their connectomes, in closed form.

    Classes count alike, whatever their size, so that `predict` does not make every subject one of the larger class.

    Args:
        checkpoint (`str`, *optional*): Folder or Hub repository of a checkpoint with closed-form read-outs, such as
            lcm-open. One that has the same variable serves as a prior, as far as the labels bear it out. Scores, also
            left-out ones, are too good for subjects that it was trained on: X has no ids to tell them by.
        task (`str`): Name of what is predicted, such as "sex": a variable of this name in the checkpoint is the prior.
        triangle (`str`): Order of vectorised connectomes, see [`as_matrices`].
        site_relative (`str`): Compare scans with the mean of their site, for predictions at new sites: "never", "auto"
            (as far as that helps at training sites that are left out) or "always".
        prevalence (`str`): What `predict_proba` speaks of: "training", a cohort with the training scans' shares of
            the classes; or "balanced", equal shares, for which the most probable class is what `predict` says.
        label_names (`Mapping[Any, str]`, *optional*): What the classes of `y` are called, `{0: "F", 1: "M"}`: needed
            where they are coded otherwise than the checkpoint's labels. `classes_` and predictions are those of `y`.

    Attributes:
        model_: The fitted model, an [`LCMForSequenceClassification`].
        processor_ (`LCMProcessor`): Regions and vocabulary of the model.
        report_ (`dict`): By atlases: left-out AUC, sensitivity and specificity at the threshold, and what the prior
            was worth.
        classes_ (`np.ndarray`): The classes, sorted.

    Example:
        `cross_val_score(LCMClassifier("hub_cards/lcm-open", task="sex"), fc_matrices, sex, scoring="roc_auc")`
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike | None = None,
        *,
        task: str = "target",
        triangle: str = "lower",
        site_relative: str = "never",
        prevalence: str = "training",
        label_names: Mapping[Any, str] | None = None,
    ) -> None:
        super().__init__(checkpoint, task=task, triangle=triangle, site_relative=site_relative)
        self.prevalence = prevalence
        self.label_names = label_names

    def fit(
        self,
        X: Any,
        y: ArrayLike,
        groups: Sequence[Hashable] | None = None,
        sites: Sequence[Hashable] | None = None,
    ) -> Self:
        """Fit to labelled scans.

        Args:
            X: Correlation matrices `(scans, regions, regions)`, a list of DataFrames with named regions, triangles
                `(scans, edges)`, or a dictionary of these by atlas, with None or NaN for scans without an atlas.
            y: Class of each scan `(scans,)`: texts, numbers or booleans.
            groups: Subject of each scan; scans of one are left out together. Default: each is another's.
            sites: Site of each scan, None or NaN where it is not recorded.

        Raises:
            ValueError: Connectomes that are damaged or of other regions than the checkpoint's, a missing label, a
                single class, a class with one scan, or one without a name of its own in `label_names`.
        """
        if self.prevalence not in PREVALENCES:
            raise ValueError(f"prevalence must be one of {', '.join(PREVALENCES)}, got {self.prevalence!r}.")
        labels = np.asarray(y)
        if labels.ndim != 1:
            raise ValueError(f"y has shape {labels.shape}; needed is one class per scan, (scans,).")
        missing = sum(label is None or label != label for label in labels.tolist())
        if missing:
            raise ValueError(f"{missing} values of y are missing: leave these scans out.")
        if labels.dtype.kind == "f" and not np.equal(np.mod(labels, 1), 0).all():
            raise ValueError("y holds numbers that are no classes: use LCMRegressor, or make classes of them.")
        self.classes_ = np.unique(labels)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class ({str(self.classes_[0])!r}): a classifier needs two or more.")
        self._names = names_of(self.classes_, self.label_names)
        indices = np.searchsorted(self.classes_, labels).astype(np.float64)
        return self._fit(X, indices, BEIVariable(self.task, "categorical", self._names), groups, sites)

    def _columns(self) -> list[int]:
        """Where each class is among the model's labels."""
        variable = self.processor_.tokenizer.task_variable
        return [variable.labels.index(variable.label_of(name)) for name in self._names]

    def decision_function(self, X: Any, sites: Sequence[Hashable] | None = None) -> NDArray[np.float64]:
        """Balanced log-odds of the second of two classes `(scans,)`; of more, one logit each `(scans, classes)`.

        With `sites`, those of the scans, a model that was fitted with `site_relative` compares them with the mean of
        their site: of these scans, and of the training scans of the same site.
        """
        logits = self._logits(X, sites)[0]
        logits = logits[:, self._columns()]
        return logits[:, 1] - logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any, sites: Sequence[Hashable] | None = None) -> NDArray[np.float64]:
        """Probabilities `(scans, classes)` at `prevalence`, in the order of `classes_`; `sites` as above."""
        logits, records = self._logits(X, sites)
        balanced = torch.from_numpy(logits).softmax(-1).numpy()
        if self.prevalence == "training":
            balanced = at_prevalence(balanced, np.array([record["prevalence"] for record in records]))
        return balanced[:, self._columns()]

    def predict(self, X: Any, sites: Sequence[Hashable] | None = None) -> NDArray:
        """Class of each scan `(scans,)`, at equal costs of errors in each, whatever its share; `sites` as above."""
        logits = self._logits(X, sites)[0]
        return self.classes_[logits[:, self._columns()].argmax(1)]


class LCMRegressor(RegressorMixin, _ClosedFormEstimator):
    """Predict a number from connectomes, in closed form; see [`LCMClassifier`] for arguments and attributes.

    Example:
        `cross_val_predict(LCMRegressor("hub_cards/lcm-open", task="age"), fc_matrices, age)`
    """

    def fit(
        self,
        X: Any,
        y: ArrayLike,
        groups: Sequence[Hashable] | None = None,
        sites: Sequence[Hashable] | None = None,
    ) -> Self:
        """Fit to scans with a value.

        Args:
            X: As for [`LCMClassifier`].
            y: Value of each scan `(scans,)`.
            groups: Subject of each scan; scans of one are left out together.
            sites: Site of each scan, None or NaN where it is not recorded.

        Raises:
            ValueError: Connectomes that are damaged or of other regions than the checkpoint's; values that are
                missing, infinite or all the same.
        """
        values = np.asarray(y, dtype=np.float64)
        if values.ndim != 1:
            raise ValueError(f"y has shape {values.shape}; needed is one number per scan, (scans,).")
        if not np.isfinite(values).all():
            raise ValueError(
                f"{int((~np.isfinite(values)).sum())} values of y are NaN or infinite: leave these scans out."
            )
        if len(values) < 3:
            raise ValueError(f"y holds {len(values)} values: a fit needs three or more.")
        if not np.ptp(values):
            raise ValueError(f"All values of y are {values[0]:g}: there is nothing to learn.")
        return self._fit(X, values, replace(BEIVariable(self.task, "continuous")), groups, sites)

    def predict(self, X: Any, sites: Sequence[Hashable] | None = None) -> NDArray[np.float64]:
        """Predicted value of each scan `(scans,)`, in the unit of `y`; `sites` as for [`LCMClassifier`]."""
        logits = self._logits(X, sites)[0]
        return self.processor_.tokenizer.task_variable.values(logits[:, 0])
