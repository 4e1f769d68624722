"""The models: equivalent ways to compute the same thing, what they return and accept, and fine-tuning."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining, LCMForSequenceClassification, LCMModel, fast_paths_lcm
from modeling_lcm.attention_lcm import LCMAttention
from tests.conftest import NUM_REGIONS, randomise


MakeConfig = Callable[..., LCMConfig]
MakeConnectivity = Callable[..., Tensor]


@pytest.fixture
def model(tiny_config: LCMConfig) -> LCMForMultitaskPretraining:
    """Tiny pretraining model in evaluation mode; its batch-norm statistics and biases are not the trivial ones."""
    model = LCMForMultitaskPretraining(tiny_config)
    randomise(model)
    return model.eval()


class TestEquivalence:
    """Different ways to the same numbers."""

    def test_eager_equals_sdpa(self, model: LCMForMultitaskPretraining, connectivity: Tensor) -> None:
        logits = {}
        for attention in ("eager", "sdpa"):
            model.set_attn_implementation(attention)
            logits[attention] = model(connectivity).layer_logits
        assert torch.allclose(logits["eager"], logits["sdpa"], atol=1e-5)

    def test_no_attention_is_causal(self, model: LCMForMultitaskPretraining, connectivity: Tensor) -> None:
        # Later tokens and regions must reach the first token.
        model.double()
        connectivity = connectivity.double().requires_grad_()
        embeddings = model.model.bei_embeddings.weight
        first = model(connectivity).layer_logits[:, -1, 0].sum()
        region_gradient, token_gradient = torch.autograd.grad(first, [connectivity, embeddings])
        assert region_gradient[:, -1].abs().max() > 1e-9  # rounding alone leaves 1e-17
        assert token_gradient[-1].abs().max() > 1e-9

    @pytest.mark.parametrize("dropout", [0.0, 0.5])
    def test_folded_cross_attention_equals_projected(
        self, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, dropout: float
    ) -> None:
        attention = LCMAttention(make_config(attention_dropout=dropout, attn_implementation="eager")).double()
        randomise(attention)
        query, memory = torch.randn(3, 4, 16).double(), torch.randn(3, NUM_REGIONS, 16).double()
        results = []
        for folded in (True, False):
            monkeypatch.setattr(fast_paths_lcm, "folding_pays", lambda *_, folded=folded: folded)
            attention.zero_grad()
            torch.manual_seed(1)  # the same weights are dropped
            output, weights = attention(query, memory, memory)
            output.square().sum().backward()
            results.append([output, weights, *(parameter.grad for parameter in attention.parameters())])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)

    @pytest.mark.parametrize(
        ("batch", "tokens", "folded"), [(32, 2, True), (32, 100, False), (1, 2, False)], ids=["few", "many", "small"]
    )
    def test_folding_is_chosen_by_cost(self, make_config: MakeConfig, batch: int, tokens: int, folded: bool) -> None:
        head_dim = LCMAttention(make_config(hidden_size=64)).head_dim
        query, memory = torch.empty(batch, tokens, 64), torch.empty(batch, 200, 64)
        assert fast_paths_lcm.folding_pays(query, memory, head_dim) == folded

    @pytest.mark.parametrize(
        ("batch", "dtype", "folded"),
        [(8, torch.float32, False), (128, torch.float32, True), (128, torch.bfloat16, False)],
        ids=["small", "float32", "half"],
    )
    def test_folding_on_an_accelerator(self, batch: int, dtype: torch.dtype, folded: bool) -> None:
        kind: dict[str, Any] = {"device": "meta", "dtype": dtype}
        query, memory = torch.empty(batch, 6, 2048, **kind), torch.empty(batch, 116, 2048, **kind)
        assert fast_paths_lcm.folding_pays(query, memory, head_dim=256) == folded

    @pytest.mark.parametrize("obstacle", ["nothing", "hook", "own attention"])
    def test_folding_steps_aside(
        self, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, obstacle: str
    ) -> None:
        attention = LCMAttention(make_config(attn_implementation="sdpa"))
        calls = []
        monkeypatch.setattr(fast_paths_lcm, "folding_pays", lambda *_: True)
        monkeypatch.setattr(fast_paths_lcm, "_read_folded", lambda *_, **__: (calls.append("folded"), None))
        if obstacle == "hook":
            attention.v_proj.register_forward_hook(lambda *_: calls.append("hook"))
        if obstacle == "own attention":

            def own(module: nn.Module, query: Tensor, *_: Tensor, **__: float) -> tuple[Tensor, None]:
                calls.append(obstacle)
                return query.transpose(1, 2), None

            AttentionInterface.register("own", own)
            attention.config._attn_implementation = "own"
        memory = torch.randn(3, NUM_REGIONS, 16)
        attention(torch.randn(3, 4, 16), memory, memory)
        assert calls == ["folded" if obstacle == "nothing" else obstacle]

    def test_offloaded_weights(
        self, make_config: MakeConfig, connectivity: Tensor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        accelerate = pytest.importorskip("accelerate")
        monkeypatch.setattr(fast_paths_lcm, "folding_pays", lambda *_: True)
        model = LCMForMultitaskPretraining(make_config()).eval()
        expected = model(connectivity).logits
        accelerate.cpu_offload(model, execution_device="cpu")
        assert model.model.layers[0].cross_attn.k_proj.weight.device.type == "meta"
        assert torch.allclose(model(connectivity).logits, expected, atol=1e-5)

    def test_batch_equals_one_by_one(self, model: LCMForMultitaskPretraining, connectivity: Tensor) -> None:
        one_by_one = torch.cat([model(connectivity[i : i + 1]).layer_logits for i in range(len(connectivity))])
        assert torch.allclose(model(connectivity).layer_logits, one_by_one, atol=1e-5)

    def test_permuting_tokens_permutes_logits(self, model: LCMForMultitaskPretraining, connectivity: Tensor) -> None:
        order = torch.randperm(model.config.num_bei_tokens)
        before = model(connectivity).layer_logits
        with torch.no_grad():
            model.model.bei_embeddings.weight.copy_(model.model.bei_embeddings.weight[order])
        assert torch.allclose(model(connectivity).layer_logits, before[..., order], atol=1e-5)

    def test_bfloat16_is_close_to_float32(self, model: LCMForMultitaskPretraining, connectivity: Tensor) -> None:
        expected = model(connectivity).logits
        outputs = model.to(torch.bfloat16)(connectivity)
        assert outputs.layer_logits.dtype == torch.bfloat16
        assert outputs.logits.dtype == torch.float32
        assert (outputs.logits - expected).abs().max() < 0.05 * expected.abs().max()

    def test_autocast_trains(self, model: LCMForMultitaskPretraining, connectivity: Tensor, labels: Tensor) -> None:
        expected = model(connectivity, labels=labels).loss
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(connectivity, labels=labels).loss
        loss.backward()
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected.item(), rel=0.05)
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())

    def test_activation_checkpointing(self, make_config: MakeConfig, connectivity: Tensor, labels: Tensor) -> None:
        plain = LCMForMultitaskPretraining(make_config(attention_dropout=0.2, hidden_dropout=0.2)).double().train()
        checkpointed = deepcopy(plain)
        checkpointed.activation_checkpointing_enable()
        gradients = []
        for model in (plain, checkpointed):
            torch.manual_seed(1)
            model(connectivity.double(), labels=labels).loss.backward()
            gradients.append([parameter.grad for parameter in model.parameters()])
            # The stem is not part of a checkpointed layer, so its statistics move once a step.
            assert model.model.stem.norm.num_batches_tracked == 1
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


class TestOutputs:
    """What a forward pass returns."""

    def test_shapes(self, model: LCMForMultitaskPretraining, connectivity: Tensor) -> None:
        model.set_attn_implementation("eager")
        outputs = model(connectivity, output_hidden_states=True, output_attentions=True)
        assert outputs.loss is None
        assert outputs.logits.shape == (4, 6)
        assert outputs.layer_logits.shape == (4, 3, 6)
        assert [state.shape for state in outputs.hidden_states] == 4 * [(4, 6, 16)]
        assert [weights.shape for weights in outputs.attentions] == 3 * [(4, 2, 6, 6)]
        assert [weights.shape for weights in outputs.cross_attentions] == 3 * [(4, 2, 6, NUM_REGIONS)]
        for weights in outputs.attentions + outputs.cross_attentions:
            assert torch.allclose(weights.sum(-1), torch.ones(()))

    def test_hidden_states_start_at_zero_and_end_at_the_last_state(
        self, model: LCMForMultitaskPretraining, connectivity: Tensor
    ) -> None:
        outputs = model.model(connectivity, output_hidden_states=True)
        assert outputs.hidden_states[0].abs().max() == 0
        assert torch.equal(outputs.hidden_states[-1], outputs.last_hidden_state)
        assert torch.equal(outputs.layer_states[:, -1], outputs.last_hidden_state)
        normed = model.model.norm(outputs.hidden_states[1])
        torch.testing.assert_close(outputs.layer_states[:, 0], normed)

    def test_tuple(self, model: LCMForMultitaskPretraining, connectivity: Tensor, labels: Tensor) -> None:
        outputs = model(connectivity, labels=labels)
        as_tuple = model(connectivity, labels=labels, return_dict=False)
        assert isinstance(as_tuple, tuple)
        for one, other in zip(as_tuple, (outputs.loss, outputs.logits, outputs.layer_logits), strict=True):
            torch.testing.assert_close(one, other)

    def test_readout_setting(self, model: LCMForMultitaskPretraining, connectivity: Tensor) -> None:
        model.bei_layer_choice.best_layer.copy_(torch.tensor([0, 2, 1]))
        model.config.readout = "best_layer"
        outputs = model(connectivity)
        layer_of_token = torch.tensor([0, 0, 0, 2, 2, 1])
        assert torch.equal(outputs.logits, outputs.layer_logits[:, layer_of_token, torch.arange(6)])

    @pytest.mark.parametrize("shape", [(4, 12), (4, 12, 13), (4, 13, 13), (2, 4, 12, 12)])
    def test_wrong_connectivity(self, model: LCMForMultitaskPretraining, shape: tuple[int, ...]) -> None:
        with pytest.raises(ValueError, match=r"this model needs \(batch, 12, 12\)"):
            model(torch.zeros(shape))

    def test_wrong_labels(self, model: LCMForMultitaskPretraining, connectivity: Tensor, labels: Tensor) -> None:
        with pytest.raises(ValueError, match=r"needed is \(batch, 3\)"):
            model(connectivity, labels=labels[:, :2])
        labels[0, 0] = 3
        with pytest.raises(ValueError, match="column 0 has the class index 3; needed are 0 to 2"):
            model(connectivity, labels=labels)


class TestTraining:
    """Gradients, initial values and the layer choice."""

    def test_every_parameter_that_can_learn_gets_a_gradient(
        self, make_config: MakeConfig, connectivity: Tensor, labels: Tensor
    ) -> None:
        model = LCMForMultitaskPretraining(make_config(attention_dropout=0.0, hidden_dropout=0.0)).double()
        randomise(model)
        model.train()(connectivity.double(), labels=labels).loss.backward()
        without = {name for name, parameter in model.named_parameters() if parameter.grad.abs().max() < 1e-12}
        # Token states start at zero, so the first layer's values are one constant whatever the weights are; key biases
        # cancel in the softmax, and the stem's bias in the batch norm.
        first = "model.layers.0.self_attn"
        expected = {f"{first}.{part}" for part in ("q_proj.weight", "k_proj.weight", "v_proj.weight", "q_proj.bias")}
        expected |= {f"model.layers.{i}.{part}_attn.k_proj.bias" for i in range(3) for part in ("self", "cross")}
        assert without == expected | {"model.stem.proj.bias"}

    def test_same_seed_gives_the_same_weights(self, tiny_config: LCMConfig) -> None:
        states = []
        for _ in range(2):
            torch.manual_seed(7)
            states.append(LCMForMultitaskPretraining(tiny_config).state_dict())
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    def test_layer_choice_learns_in_training_only(
        self, model: LCMForMultitaskPretraining, connectivity: Tensor, labels: Tensor
    ) -> None:
        model(connectivity, labels=labels)
        assert (model.bei_layer_choice.running_loss == -1).all()
        model.train()(connectivity, labels=labels)
        assert (model.bei_layer_choice.running_loss >= 0).all()

    def test_halves_with_target_counts_equal_the_whole(
        self, model: LCMForMultitaskPretraining, connectivity: Tensor, labels: Tensor
    ) -> None:
        counts = (labels != -100).sum(0)
        whole = model(connectivity, labels=labels).loss
        halves = [model(connectivity[i::2], labels=labels[i::2], target_counts=counts).loss for i in range(2)]
        assert torch.allclose(sum(halves), whole)

    def test_normalised_rows_hide_how_strongly_a_whole_row_correlates(
        self, make_config: MakeConfig, connectivity: Tensor
    ) -> None:
        model = LCMModel(make_config(normalize_rows=True)).eval()
        states = model(connectivity).last_hidden_state
        shifted = model(0.5 * connectivity + 0.1).last_hidden_state
        assert torch.allclose(states, shifted, atol=1e-3)
        model.stem.normalize_rows = False
        assert not torch.allclose(states, model(connectivity).last_hidden_state, atol=1e-3)


class TestSequenceClassification:
    """The downstream task: new tokens, or those of a pretrained variable."""

    @pytest.mark.parametrize(
        ("problem_type", "num_labels", "task_labels"),
        [
            ("single_label_classification", 3, torch.tensor([0, 2, -100, 1])),
            ("multi_label_classification", 3, torch.tensor([[0, 1, 1], [1, 0, -100], [0, 0, 0], [1, 1, 1.0]])),
            ("regression", 1, torch.tensor([0.2, -1.0, -100, 3.0])),
            ("regression", 2, torch.tensor([[0.2, -1.0], [-100, 3.0], [0.1, 0.1], [1.0, -100]])),
        ],
    )
    def test_problem_types(
        self, make_config: MakeConfig, connectivity: Tensor, problem_type: str, num_labels: int, task_labels: Tensor
    ) -> None:
        config = make_config(problem_type=problem_type, num_labels=num_labels)
        model = LCMForSequenceClassification(config).eval()
        outputs = model(connectivity, labels=task_labels)
        assert outputs.logits.shape == (4, num_labels)
        assert outputs.bei_logits.shape == (4, 6)
        assert outputs.layer_logits.shape == (4, 3, 6 + num_labels)
        logits, known = outputs.logits, (task_labels != -100)
        if problem_type == "single_label_classification":
            expected = nn.functional.cross_entropy(logits, task_labels, ignore_index=-100)
        else:
            table, known = task_labels.view(4, -1), known.view(4, -1)
            function = nn.functional.mse_loss
            if problem_type == "multi_label_classification":
                function = nn.functional.binary_cross_entropy_with_logits
            columns = [function(logits[known[:, i], i], table[known[:, i], i].float()) for i in range(num_labels)]
            expected = torch.stack(columns).mean()
        assert torch.allclose(outputs.loss, expected, atol=1e-6)

    @pytest.mark.parametrize(("num_labels", "problem_type"), [(1, "regression"), (3, "single_label_classification")])
    def test_problem_type_is_inferred_from_num_labels(
        self, make_config: MakeConfig, num_labels: int, problem_type: str
    ) -> None:
        model = LCMForSequenceClassification(make_config(num_labels=num_labels))
        assert model.config.problem_type == problem_type

    def test_pretrained_variable_as_task_adds_no_token(
        self, model: LCMForMultitaskPretraining, make_config: MakeConfig, connectivity: Tensor
    ) -> None:
        task = LCMForSequenceClassification(make_config(task_variable="sex", num_labels=2)).eval()
        assert not hasattr(task, "task_embeddings")
        missing, unexpected = task.load_state_dict(model.state_dict(), strict=False)
        assert {name.split(".")[0] for name in missing} == {"task_layer_choice"}
        assert unexpected == []
        outputs, pretrained = task(connectivity), model(connectivity)
        torch.testing.assert_close(outputs.layer_logits, pretrained.layer_logits)
        torch.testing.assert_close(outputs.logits, pretrained.logits[:, 3:5])
        torch.testing.assert_close(outputs.bei_logits, pretrained.logits)

    def test_pretrained_continuous_variable_as_task(self, make_config: MakeConfig, connectivity: Tensor) -> None:
        task = LCMForSequenceClassification(make_config(task_variable="age", num_labels=1)).eval()
        outputs = task(connectivity)
        assert torch.equal(outputs.logits, outputs.bei_logits[:, 5:])

    def test_pretrained_variable_with_other_labels_is_refused(self, make_config: MakeConfig) -> None:
        with pytest.raises(ValueError, match="re-uses the pretrained variable 'age'"):
            LCMForSequenceClassification(make_config(task_variable="age", num_labels=2))

    def test_semi_supervised_loss(self, make_config: MakeConfig, connectivity: Tensor, labels: Tensor) -> None:
        model = LCMForSequenceClassification(make_config(num_labels=2, bei_loss_weight=0.3)).eval()
        task_labels = torch.tensor([0, 1, -100, -100])
        task = model(connectivity, labels=task_labels).loss
        bei = model(connectivity, bei_targets=labels).loss
        both = model(connectivity, labels=task_labels, bei_targets=labels).loss
        assert torch.allclose(both, task + bei)
        model.config.bei_loss_weight = 0.6
        assert torch.allclose(model(connectivity, bei_targets=labels).loss, 2 * bei)
        model.config.bei_loss_weight = 0.0
        torch.testing.assert_close(model(connectivity, labels=task_labels, bei_targets=labels).loss, task)

    def test_target_counts_of_both_losses(self, make_config: MakeConfig, connectivity: Tensor, labels: Tensor) -> None:
        model = LCMForSequenceClassification(make_config(num_labels=2, bei_loss_weight=0.5)).eval()
        task_labels = torch.tensor([0, 1, 1, -100])
        counts = torch.cat([(task_labels != -100).sum()[None], (labels != -100).sum(0)])
        whole = model(connectivity, labels=task_labels, bei_targets=labels).loss
        halves = [
            model(connectivity[part], labels=task_labels[part], bei_targets=labels[part], target_counts=counts).loss
            for part in (slice(0, 3), slice(3, 4))
        ]
        assert torch.allclose(sum(halves), whole)


class TestLora:
    """LoRA through peft reaches everything that it is put on."""

    TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "bei_embeddings")

    def adapted(self, base: nn.Module) -> nn.Module:
        """`base` with LoRA that is not the identity."""
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(r=2, target_modules=list(self.TARGETS), init_lora_weights=False)
        return peft.get_peft_model(base, config)

    @pytest.fixture
    def base(self, model: LCMForMultitaskPretraining, monkeypatch: pytest.MonkeyPatch) -> LCMForMultitaskPretraining:
        """Model whose cross-attention is folded wherever that is allowed."""
        monkeypatch.setattr(fast_paths_lcm, "folding_pays", lambda *_: True)
        return model

    def test_changes_the_output_and_merges(self, base: LCMForMultitaskPretraining, connectivity: Tensor) -> None:
        before = base(connectivity).layer_logits
        adapted = self.adapted(base).eval()
        unmerged = adapted(connectivity).layer_logits
        assert (unmerged - before).abs().max() > 0.01
        merged = adapted.merge_and_unload()
        assert torch.allclose(merged(connectivity).layer_logits, unmerged, atol=1e-5)

    @pytest.mark.parametrize("target", TARGETS)
    def test_every_adapter_gets_a_gradient(
        self, base: LCMForMultitaskPretraining, connectivity: Tensor, labels: Tensor, target: str
    ) -> None:
        adapted = self.adapted(base).double()
        adapted(connectivity.double(), labels=labels).loss.backward()
        gradients = {
            name: parameter.grad.abs().max()
            for name, parameter in adapted.named_parameters()
            if "lora" in name and target in name
        }
        assert gradients
        # The first layer's self-attention sees states of zero: only its output projection can learn.
        learnable = {n: g for n, g in gradients.items() if "layers.0.self_attn" not in n or target == "o_proj"}
        assert min(learnable.values()) > 1e-9  # rounding alone leaves 1e-17
