"""Transformers' own tests of models and configurations, run on ours."""

import unittest
from typing import Any

import torch

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining, LCMForSequenceClassification, LCMModel
from tests.peers.sources import import_test_module


# The distribution leaves these out: text generation, and exports, which tests/test_export.py has.
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


class LCMTester:
    """What Transformers' tests want to know of a model."""

    batch_size = 3
    is_training = True
    hidden_size = SETTINGS["hidden_size"]
    num_hidden_layers = SETTINGS["num_hidden_layers"]
    num_attention_heads = SETTINGS["num_attention_heads"]
    num_regions = SETTINGS["num_regions"]
    seq_length = 3  # BEI tokens of sex and age

    def get_config(self) -> LCMConfig:
        return LCMConfig(**SETTINGS)

    def prepare_config_and_inputs_for_common(self) -> tuple[LCMConfig, dict[str, torch.Tensor]]:
        series = torch.randn(self.batch_size, self.num_regions, 40)
        return self.get_config(), {"connectivity": torch.stack([scan.corrcoef() for scan in series])}

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


class TestModel(common.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (LCMModel, LCMForMultitaskPretraining, LCMForSequenceClassification)

    def setUp(self) -> None:
        self.model_tester = LCMTester()


class TestConfig(unittest.TestCase):
    def test_config(self) -> None:
        tester = configurations.ConfigTester(self, LCMConfig, has_text_modality=False, num_regions=10, hidden_size=32)
        tester.run_common_tests()
