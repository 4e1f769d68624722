"""Every method of the installed PEFT: exact (merged, loaded again, one by one), or refused with its name.

In double precision where the method allows it, so that a fault cannot pass for rounding.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from modeling_lcm import (
    BEITokenizer,
    BEIVariable,
    FCFeatureExtractor,
    LCMConfig,
    LCMForMultitaskPretraining,
    LCMForSequenceClassification,
    LCMModel,
    LCMProcessor,
    load_adapter,
    save_adapter,
    stack_adapter,
    use_adapter,
)
from modeling_lcm.adapters_lcm import expected_new_weights


REGIONS, LAYERS, LABELS = 16, 2, ["a", "b", "c", "d"]  # 16 regions have 120 edges: blocks of four fit everywhere
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]
ALL_LINEAR = "all-linear"
BATCHES = (LAYERS, 5)  # as many subjects as layers, as tokens, or neither: nothing may be mixed up


@dataclass(frozen=True)
class Case:
    """One method with its settings, and where it is refused, with what words.

    Args:
        method (`str`): PEFT's name of it.
        settings (`dict`): of its configuration.
        targets (`str` or `list[str]`): what is adapted.
        refused (`dict[str, str]`): pattern of the error by the step that raises it: "make", "save" or "merge".
        double (`bool`): whether the method takes weights in double precision.
    """

    method: str
    settings: dict[str, Any] = field(default_factory=dict)
    targets: Any = ALL_LINEAR
    refused: dict[str, str] = field(default_factory=dict)
    double: bool = True

    @property
    def rounding(self) -> float:
        """Largest difference of logits."""
        if not self.double:
            return 1e-4
        return 1e-6 if self.method in ("C3A", "DEFT") else 1e-9  # these have parts in single precision

    @property
    def title(self) -> str:
        """A name for the test."""
        extra = "-".join(f"{key}={value}" for key, value in self.settings.items() if key != "r")
        targets = self.targets if isinstance(self.targets, str) else "+".join(self.targets)
        return f"{self.method}-{extra}-{targets}"


# Settings of methods that do without their defaults, or need blocks that fit.
SETTINGS: dict[str, dict[str, Any]] = {
    "LORA": {"r": 2},
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10},
    "ADAMSS": {"r": 8, "num_subspaces": 2, "subspace_rank": 1},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 4},
    "FOURIERFT": {"n_frequency": 20},
    "GRALORA": {"r": 2, "gralora_k": 2},
    "IA3": {"feedforward_modules": []},
    "OFT": {"r": 0, "oft_block_size": 4},
    "OSF": {"effective_rank": 2},
    "POLY": {"r": 2, "n_tasks": 1},
    "ROAD": {"group_size": 4},
    "UNILORA": {"r": 2, "theta_d_length": 64},
    "VBLORA": {"r": 2, "num_vectors": 8, "vector_length": 4},
    "WAVEFT": {"n_frequency": 20},
    "PROMPT_TUNING": {"num_virtual_tokens": 2},
    "MULTITASK_PROMPT_TUNING": {"num_virtual_tokens": 2},
    "P_TUNING": {"num_virtual_tokens": 2},
    "PREFIX_TUNING": {"num_virtual_tokens": 2},
    "CARTRIDGE": {"num_virtual_tokens": 2},
    "CPT": {"cpt_token_ids": [0], "cpt_mask": [1], "cpt_tokens_type_mask": [1]},
    "ADAPTION_PROMPT": {"adapter_len": 2, "adapter_layers": 1},
    "TRAINABLE_TOKENS": {"token_indices": [0, 2]},
    "XLORA": {"hidden_size": 16, "adapters": {"one": "FOLDER"}},
}
NO_BIAS = "[Bb]ase layer has no bias"  # the edge read-outs have none
NO_TEXT = "Large Connectome Model has no vocab_size.*no prompt"
NOT_FOR_US = r"{} \(PEFT\) is not for Large Connectome Models: .*Load the base model anew"
REFUSED: dict[str, dict[str, str]] = {
    **{name: {"make": NOT_FOR_US.format(name)} for name in ("LILY", "POLY", "SHADOW", "XLORA")},
    **{name: {"make": NO_TEXT} for name in ("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")},
    "CARTRIDGE": {"make": NO_TEXT},
    "CPT": {"make": "CPTConfig only supports task_type = CAUSAL_LM"},
    "ADAPTION_PROMPT": {"make": "Unsupported model type for adaption prompt: 'large_connectome_model'"},
    "BEFT": {"merge": NO_BIAS},
    # Its merging leaves the read-out wrapped.
    "LN_TUNING": {"save merged": "This model holds adapters .*save_adapter"},
}
TARGETS = {"LN_TUNING": ["norm", "cross_attn_layer_norm"], "TRAINABLE_TOKENS": ["bei_embeddings"]}
SINGLE = {"ADALORA", "FOURIERFT", "PSOFT"}
MADE_AGAIN = r"would not load as it is: PEFT does not save .*other values.*merge_and_unload\(\)"


def every_method() -> list[Case]:
    """All types that the installed PEFT has, on all linear layers."""
    found = []
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        name = str(kind.value)
        ranked = "r" in config.__dataclass_fields__
        settings = SETTINGS.get(name, {"r": 2} if ranked else {})
        make = partial(Case, name, settings, double=name not in SINGLE)
        if name in TARGETS:
            found.append(make(TARGETS[name], REFUSED.get(name, {})))
            continue
        found.append(make(ALL_LINEAR, REFUSED.get(name, {})))
    return found


def kinds_of_lora() -> list[Case]:
    """LoRA's own variants."""
    lora, single = partial(Case, "LORA"), partial(Case, "LORA", double=False)
    settings: list[dict[str, Any]] = [
        {"use_rslora": True},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "eva"},
        {"init_lora_weights": False},
        {"bias": "all"},
        {"bias": "lora_only"},
        {"lora_dropout": 0.3},
        {"trainable_token_indices": {"bei_embeddings": [0, 2]}},
        {"modules_to_save": ["model.norm", "fc1"], "exclude_modules": ["fc1"]},
        {"rank_pattern": {"fc2": 3}, "alpha_pattern": {"fc2": 5}},
    ]
    for name in ("KasaConfig", "VeloraConfig", "MontecloraConfig"):
        if hasattr(peft, name):  # kinds of LoRA that this PEFT has
            settings.append({f"{name.removesuffix('Config').lower()}_config": getattr(peft, name)()})
    return [
        *(lora({"r": 2, **chosen}) for chosen in settings),
        lora({"r": 2}, PROJECTIONS),
        *(single({"r": 2, "init_lora_weights": start}) for start in ("pissa", "olora")),
        lora({"r": 2, "use_dora": True}, PROJECTIONS),
        lora({"r": 2, "use_dora": True, "exclude_modules": ["task_edge_readout"]}, ALL_LINEAR),
        lora(
            {"r": 2, "use_dora": True}, ALL_LINEAR, {"make": r"DoRA divides .* of task_edge_readout are zero.*exclude"}
        ),
        lora({"r": 2, "use_dora": True}, ["bei_embeddings", "bei_edge_readout"]),
        lora({"r": 2}, "score|.*fc1"),
        lora({"r": 2}, ["bei_embeddings", "task_embeddings", "bei_edge_readout"]),
        lora({"r": 2, "lora_bias": True}, PROJECTIONS),
        lora({"r": 2, "lora_bias": True}, ALL_LINEAR, {"merge": NO_BIAS}),
        # Its decomposition is random, so that nobody could make it again.
        single({"r": 2, "init_lora_weights": "pissa_niter_4"}, ALL_LINEAR, {"save": MADE_AGAIN}),
        lora({"r": 2, "alora_invocation_tokens": [1]}, ALL_LINEAR, {"make": NOT_FOR_US.format(".* of LORA")}),
        lora({"r": 2, "layer_replication": [[0, 2], [1, 2]]}, ALL_LINEAR, {"make": NOT_FOR_US.format(".* of LORA")}),
        Case("IA3", {"feedforward_modules": ["fc1", "fc2"]}, PROJECTIONS),
        Case("IA3", {"feedforward_modules": ["fc1"]}, ALL_LINEAR, {"save": "could not be loaded again: .*subset"}),
        Case("BEFT", {}, PROJECTIONS),
        Case("TRAINABLE_TOKENS", {"token_indices": [0]}, ALL_LINEAR, {"make": "Trainable tokens .*stem.proj is none"}),
        Case("TRAINABLE_TOKENS", {"token_indices": [0]}, ["task_embeddings"]),
        Case("VERA", {"r": 2, "save_projection": False}, PROJECTIONS),
        Case("VBLORA", {**SETTINGS["VBLORA"], "save_only_topk_weights": True}, ALL_LINEAR, {"save": "VBLORA"}),
        # In double precision it trains a number that PEFT does not save.
        Case("ADALORA", SETTINGS["ADALORA"], PROJECTIONS, {"save": "PEFT does not save .*ranknum"}),
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model with an edge read-out, no tensor of it zero, in double precision."""
    torch.manual_seed(0)
    tokenizer = BEITokenizer(
        variables=[
            BEIVariable("sex", "categorical", ["F", "M"]),
            BEIVariable("state", "categorical", ["rest", "task"]),
        ]
    )
    width = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    model = LCMForMultitaskPretraining(
        LCMConfig(num_regions=REGIONS, bei_variables=tokenizer.model_variables, edge_readout=True, **width)
    ).double()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(0.1 * torch.randn_like(tensor))
        model(connectomes(8))  # running means
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    LCMProcessor(FCFeatureExtractor(atlas="made-up-16", num_regions=REGIONS), tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def task_model(base: Path) -> Callable[..., LCMForSequenceClassification]:
    """Factory of the base model with a new task of four labels."""

    def make(**settings: Any) -> LCMForSequenceClassification:
        names = {"id2label": dict(enumerate(LABELS)), "label2id": {name: i for i, name in enumerate(LABELS)}}
        chosen = {"task_variable": "group", "supervision": "adaptive", "dtype": torch.float64, **names, **settings}
        with expected_new_weights():
            return LCMForSequenceClassification.from_pretrained(base, **chosen)

    return make


@pytest.fixture
def processor(base: Path) -> LCMProcessor:
    """The base model's, with the task."""
    found = LCMProcessor.from_pretrained(base)
    task = BEIVariable("group", "categorical", LABELS)
    return LCMProcessor(found.feature_extractor, found.tokenizer.add_variable(task, task=True))


def connectomes(count: int, seed: int = 0) -> Tensor:
    """FC of noise, `(count, regions, regions)`."""
    generator = torch.Generator().manual_seed(seed)
    series = torch.randn(count, REGIONS, 40, generator=generator, dtype=torch.float64)
    return torch.stack([torch.corrcoef(scan) for scan in series])


def train(model: Any) -> None:
    """Two steps that move the running means, the choice of layers and the weights; and some noise on those."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for seed in (1, 2):
        optimizer.zero_grad()
        model(connectivity=connectomes(6, seed), labels=torch.tensor([0, 1, 2, 3, 0, 1])).loss.backward()
        optimizer.step()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.eval()


@torch.no_grad()
def logits(model: Any, connectivity: Tensor) -> Tensor:
    """Logits of every layer and of the read-out, side by side."""
    outputs = model.eval()(connectivity=connectivity)
    return torch.cat([outputs.layer_logits.flatten(1), outputs.logits, outputs.bei_logits], 1)


class _Refused(Exception):
    pass


def step(case: Case, name: str, action: Callable[[], Any]) -> Any:
    """Do something, which has to be refused in the case's words where the case says so."""
    if name not in case.refused:
        return action()
    with pytest.raises(
        (ValueError, RuntimeError, NotImplementedError), match=re.compile(case.refused[name], re.DOTALL)
    ):
        action()
    raise _Refused


def adapt(case: Case, model: Any, folder: Path) -> PeftModel:
    """The model with the case's adapter."""
    config = next(kind for name, kind in PEFT_TYPE_TO_CONFIG_MAPPING.items() if name.value == case.method)
    known = config.__dataclass_fields__
    settings: dict[str, Any] = {key: value for key, value in case.settings.items() if key in known}
    if "target_modules" in known and case.method != "XLORA":
        settings["target_modules"] = case.targets
    if case.method == "XLORA":
        get_peft_model(model, LoraConfig(target_modules=["fc1"])).save_pretrained(folder / "lora")
        settings["adapters"] = {"one": str(folder / "lora")}
    return get_peft_model(model, config(task_type="SEQ_CLS", **settings))


@pytest.mark.parametrize("case", [*every_method(), *kinds_of_lora()], ids=lambda case: case.title)
@pytest.mark.filterwarnings("ignore")
def test_a_method_is_exact_or_refused(
    case: Case, task_model: Callable[..., LCMForSequenceClassification], processor: LCMProcessor, tmp_path: Path
) -> None:
    try:
        _check(case, task_model, processor, tmp_path)
    except _Refused:
        return


def _check(case: Case, task_model: Callable, processor: LCMProcessor, folder: Path) -> None:
    close = partial(torch.testing.assert_close, rtol=0, atol=case.rounding)
    dtype = torch.float64 if case.double else torch.float32
    model = step(case, "make", lambda: adapt(case, task_model(dtype=dtype), folder))
    train(model)
    expected = logits(model, connectomes(5))
    with model.disable_adapter():
        assert (logits(model, connectomes(5)) - expected).abs().max() > 1e-4
    for size in BATCHES:
        together = logits(model, connectomes(size))
        close(together, torch.cat([logits(model, scan[None]) for scan in connectomes(size)]))
    step(case, "save", lambda: save_adapter(model, processor, folder / "adapter"))
    torch.manual_seed(123)  # nothing may come from where the generator happened to be
    loaded, _ = load_adapter(folder / "adapter")
    close(logits(loaded, connectomes(5)), expected)
    for merging in (loaded, model):
        merged = step(case, "merge", partial(merging.merge_and_unload, safe_merge=True))
        close(logits(merged, connectomes(5)), expected)
    step(case, "save merged", lambda: merged.save_pretrained(folder / "merged"))
    again = LCMForSequenceClassification.from_pretrained(folder / "merged", dtype=dtype)
    close(logits(again, connectomes(5)), expected)


def test_a_mixture_of_methods_is_as_its_merged_weights(
    task_model: Callable[..., LCMForSequenceClassification],
) -> None:
    settings = {"target_modules": PROJECTIONS, "r": 2}
    model = get_peft_model(task_model(), LoraConfig(**settings, init_lora_weights=False), mixed=True)
    model.add_adapter("other", peft.LoHaConfig(**settings, init_weights=False))
    model.set_adapter(["default", "other"])
    expected = logits(model, connectomes(5))
    close = partial(torch.testing.assert_close, rtol=0, atol=1e-9)
    close(torch.cat([logits(model, scan[None]) for scan in connectomes(5)]), expected)
    close(logits(model.merge_and_unload(), connectomes(5)), expected)


@pytest.mark.parametrize(
    "config",
    [LoraConfig(r=2), peft.IA3Config(feedforward_modules=[]), peft.RoadConfig(group_size=4)],
    ids=["LORA", "IA3", "ROAD"],
)
def test_a_batch_for_several_adapters_is_refused(
    task_model: Callable[..., LCMForSequenceClassification], config: Any
) -> None:
    config.target_modules = ["q_proj", "fc1"]
    model = get_peft_model(task_model(), config).eval()
    model.add_adapter("other", config)
    expected = logits(model, connectomes(2))
    with pytest.raises(ValueError, match=r"adapter_names: a batch .* has one adapter.*use_adapter"):
        model(connectivity=connectomes(2), adapter_names=["default", "other"])
    assert torch.equal(logits(model, connectomes(2)), expected)  # PEFT's hooks are gone


def test_a_later_adapter_is_refused_in_use(task_model: Callable[..., LCMForSequenceClassification]) -> None:
    model = get_peft_model(task_model(), LoraConfig(r=2, target_modules=["fc1"])).eval()
    model.add_adapter("later", LoraConfig(r=2, target_modules=["fc1"], alora_invocation_tokens=[1]))
    with pytest.raises(ValueError, match="alora_invocation_tokens of LORA"):
        logits(model, connectomes(2))


def test_the_base_model_alone_can_be_adapted(base: Path) -> None:
    model = LCMModel.from_pretrained(base, dtype=torch.float64)
    settings = LoraConfig(r=2, target_modules=ALL_LINEAR, task_type="FEATURE_EXTRACTION", init_lora_weights=False)
    adapted = get_peft_model(model, settings).eval()
    with torch.no_grad():
        expected = adapted(connectivity=connectomes(2)).last_hidden_state
        merged = adapted.merge_and_unload()(connectivity=connectomes(2)).last_hidden_state
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-9)


