"""`head: ridge`: fine-tuning in closed form, from a checkpoint or without one, and predictions with it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from modeling_lcm import FCFeatureExtractor
from tests.training.conftest import ATLAS
from training.data.cohort import AtlasScans, Cohort
from training.data.triangles import to_triangles
from training.explanation.arguments import ExplainArguments
from training.explanation.explain import explain
from training.finetune import main as finetune_command
from training.predict import main as predict_command
from training.trainer.arguments import FinetuneArguments
from training.trainer.checkpoints import load_model, save_checkpoint
from training.trainer.finetuning import finetune
from training.trainer.prediction import predict_logits, predict_table
from training.trainer.runs import record_of


@pytest.fixture
def ridge(finetune_arguments: Callable[..., FinetuneArguments]) -> FinetuneArguments:
    """Settings of the closed form without a checkpoint."""
    return finetune_arguments(head="ridge", checkpoint="", task="group")


@pytest.fixture
def in_two_atlases(cohort: Cohort) -> Cohort:
    """The cohort, whose scans have a second atlas, but for the first two, which lack it."""
    rng = np.random.default_rng(0)
    other = np.stack([np.corrcoef(rng.normal(size=(12, 50))) for _ in range(len(cohort))])
    triangles = to_triangles(other)
    triangles[:2] = np.nan
    return replace(cohort, others=(AtlasScans(FCFeatureExtractor("other-12", num_regions=12), triangles),))


def test_learns_without_a_checkpoint_and_says_how_well(cohort: Cohort, ridge: FinetuneArguments) -> None:
    said: list[str] = []
    model, processor, history = finetune(cohort, ridge, announce=said.append)
    assert history == []
    assert predict_logits(model, cohort)["logits"].argmax(1).tolist() == [0, 1] * (len(cohort) // 2)
    assert processor.tokenizer.task == "group"
    assert processor.limits is not None
    assert "left out by subject AUC" in said[-1] and "sensitivity" in said[-1]


def test_commands(dataset: Path, other_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint with closed-form read-outs is the prior of the next fit; a network's is none, and that is said."""
    base, again, table = tmp_path / "base", tmp_path / "again", tmp_path / "predictions.tsv"
    common = ["--head", "ridge", "--task", "group"]
    finetune_command([*common, "--data", str(dataset), "--output", str(base)])
    few = ["--checkpoint", str(base / "checkpoint"), "--labels_per_class", "4"]
    finetune_command([*common, "--data", str(other_cohort), "--output", str(again), *few])
    assert "prior used: " in capsys.readouterr().out
    predict_command(["--checkpoint", str(again / "checkpoint"), "--data", str(dataset), "--output", str(table)])
    predicted = pd.read_csv(table, sep="\t")
    assert (predicted["group"] == np.array(["A", "B"] * 12)).mean() > 0.9
    np.testing.assert_allclose(predicted["group=A"] + predicted["group=B"], 1, atol=1e-3)


def test_a_number(cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments]) -> None:
    arguments = finetune_arguments(head="ridge", checkpoint="", task="score", kind="continuous", labels=None)
    model, processor, _ = finetune(cohort, arguments)
    values = processor.tokenizer.task_variable.values(predict_logits(model, cohort)["logits"][:, 0].numpy())
    assert np.corrcoef(values, cohort.table["score"])[0, 1] > 0.9


def test_probabilities_follow_the_prevalence_and_labels_do_not(
    cohort: Cohort, ridge: FinetuneArguments, tmp_path: Path
) -> None:
    few = cohort.select(np.sort(np.r_[0:24:2, 1:7:2]))  # twelve A, three B
    model, processor, _ = finetune(few, ridge)
    folder = save_checkpoint(tmp_path / "checkpoint", model, processor, ridge, {})
    table, _ = predict_table(str(folder), cohort)
    odds = predict_logits(model, cohort)["logits"].double()
    assert table["group"].tolist() == [["A", "B"][best] for best in odds.argmax(1).tolist()]
    expected = (odds + torch.tensor([0.8, 0.2], dtype=torch.float64).log()).softmax(1)
    np.testing.assert_allclose(table[["group=A", "group=B"]], expected, atol=1e-5)


def test_several_atlases(in_two_atlases: Cohort, ridge: FinetuneArguments, tmp_path: Path) -> None:
    model, processor, _ = finetune(in_two_atlases, ridge)
    first, second = in_two_atlases.atlases
    assert sorted(model.config.closed_form) == sorted([first, second, f"{first}+{second}"])
    folder = str(save_checkpoint(tmp_path / "checkpoint", model, processor, ridge, {}))
    together = predict_logits(load_model(folder), in_two_atlases)["logits"]
    alone = in_two_atlases.with_atlas(first)
    assert len(predict_table(folder, alone)[0]) == len(alone)
    torch.testing.assert_close(predict_logits(model, alone)["logits"][:2], together[:2])
    # The same fit from one atlas of the checkpoint, and a data set that has none of them.
    again, _, _ = finetune(alone, replace(ridge, checkpoint=folder))
    assert [*again.config.closed_form] == [first]
    other = Cohort(alone.table, alone.triangles, FCFeatureExtractor("third-10", num_regions=10))
    with pytest.raises(ValueError, match=f"has the atlases {first}, {second}, the data third-10"):
        predict_table(folder, other)


