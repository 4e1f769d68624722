"""Training by gradients on scans in several atlases: whichever of them each scan has."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

import training.data.combine
import training.evaluation.design
import training.explanation.explain
from modeling_lcm import FCFeatureExtractor, LCMForMultitaskPretraining, load_adapter
from tests.training.child_processes import finish, start_ranks
from tests.training.conftest import ATLAS, REGIONS
from tests.training.trainer.test_engine import Interrupted, arguments, assert_same_weights, interrupt, make_data
from tests.training.trainer.test_engine import make_model as make_any_model
from training.data.cohort import AtlasScans, Cohort, load_cohort
from training.data.combine import pool
from training.data.harmonise import harmonise
from training.data.torch_datasets import WindowDataset
from training.data.triangles import SERIES_FEATURES, StoredSeries, to_triangles
from training.evaluation.arguments import EvaluateArguments
from training.evaluation.cross_validation import evaluate
from training.explanation.arguments import ExplainArguments
from training.explanation.explain import explain
from training.trainer import batches
from training.trainer.arguments import FinetuneArguments, PretrainArguments
from training.trainer.batch_losses import _partners, without_atlases
from training.trainer.checkpoints import load_model, save_checkpoint
from training.trainer.finetuning import finetune
from training.trainer.loop import Trainer
from training.trainer.prediction import predict_logits, predict_table
from training.trainer.pretraining import pretrain


OTHER, OTHER_REGIONS = "other-12", 12
ATLASES = {ATLAS: {"num_regions": REGIONS}, OTHER: {"num_regions": OTHER_REGIONS}}


def with_second_atlas(cohort: Cohort) -> Cohort:
    """The cohort in two atlases: the first two scans lack the second one, every third scan the first one."""
    rng = np.random.default_rng(0)
    scans = rng.normal(size=(len(cohort), 50, OTHER_REGIONS))
    scans[cohort.table["group"] == "B", :, :4] += rng.normal(size=(12, 50, 1))
    second = to_triangles(np.stack([np.corrcoef(scan.T) for scan in scans]))
    first = cohort.triangles[:]
    second[:2], first[2::3] = np.nan, np.nan
    other = AtlasScans(FCFeatureExtractor(OTHER, num_regions=OTHER_REGIONS), second)
    return replace(cohort, triangles=first, others=(other,))


@pytest.fixture
def both(cohort: Cohort) -> Cohort:
    """The study's cohort in two atlases, in neither of which all scans are."""
    return with_second_atlas(cohort)


def make_model(**settings: Any) -> LCMForMultitaskPretraining:
    """A tiny model of both atlases."""
    return make_any_model(**{"atlases": ATLASES, "edge_readout": True, **settings})


def freeze_statistics(model: LCMForMultitaskPretraining) -> LCMForMultitaskPretraining:
    """Keep running statistics: otherwise every batch has its own."""
    for part in (*model.model.stem.values(), *model.edge_features.values()):
        part = part.norm if hasattr(part, "norm") else part
        part.eval()
        part.train = lambda mode=True, part=part: part
    return model


