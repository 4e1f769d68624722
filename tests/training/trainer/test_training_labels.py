"""Which labels training sees: unlabelled subjects, pseudo-labels, few labels, subjects held back for validation."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import training.trainer.finetuning
from modeling_lcm import BEITokenizer, LCMForMultitaskPretraining, LCMProcessor
from tests.training.conftest import PEOPLE
from training.data.cohort import Cohort
from training.trainer.arguments import FinetuneArguments
from training.trainer.checkpoints import load_processor
from training.trainer.finetuning import finetune
from training.trainer.prediction import predict_logits
from training.trainer.targets import model_pseudo_labels


EVERYBODY = np.arange(PEOPLE)
MISSING = -100


@pytest.fixture
def trained_labels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, torch.Tensor]]]:
    """What `finetune` hands to the training loop, which is left out: (subjects, labels) of training and validation."""
    seen: list[tuple[list[str], dict[str, torch.Tensor]]] = []

    class Recorder:
        def __init__(self, model: Any, train_data: Any, validation_data: Any, *rest: Any) -> None:
            seen.extend((data.subjects, data.labels) for data in (train_data, validation_data) if data is not None)
            self.trained = model

        def train(self, after_epoch: Any = None) -> list:
            return []

    monkeypatch.setattr(training.trainer.finetuning, "Trainer", Recorder)
    return seen


def test_pseudo_labels_none_leaves_unlabelled_people_out(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], trained_labels: list
) -> None:
    cohort.table.loc[[3, 4], "group"] = None
    finetune(cohort, finetune_arguments())
    [(subjects, labels)] = trained_labels
    assert len(subjects) == PEOPLE - 2
    assert not {"0004", "0005"} & set(subjects)
    assert (labels["labels"] != MISSING).all()


def test_pseudo_labels_recorded_keeps_unlabelled_people(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], trained_labels: list
) -> None:
    cohort.table.loc[[3, 4], "group"] = None
    cohort.table.loc[4, "sex"] = None
    finetune(cohort, finetune_arguments(pseudo_labels="recorded"))
    [(subjects, labels)] = trained_labels
    assert sorted(subjects) == cohort.table["subject_id"].tolist()
    fourth, fifth = subjects.index("0004"), subjects.index("0005")
    assert labels["labels"][[fourth, fifth]].tolist() == [MISSING, MISSING]
    expected = float(cohort.table["sex"].iloc[3] == "M")
    assert labels["bei_targets"][fourth, 0] == expected
    assert labels["bei_targets"][fifth, 0] == MISSING
    assert labels["bei_targets"][fifth, 1] != MISSING


@pytest.fixture
def pretrained_with_defaults(pretrained: Path, tmp_path: Path) -> Path:
    """The tiny checkpoint, its vocabulary with M as the default of sex."""
    processor = load_processor(str(pretrained))
    sex, age = processor.tokenizer.variables
    sex.default = "M"
    model = LCMForMultitaskPretraining.from_pretrained(pretrained)
    model.save_pretrained(tmp_path / "defaults")
    LCMProcessor(processor.feature_extractor, BEITokenizer(variables=[sex, age])).save_pretrained(
        tmp_path / "defaults"
    )
    return tmp_path / "defaults"


def test_pseudo_labels_defaults_fill_what_is_not_recorded(
    cohort: Cohort,
    finetune_arguments: Callable[..., FinetuneArguments],
    trained_labels: list,
    pretrained_with_defaults: Path,
) -> None:
    cohort.table.loc[[3, 4], "sex"] = None
    cohort.table.loc[4, "age"] = None
    arguments = finetune_arguments(checkpoint=str(pretrained_with_defaults), pseudo_labels="defaults")
    finetune(cohort, arguments)
    [(subjects, labels)] = trained_labels
    fourth, fifth = subjects.index("0004"), subjects.index("0005")
    assert labels["bei_targets"][[fourth, fifth], 0].tolist() == [1.0, 1.0]  # F is 0, M is 1
    assert labels["bei_targets"][fifth, 1] == MISSING  # a continuous variable has no default


def test_default_labels_of_the_settings_replace_those_of_the_vocabulary(
    cohort: Cohort,
    pretrained: Path,
    finetune_arguments: Callable[..., FinetuneArguments],
    trained_labels: list,
) -> None:
    cohort.table.loc[3, "sex"] = None
    arguments = finetune_arguments(pseudo_labels="defaults", default_labels=["sex=M"])
    finetune(cohort, arguments)
    [(subjects, labels)] = trained_labels
    assert labels["bei_targets"][subjects.index("0004"), 0] == 1.0  # F is 0, M is 1
    with pytest.raises(ValueError, match=r"sex=X is no categorical token of .*; it has sex=F, sex=M"):
        finetune(cohort, replace(arguments, default_labels=["sex=X"]))
    with pytest.raises(ValueError, match=r'no variable of .* has a default label: .*"recorded"'):
        finetune(cohort, replace(arguments, default_labels=None))
    with pytest.raises(ValueError, match="default_labels are used with pseudo_labels set to defaults or model"):
        replace(arguments, pseudo_labels="recorded")


def test_pseudo_labels_model_are_confident_guesses_of_the_pretrained_model(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], trained_labels: list, pretrained: Path
) -> None:
    recorded = cohort.table["sex"].tolist()
    cohort.table["sex"] = None
    cohort.table.loc[0, "sex"] = recorded[0]
    probabilities = predict_logits(LCMForMultitaskPretraining.from_pretrained(pretrained), cohort)["logits"]
    best = probabilities[:, :2].softmax(1).max(1)
    threshold = best.values.median().item()
    arguments = finetune_arguments(pseudo_labels="model", pseudo_label_threshold=threshold)
    finetune(cohort, arguments)
    [(subjects, labels)] = trained_labels
    order = torch.tensor([int(subject) - 1 for subject in subjects])
    expected = torch.where(best.values >= threshold, best.indices.float(), torch.tensor(-100.0))
    expected[0] = float(recorded[0] == "M")  # a record is never replaced
    assert torch.equal(labels["bei_targets"][:, 0], expected[order])
    assert 0 < (expected == MISSING).sum() < PEOPLE


def test_model_pseudo_labels_of_continuous_variables_are_missing(cohort: Cohort, pretrained: Path) -> None:
    guesses = model_pseudo_labels(str(pretrained), cohort, 0.0)
    assert guesses.shape == (PEOPLE, 2)
    assert (guesses[:, 0] != MISSING).all()
    assert (guesses[:, 1] == MISSING).all()


def test_pseudo_labels_never_label_the_task(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], trained_labels: list
) -> None:
    cohort.table.loc[[3, 4], "sex"] = None
    finetune(cohort, finetune_arguments(task="sex", pseudo_labels="model", pseudo_label_threshold=0.0))
    [(subjects, labels)] = trained_labels
    assert (labels["bei_targets"][:, 0] == MISSING).all()
    assert labels["labels"][subjects.index("0004")] == MISSING


@pytest.mark.parametrize("mode", ["recorded", "defaults", "model"])
def test_unlabelled_people_change_the_result(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], pretrained_with_defaults: Path, mode: str
) -> None:
    cohort.table.loc[12:, "group"] = None
    arguments = finetune_arguments(checkpoint=str(pretrained_with_defaults), pseudo_labels=mode, epochs=1)
    alone = finetune(cohort.select(EVERYBODY[:12]), arguments)[0].state_dict()
    joined = finetune(cohort, arguments)[0].state_dict()
    assert not torch.equal(alone["model.bei_embeddings.weight"], joined["model.bei_embeddings.weight"])


def test_labels_per_class_hides_the_other_labels(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], trained_labels: list
) -> None:
    finetune(cohort, finetune_arguments(labels_per_class=3))
    finetune(cohort, finetune_arguments(labels_per_class=3, pseudo_labels="recorded"))
    (few, few_labels), (everybody, labels) = trained_labels
    assert torch.bincount(few_labels["labels"]).tolist() == [3, 3]
    assert sorted(everybody) == cohort.table["subject_id"].tolist()
    known = [subject for subject, label in zip(everybody, labels["labels"], strict=True) if label != MISSING]
    assert sorted(known) == sorted(few)


def test_people_held_back_for_validation_do_not_train_through_another_scan(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], trained_labels: list
) -> None:
    """Two scans per subject, of which only one has the label."""
    cohort.table["subject_id"] = np.repeat([f"p{number}" for number in range(12)], 2)
    cohort.table["group"] = np.where(np.arange(PEOPLE) % 4 < 2, "A", "B")
    cohort.table.loc[1::2, "group"] = None
    finetune(cohort, finetune_arguments(pseudo_labels="recorded", validation_fraction=0.25))
    (train, labels), (validation, held_back) = trained_labels
    assert (held_back["labels"] != MISSING).all()
    assert not set(train) & set(validation)
    assert len(train) == 2 * (12 - len(validation))
    assert (labels["labels"] == MISSING).sum() == len(train) / 2
