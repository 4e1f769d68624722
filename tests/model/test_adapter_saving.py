"""A user's own adapter comes back as it was: whatever differs from the base is in its folder, or saving is refused."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import IA3Config, LoraConfig, PeftModel, TrainableTokensConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn

from modeling_lcm import (
    BEITokenizer,
    BEIVariable,
    FCFeatureExtractor,
    LCMConfig,
    LCMForMultitaskPretraining,
    LCMForSequenceClassification,
    LCMProcessor,
    load_adapter,
    save_adapter,
    stack_adapter,
)
from modeling_lcm.adapters_lcm import expected_new_weights
from tests.conftest import REPOSITORY


REGIONS = 10
LABELS = ["a", "b", "c"]
TASK = {"task_variable": "group", "id2label": dict(enumerate(LABELS)), "label2id": {"a": 0, "b": 1, "c": 2}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model with running means, and its processor."""
    torch.manual_seed(0)
    variables = [BEIVariable("sex", "categorical", ["F", "M"]), BEIVariable("age", "continuous")]
    tokenizer = BEITokenizer(variables=variables)
    width = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = LCMConfig(
        num_regions=REGIONS, bei_variables=tokenizer.model_variables, edge_readout=True, normalize_rows=True, **width
    )
    model = LCMForMultitaskPretraining(config)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
        model(connectomes(8))
    folder = tmp_path_factory.mktemp("pretrained") / "base"
    model.save_pretrained(folder)
    LCMProcessor(FCFeatureExtractor(atlas="made-up-10", num_regions=REGIONS), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def processor(base: Path) -> LCMProcessor:
    """The base model's, with the task."""
    found = LCMProcessor.from_pretrained(base)
    task = BEIVariable("group", "categorical", LABELS)
    return LCMProcessor(found.feature_extractor, found.tokenizer.add_variable(task, task=True))


def connectomes(count: int, seed: int = 0) -> Tensor:
    """FC of noise, `(count, regions, regions)`."""
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([torch.corrcoef(scan) for scan in torch.randn(count, REGIONS, 30, generator=generator)])


def task_model(base: Path, **options: Any) -> LCMForSequenceClassification:
    """The base model with a new task."""
    with expected_new_weights():
        return LCMForSequenceClassification.from_pretrained(base, **{**TASK, **options})


def own_lora(model: nn.Module, name: str = "default", **options: Any) -> PeftModel:
    """What a user writes who knows PEFT, and not this package."""
    chosen = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["q_proj", "fc1"], **options}
    return get_peft_model(model, LoraConfig(**chosen), adapter_name=name)


def train(model: nn.Module, steps: int = 3) -> None:
    """A few steps with momentum, then the adaptive stage: weights, running means and the choice of layers move."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    for seed in range(steps):
        optimizer.zero_grad()
        model(connectivity=connectomes(6, seed), labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss.backward()
        optimizer.step()
    model.eval()


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Logits of five subjects: of every layer, of the task and of the pretrained variables."""
    outputs = model(connectivity=connectomes(5, seed=9))
    return torch.cat([outputs.layer_logits.flatten(1), outputs.logits, outputs.bei_logits], 1).float()


def assert_comes_back(model: PeftModel, processor: LCMProcessor, folder: Path, **options: Any) -> PeftModel:
    """Save and load, and compare predictions; returns what was loaded."""
    expected = logits(model.eval())
    save_adapter(model, processor, folder)
    torch.manual_seed(99)  # new weights that are not in the folder would be others now
    loaded, _ = load_adapter(folder, **options)
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=1e-5)
    return loaded


def part(name: str, value: float) -> Callable[[Any], None]:
    """Something that changes a part of a model."""

    def change(model: Any) -> None:
        model.get_submodule(name.rpartition(".")[0]).state_dict()[name.rpartition(".")[2]].add_(value)

    return change


def other_layer(name: str) -> Callable[[Any], None]:
    """The next one of three layers."""
    return lambda model: model.get_submodule(name).best_layer.add_(1).remainder_(3)


