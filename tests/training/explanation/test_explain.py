"""Explanations: maps that add up, tests that find a planted effect and nothing else, stability, tables and page."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from modeling_lcm import LCMForMultitaskPretraining
from modeling_lcm.atlases import ATLASES, region_names
from tests.training.conftest import PEOPLE, REGIONS, SHORT, TINY
from training import explain
from training.data.cohort import Cohort
from training.evaluation.arguments import EvaluateArguments
from training.evaluation.cross_validation import evaluate
from training.explanation.arguments import ExplainArguments
from training.explanation.association import Maps, region_permutation_test, stability
from training.explanation.attention import attention_by_scan, best_layer, rollout
from training.explanation.explain import explain as explain_all
from training.explanation.report import why_none
from training.reporting.networks import network_of, networks_of


def test_rollout_carries_what_other_tokens_read() -> None:
    # Two tokens, three regions, two layers: in layer 1 each reads its own region; then token 0 listens to token 1.
    cross = torch.tensor([[[[1.0, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 1]]]])
    own = torch.tensor([[[[0.5, 0.5], [0.5, 0.5]], [[0, 1], [0, 1]]]])
    found = rollout(own, cross)[0]
    # Layer 1 leaves half of the map, layer 2: (half own + half of token 1's) / 2 + half of region 3.
    expected = torch.tensor([[0.125, 0.125, 0.5], [0, 0.25, 0.5]])
    torch.testing.assert_close(found, expected / expected.sum(-1, keepdim=True))


def test_attention_by_scan_is_the_models_own(cohort: Cohort, pretrained: Path) -> None:
    model = LCMForMultitaskPretraining.from_pretrained(pretrained, attn_implementation="eager")
    layers, rolled, logits = attention_by_scan(model, cohort.select(np.arange(5)), slice(0, 2), batch_size=2)
    assert layers.shape == (5, 2, 2, REGIONS)
    assert logits.shape == (5, 2, 2)
    np.testing.assert_allclose(layers.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(rolled.sum(-1), 1, atol=1e-5)
    with torch.no_grad():
        outputs = model(connectivity=torch.from_numpy(cohort.connectivity(np.array([3]))), output_attentions=True)
    np.testing.assert_allclose(layers[3, 1], outputs.cross_attentions[1][0].mean(0)[:2], atol=1e-6)
    np.testing.assert_allclose(logits[3], outputs.layer_logits[0, :, :2], atol=1e-5)


def test_best_layer_has_the_lowest_loss() -> None:
    values = np.array([0.0, 1, 1])
    good = np.array([[4.0, 0], [0, 4], [0, 4]])
    assert best_layer(np.stack([-good, good, 0 * good], axis=1), values, "categorical") == 1
    numbers = np.array([0.2, -1.0, 3.0])
    assert best_layer(np.stack([numbers + 1, numbers + 0.1], axis=1)[..., None], numbers, "continuous") == 1


def test_permutation_test_finds_the_planted_region_and_shuffles_within_models() -> None:
    rng = np.random.default_rng(0)
    values = np.tile([0.0, 1], 40)
    attention = rng.normal(size=(80, 12))
    attention[:, 4] += 2 * values
    attention[:, 7] = 1.0  # everybody alike
    correlation, p = region_permutation_test(attention, values, np.zeros(80), 300, 0)
    assert np.argmin(p) == 4
    assert p[4] == 1 / 301
    assert (correlation[7], p[7]) == (0, 1)
    assert (p[np.arange(12) != 4] > 0.01).all()
    np.testing.assert_allclose(correlation[4], np.corrcoef(attention[:, 4], values)[0, 1])
    # Two models that differ in their maps, and were shown other shares of patients: that is no association.
    strata = np.repeat([0, 1], 40)
    confounded = rng.normal(size=(80, 12)) + 5 * strata[:, None]
    labels = (rng.random(80) < np.where(strata == 1, 0.9, 0.1)).astype(float)
    assert np.median(region_permutation_test(confounded, labels, np.zeros(80), 200, 0)[1]) < 0.01
    assert np.median(region_permutation_test(confounded, labels, strata, 200, 0)[1]) > 0.1
    assert region_permutation_test(attention, np.ones(80), np.zeros(80), 100, 0)[1].tolist() == [1.0] * 12


def test_stability_tells_shared_maps_from_noise() -> None:
    rng = np.random.default_rng(0)
    values, folds = np.tile([0.0, 1], 60), np.repeat(np.arange(3), 40)
    effect = np.outer(values, np.r_[np.ones(10), np.zeros(20)])
    shared = 3 * rng.normal(size=30) + effect + 0.3 * rng.normal(size=(120, 30))
    own = 3 * rng.normal(size=(3, 30))[folds] + 0.3 * rng.normal(size=(120, 30))
    assert min(stability(shared, values, folds, 0)) > 0.8
    assert max(map(abs, stability(own, values, folds, 0))) < 0.5
    assert min(stability(shared, values, np.zeros(120), 0)) > 0.8
    assert abs(stability(rng.normal(size=(120, 30)), values, np.zeros(120), 0)[1]) < 0.4
    assert stability(np.ones((120, 30)), values, folds, 0) == (0, 0)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("7Networks_LH_Vis_1", ("Vis", "LH")),
        ("RH_Default_PFC_1", ("Default", "RH")),
        ("ParaHippocampal_R", ("medial temporal", "RH")),
        ("Vermis_1_2", ("cerebellum", "")),
        ("Area_55b", None),
    ],
)
def test_networks_from_names(name: str, found: tuple[str, str] | None) -> None:
    assert network_of(name) == found


def test_every_region_of_the_shipped_atlases_has_a_network() -> None:
    for atlas in ("aal-116", "schaefer-200"):
        groups = networks_of(region_names(atlas))
        assert groups is not None
        assert len(groups) == ATLASES[atlas].num_regions
        assert len(set(groups)) < 25
    assert networks_of(["Precentral_L", "Area_55b"]) is None
    assert networks_of(None) is None


def test_explain_a_checkpoint(pretrained: Path, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    explain.main(
        f"--permutations 100 --method best_layer --checkpoint {pretrained} --data {dataset} "
        f"--output {tmp_path / 'out'}".split()
    )
    printed = capsys.readouterr().out
    assert "sex=F: attention to" in printed
    assert f"{PEOPLE} subjects" in printed
    assert "random halves of the subjects" in printed
    table = pd.read_csv(tmp_path / "out" / "regions.tsv", sep="\t")
    assert table.groupby("token", sort=False).size().to_dict() == {"sex=F": REGIONS, "sex=M": REGIONS, "age": REGIONS}
    for method in ("mean", "rollout", "best_layer"):
        np.testing.assert_allclose(table.groupby("token")[f"{method}_attention"].mean(), 1, atol=1e-4)
        assert (table[f"{method}_q"] >= table[f"{method}_p"] - 1e-5).all()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [entry["token"] for entry in summary] == ["sex=F", "sex=M", "age"]
    page = (tmp_path / "out" / "explanation.html").read_text()
    assert "Attention says where a token looks" in page
    reads_edges = LCMForMultitaskPretraining.from_pretrained(pretrained).config.edge_readout
    assert ("This model also reads every edge" in page) == reads_edges
    assert "http" not in page
    assert f"What the tokens of {dataset.name} read" in page  # several variables of a folder called "checkpoint"
    explain.main(
        f"--permutations 100 --variables sex --checkpoint {pretrained} --data {dataset} "
        f"--output {tmp_path / 'one'}".split()
    )
    assert "What the tokens of sex read" in (tmp_path / "one" / "explanation.html").read_text()


@pytest.mark.parametrize(("stable", "q"), [(0.9, 0.01), (0.1, 0.01), (0.9, 0.5), (0.1, 0.5)])
def test_a_map_is_drawn_where_it_is_stable_and_beyond_chance(stable: float, q: float) -> None:
    values = np.full(REGIONS, q)
    reason = why_none(Maps(values, {}, values, values, np.append(values, 1.0), stable, stable))
    assert (reason is None) == (stable > 0.5 and q < 0.05)
    assert ("not stable" in (reason or "")) == (stable < 0.5)
    assert ("beyond chance" in (reason or "")) == (q > 0.05)


def test_explain_an_evaluation(
    dataset: Path, write_config: Callable[..., str], tmp_path: Path, cohort: Cohort
) -> None:
    settings = {**TINY, **SHORT, "epochs": 15, "learning_rate": 5e-3, "categorical": ["group"], "continuous": []}
    common = {"data": str(dataset), "pretrain": write_config("p", **settings), "baselines": ["majority"], "n_folds": 2}
    evaluate(EvaluateArguments(output=str(tmp_path / "e"), resamples=0, workers=1, **common))
    found = explain_all(
        ExplainArguments(
            evaluation=str(tmp_path / "e"), data=str(dataset), output=str(tmp_path / "out"), permutations=200
        )
    )
    assert [entry.label for entry in found] == ["A", "B"]
    assert found[0].people == PEOPLE
    assert len(found[0].best_layers) == 2
    assert "2 folds" in found[0].sentence("mean")
    # Every scan is shown to the model that was not trained on it, and the label's subjects are told from the others.
    labels = cohort.table["group"].to_numpy()[found[0].scans]
    assert ((labels == "A") == found[0].has_label).all()
    # Groups differ in the first and last four regions, and so does the attention to some of them.
    assert min(found[0].maps["mean"].p) <= 0.01


def test_mistakes(pretrained: Path, dataset: Path, tmp_path: Path) -> None:
    for settings, message in (
        ({}, "Give either checkpoint or evaluation"),
        ({"checkpoint": "a", "evaluation": "b"}, "Give either checkpoint or evaluation"),
        ({"checkpoint": "a", "method": "gradient"}, "method must be one of mean, rollout, best_layer"),
        ({"checkpoint": "a", "permutations": 5}, "permutations must be at least 100"),
    ):
        with pytest.raises(ValueError, match=message):
            ExplainArguments(**settings)
    known = {"checkpoint": str(pretrained), "data": str(dataset), "output": str(tmp_path / "x")}
    with pytest.raises(ValueError, match="has no variable state; it has sex, age"):
        explain_all(ExplainArguments(**known, variables=["state"]))
