"""Metrics as Hugging Face Evaluate has them: the one place where predictions are scored, ours and a user's own.

They are constructed here instead of being loaded by name, which would need the network.
"""

from collections.abc import Sequence

import datasets
import evaluate
import numpy as np

from .metrics import classification_metrics, regression_metrics


class ClassificationMetric(evaluate.Metric):
    """`classification_metrics` of predictions that are collected in batches.

    Example:
        >>> metric = ClassificationMetric()
        >>> metric.add_batch(predictions=[[0.9, 0.1], [0.2, 0.8]], references=[0, 1])
        >>> metric.compute(label_names=["young", "elderly"])["accuracy"]
        1.0
    """

    def _info(self) -> evaluate.MetricInfo:
        """Features of one prediction: a list of probabilities and the index of the true class."""
        features = {"predictions": datasets.List(datasets.Value("float64")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description="Accuracy, balanced accuracy, F1, ROC AUC, Brier score, calibration of class probabilities.",
            citation="",
            inputs_description="predictions: probabilities (subjects, classes); references: class indices (subjects,)",
            features=datasets.Features(features),
        )

    def _compute(
        self, predictions: Sequence[Sequence[float]], references: Sequence[int], label_names: Sequence[str]
    ) -> dict[str, float]:
        """Score what has been added."""
        return classification_metrics(references, predictions, label_names)


class RegressionMetric(evaluate.Metric):
    """`regression_metrics` of predictions that are collected in batches.

    Example:
        >>> RegressionMetric().compute(predictions=[20.0, 31.0], references=[20.0, 30.0])["mae"]
        0.5
    """

    def _info(self) -> evaluate.MetricInfo:
        """Features of one prediction: two numbers."""
        features = {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
        return evaluate.MetricInfo(
            description="Mean absolute error, root mean squared error, R2 and Pearson correlation.",
            citation="",
            inputs_description="predictions: values (subjects,); references: values (subjects,)",
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        """Score what has been added."""
        return regression_metrics(references, predictions)


def score(truth: np.ndarray, predictions: np.ndarray, label_names: Sequence[str] = ()) -> dict[str, float]:
    """Metrics of predictions.

    Args:
        truth (`np.ndarray` of shape `(scans,)`): class indices or values.
        predictions (`np.ndarray` of shape `(scans, classes)` or `(scans,)`): probabilities or values.
        label_names (`Sequence[str]`): one per class; none for values.
    """
    # Not through the metrics above, which write every prediction into a table of their own first.
    if label_names:
        return classification_metrics(truth, predictions, list(label_names))
    return regression_metrics(truth, predictions)
