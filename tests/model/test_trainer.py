"""`transformers.Trainer` without any code of ours but the model and the callback that switches the stages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import (
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
    logging,
)

from modeling_lcm import (
    BEITokenizer,
    FCFeatureExtractor,
    LCMConfig,
    LCMForMultitaskPretraining,
    LCMForSequenceClassification,
    LCMProcessor,
    SupervisionCallback,
)
from modeling_lcm.callback import supervision_at
from tests.conftest import VARIABLES


MakeConfig = Callable[..., LCMConfig]
NO_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


class People(Dataset):
    """Eight subjects with complete labels."""

    def __init__(self, connectivity: Tensor, labels: Tensor) -> None:
        self.connectivity, self.labels = connectivity, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"connectivity": self.connectivity[index], "labels": self.labels[index]}


class StageRecorder(TrainerCallback):
    """Notes the supervision in force at every step."""

    def __init__(self) -> None:
        self.stages: list[str] = []

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.stages.append(model.config.supervision)


@pytest.fixture
def people(make_connectivity: Callable[..., Tensor], rng: np.random.Generator) -> People:
    """Eight people: state, sex and age."""
    labels = np.stack([rng.integers(0, 3, 8), rng.integers(0, 2, 8), rng.standard_normal(8)], axis=1)
    return People(make_connectivity(8), torch.tensor(labels, dtype=torch.float32))


def make_trainer(model: torch.nn.Module, people: People, folder: Path, callbacks: list, **settings: Any) -> Trainer:
    """Trainer with two batches of four subjects an epoch, in order."""
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 3,
        "num_train_epochs": 2,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    arguments = TrainingArguments(**{**defaults, **settings})
    return Trainer(model, arguments, train_dataset=people, eval_dataset=people, callbacks=callbacks)


def test_the_callback_switches_the_stage_between_epochs(
    make_config: MakeConfig, people: People, tmp_path: Path
) -> None:
    recorder = StageRecorder()
    model = LCMForMultitaskPretraining(make_config())
    callbacks = [SupervisionCallback(momentum_epochs=1), recorder]
    make_trainer(model, people, tmp_path, callbacks).train()
    assert recorder.stages == ["momentum", "momentum", "adaptive", "adaptive"]
    assert model.config.effective_readout == "best_layer"
    assert (model.bei_layer_choice.running_loss >= 0).all()


def test_resuming_in_the_second_stage_stays_in_it(make_config: MakeConfig, people: People, tmp_path: Path) -> None:
    settings = {"save_strategy": "epoch", "num_train_epochs": 3}
    stages = {}
    for resume in (False, True):
        torch.manual_seed(0)
        recorder = StageRecorder()
        callbacks = [SupervisionCallback(momentum_epochs=1, adaptive="adaptive_per_sample"), recorder]
        model = LCMForMultitaskPretraining(make_config(**NO_DROPOUT))
        trainer = make_trainer(model, people, tmp_path, callbacks, **settings)
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4") if resume else None)
        stages[resume] = (recorder.stages, model.state_dict())
    assert stages[False][0] == 2 * ["momentum"] + 4 * ["adaptive_per_sample"]
    assert stages[True][0] == 2 * ["adaptive_per_sample"]
    for name, tensor in stages[False][1].items():
        assert torch.allclose(stages[True][1][name].float(), tensor.float(), atol=1e-5), name


@pytest.mark.parametrize(("epoch", "stage"), [(0, "momentum"), (4, "momentum"), (5, "adaptive"), (6, "adaptive")])
def test_stage_of_an_epoch(epoch: int, stage: str) -> None:
    assert supervision_at(epoch, momentum_epochs=5) == stage


def test_accumulating_four_steps_equals_one_batch(make_config: MakeConfig, people: People, tmp_path: Path) -> None:
    states = []
    for batch_size, accumulation in ((8, 1), (2, 4)):
        torch.manual_seed(0)
        model = LCMForMultitaskPretraining(make_config(**NO_DROPOUT))
        # Batch statistics depend on the batch by nature; without the batch norm everything must agree.
        model.model.stem.norm.forward = torch.nn.Identity().forward
        settings = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        trainer = make_trainer(model, people, tmp_path, [], optim="sgd", num_train_epochs=1, **settings)
        trainer.train()
        assert trainer.state.global_step == 1
        states.append(model.state_dict())
    for name in dict(model.named_parameters()):
        assert torch.allclose(states[0][name], states[1][name], atol=1e-6), name


def test_training_lowers_the_loss(make_config: MakeConfig, people: People, tmp_path: Path) -> None:
    model = LCMForMultitaskPretraining(make_config(**NO_DROPOUT))
    trainer = make_trainer(model, people, tmp_path, [], num_train_epochs=15)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.7 * before


def test_predictions_of_the_pretraining_model(make_config: MakeConfig, people: People, tmp_path: Path) -> None:
    model = LCMForMultitaskPretraining(make_config())
    result = make_trainer(model, people, tmp_path, []).predict(people)
    assert result.predictions.shape == (8, 6)
    assert np.allclose(result.predictions, model.eval()(people.connectivity).logits.detach(), atol=1e-5)
    assert np.array_equal(result.label_ids, people.labels)


def test_predictions_of_a_task(make_config: MakeConfig, people: People, tmp_path: Path) -> None:
    model = LCMForSequenceClassification(make_config(num_labels=2))
    task = People(people.connectivity, people.labels[:, 1].long())
    trainer = make_trainer(model, task, tmp_path, [])
    trainer.train()
    result = trainer.predict(task)
    assert result.predictions.shape == (8, 2)
    assert result.label_ids.shape == (8,)
    assert np.isfinite(result.metrics["test_loss"])


def accuracy(predictions: Any) -> dict[str, float]:
    """Share of right classes."""
    return {"accuracy": float(np.mean(predictions.predictions.argmax(-1) == predictions.label_ids))}


class TestDefaults:
    """Trainer as its users have it, without a word about labels."""

    @pytest.mark.parametrize("given", [(), ("bei_targets",)])
    def test_the_best_model_by_a_metric(
        self, make_config: MakeConfig, people: People, tmp_path: Path, given: tuple[str, ...]
    ) -> None:
        data = [
            {"connectivity": people.connectivity[n], "labels": people.labels[n, 0].long()}
            | {name: people.labels[n] for name in given}
            for n in range(8)
        ]
        config = make_config(num_labels=3, bei_loss_weight=0.5 if given else 0.0)
        arguments = TrainingArguments(
            str(tmp_path),
            num_train_epochs=2,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        model = LCMForSequenceClassification(config)
        trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data, compute_metrics=accuracy)
        trainer.train()
        scores = trainer.evaluate()
        assert scores["eval_accuracy"] == pytest.approx(trainer.state.best_metric)
        assert np.isfinite(scores["eval_loss"])

    @pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
    def test_other_tasks_are_evaluated(
        self, make_config: MakeConfig, people: People, tmp_path: Path, problem: str
    ) -> None:
        labels = people.labels[:, 2:] if problem == "regression" else (people.labels[:, :2] > 0).float()
        model = LCMForSequenceClassification(make_config(num_labels=labels.shape[1], problem_type=problem))
        scores = make_trainer(model, People(people.connectivity, labels), tmp_path, []).evaluate()
        assert np.isfinite(scores["eval_loss"])

    @pytest.mark.parametrize("given", ["tokenizer", "feature_extractor", "processor"])
    def test_processing_class(self, make_config: MakeConfig, people: People, tmp_path: Path, given: str) -> None:
        processor = LCMProcessor(FCFeatureExtractor(num_regions=12), BEITokenizer(variables=VARIABLES))
        processor = LCMProcessor(
            processor.feature_extractor,
            processor.tokenizer.add_variable(
                {"name": "group", "kind": "categorical", "labels": ["a", "b"]}, task=True
            ),
        )
        records = [{"group": "ab"[n % 2], "sex": "MF"[n % 2], "age": 20.0 + n} for n in range(8)]
        batch = processor(people.connectivity, records=records, return_tensors="pt")
        data = [{name: values[n] for name, values in batch.items()} for n in range(8)]
        model = LCMForSequenceClassification(make_config(task_variable="group", bei_loss_weight=1.0))
        arguments = TrainingArguments(
            str(tmp_path), max_steps=2, save_steps=2, report_to="none", disable_tqdm=True, use_cpu=True
        )
        chosen = processor if given == "processor" else getattr(processor, given)
        trainer = Trainer(model, arguments, train_dataset=data, eval_dataset=data, processing_class=chosen)
        assert np.isfinite(trainer.train().training_loss)
        assert np.isfinite(trainer.evaluate()["eval_loss"])
        saved = type(chosen).from_pretrained(tmp_path / "checkpoint-2")
        assert isinstance(saved, type(chosen))

    def test_tokenizer_makes_the_same_batch_as_trainer_without_one(self, people: People) -> None:
        tokenizer = BEITokenizer(variables=VARIABLES)
        examples = [{"connectivity": people.connectivity[n], "label": n % 2, "scan": "a name"} for n in range(3)]
        expected = default_data_collator(examples)
        batch = DataCollatorWithPadding(tokenizer)(examples)
        assert batch.keys() == expected.keys() == {"connectivity", "labels"}
        assert all(torch.equal(batch[name], expected[name]) for name in expected)
        assert tokenizer.pad({"labels": [[1.0, 0.0, 2.0]]}, return_tensors="pt")["labels"].shape == (1, 3)


class TestFormerName:
    """`bei_labels` is now `bei_targets`."""

    def test_is_still_read(self, make_config: MakeConfig, people: People) -> None:
        model = LCMForSequenceClassification(make_config(num_labels=2, bei_loss_weight=1.0)).eval()
        batch = {"connectivity": people.connectivity, "labels": people.labels[:, 1].long()}
        with_new = model(**batch, bei_targets=people.labels).loss
        assert torch.equal(model(**batch, bei_labels=people.labels).loss, with_new)
        assert not torch.equal(model(**batch).loss, with_new)
        with pytest.raises(ValueError, match="once, as bei_targets"):
            model(**batch, bei_labels=people.labels, bei_targets=people.labels)

    def test_targets_that_trainer_drops_are_missed(
        self,
        make_config: MakeConfig,
        people: People,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        logger = logging.get_logger("transformers.models.lcm")
        monkeypatch.setattr(logger, "propagate", False)
        logger.addHandler(caplog.handler)
        logging.warning_once.cache_clear()
        data = [
            {"connectivity": people.connectivity[n], "labels": n % 2, "bei_labels": people.labels[n]} for n in range(8)
        ]
        model = LCMForSequenceClassification(make_config(num_labels=2, bei_loss_weight=1.0))
        make_trainer(model, data, tmp_path, []).train()
        logger.removeHandler(caplog.handler)
        assert "the batch has no bei_targets" in caplog.text
