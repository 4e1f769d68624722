"""Conversion of research-code checkpoints: folders that load, agreement with recordings, the way back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForPreTraining, AutoProcessor

from conversion import export_official, verify_parity
from conversion import parity as comparison
from conversion.official import infer_groups
from modeling_lcm import BEITokenizer, LCMForMultitaskPretraining, LCMForSequenceClassification
from tests.conversion.conftest import RUN, SMALL, TEMPLATE, convert, refused


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small checkpoint, converted without a vocabulary; not to be changed."""
    folder = tmp_path_factory.mktemp("converted") / "checkpoint"
    convert(RUN, "--output", folder, "--reference", SMALL)
    return folder


class TestConvert:
    def test_loads_with_auto_classes_and_predicts(self, converted: Path) -> None:
        model = AutoModelForPreTraining.from_pretrained(converted).eval()
        processor = AutoProcessor.from_pretrained(converted)
        processor.check_config(model.config)
        fc = load_file(SMALL / "expected.safetensors")["fc"]
        records = processor.post_process(model(**processor(connectivity=fc, return_tensors="pt")))
        assert records[0]["group_0"]["label"] in [f"group_0/label_{index} (unnamed)" for index in range(3)]
        assert records[0]["sex"]["label"] in ("M", "F")
        assert records[0]["age"]["unit"] == "years"

    def test_every_weight_is_the_source_s(self, converted: Path) -> None:
        source = torch.load(next(RUN.glob("head_*")), weights_only=True)
        weights = load_file(converted / "model.safetensors")
        fused = source["decoder.layers.2.multihead_attn.in_proj_weight"]
        parts = [weights[f"model.layers.2.cross_attn.{part}_proj.weight"] for part in "qkv"]
        assert torch.equal(torch.cat(parts), fused)
        assert torch.equal(weights["model.bei_embeddings.weight"], source["object_query.weight"])

    def test_report(self, converted: Path) -> None:
        report = json.loads((converted / "conversion_report.json").read_text())
        model = LCMForMultitaskPretraining.from_pretrained(converted)
        assert report["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        assert report["architecture"]["num_layers"] == 3
        assert report["architecture"]["num_regions"] == 116
        assert report["source"]["datasets"] == ["adni", "hcpa", "hcpya", "ppmi", "abide"]
        assert report["source"]["fold"] == "0"
        assert len(report["source"]["files"][1]["sha256"]) == 64
        assert sorted(report["unused"]) == ["age_embed.bias", "age_embed.weight", "sex_embed.bias", "sex_embed.weight"]
        targets = {name for entry in report["tensors"] for name in entry["to"]}
        assert targets == {name for name in model.state_dict() if "layer_choice" not in name}
        assert report["parity"]["passed"]
        assert report["vocabulary"]["status"] == "unnamed"
        assert any("heads" in note for note in report["notes"])

    def test_read_out_is_the_research_code_s(self, converted: Path) -> None:
        assert LCMForMultitaskPretraining.from_pretrained(converted).config.effective_readout == "max"

    def test_old_file_names(self, run_copy: Path, tmp_path: Path) -> None:
        for path in list(run_copy.iterdir()):
            path.rename(path.with_name(path.name.replace("Best-y_", "Best_")))
        convert(run_copy, "--output", tmp_path / "out", "--fold", 0, "--metric", "y")
        assert load_file(tmp_path / "out" / "model.safetensors")

    def test_vocabulary_names_the_labels(self, vocabulary: Callable[..., Path], tmp_path: Path) -> None:
        convert(RUN, "--output", tmp_path / "out", "--vocabulary", vocabulary())
        tokenizer = BEITokenizer.from_pretrained(tmp_path / "out")
        assert tokenizer.variables[3].labels == ["not applicable", "CN", "SWEDD", "prodromal", "PD"]
        assert json.loads((tmp_path / "out" / "conversion_report.json").read_text())["vocabulary"]["status"] == "named"

    def test_template_is_a_valid_vocabulary_whose_order_is_unconfirmed(self) -> None:
        tokenizer = BEITokenizer(vocab_file=TEMPLATE)
        datasets = ("adni", "hcpa", "hcpya", "abide", "ppmi", "taowu", "neurocon")
        sizes = {variable.name: len(variable.labels) for variable in tokenizer.variables[:5]}
        assert sizes == infer_groups(datasets)
        assert "confirmed by the weights' owner" in json.loads(TEMPLATE.read_text())["status"]

    def test_fine_tuned_head(self, vocabulary: Callable[..., Path], tmp_path: Path) -> None:
        task = {"name": "sz", "kind": "categorical", "labels": ["control", "schizophrenia"]}
        head = SMALL / "head_finetuned.pt"
        convert(RUN, "--output", tmp_path / "out", "--head", head, "--vocabulary", vocabulary(more=[task]))
        model = LCMForSequenceClassification.from_pretrained(tmp_path / "out")
        assert model.config.id2label == {0: "control", 1: "schizophrenia"}
        assert AutoProcessor.from_pretrained(tmp_path / "out").tokenizer.task == "sz"
        parity = comparison.measure(tmp_path / "out", SMALL)
        assert parity["passed"]
        assert "layer logits, fine-tuned" in parity["quantities"]

    def test_fine_tuned_head_without_names(self, tmp_path: Path) -> None:
        convert(RUN, "--output", tmp_path / "out", "--head", SMALL / "head_finetuned.pt", "--reference", SMALL)
        model = LCMForSequenceClassification.from_pretrained(tmp_path / "out")
        assert model.config.id2label == {0: "task/label_0 (unnamed)", 1: "task/label_1 (unnamed)"}

    @pytest.mark.parametrize(("name", "window", "padding"), [("pearson-windows-500-padded", 500, "zeros_at_end")])
    def test_fc_definition_is_saved(self, tmp_path: Path, name: str, window: int, padding: str) -> None:
        convert(RUN, "--output", tmp_path / "out", "--fc-definition", name)
        extractor = AutoProcessor.from_pretrained(tmp_path / "out").feature_extractor
        assert (extractor.window, extractor.padding, extractor.estimator) == (window, padding, "pearson")
        assert (extractor.atlas, len(extractor.region_names)) == ("aal-116", 116)

    def test_default_fc_is_not_padded(self, converted: Path) -> None:
        extractor = AutoProcessor.from_pretrained(converted).feature_extractor
        assert (extractor.window, extractor.padding) == (None, "none")

    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_smaller_types(self, converted: Path, tmp_path: Path, dtype: str) -> None:
        convert(RUN, "--output", tmp_path / "out", "--dtype", dtype)
        model = LCMForMultitaskPretraining.from_pretrained(tmp_path / "out")
        original = LCMForMultitaskPretraining.from_pretrained(converted)
        assert model.dtype == getattr(torch, dtype)
        assert torch.equal(model.score.weight, original.score.weight.to(model.dtype))

    def test_shards(self, converted: Path, tmp_path: Path) -> None:
        convert(RUN, "--output", tmp_path / "out", "--max-shard-size", "50KB")
        files = sorted((tmp_path / "out").glob("model-*.safetensors"))
        assert len(files) > 2
        assert all(file.stat().st_size < 60_000 for file in files)
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        whole = load_file(converted / "model.safetensors")
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
        state = LCMForMultitaskPretraining.from_pretrained(tmp_path / "out").state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in whole.items())


