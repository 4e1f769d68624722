"""The edge read-out: matrix logarithm, running mean, and its place in both heads."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.linalg import logm
from torch import Tensor

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining, LCMForSequenceClassification, log_edges
from modeling_lcm.adapters_lcm import expected_new_weights
from modeling_lcm.edges_lcm import LCMEdgeFeatures, logarithm_by_eigenvalues, logarithm_without_eigenvalues
from modeling_lcm.logarithm_lcm import eigenvalues


@pytest.fixture
def config(make_config: Callable[..., LCMConfig]) -> LCMConfig:
    """A tiny configuration with the edge read-out."""
    return make_config(edge_readout=True)


def correlations(batch: int, regions: int, volumes: int = 40, seed: int = 0) -> Tensor:
    """Pearson matrices of noise."""
    signals = np.random.default_rng(seed).normal(size=(batch, regions, volumes))
    return torch.tensor(np.stack([np.corrcoef(each) for each in signals]), dtype=torch.float32)


def test_features_are_scipys_logarithm(config: LCMConfig) -> None:
    """Above the diagonal of log((1 - s) FC + s I)."""
    matrices = correlations(3, config.num_regions)
    features = LCMEdgeFeatures(config).eval()(matrices)
    rows, columns = np.triu_indices(config.num_regions, 1)
    for matrix, edges in zip(matrices.double().numpy(), features, strict=True):
        shrunk = (1 - config.edge_shrinkage) * matrix + config.edge_shrinkage * np.eye(config.num_regions)
        np.testing.assert_allclose(edges, logm(shrunk)[rows, columns], atol=1e-5)


@pytest.mark.parametrize(
    "matrix",
    [torch.ones(12, 12), torch.eye(12), correlations(1, 12, volumes=4)[0]],
    ids=["all alike", "no connectivity", "rank 3"],
)
def test_features_of_matrices_without_full_rank_are_finite(config: LCMConfig, matrix: Tensor) -> None:
    """Shrinkage gives every correlation matrix a logarithm."""
    assert LCMEdgeFeatures(config).eval()(matrix[None]).isfinite().all()


def test_logarithm_on_a_gpu_is_that_on_a_cpu() -> None:
    """Products, as a GPU takes them, give the eigenvalues' logarithm, also of matrices that are no correlations."""
    rotation = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    spectra = torch.linspace(0.2, 4, 12, dtype=torch.float64).repeat(4, 1)
    spectra[1:, 0] = torch.tensor([0.099, 0.0, -3.0])  # 0.1 is the least that counts
    matrices = rotation @ torch.diag_embed(spectra) @ rotation.T
    found = logarithm_without_eigenvalues(matrices, 0.1)
    torch.testing.assert_close(found, logarithm_by_eigenvalues(matrices, 0.1), atol=1e-9, rtol=0)


