"""Options for small cohorts: class weights, what is frozen, learning rates by depth, random windows, leakage."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from modeling_lcm import LCMForMultitaskPretraining, LCMForSequenceClassification
from modeling_lcm.loss_lcm import TargetLayout, balanced_class_weights, multitask_loss, supervised_losses
from tests.training.conftest import PEOPLE, REGIONS, VOLUMES, Study
from training.data.cohort import Cohort
from training.data.torch_datasets import ConnectomeDataset, WindowDataset
from training.data.triangles import SERIES_FEATURES, StoredSeries
from training.trainer.arguments import FinetuneArguments, PretrainArguments
from training.trainer.batches import training_dataset
from training.trainer.finetuning import finetune
from training.trainer.loop import Trainer
from training.trainer.lora import with_adapter
from training.trainer.prediction import predict_logits
from training.trainer.pretraining import pretrain
from training.trainer.trainable import freeze, parameter_groups, set_training_mode


EVERYBODY = np.arange(PEOPLE)


# --- class weights ---


def test_balanced_weights_equal_scikit_learns() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    labels = torch.tensor([0, 0, 0, 1, 2, 2, -100, -100])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=[0, 0, 0, 1, 2, 2])
    assert balanced_class_weights(labels, 3) == pytest.approx(expected)
    # A label that nobody has takes nothing from the others.
    assert balanced_class_weights(labels.float(), 4) == pytest.approx([*expected, 1])


def test_class_weights_in_the_loss_equal_torchs() -> None:
    logits, labels = torch.randn(12, 3, 5), torch.tensor([0.0, 1, 2] * 4)
    layout = TargetLayout(("categorical", "continuous"), (3, 1), (1.0, 1.0), ((0.5, 1.0, 3.0), ()))
    targets = torch.stack([labels, torch.randn(12)], dim=1)
    losses = supervised_losses(logits, targets, layout, "momentum")
    mean = logits.mean(1)
    expected = torch.nn.functional.cross_entropy(
        mean[:, :3], labels.long(), weight=torch.tensor([0.5, 1.0, 3.0]), reduction="none"
    )
    torch.testing.assert_close(losses[:, 0], expected)
    torch.testing.assert_close(losses[:, 1], (mean[:, 3] - targets[:, 1]) ** 2)
    # Parts of a batch, with the counts of the whole one, add up to its loss.
    counts = torch.tensor([12, 12])
    parts = [multitask_loss(losses[rows], targets[rows], layout, counts) for rows in (slice(0, 5), slice(5, 12))]
    torch.testing.assert_close(sum(parts), multitask_loss(losses, targets, layout))


def test_finetuning_takes_class_weights_from_training_labels(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments]
) -> None:
    cohort.table.loc[18:, "group"] = "A"
    settings = finetune_arguments(class_weights="balanced", epochs=1, pseudo_labels="recorded")
    model, _, _ = finetune(cohort, settings)
    groups, sexes = cohort.table["group"].value_counts(), cohort.table["sex"].value_counts()
    assert model.config.class_weights["group"] == pytest.approx([12 / groups["A"], 12 / groups["B"]])
    assert model.config.class_weights["sex"] == pytest.approx([12 / sexes["F"], 12 / sexes["M"]])
    assert model.target_layout.class_weights == (tuple(model.config.class_weights["group"]),)
    assert "sex" not in finetune(cohort, replace(settings, pseudo_labels="none"))[0].config.class_weights
    assert finetune(cohort, replace(settings, class_weights="none"))[0].config.class_weights is None


def test_weighted_steps_do_not_depend_on_accumulation(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments]
) -> None:
    cohort.table.loc[16:, "group"] = "A"
    settings = finetune_arguments(
        class_weights="balanced", epochs=1, input_noise=0.0, batch_size=24, frozen_layers=1, warmup_fraction=0.0
    )
    states = [
        finetune(cohort, replace(settings, batch_size=size, gradient_accumulation_steps=24 // size))[0]
        for size in (24, 6)
    ]
    for name, value in states[0].named_parameters():
        if name.endswith(("k_proj.bias", "model.norm.bias", "score.bias")):
            continue  # their gradients are rounding noise: they shift all keys, or all logits, alike before a softmax
        torch.testing.assert_close(value, dict(states[1].named_parameters())[name], rtol=0, atol=2e-5, msg=name)


def test_pretraining_weighs_every_categorical_variable(
    cohort: Cohort, pretrain_arguments: Callable[..., PretrainArguments]
) -> None:
    cohort.table.loc[4:, "site"] = "y"
    settings = pretrain_arguments(class_weights="balanced", categorical=["sex", "site"], epochs=1)
    config = pretrain(cohort, settings)[0].config
    assert config.class_weights["site"] == pytest.approx([3.0, 0.6])
    assert set(config.class_weights) == {"sex", "site"}


# --- what trains ---


def changed(cohort: Cohort, settings: FinetuneArguments, pretrained: Path) -> set[str]:
    """Names of the tensors that fine-tuning changed, of those that the checkpoint has."""
    after = finetune(cohort, settings)[0].state_dict()
    before = LCMForMultitaskPretraining.from_pretrained(pretrained).state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_tokens_only_leaves_the_pretrained_network_alone(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], pretrained: Path
) -> None:
    settings = finetune_arguments(trainable="tokens", new_tokens="random")
    assert changed(cohort, settings, pretrained) == {"score.weight", "score.bias"}
    # New edge weights start at zero.
    assert finetune(cohort, settings)[0].task_edge_readout.weight.any()
    choice = {"bei_layer_choice.running_loss", "bei_layer_choice.best_layer"}
    pretrained_tokens = {"score.weight", "score.bias", "model.bei_embeddings.weight", "bei_edge_readout.weight"}
    assert changed(cohort, replace(settings, pseudo_labels="recorded"), pretrained) - choice == pretrained_tokens
    assert changed(cohort, replace(settings, task="sex"), pretrained) - choice == pretrained_tokens


def test_frozen_layers_and_stem_stay(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], pretrained: Path
) -> None:
    names = changed(cohort, finetune_arguments(frozen_layers=1), pretrained)
    assert not [name for name in names if name.startswith(("model.stem.", "model.layers.0.", "edge_features."))]
    assert "model.layers.1.fc1.weight" in names


def test_pretrained_edges_without_a_loss_stay_while_their_mean_follows_the_cohort(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], pretrained: Path
) -> None:
    settings = finetune_arguments(epochs=1, weight_decay=0.5)
    names = changed(cohort, settings, pretrained)
    assert "bei_edge_readout.weight" not in names  # not even by weight decay
    assert {"edge_features.mean", "model.stem.norm.running_mean", "model.bei_embeddings.weight"} <= names
    assert "bei_edge_readout.weight" in changed(cohort, replace(settings, pseudo_labels="recorded"), pretrained)


@pytest.mark.parametrize("adapter", ["none", "lora"])
@pytest.mark.parametrize("frozen_layers", [0, 1])
def test_frozen_norm_and_edges_use_their_own_statistics(
    pretrained: Path, finetune_arguments: Callable[..., FinetuneArguments], adapter: str, frozen_layers: int
) -> None:
    model = LCMForSequenceClassification.from_pretrained(pretrained, num_labels=2, task_variable="new")
    freeze(model, frozen_layers)
    if adapter != "none":
        with_adapter(model, finetune_arguments(adapter=adapter, frozen_layers=frozen_layers))
    set_training_mode(model)
    assert model.training
    # What an adapter trains whole is a copy, which takes the place of the original.
    parts = [
        part.modules_to_save["default"] if hasattr(part, "modules_to_save") else part
        for part in (model.model.stem.norm, model.edge_features)
    ]
    assert [part.training for part in parts] == [not frozen_layers] * 2
    connectivity = torch.stack([torch.corrcoef(torch.randn(REGIONS, 40)) for _ in range(4)])
    before = [deepcopy(part.state_dict()) for part in parts]
    model(connectivity=connectivity)
    for part, state in zip(parts, before, strict=True):
        stayed = all(torch.equal(value, state[name]) for name, value in part.state_dict().items())
        assert stayed == bool(frozen_layers)


def test_layer_decay_by_depth(pretrained: Path, finetune_arguments: Callable[..., FinetuneArguments]) -> None:
    model = LCMForSequenceClassification.from_pretrained(pretrained, num_labels=2, task_variable="new")
    settings = finetune_arguments(layer_decay=0.5, learning_rate=1.0)
    groups = parameter_groups(model, settings)
    rates = {
        id(parameter): group.get("lr", settings.learning_rate) for group in groups for parameter in group["params"]
    }
    named = dict(model.named_parameters())
    assert len(rates) == len(named)
    for name, rate in (
        ("score.weight", 1.0),
        ("task_embeddings.weight", 1.0),
        ("model.norm.weight", 1.0),
        ("model.layers.1.fc1.bias", 0.5),
        ("model.layers.0.cross_attn.q_proj.weight", 0.25),
        ("model.stem.proj.weight", 0.125),
        ("model.bei_embeddings.weight", 0.125),
    ):
        assert rates[id(named[name])] == rate, name
    assert groups[0].get("lr", 1.0) == 1.0  # the rate that is logged
    assert all(group["weight_decay"] == 0 for group in groups if any(p.ndim == 1 for p in group["params"]))


# --- windows ---


@pytest.fixture
def with_series(cohort: Cohort, study: Study) -> Cohort:
    """The cohort with its time series, standardised as training.prepare stores them; one scan has none."""

    series = study.time_series.astype(float)
    series = (series - series.mean(1, keepdims=True)) / series.std(1, keepdims=True)
    volumes = [0 if scan == 3 else VOLUMES for scan in range(PEOPLE)]
    columns = {
        "time_series": [scan[:count].ravel().astype(np.float16) for scan, count in zip(series, volumes, strict=True)],
        "volumes": volumes,
    }
    stored = datasets.Dataset.from_dict(columns, datasets.Features(SERIES_FEATURES))
    return replace(cohort, series=StoredSeries(stored))


def test_windows_are_the_fc_of_a_contiguous_part(with_series: Cohort, study: Study) -> None:
    data = WindowDataset(with_series, {"labels": torch.arange(PEOPLE)}, 20, 0.0, seed=1)
    data.set_epoch(2)
    batch = data.__getitems__([5, 3, 7])
    assert batch["labels"].tolist() == [5, 3, 7]
    for place, row in ((0, 5), (2, 7)):
        start = data.window_starts[row]
        assert 0 <= start <= VOLUMES - 20
        expected = np.corrcoef(study.time_series[row, start : start + 20].T)
        np.testing.assert_allclose(batch["connectivity"][place], expected, atol=2e-3)
    # A scan without a time series is used whole.
    np.testing.assert_allclose(batch["connectivity"][1], with_series.connectivity(np.array([3]))[0])


def test_windows_hang_on_seed_epoch_and_scan_alone(with_series: Cohort) -> None:
    labels = {"labels": torch.zeros(PEOPLE)}
    one, two = (WindowDataset(with_series, labels, 0, 0.5, seed=1) for _ in range(2))
    for data in (one, two):
        data.set_epoch(4)
    together = one.__getitems__([0, 1, 2])["connectivity"]
    torch.rand(3)  # nothing that is drawn elsewhere matters
    apart = torch.stack([two[row]["connectivity"] for row in (0, 1, 2)])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)
    two.set_epoch(5)
    assert not torch.allclose(together, two.__getitems__([0, 1, 2])["connectivity"], atol=1e-3)
    has_series = one.lengths > 0
    assert one.window_lengths[has_series].min() >= VOLUMES / 2
    assert one.window_lengths.max() <= VOLUMES
    assert len(set(one.window_lengths[has_series])) > 5
    assert (one.window_starts + one.window_lengths <= VOLUMES).all()


def test_a_window_longer_than_the_scan_is_the_whole_scan(with_series: Cohort) -> None:
    data = WindowDataset(with_series, {}, 10 * VOLUMES, 0.0, seed=0)
    np.testing.assert_array_equal(data.__getitems__([2])["connectivity"], with_series.connectivity(np.array([2])))


def test_only_training_sees_windows(
    with_series: Cohort, finetune_arguments: Callable[..., FinetuneArguments], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = Trainer.__init__

    def spy(self: Any, model: Any, train: Any, validation: Any, *rest: Any) -> None:
        seen.extend([type(train).__name__, type(validation).__name__])
        original(self, model, train, validation, *rest)

    monkeypatch.setattr(Trainer, "__init__", spy)
    settings = finetune_arguments(window_fraction=0.5, validation_fraction=0.25, epochs=1)
    model, _, history = finetune(with_series, settings)
    assert seen == ["WindowDataset", "ConnectomeDataset"]
    assert np.isfinite(history[0]["train_loss"])
    assert predict_logits(model, with_series)["logits"].isfinite().all()


def test_resuming_with_windows_is_bit_identical(
    with_series: Cohort, finetune_arguments: Callable[..., FinetuneArguments], tmp_path: Path
) -> None:
    settings = finetune_arguments(epochs=3, window_volumes=25, checkpoint_every=1)
    whole, _, history = finetune(with_series, settings, tmp_path / "a")
    stopped = RuntimeError("stopped")

    def stop(model: Any, count: list[int] = [0]) -> None:  # noqa: B006 (counts the calls)
        count[0] += 1
        if count[0] == 2:
            raise stopped

    with pytest.raises(RuntimeError, match="stopped"):
        finetune(with_series, settings, tmp_path / "b", stop)
    again, _, repeated = finetune(with_series, replace(settings, resume=True), tmp_path / "b")
    assert repeated == history
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_without_windows_nothing_changes(cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments]) -> None:
    data = training_dataset(ConnectomeDataset(cohort, {}), finetune_arguments())
    assert type(data).__name__ == "ConnectomeDataset"


# --- leakage ---


def test_a_column_that_tells_the_label_is_warned_of(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], caplog: pytest.LogCaptureFixture
) -> None:
    cohort.table["scanner"] = np.where(cohort.table["group"] == "A", "p", "q")
    cohort.table["ward"] = np.where(cohort.table["group"] == "A", ["p1", "p2", "p3"] * 8, "q")
    cohort.table["mostly"] = cohort.table["scanner"]
    cohort.table.loc[0, "mostly"] = "q"
    finetune(cohort, finetune_arguments(epochs=1))
    warned = [record.getMessage() for record in caplog.records if "leakage" in record.getMessage()]
    assert [message.split("'")[1] for message in warned] == ["score", "scanner", "ward"]
    caplog.clear()
    cohort.table["sex"] = np.where(cohort.table["group"] == "A", "F", "M")
    finetune(cohort, finetune_arguments(epochs=1))
    assert "The column 'sex' alone tells 'group'; the pretraining learns it" in caplog.text
    caplog.clear()
    cohort.table["points"] = 3 * cohort.table["score"] - 1
    finetune(cohort, finetune_arguments(task="score", kind="continuous", epochs=1))
    assert "The column 'points' alone tells 'score'" in caplog.text
