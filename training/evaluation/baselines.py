"""What the model has to beat: linear models and a perceptron on the vectorised connectome, and the majority class.

All see exactly the training and test subjects that the model sees, and the strength of their regularisation is chosen
by cross-validation inside the training subjects.
"""

import math
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVR, LinearSVC
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits

from modeling_lcm import LCMConfig
from modeling_lcm.connectivity import fisher_z
from modeling_lcm.edges_lcm import matrix_logarithm


Kind = Literal["classification", "regression"]

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
# Steps, not epochs: a perceptron for sixty people needs as many as one for six hundred.
MLP_STEPS = 1000
INNER_FOLDS = 5
MLP_INNER_FOLDS = 3  # every fit takes seconds


def vectorise(connectivity: ArrayLike) -> NDArray[np.float64]:
    """Turn connectivity matrices into feature vectors: Fisher z of the upper triangle, without the diagonal.

    Args:
        connectivity: Pearson correlations `(subjects, regions, regions)`.

    Returns:
        Array `(subjects, regions * (regions - 1) / 2)`, edges in the order of `numpy.triu_indices(regions, k=1)`.
        Correlations beyond 0.999 count as 0.999, so that z stays finite.

    Raises:
        ValueError: another shape, NaN or infinite values, or values outside [-1, 1].
    """
    matrices = np.asarray(connectivity, dtype=np.float64)
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or matrices.shape[1] < 2:
        raise ValueError(f"Connectivity has shape {matrices.shape}; needed is (subjects, regions, regions).")
    edges = matrices[:, *np.triu_indices(matrices.shape[1], k=1)]
    if not np.isfinite(edges).all():
        bad = int((~np.isfinite(edges)).any(axis=1).sum())
        raise ValueError(
            f"The connectivity of {bad} subjects holds NaN or infinite values: pass it through the FC processor first."
        )
    if edges.size and np.abs(edges).max() > 1 + 1e-3:
        raise ValueError(
            f"Connectivity reaches {np.abs(edges).max():.3g}, needed are correlations in [-1, 1]: give r, not z."
        )
    return fisher_z(edges)


@dataclass(frozen=True)
class Baseline:
    """A kind of model that is fitted on the connectivity of the training subjects and applied to the test subjects.

    Edges are standardised with the training subjects' mean and deviation, classes weigh inversely to their size, and
    the strength of the penalty is chosen by cross-validation inside the training subjects (ROC AUC; squared error).

    Args:
        fit: makes a fitted model of edges, labels, kind, seed, groups and options.
        edges: turns connectivity `(subjects, regions, regions)` into features `(subjects, edges)`.
    """

    fit: Callable[..., Any]
    edges: Callable[[ArrayLike], NDArray[np.float64]] = vectorise

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
            groups: subject of each training scan when people have several, so that inner folds do not share a person.
            **options: of the kind of model, such as the perceptron's `hidden` units (64).

        Returns:
            Probabilities `(test subjects, classes)`, or predictions `(test subjects,)`.

        Raises:
            ValueError: labels and scans that do not match, an unknown kind, or a class with nobody in the training
                set.
        """
        features, test_features = self.edges(train_fc), self.edges(test_fc)
        labels = _checked_labels(train_labels, kind, num_classes)
        if len(labels) != len(features):
            raise ValueError(
                f"There are {len(features)} training scans and {len(labels)} labels: give one label per scan."
            )
        # A solution with an L2 penalty lies in the span of the training scans, so turning the axes into that span
        # changes no prediction and leaves as many features as scans. The many small fits that follow only lose time
        # to threads, minutes when the machine is busy.
        projection = make_pipeline(StandardScaler(), PCA(svd_solver="full"))
        with threadpool_limits(1), warnings.catch_warnings():
            # The perceptron is meant to stop after its epochs; the linear ones, to be good enough.
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.filterwarnings("ignore", "Got `batch_size`")  # fewer scans than in a batch: all of them are one
            features = projection.fit_transform(features)
            model = self.fit(features, labels, kind, seed, groups, **options)
            predict = model.predict_proba if kind == "classification" else model.predict
            return predict(projection.transform(test_features))


def majority_baseline(train_labels: ArrayLike, num_test: int, kind: Kind = "classification") -> NDArray[np.float64]:
    """Predict the same for everybody, from the training labels alone.

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
    labels = _checked_labels(train_labels, kind, None)
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
        grid = {"C": LOGISTIC_C_GRID}
    else:
        model = Ridge(alpha=DEFAULT_RIDGE_ALPHA)
        grid = {"alpha": RIDGE_ALPHA_GRID}
    return _choose(model, grid, features, labels, kind, seed, groups)


