"""LCM as scikit-learn estimators, for use with nilearn and in `cross_val_score`, `GridSearchCV` and pipelines."""

import tempfile
from dataclasses import fields
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted
from torch import nn

from modeling_lcm import BEITokenizer, BEIVariable, FCFeatureExtractor
from modeling_lcm.array_inputs import axis_names
from modeling_lcm.estimator_inputs import as_matrices
from modeling_lcm.limits_lcm import ScanCheck
from modeling_lcm.region_matching import first_difference

from .data.cohort import Cohort
from .data.triangles import count_edges, to_triangles
from .trainer.arguments import FinetuneArguments, PretrainArguments
from .trainer.checkpoints import load_processor
from .trainer.finetuning import finetune
from .trainer.prediction import predict_logits
from .trainer.pretraining import pretrain


Triangle = Literal["lower", "upper"]
OWN_SETTINGS = (
    "data",
    "output",
    "splits",
    "fold",
    "categorical",
    "continuous",
    "vocabulary",
    "task",
    "kind",
    "labels",
    "positive",
)


class _LCMEstimator(BaseEstimator):
    """What both estimators share: settings, the way of connectomes into the training stages, and read-out."""

    def __init__(
        self,
        checkpoint: str | None = None,
        *,
        size: str = "nano",
        epochs: int = 12,
        batch_size: int = 16,
        learning_rate: float = 1e-3,
        mixup: float = 1.0,
        class_weights: str = "none",
        adapter: str = "none",
        lora_rank: int = 0,
        task: str = "target",
        triangle: Triangle = "lower",
        settings: dict[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = 0,
        progress: bool = False,
    ) -> None:
        self.checkpoint = checkpoint
        self.size = size
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.mixup = mixup
        self.class_weights = class_weights
        self.adapter = adapter
        self.lora_rank = lora_rank
        self.task = task
        self.triangle = triangle
        self.settings = settings
        self.random_state = random_state
        self.progress = progress

    def __sklearn_tags__(self) -> Any:
        """X may have three axes; regions without signal may be NaN."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        tags.input_tags.allow_nan = True
        tags.non_deterministic = self.random_state is None
        return tags

    def _fit(self, connectivity: ArrayLike, values: np.ndarray, variable: BEIVariable) -> Self:
        check_consistent_length(connectivity, values)
        arguments = self._arguments(variable)
        extractor = None
        if isinstance(arguments, FinetuneArguments):
            extractor = load_processor(arguments.checkpoint).feature_extractor
        matrices = as_matrices(connectivity, self.triangle, None if extractor is None else extractor.num_regions)
        if extractor is None:
            extractor = FCFeatureExtractor(num_regions=np.shape(matrices[0])[-1], region_names=_names_of(matrices))
        self._remember_columns(connectivity)
        cohort = _as_cohort(matrices, extractor, {variable.name: values})
        if isinstance(arguments, FinetuneArguments):
            self.model_: nn.Module
            self.model_, self.processor_, self.history_ = finetune(cohort, arguments)
        else:
            tokenizer = BEITokenizer(variables=[variable]).fit_scaling(cohort.table)
            with tempfile.TemporaryDirectory() as folder:
                tokenizer.save_pretrained(folder)
                arguments.vocabulary = folder
                self.model_, self.processor_, self.history_ = pretrain(cohort, arguments)
        self.n_features_in_ = count_edges(extractor)
        return self

    def _arguments(self, variable: BEIVariable) -> PretrainArguments | FinetuneArguments:
        names = ("epochs", "batch_size", "learning_rate", "mixup", "class_weights", "progress")
        chosen = {name: getattr(self, name) for name in names}
        chosen["seed"] = int(check_random_state(self.random_state).randint(2**31 - 1))
        kind: type[PretrainArguments | FinetuneArguments] = PretrainArguments
        if self.checkpoint is not None:
            kind = FinetuneArguments
            chosen |= {"checkpoint": str(self.checkpoint), "adapter": self.adapter, "lora_rank": self.lora_rank}
            chosen |= {"task": variable.name, "kind": variable.kind, "labels": list(variable.labels) or None}
        elif self.adapter != "none" or self.lora_rank:
            raise ValueError(
                "adapter and lora_rank change a pretrained network: give a checkpoint, or leave them out."
            )
        else:
            chosen["size"] = self.size
        others = dict(self.settings or {})
        allowed = {item.name for item in fields(kind)} - set(chosen) - set(OWN_SETTINGS)
        unknown = sorted(set(others) - allowed)
        if unknown:
            raise ValueError(
                f"settings has {', '.join(unknown)}, which is unknown here or an argument of its own; possible are "
                f"{', '.join(sorted(allowed))}."
            )
        return kind(**chosen, **others)

    def _logits(self, connectivity: ArrayLike) -> np.ndarray:
        """Read-out `(scans, labels)`, or `(scans, 1)` of a continuous variable."""
        check_is_fitted(self)
        self._check_columns(connectivity)
        extractor = self.processor_.feature_extractor
        matrices = as_matrices(connectivity, self.triangle, extractor.num_regions)
        cohort = _as_cohort(matrices, extractor, {})
        return predict_logits(self.model_, cohort)["logits"].double().numpy()

    def limits(self, X: ArrayLike, age: ArrayLike | None = None) -> list[ScanCheck]:
        """How far scans lie from those of `fit`: read it beside the predictions.

        Args:
            X: as for `predict`.
            age: Age of each subject in years `(scans,)`.

        Raises:
            ValueError: fewer than 10 scans were fitted, or X is refused.
        """
        check_is_fitted(self)
        known = self.processor_.limits
        if known is None:
            raise ValueError("The limits are not known: fit saw fewer than 10 scans.")
        extractor = self.processor_.feature_extractor
        matrices = as_matrices(X, self.triangle, extractor.num_regions)
        return known.check(extractor(connectivity=matrices)["connectivity"], age)

    def _remember_columns(self, connectivity: Any) -> None:
        """Names of the columns of a table of vectors, as scikit-learn's estimators keep them."""
        names = axis_names(connectivity)[1]
        if names is not None:
            self.feature_names_in_ = np.array(names, dtype=object)
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _check_columns(self, connectivity: Any) -> None:
        """Refuse a table of vectors whose columns are not those of `fit`."""
        known, names = getattr(self, "feature_names_in_", None), axis_names(connectivity)[1]
        if known is not None and names is not None and names != list(known):
            raise ValueError(f"The columns of X differ from those of fit: {first_difference(names, list(known))}.")


def _names_of(matrices: Any) -> list[str] | None:
    """Names of the regions of the first matrix, if it brings some."""
    rows, columns = axis_names(matrices[0]) if isinstance(matrices, list) else (None, None)
    return columns or rows


def _as_cohort(matrices: Any, extractor: FCFeatureExtractor, columns: dict[str, np.ndarray]) -> Cohort:
    """Checked connectomes with a table; every scan counts as a subject."""
    checked = extractor(connectivity=matrices)["connectivity"]
    table = pd.DataFrame({"subject_id": [f"{number:06d}" for number in range(len(checked))], "session": "", **columns})
    return Cohort(table, to_triangles(checked), extractor)


_PARAMETERS = """
    Args:
        checkpoint (`str`, *optional*): pretrained checkpoint to fine-tune, a folder or Hub repository. Without one, a
            network of `size` is trained from random weights.
        size (`str`): named size of a network from random weights.
        epochs, batch_size, learning_rate, mixup, class_weights, adapter, lora_rank, progress: as the training scripts'
            settings of these names, with `epochs` and `mixup` set for a cohort of hundreds.
        task (`str`): name of what is predicted; a variable of this name that the checkpoint was pretrained on is
            fine-tuned on its own tokens, and must have the same labels.
        triangle (`str`): order of vectorised connectomes, see [`as_matrices`].
        settings (`dict`, *optional*): any other setting of training.pretrain (from random weights) or
            training.finetune (with a checkpoint), such as `{"weight_decay": 0.2}` or `{"frozen_layers": 4}`. Every
            scan counts as a subject: with several scans of one, keep `validation_fraction` at 0.
        random_state (`int`, `RandomState` or `None`): the seed of weights, order, dropout and noise.

    Attributes:
        model_: the trained network, a `PeftModel` with an adapter.
        processor_ (`LCMProcessor`): regions and vocabulary of the model.
        history_ (`list[dict]`): one record per epoch."""


class LCMClassifier(ClassifierMixin, _LCMEstimator):
    __doc__ = f"""Classify connectomes.
{_PARAMETERS}
        classes_ (`np.ndarray`): the classes, sorted.

    Example:
        `cross_val_score(LCMClassifier(), fc_matrices, diagnosis, groups=subjects, cv=GroupKFold(5))`
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train on labelled scans.

        Args:
            X: correlation matrices `(scans, regions, regions)`, a list of DataFrames with named regions, or triangles
                `(scans, edges)`.
            y: class of each scan `(scans,)`: texts, numbers or booleans.

        Raises:
            ValueError: connectomes that are damaged or no Pearson correlations, vectorised in another order, or of
                other regions than the checkpoint's; a missing label, or a single class.
        """
        labels = column_or_1d(y, warn=True)
        if pd.isna(labels).any():
            raise ValueError(f"{int(pd.isna(labels).sum())} values of y are missing: leave these scans out.")
        check_classification_targets(labels)
        self.classes_ = np.unique(labels)
        if len(self.classes_) < 2:
            raise ValueError(f"y holds one class ({str(self.classes_[0])!r}): a classifier needs two or more.")
        names = [str(label) for label in self.classes_]
        return self._fit(X, labels.astype(str), BEIVariable(self.task, "categorical", names))

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probabilities `(scans, classes)`, in the order of `classes_`."""
        logits = self._logits(X)
        # A pretrained variable's labels are in the checkpoint's order.
        variables = self.processor_.tokenizer.variables
        labels = next(variable.labels for variable in variables if variable.name == self.task)
        return softmax(logits[:, [labels.index(str(label).strip()) for label in self.classes_]], axis=1)

    def predict(self, X: ArrayLike) -> np.ndarray:
        """Most probable class of each scan `(scans,)`."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]


class LCMRegressor(RegressorMixin, _LCMEstimator):
    __doc__ = f"""Predict a number from connectomes.
{_PARAMETERS}

    Example:
        `cross_val_predict(LCMRegressor(), fc_matrices, age)`
    """

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train on scans with a value.

        Args:
            X: correlation matrices `(scans, regions, regions)`, a list of DataFrames with named regions, or triangles
                `(scans, edges)`.
            y: value of each scan `(scans,)`.

        Raises:
            ValueError: connectomes that are damaged or no Pearson correlations, vectorised in another order, or of
                other regions than the checkpoint's; values that are missing, infinite or all the same.
        """
        values = column_or_1d(y, warn=True).astype(np.float64)
        if not np.isfinite(values).all():
            raise ValueError(
                f"{int((~np.isfinite(values)).sum())} values of y are NaN or infinite: leave these scans out."
            )
        if len(values) < 2:
            raise ValueError("y holds one sample: training needs two or more.")
        if not np.ptp(values):
            raise ValueError(f"All values of y are {values[0]:g}: there is nothing to learn.")
        return self._fit(X, values, BEIVariable(self.task, "continuous"))

    def predict(self, X: ArrayLike) -> NDArray[np.float64]:
        """Predicted value of each scan `(scans,)`, in the unit of `y`."""
        logits = self._logits(X)
        records = self.processor_.tokenizer.batch_decode(logits, variables=[self.task])
        return np.array([record[self.task]["value"] for record in records])
