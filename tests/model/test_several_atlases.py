"""One model for several atlases: whichever of them a scan has, and variables that were fitted in closed form."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from modeling_lcm import (
    LCMConfig,
    LCMForMultitaskPretraining,
    LCMForSequenceClassification,
    LCMModel,
    atlas_batches_lcm,
    fast_paths_lcm,
    log_edges,
    reading_lcm,
)
from modeling_lcm.edges_lcm import matrix_logarithm
from modeling_lcm.quantization_lcm import pack
from tests.conftest import NUM_REGIONS, randomise


ATLASES = {"small": {"num_regions": NUM_REGIONS}, "large": {"num_regions": 15}}
CLOSED = {"small": {"sex": {}, "age": {}}, "large+small": {"sex": {}}}


@pytest.fixture
def several(make_config: Callable[..., LCMConfig]) -> LCMConfig:
    """A tiny configuration of two atlases."""
    return make_config(atlases=ATLASES, edge_readout=True, edge_bias=True, edge_shrinkages=[0.1, 0.4])


@pytest.fixture
def scans(make_connectivity: Callable[..., Tensor]) -> dict[str, Tensor]:
    """Four scans in both atlases, of which the second lacks one and the third the other."""
    found = {name: make_connectivity(regions=atlas["num_regions"]) for name, atlas in ATLASES.items()}
    found["small"][1] = torch.nan
    found["large"][2] = torch.nan
    return found


def make(config: LCMConfig, kind: Any = LCMForMultitaskPretraining) -> Any:
    """A model whose every weight matters, edge read-outs included."""
    model = kind(config)
    randomise(model)
    for name, tensor in model.state_dict().items():
        if "edge" in name and tensor.is_floating_point():
            tensor.normal_(std=0.2)
    return model.eval()


def one(scans: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    """A single scan with the atlases that it has."""
    return {name: part[row : row + 1] for name, part in scans.items() if not part[row].isnan().any()}


def test_an_atlas_with_a_name_changes_nothing(make_config: Callable[..., LCMConfig], connectivity: Tensor) -> None:
    unnamed = make(make_config(edge_readout=True))
    named = LCMForMultitaskPretraining(make_config(edge_readout=True, atlases={"small": ATLASES["small"]})).eval()
    named.load_state_dict(unnamed.state_dict())
    expected = unnamed(connectivity).logits
    assert torch.equal(named(connectivity).logits, expected)
    assert torch.equal(named({"small": connectivity}).logits, expected)


@pytest.mark.parametrize("kind", [LCMForMultitaskPretraining, LCMForSequenceClassification])
def test_scans_are_read_by_the_atlases_that_they_have(several: LCMConfig, scans: dict[str, Tensor], kind: Any) -> None:
    model = make(several, kind)
    together = model(scans).logits
    alone = torch.cat([model(one(scans, row)).logits for row in range(4)])
    torch.testing.assert_close(together, alone)
    assert together.isfinite().all()
    assert not torch.allclose(model({"small": scans["small"][:1]}).logits, together[:1])


def test_regions_of_all_atlases_are_the_memory(several: LCMConfig, scans: dict[str, Tensor]) -> None:
    assert several.num_regions == NUM_REGIONS + 15
    model = make(several, LCMModel)
    model.set_attn_implementation("eager")
    whole = {name: part[:1] for name, part in scans.items()}
    assert model(whole, output_attentions=True).cross_attentions[0].shape[-1] == NUM_REGIONS + 15
    alone = torch.cat([model(one(scans, row)).last_hidden_state for row in range(4)])
    torch.testing.assert_close(model(scans).last_hidden_state, alone)
    with pytest.raises(ValueError, match="have different atlases"):
        model(scans, output_attentions=True)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("folded", [False, True])
def test_gradients_of_scans_with_different_atlases(
    several: LCMConfig, scans: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, folded: bool, implementation: str
) -> None:
    monkeypatch.setattr(fast_paths_lcm, "folding_pays", lambda *_: folded)
    model = make(several).double().eval()
    model.set_attn_implementation(implementation)
    scans = {name: part.double() for name, part in scans.items()}
    found = []
    for parts in ([scans], [one(scans, row) for row in range(4)]):
        model.zero_grad()
        sum(model(part).layer_logits.pow(2).sum() for part in parts).backward()
        found.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], msg=name)


def test_statistics_of_an_atlas_are_those_of_the_scans_that_have_it(
    several: LCMConfig, scans: dict[str, Tensor]
) -> None:
    model = make(several).double().train()
    for atlas in ATLASES:
        there = scans[atlas][[row for row in range(4) if not scans[atlas][row].isnan().any()]].double()
        stem, features = model.model.stem[atlas], model.edge_features[atlas]
        rows = stem.proj(there).flatten(0, 1)
        variance = 0.9 * stem.norm.running_var + 0.1 * rows.var(0)
        model({name: part.double() for name, part in scans.items()})
        torch.testing.assert_close(stem.norm.running_var, variance)
        edges = there.new_tensor([])
        for shrinkage in several.shrinkages:
            logarithms = matrix_logarithm(there, shrinkage)
            edges = torch.cat([edges, logarithms[:, *torch.triu_indices(*there.shape[1:], 1)].mean(0)])
        torch.testing.assert_close(features.mean, edges)
        model = make(several).double().train()


def test_a_batch_without_an_atlas_leaves_its_statistics_and_weights(
    several: LCMConfig, scans: dict[str, Tensor], labels: Tensor
) -> None:
    model = make(several).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    scans["large"] = torch.full_like(scans["large"], torch.nan)
    scans["small"][1] = scans["small"][0]
    model(scans, labels=labels).loss.backward()
    for name, tensor in model.state_dict().items():
        if "large" in name and "num_batches_tracked" not in name:
            assert torch.equal(tensor, before[name]), name
    unused = [weight.grad for name, weight in model.named_parameters() if "large" in name]
    # Zero, not None: several processes, of which another may have the atlas, add their gradients up.
    assert all(gradient is not None and not gradient.any() for gradient in unused)


def test_few_scans_of_an_atlas_move_its_mean_less(
    several: LCMConfig, make_connectivity: Callable[..., Tensor]
) -> None:
    features = LCMForMultitaskPretraining(several).edge_features["small"].train()
    features.batches.fill_(1000)
    scan = make_connectivity()[:1]
    features(scan, scans=20)
    few = features.mean.clone()
    features.mean.zero_()
    features(scan)
    torch.testing.assert_close(features.mean, 20 * few)


def test_what_each_atlas_counts(several: LCMConfig, scans: dict[str, Tensor]) -> None:
    new = LCMForMultitaskPretraining(several).bei_edge_readout.atlas_weights
    assert new.shape == (2, several.num_bei_tokens) and not new.any()
    model = make(several)
    weights = model.bei_edge_readout.atlas_weights.data.zero_()

    def of_edges(given: dict[str, Tensor]) -> Tensor:
        unknown = dict.fromkeys(given)
        return reading_lcm.edge_logits(model, given, atlas_batches_lcm.atlases_present(given), unknown)[0]

    given = {name: scans[name] for name in sorted(ATLASES)}
    alone = {name: of_edges({name: part[:1]}) for name, part in given.items()}
    torch.testing.assert_close(of_edges(given)[:1], sum(alone.values()) / 2)  # at first, alike
    torch.nn.init.normal_(weights)
    share = weights.softmax(0)
    expected = sum(share[number] * alone[name] for number, name in enumerate(sorted(ATLASES)))
    torch.testing.assert_close(of_edges(given)[:1], expected)
    # A scan in one atlas keeps the scale of its logits.
    torch.testing.assert_close(of_edges({"small": scans["small"][:1]}), alone["small"])
    model.train()(scans).logits.sum().backward()
    assert model.bei_edge_readout.atlas_weights.grad.abs().sum() > 0


def test_what_was_fitted_in_closed_form_is_read_from_its_edges_alone(
    make_config: Callable[..., LCMConfig], scans: dict[str, Tensor]
) -> None:
    config = make_config(atlases=ATLASES, edge_readout=True, edge_bias=True, closed_form=CLOSED)
    model = make(config)
    logits = model(scans).logits
    slices = config.token_slices
    # Age has no read-out of the large atlas, which is all that the second scan has; neither has sex.
    assert logits[:, slices["age"]].isnan()[:, 0].tolist() == [False, True, False, False]
    assert logits[:, slices["sex"]].isnan().any(1).tolist() == [False, True, False, False]
    assert logits[:, slices["state"]].isfinite().all()  # trained by gradients, on whatever there is
    # Sex of a scan in both is the joint read-out's, not that of one of them.
    edges = torch.cat([model.edge_features[name](scans[name][:1]) for name in sorted(ATLASES)], -1)
    torch.testing.assert_close(logits[:1, slices["sex"]], model.bei_edge_readout["large+small"](edges))
    torch.nn.init.normal_(model.score.weight)
    changed = model(scans).logits
    assert torch.equal(changed[[0, 2, 3]][:, slices["sex"]], logits[[0, 2, 3]][:, slices["sex"]])
    assert not torch.allclose(changed[:, slices["state"]], logits[:, slices["state"]])


def test_training_on_scans_with_different_atlases(
    several: LCMConfig, scans: dict[str, Tensor], labels: Tensor
) -> None:
    model = make(several).train()
    model(scans, labels=labels).loss.backward()
    missing = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert not missing
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def test_known_log_fc_of_every_atlas(several: LCMConfig, scans: dict[str, Tensor]) -> None:
    model = make(several)
    known = {name: torch.from_numpy(log_edges(part.numpy(), several.shrinkages)) for name, part in scans.items()}
    torch.testing.assert_close(model(scans, log_edges=known).logits, model(scans).logits)
    with pytest.raises(ValueError, match="log_edges has the atlases small; connectivity has"):
        model(scans, log_edges={"small": known["small"]})


def test_packed_weights_read_scans_with_different_atlases(several: LCMConfig, scans: dict[str, Tensor]) -> None:
    model = make(several)
    with torch.no_grad():
        expected = model(scans).logits
        found = pack(model, "float32")(scans).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_saved_and_loaded(make_config: Callable[..., LCMConfig], scans: dict[str, Tensor], tmp_path: Path) -> None:
    model = make(make_config(atlases=ATLASES, edge_readout=True, edge_shrinkages=[0.1, 0.4], closed_form=CLOSED))
    model.save_pretrained(tmp_path)
    loaded = LCMForMultitaskPretraining.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(scans).logits, model(scans).logits, equal_nan=True)
    task = LCMForSequenceClassification.from_pretrained(tmp_path, task_variable="sex", num_labels=2).eval()
    expected = model(scans).logits[:, model.config.token_slices["sex"]]
    torch.testing.assert_close(task(scans).logits, expected, equal_nan=True)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"other": torch.eye(NUM_REGIONS)[None]}, "has the atlases other; this model reads large, small"),
        ({}, "has the atlases none"),
        ({"small": torch.eye(15)[None]}, "needed are small: "),
        ({"small": torch.eye(12)[None], "large": torch.eye(15).expand(2, 15, 15)}, "of the same scans"),
        (torch.eye(9)[None], r"this model needs \(batch, 15, 15\) or \(batch, 12, 12\)"),
        (
            {name: torch.full((1, a["num_regions"], a["num_regions"]), torch.nan) for name, a in ATLASES.items()},
            "none of",
        ),
    ],
)
def test_batches_that_are_refused(several: LCMConfig, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LCMForMultitaskPretraining(several).eval()(given)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"atlases": {"a+b": {"num_regions": 9}}}, "without '.' and"),
        ({"atlases": {"a": {}}}, "num_regions of 'a'"),
        ({"atlases": {"a": {"num_regions": 3, "region_names": ["x"]}}}, "1 region_names"),
        ({"atlases": ATLASES, "edge_readout": True, "closed_form": {"small+large": {}}}, "in alphabetical order"),
        ({"edge_readout": True, "closed_form": {"atlas": {"height": {}}}}, "variables height"),
        ({"closed_form": {"atlas": {"sex": {}}}}, "needs edge_readout=True"),
        ({"edge_shrinkages": [0.2, 1.5]}, "must lie between 0 and 1"),
    ],
)
def test_configurations_that_are_refused(make_config: Callable[..., LCMConfig], settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_config(**settings)
