"""Scans beside the mean of their site: the closed form and the gate."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from modeling_lcm import LCMClassifier
from modeling_lcm.closed_form import (
    Channel,
    Edges,
    LinearScore,
    Target,
    WeightedRidge,
    fit_ridge,
    left_out_beside_sites,
)
from modeling_lcm.closed_form_gate import fit_with_sites
from modeling_lcm.closed_form_heads import Scans, fit_head
from modeling_lcm.closed_form_sites import Relative, Sites, means_of_sites, site_name


SIZE = 80


def make_scans(
    scans: int, sites: NDArray[np.int64], labels: NDArray[np.bool_], seed: int, site_effect: float = 1.0
) -> dict[str, NDArray[np.float32]]:
    """Edges `(scans, 1, SIZE)`: noise, what a label adds, and what a site adds."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(scans, SIZE))
    values[:, :6] += 0.5 * labels[:, None]
    offsets = 0.3 * np.random.default_rng(99).normal(size=(20, SIZE))
    offsets[:, :6] += site_effect * np.linspace(-1, 1, 20)[[7 * site % 20 for site in range(20)], None]  # like a label
    return {"one": (values + offsets[sites])[:, None].astype(np.float32)}


def shifted_labels(sites: NDArray[np.int64], seed: int, share: float = 0.8) -> NDArray[np.bool_]:
    """Labels of which every second site has many and every other one few."""
    rng = np.random.default_rng(seed)
    return rng.random(len(sites)) < np.where(sites % 2 == 0, share, 1 - share)


def within(labels: NDArray[np.bool_], scores: NDArray, sites: NDArray[np.int64]) -> float:
    """Mean AUC within sites."""
    return float(np.mean([roc_auc_score(labels[sites == site], scores[sites == site]) for site in np.unique(sites)]))


class TestMeans:
    def test_are_drawn_towards_the_mean_of_all(self) -> None:
        sites = Sites.make(["a", "b", "a", None, "b", "a", float("nan"), " n/a "])
        values = np.arange(8.0)
        means = sites.plain_means() @ values
        np.testing.assert_allclose(means[[0, 2, 5]], (0 + 2 + 5) / 13)
        np.testing.assert_allclose(means[[1, 4]], (1 + 4) / 12)
        np.testing.assert_array_equal(means[[3, 6, 7]], 0)

    def test_of_classes_are_balanced_where_there_are_scans_of_both(self) -> None:
        labels = np.r_[np.ones(800, bool), np.zeros(200, bool)]
        values = np.where(labels, 1.0, -1.0)
        sites = Sites.make(["a"] * 1000)
        assert (sites.plain_means() @ values)[0] == pytest.approx(0.6, abs=0.01)
        assert (sites.balanced_means(labels) @ values)[0] == pytest.approx(0.0, abs=0.02)
        one_class = np.ones(1000, bool)
        np.testing.assert_allclose(sites.balanced_means(one_class), sites.plain_means())

    def test_of_further_scans_count_by_their_number(self) -> None:
        seen = {"a": {"scans": 90, "mean": [2.0]}}
        means, counts = means_of_sites(np.array([[1.0], [5.0], [3.0]]), ["a", None, "b"], seen)
        np.testing.assert_allclose(means[:, 0], [(1 + 180) / 101, 0, 3 / 11])
        assert counts == [(1, 90), (0, 0), (1, 0)]

    def test_names(self) -> None:
        assert site_name(3.0) == site_name(3) == site_name(" 3") == "3"
        assert [site_name(value) for value in (None, float("nan"), "", "n/a", "NaN")] == [None] * 5