CHANGES: dict[str, Callable[[Any], None]] = {
    "nothing else": lambda model: None,
    "new tokens": part("task_embeddings.weight", 0.5),
    "edges of new tokens": part("task_edge_readout.weight", 0.1),
    "edges of pretrained tokens": part("bei_edge_readout.weight", 0.1),
    "running mean": part("model.stem.norm.running_mean", 0.3),
    "running variance": part("model.stem.norm.running_var", 0.3),
    "number of batches": part("model.stem.norm.num_batches_tracked", 3),
    "mean of the edges": part("edge_features.mean", 0.2),
    "choice of layers": other_layer("task_layer_choice"),
    "choice of pretrained layers": other_layer("bei_layer_choice"),
    "pretrained tokens": part("model.bei_embeddings.weight", 0.3),
    "stem": part("model.stem.proj.weight", 0.1),
    "last norm": part("model.norm.weight", 0.3),
    "a layer's norm": part("model.layers.1.final_layer_norm.bias", 0.3),
    "a projection without adapter": part("model.layers.1.cross_attn.v_proj.weight", 0.1),
}


@pytest.mark.parametrize(
    ("config", "change"),
    [
        *((config, change) for config in (LoraConfig, IA3Config) for change in CHANGES),
        *((TrainableTokensConfig, change) for change in CHANGES if change != "pretrained tokens"),  # it trains these
    ],
)
def test_whatever_changed_comes_back(
    base: Path, processor: LCMProcessor, tmp_path: Path, config: type, change: str
) -> None:
    model = task_model(base, supervision="adaptive")
    if config is TrainableTokensConfig:
        adapted = get_peft_model(model, config(token_indices=[0, 2], target_modules=["bei_embeddings"]))
    else:
        more = {"feedforward_modules": ["fc1"]} if config is IA3Config else {}
        adapted = get_peft_model(model, config(task_type="SEQ_CLS", target_modules=["q_proj", "fc1"], **more))
    train(adapted)
    inner = adapted.get_base_model()
    with torch.no_grad():
        CHANGES[change](inner)
    loaded = assert_comes_back(adapted, processor, tmp_path / "adapter").get_base_model()
    for name in ("task_layer_choice", "bei_layer_choice", "edge_features"):
        saved = getattr(inner, name).state_dict()
        found = {
            key.removeprefix("modules_to_save.default."): t for key, t in getattr(loaded, name).state_dict().items()
        }
        assert all(torch.equal(found[key], tensor) for key, tensor in saved.items()), name


