"""Baselines: their scores on the shipped connectomes, chance on shuffled labels, and what is refused."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

import training.evaluation.baselines
import training.evaluation.inner_choice
from training.evaluation.baselines import (
    best_linear_baseline,
    linear_baseline,
    log_linear_baseline,
    majority_baseline,
    mlp_baseline,
    svm_baseline,
)
from training.evaluation.features import vectorise
from training.evaluation.metrics import classification_metrics, regression_metrics


FITTED = [
    pytest.param(linear_baseline, id="linear"),
    pytest.param(log_linear_baseline, id="linear, log FC"),
    pytest.param(best_linear_baseline, id="linear, best"),
    pytest.param(svm_baseline, id="svm"),
    pytest.param(mlp_baseline, id="mlp"),
]
DATA = Path(training.evaluation.baselines.__file__).parents[1] / "demo_data" / "lemon-schaefer200"


@pytest.fixture(scope="module")
def lemon() -> tuple[np.ndarray, pd.DataFrame]:
    """The shipped connectivity `(168, 200, 200)` and its subjects."""
    with np.load(DATA / "fc.npz") as stored:
        regions = int(stored["n_rois"])
        rows, columns = np.triu_indices(regions, k=1)
        connectivity = np.ones((len(stored["fc_triu"]), regions, regions), dtype=np.float32)
        connectivity[:, rows, columns] = connectivity[:, columns, rows] = stored["fc_triu"]
        identifiers = stored["participant_id"].tolist()
    people = pd.read_csv(DATA / "participants.tsv", sep="\t")
    assert people["participant_id"].tolist() == identifiers
    return connectivity, people


@pytest.fixture
def separable() -> tuple[np.ndarray, np.ndarray]:
    """Small connectomes `(60, 8, 8)` whose first edge tells two classes apart."""
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], 30)
    connectivity = symmetric(rng.uniform(-0.3, 0.3, (60, 8, 8)))
    connectivity[:, 0, 1] = connectivity[:, 1, 0] = rng.normal(0.4 * (2 * labels - 1), 0.1)
    return connectivity, labels


@pytest.fixture(autouse=True)
def _short_mlp(monkeypatch):
    """One penalty and fewer steps, because the tests are about what surrounds the perceptron."""
    monkeypatch.setattr(training.evaluation.baselines, "MLP_ALPHA_GRID", (10.0,))
    monkeypatch.setattr(training.evaluation.baselines, "MLP_STEPS", 300)


def symmetric(matrices: np.ndarray) -> np.ndarray:
    """The upper triangle mirrored, with a diagonal of 1."""
    upper = np.triu(matrices, k=1)
    return upper + upper.transpose(0, 2, 1) + np.eye(matrices.shape[-1])


def test_vectorise_returns_fisher_z_in_triu_order():
    matrix = symmetric(np.array([[[0, 0.1, -0.2], [0, 0, 0.5], [0, 0, 0]]]))
    np.testing.assert_allclose(np.tanh(vectorise(matrix)), [[0.1, -0.2, 0.5]])


def test_vectorise_perfect_correlation_stays_finite():
    features = vectorise(np.ones((1, 4, 4)))
    np.testing.assert_allclose(features, np.arctanh(0.999))


@pytest.mark.parametrize(
    ("connectivity", "message"),
    [
        (np.eye(4), r"\(4, 4\)"),
        (np.zeros((2, 4, 5)), r"\(subjects, regions, regions\)"),
        (np.full((2, 4, 4), np.nan), "2 subjects holds NaN"),
        (np.full((2, 4, 4), 1.7), "reaches 1.7"),
    ],
)
def test_vectorise_bad_input_is_refused(connectivity, message):
    with pytest.raises(ValueError, match=message):
        vectorise(connectivity)


@pytest.mark.parametrize("baseline", FITTED)
def test_young_and_elderly_are_told_apart(lemon, baseline):
    connectivity, people = lemon
    labels = (people["cohort"] == "elderly").to_numpy().astype(int)
    test = np.arange(len(labels)) % 4 == 0
    probabilities = baseline(connectivity[~test], labels[~test], connectivity[test])
    assert probabilities.shape == (test.sum(), 2)
    assert classification_metrics(labels[test], probabilities, ["young", "elderly"])["roc_auc"] > 0.93


@pytest.mark.parametrize("baseline", FITTED)
def test_age_is_better_than_the_mean(lemon, baseline):
    connectivity, people = lemon
    age = people["age"].to_numpy()
    test = np.arange(len(age)) % 4 == 0
    predicted = baseline(connectivity[~test], age[~test], connectivity[test], "regression")
    result = regression_metrics(age[test], predicted)
    mean = majority_baseline(age[~test], test.sum(), "regression")
    assert result["pearson_r"] > 0.7
    assert result["mae"] < 0.75 * np.abs(age[test] - mean).mean()


@pytest.mark.parametrize("baseline", FITTED)
def test_shuffled_labels_stay_near_chance(lemon, baseline):
    connectivity, people = lemon
    labels = np.random.default_rng(0).permutation((people["cohort"] == "elderly").to_numpy().astype(int))
    test = np.arange(len(labels)) % 2 == 0
    probabilities = baseline(connectivity[~test], labels[~test], connectivity[test])
    assert abs(classification_metrics(labels[test], probabilities, ["young", "elderly"])["roc_auc"] - 0.5) < 0.2


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_linear_baseline_projection_equals_fit_on_all_edges(separable, kind, monkeypatch):
    connectivity, labels = separable
    train = np.arange(60) % 6 == 0  # 10 scans, 28 edges: fewer scans than edges, as in reality
    monkeypatch.setattr(training.evaluation.baselines, "LOGISTIC_C_GRID", (0.1,))
    monkeypatch.setattr(training.evaluation.baselines, "RIDGE_ALPHA_GRID", (10.0,))
    scaler = StandardScaler().fit(vectorise(connectivity[train]))
    train_edges, test_edges = (
        scaler.transform(vectorise(connectivity[train])),
        scaler.transform(vectorise(connectivity)),
    )
    if kind == "classification":
        model = LogisticRegression(C=0.1, class_weight="balanced", tol=1e-10, max_iter=10_000)
        expected = model.fit(train_edges, labels[train]).predict_proba(test_edges)
    else:
        expected = Ridge(alpha=10.0).fit(train_edges, labels[train]).predict(test_edges)
    found = linear_baseline(connectivity[train], labels[train], connectivity, kind)
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("baseline", FITTED)
def test_three_classes_give_three_columns(separable, baseline):
    connectivity, _ = separable
    labels = np.arange(60) % 3
    probabilities = baseline(connectivity, labels, connectivity[:5], num_classes=3)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert probabilities.shape == (5, 3)


@pytest.mark.parametrize("baseline", FITTED)
def test_one_scan_per_class_still_fits(separable, baseline):
    connectivity, labels = separable
    few = [0, 59]
    probabilities = baseline(connectivity[few], labels[few], connectivity[few])
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    assert probabilities.argmax(axis=1).tolist() == [0, 1]


@pytest.mark.parametrize("baseline", FITTED)
def test_groups_keep_people_together(separable, monkeypatch, baseline):
    connectivity, labels = separable
    people = np.arange(60) // 3
    seen = []

    class Recorder(training.evaluation.inner_choice.StratifiedGroupKFold):
        def split(self, X, y=None, groups=None):
            for train, test in super().split(X, y, groups):
                seen.append((set(people[train]), set(people[test])))
                yield train, test

    training.evaluation.inner_choice.draw_splits.cache_clear()
    monkeypatch.setattr(training.evaluation.inner_choice, "StratifiedGroupKFold", Recorder)
    baseline(connectivity, labels, connectivity[:2], groups=people.tolist())
    assert len(seen) >= 3
    assert all(not train & test for train, test in seen)


@pytest.mark.parametrize(
    ("labels", "kwargs", "message"),
    [
        (np.zeros(60), {}, "No training scan has class 1"),
        (np.repeat([0, 2], 30), {"num_classes": 3}, "No training scan has class 1"),
        (np.repeat([0, 3], 30), {"num_classes": 2}, "there are 2 classes"),
        (np.repeat([0, -100], 30), {}, "leave out scans without a label"),
        (np.repeat([0, 1], 20), {}, "60 training scans and 40 labels"),
        (np.repeat([0.0, np.nan], 30), {"kind": "regression"}, "finite label"),
        (np.repeat([0, 1], 30), {"kind": "ranking"}, "'ranking'"),
    ],
)
@pytest.mark.parametrize("baseline", FITTED)
def test_bad_labels_are_refused(separable, labels, kwargs, message, baseline):
    with pytest.raises(ValueError, match=message):
        baseline(separable[0], labels, separable[0], **kwargs)


def test_svm_probabilities_keep_the_order_of_the_decision_function(separable):
    connectivity, _ = separable
    labels = np.random.default_rng(5).permutation(np.repeat([0, 1], 30))  # where a free slope could turn round
    train = np.arange(60) % 2 == 0
    found = svm_baseline(connectivity[train], labels[train], connectivity[~train])[:, 1]
    scaler = StandardScaler().fit(vectorise(connectivity[train]))
    edges, others = (scaler.transform(vectorise(connectivity[rows])) for rows in (train, ~train))
    orders = []
    for strength in training.evaluation.baselines.SVM_C_GRID:
        model = LinearSVC(C=strength, class_weight="balanced").fit(edges, labels[train])
        orders.append(spearmanr(model.decision_function(others), found).statistic)
    assert max(orders) > 0.999


@pytest.mark.parametrize("baseline", FITTED)
def test_a_rare_class_is_not_left_out(separable, monkeypatch, baseline):
    """One subject in five has the class, and is told apart by one edge of 28: weights keep the probability up."""
    monkeypatch.setattr(training.evaluation.baselines, "MLP_ALPHA_GRID", (0.1,))
    connectivity, labels = separable
    kept = np.flatnonzero((labels == 0) | (np.arange(60) % 4 == 0))
    probabilities = baseline(connectivity[kept], labels[kept], connectivity[labels == 1])
    assert (probabilities[:, 1] > 0.5).mean() > 0.7


def test_mlp_learns_what_no_linear_model_can(monkeypatch):
    """The label is the product of two edges."""
    monkeypatch.setattr(training.evaluation.baselines, "MLP_ALPHA_GRID", (0.1, 10.0))
    rng = np.random.default_rng(1)
    connectivity = symmetric(rng.uniform(-0.05, 0.05, (400, 6, 6)))
    first, second = rng.choice([-0.5, 0.5], (2, 400))
    connectivity[:, 0, 1] = connectivity[:, 1, 0] = first
    connectivity[:, 2, 3] = connectivity[:, 3, 2] = second
    labels = (first * second > 0).astype(int)
    train = np.arange(400) < 280
    scores = [
        (baseline(connectivity[train], labels[train], connectivity[~train]).argmax(1) == labels[~train]).mean()
        for baseline in (linear_baseline, mlp_baseline)
    ]
    assert scores[0] < 0.7
    assert scores[1] > 0.8


def test_majority_baseline_predicts_training_frequencies():
    predicted = majority_baseline([0, 0, 0, 1], 2)
    np.testing.assert_allclose(predicted, [[0.75, 0.25], [0.75, 0.25]])
    assert classification_metrics([0, 1], predicted, ["a", "b"])["roc_auc"] == 0.5


def test_majority_baseline_regression_predicts_training_mean():
    np.testing.assert_allclose(majority_baseline([20.0, 40.0, 60.0], 2, "regression"), [40.0, 40.0])
