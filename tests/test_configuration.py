"""The configuration: named sizes, and wrong settings refused."""

from collections.abc import Callable

import pytest
import torch

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining


MakeConfig = Callable[..., LCMConfig]


class TestSizes:
    """The named sizes have the published numbers of parameters."""

    @pytest.mark.parametrize(("size", "millions"), [("147m", 147), ("735m", 735), ("1.2b", 1175)])
    def test_published_sizes(self, size: str, millions: int) -> None:
        with torch.device("meta"):
            model = LCMForMultitaskPretraining(LCMConfig.from_size(size))
        assert model.num_parameters() == pytest.approx(millions * 1e6, rel=0.01)

    def test_cpu_size(self) -> None:
        with torch.device("meta"):
            model = LCMForMultitaskPretraining(LCMConfig.from_size("nano", num_regions=400))
        assert model.num_parameters() < 10e6

    def test_settings_of_a_size_can_be_overridden(self) -> None:
        config = LCMConfig.from_size("147m", num_hidden_layers=2, num_regions=200)
        assert (config.hidden_size, config.num_hidden_layers, config.num_regions) == (2048, 2, 200)


class TestConfig:
    """Wrong settings are refused with the values that were given."""

    @pytest.mark.parametrize(
        ("setting", "message"),
        [
            ({"num_region": 3}, "no setting 'num_region': did you mean num_regions"),
            ({"num_regions": 0}, "num_regions must be at least 1, got 0"),
            ({"hidden_size": 15}, r"hidden_size \(15\) must be a multiple of num_attention_heads \(2\)"),
            ({"hidden_dropout": 1.0}, r"hidden_dropout must lie in \[0, 1\), got 1.0"),
            ({"supervision": "best"}, "supervision must be one of momentum, .*, got 'best'"),
            ({"readout": "median"}, "readout must be one of auto, .*, got 'median'"),
            ({"problem_type": "ranking"}, "problem_type must be one of"),
            ({"bei_loss_weight": -1}, "bei_loss_weight must not be negative, got -1"),
            ({"bei_variables": []}, "bei_variables is empty"),
            ({"bei_variables": [{"name": "sex"}]}, "needs exactly the keys"),
            (
                {"bei_variables": [{"name": "sex", "kind": "categorical", "labels": ["F"], "loss_weight": 1.0}]},
                r"'sex' needs two or more different labels, got \['F'\]",
            ),
            (
                {"bei_variables": [{"name": "age", "kind": "continuous", "labels": ["old"], "loss_weight": 1.0}]},
                "'age' must not have labels",
            ),
            (
                {"bei_variables": 2 * [{"name": "age", "kind": "continuous", "labels": [], "loss_weight": 1.0}]},
                "must have different names",
            ),
            (
                {"task_variable": "state", "problem_type": "single_label_classification", "num_labels": 2},
                r"re-uses the pretrained variable 'state' \(categorical, 3 token\(s\)\)",
            ),
        ],
    )
    def test_wrong_settings(self, make_config: MakeConfig, setting: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            make_config(**setting)

    def test_unknown_size(self) -> None:
        with pytest.raises(ValueError, match=r"Unknown size 'huge': choose one of nano, 147m"):
            LCMConfig.from_size("huge")

    @pytest.mark.parametrize(
        ("supervision", "readout"),
        [
            ("momentum", "mean"),
            ("adaptive", "best_layer"),
            ("adaptive_per_sample", "max"),
            ("last_layer", "last_layer"),
        ],
    )
    def test_automatic_readout_follows_the_supervision(
        self, make_config: MakeConfig, supervision: str, readout: str
    ) -> None:
        assert make_config(supervision=supervision).effective_readout == readout
        assert make_config(supervision=supervision, readout="last_layer").effective_readout == "last_layer"
