"""The configuration: named sizes, and wrong settings refused."""

import keyword
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import logging

from modeling_lcm import BEITokenizer, FCFeatureExtractor, LCMConfig, LCMForMultitaskPretraining
from modeling_lcm.settings_lcm import refuse_misspelt


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


NAMES = st.from_regex(r"[a-z]{2,8}(_[a-z0-9]{2,8}){0,2}", fullmatch=True).filter(
    lambda name: not keyword.iskeyword(name) and not hasattr(LCMConfig(), name)
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=5), values, max_size=3),
    max_leaves=5,
)


class TestNotes:
    """What other tools write on a configuration comes back, or cannot be written on it."""

    @settings(deadline=None, max_examples=60)
    @given(name=NAMES, value=JSON_VALUES)
    def test_any_note_survives(self, name: str, value: Any) -> None:
        config = LCMConfig(num_regions=12)
        setattr(config, name, value)
        with TemporaryDirectory() as folder:
            config.save_pretrained(folder)
            loaded = LCMConfig.from_pretrained(folder)
        assert getattr(loaded, name) == value
        assert loaded.num_regions == 12

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("pad_token_id", 0),
            ("vocab_size", 30),
            ("use_cache", False),
            ("use_cache", True),
            ("unsloth_version", "2026.1"),
            ("custom_pipelines", {"a-task": {"impl": "a.B"}}),
            ("_private", [1, 2]),
            ("tie_word_embeddings", False),
            ("norm_eps", 1.0),
            ("num_dense_layers", 1),
            ("layer_norm_epsilon", 1.0),  # looks misspelt, but was set on purpose
            ("keys_to_ignore_at_inference", ["layer_logits"]),
            ("seen", float("inf")),
        ],
    )
    def test_notes_that_tools_leave(self, tmp_path: Path, make_config: MakeConfig, name: str, value: Any) -> None:
        model = LCMForMultitaskPretraining(make_config())
        model.config.update({name: value})
        model.save_pretrained(tmp_path)
        assert getattr(LCMForMultitaskPretraining.from_pretrained(tmp_path).config, name) == value

    def test_what_is_no_setting_is_named_once(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        logger = logging.get_logger("transformers.models.lcm")
        monkeypatch.setattr(logger, "propagate", False)
        logger.addHandler(caplog.handler)
        logging.warning_once.cache_clear()
        for _ in range(2):
            config = LCMConfig(pre_norm=True, attn_implementation="eager", num_labels=4, name_or_path="x")
            LCMConfig.from_dict(config.to_dict())
        config.num_region = 3
        logger.removeHandler(caplog.handler)
        said, misspelt = [record.getMessage() for record in caplog.records]
        assert said == "LCMConfig has no settings 'pre_norm': they are kept, and change nothing."
        assert misspelt.startswith("LCMConfig has no setting 'num_region': did you mean num_regions? It is kept")

    @pytest.mark.parametrize("value", [object(), np.int64(3), {1: 2}, {"a": {1, 2}}, [torch.ones(1)]])
    def test_what_json_cannot_hold_is_not_saved(self, tmp_path: Path, make_config: MakeConfig, value: Any) -> None:
        model = LCMForMultitaskPretraining(make_config())
        model.config.note = value
        for saved in (model, model.config):
            with pytest.raises(ValueError, match=r"config.json cannot hold note \("):
                saved.save_pretrained(tmp_path / "new")
            assert not (tmp_path / "new").exists()

    def test_what_came_from_text_generation_is_not_lost_in_silence(self, tmp_path: Path) -> None:
        config = LCMConfig(temperature=0.5)
        assert config.temperature == 0.5
        with pytest.raises(ValueError, match="temperature"):
            config.save_pretrained(tmp_path)


class TestMisspelt:
    """A slip of the pen is an error, wherever it is made."""

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("num_region", "num_regions"),
            ("num_layers", "num_hidden_layers"),
            ("num_heads", "num_attention_heads"),
            ("hidden_dropout_prob", "hidden_dropout"),
            ("attention_probs_dropout_prob", "attention_dropout"),
            ("num_lables", "num_labels"),
            ("Edge_Readout", "edge_readout"),
            ("supervison", "supervision"),
        ],
    )
    def test_settings_of_a_model(self, tmp_path: Path, name: str, meant: str) -> None:
        config = LCMConfig()
        config.save_pretrained(tmp_path)
        for attempt in (
            lambda: LCMConfig(**{name: 2}),
            lambda: LCMConfig.from_size("nano", **{name: 2}),
            lambda: LCMConfig.from_pretrained(tmp_path, **{name: 2}),
            lambda: LCMConfig.from_dict({**config.to_dict(), name: 2}),
        ):
            with pytest.raises(ValueError, match=f"no setting '{name}': did you mean {meant}") as refused:
                attempt()
            assert len(str(refused.value)) < 400

    @settings(deadline=None, max_examples=40)
    @given(data=st.data())
    def test_one_letter_more_less_or_other(self, data: st.DataObject) -> None:
        known = ["num_regions", "hidden_size", "edge_readout", "class_weights", "layer_loss_momentum"]
        right = data.draw(st.sampled_from(known))
        place = data.draw(st.integers(0, len(right) - 1))
        put, skip = data.draw(st.sampled_from([("", 1), ("q", 0), ("q", 1)]))
        wrong = right[:place] + put + right[place + skip :]
        with pytest.raises(ValueError, match=right):
            refuse_misspelt("LCMConfig", [wrong], known)

    def test_arguments_of_the_processor(self, tmp_path: Path) -> None:
        extractor = FCFeatureExtractor(num_regions=5, window=40)
        extractor.note = "by another tool"
        extractor.save_pretrained(tmp_path)
        loaded = FCFeatureExtractor.from_pretrained(tmp_path)
        assert (loaded.note, loaded.window, loaded.to_dict()["note"]) == ("by another tool", 40, "by another tool")
        assert FCFeatureExtractor.from_pretrained(tmp_path, window=50).window == 50
        with pytest.raises(ValueError, match="no setting 'windw': did you mean window"):
            FCFeatureExtractor.from_pretrained(tmp_path, windw=50)
        with pytest.raises(TypeError, match="no argument windw"):
            FCFeatureExtractor(windw=50)
        extractor.windw = 50
        with pytest.raises(ValueError, match="no setting 'windw': did you mean window"):
            extractor.save_pretrained(tmp_path / "new")
        assert not (tmp_path / "new").exists()
        with pytest.raises(ValueError, match="no setting 'task_isnew': did you mean task_is_new"):
            BEITokenizer(variables=[{"name": "age", "kind": "continuous"}], task="age", task_isnew=True)
