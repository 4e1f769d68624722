"""Saving and loading: bitwise round trips, and clear refusals of everything that does not fit."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining, LCMForSequenceClassification, LCMModel


MakeConfig = Callable[..., LCMConfig]


@pytest.fixture
def trained(tiny_config: LCMConfig, connectivity: Tensor, labels: Tensor) -> LCMForMultitaskPretraining:
    """Tiny model after two training steps: running statistics and layer choice are no longer the initial ones."""
    model = LCMForMultitaskPretraining(tiny_config).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(2):
        model(connectivity, labels=labels).loss.backward()
        optimiser.step()
    model.bei_layer_choice.best_layer.copy_(torch.tensor([0, 2, 1]))
    return model.eval()


@pytest.fixture
def saved(trained: LCMForMultitaskPretraining, tmp_path: Path) -> Path:
    """Folder that the trained model was saved to."""
    trained.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Let `change` edit the saved tensors."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder: Path, **changes: object) -> None:
    """Edit the saved configuration."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def assert_same_tensors(one: torch.nn.Module, other: torch.nn.Module) -> None:
    """Both have the same tensors, bit by bit, buffers included."""
    expected = other.state_dict()
    assert one.state_dict().keys() == expected.keys()
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.dtype == expected[name].dtype, name


class TestRoundTrip:
    """What was saved comes back."""

    def test_bitwise(self, trained: LCMForMultitaskPretraining, saved: Path, connectivity: Tensor) -> None:
        loaded, info = LCMForMultitaskPretraining.from_pretrained(saved, output_loading_info=True)
        assert not any(info.values())
        assert_same_tensors(loaded, trained)
        assert loaded.model.stem.norm.num_batches_tracked == 2
        assert loaded.bei_layer_choice.best_layer.tolist() == [0, 2, 1]
        assert not loaded.training
        # Loaded weights lie elsewhere in memory, which may change the last bit of a product.
        assert torch.allclose(loaded(connectivity).logits, trained(connectivity).logits, atol=1e-6)

    def test_shards(self, trained: LCMForMultitaskPretraining, tmp_path: Path) -> None:
        trained.save_pretrained(tmp_path, max_shard_size="8KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
        assert_same_tensors(LCMForMultitaskPretraining.from_pretrained(tmp_path), trained)

    def test_config(self, make_config: MakeConfig, tmp_path: Path) -> None:
        config = make_config(supervision="adaptive", task_variable="sex", bei_loss_weight=0.5, num_labels=2)
        config.save_pretrained(tmp_path)
        loaded = LCMConfig.from_pretrained(tmp_path).to_dict()
        assert loaded.pop("transformers_version")
        expected = config.to_dict()
        expected.pop("transformers_version")
        assert loaded == expected

    def test_bfloat16_stays_bfloat16(self, trained: LCMForMultitaskPretraining, tmp_path: Path) -> None:
        trained.to(torch.bfloat16).save_pretrained(tmp_path)
        loaded = LCMForMultitaskPretraining.from_pretrained(tmp_path)
        assert loaded.dtype == torch.bfloat16
        assert_same_tensors(loaded, trained)


class TestBetweenClasses:
    """A checkpoint of one class loads into another where that makes sense; only heads may differ."""

    def test_pretrained_to_task_to_base(
        self, trained: LCMForMultitaskPretraining, saved: Path, tmp_path: Path, connectivity: Tensor
    ) -> None:
        task, info = LCMForSequenceClassification.from_pretrained(saved, num_labels=3, output_loading_info=True)
        assert {name.split(".")[0] for name in info["missing_keys"]} == {"task_embeddings", "task_layer_choice"}
        assert_same_tensors(task.model, trained.model)
        assert_same_tensors(task.score, trained.score)
        assert_same_tensors(task.bei_layer_choice, trained.bei_layer_choice)
        assert task.task_layer_choice.best_layer.tolist() == [2]
        task.save_pretrained(tmp_path / "task")
        base = LCMModel.from_pretrained(tmp_path / "task")
        assert_same_tensors(base, trained.model)
        again = LCMForMultitaskPretraining.from_pretrained(tmp_path / "task")
        assert torch.allclose(again(connectivity).logits, trained(connectivity).logits, atol=1e-6)

    def test_base_to_head(self, trained: LCMForMultitaskPretraining, tmp_path: Path) -> None:
        trained.model.save_pretrained(tmp_path)
        assert_same_tensors(LCMForMultitaskPretraining.from_pretrained(tmp_path).model, trained.model)

    def test_new_task_embeddings_are_initialised(self, saved: Path) -> None:
        # Freshly allocated memory often still holds these values, so an untouched tensor would show.
        poison = [torch.full((4, 16), 1e9) for _ in range(100)]
        del poison
        task = LCMForSequenceClassification.from_pretrained(saved, num_labels=4)
        assert 0.5 < task.task_embeddings.weight.std() < 2

    def test_pretrained_variable_as_task(
        self, trained: LCMForMultitaskPretraining, saved: Path, connectivity: Tensor
    ) -> None:
        task = LCMForSequenceClassification.from_pretrained(saved, task_variable="sex", num_labels=2)
        assert torch.allclose(task(connectivity).logits, trained(connectivity).logits[:, 3:5], atol=1e-6)


class TestRefusals:
    """Weights that do not fit are an error that names what is wrong."""

    @pytest.mark.parametrize(
        "name",
        [
            "model.norm.weight",
            "model.layers.1.cross_attn.v_proj.bias",
            "model.stem.norm.running_mean",
            "score.weight",
            "bei_layer_choice.best_layer",
        ],
    )
    def test_removed(self, saved: Path, name: str) -> None:
        change_weights(saved, lambda tensors: tensors.pop(name))
        with pytest.raises(ValueError, match=rf"missing \['{name}'\], not in the model \[\]"):
            LCMForMultitaskPretraining.from_pretrained(saved)

    def test_removed_from_the_base_of_a_task(self, saved: Path) -> None:
        change_weights(saved, lambda tensors: tensors.pop("model.norm.weight"))
        with pytest.raises(ValueError, match=r"missing \['model.norm.weight'\]"):
            LCMForSequenceClassification.from_pretrained(saved, num_labels=3)

    def test_renamed(self, saved: Path) -> None:
        change_weights(saved, lambda tensors: tensors.update({"model.nrm.bias": tensors.pop("model.norm.bias")}))
        with pytest.raises(ValueError, match=r"missing \['model.norm.bias'\], not in the model \['model.nrm.bias'\]"):
            LCMForMultitaskPretraining.from_pretrained(saved)

    @pytest.mark.parametrize("name", ["score.extra", "stranger"])
    def test_extra(self, saved: Path, name: str) -> None:
        change_weights(saved, lambda tensors: tensors.update({name: torch.zeros(2)}))
        with pytest.raises(ValueError, match=rf"missing \[\], not in the model \['{name}'\]"):
            LCMForMultitaskPretraining.from_pretrained(saved)

    def test_other_shape(self, saved: Path) -> None:
        change_weights(saved, lambda tensors: tensors.update({"score.weight": torch.zeros(1, 17)}))
        with pytest.raises(ValueError, match=r"score.weight is \(1, 17\) in the file and \(1, 16\) in the model"):
            LCMForMultitaskPretraining.from_pretrained(saved)
        loaded = LCMForMultitaskPretraining.from_pretrained(saved, ignore_mismatched_sizes=True)
        assert loaded.score.weight.shape == (1, 16)

    def test_other_number_of_regions(self, saved: Path) -> None:
        with pytest.raises(ValueError, match=r"model.stem.proj.weight is \(16, 12\) in the file and \(16, 13\)"):
            LCMForMultitaskPretraining.from_pretrained(saved, num_regions=13)

    @pytest.mark.parametrize("kept", [0, 5, 100, 0.5, 0.999])
    def test_truncated(self, saved: Path, kept: float) -> None:
        weights = saved / "model.safetensors"
        size = weights.stat().st_size
        os.truncate(weights, int(kept * size) if 0 < kept < 1 else int(kept))
        with pytest.raises(ValueError, match="the file is truncated or damaged"):
            LCMForMultitaskPretraining.from_pretrained(saved)

    def test_other_model(self, saved: Path) -> None:
        change_config(saved, model_type="bert")
        with pytest.raises(ValueError, match="configuration of a 'bert' model, not of a Large Connectome Model"):
            LCMForMultitaskPretraining.from_pretrained(saved)

    def test_unknown_setting(self, saved: Path) -> None:
        change_config(saved, num_region=12)
        with pytest.raises(ValueError, match="no setting 'num_region': did you mean num_regions"):
            LCMForMultitaskPretraining.from_pretrained(saved)

    def test_incomplete_state_dict_is_not_saved(self, trained: LCMForMultitaskPretraining, tmp_path: Path) -> None:
        state = trained.state_dict()
        state["stranger"] = state.pop("score.bias")
        message = r"missing \['score.bias'\], not in the model \['stranger'\]"
        with pytest.raises(ValueError, match=message):
            trained.save_pretrained(tmp_path / "incomplete", state_dict=state)
        assert not (tmp_path / "incomplete").exists()
        trained.save_pretrained(tmp_path / "complete", state_dict=trained.state_dict())
        assert_same_tensors(LCMForMultitaskPretraining.from_pretrained(tmp_path / "complete"), trained)


class TestChangedConfiguration:
    """A configuration that no longer describes the model is not saved with it."""

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("num_regions", 13),
            ("hidden_size", 32),
            ("num_hidden_layers", 2),
            ("num_attention_heads", 4),
            ("intermediate_size", 25),
            ("layer_norm_eps", 1e-3),
            ("batch_norm_eps", 1e-3),
            ("normalize_rows", True),
            ("edge_readout", True),
            ("edge_shrinkage", 0.5),
            ("bei_variables", [{"name": "age", "kind": "continuous", "labels": [], "loss_weight": 1.0}]),
        ],
    )
    def test_what_the_model_is_built_of(
        self, trained: LCMForMultitaskPretraining, tmp_path: Path, name: str, value: object
    ) -> None:
        setattr(trained.config, name, value)
        with pytest.raises(ValueError, match=r"no longer fit together \(.* from .* to "):
            trained.save_pretrained(tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_number_of_labels(self, make_config: Callable[..., LCMConfig], tmp_path: Path) -> None:
        model = LCMForSequenceClassification(make_config(num_labels=3))
        model.config.num_labels = 4
        with pytest.raises(ValueError, match="num_task_tokens from 3 to 4"):
            model.save_pretrained(tmp_path / "new")
        model.config.id2label = {0: "a", 1: "b", 2: "c"}
        model.save_pretrained(tmp_path / "new")
        assert LCMForSequenceClassification.from_pretrained(tmp_path / "new").config.id2label[2] == "c"

    def test_other_embeddings(self, trained: LCMForMultitaskPretraining, tmp_path: Path) -> None:
        trained.set_input_embeddings(torch.nn.Embedding(7, 16))
        with pytest.raises(ValueError, match="num_bei_tokens from 7 to 6"):
            trained.save_pretrained(tmp_path / "new")
        assert not (tmp_path / "new").exists()

    def test_what_the_model_follows(
        self, trained: LCMForMultitaskPretraining, tmp_path: Path, connectivity: Tensor
    ) -> None:
        trained.config.readout, trained.config.supervision = "max", "adaptive_per_sample"
        expected = trained(connectivity).logits
        trained.save_pretrained(tmp_path)
        assert torch.allclose(LCMForMultitaskPretraining.from_pretrained(tmp_path)(connectivity).logits, expected)


class TestResizing:
    """Tokens belong to variables: their number is not changed by itself."""

    @pytest.mark.parametrize("size", [0, 5, 7, 8, 10, 1000])
    def test_another_number_is_refused(self, trained: LCMForMultitaskPretraining, tmp_path: Path, size: int) -> None:
        before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
        with pytest.raises(
            ValueError, match=rf"keeps its 6, and is not resized to {size}: add a variable .*add_variable"
        ):
            trained.resize_token_embeddings(size)
        with pytest.raises(ValueError, match="add_variable"):
            trained.model.resize_token_embeddings(size)
        trained.save_pretrained(tmp_path)
        loaded = LCMForMultitaskPretraining.from_pretrained(tmp_path)
        assert all(torch.equal(tensor, before[name]) for name, tensor in loaded.state_dict().items())

    def test_the_number_that_there_is(self, make_config: Callable[..., LCMConfig]) -> None:
        model = LCMForSequenceClassification(make_config(num_labels=3))
        for size in (None, 6, 9):  # PEFT asks for those of the tokenizer, the task's included
            assert model.resize_token_embeddings(size) is model.get_input_embeddings()
        assert model.resize_token_embeddings(6, pad_to_multiple_of=3) is model.get_input_embeddings()
        with pytest.raises(ValueError, match="add_variable"):
            model.resize_token_embeddings(6, pad_to_multiple_of=4)
        assert model.get_input_embeddings().num_embeddings == 6


def test_lora_adapter_round_trip(saved: Path, tmp_path: Path, connectivity: Tensor) -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(LCMForMultitaskPretraining.from_pretrained(saved), config).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    base = LCMForMultitaskPretraining.from_pretrained(saved)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert torch.allclose(loaded(connectivity).logits, adapted(connectivity).logits, atol=1e-6)
