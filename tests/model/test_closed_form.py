"""The closed-form read-out: exact leave-one-out, linear functions of edges, priors that cannot harm, decisions."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge
from sklearn.metrics import roc_auc_score

from modeling_lcm.closed_form import (
    Channel,
    Edges,
    Fit,
    LinearScore,
    Target,
    WeightedRidge,
    _left_out,
    fit_ridge,
)
from modeling_lcm.closed_form_prior import Prior, fit
from modeling_lcm.decisions import at_prevalence, calibrate


SHRINKAGES, SIZE = 2, 30


def make_edges(scans: int, seed: int = 0, atlases: tuple[str, ...] = ("one",)) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {atlas: rng.normal(size=(scans, SHRINKAGES, SIZE)).astype(np.float32) for atlas in atlases}


def planted(values: dict[str, np.ndarray], noise: float = 0.5, seed: int = 1) -> np.ndarray:
    """A score that some edges of the first atlas decide on."""
    first = next(iter(values.values()))
    rng = np.random.default_rng(seed)
    return first[:, 0, :5].sum(1) + noise * rng.normal(size=len(first))


def fitted(values: dict[str, np.ndarray], target: Target, **more: object) -> Fit:
    return fit(Edges({atlas: each.copy() for atlas, each in values.items()}, 0), target, **more)


class TestRidge:
    @pytest.mark.parametrize(("channel", "penalty"), product((Channel(0, False), Channel(1, True)), (0.01, 1.0)))
    def test_is_ridge_regression(self, channel: Channel, penalty: float) -> None:
        values = make_edges(40)
        edges, numbers = Edges({"one": values["one"].copy()}, 0), planted(values)
        target = Target.make(numbers, False, range(40))
        dual, intercept = (
            WeightedRidge(edges.kernel(channel), target.case_weights).shrunk(penalty).solve(target.values)
        )
        score = LinearScore(edges.weights({channel: dual}), intercept, edges.means)
        # The kernel has mean diagonal 1: the penalty on the edges themselves is its mean diagonal times as large.
        centred = values["one"][:, channel.shrinkage] - edges.means["one"][channel.shrinkage]
        if channel.standardised:
            variance = centred.var(0)
            centred = centred / np.sqrt((40 * variance + 20 * variance.mean()) / 60 + 1e-6)
        expected = Ridge(alpha=penalty * (centred**2).sum() / 40).fit(centred, numbers).predict(centred)
        np.testing.assert_allclose(score(values), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("is_class", [True, False])
    def test_leave_one_out_is_exact(self, is_class: bool) -> None:
        values = make_edges(24, atlases=("one", "two"))
        kernel = Edges(values, 0).kernel(Channel(0, False))
        numbers = planted(values)
        subjects = [number // 2 for number in range(24)]  # two scans each
        target = Target.make(numbers > 0 if is_class else numbers, is_class, subjects)
        weights = target.case_weights
        shrunk = WeightedRidge(kernel, weights).shrunk(0.3)
        left_out = _left_out(target, target.values, shrunk.solve(target.values)[0], shrunk)
        for subject in (0, 5, 11):
            kept = target.groups != target.groups[2 * subject]
            rest = WeightedRidge(kernel[np.ix_(kept, kept)], weights[kept])
            dual, intercept = rest.shrunk(0.3).solve(target.values[kept])
            expected = kernel[np.ix_(~kept, kept)] @ dual + intercept
            np.testing.assert_allclose(left_out[~kept], expected, atol=1e-8)

    def test_chance_is_chance_in_small_cohorts(self) -> None:
        """Left-out pairs have no bias; the AUC of single left-out scans would lie far below chance."""
        skills = []
        for seed in range(60):
            target = Target.make([0, 1] * 8, True, range(16))
            skills.append(fitted(make_edges(16, seed), target).skill)
        assert abs(np.mean(skills)) < 0.15


class TestFit:
    @pytest.mark.parametrize("atlases", [("one",), ("one", "two")])
    @pytest.mark.parametrize("scans", [40, 160])
    def test_finds_a_planted_effect_in_others(self, scans: int, atlases: tuple[str, ...]) -> None:
        values, others = make_edges(scans, 0, atlases), make_edges(200, 9, atlases)
        found = fitted(values, Target.make(planted(values) > 0, True, range(scans)))
        assert roc_auc_score(planted(others, 0.0) > 0, found.score(others)) > 0.75

    def test_numbers_of_many_scans_are_the_mean_of_two_forms(self) -> None:
        values = make_edges(120)
        values["one"] *= np.linspace(0.2, 3, SIZE, dtype=np.float32)
        numbers = planted(values, noise=3.0)
        target = Target.make((numbers - numbers.mean()) / numbers.std(), False, range(120))

        class Standardised(Edges):
            default_channel = Channel(0, True)

        alone = [
            fit_ridge(kind({"one": values["one"].copy()}, 0), target, is_plain=True) for kind in (Edges, Standardised)
        ]
        scores = [each.score(values) for each in alone]
        assert np.abs(scores[0] - scores[1]).max() > 0.02
        np.testing.assert_allclose(fitted(values, target).score(values), np.mean(scores, axis=0), rtol=1e-4, atol=1e-4)
        few = Target.make(target.values[:60], False, range(60))
        assert not fitted({"one": values["one"][:60]}, few).settings["standardised"]

    def test_left_out_values_are_near_those_of_the_function(self) -> None:
        values = make_edges(150)
        found = fitted(values, Target.make(planted(values), False, range(150)))
        assert np.corrcoef(found.left_out, found.score(values))[0, 1] > 0.9

    def test_sizes_of_classes_do_not_move_the_threshold(self) -> None:
        values = make_edges(300)
        score = planted(values)
        order = np.argsort(-score)
        kept = np.sort(np.concatenate([order[:40], order[150:]]))  # 40 against 150
        few = {"one": values["one"][kept]}
        is_second = score[kept] >= score[order[39]]
        found = fitted(few, Target.make(is_second, True, range(len(kept))))
        calibration = calibrate(found.left_out, is_second)
        assert abs(calibration.sensitivity - calibration.specificity) < 0.2

    @given(st.integers(0, 1000))
    def test_a_worthless_prior_cannot_harm_much(self, seed: int) -> None:
        values, others = make_edges(40, seed), make_edges(300, seed + 1)
        target = Target.make(planted(values, 0.2, seed) > 0, True, range(40))
        truth = planted(others, 0.0) > 0
        rng = np.random.default_rng(seed)
        edges = Edges({"one": values["one"].copy()}, 0)
        noise = LinearScore({"one": rng.normal(size=(SHRINKAGES, SIZE)) / 8}, 0.0, edges.means)
        prior = Prior(noise, reputation=0.3)
        alone = roc_auc_score(truth, fitted(values, target).score(others))
        joined = roc_auc_score(truth, fit(edges, target, prior, noise(values)).score(others))
        assert joined > alone - 0.12

    def test_a_good_prior_helps_where_labels_are_few(self) -> None:
        gains = []
        for seed in range(10):
            values, others = make_edges(10, seed), make_edges(300, seed + 1)
            edges = Edges({"one": values["one"].copy()}, 0)
            weights = np.zeros((SHRINKAGES, SIZE))
            weights[0, :5] = 1 / np.sqrt(5)
            good = LinearScore({"one": weights}, 0.0, edges.means)
            target = Target.make(np.argsort(np.argsort(planted(values))) >= 5, True, range(10))
            truth = planted(others, 0.0) > 0
            alone = roc_auc_score(truth, fitted(values, target).score(others))
            joined = fit(edges, target, Prior(good, 0.6), good(values))
            gains.append(roc_auc_score(truth, joined.score(others)) - alone)
        assert np.mean(gains) > 0.1

    def test_a_prior_of_other_ages_is_left_out(self) -> None:
        values = make_edges(30)
        edges = Edges({"one": values["one"].copy()}, 0)
        target = Target.make(planted(values), False, range(30))
        score = LinearScore({"one": np.ones((SHRINKAGES, SIZE))}, 0.0, edges.means)
        found = fit(edges, target, Prior(score, 0.9, (100.0, 200.0)), score(values))
        assert found.settings["prior"] == 0
        np.testing.assert_allclose(found.score(values), fitted(values, target).score(values), rtol=1e-6)

    def test_the_result_is_the_function_that_its_left_out_values_belong_to(self) -> None:
        """With a prior, the parts are added with the same weights in the function and in the left-out values."""
        values = make_edges(200)
        edges = Edges({"one": values["one"].copy()}, 0)
        weights = np.zeros((SHRINKAGES, SIZE))
        weights[0, :5] = 1 / np.sqrt(5)
        good = LinearScore({"one": weights}, 0.3, {"one": edges.means["one"] + 0.1})
        for is_class in (True, False):
            numbers = planted(values)
            target = Target.make(numbers > 0 if is_class else numbers / numbers.std(), is_class, range(200))
            found = fit(edges, target, Prior(good, 0.5), good(values))
            assert np.corrcoef(found.left_out, found.score(values))[0, 1] > 0.97
            assert abs(found.left_out.mean() - found.score(values).mean()) < 0.1 * found.left_out.std()


def test_scores_are_written_around_any_mean() -> None:
    values = make_edges(5)
    score = LinearScore({"one": np.ones((SHRINKAGES, SIZE))}, 0.5, {"one": np.zeros((SHRINKAGES, SIZE))})
    moved = score.around({"one": np.full((SHRINKAGES, SIZE), 0.7)})
    np.testing.assert_allclose(moved(values), score(values), rtol=1e-5)
    np.testing.assert_allclose(score.combined(2.0, moved, -1.0)(values), score(values), rtol=1e-5)


class TestDecisions:
    def test_calibrated_probabilities(self) -> None:
        rng = np.random.default_rng(0)
        is_second = rng.random(4000) < 0.2
        scores = 5 * (rng.normal(size=4000) + 1.5 * is_second)
        found = calibrate(scores, is_second)
        odds = found.log_odds(scores)
        balanced = 1 / (1 + np.exp(-np.stack([-odds, odds], axis=1)))
        assert found.sensitivity == pytest.approx(found.specificity, abs=0.05)
        shown = at_prevalence(balanced, np.array([1 - found.prevalence, found.prevalence]))[:, 1]
        for low in (0.0, 0.25, 0.5):
            inside = (shown >= low) & (shown < low + 0.25)
            assert is_second[inside].mean() == pytest.approx(shown[inside].mean(), abs=0.06)

    @given(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=30))
    def test_any_scores_give_a_line_that_rises(self, scores: list[float]) -> None:
        is_second = np.arange(len(scores)) % 2 == 0
        found = calibrate(np.array(scores), is_second)
        assert found.slope > 0
        assert np.isfinite(found.log_odds(np.array(scores))).all()
