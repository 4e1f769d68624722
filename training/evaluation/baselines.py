"""What the model has to beat: linear models and a perceptron on the vectorised connectome, and the majority class.

All see exactly the training and test subjects that the model sees, and the strength of their regularisation is chosen
by cross-validation inside the training subjects.
"""

import math
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn import config_context
from sklearn.base import BaseEstimator
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVR, LinearSVC
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits

from .features import LOG_FC, RAW_FC, FeatureKind
from .inner_choice import Kind, best_of, calibrated, choose_penalty, inner_splits, mean_area


# Inverse strengths for about 20,000 standardised edges: the useful range lies far below scikit-learn's default of 1.
LOGISTIC_C_GRID = (1e-5, 1e-4, 1e-3, 1e-2)
RIDGE_ALPHA_GRID = (1e2, 1e3, 1e4, 1e5)
# Taken when there are too few training subjects to choose.
DEFAULT_LOGISTIC_C = 1e-4
DEFAULT_RIDGE_ALPHA = 1e4
SVM_C_GRID = (1e-6, 1e-5, 1e-4, 1e-3)
DEFAULT_SVM_C = 1e-5
MLP_ALPHA_GRID = (1.0, 10.0, 100.0)
DEFAULT_MLP_ALPHA = 10.0
MLP_BATCH = 32
# Steps, not epochs: a perceptron for sixty subjects needs as many as one for six hundred.
MLP_STEPS = 1000
MLP_INNER_FOLDS = 3  # every fit takes seconds


@dataclass(frozen=True)
class Baseline:
    """A kind of model that is fitted on the connectivity of the training subjects and applied to the test subjects.

    Edges are standardised with the training subjects' mean and deviation, classes weigh inversely to their size, and
    the strength of the penalty is chosen by cross-validation inside the training subjects (ROC AUC; squared error).

    Args:
        fit (`Callable`): makes a fitted model of edges, labels, kind, seed, groups and options.
        edges (`FeatureKind`): the edges of which matrix.
        is_linear (`bool`): whether only the span of the training scans matters to it, and not which axes it has.
    """

    fit: Callable[..., Any]
    edges: FeatureKind = RAW_FC
    is_linear: bool = True

    def __call__(
        self,
        train_fc: ArrayLike,
        train_labels: ArrayLike,
        test_fc: ArrayLike,
        kind: Kind = "classification",
        seed: int = 0,
        num_classes: int | None = None,
        groups: Sequence[Hashable] | None = None,
        **options: Any,
    ) -> NDArray[np.float64]:
        """Fit and predict.

        Args:
            train_fc: correlations `(train subjects, regions, regions)`.
            train_labels: class indices or numbers `(train subjects,)`, without missing ones.
            test_fc: correlations `(test subjects, regions, regions)`.
            kind: "classification" or "regression".
            seed: of the inner folds, and of a perceptron's weights.
            num_classes: classes of the task; by default the highest label + 1.
            groups: subject of each training scan when subjects have several, so that inner folds do not share one.
            **options: of the kind of model, such as the perceptron's `hidden` units (64).

        Returns:
            Probabilities `(test subjects, classes)`, or predictions `(test subjects,)`.

        Raises:
            ValueError: labels and scans that do not match, an unknown kind, or a class with nobody in the training
                set.
        """
        span = Span.of(self.edges.of_matrices(train_fc), self.edges.of_matrices(test_fc), self.is_linear)
        return self.in_span(span, train_labels, kind, seed, num_classes, groups, **options)

    def in_span(
        self,
        span: "Span",
        train_labels: ArrayLike,
        kind: Kind = "classification",
        seed: int = 0,
        num_classes: int | None = None,
        groups: Sequence[Hashable] | None = None,
        **options: Any,
    ) -> NDArray[np.float64]:
        """The same with edges that are prepared already: several models may share them."""
        labels = checked_labels(train_labels, kind, num_classes)
        if len(labels) != len(span.training):
            raise ValueError(
                f"There are {len(span.training)} training scans and {len(labels)} labels: give one label per scan."
            )
        # Every feature was checked, and the many small fits would spend as long on checking them again.
        checked = config_context(assume_finite=True, skip_parameter_validation=True)
        with threadpool_limits(1), warnings.catch_warnings(), checked:
            # The perceptron is meant to stop after its epochs. A linear model that does not converge says so: its
            # score would be too low, and what is compared with it would look too good.
            warnings.filterwarnings("ignore", "Stochastic Optimizer", ConvergenceWarning)
            warnings.filterwarnings("ignore", "Got `batch_size`")  # fewer scans than in a batch: all of them are one
            model = self.fit(span.training, labels, kind, seed, groups, **options)
            predict = model.predict_proba if kind == "classification" else model.predict
            return predict(span.test)


