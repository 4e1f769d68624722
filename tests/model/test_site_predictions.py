"""Scans beside the mean of their site: the saved weights, and every way to predict."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import pipeline

from modeling_lcm import LCMClassifier, LCMForSequenceClassification, LCMProcessor, LCMRegressor, site_means
from tests.conftest import NEEDS_RECENT_TORCH


REGIONS = 8


def connectomes(sites: NDArray[np.int64], labels: NDArray[np.bool_], seed: int) -> NDArray:
    """FC that a label and a site decide on."""
    rng = np.random.default_rng(seed)
    loadings = np.random.default_rng(5).normal(size=(20, REGIONS))
    series = rng.normal(size=(len(sites), 50, REGIONS))
    series += 0.6 * rng.normal(size=(len(sites), 50, 1)) * loadings[sites][:, None]
    series[:, :, :3] += 0.7 * labels[:, None, None] * rng.normal(size=(len(sites), 50, 1))
    return np.stack([np.corrcoef(scan.T) for scan in series])


@pytest.fixture(scope="module")
def fitted() -> LCMClassifier:
    """A classifier of two classes from four sites."""
    rng = np.random.default_rng(0)
    sites, labels = rng.integers(0, 4, 120), rng.random(120) < 0.5
    estimator = LCMClassifier(site_relative="always")
    return estimator.fit(connectomes(sites, labels, 1), np.where(labels, "b", "a"), sites=sites)


@pytest.fixture
def new() -> tuple[NDArray, list]:
    """Scans of a known site, two new ones of which one has a single scan, and of none that is recorded."""
    sites = np.r_[np.full(5, 2), np.full(8, 11), 12, 13, 13]
    return connectomes(sites, np.arange(16) % 2 == 0, 3), [*["2"] * 5, *["new"] * 8, "single", None, float("nan")]


class TestPrediction:
    def test_is_the_same_in_every_way(self, fitted: LCMClassifier, new: tuple[NDArray, list], tmp_path: Path) -> None:
        scans, sites = new
        expected = fitted.decision_function(scans, sites=sites)
        assert np.abs(expected - fitted.decision_function(scans))[:14].min() > 1e-3
        fitted.save_pretrained(tmp_path)
        model = LCMForSequenceClassification.from_pretrained(tmp_path).eval()
        processor = LCMProcessor.from_pretrained(tmp_path)
        inputs = processor(connectivity=scans, return_tensors="pt")["connectivity"]
        read = model(inputs).site_logits
        means = site_means(model.config, read, sites)
        assert means.remarks[0].startswith("2: mean of 5 scans given and ")
        assert means.remarks[5] == "new: mean of 8 scans given"
        assert means.remarks[13] == "single: mean of 1 scan given, drawn towards the training mean"
        assert means.remarks[14] == means.remarks[15] == "site not recorded: compared with the training mean"
        logits = model(inputs, site_means=means.values).logits
        np.testing.assert_allclose((logits[:, 1] - logits[:, 0]).detach(), expected, atol=1e-5)
        one_by_one = [model(inputs[[row]], site_means=means.values[[row]]).logits for row in range(16)]
        torch.testing.assert_close(torch.cat(one_by_one), logits, atol=1e-5, rtol=1e-5)
        asked = pipeline("connectome-classification", model=model, processor=processor)
        balanced = 1 / (1 + np.exp(-expected))
        for given in (
            asked(list(scans), sites=sites),
            asked(
                [{"connectivity": scan, "site": site} for scan, site in zip(scans, sites, strict=True)], batch_size=4
            ),
        ):
            scores = [{each["label"]: each["score"] for each in answer}["b"] for answer in given]
            np.testing.assert_allclose(scores, balanced, atol=1e-5)
            assert [answer[0]["site_mean"] for answer in given] == means.remarks
        alone = asked({"connectivity": scans[0], "site": 2})
        assert alone[0]["site_mean"].startswith("2: mean of 1 scan given and ")
        assert asked(scans[0])[0]["site_mean"] == means.remarks[-1]

    @NEEDS_RECENT_TORCH
    def test_exports_for_any_batch(self, fitted: LCMClassifier, new: tuple[NDArray, list]) -> None:
        model: Any = fitted.model_
        scans = torch.from_numpy(new[0]).float()
        shapes = {"connectivity": {0: torch.export.Dim("batch", min=2, max=64)}}
        with torch.no_grad():
            program = torch.export.export(model, (), {"connectivity": scans[:6]}, dynamic_shapes=shapes).module()
            for batch in (scans[:2], scans):
                for name in ("logits", "site_logits"):
                    torch.testing.assert_close(program(connectivity=batch)[name], model(batch)[name])

    def test_without_sites_only_the_offset_differs(self, fitted: LCMClassifier, new: tuple[NDArray, list]) -> None:
        scans, sites = new
        beside, raw = fitted.decision_function(scans, sites=sites), fitted.decision_function(scans)
        np.testing.assert_allclose(np.ptp((beside - raw)[5:13]), 0, atol=1e-5)
        np.testing.assert_allclose((beside - raw)[14:], 0, atol=1e-6)

    def test_refusals(self, fitted: LCMClassifier, new: tuple[NDArray, list]) -> None:
        scans, sites = new
        model: Any = fitted.model_
        inputs = torch.from_numpy(scans).float()
        with pytest.raises(ValueError, match=r"site_means has shape \(16, 1\); needed is \(16, 2\)"):
            model(inputs, site_means=torch.zeros(16, 1))
        with pytest.raises(ValueError, match="16 scans and 3 sites"):
            fitted.predict(scans, sites=sites[:3])
        with pytest.raises(ValueError, match="sites has 3 values"):
            LCMClassifier().fit(scans, np.arange(16) % 2, sites=[1, 2, 3])
        for mode in ("auto", "always"):
            with pytest.raises(ValueError, match=r"call fit\(X, y, sites=sites\)"):
                LCMClassifier(site_relative=mode).fit(scans, np.arange(16) % 2)
        with pytest.raises(ValueError, match="no site of the training scans is recorded"):
            LCMClassifier(site_relative="always").fit(scans, np.arange(16) % 2, sites=[None] * 16)
        asked = pipeline("connectome-classification", model=model, processor=fitted.processor_)
        with pytest.raises(ValueError, match="sites needs as many names"):
            asked(list(scans), sites=["x"])
        with pytest.raises(ValueError, match="one scan has its site in a dictionary"):
            asked({"connectivity": scans[0]}, sites=["x"])

    def test_models_that_know_no_sites_are_as_before(self, new: tuple[NDArray, list]) -> None:
        scans, sites = new
        labels = np.arange(16) % 2
        plain = LCMClassifier().fit(scans, labels)
        beside = LCMClassifier().fit(scans, labels, sites=sites)
        model: Any = plain.model_
        other = beside.model_.state_dict()
        for name, weight in model.state_dict().items():
            assert "site" not in name
            assert "edge" not in name or torch.equal(weight, other[name])
        inputs = torch.from_numpy(scans).float()
        assert model(inputs).site_logits is None
        np.testing.assert_array_equal(plain.predict_proba(scans, sites=sites), plain.predict_proba(scans))
        with pytest.raises(ValueError, match="compares no scan with its site"):
            model(inputs, site_means=torch.zeros(16, 2))

    def test_several_atlases_and_a_prior(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        sites, labels = rng.integers(0, 4, 120), rng.random(120) < 0.5
        both = {"one": connectomes(sites, labels, 1), "two": connectomes(sites, labels, 2)}
        both["two"][:10] = np.nan
        first = LCMClassifier(task="group", site_relative="always").fit(both, labels, sites=sites)
        assert sorted(first.model_.site_readout) == ["one", "one+two", "two"]
        first.save_pretrained(tmp_path)
        # A fit that starts from it compares with sites as the prior does, though it chooses no gate itself.
        few = {name: part[20:50] for name, part in both.items()}
        again = LCMClassifier(tmp_path, task="group").fit(few, labels[20:50], sites=sites[20:50])
        assert again.report_["one"]["prior"] > 0
        assert sorted(again.model_.site_readout) == ["one", "one+two", "two"]
        values = again.decision_function(both, sites=sites)
        rows = [0, 3, 60, 90]
        model: Any = again.model_
        parts = {name: torch.from_numpy(part).float() for name, part in both.items()}
        present = [["one", "two"] if row >= 10 else ["one"] for row in range(120)]
        means = site_means(model.config, model(parts).site_logits, sites, present).values
        for row in rows:
            scan = {name: part[[row]] for name, part in parts.items() if not part[row].isnan().any()}
            logits = model(scan, site_means=means[[row]]).logits[0].tolist()
            assert logits[1] - logits[0] == pytest.approx(values[row], abs=1e-4)

    def test_numbers_and_several_classes(self) -> None:
        rng = np.random.default_rng(0)
        sites, labels = rng.integers(0, 4, 90), rng.random(90) < 0.5
        scans = connectomes(sites, labels, 1)
        for estimator, y in (
            (LCMRegressor(site_relative="always"), labels + 0.1 * rng.normal(size=90)),
            (LCMClassifier(site_relative="always"), np.arange(90) % 3),
        ):
            estimator.fit(scans, y, sites=sites)
            assert estimator.predict(scans, sites=sites).shape == (90,)
            assert "sites" in estimator.report_["atlas"]