@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_any_tensors_come_back_or_are_named(
    base: Path, processor: LCMProcessor, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Any parameters and buffers change in place; only weights under an adapter are not PEFT's to save."""
    model = own_lora(task_model(base))
    tensors = model.get_base_model().state_dict()
    names = [name for name, tensor in tensors.items() if tensor.is_floating_point() and "running_loss" not in name]
    chosen = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
    for name in chosen:
        tensors[name].mul_(1.5).add_(0.25)
    folder = tmp_path_factory.mktemp("any") / "adapter"
    if any("base_layer" in name for name in chosen):
        with pytest.raises(ValueError, match=r"PEFT does not save model\.layers"):
            save_adapter(model, processor, folder)
        assert not folder.exists()
    else:
        assert_comes_back(model, processor, folder)


@pytest.mark.parametrize(
    "options",
    [
        {"edge_shrinkage": 0.6},
        {"normalize_rows": False},
        {"layer_norm_eps": 0.1, "batch_norm_eps": 0.2},
        {"supervision": "last_layer"},
        {"readout": "max"},
        {"class_weights": {"group": [1.0, 2.0, 3.0]}, "bei_loss_weight": 0.5},
        {"problem_type": "multi_label_classification"},
        {"task_variable": "sex", "id2label": {0: "F", 1: "M"}, "label2id": {"F": 0, "M": 1}},
    ],
    ids=lambda options: next(iter(options)),
)
def test_settings_come_back(base: Path, processor: LCMProcessor, tmp_path: Path, options: dict[str, Any]) -> None:
    model = own_lora(task_model(base, **options))
    loaded = assert_comes_back(model, processor, tmp_path / "adapter").get_base_model()
    for name in options:
        assert getattr(loaded.config, name) == getattr(model.get_base_model().config, name), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("targets", [["q_proj", "fc1"], "all-linear"], ids=str)
def test_precision_comes_back(
    base: Path, processor: LCMProcessor, tmp_path: Path, dtype: torch.dtype, targets: Any
) -> None:
    model = own_lora(task_model(base, dtype=dtype), target_modules=targets, init_lora_weights=False).eval()
    expected = logits(model)
    save_adapter(model, processor, tmp_path / "adapter")
    loaded, _ = load_adapter(tmp_path / "adapter")
    assert loaded.get_base_model().dtype == dtype
    atol = 1e-5 if dtype == torch.float64 else 0.05
    torch.testing.assert_close(logits(loaded), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["default", "mine"])
@pytest.mark.parametrize("task_type", ["SEQ_CLS", None])
def test_names_and_task_types(base: Path, processor: LCMProcessor, tmp_path: Path, name: str, task_type: Any) -> None:
    model = own_lora(task_model(base), name, task_type=task_type)
    train(model)
    assert_comes_back(model, processor, tmp_path / "adapter")
    model.add_adapter("second", LoraConfig(r=3, target_modules=["fc2"], init_lora_weights=False))
    model.set_adapter("second")
    assert_comes_back(model, processor, tmp_path / "second")
    assert not (tmp_path / "second" / name).exists()


def test_little_is_saved(base: Path, processor: LCMProcessor, tmp_path: Path) -> None:
    """What is as in the base is not in the folder."""
    model = own_lora(task_model(base))
    save_adapter(model, processor, tmp_path / "untrained")
    saved = {
        key.removeprefix("base_model.model.").split(".")[0] for key in load_file(tmp_path / "untrained" / WEIGHTS)
    }
    assert saved == {"model", "score", "task_embeddings", "task_edge_readout", "task_layer_choice"}
    train(model)
    save_adapter(model, processor, tmp_path / "trained")
    more = load_file(tmp_path / "trained" / WEIGHTS).keys() - load_file(tmp_path / "untrained" / WEIGHTS).keys()
    moved = {key.removeprefix("base_model.model.").rpartition(".")[0] for key in more}
    assert moved == {"model.stem.norm", "edge_features"}


WEIGHTS = "adapter_model.safetensors"


@pytest.mark.parametrize("keeps", ["in memory alone", "removed"])
def test_a_base_out_of_reach_is_told_by_its_layers(
    base: Path, processor: LCMProcessor, tmp_path: Path, keeps: str
) -> None:
    """All but the layers is saved then, and a base with other layers is refused."""
    if keeps == "removed":
        place = shutil.copytree(base, tmp_path / "gone")
        model = task_model(place)
        shutil.rmtree(place)
    else:
        config = task_model(base).config
        config.name_or_path = ""
        model = LCMForSequenceClassification(config)
        model.load_state_dict(task_model(base).state_dict())
    adapted = own_lora(model)
    train(adapted)
    assert_comes_back(adapted, processor, tmp_path / "adapter", base=base)
    with pytest.raises(ValueError, match=r"does not say what its base model is|not within reach"):
        load_adapter(tmp_path / "adapter")
    other = LCMForMultitaskPretraining(LCMForMultitaskPretraining.from_pretrained(base).config)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="other has other weights"):
        load_adapter(tmp_path / "adapter", base=tmp_path / "other")


@pytest.mark.parametrize("change", ["model.norm.weight", "model.stem.norm.weight", "edge_features.mean", "score.bias"])
@pytest.mark.parametrize("stacked", [True, False])
def test_a_base_that_differs_in_little_is_refused(
    base: Path, processor: LCMProcessor, tmp_path: Path, change: str, stacked: bool
) -> None:
    """Unless the adapter brings that part itself."""
    model = LCMForMultitaskPretraining.from_pretrained(base)
    model.state_dict()[change].add_(0.1)
    model.save_pretrained(tmp_path / "other")
    save_adapter(own_lora(task_model(base)), processor, tmp_path / "adapter")
    save_adapter(own_lora(task_model(tmp_path / "other")), processor, tmp_path / "others")
    if change == "score.bias":  # PEFT trains the read-out whole
        load_adapter(tmp_path / "adapter", base=tmp_path / "other")
        return
    with pytest.raises(ValueError, match=f"made for the base model {base}, but .*other has another {change}"):
        if stacked:
            stack_adapter(load_adapter(tmp_path / "others")[0], tmp_path / "adapter", "second")
        else:
            load_adapter(tmp_path / "adapter", base=tmp_path / "other")