class TestParity:
    @pytest.mark.parametrize("head", [None, "head_finetuned.pt"])
    def test_larger_recording(self, shared_dir: Path, tmp_path: Path, head: str | None) -> None:
        folder = shared_dir / "fixtures" / "official_lcm" / "schaefer100"
        if not folder.is_dir():
            pytest.skip("the larger recording is not next to the repository")
        chosen = [] if head is None else ["--head", folder / head]
        convert(next(folder.glob("none_*")), "--output", tmp_path / "out", "--reference", folder, *chosen)
        report = json.loads((tmp_path / "out" / "conversion_report.json").read_text())
        assert report["atlas"] == "schaefer-100"
        assert report["parity"]["passed"]
        assert report["parity"]["tolerance"] == 1e-5

    def test_quantities(self, converted: Path) -> None:
        quantities = comparison.measure(converted, SMALL)["quantities"]
        assert {"memory", "layer logits", "cross-attention", "read-out, categorical", "read-out, age"} < set(
            quantities
        )
        assert {"loss momentum, total", "loss adaptive, total", "loss adaptive, group4"} < set(quantities)

    def test_command_prints_a_table(self, converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
        verify_parity.main([str(converted), "--reference", str(SMALL)])
        assert "layer logits" in capsys.readouterr().out

    def test_a_difference_is_found(self, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        model = LCMForMultitaskPretraining.from_pretrained(converted)
        with torch.no_grad():
            model.model.layers[1].fc2.bias[0] += 0.1
        model.save_pretrained(tmp_path / "changed")
        with pytest.raises(SystemExit) as stopped:
            verify_parity.main([str(tmp_path / "changed"), "--reference", str(SMALL)])
        assert stopped.value.code == 1
        table = capsys.readouterr().out
        assert "DIFFERS" in table
        assert [line for line in table.splitlines() if line.startswith("memory") and line.endswith("ok")]

    def test_wrong_number_of_heads_is_noticed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = refused(capsys, RUN, "--output", tmp_path / "out", "--heads", 4, "--reference", SMALL)
        assert "num_attention_heads is 8 there, 4 here" in message

    def test_recording_of_other_weights(
        self, run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = next(run_copy.glob("head_*"))
        state = torch.load(path, weights_only=True)
        state["class_embed.bias"] += 1
        torch.save(state, path)
        message = refused(capsys, run_copy, "--output", tmp_path / "out", "--reference", SMALL)
        assert "do not compute what" in message

    def test_not_a_recording(self, converted: Path, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"meta\.json"):
            comparison.measure(converted, tmp_path)
        with pytest.raises(FileNotFoundError, match=r"config\.json"):
            comparison.measure(tmp_path, SMALL)


class TestExport:
    @pytest.mark.parametrize("head", [None, "head_finetuned.pt"])
    def test_round_trip_is_bit_identical(self, tmp_path: Path, head: str | None) -> None:
        sources = {"bb": next(RUN.glob("bb_*")), "head": SMALL / head if head else next(RUN.glob("head_*"))}
        chosen = ["--head", sources["head"]] if head else []
        convert(RUN, "--output", tmp_path / "ours", "--max-shard-size", "50KB", *chosen)
        export_official.main([str(tmp_path / "ours"), "--output", str(tmp_path / "theirs")])
        run = next((tmp_path / "theirs").glob("none_*"))
        assert run.name == RUN.name
        for part, source in sources.items():
            before = torch.load(source, weights_only=True)
            after = torch.load(next(run.glob(f"{part}_*")), weights_only=True)
            assert before.keys() == after.keys()
            for name, tensor in before.items():
                assert tensor.dtype == after[name].dtype
                assert torch.equal(tensor, after[name]), name
        # And once more in our direction: the exported pair is a source like any other.
        convert(run, "--output", tmp_path / "again")
        ours, again = (_all_tensors(tmp_path / name) for name in ("ours", "again"))
        assert all(torch.equal(ours[name], again[name]) for name in ours)

    def test_own_checkpoint_in_another_order(self, make_config: Callable, tmp_path: Path) -> None:
        variables = [
            {"name": "age", "kind": "continuous", "mean": 40.0, "std": 12.5},
            {"name": "sex", "kind": "categorical", "labels": ["F", "M"]},
            {"name": "state", "kind": "categorical", "labels": ["rest", "movie", "motor"]},
        ]
        tokenizer = BEITokenizer(variables=variables)
        model = LCMForMultitaskPretraining(make_config(bei_variables=tokenizer.model_variables))
        model.save_pretrained(tmp_path / "ours")
        tokenizer.save_pretrained(tmp_path / "ours")
        export_official.main([str(tmp_path / "ours"), "--output", str(tmp_path / "theirs")])
        run = next((tmp_path / "theirs").glob("none_decoder3_state_boldwin500_FCFC"))
        exported = torch.load(next(run.glob("head_fold0_stateBest-y_*.pt")), weights_only=True)["object_query.weight"]
        ours = model.model.bei_embeddings.weight
        # state (tokens 3-5), then male (2), female (1), age (0)
        assert torch.equal(exported, ours[[3, 4, 5, 2, 1, 0]])
        notes = " ".join(json.loads((tmp_path / "theirs" / "export_report.json").read_text())["notes"])
        assert "years = output * 12.5 + 40.0" in notes
        assert "swapped" in notes

    @pytest.mark.parametrize(
        ("overrides", "drop", "message"),
        [
            ({"normalize_rows": True}, None, "normalize_rows"),
            ({}, "age", "one named age"),
        ],
    )
    def test_what_the_research_code_cannot_hold(
        self,
        make_config: Callable,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        overrides: dict[str, Any],
        drop: str | None,
        message: str,
    ) -> None:
        variables = [variable for variable in make_config().bei_variables if variable["name"] != drop]
        tokenizer = BEITokenizer(variables=variables)
        config = make_config(bei_variables=tokenizer.model_variables, **overrides)
        LCMForMultitaskPretraining(config).save_pretrained(tmp_path / "ours")
        tokenizer.save_pretrained(tmp_path / "ours")
        with pytest.raises(SystemExit):
            export_official.main([str(tmp_path / "ours"), "--output", str(tmp_path / "theirs")])
        assert message in capsys.readouterr().err
        assert not (tmp_path / "theirs").exists()


def _all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("model*.safetensors") for name, tensor in load_file(path).items()}