def test_a_network_is_no_prior(
    cohort: Cohort, pretrained: Path, ridge: FinetuneArguments, caplog: pytest.LogCaptureFixture
) -> None:
    model, processor, _ = finetune(cohort, replace(ridge, checkpoint=str(pretrained)))
    assert [variable.name for variable in processor.tokenizer.variables] == ["group"]
    assert predict_logits(model, cohort)["logits"].argmax(1).tolist() == [0, 1] * (len(cohort) // 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "nothing"}, "no phenotype 'nothing'"),
        ({"labels": ["A", "C"]}, "labels"),
        ({"labels_per_class": 13}, "13 are needed"),
    ],
)
def test_refusals(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], settings: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        finetune(cohort, finetune_arguments(**({"head": "ridge", "checkpoint": "", "task": "group"} | settings)))


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="leave out validation_fraction and adapter"):
        FinetuneArguments(head="ridge", validation_fraction=0.2)
    with pytest.raises(ValueError, match="head must be one of decoder, ridge"):
        FinetuneArguments(head="svm")


def test_subjects_whom_the_checkpoint_knows_get_no_prior(
    cohort: Cohort, ridge: FinetuneArguments, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its read-out fits their labels: with it as prior, scores of subjects left out would be too good."""
    model, processor, _ = finetune(cohort, ridge)
    folder = save_checkpoint(tmp_path / "checkpoint", model, processor, ridge, record_of(cohort, []))
    again = replace(ridge, checkpoint=str(folder))
    assert finetune(cohort, again)[0].config.closed_form[ATLAS]["group"]["prior"] == 0
    assert "Prior used: none, subjects of the data were among those" in caplog.text


def test_what_needs_a_decoder_is_refused(
    dataset: Path,
    cohort: Cohort,
    ridge: FinetuneArguments,
    finetune_arguments: Callable[..., FinetuneArguments],
    tmp_path: Path,
) -> None:
    model, processor, _ = finetune(cohort, ridge)
    folder = str(save_checkpoint(tmp_path / "checkpoint", model, processor, ridge, {}))
    with pytest.raises(ValueError, match="fine-tune it with --head ridge"):
        finetune(cohort, finetune_arguments(checkpoint=folder, task="group"))
    with pytest.raises(ValueError, match="nothing to explain by attention"):
        explain(ExplainArguments(checkpoint=folder, data=str(dataset), output=str(tmp_path / "maps")))


def test_scans_are_compared_with_their_sites(
    cohort: Cohort, ridge: FinetuneArguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At prediction the site's mean is of all scans given and the training scans; without a site that is said."""
    said: list[str] = []
    beside = replace(ridge, site_relative="always")
    model, processor, _ = finetune(cohort, beside, announce=said.append)
    assert said[-1] == "  compared with the site by 0.5, with too few sites or scans to choose"
    folder = str(save_checkpoint(tmp_path / "checkpoint", model, processor, beside, {}))
    new = replace(cohort, table=cohort.table.assign(site=["x"] * 4 + ["new"] * 19 + [None]))
    table, _ = predict_table(folder, new)
    assert table["site_mean"][0] == "x: mean of 4 scans given and 12 of training"
    assert table["site_mean"][5] == "new: mean of 19 scans given"
    assert table["site_mean"][23] == "site not recorded: compared with the training mean"
    nowhere = replace(cohort, table=cohort.table.drop(columns="site"))
    assert predict_table(folder, nowhere)[0]["site_mean"].unique().tolist() == [table["site_mean"][23]]
    # By hand: the scans of one site, whose mean is subtracted.
    connectivity = torch.from_numpy(cohort.connectivity())
    read = model(connectivity).site_logits[4:23]
    expected = model(connectivity).logits[4:23] - read.sum(0) / 29
    torch.testing.assert_close(predict_logits(model, new)["logits"][4:23], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="no phenotype 'site'"):
        finetune(nowhere, beside)
    with pytest.raises(ValueError, match="site_relative is for the ridge head"):
        FinetuneArguments(site_relative="auto")


def test_command_says_which_sites_are_not_known(
    dataset: Path, other_cohort: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, table = tmp_path / "base", tmp_path / "predictions.tsv"
    site = ["--head", "ridge", "--task", "group", "--site_relative", "always"]
    finetune_command([*site, "--data", str(dataset), "--output", str(base)])
    predict_command(["--checkpoint", str(base / "checkpoint"), "--data", str(other_cohort), "--output", str(table)])
    said = capsys.readouterr().out
    assert "compared with the site by 0.5" in said
    assert "Compared with the mean of their site: " in said
    assert pd.read_csv(table, sep="\t")["site_mean"].str.startswith("x: mean of ").any()