def test_log_fc_of_several_atlases_is_kept(both: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of scans that lack one, too, and where scans lose atlases."""
    trained = []
    for most in (batches.MOST_LOG_BYTES, 0):
        monkeypatch.setattr(batches, "MOST_LOG_BYTES", most)
        model, data = make_model(), make_data(both)
        Trainer(model, data, None, arguments(epochs=3, atlas_dropout=0.3)).train()
        assert ("log_edges" in data[0]) == bool(most)
        trained.append(model)
    assert_same_weights(*trained, tolerance=1e-4)


# --- stages ---


def test_pretrained_finetuned_and_predicted(
    both: Cohort,
    pretrain_arguments: Callable[..., PretrainArguments],
    finetune_arguments: Callable[..., FinetuneArguments],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = pretrain_arguments(edge_readout=True, mixup=1.0, atlas_dropout=0.3, validation_fraction=0.25)
    model, processor, history = pretrain(both, settings)
    assert model.config.atlases == ATLASES
    assert all(np.isfinite(record["validation_loss"]) for record in history)
    folder = save_checkpoint(tmp_path / "pretrained", model, processor, settings, {})
    assert sorted(processor.feature_extractor.by_atlas) == sorted(ATLASES)
    table, _ = predict_table(str(folder), both)
    assert table["age"].notna().all() and len(table) == len(both)
    assert f"Order of regions not checked: nothing names those of {ATLAS}, {OTHER}" in caplog.text
    for kind in ({}, {"new_tokens": "related"}, {"trainable": "tokens"}, {"frozen_layers": 1}, {"layer_decay": 0.7}):
        tuned = finetune_arguments(checkpoint=str(folder), epochs=15, learning_rate=1e-2, **kind)
        model, processor, _ = finetune(both, tuned)
        assert predict_logits(model, both)["logits"].isfinite().all()
    again = save_checkpoint(tmp_path / "tuned", model, processor, tuned, {})
    labels = predict_table(str(again), both)[0]["group"]
    assert (labels.to_numpy() == both.table["group"].to_numpy()).mean() > 0.8
    # Each atlas alone will do, and says the same of scans that have no other one.
    alone = both.with_atlas(OTHER)
    rows = both.has_atlas(OTHER)
    logits = predict_logits(model, alone)["logits"]
    torch.testing.assert_close(logits[::2][:1], predict_logits(model, alone.select(np.array([0])))["logits"])
    only = ~both.has_atlas(ATLAS)[rows]
    torch.testing.assert_close(logits[only], predict_logits(model, both)["logits"][rows][only])


def test_adapter_of_several_atlases(
    both: Cohort,
    pretrain_arguments: Callable[..., PretrainArguments],
    finetune_arguments: Callable[..., FinetuneArguments],
    tmp_path: Path,
) -> None:
    settings = pretrain_arguments(edge_readout=True)
    model, processor, _ = pretrain(both, settings)
    base = str(save_checkpoint(tmp_path / "pretrained", model, processor, settings, {}))
    tuned = finetune_arguments(checkpoint=base, adapter="lora", epochs=4, learning_rate=1e-2)
    model, processor, _ = finetune(both, tuned)
    expected = predict_logits(model, both)["logits"]
    folder = save_checkpoint(tmp_path / "tuned", model, processor, tuned, {})
    for loaded in (load_model(str(folder)), load_adapter(folder / "adapter", base=base)[0]):
        torch.testing.assert_close(predict_logits(loaded, both)["logits"], expected, rtol=1e-4, atol=1e-4)


def test_windows_are_the_same_part_of_a_scan_in_every_atlas(both: Cohort, rng: np.random.Generator) -> None:
    series = {}
    for part in both.by_atlas:
        scans = rng.standard_normal((len(both), 60, part.num_regions)).astype(np.float16)
        lengths = np.where(part.are_there(), 60, 0)
        rows = [scan.ravel() if length else [] for scan, length in zip(scans, lengths, strict=True)]
        data = datasets.Dataset.from_dict(
            {"time_series": rows, "volumes": lengths}, datasets.Features(SERIES_FEATURES)
        )
        series[part.id] = (scans, StoredSeries(data))
    first, second = (series[part.id][1] for part in both.by_atlas)
    cohort = replace(both, series=first, others=(replace(both.others[0], series=second),))
    data = WindowDataset(cohort, {"labels": torch.zeros(len(cohort))}, 20, 0.0, seed=1)
    data.set_epoch(3)
    batch = data.__getitems__([3, 4, 2])["connectivity"]
    start = data.window_starts[[3, 4]]
    assert batch[ATLAS][2].isnan().all()
    for part in cohort.by_atlas:
        for place, row in enumerate([3, 4]):
            cut = series[part.id][0][row, start[place] : start[place] + 20].astype(float)
            np.testing.assert_allclose(batch[part.id][place], np.corrcoef(cut.T), atol=1e-5)


def test_one_atlas_may_be_chosen(both: Cohort, pretrain_arguments: Callable[..., PretrainArguments]) -> None:
    model, processor, _ = pretrain(both, pretrain_arguments(atlas=OTHER))
    assert model.config.num_regions == OTHER_REGIONS and model.config.atlases is None
    assert processor.feature_extractor.atlas == OTHER


def test_a_cohort_in_one_atlas_leaves_the_other_one_as_it_is(
    both: Cohort,
    cohort: Cohort,
    pretrain_arguments: Callable[..., PretrainArguments],
    finetune_arguments: Callable[..., FinetuneArguments],
    tmp_path: Path,
) -> None:
    settings = pretrain_arguments(edge_readout=True)
    model, processor, _ = pretrain(both, settings)
    folder = save_checkpoint(tmp_path / "pretrained", model, processor, settings, {})
    before = model.state_dict()
    tuned, _, _ = finetune(cohort, finetune_arguments(checkpoint=str(folder), pseudo_labels="recorded"))
    for name, value in tuned.state_dict().items():
        if name in before and OTHER in name:
            assert torch.equal(value, before[name]), name
        elif ATLAS in name and name in before and "weight" in name:
            assert not torch.equal(value, before[name]), name


def test_atlas_dropout_needs_an_atlas_to_spare(
    cohort: Cohort, both: Cohort, pretrain_arguments: Callable[..., PretrainArguments]
) -> None:
    with pytest.raises(ValueError, match=f"no scan has two atlases .the data have {ATLAS}.: set it to 0"):
        pretrain(cohort, pretrain_arguments(atlas_dropout=0.5))
    with pytest.raises(ValueError, match="atlas_dropout must be 0, or lie between 0 and 1"):
        pretrain_arguments(atlas_dropout=1.0)


def test_atlases_with_other_definitions_are_refused(
    both: Cohort, pretrain_arguments: Callable[..., PretrainArguments]
) -> None:
    other = replace(both.others[0], feature_extractor=FCFeatureExtractor(OTHER, num_regions=12, fisher_z=True))
    with pytest.raises(ValueError, match="computed differently in the atlases: fisher_z"):
        pretrain(replace(both, others=(other,)), pretrain_arguments())


def test_evaluated_in_folds(
    both: Cohort,
    evaluate_arguments: Callable[..., EvaluateArguments],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training.evaluation.design, "load_cohort", lambda folder: both)
    arguments = evaluate_arguments(
        {"labels_per_class": None, "epochs": 8, "learning_rate": 1e-2}, {"edge_readout": True}, keep_checkpoints=True
    )
    evaluate(arguments)
    predictions = pd.read_csv(Path(arguments.output) / "predictions.tsv", sep="\t")
    assert len(predictions) == len(both) and predictions["LCM: B"].notna().all()
    model = load_model(str(Path(arguments.output) / "fold_0" / "checkpoint"))
    assert sorted(model.config.atlases) == sorted(ATLASES)


def test_explained_in_one_atlas(
    both: Cohort,
    pretrain_arguments: Callable[..., PretrainArguments],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(training.explanation.explain, "load_cohort", lambda folder: both)
    settings = pretrain_arguments(edge_readout=True)
    model, processor, _ = pretrain(both, settings)
    folder = save_checkpoint(tmp_path / "pretrained", model, processor, settings, {})
    given = {"checkpoint": str(folder), "data": "data", "variables": ["age"], "permutations": 100}
    for atlas, regions in ((ATLAS, REGIONS), (OTHER, OTHER_REGIONS)):
        (found,) = explain(ExplainArguments(**given, output=str(tmp_path / atlas), atlas=atlas))
        assert found.maps["mean"].mean.shape == (regions,)
        assert len(found.scans) == both.has_atlas(atlas).sum()
    with pytest.raises(ValueError, match=f"have the atlases {ATLAS}, {OTHER} in common: name the one"):
        explain(ExplainArguments(**given, output=str(tmp_path / "any")))


def test_limits_by_the_atlas_that_a_scan_has(
    both: Cohort, pretrain_arguments: Callable[..., PretrainArguments], tmp_path: Path
) -> None:
    settings = pretrain_arguments()
    model, processor, _ = pretrain(both, settings)
    table, _ = predict_table(str(save_checkpoint(tmp_path / "pretrained", model, processor, settings, {})), both)
    assert table["distance"].notna().all()


def test_harmonised_in_every_atlas(both: Cohort) -> None:
    pytest.importorskip("combatlearn")
    corrected = harmonise(both, both)
    is_x = (both.table["site"] == "x").to_numpy()
    for before, after in zip(both.by_atlas, corrected.by_atlas, strict=True):
        here = before.are_there()
        np.testing.assert_array_equal(after.are_there(), here)
        gaps = []
        for part in (before, after):
            means = [part.triangles[here & of_site].mean(0, dtype=float) for of_site in (is_x, ~is_x)]
            gaps.append(np.abs(means[0] - means[1]).mean())
        assert gaps[1] < 0.7 * gaps[0]  # few scans: drawn towards all edges together


def test_other_cohorts_join_in_the_atlases_that_they_have(
    both: Cohort, other_cohort: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined, sizes = pool(both, str(dataset), [str(other_cohort)])
    assert sizes == [len(both)] * 2 and len(joined) == 2 * len(both)
    there = joined.has_atlas(ATLAS), joined.has_atlas(OTHER)
    assert there[0][len(both) :].all() and not there[1][len(both) :].any()
    for name, matrices in joined.connectivity(slice(0, len(both))).items():
        np.testing.assert_array_equal(matrices, both.connectivity()[name])
    third = load_cohort(other_cohort)
    third = replace(third, feature_extractor=FCFeatureExtractor("third-10", num_regions=10))
    monkeypatch.setattr(training.data.combine, "load_cohort", lambda folder: third)
    with pytest.raises(ValueError, match=f"has the atlases third-10, and the tested data {ATLAS}, {OTHER}"):
        pool(both, str(dataset), [str(other_cohort)])


# --- batches ---


def test_scans_lose_atlases_but_never_the_last_one() -> None:
    scans = {name: torch.zeros(4000, 2, 2) for name in "abc"}
    scans["a"][:1000] = torch.nan
    scans["b"][:2000] = torch.nan
    kept = {name: ~part[:, 0, 0].isnan() for name, part in without_atlases(scans, 0.4).items()}
    assert torch.stack([*kept.values()]).any(0).all()
    assert not kept["a"][:1000].any() and kept["c"][:1000].all()  # what is not there stays away, the only one stays
    # Of all three, each is kept with 0.6, and with a third where none would be.
    assert kept["a"][2000:].float().mean() == pytest.approx(0.6 + 0.4**3 / 3, abs=0.03)
    assert without_atlases(scans, 0.0) is scans
    assert torch.equal(without_atlases({"a": scans["c"]}, 0.9)["a"], scans["c"])


def test_partners_have_the_same_atlases() -> None:
    scans = {name: torch.zeros(60, 2, 2) for name in "ab"}
    scans["a"][::3], scans["b"][1::3] = torch.nan, torch.nan
    partner = _partners(scans)
    kind = torch.arange(60) % 3
    assert torch.equal(kind[partner], kind)
    assert sorted(partner.tolist()) == list(range(60)) and (partner != torch.arange(60)).any()
    torch.manual_seed(3)
    alone = _partners({"a": scans["a"]})
    torch.manual_seed(3)
    assert torch.equal(alone, torch.randperm(60))  # of one atlas, as ever


# --- the loop ---


def test_accumulated_batches_equal_one_big_batch(both: Cohort) -> None:
    data = make_data(both)
    big, small = (freeze_statistics(make_model().double()) for _ in range(2))
    history = Trainer(big, data, None, arguments(batch_size=12)).train()
    accumulated = Trainer(small, data, None, arguments(batch_size=3, gradient_accumulation_steps=4)).train()
    for one, other in zip(history, accumulated, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], abs=1e-6)
    small.bei_layer_choice.load_state_dict(big.bei_layer_choice.state_dict())
    for model in (big, small):
        for stem in model.model.stem.values():
            stem.norm.num_batches_tracked.zero_()
    assert_same_weights(big, small, tolerance=1e-6)


def test_resumed_run_equals_uninterrupted_one(both: Cohort, tmp_path: Path) -> None:
    train, validation = make_data(both, range(18)), make_data(both, range(18, 24))
    settings = {"epochs": 4, "checkpoint_every": 1, "mixup": 1.0, "atlas_dropout": 0.4, "adaptive": "adaptive"}
    whole = make_model(dropout=0.1)
    history = Trainer(whole, train, validation, arguments(**settings), tmp_path / "whole").train()
    first = Trainer(make_model(dropout=0.1), train, validation, arguments(**settings), tmp_path / "cut")
    interrupt(first, 2)
    with pytest.raises(Interrupted):
        first.train()
    resumed = make_model(seed=1, dropout=0.1)
    trainer = Trainer(resumed, train, validation, arguments(**settings, resume=True), tmp_path / "cut")
    assert trainer.train() == history
    assert_same_weights(whole, resumed)


def make_trainer(cohort: Cohort) -> Trainer:
    """The same training for one process and for several; batches in which one process has no scan of an atlas."""
    both = with_second_atlas(cohort)
    train, validation = make_data(both, range(18)), make_data(both, range(18, 24))
    settings = arguments(epochs=3, batch_size=4, total_batch_size=4, adaptive="adaptive")
    return Trainer(make_model().double(), train, validation, settings)


def train_a_part(dataset: Path, folder: Path) -> None:
    """What each of two processes does."""
    trainer = make_trainer(load_cohort(dataset))
    history = trainer.train()
    torch.save(trainer.trained.state_dict(), folder / f"weights_{trainer.accelerator.process_index}.pt")
    (folder / f"history_{trainer.accelerator.process_index}.json").write_text(json.dumps(history))


def test_two_processes_train_like_one(cohort: Cohort, dataset: Path, tmp_path: Path) -> None:
    codes = finish(start_ranks(train_a_part, dataset, tmp_path, folder=tmp_path))
    assert codes == [0, 0], "\n".join(path.read_text() for path in sorted(tmp_path.glob("rank_*.log")))
    histories = [json.loads((tmp_path / f"history_{rank}.json").read_text()) for rank in (0, 1)]
    assert histories[0] == histories[1]
    alone = make_trainer(cohort)
    for one, two in zip(alone.train(), histories[0], strict=True):
        assert one["train_loss"] == pytest.approx(two["train_loss"], abs=1e-9)
        assert one["validation_loss"] == pytest.approx(two["validation_loss"], abs=1e-6)
    weights = [torch.load(tmp_path / f"weights_{rank}.pt") for rank in (0, 1)]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), f"{name} differs between the processes"
    shared = make_model().double()
    shared.load_state_dict(weights[0])
    assert_same_weights(alone.trained, shared, tolerance=1e-8)
