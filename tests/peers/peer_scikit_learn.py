"""scikit-learn's own tests of estimators, run on ours.

They fit tables of made-up features, which are no connectomes; so here a connectome is made of every row. All that is
not about the table itself is tested on the real estimators. What needs no data is in tests/training/test_estimator.py.
"""

from typing import Any

import numpy as np
from sklearn.utils.estimator_checks import parametrize_with_checks
from sklearn.utils.validation import check_is_fitted, validate_data

from training.estimator import LCMClassifier, LCMRegressor


# A small network that learns quickly: the tests ask for an accuracy of 0.83 and an R2 of 0.5 on their training data.
SETTINGS: dict[str, Any] = {
    "epochs": 16,
    "learning_rate": 1e-2,
    "mixup": 0.0,
    "settings": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "dropout": 0.0,
    },
}
NOT_APPLICABLE = {
    "check_methods_subset_invariance": "asks for equality to 1e-7; float32 products over fewer rows round differently",
}


def as_connectomes(table: np.ndarray) -> np.ndarray:
    """Correlation matrices `(rows, features + 1, features + 1)` of one factor, whose loadings are a row's values."""
    first = np.full((len(table), 1), 0.9)
    loadings = np.concatenate([first, np.tanh(table / 3)], axis=1)
    matrices = loadings[:, :, None] * loadings[:, None]
    matrices[:, range(loadings.shape[1]), range(loadings.shape[1])] = 1.0
    return matrices


class _OnTables:
    def fit(self, X: Any, y: Any) -> Any:
        """Fit rows of features."""
        table = validate_data(self, X, ensure_all_finite="allow-nan")
        features = self.n_features_in_
        super().fit(as_connectomes(table), y)
        self.n_features_in_ = features
        return self

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return super()._logits(as_connectomes(validate_data(self, X, reset=False, ensure_all_finite="allow-nan")))


class Classifier(_OnTables, LCMClassifier):
    """`LCMClassifier` for rows of features."""


class Regressor(_OnTables, LCMRegressor):
    """`LCMRegressor` for rows of features."""


@parametrize_with_checks(
    [Classifier(**SETTINGS), Regressor(**SETTINGS)],
    expected_failed_checks=lambda _: NOT_APPLICABLE,
    xfail_strict=False,
)
def test_estimators(estimator: Any, check: Any) -> None:
    check(estimator)