@dataclass(frozen=True)
class Span:
    """Standardised edges, turned into the span of the training scans.

    A solution with an L2 penalty lies in that span, so that no prediction changes, and as many features as scans are
    left. The many small fits that follow only lose time to threads, minutes when the machine is busy.

    Args:
        training (`np.ndarray` of shape `(training scans, features)`): of the scans that are fitted.
        test (`np.ndarray` of shape `(test scans, features)`): of those that are predicted.
    """

    training: NDArray[np.float64]
    test: NDArray[np.float64]

    @classmethod
    def of(cls, training: NDArray[np.float64], test: NDArray[np.float64], any_axes: bool = True) -> "Span":
        """The span of training edges `(training scans, edges)`, and test edges `(test scans, edges)` in it.

        NaN, where a scan lacks an atlas, becomes the mean of the training scans. With `any_axes` false the axes are
        those of scikit-learn's PCA, with its signs, and one for every scan.
        """
        scale = StandardScaler()
        with threadpool_limits(1):
            training, test = _without_nan(scale.fit_transform(training)), _without_nan(scale.transform(test))
            if not any_axes or len(training) > training.shape[1]:
                turn = PCA(svd_solver="full")
                return cls(turn.fit_transform(training), turn.transform(test))
            # The axes of the products of scans: several times as fast as those of the edges, and the same.
            centre = training.mean(0)
            training, test = training - centre, test - centre
            squares, axes = np.linalg.eigh(training @ training.T)
            kept = squares > len(squares) * np.finfo(squares.dtype).eps * squares[-1]
            kept[-1] = True  # one axis is left even where all scans are the same
            lengths, axes = np.sqrt(squares[kept][::-1].clip(1e-30)), axes[:, kept][:, ::-1]
            axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(len(lengths))])
            return cls(axes * lengths, (test @ training.T) @ (axes / lengths))