def test_adapters_of_several_methods_share_a_base(
    task_model: Callable[..., LCMForSequenceClassification], processor: LCMProcessor, tmp_path: Path
) -> None:
    """Also where one adapts the task's own modules, which the base model does not have, and where one is PiSSA's."""
    expected = {}
    for name, settings in {"small": {"target_modules": PROJECTIONS}, "wide": {"target_modules": ALL_LINEAR}}.items():
        model = get_peft_model(task_model(), LoraConfig(task_type="SEQ_CLS", r=2, **settings))
        torch.nn.init.normal_(model.get_base_model().task_embeddings.weight)
        train(model)
        save_adapter(model, processor, tmp_path / name)
        expected[name] = logits(model, connectomes(3))
    loaded, _ = load_adapter(tmp_path / "small")
    stack_adapter(loaded, tmp_path / "wide", "wide")
    for name, adapter in (("small", "default"), ("wide", "wide"), ("small", "default")):
        use_adapter(loaded, adapter)
        torch.testing.assert_close(logits(loaded, connectomes(3)), expected[name], rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match=r"'score' is also the name of a part"):
        stack_adapter(loaded, tmp_path / "wide", "score")
    for start in (True, "pissa"):
        lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["fc1"], init_lora_weights=start)
        save_adapter(get_peft_model(task_model(dtype=torch.float32), lora), processor, tmp_path / f"single {start}")
    with pytest.raises(ValueError, match=r"single True was made with dtype=torch\.float32, .* with torch\.float64"):
        stack_adapter(loaded, tmp_path / "single True", "third")
    single, _ = load_adapter(tmp_path / "single True")
    with pytest.raises(ValueError, match=r"single pissa \(LORA\) changes weights of its base model"):
        stack_adapter(single, tmp_path / "single pissa", "third")