class TestFit:
    def test_kernel_is_that_of_edges_beside_their_site(self) -> None:
        sites = np.arange(40) % 4
        values = make_scans(40, sites, sites > 1, 0, 0.0)
        edges = Edges(values, 0)
        known = Sites.make(sites)
        relative = Relative.make(known, 0.5, np.arange(40))
        fitted, _ = relative.kernels(edges.kernel(Channel(0, False)))
        centred = values["one"][:, 0].astype(float)
        beside = centred - known.plain_means() @ centred
        expected = 0.5 * (centred @ centred.T + beside @ beside.T) / ((centred**2).sum() / 40)
        np.testing.assert_allclose(fitted, expected, atol=1e-4)
        # The function of edges and site means gives what the kernel gives.
        dual = np.random.default_rng(1).normal(size=40)
        weights, site_weights = (edges.weights({Channel(0, False): part})["one"][0] for part in relative.duals(dual))
        found = centred @ weights - known.plain_means() @ centred @ site_weights
        np.testing.assert_allclose(found, fitted @ dual, atol=1e-4)

    @pytest.mark.parametrize("is_class", [True, False])
    def test_left_out_values_are_those_of_fits_without_the_subject(self, is_class: bool) -> None:
        """Site means of the training scans included: the subject is in none of them, its label nowhere."""
        rng = np.random.default_rng(0)
        scans, gate = 120, 0.8
        sites = np.arange(scans) % 3
        labels = rng.random(scans) < 0.5
        values = make_scans(scans, sites, labels, 1, 0.0)
        groups = np.arange(scans) // 2
        numbers = labels if is_class else values["one"][:, 0, :5].sum(1) + rng.normal(size=scans)
        target = Target.make(numbers, is_class, groups.tolist())
        edges = Edges(values, 0)
        kernel = edges.kernel(Channel(0, False))
        known = Sites.make(sites)
        is_second = labels if is_class else None
        fitted, products = Relative.make(known, gate, groups, is_second).kernels(kernel)
        weights = target.case_weights
        shrunk = WeightedRidge(fitted, weights).shrunk(0.3)
        left_out = left_out_beside_sites(target, target.values, products, shrunk)
        plain, expected = known.plain_means(), np.zeros(scans)
        for subject in range(scans // 2):
            kept = groups != subject
            rest = Sites(known.numbers[kept], known.names)
            means = rest.balanced_means(labels[kept]) if is_class else rest.plain_means()
            inner = kernel[np.ix_(kept, kept)]
            beside = inner - inner @ means.T
            again = WeightedRidge((1 - gate) * inner + gate * (beside - means @ beside), weights[kept])
            found, intercept = again.shrunk(0.3).solve(target.values[kept])
            outer = kernel[np.ix_(~kept, kept)] - plain[~kept] @ kernel[:, kept]
            outer = (1 - gate) * kernel[np.ix_(~kept, kept)] + gate * (outer - outer @ means.T)
            expected[~kept] = outer @ found + intercept
        assert np.corrcoef(left_out, expected)[0, 1] > 0.98
        towards_the_truth = (left_out - expected) * (target.values - target.values.mean()) / target.values.std()
        assert abs(towards_the_truth.mean()) < 0.03 * expected.std()

    def test_left_out_labels_are_not_told_by_the_means_of_their_sites(self) -> None:
        scores = []
        for seed in range(20):
            rng = np.random.default_rng(seed)
            sites = rng.integers(0, 8, 120)
            labels = rng.random(120) < 0.5
            values = make_scans(120, sites, np.zeros(120, bool), seed)
            target = Target.make(labels, True, range(120))
            relative = Relative.make(Sites.make(sites), 0.8, target.groups, labels)
            found = fit_ridge(Edges(values, 0), target, relative=relative, is_plain=True)
            scores.append(roc_auc_score(labels, found.left_out))
        assert abs(np.mean(scores) - 0.5) < 0.05

    @pytest.mark.parametrize("share", [0.5, 0.8])
    def test_helps_at_new_sites_whatever_the_shares_of_the_labels(self, share: float) -> None:
        gains = []
        for seed in range(6):
            sites, tested = np.arange(160) % 4, 10 + np.arange(240) % 6
            labels, truth = shifted_labels(sites, seed, share), shifted_labels(tested, seed + 50, share)
            scans = Scans(labels.astype(float), list(range(160)), sites.tolist())
            new = make_scans(240, tested, truth, seed + 50, 3.0)
            scores = {}
            for mode in ("never", "always"):
                edges = Edges(make_scans(160, sites, labels, seed, 3.0), 0)
                logits = fit_head(edges, scans, 2, site_relative=mode).logits(new, tested.tolist())
                odds = logits[:, 1] - logits[:, 0]
                scores[mode] = roc_auc_score(truth, odds), within(truth, odds, tested)
            gains.append(np.subtract(scores["always"], scores["never"]))
        pooled, inside = np.mean(gains, axis=0)
        assert pooled > 0.02  # one threshold for all sites
        assert inside > 0.02

    def test_of_real_connectomes_with_sites_made_up(self, demo: tuple[NDArray, NDArray]) -> None:
        """Sites with 80 % and 20 % of one label, new ones too: nothing is lost."""
        matrices, labels = demo
        differences = []
        for seed in range(3):
            rng = np.random.default_rng(seed)
            first, second = (rng.permutation(np.flatnonzero(labels == value))[:54] for value in (True, False))
            sites = np.full(len(labels), -1)
            for site in range(6):
                many, few = (first, second) if site % 2 else (second, first)
                sites[many[14 * (site // 2) : 14 * (site // 2 + 1)]] = site
                sites[few[42 + 4 * (site // 2) : 42 + 4 * (site // 2 + 1)]] = site
            here = sites >= 0
            scans = with_site_effects(matrices[here], sites[here], seed)
            training, truth, places = sites[here] < 4, labels[here], sites[here]
            scores = []
            for mode in ("never", "always"):
                fitted = LCMClassifier(site_relative=mode).fit(
                    scans[training], truth[training], sites=places[training]
                )
                values = fitted.decision_function(scans[~training], sites=places[~training])
                scores.append(within(truth[~training], values, places[~training]))
            differences.append(scores[1] - scores[0])
        assert np.mean(differences) > -0.01


class TestGate:
    def choose(self, site_effect: float, scans: int = 240, sites: int = 6, mode: str = "auto") -> dict[str, Any]:
        numbers = np.arange(scans) % sites
        labels = np.random.default_rng(1).random(scans) < 0.5
        edges = Edges(make_scans(scans, numbers, labels, 2, site_effect), 0)
        target = Target.make(labels, True, range(scans))
        return fit_with_sites(edges, target, Sites.make(numbers), mode)[0].settings

    def test_follows_the_left_out_sites(self) -> None:
        found = self.choose(2.0)
        assert found["site_gate"] > 0
        assert [*found["left_out_sites"]] == ["0", "0.5", "0.8"]
        assert self.choose(0.0)["site_gate"] == 0

    def test_is_zero_where_nothing_can_be_compared(self) -> None:
        for few in ({"scans": 90}, {"sites": 2}):
            assert self.choose(2.0, **few)["site_gate"] == 0
            assert self.choose(2.0, **few)["left_out_sites"] == {}
            assert self.choose(2.0, mode="always", **few)["site_gate"] == 0.5

    def test_never_leaves_no_trace(self) -> None:
        assert "site_gate" not in self.choose(2.0, mode="never")

    def test_refusals(self) -> None:
        with pytest.raises(ValueError, match="site_relative must be one of never, auto, always"):
            self.choose(1.0, mode="sometimes")
        values = make_scans(30, np.zeros(30, int), np.arange(30) % 2 == 0, 0)
        with pytest.raises(ValueError, match="no site of the training scans is recorded"):
            fit_with_sites(Edges(values, 0), Target.make(np.arange(30) % 2, True, range(30)), None, "always")


def test_scores_beside_sites_are_written_around_any_mean() -> None:
    rng = np.random.default_rng(0)
    values = {"one": rng.normal(size=(50, 1, SIZE))}
    weights, site_weights = ({"one": rng.normal(size=(1, SIZE))} for _ in range(2))
    score = LinearScore(weights, 0.5, {"one": np.zeros((1, SIZE))}, site_weights)
    moved = score.around({"one": np.full((1, SIZE), 0.7)})
    # All scans as one site, whose mean counts in full.
    expected = score(values) - score.of_site(values).mean()
    np.testing.assert_allclose(moved(values) - moved.of_site(values).mean(), expected)
    doubled = score.combined(3.0, moved, -1.0)
    np.testing.assert_allclose(doubled(values) - doubled.of_site(values).mean(), 2 * expected)


def with_site_effects(matrices: NDArray, sites: NDArray[np.int64], seed: int) -> NDArray:
    """Connectomes whose logarithm a site has moved."""
    rng = np.random.default_rng(seed)
    moves = 0.4 * rng.normal(size=(sites.max() + 1, *matrices.shape[1:]))
    found = []
    for matrix, site in zip(matrices, sites, strict=True):
        values, vectors = np.linalg.eigh(0.95 * matrix + 0.05 * np.eye(len(matrix)))
        moved = (vectors * np.log(values)) @ vectors.T + (moves[site] + moves[site].T) / 2
        values, vectors = np.linalg.eigh(moved)
        covariance = (vectors * np.exp(values)) @ vectors.T
        deviations = np.sqrt(np.diag(covariance))
        found.append(covariance / np.outer(deviations, deviations))
    return np.stack(found)


@pytest.fixture(scope="module")
def demo() -> tuple[NDArray, NDArray]:
    """30 regions of the connectomes in this repository, and who is elderly."""
    folder = Path(__file__).parents[2] / "training" / "demo_data" / "lemon-schaefer200"
    with np.load(folder / "fc.npz") as content:
        ids, triangles = content["participant_id"], content["fc_triu"]
    matrices = np.tile(np.eye(200), (len(ids), 1, 1))
    rows, columns = np.triu_indices(200, 1)
    matrices[:, rows, columns] = matrices[:, columns, rows] = triangles
    lines = (folder / "participants.tsv").read_text(encoding="utf-8").splitlines()[1:]
    groups = {line.split("\t")[0]: line.split("\t")[-1] for line in lines}
    return matrices[:, ::7, ::7], np.array([groups[each] == "elderly" for each in ids.tolist()])
