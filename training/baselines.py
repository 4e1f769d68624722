"""What the model has to beat: a linear model on the vectorised connectome, and the majority class.

Both see exactly the training and test subjects that the model sees, and the linear model's regularisation is chosen by
cross-validation inside the training subjects.
"""

from collections.abc import Hashable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits


Kind = Literal["classification", "regression"]

# Inverse strengths for about 20,000 standardised edges: the useful range lies far below scikit-learn's default of 1.
LOGISTIC_C_GRID = (1e-5, 1e-4, 1e-3, 1e-2)
RIDGE_ALPHA_GRID = (1e2, 1e3, 1e4, 1e5)
# Taken when there are too few training subjects to choose.
DEFAULT_LOGISTIC_C = 1e-4
DEFAULT_RIDGE_ALPHA = 1e4
INNER_FOLDS = 5
# Fisher z is infinite at |r| = 1; float16 storage rounds correlations above 0.9998 up to 1.
MAX_CORRELATION = 0.999


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
    return np.arctanh(edges.clip(-MAX_CORRELATION, MAX_CORRELATION))


def linear_baseline(
    train_fc: ArrayLike,
    train_labels: ArrayLike,
    test_fc: ArrayLike,
    kind: Kind = "classification",
    seed: int = 0,
    num_classes: int | None = None,
    groups: Sequence[Hashable] | None = None,
) -> NDArray[np.float64]:
    """Fit a regularised linear model on vectorised connectivity and apply it to the test subjects.

    Edges are standardised with the training subjects' mean and deviation. Classification is logistic regression with
    classes weighted inversely to their size, regression is ridge. The strength of the penalty is one of four, chosen
    by cross-validation inside the training subjects (ROC AUC; squared error).

    Args:
        train_fc: correlations `(train subjects, regions, regions)`.
        train_labels: class indices or numbers `(train subjects,)`, without missing ones.
        test_fc: correlations `(test subjects, regions, regions)`.
        kind: "classification" or "regression".
        seed: of the inner folds.
        num_classes: classes of the task; by default the highest label + 1.
        groups: subject of each training scan when people have several, so that inner folds do not share a person.

    Returns:
        Probabilities `(test subjects, classes)`, or predictions `(test subjects,)`.

    Raises:
        ValueError: labels and scans that do not match, an unknown kind, or a class with nobody in the training set.
    """
    features = vectorise(train_fc)
    labels = _checked_labels(train_labels, kind, num_classes)
    if len(labels) != len(features):
        raise ValueError(
            f"There are {len(features)} training scans and {len(labels)} labels: give one label per scan."
        )
    # A solution with an L2 penalty lies in the span of the training scans, so turning the axes into that span changes
    # no prediction and leaves as many features as scans. The many small fits that follow only lose time to threads,
    # minutes when the machine is busy.
    projection = make_pipeline(StandardScaler(), PCA(svd_solver="full"))
    with threadpool_limits(1):
        features = projection.fit_transform(features)
        test_features = projection.transform(vectorise(test_fc))
        model = _fit(features, labels, kind, seed, groups)
    return model.predict_proba(test_features) if kind == "classification" else model.predict(test_features)


def majority_baseline(
    train_labels: ArrayLike, num_test: int, kind: Kind = "classification", num_classes: int | None = None
) -> NDArray[np.float64]:
    """Predict the same for everybody, from the training labels alone.

    Args:
        train_labels: class indices or numbers `(train subjects,)`, without missing ones.
        num_test: test subjects.
        kind: "classification" or "regression".
        num_classes: classes of the task; by default the highest label + 1.

    Returns:
        The classes' frequencies in every row, `(num_test, classes)`: the most probable class is the majority, the ROC
        AUC is 0.5. For regression the mean training label, `(num_test,)`.

    Raises:
        ValueError: an unknown kind, no training subject, or a class with nobody in the training set.
    """
    labels = _checked_labels(train_labels, kind, num_classes)
    if kind == "regression":
        return np.full(num_test, labels.mean())
    return np.tile(np.bincount(labels) / len(labels), (num_test, 1))


def _fit(
    features: NDArray[np.float64], labels: NDArray[Any], kind: Kind, seed: int, groups: Sequence[Hashable] | None
) -> LogisticRegression | Ridge | GridSearchCV:
    """Linear model with the penalty that cross-validation inside these scans prefers."""
    model: LogisticRegression | Ridge
    if kind == "classification":
        model = LogisticRegression(C=DEFAULT_LOGISTIC_C, class_weight="balanced", max_iter=1000)
        grid = {"C": LOGISTIC_C_GRID}
        scoring = "roc_auc" if labels.max() == 1 else "roc_auc_ovr"
    else:
        model = Ridge(alpha=DEFAULT_RIDGE_ALPHA)
        grid = {"alpha": RIDGE_ALPHA_GRID}
        scoring = "neg_mean_squared_error"
    splitter = _inner_splitter(labels, kind, seed, groups)
    if splitter is None:
        return model.fit(features, labels)
    return GridSearchCV(model, grid, scoring=scoring, cv=splitter).fit(features, labels, groups=groups)


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
    labels: NDArray[Any], kind: Kind, seed: int, groups: Sequence[Hashable] | None
) -> KFold | GroupKFold | StratifiedKFold | StratifiedGroupKFold | None:
    """Folds inside the training scans, or None when there are too few people to make two."""
    people = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if kind == "regression":
        folds = min(INNER_FOLDS, len(np.unique(people)))
        splitter = KFold if groups is None else GroupKFold
    else:
        # A fold needs a person of every class on its validation side.
        folds = min(INNER_FOLDS, *(len(np.unique(people[labels == label])) for label in np.unique(labels)))
        splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    return splitter(n_splits=folds, shuffle=True, random_state=seed) if folds > 1 else None
