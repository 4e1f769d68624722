"""Transformers' own tests of models and configurations, run on ours."""

import unittest
from typing import Any

import torch
from torch import Tensor

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining, LCMForSequenceClassification, LCMModel
from tests.peers.sources import import_test_module


# The distribution leaves these out: text generation, and exports, which tests/model/test_export.py has.
common = import_test_module(
    "transformers",
    "test_modeling_common",
    exporters__test_export={"ExportTesterMixin": object},
    generation__test_utils={"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
)
configurations = import_test_module(
    "transformers",
    "test_configuration_common",
    utils__test_configuration_utils={
        "config_common_kwargs": {
            "return_dict": False,
            "output_hidden_states": True,
            "dtype": "float16",
            "chunk_size_feed_forward": 5,
            "architectures": ["AModel"],
            "id2label": {0: "label"},
            "label2id": {"label": "0"},
            "problem_type": "regression",
        }
    },
)

SETTINGS: dict[str, Any] = {
    "num_regions": 10,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 37,
    "num_labels": 3,
    "hidden_dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.1,
}


class Tester:
    """What Transformers' tests want to know of a model.

    Args:
        seq_length: Tokens of the model.
        **settings: Of its configuration.
    """

    batch_size = 3
    is_training = True
    hidden_size = SETTINGS["hidden_size"]
    num_hidden_layers = SETTINGS["num_hidden_layers"]
    num_attention_heads = SETTINGS["num_attention_heads"]

    def __init__(self, seq_length: int, **settings: Any) -> None:
        self.seq_length = seq_length
        self.settings = {**SETTINGS, **settings}

    def get_config(self) -> LCMConfig:
        """A small configuration."""
        return LCMConfig(**self.settings)

    def prepare_config_and_inputs_for_common(self) -> tuple[LCMConfig, dict[str, Tensor]]:
        """The configuration, and connectomes of three subjects."""
        series = torch.randn(self.batch_size, SETTINGS["num_regions"], 40)
        return self.get_config(), {"connectivity": torch.stack([scan.corrcoef() for scan in series])}

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


class Common(common.ModelTesterMixin):
    """Transformers' tests, without those that do not apply to any of our models."""

    test_resize_embeddings = False  # BEI tokens belong to variables: tests/model/test_saving.py
    labels: Tensor | None = None

    def _prepare_for_class(self, inputs_dict: dict[str, Any], model_class: type, return_labels: bool = False) -> Any:
        inputs = super()._prepare_for_class(inputs_dict, model_class, return_labels)
        return {**inputs, "labels": self.labels} if return_labels else inputs

    @unittest.skip("weights that do not fit are refused, not reported: tests/model/test_saving.py")
    def test_model_weights_reload_no_missing_tied_weights(self) -> None:
        """Saves a file without the model's weights, and wants them reported as missing."""

    @unittest.skip("the first hidden state is the zeros that all tokens start from, which nothing can change")
    def test_retain_grad_hidden_states_attentions(self) -> None:
        """Wants a gradient of the first hidden state."""


class TestModel(Common, unittest.TestCase):
    """The model without a head."""

    all_model_classes = (LCMModel,)

    def setUp(self) -> None:
        self.model_tester = Tester(3)
        self.model_tester.is_training = False  # no head, no loss


class TestMultitaskPretraining(Common, unittest.TestCase):
    """The pretraining model, as published."""

    all_model_classes = (LCMForMultitaskPretraining,)
    labels = torch.tensor([[0.0, 20.0], [1.0, 30.0], [-100.0, 40.0]])

    def setUp(self) -> None:
        self.model_tester = Tester(3)


class TestSequenceClassification(Common, unittest.TestCase):
    """A task with tokens of its own, and all that is beyond the paper."""

    all_model_classes = (LCMForSequenceClassification,)
    labels = torch.tensor([0, 1, 2])

    def setUp(self) -> None:
        self.model_tester = Tester(6, edge_readout=True, normalize_rows=True)


class TestConfig(unittest.TestCase):
    """The configuration."""

    def test_config(self) -> None:
        tester = configurations.ConfigTester(self, LCMConfig, has_text_modality=False, num_regions=10, hidden_size=32)
        tester.run_common_tests()
