"""Several fine-tunings in one evaluation: what they share changes nothing, and their files do not mix."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.training.conftest import ATLAS
from training.data.cohort import load_cohort
from training.evaluation.arguments import EvaluateArguments
from training.evaluation.cross_validation import evaluate
from training.reporting.results import LCM, SCRATCH
from training.trainer.checkpoints import load_model, load_processor
from training.trainer.prediction import predict_logits


TASKS = {"sex": {}, "age": {"kind": "continuous"}, "group": {}}


@pytest.fixture
def ridge_files(write_config: Callable[..., str]) -> list[str]:
    """A file of the ridge head per task."""
    return [write_config(f"ridge_{task}", head="ridge", task=task, **more) for task, more in TASKS.items()]


@pytest.fixture
def arguments(
    evaluate_arguments: Callable[..., EvaluateArguments], ridge_files: list[str], tmp_path: Path
) -> EvaluateArguments:
    """An evaluation of all three tasks."""
    made = evaluate_arguments(output=str(tmp_path / "together"), baselines=["linear", "linear_best"], stratify="group")
    return replace(made, finetune=ridge_files, pretrain=None)


def results_of(folder: Path, task: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text())["tasks"][task] for path in sorted(folder.glob("fold_*/result.json"))]


def test_three_tasks_together_give_the_numbers_of_each_alone(arguments: EvaluateArguments, tmp_path: Path) -> None:
    together = evaluate(arguments)
    assert list(together.tasks) == list(TASKS)
    for task, file in zip(TASKS, arguments.finetune, strict=True):
        alone = evaluate(replace(arguments, finetune=file, output=str(tmp_path / task)))
        assert alone.tasks[task].models == together.tasks[task].models
        assert results_of(tmp_path / task, task) == results_of(tmp_path / "together", task)
        assert (tmp_path / "together" / f"report_{task}.html").is_file()
        assert (tmp_path / "together" / f"predictions_{task}.tsv").is_file()
        checkpoint = load_processor(str(tmp_path / "together" / "fold_1" / f"checkpoint_{task}"))
        assert checkpoint.tokenizer.task == task and checkpoint.limits is not None
    assert together.settings["fine-tuning, age"]["kind"] == "continuous"


@pytest.mark.parametrize(
    ("positive", "message"),
    [(["F"], "the tasks are sex, age, group: give VARIABLE=LABEL"), (["site=A"], "give VARIABLE=LABEL of one")],
)
def test_a_positive_label_says_whose_it_is(arguments: EvaluateArguments, positive: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(replace(arguments, positive=positive))


def test_one_task_twice_is_refused(arguments: EvaluateArguments) -> None:
    with pytest.raises(ValueError, match="Two files of finetune have the task 'sex'"):
        evaluate(replace(arguments, finetune=[arguments.finetune[0]] * 2))


def test_a_pretraining_serves_several_tasks(
    evaluate_arguments: Callable[..., EvaluateArguments], write_config: Callable[..., str]
) -> None:
    files = [
        write_config(f"short_{task}", epochs=1, momentum_epochs=0, batch_size=8, task=task)
        for task in ("sex", "group")
    ]
    found = evaluate(replace(evaluate_arguments(None, {"epochs": 1}, baselines=["scratch"]), finetune=files))
    assert list(found.tasks) == ["sex", "group"]
    assert all(set(task.models) == {LCM, SCRATCH} for task in found.tasks.values())


def test_sites_of_the_test_scans_are_those_given(
    arguments: EvaluateArguments, write_config: Callable[..., str], dataset: Path, tmp_path: Path
) -> None:
    """A fold's test scans are compared with the mean of their site as `training.predict` would: without any label."""
    file = write_config("beside", head="ridge", task="group", site_relative="always")
    evaluate(replace(arguments, finetune=file, output=str(tmp_path / "beside"), baselines=["majority"]))
    cohort = load_cohort(dataset)
    (result,) = results_of(tmp_path / "beside", "group")[:1]
    test = cohort.select(np.isin(cohort.table.index, result["rows"]))
    blind = replace(test, table=test.table.drop(columns="group"))
    model = load_model(str(tmp_path / "beside" / "fold_0" / "checkpoint"))
    assert model.config.closed_form[ATLAS]["group"]["site_gate"] == 0.5
    shares = predict_logits(model, blind)["logits"].double().softmax(1)
    np.testing.assert_allclose(shares[:, 0], result["predictions"][f"{LCM}: A"], atol=1e-4)
    apart = predict_logits(model, replace(blind, table=blind.table.drop(columns="site")))["logits"].double().softmax(1)
    assert not np.allclose(apart[:, 0], shares[:, 0], atol=1e-3)
