"""Intervals and p-values: the fast metrics against scikit-learn's, coverage, and what is exchanged with what."""

import warnings

import numpy as np
import pytest

from training.evaluation.metrics import classification_metrics, regression_metrics
from training.evaluation.resampled_metrics import metrics_of_many
from training.evaluation.uncertainty import Predictions, interval


@pytest.mark.parametrize("classes", [2, 3])
def test_fast_metrics_are_those_of_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    values = rng.multinomial(16, np.full(classes, 1 / classes), 40) / 16  # with ties, adding up to 1 exactly
    truth = rng.integers(0, classes, (5, 40))
    weights = rng.integers(0, 4, (5, 40)).astype(float)
    found = metrics_of_many(truth, values, weights)
    for resample in range(5):
        rows = np.repeat(np.arange(40), weights[resample].astype(int))
        expected = classification_metrics(truth[resample, rows], values[rows], list("abc")[:classes])
        assert set(expected) == set(found)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][resample], value, atol=1e-9, err_msg=name)


def test_fast_regression_metrics_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    truth, values = rng.normal(40, 15, (4, 30)), rng.normal(40, 15, 30)
    weights = rng.integers(0, 3, (4, 30)).astype(float)
    found = metrics_of_many(truth, values, weights)
    for resample in range(4):
        rows = np.repeat(np.arange(30), weights[resample].astype(int))
        expected = regression_metrics(truth[resample, rows], values[rows])
        for name, value in expected.items():
            np.testing.assert_allclose(found[name][resample], value, rtol=1e-9, err_msg=name)
    assert np.isnan(metrics_of_many(truth[:1], np.full(30, 0.1), weights[:1])["pearson_r"]).all()
    assert np.isnan(metrics_of_many(np.ones((1, 30)), values, weights[:1])["r2"]).all()


def test_absent_class_is_undefined_only_where_it_matters() -> None:
    values = np.array([[0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    found = metrics_of_many(np.array([[1, 1, 1]]), values, np.ones((1, 3)))
    assert np.isnan([found[name][0] for name in ("roc_auc", "balanced_accuracy", "specificity")]).all()
    assert found["accuracy"][0] == found["sensitivity"][0] == pytest.approx(2 / 3)
    assert found["f1"][0] == pytest.approx(0.8)


def predictions(truth: np.ndarray, values: np.ndarray, **rest: np.ndarray) -> Predictions:
    """Predictions of one scan a subject, in one cross-validation, unless told otherwise."""
    count = len(truth)
    return Predictions(
        truth, values, **{"subjects": np.arange(count), "repeats": np.zeros(count), "folds": np.zeros(count), **rest}
    )


def test_intervals_cover_the_true_accuracy_as_often_as_they_say() -> None:
    rng, inside = np.random.default_rng(0), 0
    for trial in range(80):
        right = rng.random(120) < 0.7
        truth = rng.integers(0, 2, 120)
        chosen = np.where(right, truth, 1 - truth)
        found = predictions(truth, np.eye(2)[chosen] * 0.8 + 0.1).bootstrap(200, trial)
        low, high = interval(found["accuracy"])
        inside += low <= 0.7 <= high
    assert 0.87 <= inside / 80 <= 0.99


def test_people_are_drawn_with_all_their_scans() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(rng.integers(0, 2, 50), 6)
    values = np.eye(2)[np.repeat(rng.integers(0, 2, 50), 6)] * 0.8 + 0.1  # a subject's scans are predicted alike
    width = {}
    for name, subjects in (("scans", np.arange(300)), ("subjects", np.repeat(np.arange(50), 6))):
        low, high = interval(predictions(truth, values, subjects=subjects).bootstrap(500, 0)["accuracy"])
        width[name] = high - low
    assert width["subjects"] > 1.8 * width["scans"]  # sqrt(6) = 2.4 in the limit


def test_shuffled_labels_give_uniform_p_values_and_an_effect_a_small_one() -> None:
    rng = np.random.default_rng(0)
    small = []
    for trial in range(60):
        truth, score = rng.integers(0, 2, 60), rng.random(60)
        found = predictions(truth, np.stack([1 - score, score], 1)).permutation_test(99, trial)
        small.append(found["roc_auc"][0] <= 0.1)
    assert 0.02 <= np.mean(small) <= 0.22
    score = np.clip(0.4 * truth + 0.6 * rng.random(60), 0, 1)
    found = predictions(truth, np.stack([1 - score, score], 1)).permutation_test(199, 0)
    assert found["roc_auc"][0] == found["brier"][0] == 1 / 200
    assert found["roc_auc"][1] == pytest.approx(0.5, abs=0.03)
    assert "ece" not in found


def test_a_score_that_only_reads_the_site_is_no_evidence_within_sites() -> None:
    rng = np.random.default_rng(0)
    sites = np.repeat(["a", "b"], 60)
    small = []
    for trial in range(30):
        truth = (rng.random(120) < np.where(sites == "a", 0.85, 0.15)).astype(int)
        score = np.where(sites == "a", 0.8, 0.2) + 0.05 * rng.random(120)
        values = np.stack([1 - score, score], 1)
        free = predictions(truth, values).permutation_test(99, trial)["roc_auc"]
        within = predictions(truth, values, sites=sites).permutation_test(99, trial)["roc_auc"]
        assert free[0] == 1 / 100
        assert within[1] > 0.7  # what reading the site alone is worth
        small.append(within[0] <= 0.1)
    assert np.mean(small) < 0.3  # one in ten by chance


def test_labels_that_vary_within_people_are_shuffled_within_them() -> None:
    truth = np.tile([0, 1, 1], 20)
    subjects = np.repeat(np.arange(20), 3)
    values = np.tile([[0.6, 0.4]], (60, 1))
    found = predictions(truth, values, subjects=subjects)._shuffled_labels(5, np.random.default_rng(0))
    assert (found.reshape(5, 20, 3).sum(-1) == 2).all()
    assert not (found == truth).all()
    whole = np.repeat(np.arange(20) % 2, 3)
    found = predictions(whole, values, subjects=subjects)._shuffled_labels(5, np.random.default_rng(0))
    assert (found.reshape(5, 20, 3) == found.reshape(5, 20, 3)[..., :1]).all()


def test_repeats_share_people_and_average() -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.integers(0, 2, 40), rng.random((2, 40))
    both = predictions(
        np.tile(truth, 2),
        np.concatenate([np.stack([1 - score, score], 1) for score in scores]),
        subjects=np.tile(np.arange(40), 2),
        repeats=np.repeat([0, 1], 40),
    )
    alone = [predictions(truth, np.stack([1 - score, score], 1)).scores()["roc_auc"] for score in scores]
    assert both.scores()["roc_auc"] == pytest.approx(np.mean(alone))
    shuffled = both._shuffled_labels(3, rng)
    np.testing.assert_array_equal(shuffled[:, :40], shuffled[:, 40:])
    assert both.scores(np.arange(40))["roc_auc"] == pytest.approx(alone[0])


def test_no_warning_is_raised_for_undefined_resamples() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = predictions(np.array([0, 0, 1]), np.array([[0.6, 0.4], [0.7, 0.3], [0.2, 0.8]]))
        low, high = interval(found.bootstrap(50, 0)["roc_auc"])
        alone = predictions(np.array([0, 0]), np.array([[0.6, 0.4], [0.7, 0.3]]))
        assert np.isnan(interval(alone.bootstrap(20, 0)["roc_auc"])).all()
        assert "roc_auc" not in alone.permutation_test(20, 0)
    assert low <= high
