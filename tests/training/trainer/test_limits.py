"""Predictions that know their limits, on the real connectomes that come with the repository."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import pipeline

from modeling_lcm import FCFeatureExtractor
from modeling_lcm.limits_lcm import LIMITS_FILE, NOT_KNOWN, TrainingLimits
from training.data.cohort import Cohort
from training.data.triangles import to_matrices, to_triangles
from training.estimator import LCMClassifier
from training.first_report.demonstration import DEMO_DATA
from training.trainer.arguments import FinetuneArguments, PretrainArguments
from training.trainer.checkpoints import save_checkpoint
from training.trainer.finetuning import finetune
from training.trainer.limits import limits_table, summarise_limits, training_limits
from training.trainer.prediction import predict_table
from training.trainer.pretraining import pretrain
from training.trainer.runs import record_of


REGIONS = 60  # of the 200, every third: half a second instead of ten


@pytest.fixture(scope="module")
def demo() -> Cohort:
    """168 real scans of 60 regions, from the demo's files."""
    archive = np.load(DEMO_DATA / "fc.npz")
    matrices = to_matrices(torch.from_numpy(archive["fc_triu"]), 200).numpy()
    table = pd.read_csv(DEMO_DATA / "participants.tsv", sep="\t").set_index("participant_id")
    table = table.loc[archive["participant_id"]].reset_index(names="subject_id").assign(session="")
    kept = np.arange(0, 3 * REGIONS, 3)
    return Cohort(table, to_triangles(matrices[:, kept[:, None], kept]), FCFeatureExtractor(num_regions=REGIONS))


@pytest.fixture(scope="module")
def parts(demo: Cohort) -> dict[str, Cohort]:
    """Half of the young subjects to train on, the other half, and the elderly."""
    young = np.flatnonzero(demo.table["cohort"] == "young")
    return {
        "training": demo.select(young[::2]),
        "others": demo.select(young[1::2]),
        "elderly": demo.select(np.flatnonzero(demo.table["cohort"] == "elderly")),
    }


@pytest.fixture(scope="module")
def limits(parts: dict[str, Cohort]) -> TrainingLimits:
    """Of the young subjects."""
    found = training_limits(parts["training"])
    assert found is not None
    return found


def without_global_signal(connectivity: np.ndarray) -> np.ndarray:
    """Partial correlations given the mean signal of all regions: what its removal leaves of FC."""
    row = connectivity.sum(2)
    rest = connectivity - row[:, :, None] * row[:, None] / row.sum(1)[:, None, None]
    scale = np.sqrt(np.diagonal(rest, axis1=1, axis2=2))
    return rest / scale[:, :, None] / scale[:, None]


def share_out(limits: TrainingLimits, connectivity: np.ndarray) -> float:
    """Share of the scans that are out of distribution."""
    return float(np.mean([check.out_of_distribution for check in limits.check(connectivity)]))


def test_scans_of_the_same_kind_are_within_the_limits(limits: TrainingLimits, parts: dict[str, Cohort]) -> None:
    assert share_out(limits, parts["others"].connectivity()) <= 0.1
    assert share_out(limits, parts["training"].connectivity()) <= 0.02


def test_noise_another_preprocessing_and_another_order_are_not(
    limits: TrainingLimits, parts: dict[str, Cohort]
) -> None:
    rng = np.random.default_rng(0)
    real = parts["others"].connectivity()
    noise = np.stack([np.corrcoef(rng.standard_normal((REGIONS, 200))) for _ in range(20)])
    assert share_out(limits, noise) == 1
    assert share_out(limits, without_global_signal(real)) >= 0.95
    order = rng.permutation(REGIONS)
    moved = limits.check(real[:, order[:, None], order])
    assert all("in another order?" in check.reasons[0] for check in moved if len(check.reasons) < 3)
    assert all(check.out_of_distribution and check.profile < 0.3 for check in moved)
    first = limits.check(without_global_signal(real))[0]
    assert "was the global signal removed" in first.reasons[0]
    assert len(" ".join(first.reasons)) < 400


def test_another_age_group_is_named(limits: TrainingLimits, parts: dict[str, Cohort]) -> None:
    elderly = parts["elderly"]
    checks = limits.check(elderly.connectivity(), elderly.table["age"])
    youngest, oldest = parts["training"].table["age"].agg(["min", "max"])
    assert all(
        f"Age {age:g} lies outside the training subjects' {youngest:g} to {oldest:g} years." in check.reasons
        for check, age in zip(checks, elderly.table["age"], strict=True)
    )
    # FC itself is another one, too, but not by much.
    distance = {name: np.median([c.distance for c in limits.check(parts[name].connectivity())]) for name in parts}
    assert distance["elderly"] > distance["others"]