def _without_nan(standardised: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.nan_to_num(standardised, nan=0.0) if np.isnan(standardised).any() else standardised


def majority_baseline(train_labels: ArrayLike, num_test: int, kind: Kind = "classification") -> NDArray[np.float64]:
    """Predict the same for every subject, from the training labels alone.

    Args:
        train_labels: class indices or numbers `(train subjects,)`, without missing ones.
        num_test: test subjects.
        kind: "classification" or "regression".

    Returns:
        The classes' frequencies in every row, `(num_test, classes)`: the most probable class is the majority, the ROC
        AUC is 0.5. For regression the mean training label, `(num_test,)`.

    Raises:
        ValueError: an unknown kind, no training subject, or a class with nobody in the training set.
    """
    labels = checked_labels(train_labels, kind, None)
    if kind == "regression":
        return np.full(num_test, labels.mean())
    return np.tile(np.bincount(labels) / len(labels), (num_test, 1))


def _fit_linear(
    features: NDArray[np.float64], labels: NDArray[Any], kind: Kind, seed: int, groups: Sequence[Hashable] | None
) -> Any:
    """Logistic or ridge regression; the penalty is one of four."""
    model: BaseEstimator
    if kind == "classification":
        model = LogisticRegression(C=DEFAULT_LOGISTIC_C, class_weight="balanced", max_iter=1000)
        return choose_penalty(model, "C", LOGISTIC_C_GRID, features, labels, kind, seed, groups)
    model = Ridge(alpha=DEFAULT_RIDGE_ALPHA)
    return choose_penalty(model, "alpha", RIDGE_ALPHA_GRID, features, labels, kind, seed, groups)


def _fit_best_linear(
    features: NDArray[np.float64], labels: NDArray[Any], kind: Kind, seed: int, groups: Sequence[Hashable] | None
) -> Any:
    """Balanced logistic regression or balanced ridge, whichever the inner folds prefer; for a number, ridge.

    Which of the two is better differs from task to task, so one of them alone is too easily beaten.
    """
    splits = inner_splits(labels, kind, seed, groups)
    if kind == "regression" or splits is None:
        return _fit_linear(features, labels, kind, seed, groups)
    models: list[BaseEstimator] = [
        LogisticRegression(C=strength, class_weight="balanced", max_iter=1000) for strength in LOGISTIC_C_GRID
    ]
    models += [RidgeClassifier(alpha=penalty, class_weight="balanced") for penalty in RIDGE_ALPHA_GRID]
    best = best_of(models, mean_area, features, labels, splits)
    return best if hasattr(best, "predict_proba") else calibrated(best, features, labels, splits)


def _fit_svm(
    features: NDArray[np.float64], labels: NDArray[Any], kind: Kind, seed: int, groups: Sequence[Hashable] | None
) -> Any:
    """Linear support vector machine; C is one of four.

    Probabilities are the decision function divided by one temperature, which the inner folds determine: their order,
    and with it the ROC AUC of two classes, is that of the decision function.
    """
    if kind == "regression":
        model = TransformedTargetRegressor(SVR(kernel="linear", C=DEFAULT_SVM_C), transformer=StandardScaler())
        return choose_penalty(model, "regressor__C", SVM_C_GRID, features, labels, kind, seed, groups)
    model = LinearSVC(C=DEFAULT_SVM_C, class_weight="balanced", random_state=seed)
    chosen = choose_penalty(model, "C", SVM_C_GRID, features, labels, kind, seed, groups)
    splits = inner_splits(labels, kind, seed, groups)
    if splits is None:
        return _Uncalibrated(chosen)
    return calibrated(chosen, features, labels, splits)


class _Uncalibrated:
    """Probabilities of a fitted classifier for which there are too few subjects to find a temperature."""

    def __init__(self, model: LinearSVC) -> None:
        self.model = model

    def predict_proba(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """Softmax of the decision function."""
        scores = self.model.decision_function(features)
        return softmax(np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores, axis=1)


def _fit_mlp(
    features: NDArray[np.float64],
    labels: NDArray[Any],
    kind: Kind,
    seed: int,
    groups: Sequence[Hashable] | None,
    hidden: int = 64,
) -> Any:
    """Perceptron with one hidden layer, trained for 1000 steps; its weight decay is one of three, by three folds."""
    # One scale for all axes, which keeps the edges' geometry and gives the weights inputs of size one.
    scale = FunctionTransformer(partial(np.multiply, 1 / max(features.std(), 1e-12)))
    settings = {
        "hidden_layer_sizes": (hidden,),
        "alpha": DEFAULT_MLP_ALPHA,
        "max_iter": math.ceil(MLP_STEPS / math.ceil(len(features) / MLP_BATCH)),
        "batch_size": MLP_BATCH,
        "n_iter_no_change": MLP_STEPS,  # never before the last step
        "random_state": seed,
    }
    if kind == "regression":
        inner = make_pipeline(scale, MLPRegressor(**settings))
        model = TransformedTargetRegressor(inner, transformer=StandardScaler())
        name = "regressor__mlpregressor__alpha"
        return choose_penalty(model, name, MLP_ALPHA_GRID, features, labels, kind, seed, groups, MLP_INNER_FOLDS)
    model = make_pipeline(scale, MLPClassifier(**settings))
    weights = {"mlpclassifier__sample_weight": compute_sample_weight("balanced", labels)}
    name, folds = "mlpclassifier__alpha", MLP_INNER_FOLDS
    return choose_penalty(model, name, MLP_ALPHA_GRID, features, labels, kind, seed, groups, folds, **weights)


def checked_labels(labels: ArrayLike, kind: str, num_classes: int | None) -> NDArray[Any]:
    """Training labels as int64 class indices or float64 numbers; refuses what no model could be trained on."""
    if kind not in get_args(Kind):
        raise ValueError(f"Unknown kind {kind!r}: give one of {', '.join(get_args(Kind))}.")
    values = np.asarray(labels, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(
            f"Training labels have shape {values.shape}; needed is one finite label per scan, for one scan or more: "
            "leave out scans without a label."
        )
    if kind == "regression":
        return values
    if (values < 0).any() or (values != np.floor(values)).any():
        raise ValueError("Training labels must be class indices 0, 1, ...: leave out scans without a label.")
    classes = values.astype(np.int64)
    counts = np.bincount(classes, minlength=num_classes or 2)
    if num_classes is not None and len(counts) > num_classes:
        raise ValueError(f"A training label is {len(counts) - 1}, but there are {num_classes} classes.")
    if not counts.all():
        raise ValueError(
            f"No training scan has class {', '.join(map(str, np.flatnonzero(counts == 0)))} (scans per class: "
            f"{counts.tolist()}): use fewer folds, or folds stratified by label."
        )
    return classes


linear_baseline = Baseline(_fit_linear)
log_linear_baseline = Baseline(_fit_linear, LOG_FC)
best_linear_baseline = Baseline(_fit_best_linear, LOG_FC)
svm_baseline = Baseline(_fit_svm)
# The paper compares LCM with a perceptron on the same input (section 4).
mlp_baseline = Baseline(_fit_mlp, is_linear=False)
