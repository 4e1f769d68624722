"""From a score to a decision: balanced calibration on left-out scores, and probabilities at another prevalence."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


Array = NDArray[np.float64]


@dataclass(frozen=True)
class Calibration:
    """A line that turns a score into balanced log-odds: those if both classes were equally frequent.

    Both kinds of error cost alike: the decision for the second class is `log_odds(score) > 0`, whatever the classes'
    sizes. An imbalanced cohort does not make every subject one of the larger class.

    Args:
        slope (`float`): above 0.
        offset (`float`): where the threshold lies.
        prevalence (`float`): share of the second class among training scans.
        sensitivity, specificity (`float`): shares of both classes that are decided rightly, on left-out scores.
    """

    slope: float
    offset: float
    prevalence: float
    sensitivity: float
    specificity: float

    def log_odds(self, scores: Array) -> Array:
        """Balanced log-odds of the second class."""
        return self.slope * scores + self.offset


def calibrate(scores: Array, is_second: NDArray[np.bool_]) -> Calibration:
    """Fit a calibration to left-out scores (Platt scaling with classes that count alike).

    Args:
        scores (`np.ndarray` of shape `(n,)`): of training scans, each by a fit without its subject.
        is_second (`np.ndarray` of shape `(n,)`): which of them are of the second class.

    Source: Platt 1999, with his smoothed targets.
    """
    count, others = int(is_second.sum()), int((~is_second).sum())
    weights = torch.from_numpy(np.where(is_second, 0.5 / count, 0.5 / others))
    targets = torch.from_numpy(np.where(is_second, (count + 1) / (count + 2), 1 / (others + 2)))
    scale = scores.std() + 1e-12
    scaled = torch.from_numpy(scores / scale)
    line = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # logarithm of the slope, offset
    optimizer = torch.optim.LBFGS([line], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        odds = line[0].exp() * scaled + line[1]
        # A weak pull of the slope towards the scores' own scale, for few scans and scores that separate the classes.
        value = weights @ (torch.nn.functional.softplus(odds) - targets * odds) + 0.5 / len(scores) * line[0] ** 2
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    log_slope, offset = line.detach().tolist()
    slope = float(np.exp(log_slope) / scale)
    decided = slope * scores + offset > 0
    return Calibration(
        slope, offset, count / len(scores), float(decided[is_second].mean()), float((~decided[~is_second]).mean())
    )


def at_prevalence(balanced: Array, prevalence: Array) -> Array:
    """Probabilities where the classes have given shares, from those where all are equally frequent.

    Args:
        balanced (`np.ndarray` of shape `(n, classes)`): probabilities; rows sum to 1.
        prevalence (`np.ndarray` of shape `(classes,)`): shares, which sum to 1.
    """
    weighted = balanced * prevalence
    return weighted / weighted.sum(-1, keepdims=True)
