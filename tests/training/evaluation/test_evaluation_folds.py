"""Folds of an evaluation: repeats, sites, subjects with two ids, other cohorts; and designs that are refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import training.evaluate
import training.evaluation.cross_validation
import training.evaluation.design
from tests.training.conftest import PEOPLE, Study
from training.data.cohort import Cohort
from training.data.combine import pool
from training.data.folds import Folds, make_folds
from training.evaluation.arguments import EvaluateArguments
from training.evaluation.metrics import classification_metrics
from training.preparation.arguments import PrepareArguments
from training.preparation.build import prepare
from training.trainer.checkpoints import read_record


def test_repeats_and_ensembles(pretraining_only: Callable[..., EvaluateArguments], tmp_path: Path) -> None:
    metrics = training.evaluation.cross_validation.evaluate(pretraining_only(tasks=["group"], repeats=2, ensemble=2))
    result = metrics.tasks["group"]
    assert len(result.models["LCM"]["accuracy"].per_fold) == 4
    assert len(set(result.protocol["split_checksum"])) == 2
    splits = [Folds.load(tmp_path / "folds" / f"splits_{repeat}.json") for repeat in range(2)]
    assert [each.seed for each in splits] == [0, 1]
    # The ensemble's probabilities are the mean of its members', and a member's own scores stay visible.
    assert [len(members) for members in result.members] == [2] * 4
    alone = [np.mean([member["roc_auc"] for member in members]) for members in result.members]
    np.testing.assert_allclose(result.models["LCM, one seed"]["roc_auc"].per_fold, alone)
    seeds = [
        json.loads((tmp_path / "folds" / place / "pretrained" / "training_record.json").read_text())["arguments"][
            "seed"
        ]
        for place in ("repeat_0_fold_0/member_0", "repeat_0_fold_0/member_1", "repeat_1_fold_1/member_1")
    ]
    assert seeds == [0, 1, 3]
    table = pd.read_csv(tmp_path / "folds" / "predictions_group.tsv", sep="\t")
    assert table.groupby("repeat").size().tolist() == [PEOPLE, PEOPLE]
    part = table[(table["repeat"] == 1) & (table["fold"] == 1)]
    score = classification_metrics(part["group"] == "B", part[["LCM: A", "LCM: B"]], ["A", "B"])
    np.testing.assert_allclose(result.models["LCM"]["brier"].per_fold[3], score["brier"], atol=1e-4)


def test_leave_site_out(pretraining_only: Callable[..., EvaluateArguments], tmp_path: Path, cohort: Cohort) -> None:
    metrics = training.evaluation.cross_validation.evaluate(pretraining_only(split="leave_site_out", tasks=["group"]))
    assert metrics.tasks["group"].protocol["split"] == "one site left out at a time"
    table = pd.read_csv(tmp_path / "folds" / "predictions_group.tsv", sep="\t", dtype={"subject_id": str})
    sites = cohort.table.set_index("subject_id")["site"]
    assert [set(sites.loc[part["subject_id"]]) for _, part in table.groupby("fold")] == [{"x"}, {"y"}]


def test_a_person_with_two_ids_stays_on_one_side(
    use_table: Callable[..., Cohort], pretraining_only: Callable[..., EvaluateArguments]
) -> None:
    family = [None if number % 4 == 3 else f"family {number // 2 % 8}" for number in range(PEOPLE)]
    use_table(family=family)
    design = training.evaluation.design.make_design(pretraining_only(same_person="family"))
    recorded = design.cohort.table["recorded_subject_id"]
    assert recorded.nunique() == PEOPLE
    for seed in range(5):
        folds = make_folds(design.tested.table, 2, seed, "group")
        for fold in range(2):
            parts = design.fold(folds, fold)
            known = [{family[scan] for scan in part.table.index} - {None} for part in (parts.training, parts.test)]
            assert not known[0] & known[1]
            assert sorted([*parts.training.table.index, *parts.test.table.index]) == list(range(PEOPLE))
    with pytest.raises(ValueError, match="same_person names the column 'twin', which is not in the data"):
        training.evaluation.design.make_design(pretraining_only(same_person="twin"))
    use_table(all="one")
    with pytest.raises(ValueError, match="all scans are of one subject"):
        training.evaluation.design.make_design(pretraining_only(same_person="all"))


def test_other_cohorts_join_the_pretraining_without_tested_people(
    pretraining_only: Callable[..., EvaluateArguments],
    use_table: Callable[..., Cohort],
    other_cohort: Path,
    tmp_path: Path,
) -> None:
    use_table(same_person_in_other=[None, None, "p0", None, None, None, "p2", *[None] * (PEOPLE - 7)])
    arguments = pretraining_only({"categorical": ["sex", "disease"]}, train_data=[str(other_cohort)])
    design = training.evaluation.design.make_design(arguments)
    assert [task.name for task in design.recipe.tasks] == ["sex", "age"]  # nobody who is tested has a disease record
    assert (len(design.tested), len(design.cohort.table)) == (PEOPLE, 2 * PEOPLE)
    ids = design.cohort.table["subject_id"].tolist()
    assert (ids[PEOPLE], ids[PEOPLE + 1], ids[PEOPLE + 2]) == ("0003", "other/p1", "0007")
    metrics = training.evaluation.cross_validation.evaluate(arguments)
    assert metrics.tasks["sex"].n_subjects == PEOPLE
    assert metrics.protocol["other_cohorts"].startswith("24 scans of")
    folds = Folds.load(tmp_path / "folds" / "splits.json")
    for fold, tested in enumerate(folds.test_subjects):
        record = read_record(tmp_path / "folds" / f"fold_{fold}" / "pretrained")
        assert not set(record["training_subjects"]) & set(tested)
        shared = len({"0003", "0007"} & set(tested))
        assert record["num_training_scans"] == 2 * PEOPLE - len(tested) - shared
        assert {"other/p1", "other/p3"} <= set(record["training_subjects"])


def test_the_same_cohort_as_training_data_adds_nobody_who_is_tested(cohort: Cohort, dataset: Path) -> None:
    pooled, sizes = pool(cohort, str(dataset), [str(dataset)])
    assert sizes == [PEOPLE, PEOPLE]
    assert pooled.table["subject_id"].tolist() == 2 * cohort.table["subject_id"].tolist()
    np.testing.assert_array_equal(pooled.triangles[:PEOPLE], pooled.triangles[PEOPLE:])


def test_near_identical_scans_of_two_subjects_are_told(
    pretraining_only: Callable[..., EvaluateArguments], use_table: Callable[..., Cohort]
) -> None:
    use_table()
    design = training.evaluation.design.make_design(pretraining_only())
    near = training.evaluation.cross_validation._near_identical
    assert not near(design)
    triangles = design.cohort.triangles[:]
    triangles[5] = triangles[3] + np.float16(0.002)
    twins = replace(design, cohort=replace(design.cohort, triangles=triangles))
    for lines in training.evaluation.cross_validation._remarks(twins).values():
        assert lines[-1].startswith("1 pairs of scans of different subjects have near-identical FC, such as 0004 and")
    same = twins.cohort.table.assign(subject_id=twins.cohort.table["subject_id"].replace("0006", "0004"))
    one = replace(twins, cohort=replace(twins.cohort, table=same))
    assert not near(one)  # scans of one subject stay together
    joining = replace(twins, part=np.array(["tested"] * 3 + ["joins"] * (PEOPLE - 3), dtype=object))
    assert not near(joining)  # neither of them is tested


def test_cohorts_that_do_not_fit(
    pretraining_only: Callable[..., EvaluateArguments], study: Study, tmp_path: Path, dataset: Path, cohort: Cohort
) -> None:
    other = prepare(
        PrepareArguments(
            output=str(tmp_path / "renamed"),
            participants=str(study.folder / "participants.tsv"),
            connectivity=str(study.folder / "fc.npz"),
            atlas="another-10",
        )
    )
    with pytest.raises(ValueError, match=r"cannot join the training .* atlas is 'another-10' there and 'made-up-10'"):
        training.evaluation.design.make_design(pretraining_only(train_data=[str(other)]))
    cohort.table["site"] = np.arange(PEOPLE)
    with pytest.raises(ValueError, match=r"'site' holds numbers in one of .*, text in the other"):
        pool(cohort, "here", [str(dataset)])


def test_external_data_are_predicted_by_models_of_the_whole_cohort(
    evaluate_arguments: Callable[..., EvaluateArguments],
    use_table: Callable[..., Cohort],
    other_cohort: Path,
    tmp_path: Path,
) -> None:
    use_table(same_person_in_other=[None, None, "p0", None, None, None, "p2", *[None] * (PEOPLE - 7)])
    results = training.evaluation.cross_validation.evaluate(
        evaluate_arguments(
            {"epochs": 15, "learning_rate": 5e-3, "labels_per_class": None}, external=[str(other_cohort)]
        )
    )
    (metrics,) = results.tasks.values()
    found = metrics.external["other"]
    assert (found.n_subjects, found.protocol["folds"]) == (PEOPLE, 1)
    assert set(found.models) == {"LCM", "linear", "majority"}
    assert found.models["linear"]["roc_auc"].per_fold[0] > 0.8
    record = read_record(tmp_path / "folds" / "external_other_0" / "checkpoint")
    assert not {"0003", "0007"} & set(record["training_subjects"])
    assert len(record["training_subjects"]) == PEOPLE - 2
    table = pd.read_csv(tmp_path / "folds" / "external_other_predictions.tsv", sep="\t")
    assert len(table) == PEOPLE
    assert "External test on other" in (tmp_path / "folds" / "report.html").read_text()


def test_external_data_without_the_task(
    evaluate_arguments: Callable[..., EvaluateArguments], other_cohort: Path
) -> None:
    arguments = evaluate_arguments({"task": "score", "kind": "continuous", "epochs": 1}, external=[str(other_cohort)])
    with pytest.raises(ValueError, match="has no value of score that the tested cohort knows"):
        training.evaluation.cross_validation.evaluate(arguments)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
        ({"split": "random"}, "split must be one of kfold, leave_site_out, got 'random'"),
        ({"repeats": 2, "split": "leave_site_out"}, "repeats draws new folds each time, which split 'leave_site_out'"),
        ({"repeats": 2, "splits": "x.json"}, r"which splits \(a split file\) cannot: use ensemble"),
        ({"finetune": "x.yaml", "tasks": ["sex"]}, "with finetune its tasks are scored"),
        ({"finetune": "x.yaml", "train_data": ["b"]}, "train_data joins the pretraining of every fold"),
        (
            {"baselines": ["svn"]},
            r"baselines must be one of majority, linear, linear_log, linear_best, .*got .svn",
        ),
        ({"pretrain": "x.yaml", "baselines": ["scratch"]}, "it needs finetune"),
        ({"resamples": -1}, "resamples must be at least 0"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluateArguments(**settings)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("group", ["A"] * PEOPLE, "'group' is A for everybody in the tested cohort: nothing to predict"),
        ("group", [None] * PEOPLE, "'group' is recorded for nobody in the tested cohort"),
        ("sex", ["M"] * (PEOPLE - 1) + ["F"], "The class 'F' of 'sex' has one subject"),
    ],
)
def test_cohorts_that_cannot_be_evaluated(
    column: str,
    values: list,
    message: str,
    pretraining_only: Callable[..., EvaluateArguments],
    use_table: Callable[..., Cohort],
) -> None:
    use_table(**{column: values})
    with pytest.raises(ValueError, match=message):
        training.evaluation.cross_validation.evaluate(
            pretraining_only(tasks=[column], stratify=None if column == "group" else "group")
        )


def test_folds_that_cannot_be_evaluated(
    pretraining_only: Callable[..., EvaluateArguments], use_table: Callable[..., Cohort], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="must lie between 2 and 24, the number of subjects; got 25"):
        training.evaluation.cross_validation.evaluate(pretraining_only(n_folds=25, output=str(tmp_path / "a")))
    use_table(site=["x"] * 13 + ["y"] * 11, sex=["M", "F"] * 6 + ["M"] + ["F"] * 11)
    with pytest.raises(ValueError, match="No training subject of fold 0 has M of 'sex'"):
        training.evaluation.cross_validation.evaluate(
            pretraining_only(split="leave_site_out", output=str(tmp_path / "b"))
        )
    use_table(age=[30.0, 40.0] + [None] * (PEOPLE - 2))
    folds = Folds((("0020", "0021"),), 0)
    folds.save(tmp_path / "splits.json")
    with pytest.raises(ValueError, match="No test subject has a value of 'age'"):
        training.evaluation.cross_validation.evaluate(
            pretraining_only(tasks=["age"], splits=str(tmp_path / "splits.json"), output=str(tmp_path / "c"))
        )