def _fit_svm(
    features: NDArray[np.float64], labels: NDArray[Any], kind: Kind, seed: int, groups: Sequence[Hashable] | None
) -> Any:
    """Linear support vector machine; C is one of four.

    Probabilities are the decision function divided by one temperature, which the inner folds determine: their order,
    and with it the ROC AUC of two classes, is that of the decision function.
    """
    if kind == "regression":
        model = TransformedTargetRegressor(SVR(kernel="linear", C=DEFAULT_SVM_C), transformer=StandardScaler())
        return _choose(model, {"regressor__C": SVM_C_GRID}, features, labels, kind, seed, groups)
    model = LinearSVC(C=DEFAULT_SVM_C, class_weight="balanced", random_state=seed)
    chosen = _choose(model, {"C": SVM_C_GRID}, features, labels, kind, seed, groups)
    splitter = _inner_splitter(labels, kind, seed, groups)
    if splitter is None:
        return _Uncalibrated(chosen)
    folds = list(splitter.split(features, labels, groups))
    # A temperature keeps the order of the decision function; a free slope could turn it round by chance.
    calibrated = CalibratedClassifierCV(chosen.best_estimator_, method="temperature", ensemble=False, cv=folds)
    return calibrated.fit(features, labels)


class _Uncalibrated:
    """Probabilities of a fitted classifier for which there are too few people to find a temperature."""

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
        grid = {"regressor__mlpregressor__alpha": MLP_ALPHA_GRID}
        return _choose(model, grid, features, labels, kind, seed, groups, MLP_INNER_FOLDS)
    model = make_pipeline(scale, MLPClassifier(**settings))
    weights = {"mlpclassifier__sample_weight": compute_sample_weight("balanced", labels)}
    grid = {"mlpclassifier__alpha": MLP_ALPHA_GRID}
    return _choose(model, grid, features, labels, kind, seed, groups, MLP_INNER_FOLDS, **weights)


def _choose(
    model: BaseEstimator,
    grid: Mapping[str, tuple[float, ...]],
    features: NDArray[np.float64],
    labels: NDArray[Any],
    kind: Kind,
    seed: int,
    groups: Sequence[Hashable] | None,
    inner_folds: int = INNER_FOLDS,
    **fit_arguments: Any,
) -> Any:
    """The model with the penalty that cross-validation inside these scans prefers; its default where they are few."""
    scoring = "neg_mean_squared_error"
    if kind == "classification":
        scoring = "roc_auc" if labels.max() == 1 else "roc_auc_ovr"
        if isinstance(model, LinearSVC) and labels.max() > 1:
            scoring = "balanced_accuracy"  # it has no probabilities, which the AUC of several classes needs
    splitter = _inner_splitter(labels, kind, seed, groups, inner_folds)
    if splitter is None:
        return model.fit(features, labels, **fit_arguments)
    return GridSearchCV(model, grid, scoring=scoring, cv=splitter).fit(
        features, labels, groups=groups, **fit_arguments
    )


def _checked_labels(labels: ArrayLike, kind: str, num_classes: int | None) -> NDArray[Any]:
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


def _inner_splitter(
    labels: NDArray[Any], kind: Kind, seed: int, groups: Sequence[Hashable] | None, most: int = INNER_FOLDS
) -> KFold | GroupKFold | StratifiedKFold | StratifiedGroupKFold | None:
    """Folds inside the training scans, or None when there are too few people to make two."""
    people = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if kind == "regression":
        folds = min(most, len(np.unique(people)))
        splitter = KFold if groups is None else GroupKFold
    else:
        # A fold needs a person of every class on its validation side.
        folds = min(most, *(len(np.unique(people[labels == label])) for label in np.unique(labels)))
        splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    return splitter(n_splits=folds, shuffle=True, random_state=seed) if folds > 1 else None


def _log_edges(connectivity: ArrayLike) -> NDArray[np.float64]:
    """Edges of the matrix logarithm of connectivity, which the model's edge read-out sees, too."""
    matrices = torch.as_tensor(np.asarray(connectivity), dtype=torch.float32)
    # tanh undoes the Fisher z that `vectorise` takes of correlations.
    return vectorise(np.tanh(matrix_logarithm(matrices, LCMConfig.edge_shrinkage).numpy()))


linear_baseline = Baseline(_fit_linear)
log_linear_baseline = Baseline(_fit_linear, _log_edges)
svm_baseline = Baseline(_fit_svm)
# The paper compares LCM with a perceptron on the same input (section 4).
mlp_baseline = Baseline(_fit_mlp)
