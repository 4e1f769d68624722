"""Open weights: read-outs of several cohorts, pooled by atlas, and the study of few labels that uses them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from modeling_lcm import LCMForMultitaskPretraining, LCMProcessor
from training.data.cohort import load_cohort
from training.data.identity import seen_subjects
from training.few_labels import main as few_labels
from training.open_weights import main as open_weights
from training.trainer.checkpoints import read_record
from training.trainer.open_heads import NAMES, _read, evaluate_pool, fit_pool, load_pool


@pytest.fixture
def recipe(dataset: Path, other_cohort: Path, tmp_path: Path) -> Path:
    """Two cohorts of one atlas."""
    content = {
        "variables": {
            "group": {"kind": "categorical", "labels": ["A", "B"]},
            "sex": {"kind": "categorical", "labels": ["M", "F"]},
            "age": {"kind": "continuous", "unit": "years", "log": True},
        },
        "cohorts": {
            "first": {"data": [str(dataset)]},
            "second": {"data": [str(other_cohort)], "only": {"site": ["x"]}},
        },
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_cohorts_are_pooled_and_only_certain_labels_count(recipe: Path, dataset: Path) -> None:
    pool = load_pool("", recipe)
    first = load_cohort(dataset)
    assert (pool.table["cohort"] == "first").sum() == len(first)
    assert len(pool.rows[first.feature_extractor.atlas]) == len(pool.table)
    second = pool.table["cohort"] == "second"
    assert 0 < pool.table.loc[second, "group"].notna().sum() < second.sum()
    np.testing.assert_array_equal(pool.table.loc[~second, "group"], (first.table["group"] == "B").astype(float))
    heads = fit_pool(pool)[first.feature_extractor.atlas]
    assert heads["group"].record["scans"] == pool.table["group"].notna().sum()
    assert heads["group"].record["auc"] > 0.8
    scores = pd.DataFrame(evaluate_pool(pool, folds=3))
    assert scores[(scores["variable"] == "group") & (scores["cohort"] == "first")]["auc"].item() > 0.8


def test_subjects_of_two_cohorts_are_known_as_one(dataset: Path) -> None:
    """By the columns `same_person_in_COHORT`, with the recipe's names of the cohorts."""
    cohort = load_cohort(dataset)
    records = cohort.table.assign(same_person_in_first=["1", *[None] * (len(cohort) - 1)])
    read = [_read(records, "first", {}, []), _read(records, "second", {}, [])]
    names = [set(each[NAMES].iloc[0]) for each in read]
    assert names[0] & names[1] == {"first/1"}
    assert not set(read[0][NAMES].iloc[1]) & set(read[1][NAMES].iloc[1])


def test_command_writes_a_checkpoint_that_knows_its_subjects(recipe: Path, dataset: Path, tmp_path: Path) -> None:
    output = tmp_path / "open"
    open_weights(["--data", str(tmp_path), "--recipe", str(recipe), "--output", str(output), "--folds", "2"])
    processor = LCMProcessor.from_pretrained(output)
    cohort = load_cohort(dataset)
    model = LCMForMultitaskPretraining.from_pretrained(output).eval()
    inputs = processor(connectivity=cohort.connectivity(), return_tensors="pt")
    predicted = [record["group"]["label"] for record in processor.post_process(model(**inputs))]
    assert (np.array(predicted) == cohort.table["group"]).mean() > 0.8
    assert processor.limits.of_atlas(cohort.feature_extractor.atlas).check(cohort.connectivity()[:1])[0].beyond > 0
    record = read_record(output)
    assert "training_subjects" not in record
    table = cohort.table.assign(dataset="first")
    assert len(seen_subjects(record, table)) == len(cohort)
    assert not seen_subjects(record, table.assign(dataset="third"))
    assert not list(output.glob("*.py"))


def test_few_label_study(recipe: Path, dataset: Path, tmp_path: Path) -> None:
    atlas = load_cohort(dataset).feature_extractor.atlas
    job = {"name": "to itself", "from": {"cohort": "first", "site": ["x"]}, "to": {"cohort": "first", "site": ["y"]}}
    jobs = tmp_path / "jobs.yaml"
    # At the other cohort's site z, no group is certain: there is no prior.
    unknown = {"name": "from nothing", "from": {"cohort": "second", "not_site": ["x"]}, "to": {"cohort": "first"}}
    every = [each | {"atlas": atlas, "variables": ["group"]} for each in (job, unknown)]
    jobs.write_text(yaml.safe_dump({"jobs": every}), encoding="utf-8")
    output = tmp_path / "few"
    arguments = ["--recipe", str(recipe), "--jobs", str(jobs), "--labels", "6", "9", "--draws", "3"]
    few_labels(["--data", str(tmp_path), "--output", str(output), *arguments])
    scores = pd.read_csv(output / "scores.tsv", sep="\t")
    assert scores.groupby(["job", "labels", "method"]).size().unique().tolist() == [3]
    wide = scores[scores["job"] == "from nothing"].pivot(index=["labels", "draw"], columns="method", values="score")
    assert wide["pretrained"].tolist() == wide["from scratch"].tolist()
    assert set(scores["labels"]) == {6, 9}
    assert "| to itself | group | 6 |" in (output / "few_labels.md").read_text(encoding="utf-8")
    assert (output / "few_labels.png").stat().st_size > 1000


def test_a_missing_data_set_is_named(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    content["cohorts"]["third"] = {"data": ["nowhere"]}
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    with pytest.raises(SystemExit):
        open_weights(["--data", str(tmp_path), "--recipe", str(recipe), "--output", str(tmp_path / "open")])
    assert "nowhere" in capsys.readouterr().err