def test_what_would_not_load_is_not_saved(base: Path, processor: LCMProcessor, tmp_path: Path) -> None:
    def refused(model: Any, words: str) -> None:
        with pytest.raises(ValueError, match=words) as error:
            save_adapter(model, processor, tmp_path / "adapter")
        assert not (tmp_path / "adapter").exists()
        assert len(str(error.value)) < 400

    model = own_lora(task_model(base), init_lora_weights=False)
    refused(model.get_base_model(), "save_adapter needs a PeftModel around LCMForSequenceClassification")
    pretrained = LCMForMultitaskPretraining.from_pretrained(base)
    refused(own_lora(pretrained, task_type=None), "got PeftModel around LCMForMultitaskPretraining")
    with model.disable_adapter():
        refused(model, "'default' is disabled")
    for module in model.modules():
        if hasattr(module, "set_scale"):
            module.set_scale("default", 0.1)
    refused(model, "has other predictions when it is loaded, by ")
    model.merge_adapter()
    refused(model, r"'default' is merged .*unmerge_adapter\(\)")
    with pytest.raises(ValueError, match="holds adapters"):
        model.get_base_model().save_pretrained(tmp_path / "adapter")
    quantised = own_lora(task_model(base))
    quantised.get_base_model().is_quantized = True
    refused(quantised, "The base model is quantised")


def test_an_incomplete_folder_is_refused(base: Path, processor: LCMProcessor, tmp_path: Path) -> None:
    """As earlier versions left it of adapters that PEFT alone had made: without the task's tokens."""
    save_adapter(own_lora(task_model(base)), processor, tmp_path / "adapter")
    own_lora(task_model(base)).save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(
        ValueError, match=r"task_edge_readout.weight, task_embeddings.weight, .* neither in the adapter"
    ):
        load_adapter(tmp_path / "adapter")


def test_peft_alone_is_refused_in_use(base: Path, tmp_path: Path) -> None:
    """PEFT loads its own folder without the task's tokens, and without a word."""
    own_lora(task_model(base)).save_pretrained(str(tmp_path / "adapter"))
    loaded = PeftModel.from_pretrained(task_model(base), tmp_path / "adapter")
    with pytest.raises(ValueError, match="task_edge_readout, task_embeddings: neither the base model nor the adapter"):
        logits(loaded)
    # Without a task of its own nothing is missing.
    sex = {"task_variable": "sex", "id2label": {0: "F", 1: "M"}, "label2id": {"F": 0, "M": 1}}
    model = own_lora(task_model(base, **sex), init_lora_weights=False).eval()
    model.save_pretrained(str(tmp_path / "sex"))
    again = PeftModel.from_pretrained(task_model(base, **sex), tmp_path / "sex").eval()
    torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-6)


def test_saving_leaves_the_run_as_it_is(base: Path, processor: LCMProcessor, tmp_path: Path) -> None:
    """Random numbers, modes, running means, gradients: a run may save and go on."""
    model = own_lora(task_model(base))
    train(model)
    model.train()
    model.get_base_model().model.stem.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    save_adapter(model, processor, tmp_path / "adapter")
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_errors_on_the_page(base: Path, processor: LCMProcessor, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "finetuning.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(.*?)`", page.split("## What an error says")[1], re.MULTILINE)[-4:]
    model = own_lora(task_model(base))
    save_adapter(model, processor, tmp_path / "adapter")
    model.get_base_model().model.layers[0].fc1.base_layer.weight.data.mul_(2)
    model.save_pretrained(str(tmp_path / "peft"))
    other = LCMForMultitaskPretraining.from_pretrained(base)
    other.model.norm.weight.data.mul_(2)
    other.save_pretrained(tmp_path / "other")
    actions: list[Callable[[], Any]] = [
        lambda: own_lora(task_model(base), alora_invocation_tokens=[1]),
        lambda: save_adapter(model, processor, tmp_path / "changed"),
        lambda: logits(PeftModel.from_pretrained(task_model(base), tmp_path / "peft")),
        lambda: load_adapter(tmp_path / "adapter", base=tmp_path / "other"),
    ]
    for message, action in zip(listed, actions, strict=True):
        with pytest.raises(ValueError, match=message):
            action()
