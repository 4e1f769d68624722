"""Harmonisation inside a cross-validation: fitted on each fold's training scans, and what the models are given."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from torch import nn

import training.evaluate
import training.evaluation.design
import training.evaluation.fold
from tests.training.conftest import PEOPLE, SHORT, TINY
from training.data.cohort import Cohort
from training.data.folds import Folds
from training.data.harmonise import harmonise
from training.reporting.results import Results


pytest.importorskip("combatlearn", reason="the extra [harmonise] is not installed")


@pytest.fixture
def two_scanners(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> Cohort:
    """The study whose second site measures weaker and higher FC; the evaluation loads it."""
    is_y = (cohort.table["site"] == "y").to_numpy()
    triangles = cohort.triangles[:].astype(np.float32)
    triangles[is_y] = np.clip(triangles[is_y] * 0.5 + 0.3, -1, 1)
    shifted = replace(cohort, triangles=triangles.astype(np.float16))
    monkeypatch.setattr(training.evaluation.design, "load_cohort", lambda folder: shifted)
    return shifted


def site_gap(cohort: Cohort, scans: np.ndarray) -> float:
    """Difference of the two sites' mean FC over some scans."""
    is_y = (cohort.table["site"].iloc[scans] == "y").to_numpy()
    means = cohort.triangles[scans].astype(float).mean(axis=1)
    return abs(means[is_y].mean() - means[~is_y].mean())


def test_every_fold_is_harmonised_by_its_training_scans(
    two_scanners: Cohort, dataset: Path, write_config: Callable[..., str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls = []

    def watched(cohort: Cohort, train: Cohort, column: str) -> Cohort:
        calls.append((cohort, train, harmonise(cohort, train, column)))
        return calls[-1][2]

    given = []

    def watched_prediction(model: nn.Module, cohort: Cohort, batch_size: int = 64) -> dict:
        given.append(cohort)
        return predict(model, cohort, batch_size)

    predict = training.evaluation.fold.predict_logits
    monkeypatch.setattr(training.evaluation.design, "harmonise", watched)
    monkeypatch.setattr(training.evaluation.fold, "predict_logits", watched_prediction)
    config = write_config("pretrain", **{**TINY, **SHORT, "epochs": 1, "categorical": ["sex", "group"]})
    settings = f"--data {dataset} --output {tmp_path / 'folds'} --pretrain {config} --stratify group --n_folds 2"
    training.evaluate.main([*settings.split(), "--harmonise", "site", "--finetune", "", "--workers", "1"])
    folds = Folds.load(tmp_path / "folds" / "splits.json")
    subjects = two_scanners.table["subject_id"].astype(str)
    assert len(calls) == len(given) == len(folds.test_subjects) == 2
    for fold, ((raw, train, corrected), shown) in enumerate(zip(calls, given, strict=True)):
        is_test = folds.tests(subjects, fold)
        np.testing.assert_array_equal(train.table.index, np.flatnonzero(~is_test))
        np.testing.assert_array_equal(shown.table.index, np.flatnonzero(is_test))
        np.testing.assert_array_equal(raw.triangles, two_scanners.triangles)  # never the last fold's result
        np.testing.assert_array_equal(shown.triangles, corrected.triangles[is_test])
        assert site_gap(corrected, ~is_test) < 0.2 * site_gap(raw, ~is_test)
        assert site_gap(corrected, is_test) < 0.5 * site_gap(raw, is_test)
    metrics = Results.load(tmp_path / "folds" / "metrics.json")
    assert metrics.protocol["harmonised"] == "across site, fitted on training scans"


def test_other_test_scans_change_nothing_of_the_training_scans(two_scanners: Cohort) -> None:
    train = np.r_[0:8, 12:20]
    test = np.setdiff1d(np.arange(PEOPLE), train)
    found = harmonise(two_scanners, two_scanners.select(train))
    changed = two_scanners.triangles.copy()
    changed[test] = 0.5 * changed[test][::-1]
    again = harmonise(replace(two_scanners, triangles=changed), two_scanners.select(train))
    np.testing.assert_array_equal(again.triangles[train], found.triangles[train])
    assert not np.array_equal(again.triangles[test], found.triangles[test])


def test_a_site_without_training_scans_stays_as_it_is(two_scanners: Cohort) -> None:
    two_scanners.table["site"] = ["x", "y", "z"] * (PEOPLE // 3)
    is_z = (two_scanners.table["site"] == "z").to_numpy()
    found = harmonise(two_scanners, two_scanners.select(~is_z))
    np.testing.assert_array_equal(found.triangles[is_z], two_scanners.triangles[is_z])
    assert not np.array_equal(found.triangles[~is_z], two_scanners.triangles[~is_z])


def test_what_harmonisation_needs(two_scanners: Cohort) -> None:
    with pytest.raises(ValueError, match="needs two sites"):
        harmonise(two_scanners, two_scanners.select(np.arange(8)))
    with pytest.raises(ValueError, match="needs 'centre' for every scan"):
        harmonise(two_scanners, two_scanners, "centre")