@pytest.mark.parametrize("batch", [0, 1, 3, 10])
@pytest.mark.parametrize("threads", [1, 2])
def test_eigenvalues_are_the_same_with_any_number_of_threads(
    batch: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with gradients, and in inference mode; the number of threads stays what it was."""
    monkeypatch.setattr("modeling_lcm.logarithm_lcm.WORK_OF_A_THREAD", 1)  # so small ones are shared, too
    matrices = correlations(10, 12)[:batch]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        values, vectors = eigenvalues(matrices)
        with torch.inference_mode():
            again = eigenvalues(matrices)
        wanted = matrices.clone().requires_grad_()
        eigenvalues(wanted)[0].log().sum().backward()
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(vectors * values[:, None] @ vectors.transpose(1, 2), matrices, atol=1e-5, rtol=0)
    torch.testing.assert_close(again[0], values)
    torch.testing.assert_close(wanted.grad, torch.linalg.inv(matrices), atol=1e-3, rtol=1e-3)


def test_running_mean_learns_in_training_only(config: LCMConfig) -> None:
    """Plain mean of the first batches; evaluation leaves it alone, and is not changed by who else is in the batch."""
    features = LCMEdgeFeatures(config).eval()
    batches = [correlations(5, config.num_regions, seed=seed) for seed in range(4)]
    expected = torch.cat([features(batch) for batch in batches]).mean(0)
    features.train()
    for batch in batches:
        features(batch)
    torch.testing.assert_close(features.mean, expected)
    features.eval()
    together = features(torch.cat(batches))
    torch.testing.assert_close(features(batches[1]), together[5:10], atol=1e-5, rtol=0)
    torch.testing.assert_close(features.mean, expected)
    assert int(features.batches) == 4


def test_untrained_edge_readout_changes_nothing(config: LCMConfig, make_config: Callable[..., LCMConfig]) -> None:
    """It starts at zero, on top of the same weights."""
    with_edges = LCMForMultitaskPretraining(config).eval()
    without = LCMForMultitaskPretraining(make_config()).eval()
    without.load_state_dict({k: v for k, v in with_edges.state_dict().items() if "edge_" not in k})
    matrices = correlations(4, config.num_regions)
    torch.testing.assert_close(with_edges(matrices).layer_logits, without(matrices).layer_logits, rtol=0, atol=0)


def test_logits_are_decoder_plus_edges(config: LCMConfig) -> None:
    """The edges' logit of a token is added after every layer, in half precision, too."""
    model = LCMForMultitaskPretraining(config).eval()
    matrices = correlations(4, config.num_regions)
    before = model(matrices).layer_logits
    torch.nn.init.normal_(model.bei_edge_readout.weight)
    edges = model.edge_features(matrices) @ model.bei_edge_readout.weight.T
    torch.testing.assert_close(model(matrices).layer_logits, before + edges[:, None])
    half = model.to(torch.bfloat16)(matrices).layer_logits
    torch.testing.assert_close(half.float(), before + edges[:, None], atol=0.15, rtol=0.05)


@pytest.mark.parametrize("shrinkages", [None, [0.05, 0.2, 0.6]], ids=["one shrinkage", "three"])
def test_known_log_fc_gives_the_same(make_config: Callable[..., LCMConfig], shrinkages: list[float] | None) -> None:
    """Logits, gradients and the running mean, in both heads; of other scans or shrinkages it is refused."""
    config = make_config(edge_readout=True, edge_shrinkages=shrinkages)
    matrices = correlations(4, config.num_regions)
    known = torch.from_numpy(log_edges(matrices.numpy(), config.shrinkages))
    task = make_config(edge_readout=True, edge_shrinkages=shrinkages, num_labels=2, task_variable="diagnosis")
    for model in (LCMForMultitaskPretraining(config), LCMForSequenceClassification(task)):
        results = []
        for given in ({}, {"log_edges": known}):
            model.zero_grad()
            model.edge_features.batches.zero_()
            torch.manual_seed(0)
            outputs = model.train()(matrices, **given)
            outputs.logits.square().sum().backward()
            gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
            results.append((outputs.logits.detach(), gradients, model.edge_features.mean.clone()))
        torch.testing.assert_close(*results)
        with pytest.raises(ValueError, match=r"log_edges has shape \(3, .* need \(4,"):
            model(matrices, log_edges=known[:3])


def test_log_fc_that_nothing_reads_is_refused(make_config: Callable[..., LCMConfig]) -> None:
    config = make_config()
    matrices = correlations(2, config.num_regions)
    with pytest.raises(ValueError, match="no edge read-out that takes it"):
        LCMForMultitaskPretraining(config)(matrices, log_edges=torch.zeros(2, 1, 10))


def test_downstream_task_takes_over_the_edges(config: LCMConfig, tmp_path: Path) -> None:
    """Pretrained tokens keep their weights and mean; a new task's start at zero and learn."""
    pretrained = LCMForMultitaskPretraining(config).train()
    torch.nn.init.normal_(pretrained.bei_edge_readout.weight)
    matrices = correlations(4, config.num_regions)
    pretrained(matrices)
    pretrained.save_pretrained(tmp_path)
    with expected_new_weights():
        model = LCMForSequenceClassification.from_pretrained(tmp_path, num_labels=2, task_variable="diagnosis")
    assert torch.equal(model.bei_edge_readout.weight, pretrained.bei_edge_readout.weight)
    assert torch.equal(model.edge_features.mean, pretrained.edge_features.mean)
    assert not model.task_edge_readout.weight.any()
    model(matrices, labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    assert model.task_edge_readout.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("shrinkage", [0.0, 1.0, -0.1])
def test_shrinkage_out_of_range_is_refused(make_config: Callable[..., LCMConfig], shrinkage: float) -> None:
    """Without shrinkage a singular matrix has no logarithm; with 1 nothing is left."""
    with pytest.raises(ValueError, match="edge_shrinkage"):
        make_config(edge_shrinkage=shrinkage)
