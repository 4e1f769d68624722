"""Mixed scans, log FC that is computed once, and the threads of small networks."""

from typing import Any

import numpy as np
import pytest
import torch

import modeling_lcm.edges_lcm
from modeling_lcm import log_edges
from tests.training.trainer.test_engine import arguments, assert_same_weights, make_data, make_model
from training.command_line import cli
from training.data.cohort import Cohort
from training.trainer import batches
from training.trainer.batch_losses import batch_loss, target_counts
from training.trainer.loop import Trainer
from training.trainer.threads import threads


def test_a_small_network_trains_on_one_thread_unless_threads_were_set(
    cohort: Cohort, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside passive waiting, which commands choose; afterwards there are as many as before."""
    used: list[int] = []

    def train() -> int:
        Trainer(make_model(), make_data(cohort), None, arguments(epochs=1)).train(
            lambda model: used.append(torch.get_num_threads())
        )
        return used.pop()

    with threads(2):
        assert train() == 2  # asked for
        monkeypatch.setattr(cli, "threads_are_ours", True)
        assert train() == 1
        assert torch.get_num_threads() == 2
        monkeypatch.setattr("training.trainer.threads.FEW_WEIGHTS", 0)
        assert train() == 2  # a large one


def test_log_fc_is_computed_once_and_changes_nothing(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    """With it or without, the same training; FC that noise or mixup change has no log FC that could be kept."""
    trained, computed = [], []
    logarithms = modeling_lcm.edges_lcm.matrix_logarithms

    def counted(matrices: torch.Tensor, shrinkages: Any) -> torch.Tensor:
        computed.append(len(matrices))
        return logarithms(matrices, shrinkages)

    monkeypatch.setattr(modeling_lcm.edges_lcm, "matrix_logarithms", counted)
    for most in (batches.MOST_LOG_BYTES, 0):
        monkeypatch.setattr(batches, "MOST_LOG_BYTES", most)
        model = make_model(edge_readout=True)
        data, held_out = make_data(cohort, range(16)), make_data(cohort, range(16, 24))
        history = Trainer(model, data, held_out, arguments(epochs=3)).train()
        trained.append((model, [record["validation_loss"] for record in history], sum(computed)))
        computed.clear()
    (kept, losses, once), (again, expected, every_epoch) = trained
    assert_same_weights(kept, again, tolerance=1e-4)
    assert losses == pytest.approx(expected, abs=1e-4)
    assert (once, every_epoch) == (24, 3 * 24)


def test_mixed_log_fc(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the mixture of both scans' log FC, and that of mixed FC is another one; always, however many the scans."""
    monkeypatch.setattr(batches, "MOST_LOG_BYTES", 0)
    model, data = make_model(edge_readout=True), make_data(cohort, range(16))
    torch.nn.init.normal_(model.bei_edge_readout.weight)
    Trainer(model, data, None, arguments(mixup=1.0, mixup_of="log_fc"))
    batch = data.__getitems__([0, 1])
    monkeypatch.setattr("training.trainer.batch_losses._partners", lambda scans: torch.tensor([1, 0]))
    given = []
    model.register_forward_pre_hook(lambda _, args, inputs: given.append(inputs), with_kwargs=True)
    counts = target_counts(batch)
    torch.manual_seed(0)
    batch_loss(model, model, batch, counts, 0.0, 1.0)
    logs = batch["log_edges"]
    torch.manual_seed(0)
    share = torch.distributions.Beta(1.0, 1.0).sample().item()
    torch.testing.assert_close(given[0]["log_edges"], share * logs + (1 - share) * logs[[1, 0]])
    of_mixture = torch.from_numpy(log_edges(given[0]["connectivity"].numpy(), model.config.shrinkages))
    assert not torch.allclose(given[0]["log_edges"], of_mixture, atol=1e-3)


@pytest.mark.parametrize("change", [{"mixup": 1.0}, {"input_noise": 0.1}])
def test_log_fc_of_changed_scans_is_not_kept(cohort: Cohort, change: dict[str, float]) -> None:
    data, held_out = make_data(cohort, range(16)), make_data(cohort, range(16, 24))
    Trainer(make_model(edge_readout=True), data, held_out, arguments(**change))
    assert "log_edges" not in data[0] and "log_edges" in held_out[0]


def test_log_fc_that_changes_cannot_be_mixed() -> None:
    for change in ({"input_noise": 0.1}, {"window_volumes": 20}, {"window_fraction": 0.5}):
        with pytest.raises(ValueError, match='or mixup_of to "fc"'):
            arguments(mixup=1.0, mixup_of="log_fc", **change)


@pytest.mark.parametrize("adaptive", ["momentum", "adaptive", "adaptive_per_sample"])
def test_mixup_trains_under_every_supervision(cohort: Cohort, adaptive: str) -> None:
    settings = arguments(epochs=3, momentum_epochs=1, adaptive=adaptive, mixup=1.0)
    history = Trainer(make_model(), make_data(cohort), None, settings).train()
    assert [record["stage"] for record in history] == ["momentum", adaptive, adaptive]
    assert all(np.isfinite(record["train_loss"]) for record in history)


def test_mixup_weighs_both_scans_and_their_labels(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = make_model(), make_data(cohort)
    batch = data.__getitems__(list(range(8)))
    counts = (batch["labels"] != -100).sum(0)
    trainer = Trainer(model, data, None, arguments(mixup=1.0))
    share, partner = torch.tensor(0.3), torch.arange(8).flip(0)
    monkeypatch.setattr("training.trainer.batch_losses.Beta.sample", lambda self: share)
    monkeypatch.setattr("training.trainer.batch_losses.torch.randperm", lambda *size, **options: partner)
    found = batch_loss(trainer.model, trainer.model, batch, counts, 0.0, trainer.arguments.mixup)
    mixed = 0.3 * batch["connectivity"] + 0.7 * batch["connectivity"][partner]
    own, other = (
        model(connectivity=mixed, labels=labels, target_counts=counts).loss
        for labels in (batch["labels"], batch["labels"][partner])
    )
    assert torch.allclose(found, 0.3 * own + 0.7 * other, rtol=1e-5)
