"""Choices inside the training scans: folds of them, and the model whose validation score is best there."""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GroupKFold, KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.svm import LinearSVC

from modeling_lcm.closed_form import agreement


Kind = Literal["classification", "regression"]
Splits = list[tuple[NDArray[np.int64], NDArray[np.int64]]]
INNER_FOLDS = 5
TIE = 1e-9  # closer scores are equal: rounding does not choose a model


def choose_penalty(
    model: BaseEstimator,
    name: str,
    grid: Sequence[float],
    features: NDArray[np.float64],
    labels: NDArray[Any],
    kind: Kind,
    seed: int,
    groups: Sequence[Hashable] | None,
    inner_folds: int = INNER_FOLDS,
    **of_scans: NDArray[np.float64],
) -> Any:
    """The model with that value of its setting `name` which inner folds prefer; as it is, where scans are too few."""
    splits = inner_splits(labels, kind, seed, groups, inner_folds)
    if splits is None:
        return model.fit(features, labels, **of_scans)
    models = [clone(model).set_params(**{name: penalty}) for penalty in grid]
    return best_of(models, _scoring(model, labels, kind), features, labels, splits, **of_scans)


def _scoring(
    model: BaseEstimator, labels: NDArray[Any], kind: Kind
) -> Callable[[Any, NDArray[np.float64], NDArray[Any]], float]:
    """What a penalty is chosen by: squared error, or ROC AUC."""
    if kind == "regression":
        return lambda fitted, features, truth: -float(np.square(fitted.predict(features) - truth).mean())
    if labels.max() > 1:
        # It has no probabilities, which the AUC of several classes needs.
        is_svm = isinstance(model, LinearSVC)
        return _mean_recall if is_svm else mean_area
    if hasattr(model, "decision_function"):  # probabilities round to 0 and 1
        return lambda fitted, features, truth: _area(truth == 1, fitted.decision_function(features))
    return mean_area


def best_of(
    models: Sequence[BaseEstimator],
    score: Callable[[Any, NDArray[np.float64], NDArray[Any]], float],
    features: NDArray[np.float64],
    labels: NDArray[Any],
    splits: Splits,
    **of_scans: NDArray[np.float64],
) -> Any:
    """The model with the highest mean score over the splits, of equal ones the first, fitted to all scans.

    It does what scikit-learn's grid search does; of that, most of the time went into everything but the fits.

    Args:
        models (`Sequence[BaseEstimator]`): not fitted.
        score (`Callable`): of a fitted model, features and labels; higher is better.
        features (`np.ndarray` of shape `(scans, features)`): of the training scans.
        labels (`np.ndarray` of shape `(scans,)`): their classes or numbers.
        splits (`list`): training and validation rows.
        **of_scans (`np.ndarray` of shape `(scans,)`): what `fit` takes beside them.
    """
    totals = np.zeros(len(models))
    for rows, others in splits:
        given, wanted, kept = features[rows], labels[rows], features[others]
        more = {name: values[rows] for name, values in of_scans.items()}
        totals += [score(clone(model).fit(given, wanted, **more), kept, labels[others]) for model in models]
    first = int(np.flatnonzero(totals >= totals.max() - TIE * abs(totals.max()))[0])
    return clone(models[first]).fit(features, labels, **of_scans)


def calibrated(
    model: BaseEstimator, features: NDArray[np.float64], labels: NDArray[Any], splits: Splits
) -> CalibratedClassifierCV:
    """Probabilities by one temperature, which the inner folds determine.

    A temperature keeps the order of the scores; a free slope could turn it round by chance.
    """
    return CalibratedClassifierCV(model, method="temperature", ensemble=False, cv=splits).fit(features, labels)


def mean_area(model: Any, features: NDArray[np.float64], labels: NDArray[Any]) -> float:
    """ROC AUC, of several classes the mean of one against the rest; ridge has scores, but no probabilities."""
    scores = model.predict_proba(features) if hasattr(model, "predict_proba") else model.decision_function(features)
    if scores.ndim == 1:
        return _area(labels == 1, scores)
    if scores.shape[1] == 2:
        return _area(labels == 1, scores[:, 1])
    return float(np.mean([_area(labels == index, scores[:, index]) for index in range(scores.shape[1])]))


def _area(is_positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """ROC AUC; scikit-learn's takes as long as the fit that it judges."""
    return (agreement(scores[is_positive], scores[~is_positive]) + 1) / 2


def _mean_recall(model: Any, features: NDArray[np.float64], labels: NDArray[Any]) -> float:
    return float(balanced_accuracy_score(labels, model.predict(features)))


def inner_splits(
    labels: NDArray[Any], kind: Kind, seed: int, groups: Sequence[Hashable] | None, most: int = INNER_FOLDS
) -> Splits | None:
    """Training and validation rows of folds inside the training scans; None with too few subjects to make two."""
    return draw_splits(tuple(labels.tolist()), kind, seed, None if groups is None else tuple(groups), most)


@lru_cache(maxsize=8)  # the models of a task have the same folds, and drawing them takes longer than a fit
def draw_splits(
    of_scans: tuple[float, ...], kind: Kind, seed: int, groups: tuple[Hashable, ...] | None, most: int
) -> Splits | None:
    labels = np.array(of_scans)
    subjects = np.arange(len(labels)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if kind == "regression":
        folds = min(most, len(np.unique(subjects)))
        splitter = KFold if groups is None else GroupKFold
    else:
        # A fold needs a subject of every class on its validation side.
        folds = min(most, *(len(np.unique(subjects[labels == label])) for label in np.unique(labels)))
        splitter = StratifiedKFold if groups is None else StratifiedGroupKFold
    if folds < 2:
        return None
    chosen = splitter(n_splits=folds, shuffle=True, random_state=seed)
    return list(chosen.split(np.zeros((len(labels), 1)), labels, groups))
