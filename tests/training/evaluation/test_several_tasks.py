"""Several fine-tunings in one evaluation: what they share changes nothing, and their files do not mix."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.evaluation.arguments import EvaluateArguments
from training.evaluation.cross_validation import evaluate
from training.reporting.results import LCM, SCRATCH
from training.trainer.checkpoints import load_processor


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
