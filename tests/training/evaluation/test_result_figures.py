"""Pictures of predictions: what stands where."""

import numpy as np

from training.evaluation.figures import plot_calibration, plot_fold_scores, plot_predicted_against_true


def test_calibration_points_are_the_bins_of_five_or_more() -> None:
    probability = np.r_[np.full(10, 0.55), np.full(20, 0.95), np.full(4, 0.75)]
    right = np.r_[np.tile([1, 0], 5), np.ones(20), np.ones(4)]
    axes = plot_calibration({"LCM": (right, probability)}).axes[0]
    curve = axes.lines[1]  # the first is the diagonal
    np.testing.assert_allclose(curve.get_xydata(), [[0.55, 0.5], [0.95, 1.0]])
    assert axes.collections[0].get_sizes()[0] < axes.collections[0].get_sizes()[1]


def test_fold_scores_have_a_bar_at_the_mean_and_leave_out_undefined_folds() -> None:
    axes = plot_fold_scores({"LCM": [0.6, None, 0.8], "none": [None, None]}, "ROC AUC", 0.5).axes[0]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["LCM", "none"]
    assert [line.get_xdata()[0] for line in axes.lines] == [0.7, 0.5]  # the mean, and chance
    assert axes.collections[0].get_offsets()[:, 0].tolist() == [0.6, 0.8]


def test_predicted_against_true_has_a_panel_per_model() -> None:
    figure = plot_predicted_against_true({"LCM": ([1, 2], [1.5, 1.5]), "linear": ([1, 2], [1, 2])}, "age")
    assert [axes.get_title() for axes in figure.axes] == ["LCM", "linear"]
    np.testing.assert_allclose(figure.axes[0].collections[0].get_offsets(), [[1, 1.5], [2, 1.5]])