def test_training_scans_are_measured_without_their_subject(demo: Cohort) -> None:
    connectivity = demo.select(np.arange(12)).connectivity()
    subjects = [f"{number // 2}" for number in range(12)]
    assert TrainingLimits.of(connectivity, subjects) is None  # six subjects
    limits = TrainingLimits.of(np.concatenate([connectivity, connectivity]), [*range(12), *range(12)])
    assert limits is not None and limits.facts["scans"] == 24 and limits.facts["subjects"] == 12
    single = TrainingLimits.of(connectivity, range(12))
    assert single is not None
    # A second, equal scan of everybody changes nothing: it is left out with the first.
    np.testing.assert_allclose(limits._limits("distance")[1], single._limits("distance")[1], rtol=1e-6)
    others = TrainingLimits.of(connectivity[1:], range(11))
    assert others is not None
    measured = [others.check(connectivity[:1])[0].distance, *single.arrays["distance"]]
    assert min(abs(measured[0] - np.array(measured[1:]))) < 0.2


def test_limits_are_saved_in_half_a_percent(limits: TrainingLimits, parts: dict[str, Cohort], tmp_path: Path) -> None:
    assert TrainingLimits.load(tmp_path) is None
    limits.save(tmp_path)
    assert (tmp_path / LIMITS_FILE).stat().st_size < 8 * REGIONS**2
    loaded = TrainingLimits.load(tmp_path)
    assert loaded is not None and loaded.facts == limits.facts
    scans = parts["others"].connectivity()
    for ours, again in zip(limits.check(scans), loaded.check(scans), strict=True):
        assert again.distance == pytest.approx(ours.distance, rel=5e-3)
        assert again.out_of_distribution == ours.out_of_distribution
    (tmp_path / LIMITS_FILE).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is damaged"):
        TrainingLimits.load(tmp_path)
    with pytest.raises(ValueError, match="checkpoint's atlas"):
        limits.check(np.eye(5)[None])


def test_uncertainty_holds_the_truth_nine_times_of_ten(limits: TrainingLimits) -> None:
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 2000)
    chance = 1 / (1 + np.exp(-(2 * truth - 1) - rng.normal(0, 1.5, 2000)))
    guesses = [{"a": 1 - share, "b": share} for share in chance]
    names = np.array(["a", "b"])[truth]
    limits.learn_errors("group", names[:1000], guesses[:1000])
    held = [
        name in limits.uncertainty("group", guess) for name, guess in zip(names[1000:], guesses[1000:], strict=True)
    ]
    assert 0.87 < np.mean(held) < 0.93
    ages = rng.normal(40, 10, 2000)
    predicted = ages + rng.standard_t(5, 2000) * 5
    limits.learn_errors("age", ages[:1000], predicted[:1000])
    low, high = np.transpose([limits.uncertainty("age", value) for value in predicted[1000:]])
    assert 0.87 < np.mean((low <= ages[1000:]) & (ages[1000:] <= high)) < 0.93
    limits.learn_errors("few", [1.0, 2.0], [1.0, 2.0])  # two errors say nothing
    assert limits.uncertainty("few", 3.0) is None and limits.uncertainty("unknown", 3.0) is None


