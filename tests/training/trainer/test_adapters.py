"""Adapters: exact under every attention path, small, complete in their folder, stacked, refused on another base."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, PeftModel, get_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

from modeling_lcm import (
    BEITokenizer,
    BEIVariable,
    FCFeatureExtractor,
    LCMConfig,
    LCMForMultitaskPretraining,
    LCMForSequenceClassification,
    LCMPackedConfig,
    LCMProcessor,
    adapter_task,
    fast_paths_lcm,
    load_adapter,
    save_adapter,
    stack_adapter,
    use_adapter,
)
from tests.training.conftest import ATLAS, PEOPLE, REGIONS
from training.data.cohort import Cohort
from training.explanation.arguments import ExplainArguments
from training.explanation.explain import explain
from training.predict import main as predict
from training.trainer.arguments import FinetuneArguments
from training.trainer.checkpoints import is_adapter, load_processor, read_record, save_checkpoint
from training.trainer.lora import adapted_modules, with_adapter
from training.trainer.prediction import predict_table


KINDS = ("lora", "dora", "rslora")
TASKS = {"group": ["A", "B"], "state": ["rest", "heat", "pain"]}


def make_adapter(base: Path, task: str, kind: str = "lora", seed: int = 0) -> tuple[PeftModel, LCMProcessor]:
    """An adapter as training leaves it, its weights random instead of trained; `sex` is a pretrained variable."""
    torch.manual_seed(seed)
    processor = load_processor(str(base))
    if task in TASKS:
        tokenizer = processor.tokenizer.add_variable(BEIVariable(task, "categorical", TASKS[task]), task=True)
    else:
        tokenizer = processor.tokenizer.for_task(task)
    labels = tokenizer.task_variable.labels
    model = LCMForSequenceClassification.from_pretrained(
        base,
        id2label=dict(enumerate(labels)),
        label2id={name: index for index, name in enumerate(labels)},
        problem_type="single_label_classification",
        task_variable=task,
        supervision="adaptive",
        dtype=torch.float32,
    )
    adapted = with_adapter(model, FinetuneArguments(adapter=kind, lora_rank=2))
    with torch.no_grad():
        for name, tensor in [*adapted.named_parameters(), *adapted.named_buffers()]:
            if "lora_B" in name or ("modules_to_save" in name and tensor.is_floating_point() and tensor.ndim > 1):
                tensor.normal_(0, 0.3)
            elif "magnitude" in name or "running_" in name:
                tensor.mul_(1 + 0.3 * torch.rand_like(tensor))
    choice = adapted.get_base_model().task_layer_choice
    choice.best_layer.zero_()  # not where a base's own choice would be
    return adapted.eval(), LCMProcessor(processor.feature_extractor, tokenizer)


@pytest.fixture
def connectivity() -> Tensor:
    """Five connectomes."""
    torch.manual_seed(3)
    return torch.stack([torch.corrcoef(torch.randn(REGIONS, 40)) for _ in range(5)])


@pytest.fixture
def folders(pretrained: Path, tmp_path: Path, connectivity: Tensor) -> dict[str, tuple[Path, Tensor]]:
    """Adapters of three tasks: the folder, and the logits that it must give."""
    found = {}
    for seed, (task, kind) in enumerate([("group", "lora"), ("state", "dora"), ("sex", "rslora")]):
        model, processor = make_adapter(pretrained, task, kind, seed)
        save_adapter(model, processor, tmp_path / task)
        with torch.no_grad():
            found[task] = (tmp_path / task, model(connectivity=connectivity).logits)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("folds", [True, False])
@torch.no_grad()
def test_an_adapter_changes_the_output_as_merging_it_does(
    pretrained: Path, connectivity: Tensor, kind: str, folds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Where folding is allowed at all, it is always done, or never.
    monkeypatch.setattr(fast_paths_lcm, "folding_pays", lambda *_: folds)
    model, _ = make_adapter(pretrained, "group", kind)
    adapted = model(connectivity=connectivity).layer_logits
    with model.disable_adapter():
        plain = model(connectivity=connectivity).layer_logits
    assert (adapted - plain).abs().max() > 0.1
    # Only the low-rank part, without what is trained whole.
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.zero_()
    assert (model(connectivity=connectivity).layer_logits - adapted).abs().max() > 0.01
    model, _ = make_adapter(pretrained, "group", kind)
    merged = model.merge_and_unload(safe_merge=True)
    assert type(merged.model.layers[0].cross_attn.k_proj) is torch.nn.Linear
    torch.testing.assert_close(merged(connectivity=connectivity).layer_logits, adapted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("task", "trains"), [("group", False), ("sex", True)])
def test_pretrained_edges_train_where_they_are_the_tasks(
    pretrained: Path, connectivity: Tensor, task: str, trains: bool, tmp_path: Path
) -> None:
    adapted, processor = make_adapter(pretrained, task)
    whole = adapted.peft_config["default"].modules_to_save
    assert ("bei_edge_readout" in whole) == trains
    assert ("task_edge_readout" in whole) != trains
    adapted(connectivity=connectivity, labels=torch.tensor([0, 1, 0, 1, 1])).loss.backward()
    weight = adapted.get_base_model().bei_edge_readout.weight
    assert weight.requires_grad == trains
    assert (weight.grad is not None and bool(weight.grad.any())) == trains
    save_adapter(adapted, processor, tmp_path / "adapter")
    loaded, _ = load_adapter(tmp_path / "adapter")
    assert torch.equal(loaded.get_base_model().bei_edge_readout.weight, weight)


def test_every_projection_has_an_adapter_but_those_without_gradient(pretrained: Path) -> None:
    model, _ = make_adapter(pretrained, "group")
    adapted = {name.split("base_model.model.model.")[1] for name, m in model.named_modules() if hasattr(m, "lora_A")}
    projections = [f"{part}_attn.{name}_proj" for part in ("self", "cross") for name in "qkvo"] + ["fc1", "fc2"]
    every = {f"layers.{layer}.{name}" for layer in (0, 1) for name in projections}
    assert adapted == {name for name in every if not name.startswith("layers.0.self_attn")}
    assert not re.fullmatch(adapted_modules(12, frozen_layers=2), "model.layers.1.fc1")
    assert re.fullmatch(adapted_modules(12, frozen_layers=2), "model.layers.11.self_attn.q_proj")


@pytest.mark.parametrize("kind", KINDS)
def test_the_published_size_has_a_small_adapter(kind: str) -> None:
    """147M parameters, rank 8: below 10 MB, without making the weights."""
    with torch.device("meta"):
        variables = [{"name": "v", "kind": "categorical", "labels": [str(i) for i in range(300)], "loss_weight": 1.0}]
        config = LCMConfig.from_size("147m", bei_variables=variables, num_labels=2, task_variable="group")
        model = LCMForSequenceClassification(config)
        assert 1.4e8 < model.num_parameters() < 1.5e8
        adapted = with_adapter(model, FinetuneArguments(adapter=kind))
    weights = get_peft_model_state_dict(adapted)
    assert adapted.peft_config["default"].r == 8
    assert sum(tensor.numel() * tensor.element_size() for tensor in weights.values()) < 1e7


@torch.no_grad()
def test_the_folder_alone_is_enough(folders: dict, connectivity: Tensor, pretrained: Path) -> None:
    for task, (folder, expected) in folders.items():
        model, processor = load_adapter(folder)
        outputs = model(connectivity=connectivity)
        torch.testing.assert_close(outputs.logits, expected, rtol=0, atol=1e-5)
        assert processor.post_process(outputs)[0][task]["label"] in processor.tokenizer.task_variable.labels
        assert processor.feature_extractor.atlas == ATLAS
        settings = model.peft_config["default"]
        assert settings.base_model_name_or_path == str(pretrained)
        assert settings.task_type == "SEQ_CLS"


@torch.no_grad()
def test_pefts_and_transformers_own_loaders(folders: dict, connectivity: Tensor, pretrained: Path) -> None:
    for folder, expected in folders.values():
        automatic = AutoPeftModelForSequenceClassification.from_pretrained(folder, **adapter_task(folder)).eval()
        torch.testing.assert_close(automatic(connectivity=connectivity).logits, expected, rtol=0, atol=1e-5)
        base = LCMForSequenceClassification.from_pretrained(pretrained, **adapter_task(folder))
        base.load_adapter(str(folder))
        torch.testing.assert_close(base.eval()(connectivity=connectivity).logits, expected, rtol=0, atol=1e-5)


def test_pefts_loader_without_the_task_fails_as_the_page_says(folders: dict) -> None:
    sex = AutoPeftModelForSequenceClassification.from_pretrained(folders["sex"][0])
    with pytest.raises(ValueError, match=r"task_edge_readout, task_embeddings: neither .*lcm.adapter_task"):
        sex(connectivity=torch.eye(REGIONS)[None])
    with pytest.raises(RuntimeError, match="size mismatch"):
        AutoPeftModelForSequenceClassification.from_pretrained(folders["state"][0])
    nameless = AutoPeftModelForSequenceClassification.from_pretrained(folders["group"][0])
    assert nameless.config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


@pytest.mark.filterwarnings("error")
def test_nothing_warns_of_pefts_use_of_transformers(pretrained: Path, tmp_path: Path) -> None:
    save_adapter(*make_adapter(pretrained, "group"), tmp_path / "adapter")
    stack_adapter(load_adapter(tmp_path / "adapter")[0], tmp_path / "adapter", "again")


@pytest.mark.parametrize("first", ["group", "sex"])
@torch.no_grad()
def test_adapters_are_stacked_on_one_base_and_switched(folders: dict, connectivity: Tensor, first: str) -> None:
    model, _ = load_adapter(folders[first][0])
    others = [task for task in folders if task != first]
    for task in others:
        assert stack_adapter(model, folders[task][0], task).tokenizer.task == task
    for name in [*others, "default", others[0], "default"]:
        use_adapter(model, name)
        task = first if name == "default" else name
        logits = model(connectivity=connectivity).logits
        torch.testing.assert_close(logits, folders[task][1], rtol=0, atol=1e-5)
        assert model.config.task_variable == task
        assert len(model.config.id2label) == logits.shape[1]
    with pytest.raises(ValueError, match="already an adapter 'state'"):
        stack_adapter(model, folders["state"][0], "state")
    with pytest.raises(ValueError, match="no adapter 'age'; there are default"):
        use_adapter(model, "age")


def test_another_base_is_refused_by_name(folders: dict, pretrained: Path, tmp_path: Path) -> None:
    folder = folders["group"][0]
    model = LCMForMultitaskPretraining.from_pretrained(pretrained)
    processor = load_processor(str(pretrained))
    with torch.no_grad():
        model.model.layers[1].fc1.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "retrained")
    with pytest.raises(ValueError, match=rf"group was made for the base model {pretrained}.*retrained has other"):
        load_adapter(folder, base=tmp_path / "retrained")
    renamed = BEITokenizer(variables=[BEIVariable("sex", "categorical", ["F", "M"]), BEIVariable("iq", "continuous")])
    config = LCMConfig.from_dict(model.config.to_dict() | {"bei_variables": renamed.model_variables})
    LCMForMultitaskPretraining(config).save_pretrained(tmp_path / "renamed")
    with pytest.raises(ValueError, match=rf"made for the base model {pretrained}, not for .*renamed.*vocabulary.*iq"):
        load_adapter(folder, base=tmp_path / "renamed")
    with pytest.raises(ValueError, match=r"The base model nowhere/at/all of the adapter .* is not within reach"):
        load_adapter(folder, base="nowhere/at/all")
    (tmp_path / "empty").mkdir()  # nor is one that PEFT saved without the task
    (tmp_path / "empty" / "adapter_config.json").write_bytes((folder / "adapter_config.json").read_bytes())
    with pytest.raises(ValueError, match="is no adapter of a Large Connectome Model"):
        load_adapter(tmp_path / "empty")
    with pytest.raises(
        FileNotFoundError, match=rf"no folder {tmp_path}/empty/a/b \(a/b is not in {tmp_path}/empty\)\."
    ):
        load_adapter(tmp_path / "empty" / "a" / "b")
    assert processor.tokenizer.task is None


def test_transformers_own_loader_takes_the_adapters_base_and_task_only(
    folders: dict, pretrained: Path, tmp_path: Path
) -> None:
    folder = folders["group"][0]
    task = adapter_task(folder)
    base = LCMForSequenceClassification.from_pretrained(pretrained, **task)
    retrained = LCMForMultitaskPretraining.from_pretrained(pretrained)
    with torch.no_grad():
        retrained.model.layers[1].fc1.weight[0, 0] += 1e-3
    retrained.save_pretrained(tmp_path / "retrained")
    other = LCMForSequenceClassification.from_pretrained(tmp_path / "retrained", **task)
    with pytest.raises(ValueError, match=rf"group was made for the base model {pretrained} .*retrained has other wei"):
        other.load_adapter(str(folder))
    variables = [*base.config.bei_variables[:-1], {**base.config.bei_variables[-1], "name": "iq"}]
    renamed = LCMForSequenceClassification(LCMConfig.from_dict(base.config.to_dict() | {"bei_variables": variables}))
    with pytest.raises(ValueError, match=r"another vocabulary: sex \(F, M\), age \(a number\) in the adapter, sex \("):
        renamed.load_adapter(str(folder))
    three = LCMForSequenceClassification.from_pretrained(pretrained, num_labels=3, task_variable="group")
    with pytest.raises(ValueError, match=r"brings 2 tokens of its task, this model has 3: .*adapter_task"):
        three.load_adapter(str(folder))
    # What cannot be compared is not refused.
    half = LCMForSequenceClassification.from_pretrained(pretrained, **task, dtype=torch.bfloat16)
    half.load_adapter(str(folder))
    assert any("lora_A" in name for name, _ in half.named_parameters())


def test_stacking_names_the_base_of_the_adapter_that_does_not_fit(
    folders: dict, pretrained: Path, tmp_path: Path
) -> None:
    model = LCMForMultitaskPretraining.from_pretrained(pretrained)
    with torch.no_grad():
        model.model.layers[1].fc1.weight[0, 0] += 1e-3
    model.save_pretrained(tmp_path / "elsewhere")
    load_processor(str(pretrained)).save_pretrained(tmp_path / "elsewhere")
    save_adapter(*make_adapter(tmp_path / "elsewhere", "state"), tmp_path / "other")
    stacked, _ = load_adapter(folders["group"][0])
    with pytest.raises(ValueError, match=rf"base model {tmp_path}/elsewhere \(.*, but {pretrained} has other weights"):
        stack_adapter(stacked, tmp_path / "other", "other")


@pytest.mark.parametrize("loader", [LCMForSequenceClassification, AutoModelForSequenceClassification])
@pytest.mark.parametrize("packed", [True, False])
def test_an_adapter_alone_is_no_model(
    pretrained: Path, tmp_path: Path, finetune_arguments: Callable[..., FinetuneArguments], loader: Any, packed: bool
) -> None:
    checkpoint = save_checkpoint(tmp_path / "tuned", *make_adapter(pretrained, "group"), finetune_arguments(), {})
    options = {"quantization_config": LCMPackedConfig("float32")} if packed else {}
    with pytest.raises(
        ValueError, match=rf"an adapter of .*{pretrained}, not .*load_adapter.*LCMPacked.*load {checkpoint}"
    ):
        loader.from_pretrained(checkpoint / "adapter", **options)
    assert loader.from_pretrained(checkpoint, **options).config.task_variable == "group"
    alone = shutil.copytree(checkpoint / "adapter", tmp_path / "alone")
    with pytest.raises(ValueError, match=r"alone is an adapter .*merge it into its base first \([^)]*\(\)[^)]*\)\.$"):
        loader.from_pretrained(alone, **options)


def test_new_weights_are_told_in_one_sentence(
    folders: dict, pretrained: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = transformers_logging.get_logger()
    monkeypatch.setattr(logger, "propagate", False)  # True where CI is set: everything would be heard twice
    logger.addHandler(caplog.handler)
    try:
        LCMForSequenceClassification.from_pretrained(pretrained, num_labels=2, task_variable="group")
        LCMForMultitaskPretraining.from_pretrained(pretrained)
        load_adapter(folders["group"][0])
    finally:
        logger.removeHandler(caplog.handler)
    (said,) = [record.getMessage() for record in caplog.records]
    new = "task_edge_readout, task_embeddings, task_layer_choice"
    assert said.startswith(f"New in this LCMForSequenceClassification, not from {pretrained}: {new}. Train them")


def test_another_atlas_is_refused(folders: dict, cohort: Cohort) -> None:
    other = FCFeatureExtractor(atlas="other", num_regions=REGIONS)
    with pytest.raises(ValueError, match="made for 10 regions of made-up-10, the data has 10 of other"):
        predict_table(str(folders["group"][0]), Cohort(cohort.table, cohort.triangles, other))


def test_predict_with_base_and_adapter_or_the_adapter_alone(
    pretrained: Path, dataset: Path, tmp_path: Path, finetune_arguments: Callable[..., FinetuneArguments]
) -> None:
    model, processor = make_adapter(pretrained, "group")
    checkpoint = save_checkpoint(tmp_path / "tuned", model, processor, finetune_arguments(), {})
    adapter = checkpoint / "adapter"
    assert is_adapter(str(adapter))
    assert not is_adapter(str(checkpoint))
    tables = []
    for number, given in enumerate(
        (["--checkpoint", checkpoint], ["--checkpoint", adapter], ["--checkpoint", pretrained, "--adapter", adapter])
    ):
        output = tmp_path / f"{number}.tsv"
        predict([*map(str, given), "--data", str(dataset), "--output", str(output)])
        tables.append(pd.read_csv(output, sep="\t"))
    assert list(tables[0])[2:5] == ["group", "group=A", "group=B"]
    assert len(tables[0]) == PEOPLE
    assert tables[0]["group=A"].nunique() > 5
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], atol=2e-4)


@pytest.mark.parametrize("name", ["./x", "~/x", "a/b/c", "runs/none", "/none/at/all"])
def test_a_mistyped_folder_is_not_looked_for_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("The Hub was asked.")

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", connect)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for loads in (is_adapter, load_adapter, load_processor):
        with pytest.raises((FileNotFoundError, ValueError), match=f"There is no folder {name}"):
            loads(name)
    assert read_record(name) == {}
    with pytest.raises(AssertionError, match="The Hub was asked"):
        is_adapter("somebody/model")


def test_an_adapter_where_a_checkpoint_is_needed(
    pretrained: Path, dataset: Path, tmp_path: Path, finetune_arguments: Callable[..., FinetuneArguments]
) -> None:
    checkpoint = save_checkpoint(tmp_path / "tuned", *make_adapter(pretrained, "group"), finetune_arguments(), {})
    adapter = str(checkpoint / "adapter")
    for needs in (load_processor, lambda place: explain(ExplainArguments(place, data=str(dataset), output="none"))):
        with pytest.raises(
            ValueError, match=f"is an adapter, .*merged into, {checkpoint}, or its base.*, {pretrained}"
        ):
            needs(adapter)


def test_what_the_folder_holds(folders: dict) -> None:
    folder: Any = folders["group"][0]
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {"adapter_config.json", "adapter_model.safetensors", "config.json", "adapter_base.json"} <= files
    # A tokenizer beside the adapter would make PEFT enlarge the base's vocabulary.
    assert "tokenizer_config.json" not in files
    assert "processor/tokenizer_config.json" in files
