"""Both stages: pretraining, full and LoRA fine-tuning, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoProcessor

from modeling_lcm import (
    BEITokenizer,
    BEIVariable,
    FCFeatureExtractor,
    LCMForMultitaskPretraining,
    LCMForSequenceClassification,
    LCMProcessor,
)
from tests.training.conftest import PEOPLE, REGIONS
from training.data.cohort import Cohort
from training.data.combine import for_checkpoint
from training.data.torch_datasets import ConnectomeDataset
from training.trainer.arguments import FinetuneArguments, PretrainArguments
from training.trainer.checkpoints import load_processor, read_record, save_checkpoint
from training.trainer.finetuning import finetune, start_from_related_tokens
from training.trainer.prediction import predict_logits
from training.trainer.pretraining import pretrain
from training.trainer.runs import record_of


EVERYBODY = np.arange(PEOPLE)


# --- pretraining ---


def test_pretrain_scales_on_training_subjects_only(
    cohort: Cohort, pretrain_arguments: Callable[..., PretrainArguments]
) -> None:
    rows = np.arange(16)
    model, processor, history = pretrain(cohort.select(rows), pretrain_arguments(epochs=1, validation_fraction=0.25))
    age = processor.tokenizer.variables[1]
    assert (age.name, age.unit) == ("age", "years")
    held_back = cohort.table["age"].iloc[rows].mean()
    assert age.mean != pytest.approx(held_back)  # four of the sixteen are for validation
    assert np.isfinite(history[0]["validation_loss"])
    everyone = pretrain(cohort.select(rows), pretrain_arguments(epochs=1))[1].tokenizer.variables[1]
    assert everyone.mean == pytest.approx(held_back)
    assert model.config.bei_variables == processor.tokenizer.model_variables


def test_pretrain_is_reproducible(cohort: Cohort, pretrain_arguments: Callable[..., PretrainArguments]) -> None:
    settings = pretrain_arguments(dropout=0.1)
    first, second, other = (pretrain(cohort, replace(settings, seed=seed))[0].state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_pretrained_checkpoint_round_trip(cohort: Cohort, pretrained: Path) -> None:
    model = LCMForMultitaskPretraining.from_pretrained(pretrained)
    processor = AutoProcessor.from_pretrained(pretrained)
    processor.check_config(model.config)
    record = read_record(pretrained)
    assert record["training_subjects"] == cohort.table["subject_id"].tolist()
    assert record["arguments"]["hidden_size"] == model.config.hidden_size == 16
    assert [entry["epoch"] for entry in record["history"]] == [0, 1, 2, 3]
    assert record["versions"]["torch"] == torch.__version__


def test_pretrain_with_one_kind_of_variable(
    cohort: Cohort, pretrain_arguments: Callable[..., PretrainArguments]
) -> None:
    model, processor, _ = pretrain(cohort, pretrain_arguments(continuous=[], categorical=["sex", "site"]))
    assert [variable.name for variable in processor.tokenizer.variables] == ["sex", "site"]
    assert model.config.num_bei_tokens == 4


def test_pretrain_with_a_saved_vocabulary(
    cohort: Cohort, pretrain_arguments: Callable[..., PretrainArguments], tmp_path: Path
) -> None:
    sex = BEIVariable("sex", "categorical", ["F", "M", "other"])
    BEITokenizer(variables=[sex, BEIVariable("weight", "continuous")]).save_pretrained(tmp_path)
    model, processor, _ = pretrain(cohort, pretrain_arguments(vocabulary=str(tmp_path)))
    assert model.config.num_bei_tokens == 4
    assert processor.tokenizer.variables[0].labels == ["F", "M", "other"]
    BEITokenizer(variables=[BEIVariable("weight", "continuous")]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"No variable of the vocabulary .* \(weight\) is in the data, which has sex"):
        pretrain(cohort, pretrain_arguments(vocabulary=str(tmp_path)))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"categorical": ["weight"]}, "no phenotype 'weight' in the data; it has sex, age, group"),
        ({"categorical": ["constant"]}, "'constant': a categorical variable needs two or more different labels"),
        ({"categorical": ["age"]}, "'age' holds numbers with many different values: declare it continuous"),
        ({"continuous": ["site"]}, "site"),
        ({"categorical": [], "continuous": []}, "nothing to learn: name phenotype columns"),
        ({"size": "huge"}, "size must be one of nano, .*, got 'huge'"),
        ({"hidden_size": 15}, "hidden_size .15. must be a multiple of num_attention_heads"),
    ],
)
def test_pretrain_refusals(
    cohort: Cohort, pretrain_arguments: Callable[..., PretrainArguments], settings: dict, problem: str
) -> None:
    cohort.table["constant"] = "same"
    with pytest.raises(ValueError, match=problem):
        pretrain(cohort, pretrain_arguments(**settings))


# --- fine-tuning ---


def test_finetune_new_task_learns_and_survives_saving(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], tmp_path: Path
) -> None:
    arguments = finetune_arguments(epochs=25, learning_rate=5e-3, labels=["B", "A"])
    train, test = EVERYBODY[:16], EVERYBODY[16:]
    model, processor, history = finetune(cohort.select(train), arguments)
    assert isinstance(model, LCMForSequenceClassification)
    assert model.config.id2label == {0: "B", 1: "A"}
    logits = predict_logits(model, cohort.select(test))
    truth = torch.tensor((cohort.table["group"].iloc[test] == "A").to_numpy(dtype=int))
    assert (logits["logits"].argmax(1) == truth).float().mean() >= 7 / 8
    record = record_of(cohort.select(train), history, arguments.checkpoint)
    save_checkpoint(tmp_path / "tuned", model, processor, arguments, record)
    loaded = LCMForSequenceClassification.from_pretrained(tmp_path / "tuned")
    reloaded = predict_logits(loaded, cohort.select(test))
    for name, values in logits.items():
        torch.testing.assert_close(values, reloaded[name], rtol=0, atol=0)
    tokenizer = load_processor(str(tmp_path / "tuned")).tokenizer
    assert (tokenizer.task, tokenizer.task_is_new) == ("group", True)
    # The pretrained model has seen everybody, and so has the model made of it.
    assert read_record(tmp_path / "tuned")["training_subjects"] == cohort.table["subject_id"].tolist()
    assert record["num_training_scans"] == 16
    assert not (tmp_path / "tuned" / "adapter").exists()


def test_shuffled_labels_stay_at_chance(cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments]) -> None:
    """Nothing but the labels of the training rows reaches the model: with wrong ones it cannot be right."""
    train, test = EVERYBODY[:16], EVERYBODY[16:]
    truth = (cohort.table["group"].iloc[test] == "A").to_numpy(dtype=int)
    accuracies = []
    for seed in range(8):
        # Half of each true group gets each label.
        labels = np.where(np.arange(16) // 2 % 2, "A", "B")
        cohort.table.loc[cohort.table.index[:16], "group"] = np.roll(labels, seed)
        arguments = finetune_arguments(epochs=10, learning_rate=5e-3, seed=seed)
        model, processor, _ = finetune(cohort.select(train), arguments)
        assert processor.tokenizer.task_variable.labels == ["A", "B"]
        predicted = 1 - predict_logits(model, cohort.select(test))["logits"].argmax(1).numpy()
        accuracies.append((predicted == truth).mean())
    assert 0.25 <= np.mean(accuracies) <= 0.75


def test_finetune_lora_adapter_and_merged_checkpoint_agree(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], pretrained: Path, tmp_path: Path
) -> None:
    arguments = finetune_arguments(
        epochs=3, lora_rank=2, learning_rate=1e-2, adaptive="adaptive", pseudo_labels="recorded"
    )
    model, processor, history = finetune(cohort, arguments)
    assert isinstance(model, PeftModel)
    assert [record["stage"] for record in history] == ["momentum", "adaptive", "adaptive"]
    assert model.config.supervision == "adaptive"
    expected = predict_logits(model, cohort)
    save_checkpoint(tmp_path / "tuned", model, processor, arguments, {})
    merged = LCMForSequenceClassification.from_pretrained(tmp_path / "tuned")
    settings = {
        name: getattr(merged.config, name) for name in ("id2label", "problem_type", "task_variable", "supervision")
    }
    base = LCMForSequenceClassification.from_pretrained(pretrained, **settings)
    adapted = PeftModel.from_pretrained(base, tmp_path / "tuned" / "adapter")
    for loaded in (merged, adapted):
        for name, values in predict_logits(loaded, cohort).items():
            torch.testing.assert_close(values, expected[name], rtol=0, atol=1e-5)
    before = LCMForMultitaskPretraining.from_pretrained(pretrained).state_dict()
    after = merged.state_dict()
    # Trained whole: batch norm with its running statistics, read-out, layer choices, new tokens.
    for name in (
        "model.stem.norm.running_mean",
        "model.stem.norm.weight",
        "score.weight",
        "bei_layer_choice.running_loss",
    ):
        assert not torch.equal(before[name], after[name]), name
    assert (after["task_layer_choice.running_loss"] >= 0).all()
    # Trained by adapters, after merging: attention and feed-forward. Not trained: stem and pretrained tokens.
    for name in ("model.layers.0.cross_attn.v_proj.weight", "model.layers.1.self_attn.q_proj.weight"):
        assert not torch.equal(before[name], after[name]), name
    for name in ("model.stem.proj.weight", "model.bei_embeddings.weight", "model.layers.0.self_attn.q_proj.weight"):
        assert torch.equal(before[name], after[name]), name


def test_lora_trains_few_weights_and_every_one_of_them(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments]
) -> None:
    model, _, _ = finetune(cohort, finetune_arguments(epochs=1, lora_rank=2))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in trained)
    assert any("task_embeddings" in name for name in trained)
    # lora_B starts at zero: what has moved received a gradient.
    for name, parameter in model.named_parameters():
        if "lora_B" in name and "k_proj" not in name:
            assert parameter.abs().max() > 0, name


def test_lora_resumes_where_it_was(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], tmp_path: Path
) -> None:
    settings = finetune_arguments(epochs=3, lora_rank=2, validation_fraction=0.25, checkpoint_every=1)
    whole, _, history = finetune(cohort, settings, tmp_path)
    again, _, repeated = finetune(cohort, replace(settings, resume=True), tmp_path)
    assert repeated == history
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_finetune_pretrained_variable_uses_its_own_tokens(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], tmp_path: Path
) -> None:
    arguments = finetune_arguments(task="sex", pseudo_labels="recorded")
    model, processor, _ = finetune(cohort, arguments)
    assert model.config.num_task_tokens == 0
    assert (processor.tokenizer.task, processor.tokenizer.task_is_new) == ("sex", False)
    save_checkpoint(tmp_path / "tuned", model, processor, arguments, {})
    logits = predict_logits(LCMForSequenceClassification.from_pretrained(tmp_path / "tuned"), cohort)
    assert torch.equal(logits["logits"], logits["bei_logits"][:, :2])
    with pytest.raises(ValueError, match="pretrained on 'age' as a continuous variable: set kind"):
        finetune(cohort, finetune_arguments(task="age"))
    with pytest.raises(ValueError, match="pretrained on 'sex' with the labels F, M: give these, or none"):
        finetune(cohort, finetune_arguments(task="sex", labels=["female", "male"]))


def test_finetune_regression(cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments]) -> None:
    arguments = finetune_arguments(task="score", kind="continuous", epochs=25, learning_rate=5e-3)
    train, test = EVERYBODY[:16], EVERYBODY[16:]
    model, processor, history = finetune(cohort.select(train), arguments)
    assert model.config.problem_type == "regression"
    variable = processor.tokenizer.task_variable
    assert variable.mean == pytest.approx(cohort.table["score"].iloc[train].mean())
    predicted = predict_logits(model, cohort.select(test))["logits"][:, 0].numpy() * variable.std + variable.mean
    assert np.corrcoef(predicted, cohort.table["score"].iloc[test])[0, 1] > 0.7
    assert history[-1]["train_loss"] < history[0]["train_loss"]


def test_finetune_pretrained_regression_keeps_its_scaling(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], pretrained: Path
) -> None:
    arguments = finetune_arguments(task="age", kind="continuous", epochs=1)
    model, processor, _ = finetune(cohort.select(EVERYBODY[:10]), arguments)
    assert model.config.num_task_tokens == 0
    assert processor.tokenizer.task_variable.mean == load_processor(str(pretrained)).tokenizer.variables[1].mean


# --- refusing ---


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"task": "weight"}, "no phenotype 'weight' in the data; it has sex"),
        ({"task": ""}, "no phenotype '' in the data"),
        ({"task": "constant"}, "'constant': a categorical variable needs two or more different labels"),
        ({"labels": ["A", "B", "C"]}, "No training scan has the label C of 'group'"),
        ({"labels": ["A", "C"]}, "the label C of"),
        ({"task": "empty", "kind": "continuous"}, "'empty' is recorded for none of the training scans"),
        ({"task": "empty"}, "'empty' is recorded for none of the training scans"),
        ({"task": "lonely"}, "A single subject of the training set has the label x, y of 'lonely'"),
        ({"task": "one_alone"}, "A single subject of the training set has the label y of 'one_alone'"),
        ({"adapter": "lora", "frozen_layers": 2}, "no layer of 2 is left for an adapter"),
        ({"frozen_layers": 3}, "frozen_layers is 3, but the model has 2 layers"),
        ({"window_volumes": 20}, "training.prepare --keep_time_series true"),
        ({"kind": "ordinal"}, "kind must be one of categorical, continuous, got 'ordinal'"),
        ({"labels_per_class": 13}, "Class 0 has 12 labelled training scans, 13 are needed"),
        ({"checkpoint": ""}, "No checkpoint was given: add --checkpoint FOLDER"),
        ({"checkpoint": "nowhere/at/all"}, "nowhere/at/all is neither a checkpoint folder nor a repository"),
    ],
)
def test_finetune_refusals(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], settings: dict, problem: str
) -> None:
    cohort.table["constant"] = "same"
    cohort.table["empty"] = np.nan
    cohort.table["lonely"] = ["x", "y"] + [None] * (PEOPLE - 2)
    cohort.table["one_alone"] = ["y"] + ["x"] * (PEOPLE - 1)
    with pytest.raises(ValueError, match=problem):
        finetune(cohort, finetune_arguments(**settings))


def test_finetune_argument_values_are_checked() -> None:
    for settings, problem in (
        ({"pseudo_labels": "some"}, "pseudo_labels must be one of none, recorded, defaults, model, got 'some'"),
        ({"lora_rank": -1}, "lora_rank must not be negative"),
        ({"adapter": "prefix"}, "adapter must be one of none, lora, dora, rslora, got 'prefix'"),
        ({"layer_decay": 0.0}, "layer_decay must lie above 0"),
        ({"class_weights": "inverse"}, "class_weights must be one of none, balanced"),
        ({"window_volumes": 5}, "window_volumes must be 0, or 10 or more"),
        ({"window_volumes": 50, "window_fraction": 0.5}, "Give window_volumes or window_fraction, not both"),
        ({"trainable": "tokens", "lora_rank": 4}, 'trainable="tokens" leaves the layers alone'),
        ({"pseudo_label_threshold": 1.5}, "pseudo_label_threshold must lie between 0 and 1"),
    ):
        with pytest.raises(ValueError, match=problem):
            FinetuneArguments(**settings)


def test_checkpoint_folder_one_level_up_is_recognised(
    cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments], pretrained: Path, tmp_path: Path
) -> None:
    (tmp_path / "checkpoint").mkdir()
    with pytest.raises(ValueError, match=r"holds no checkpoint \(no config.json\)\. Is .*checkpoint meant\?"):
        finetune(cohort, finetune_arguments(checkpoint=str(tmp_path)))


def test_another_atlas_is_refused(cohort: Cohort, finetune_arguments: Callable[..., FinetuneArguments]) -> None:
    other = Cohort(cohort.table, cohort.triangles, FCFeatureExtractor(atlas="other", num_regions=REGIONS))
    with pytest.raises(ValueError, match="made for 10 regions of made-up-10, the data has 10 of other"):
        finetune(other, finetune_arguments())


def test_region_names_decide_where_both_have_them(cohort: Cohort, pretrained: Path) -> None:
    names = [f"r{number}" for number in range(REGIONS)]

    def extractor(order: list[str] | None, atlas: str) -> FCFeatureExtractor:
        return FCFeatureExtractor(atlas=atlas, region_names=order, num_regions=REGIONS)

    tokenizer = load_processor(str(pretrained)).tokenizer
    named = LCMProcessor(extractor(names, "one"), tokenizer)
    for_checkpoint(named, Cohort(cohort.table, cohort.triangles, extractor(names, "same under another name")))
    for_checkpoint(named, Cohort(cohort.table, cohort.triangles, extractor(None, "one")))
    with pytest.raises(ValueError, match="or in another order"):
        for_checkpoint(named, Cohort(cohort.table, cohort.triangles, extractor(names[::-1], "one")))


def test_another_fc_definition_is_a_warning(
    cohort: Cohort, pretrained: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shrunk = FCFeatureExtractor(atlas=cohort.feature_extractor.atlas, num_regions=REGIONS, estimator="ledoit_wolf")
    for_checkpoint(load_processor(str(pretrained)), Cohort(cohort.table, cohort.triangles, shrunk))
    assert "estimator is 'pearson' in the checkpoint, 'ledoit_wolf' in the data" in caplog.text


def test_new_tokens_start_at_the_pretrained_tokens_that_follow_the_labels(cohort: Cohort, pretrained: Path) -> None:
    model = LCMForMultitaskPretraining.from_pretrained(pretrained)
    logits = predict_logits(model, cohort)["logits"]
    token = model.config.num_bei_tokens - 1
    order = logits[:, token].argsort()
    labels = torch.zeros(len(cohort), dtype=torch.long)
    labels[order[len(cohort) // 2 :]] = 1  # exactly the subjects for whom this token's logit is high
    task = LCMForSequenceClassification.from_pretrained(
        pretrained, id2label={0: "low", 1: "high"}, label2id={"low": 0, "high": 1}, task_variable="new"
    )
    names = start_from_related_tokens(task, ConnectomeDataset(cohort, {"labels": labels}))
    tokens = BEITokenizer.from_pretrained(pretrained).convert_ids_to_tokens(range(model.config.num_bei_tokens))
    assert names[1] == tokens[token]
    start = task.model.bei_embeddings.weight[token]
    assert torch.nn.functional.cosine_similarity(task.task_embeddings.weight[1], start, dim=0) > 0.9
