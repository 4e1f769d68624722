"""Metrics: against numbers worked out by hand, on what cannot be defined, and on what must be refused."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import UndefinedMetricWarning

from training.evaluation.metrics import (
    classification_metrics,
    regression_metrics,
    summarise,
)
from training.evaluation.scoring import ClassificationMetric, RegressionMetric, score
from training.reporting.results import Score


NAMES = ["young", "elderly"]


def two_columns(positive: list[float]) -> np.ndarray:
    """Probabilities `(subjects, 2)` from those of the positive class."""
    return np.stack([1 - np.array(positive), np.array(positive)], axis=1)


def test_classification_metrics_two_classes_equal_hand_counts():
    # Predicted 0 0 1 0 1: true negatives 2, false positives 1, false negatives 1, true positives 1.
    result = classification_metrics([0, 0, 0, 1, 1], two_columns([0.1, 0.2, 0.6, 0.4, 0.8]), NAMES)
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["sensitivity"] == pytest.approx(1 / 2)
    assert result["specificity"] == pytest.approx(2 / 3)
    assert result["balanced_accuracy"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result["f1_positive"] == pytest.approx(1 / 2)
    assert result["f1"] == pytest.approx((3 * 2 / 3 + 2 * 1 / 2) / 5)
    assert result["roc_auc"] == pytest.approx(5 / 6)  # 5 of the 6 pairs of a young and an elderly are in order
    assert result["brier"] == pytest.approx((0.01 + 0.04 + 0.36 + 0.36 + 0.04) / 5)
    assert all(type(value) is float for value in result.values())


def test_classification_metrics_three_classes_average_over_classes():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.4, 0.3], [0.1, 0.3, 0.6]])
    result = classification_metrics([0, 1, 1, 2, 2], probabilities, ["a", "b", "c"])
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["balanced_accuracy"] == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)
    # One against the rest: a 4 of 4 pairs; b 0.3 and 0.5 against 0.2, 0.4, 0.3; c 0.3 and 0.6 against 0.1, 0.2, 0.3.
    assert result["roc_auc"] == pytest.approx((1 + 4.5 / 6 + 5.5 / 6) / 3)
    one_hot = np.eye(3)[[0, 1, 1, 2, 2]]
    assert result["brier"] == pytest.approx(((probabilities - one_hot) ** 2).sum(axis=1).mean())
    assert "sensitivity" not in result


def test_classification_metrics_absent_class_is_nan_with_its_name():
    with pytest.warns(UndefinedMetricWarning, match="elderly") as warned:
        result = classification_metrics([0, 0], two_columns([0.2, 0.7]), NAMES)
    assert {name for name, value in result.items() if math.isnan(value)} == {
        "balanced_accuracy",
        "roc_auc",
        "sensitivity",
    }
    assert result["accuracy"] == 0.5
    assert all(warning.category is UndefinedMetricWarning for warning in warned)


def test_classification_metrics_class_never_predicted_scores_zero_because_it_is_defined():
    result = classification_metrics([0, 0, 1], two_columns([0.3, 0.3, 0.3]), NAMES)
    assert result["f1_positive"] == 0.0
    assert result["roc_auc"] == 0.5


def test_classification_metrics_half_precision_probabilities_are_accepted():
    rough = np.array([[0.3334, 0.6671], [0.9, 0.1]], dtype=np.float16)
    assert classification_metrics([1, 0], rough, NAMES)["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("labels", "probabilities", "names", "message"),
    [
        ([], np.empty((0, 2)), NAMES, "one subject or more"),
        ([0, 1], two_columns([0.2]), NAMES, r"\(1, 2\)"),
        ([0, 1], [0.2, 0.8], NAMES, r"\(subjects, 2\)"),
        ([0, -100], two_columns([0.2, 0.8]), NAMES, "-100"),
        ([0, 2], two_columns([0.2, 0.8]), NAMES, "from 0 to 1"),
        ([0, 1], [[2.0, -1.0], [0.5, 0.5]], NAMES, "softmax"),
        ([0, 1], [[0.2, 0.2], [0.5, 0.5]], NAMES, "softmax"),
        ([0, 1], [[np.nan, 1.0], [0.5, 0.5]], NAMES, "finite"),
        ([0, 0], [[1.0], [1.0]], ["only"], "two or more classes"),
    ],
)
def test_classification_metrics_bad_input_is_refused(labels, probabilities, names, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(labels, probabilities, names)


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20)), min_size=2, max_size=40))
def test_roc_auc_any_scores_equals_share_of_ordered_pairs(people):
    labels = np.array([0, 1, *(label for label, _ in people)])
    scores = np.array([4, 9, *(score for _, score in people)]) / 20
    pairs = scores[labels == 1][:, None] - scores[labels == 0][None, :]
    expected = (pairs > 0).mean() + (pairs == 0).mean() / 2
    result = classification_metrics(labels, two_columns(scores.tolist()), NAMES)
    assert result["roc_auc"] == pytest.approx(expected)


def test_regression_metrics_equal_hand_computation():
    result = regression_metrics([1.0, 2.0, 3.0, 6.0], [2.0, 2.0, 2.0, 5.0])
    assert result["mae"] == pytest.approx(3 / 4)
    assert result["rmse"] == pytest.approx(math.sqrt(3 / 4))
    assert result["r2"] == pytest.approx(1 - 3 / 14)
    assert result["pearson_r"] == pytest.approx(9 / math.sqrt(14 * 6.75))
    assert all(type(value) is float for value in result.values())


@pytest.mark.parametrize(
    ("targets", "predictions", "undefined", "reason"),
    [
        ([5.0, 5.0], [1.0, 2.0], {"r2", "pearson_r"}, "all targets are equal"),
        ([5.0], [1.0], {"r2", "pearson_r"}, "all targets are equal"),
        ([1.0, 2.0], [3.0, 3.0], {"pearson_r"}, "all predictions are equal"),
    ],
)
def test_regression_metrics_undefined_are_nan_with_reason(targets, predictions, undefined, reason):
    with pytest.warns(UndefinedMetricWarning, match=reason):
        result = regression_metrics(targets, predictions)
    assert {name for name, value in result.items() if math.isnan(value)} == undefined


@pytest.mark.parametrize(
    ("targets", "predictions", "message"),
    [([], [], "one subject or more"), ([1.0], [1.0, 2.0], r"\(2,\)"), ([1.0, np.nan], [1.0, 2.0], "NaN")],
)
def test_regression_metrics_bad_input_is_refused(targets, predictions, message):
    with pytest.raises(ValueError, match=message):
        regression_metrics(targets, predictions)


def test_summarise_folds_gives_mean_sample_deviation_and_values():
    summary = summarise([{"accuracy": 0.8}, {"accuracy": 0.9}, {"accuracy": 1.0}])
    assert summary == {"accuracy": Score(pytest.approx(0.9), pytest.approx(0.1), [0.8, 0.9, 1.0])}


def test_summarise_undefined_fold_stays_visible_and_is_counted():
    with pytest.warns(UndefinedMetricWarning, match="1 of 3 folds"):
        summary = summarise([{"roc_auc": 0.8}, {"roc_auc": math.nan}, {"roc_auc": 0.9}])
    assert summary["roc_auc"].mean == pytest.approx(0.85)
    assert math.isnan(summary["roc_auc"].per_fold[1])


def test_summarise_nothing_defined_is_nan():
    with pytest.warns(UndefinedMetricWarning, match="2 of 2 folds"):
        summary = summarise([{"r2": math.nan}, {"r2": math.nan}])
    assert math.isnan(summary["r2"].mean)


def test_summarise_one_fold_has_no_spread():
    assert math.isnan(summarise([{"mae": 3.0}])["mae"].std)


def test_summarise_bad_folds_are_refused():
    with pytest.raises(ValueError, match="no fold"):
        summarise([])
    with pytest.raises(ValueError, match=r"Fold 1 and fold 0.*mae, r2"):
        summarise([{"mae": 3.0}, {"r2": 0.1}])


def test_evaluate_metrics_collect_batches_and_agree_with_the_functions():
    probabilities, labels = two_columns([0.1, 0.6, 0.4, 0.8]), [0, 0, 1, 1]
    metric = ClassificationMetric()
    metric.add_batch(predictions=probabilities[:2].tolist(), references=labels[:2])
    metric.add_batch(predictions=probabilities[2:].tolist(), references=labels[2:])
    assert metric.compute(label_names=NAMES) == classification_metrics(labels, probabilities, NAMES)
    values = {"predictions": [1.0, 2.5, 2.0], "references": [1.0, 2.0, 3.0]}
    assert RegressionMetric().compute(**values) == regression_metrics(values["references"], values["predictions"])


def test_scores_are_those_of_the_functions_bit_by_bit_and_need_no_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    rng = np.random.default_rng(0)
    labels, values = rng.integers(0, 3, 40), rng.normal(size=40)
    probabilities = rng.dirichlet(np.ones(3), 40)
    for _ in range(2):  # the metric is kept, and begins anew
        assert score(labels, probabilities, ("a", "b", "c")) == classification_metrics(labels, probabilities, "abc")
        assert score(values, values + 1) == regression_metrics(values, values + 1)
