"""What every evaluation sets LCM beside: the linear model that chooses, confounds alone, a verdict, thresholds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modeling_lcm import BEIVariable
from training.data.cohort import load_cohort
from training.evaluation.arguments import EvaluateArguments
from training.evaluation.baselines import best_linear_baseline, linear_baseline
from training.evaluation.comparison import FoldEdges
from training.evaluation.confounds import confound_baseline, confound_columns
from training.evaluation.cross_validation import evaluate
from training.evaluation.features import LOG_FC, RAW_FC, SHRINKAGE, features, stored_log_fc
from training.evaluation.tasks import Task
from training.evaluation.uncertainty import Predictions
from training.evaluation.verdict import decisions, difference
from training.reporting.tables import results_table_text, summary_sentence


GROUP = Task(BEIVariable("group", "categorical", ["A", "B"]), ("A", "B"))


def test_by_default_lcm_is_set_beside_the_best_linear_model_and_confounds(
    evaluate_arguments: Callable[..., EvaluateArguments], tmp_path: Path
) -> None:
    default = EvaluateArguments().baselines
    results = evaluate(evaluate_arguments(baselines=default, resamples=50)).tasks["group"]
    assert list(results.models) == [
        "LCM", "linear", "linear, best", "linear, all labels", "confounds alone", "majority",
    ]  # fmt: skip
    assert results.protocol["confounds"] == "age, sex, site"
    found = results.difference
    assert found is not None and found.baseline in ("linear", "linear, best")
    ours, other = (results.models[name]["roc_auc"].pooled for name in ("LCM", found.baseline))
    assert found.value == ours - other
    assert found.interval[0] <= found.value <= found.interval[1]
    assert found.sentence.startswith(f"LCM tells B from A at AUC {ours:.2f} [")
    assert found.sentence.endswith(f": {found.verdict}.")
    assert f"LCM minus {found.baseline}" in results_table_text(results)
    assert summary_sentence(results).startswith(found.sentence)
    text = (tmp_path / "folds" / "results.md").read_text().replace("\\", "")  # brackets are escaped in Markdown
    assert found.sentence in text
    assert set(results.decisions) == {*results.models} - {"majority"}
    content = json.loads((tmp_path / "folds" / "metrics.json").read_text())["tasks"]["group"]
    assert content["difference"]["verdict"] == found.verdict
    assert set(content["decisions"]["LCM"]) == {"threshold", "sensitivity", "specificity", "balanced_accuracy"}


@pytest.mark.parametrize("classes", [2, 3])
def test_the_best_linear_model_follows_the_better_of_the_two(classes: int) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % classes
    fc = np.tile(np.eye(8), (60, 1, 1))
    for index in range(classes):  # an edge per class
        fc[:, index, index + 3] = fc[:, index + 3, index] = 0.3 * (labels == index) + rng.normal(0, 0.1, 60)
    probabilities = best_linear_baseline(fc[:40], labels[:40], fc[40:])
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (probabilities.argmax(1) == labels[40:]).mean() > 0.8
    ages = labels + rng.normal(0, 0.1, 60)
    assert np.corrcoef(best_linear_baseline(fc[:40], ages[:40], fc[40:], "regression"), ages[40:])[0, 1] > 0.7


def test_confounds_are_what_is_recorded_and_never_the_task() -> None:
    table = pd.DataFrame(
        {
            "Age": [1, 2, 3],
            "sex": ["F", "M", "F"],
            "site": ["x"] * 3,
            "qc_mean_fd": [np.nan] * 3,
            "mean_fd_mm": [1, 2, 4],
        }
    )
    assert confound_columns("group", table, "site") == ["Age", "sex", "mean_fd_mm"]
    assert confound_columns("sex", table, "site") == ["Age", "mean_fd_mm"]
    assert confound_columns("group", table, "site", ["site", "Age"]) == ["site", "Age"]
    with pytest.raises(ValueError, match="confounds names iq, not in the data; there are Age, sex"):
        confound_columns("group", table, "site", ["iq"])


def test_confounds_with_missing_values_and_a_new_site(dataset: Path) -> None:
    cohort = load_cohort(dataset)
    count = len(cohort)
    labels = np.arange(count) % 2
    cohort.table["motion"] = np.where(labels == 1, 2.0, 1.0)
    cohort.table.loc[3, "motion"] = np.nan
    cohort.table["site"] = ["a", "b"] * (count // 2 - 1) + ["new", None]
    columns = ["motion", "site"]
    training, test = cohort.select(np.arange(count - 4)), cohort.select(np.arange(count - 4, count))
    groups = training.table["subject_id"].tolist()
    found = confound_baseline(columns, training, labels[:-4], test, "classification", 0, groups)
    assert (found.argmax(1) == labels[-4:]).all()
    ages = confound_baseline(columns, training, labels[:-4] * 10.0, test, "regression", 0, groups)
    assert ages[1] > ages[0]


def predictions(values: np.ndarray, truth: np.ndarray, folds: np.ndarray) -> Predictions:
    return Predictions(truth, values, np.arange(len(truth)), np.zeros(len(truth), dtype=int), folds)


def test_thresholds_come_from_the_other_folds_and_mend_a_shifted_model() -> None:
    rng = np.random.default_rng(0)
    truth = (rng.random(400) < 0.2).astype(int)
    odds = rng.normal(2.0 * truth - 4.0, 1.0)  # right order, but hardly anybody above one half
    probability = 1 / (1 + np.exp(-odds))
    values = np.stack([1 - probability, probability], axis=1)
    folds = np.arange(400) % 4
    found = decisions(predictions(values, truth, folds))
    assert (probability > 0.5)[truth == 1].mean() < 0.2
    assert found.sensitivity > 0.7 and found.specificity > 0.7
    assert found.threshold < 0.2
    # The labels of a fold say nothing about its own decisions.
    other = predictions(values, np.where(folds == 0, 1 - truth, truth), folds)
    assert decisions(predictions(values[folds < 1], truth[folds < 1], folds[folds < 1])) is None  # a single fold
    assert decisions(other).sensitivity < found.sensitivity
    assert decisions(predictions(values[:, 1], truth, folds)) is None  # a number


@pytest.mark.parametrize(("shift", "verdict"), [(2.0, "ahead"), (0.0, "level"), (-2.0, "behind")])
def test_a_verdict_is_what_the_paired_interval_says(shift: float, verdict: str) -> None:
    rng = np.random.default_rng(1)
    truth = np.arange(200) % 2
    folds = np.arange(200) % 5
    pooled = {}
    for name, strength in (("LCM", 1.0 + max(shift, 0)), ("linear", 1.0 + max(-shift, 0)), ("linear, log FC", 0.2)):
        probability = 1 / (1 + np.exp(-rng.normal(strength * (2 * truth - 1), 1.0)))
        pooled[name] = predictions(np.stack([1 - probability, probability], axis=1), truth, folds)
    resampled = {name: each.bootstrap(200, 0) for name, each in pooled.items()}
    found = difference(GROUP, "roc_auc", pooled, resampled)
    assert (found.baseline, found.verdict) == ("linear", verdict)
    assert difference(GROUP, "roc_auc", pooled, {}).interval is None
    assert difference(GROUP, "roc_auc", {"LCM": pooled["LCM"]}, {}) is None


def test_log_fc_is_kept_beside_the_data_and_computed_again_when_it_is_damaged(dataset: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(dataset, tmp_path / "data"))
    cohort = load_cohort(data)
    expected = LOG_FC.of_matrices(cohort.connectivity())
    for damage in (False, True):
        with stored_log_fc(cohort, data) as stored:
            np.testing.assert_array_equal(features(LOG_FC, cohort, stored), expected)
            part = cohort.select(np.array([3, 1]))
            np.testing.assert_array_equal(features(LOG_FC, part, stored), expected[[3, 1]])
            path = stored.paths[SHRINKAGE]
            written = path.stat().st_mtime_ns
        with stored_log_fc(cohort, data) as stored:
            assert path.stat().st_mtime_ns == written  # nothing is computed twice
        if not damage:
            content = bytearray(path.read_bytes())
            content[-5] ^= 1
            path.write_bytes(content)
    assert list((data / "cache").glob(f"*_{SHRINKAGE:g}_*")) == [path]
    np.testing.assert_array_equal(features(RAW_FC, cohort, None), RAW_FC.of_matrices(cohort.connectivity()))


def test_log_fc_where_nothing_can_be_kept(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path(shutil.copytree(dataset, tmp_path / "data"))
    shutil.rmtree(data / "cache", ignore_errors=True)
    (data / "cache").write_text("a file where the folder should be")
    cohort = load_cohort(data)
    with stored_log_fc(cohort, data) as stored:
        assert features(LOG_FC, cohort, stored).shape[0] == len(cohort)
    assert "Log FC is not kept for the next evaluation" in capsys.readouterr().err
    assert not stored.paths[SHRINKAGE].exists()


def test_models_of_a_fold_share_their_features(dataset: Path) -> None:
    cohort = load_cohort(dataset)
    training, test = cohort.select(np.arange(16)), cohort.select(np.arange(16, len(cohort)))
    edges = FoldEdges()
    assert edges.span(linear_baseline, training, test) is edges.span(linear_baseline, training, test)
    labels = np.arange(16) % 2
    alone = linear_baseline(training.connectivity(), labels, test.connectivity())
    np.testing.assert_array_equal(linear_baseline.in_span(edges.span(linear_baseline, training, test), labels), alone)