@pytest.fixture(scope="module")
def checkpoint(parts: dict[str, Cohort], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that was pretrained and fine-tuned on the young subjects' sex."""
    folder = tmp_path_factory.mktemp("limits")
    common = {"epochs": 1, "batch_size": 16, "progress": False, "checkpoint_every": 0}
    pretraining = PretrainArguments(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, categorical=["sex"], **common
    )
    model, processor, history = pretrain(parts["training"], pretraining)
    save_checkpoint(folder / "one", model, processor, pretraining, record_of(parts["training"], history))
    tuning = FinetuneArguments(checkpoint=str(folder / "one"), task="sex", **common)
    model, processor, history = finetune(parts["training"], tuning)
    assert processor.limits is not None
    processor.limits.learn_errors("sex", ["M", "F"] * 20, [{"M": 0.6, "F": 0.4}] * 40)
    save_checkpoint(folder / "two", model, processor, tuning, record_of(parts["training"], history))
    return folder / "two"


def test_predictions_say_what_the_scan_is(checkpoint: Path, parts: dict[str, Cohort], tmp_path: Path) -> None:
    both = parts["training"].select(np.arange(5))
    table, _ = predict_table(str(checkpoint), both, batch_size=2)
    assert table["in_training_data"].all() and table["limits"].str.contains("This subject was in the training").all()
    table, _ = predict_table(str(checkpoint), parts["elderly"])
    assert table["out_of_distribution"].all() and not table["in_training_data"].any()
    assert table["limits"].str.contains("Age ").all()
    assert set(table["sex_possible"]) <= {"F|M", "F", "M", ""}
    earlier = Path(shutil.copytree(checkpoint, tmp_path / "earlier"))
    for name in (LIMITS_FILE, "checksums.json"):
        (earlier / name).unlink()
    table, _ = predict_table(str(earlier), parts["elderly"])
    assert table["out_of_distribution"].isna().all() and (table["limits"] == NOT_KNOWN).all()


def test_the_pipeline_and_the_estimator_say_it_too(checkpoint: Path, parts: dict[str, Cohort]) -> None:
    pipe = pipeline("connectome-classification", model=str(checkpoint))
    scans = list(parts["others"].connectivity()[:4])
    noise = np.corrcoef(np.random.default_rng(0).standard_normal((REGIONS, 200)))
    *inside, outside = pipe([*scans, noise], batch_size=3)
    assert not any(entry["out_of_distribution"] for entry in inside[0])
    assert all(entry["out_of_distribution"] and "noise" in entry["limits"] for entry in outside)
    assert {entry["possible"] for entry in outside} <= {True, False}
    old = pipe({"connectivity": scans[0], "age": 80})
    assert old[0]["out_of_distribution"] and "Age 80" in old[0]["limits"]
    with pytest.raises(ValueError, match="age must be a number"):
        pipe({"connectivity": scans[0], "age": "old"})
    training = parts["training"]
    labels = training.table["sex"].to_numpy()
    fitted = LCMClassifier(str(checkpoint), epochs=1, task="sex").fit(training.connectivity(), labels)
    checks = fitted.limits(np.stack([*scans, noise]))
    assert [check.out_of_distribution for check in checks] == [False] * 4 + [True]


def test_a_variable_of_one_part_has_limits_of_its_own(parts: dict[str, Cohort]) -> None:
    """As a diagnosis that one cohort of a pool records: elsewhere its read-out answers, and means nothing."""
    young, elderly = parts["training"], parts["elderly"]
    rows = np.arange(len(young) + len(elderly))
    both = Cohort(
        pd.concat([young.table, elderly.table], ignore_index=True).assign(dataset="lemon"),
        np.concatenate([young.triangles, elderly.triangles]),
        young.feature_extractor,
    )
    diagnosis = np.where(rows < len(young), None, "CN")
    both = replace(both, table=both.table.assign(diagnosis=diagnosis))
    limits = training_limits(both, ["sex", "diagnosis", "not a column"])
    assert limits is not None and set(limits.facts["ranges"]) == {"diagnosis"}
    assert limits.facts["ranges"]["diagnosis"]["cohorts"] == ["lemon"]
    table = limits_table(limits, both, set(), 16)
    said = table["diagnosis_limits"]
    assert (
        said[: len(young)].str.contains(r"^diagnosis was learnt from 54 scans of lemon, unlike this one: .*age").all()
    )
    assert (said[len(young) :] == "").mean() > 0.9
    line = next(line for line in summarise_limits(both.table.join(table)) if line.startswith("diagnosis"))
    assert "scans are unlike those that it was learnt from, as sub-" in line
    assert "diagnosis_limits" not in limits_table(limits, both.select(rows[-1:]), set(), 16)


def test_every_atlas_of_a_scan_is_compared(limits: TrainingLimits, parts: dict[str, Cohort]) -> None:
    several = TrainingLimits.several({"one": limits, "two": limits, "three": None})
    assert several is not None
    scans = parts["others"].connectivity()[:4]
    order = np.random.default_rng(0).permutation(REGIONS)
    moved = scans[:, order[:, None], order]
    absent = np.full_like(scans, np.nan)
    assert several.check_each({"three": scans}) == [None] * 4
    first, second, third, fourth = several.check_each(
        {
            "one": np.stack([scans[0], absent[1], scans[2], absent[3]]),
            "two": np.stack([absent[0], scans[1], moved[2], absent[3]]),
        },
        [24.0, 24.0, 99.0, 24.0],
    )
    assert fourth is None and first is not None and second is not None and third is not None
    assert first.distance == limits.check(scans[:1])[0].distance
    assert second.distance == limits.check(scans[1:2])[0].distance
    assert third.distance == limits.check(moved[2:3])[0].distance > limits.check(scans[2:3])[0].distance
    assert any(reason.startswith("two: FC follows") for reason in third.reasons)
    assert sum(reason.startswith("Age 99") for reason in third.reasons) == 1
