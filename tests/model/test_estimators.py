"""LCMClassifier and LCMRegressor in closed form: conventions, checkpoints as priors, and what is refused."""

import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from transformers import AutoProcessor, pipeline

from modeling_lcm import LCMClassifier, LCMForSequenceClassification, LCMRegressor
from modeling_lcm.decisions import at_prevalence
from tests.conftest import REPOSITORY


REGIONS = 9


def connectomes(scans: int, seed: int = 0, regions: int = REGIONS, effect: float = 1.0) -> tuple[NDArray, NDArray]:
    """FC whose first edges follow a number of every scan, and these numbers."""
    rng = np.random.default_rng(seed)
    numbers = rng.normal(size=scans)
    series = rng.normal(size=(scans, 90, regions))
    series[:, :, 1] += 0.6 * effect * numbers[:, None] * series[:, :, 0]
    series[:, :, 3] -= 0.4 * effect * numbers[:, None] * series[:, :, 2]
    return np.stack([np.corrcoef(scan.T) for scan in series]), numbers


def classes_of(numbers: NDArray, threshold: float = 0.0) -> NDArray:
    """Patients above a threshold."""
    return np.where(numbers > threshold, "patient", "control")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that knows `group` from 300 scans of the atlas "small"."""
    matrices, numbers = connectomes(300, seed=1, effect=0.3)
    folder = tmp_path_factory.mktemp("checkpoint")
    LCMClassifier(task="group").fit({"small": matrices}, classes_of(numbers)).save_pretrained(folder)
    return folder


class TestConventions:
    def test_clone_and_cross_validation(self) -> None:
        matrices, numbers = connectomes(80)
        estimator = clone(LCMClassifier(task="group"))
        assert estimator.get_params() == {
            "checkpoint": None,
            "task": "group",
            "triangle": "lower",
            "site_relative": "never",
            "prevalence": "training",
            "label_names": None,
        }
        shown = cross_val_predict(estimator, matrices, classes_of(numbers), cv=4, method="predict_proba")
        assert roc_auc_score(numbers > 0, shown[:, 1]) > 0.85
        predicted = cross_val_predict(LCMRegressor(), matrices, numbers, cv=4)
        assert np.corrcoef(predicted, numbers)[0, 1] > 0.7

    def test_forms_of_x(self) -> None:
        matrices, numbers = connectomes(40)
        labels = classes_of(numbers)
        expected = LCMClassifier().fit(matrices, labels).predict_proba(matrices[:5])
        rows, columns = np.tril_indices(REGIONS, -1)
        vectors = matrices[:, rows, columns]
        names = [f"region {number}" for number in range(REGIONS)]
        tables = [pd.DataFrame(each, index=names, columns=names) for each in matrices]
        shuffled = [table.iloc[::-1, ::-1] for table in tables]
        for given, asked in ((vectors, vectors), ({"any": matrices}, {"any": matrices}), (tables, shuffled)):
            found = LCMClassifier().fit(given, labels)
            few = {name: each[:5] for name, each in asked.items()} if isinstance(asked, dict) else asked[:5]
            np.testing.assert_allclose(found.predict_proba(few), expected, atol=1e-4)

    def test_fitted_estimators_can_be_pickled(self) -> None:
        matrices, numbers = connectomes(30)
        fitted = LCMRegressor().fit(matrices, numbers)
        again = pickle.loads(pickle.dumps(fitted))
        np.testing.assert_array_equal(again.predict(matrices), fitted.predict(matrices))

    def test_scans_of_one_subject_are_left_out_together(self) -> None:
        """Each scan twice: left-out scores would be perfect otherwise."""
        matrices, _ = connectomes(30)
        labels = np.random.default_rng(3).permutation(np.repeat(["a", "b"], 15))
        twice, twice_labels = np.concatenate([matrices, matrices]), np.concatenate([labels, labels])
        apart = LCMClassifier().fit(twice, twice_labels, groups=[*range(30), *range(30)]).report_["atlas"]
        together = LCMClassifier().fit(twice, twice_labels).report_["atlas"]
        assert apart["auc"] < 0.75 < together["auc"]
        assert apart["subjects"] == 30

    def test_groups_reach_fit_through_splitters(self) -> None:
        matrices, numbers = connectomes(40)
        subjects = np.repeat(np.arange(20), 2)
        shown = cross_val_predict(LCMClassifier(), matrices, classes_of(numbers), groups=subjects, cv=GroupKFold(4))
        assert set(shown) == {"patient", "control"}

    def test_neither_scikit_learn_nor_the_training_code_is_needed(self, tmp_path: Path) -> None:
        """As after `pip install large-connectome-model`."""
        code = (
            "import sys\n"
            "for name in ('sklearn', 'scipy', 'pandas', 'accelerate', 'datasets', 'peft', 'training', 'nilearn'):\n"
            "    sys.modules[name] = None\n"
            f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
            "import numpy as np\n"
            "from modeling_lcm import LCMClassifier\n"
            "series = np.random.default_rng(0).normal(size=(24, 60, 8))\n"
            "matrices = np.stack([np.corrcoef(scan.T) for scan in series])\n"
            "found = LCMClassifier(task='group').set_params(prevalence='balanced').fit(matrices, ['a', 'b'] * 12)\n"
            f"found.save_pretrained({str(tmp_path / 'saved')!r})\n"
            "print(found.get_params()['task'], found.predict(matrices[:1]).shape)\n"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
        assert run.stdout.strip() == "group (1,)", run.stderr


class TestDecisions:
    def test_a_small_class_is_not_overlooked(self) -> None:
        matrices, numbers = connectomes(240)
        labels = classes_of(numbers, threshold=1.0)  # one in six
        fitted = LCMClassifier().fit(matrices[:160], labels[:160])
        predicted, truth = fitted.predict(matrices[160:]), labels[160:]
        assert (predicted == truth)[truth == "patient"].mean() > 0.6
        shown = fitted.predict_proba(matrices[160:])[:, 1]
        assert shown.mean() == pytest.approx((labels[:160] == "patient").mean(), abs=0.08)
        balanced = clone(fitted).set_params(prevalence="balanced").fit(matrices[:160], labels[:160])
        np.testing.assert_array_equal(balanced.predict_proba(matrices[160:]).argmax(1), predicted == "patient")
        record = fitted.report_["atlas"]
        expected = at_prevalence(balanced.predict_proba(matrices[160:]), np.array(record["prevalence"]))
        np.testing.assert_allclose(fitted.predict_proba(matrices[160:]), expected)
        assert 0.5 < record["sensitivity"] <= 1
        np.testing.assert_array_equal(fitted.decision_function(matrices[160:]) > 0, predicted == "patient")

    def test_three_classes(self) -> None:
        matrices, numbers = connectomes(150)
        labels = np.digitize(numbers, [-0.7, 0.7])
        predicted = LCMClassifier().fit(matrices[:100], labels[:100]).predict(matrices[100:])
        assert (predicted == labels[100:]).mean() > 0.5

    def test_skewed_numbers_are_read_as_logarithms(self) -> None:
        matrices, numbers = connectomes(120)
        ages = 20 * np.exp(0.5 * numbers)
        fitted = LCMRegressor(task="age").fit(matrices[:80], ages[:80])
        assert fitted.processor_.tokenizer.task_variable.log
        assert np.corrcoef(fitted.predict(matrices[80:]), ages[80:])[0, 1] > 0.7
        assert not LCMRegressor().fit(matrices[:80], numbers[:80]).processor_.tokenizer.task_variable.log


class TestCheckpoints:
    def test_saved_as_an_ordinary_checkpoint(self, tmp_path: Path) -> None:
        matrices, numbers = connectomes(60)
        fitted = LCMClassifier(task="group").fit(matrices, classes_of(numbers))
        fitted.save_pretrained(tmp_path)
        model, processor = (
            LCMForSequenceClassification.from_pretrained(tmp_path),
            AutoProcessor.from_pretrained(tmp_path),
        )
        inputs = processor(connectivity=matrices[:4], return_tensors="pt")
        with torch.no_grad():
            odds = model(**inputs).logits.diff(dim=-1)[:, 0]
        np.testing.assert_allclose(odds.numpy(), fitted.decision_function(matrices[:4]), rtol=1e-4, atol=1e-5)
        best = [
            found[0]["label"] for found in pipeline("connectome-classification", model=str(tmp_path))(matrices[:4])
        ]
        assert best == fitted.predict(matrices[:4]).tolist()

    def test_few_labels_gain_from_the_same_variable(self, checkpoint: Path) -> None:
        matrices, numbers = connectomes(300, seed=2, effect=0.3)
        labels = classes_of(numbers)
        few = np.concatenate([np.flatnonzero(labels == name)[:4] for name in ("control", "patient")])
        others = np.setdiff1d(np.arange(300), few)
        scores = {}
        for place in (checkpoint, None):
            fitted = LCMClassifier(place, task="group").fit(matrices[few], labels[few])
            scores[place] = roc_auc_score(labels[others], fitted.decision_function(matrices[others]))
        assert scores[checkpoint] > scores[None] + 0.03
        assert LCMClassifier(checkpoint, task="group").fit(matrices[few], labels[few]).report_["small"]["prior"] > 0.1

    def test_a_new_task_is_fitted_as_without_the_checkpoint(
        self, checkpoint: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        matrices, numbers = connectomes(40)
        other = LCMClassifier(checkpoint, task="other").fit(matrices, classes_of(numbers))
        alone = LCMClassifier(task="other").fit(matrices, classes_of(numbers))
        np.testing.assert_allclose(other.decision_function(matrices), alone.decision_function(matrices), rtol=1e-3)
        assert [each.name for each in other.processor_.tokenizer.variables] == ["group", "other"]

    @pytest.mark.parametrize("names", [{0: "control", 1: "patient"}, {0: "patient", 1: "control"}])
    def test_classes_coded_otherwise_than_the_checkpoints(self, checkpoint: Path, names: dict[int, str]) -> None:
        matrices, numbers = connectomes(60)
        labels = classes_of(numbers)
        codes = np.array([code for label in labels for code, name in names.items() if name == label])
        spelt = LCMClassifier(checkpoint, task="group").fit(matrices, labels)
        coded = clone(LCMClassifier(checkpoint, task="group", label_names=names)).fit(matrices, codes)
        assert coded.classes_.tolist() == [0, 1]
        assert [names[code] for code in coded.predict(matrices)] == spelt.predict(matrices).tolist()
        order = [spelt.classes_.tolist().index(names[code]) for code in (0, 1)]
        np.testing.assert_allclose(coded.predict_proba(matrices), spelt.predict_proba(matrices)[:, order], rtol=1e-6)
        assert coded.report_["small"]["prior"] == spelt.report_["small"]["prior"]
        shown = cross_val_predict(coded, matrices, codes, cv=3, method="predict_proba")
        assert shown.shape == (60, 2)

    def test_a_prior_that_misleads_is_dropped(self, checkpoint: Path) -> None:
        matrices, numbers = connectomes(60, seed=5)
        wrong = classes_of(-numbers)
        found = LCMClassifier(checkpoint, task="group").fit(matrices, wrong).report_["small"]
        assert found["prior"] == 0

    def test_several_atlases(self, tmp_path: Path) -> None:
        first, numbers = connectomes(80, seed=3)
        second = connectomes(80, seed=4, regions=11)[0]
        first[:10] = np.nan
        labels = classes_of(numbers)
        fitted = LCMClassifier(task="group").fit({"small": first, "large": second}, labels)
        assert set(fitted.report_) == {"small", "large", "large+small"}
        assert fitted.report_["large+small"]["scans"] == fitted.report_["small"]["scans"] == 70
        both = fitted.decision_function({"small": first, "large": second})
        assert both[10:] == pytest.approx(
            fitted.decision_function({"small": first[10:], "large": second[10:]}), abs=1e-4
        )
        assert both[:10] == pytest.approx(fitted.decision_function({"large": second[:10]}), abs=1e-4)
        np.testing.assert_allclose(
            fitted.decision_function(second[:3]), fitted.decision_function({"large": second[:3]})
        )
        fitted.save_pretrained(tmp_path)
        processor = AutoProcessor.from_pretrained(tmp_path)
        model = LCMForSequenceClassification.from_pretrained(tmp_path)
        inputs = processor(connectivity={"small": [*first[10:12], None], "large": second[10:13]}, return_tensors="pt")
        with torch.no_grad():
            odds = model(**inputs).logits.diff(dim=-1)[:, 0].numpy()
        np.testing.assert_allclose(odds[:2], both[10:12], rtol=1e-3, atol=1e-4)


class TestRefusals:
    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (["a"] * 20, "one class"),
            (["a"] * 19 + ["b"], "each needs two"),
            (["a"] * 10 + [None] * 10, "10 values of y are missing"),
            (np.linspace(0, 1, 20), "use LCMRegressor"),
            (["a", "b"] * 9, "y has 18 values"),
            ([["a", "b"]] * 20, "one class per scan"),
        ],
    )
    def test_labels(self, labels: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            LCMClassifier().fit(connectomes(20)[0], labels)

    @pytest.mark.parametrize(("values", "message"), [([2.0] * 20, "nothing to learn"), ([np.nan] * 20, "NaN")])
    def test_numbers(self, values: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            LCMRegressor().fit(connectomes(20)[0], values)

    def test_other_atlases(self, checkpoint: Path) -> None:
        matrices, numbers = connectomes(20, regions=12)
        with pytest.raises(ValueError, match="9"):
            LCMClassifier(checkpoint, task="group").fit(matrices, classes_of(numbers))
        with pytest.raises(ValueError, match="Got the atlases large"):
            LCMClassifier(checkpoint, task="group").fit({"large": matrices}, classes_of(numbers))

    def test_labels_that_the_checkpoint_spells_otherwise(self, checkpoint: Path) -> None:
        matrices, numbers = connectomes(20)
        labels = classes_of(numbers)
        with pytest.raises(ValueError, match=r"control, patient.*another name"):
            LCMClassifier(checkpoint, task="group").fit(matrices, ["yes", "no"] * 10)
        with pytest.raises(
            ValueError, match=r"scikit-learn numbers them.*label_names=.0: \"control\", 1: \"patient\""
        ):
            cross_val_predict(LCMClassifier(checkpoint, task="group"), matrices, labels, method="predict_proba")

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            ({0: "control"}, r"no name for 1 of y; it has names for 0"),
            ({0: "control", 1: "control"}, "two classes the same name"),
            (["control", "patient"], "must be a dictionary"),
            ({0: "healthy", 1: "ill"}, "labels control, patient, the data has healthy, ill"),
        ],
    )
    def test_names_of_classes(self, checkpoint: Path, names: Any, message: str) -> None:
        matrices, numbers = connectomes(20)
        with pytest.raises(ValueError, match=message):
            LCMClassifier(checkpoint, task="group", label_names=names).fit(matrices, (numbers > 0).astype(int))

    def test_no_checkpoint_or_not_fitted(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no folder"):
            LCMClassifier(tmp_path / "nothing").fit(connectomes(20)[0], ["a", "b"] * 10)
        with pytest.raises(ValueError, match="not fitted"):
            LCMClassifier().predict(connectomes(2)[0])

    def test_few_scans_of_a_class_are_a_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        logging.getLogger("transformers").propagate = True
        try:
            LCMClassifier().fit(connectomes(20)[0], ["a"] * 3 + ["b"] * 17)
        finally:
            logging.getLogger("transformers").propagate = False
        assert "Few training scans (a: 3)" in caplog.text


def test_limits_stand_beside_the_predictions() -> None:
    rng = np.random.default_rng(0)
    common = rng.standard_normal((30, 60, 1))
    scans = np.stack([np.corrcoef((x + rng.standard_normal((60, 12))).T) for x in common])
    noise = np.corrcoef(rng.standard_normal((12, 60)))
    fitted = LCMClassifier().fit(scans[:24], ["a", "b"] * 12)
    checks = fitted.limits(np.stack([*scans[24:], noise]))
    assert sum(check.out_of_distribution for check in checks[:-1]) <= 1
    assert checks[-1].out_of_distribution and "Mean FC" in checks[-1].reasons[0]
    with pytest.raises(ValueError, match="fewer than 10"):
        LCMClassifier().fit(scans[:8], ["a", "b"] * 4).limits(scans[:1])


def test_every_atlas_has_its_own_limits() -> None:
    rng = np.random.default_rng(0)
    common = rng.standard_normal((20, 60, 1))
    first, second = (
        np.stack([np.corrcoef((x + rng.standard_normal((60, regions))).T) for x in common]) for regions in (12, 8)
    )
    fitted = LCMClassifier().fit({"one": first, "two": second}, ["a", "b"] * 10)
    assert len(fitted.limits({"one": first[:3], "two": second[:3]})) == 3
    assert len(fitted.limits({"two": second[:3]})) == 3
    lacking = {"one": np.full_like(first[:2], np.nan), "two": second[:2]}
    assert fitted.limits(lacking)[0].distance == fitted.limits({"two": second[:2]})[0].distance
