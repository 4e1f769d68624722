"""Cards: complete or refused, true to the files, and readable by the Hub; nothing here needs a server."""

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard
from safetensors.torch import load_file

from hub_cards import publish
from hub_cards.bundle import count_parameters
from hub_cards.facts import ENTRIES, REQUIRED, load_facts
from hub_cards.public import SETTINGS, public_record, public_report, public_results
from hub_cards.publish import PublishArguments, make_bundle
from hub_cards.render import model_card
from hub_cards.results import load_results
from hub_cards.validate import check_card, check_model
from modeling_lcm import LCMConfig, LCMForMultitaskPretraining, LCMForSequenceClassification, LCMProcessor
from modeling_lcm.configuration_lcm import SIZES
from tests.hub_cards.conftest import Finetuned, make_metrics, own_facts
from tests.hub_cards.hub_state import card_problems
from training.reporting.results import Results
from training.trainer.arguments import FinetuneArguments, PretrainArguments


PUBLISHED = {"lcm-147m": "147m", "lcm-735m": "735m", "lcm-1.2b": "1.2b"}


def facts_file(folder: Path, **changes: Any) -> Path:
    """A card file with these facts."""
    path = folder / "card.yaml"
    path.write_text(yaml.safe_dump(own_facts(**changes)))
    return path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The line that a refused dry run prints."""
    with pytest.raises(SystemExit) as stopped:
        publish.main([str(argument) for argument in arguments])
    assert stopped.value.code == 2
    return capsys.readouterr().err


def dry_run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """What a dry run prints; the card comes first."""
    publish.main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def check_as_the_hub_does(text: str, kind: type = ModelCard) -> dict[str, Any]:
    """Parse a card with the Hub's own classes, and repeat the Hub's checks; returns the metadata."""
    card = kind(text)
    assert card_problems(text) == []
    again = kind(str(card))  # written and read once more: nothing changes
    assert again.data.to_dict() == card.data.to_dict()
    assert "!!python" not in card.data.to_yaml()
    return card.data.to_dict()


class TestPublishedSizes:
    @pytest.mark.parametrize(("entry", "size"), PUBLISHED.items())
    def test_card(self, converted: Path, entry: str, size: str) -> None:
        """The card of a size: everything but the weights is that of the real checkpoint."""
        report = json.loads((converted / "conversion_report.json").read_text())
        config = LCMConfig.from_size(size, bei_variables=LCMConfig.from_pretrained(converted).bei_variables)
        config.architectures = ["LCMForMultitaskPretraining"]
        processor = LCMProcessor.from_pretrained(converted)
        facts = load_facts(entry, license="cc-by-nc-4.0")
        parameters = {"147m": 146_924_545, "735m": 734_540_801, "1.2b": 1_175_252_993}[size]
        text = model_card(facts, f"org/{entry}", "v1", config, processor, parameters, conversion=report)
        metadata = check_as_the_hub_does(text)
        assert metadata["license"] == "cc-by-nc-4.0"
        assert "model-index" not in metadata  # the paper's numbers are not results of ours
        assert f"{parameters:,}" in text
        assert "Reported by the paper, optimistic protocol" in text
        assert "86.30" in text.partition("Reported by the paper")[2]
        assert "86.30" not in text.partition("Reported by the paper")[0]
        for expected in ("HCP-Aging", "NIMH Data Archive", "(unnamed)", "aal-116", "Not a diagnostic device"):
            assert expected in text
        assert "| Taowu |" not in text  # the run's folder does not name it
        assert 'revision="v1"' in text
        assert report["source"]["files"][0]["sha256"] in text

    def test_licence_of_the_authors_weights_has_to_be_given(
        self, converted: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        message = refusal(capsys, converted, "--repo-id", "org/lcm", "--entry", "lcm-147m")
        assert "ask the authors" in message
        assert "--license" in message

    def test_another_size_than_the_entry_s(self, converted: Path, capsys: pytest.CaptureFixture[str]) -> None:
        message = refusal(capsys, converted, "--repo-id", "o/l", "--entry", "lcm-147m", "--license", "mit")
        assert "not the size 147m" in message

    def test_every_size_has_an_entry(self) -> None:
        sizes = {entry.get("size") for entry in yaml.safe_load(ENTRIES.read_text())["entries"].values()}
        assert set(SIZES) <= sizes

    def test_data_set_that_the_facts_do_not_know(self, converted: Path) -> None:
        report = json.loads((converted / "conversion_report.json").read_text())
        report["source"]["datasets"] = ["adni", "ukb"]
        arguments = (LCMConfig.from_pretrained(converted), LCMProcessor.from_pretrained(converted), 1)
        facts = load_facts("lcm-147m", license="mit")
        with pytest.raises(ValueError, match="ukb"):
            model_card(facts, "org/lcm", "v1", *arguments, conversion=report)


class TestDemoAdapterAndDataset:
    def test_demo_checkpoint(self, finetuned: Finetuned, capsys: pytest.CaptureFixture[str]) -> None:
        out = dry_run(capsys, finetuned.checkpoint, "--repo-id", "org/lcm-demo", "--entry", "lcm-demo")
        text = out.partition("\nmodel -> ")[0]
        metadata = check_as_the_hub_does(text)
        (entry,) = metadata["model-index"]
        metrics = {metric["type"]: metric for result in entry["results"] for metric in result["metrics"]}
        assert metrics["roc_auc"]["value"] == 0.7
        assert "mean of 3 folds, std 0.010 (linear 0.750; majority 0.500)" in metrics["roc_auc"]["name"]
        assert "mae" not in metrics  # undefined
        for expected in ("30 people", "3 folds", "0.700 ± 0.010", "| linear | 0.750", "| majority | 0.500"):
            assert expected in text
        assert "| cohort | categorical | downstream task | young, elderly (positive) |" in text
        assert "training subjects | 2 |" in text
        assert "Dry run: nothing was uploaded" in out

    def test_nothing_private_is_published(
        self, finetuned: Finetuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        record = json.loads((finetuned.checkpoint / "training_record.json").read_text())
        assert record["training_subjects"] == ["sub-001", "sub-002"]
        metrics = make_metrics()
        metrics["protocol"]["pretraining"] = "/home/somebody/checkpoint"
        results = Results.from_json({**metrics, "external": {"abide": metrics}})
        public = json.dumps([public_record(record), public_results(results).to_json()])
        assert "sub-001" not in public
        assert "/home/somebody" not in public
        assert json.loads(public)[0]["num_training_subjects"] == 2
        folder = Path(shutil.copytree(finetuned.checkpoint, tmp_path / "copy"))
        (folder / "optimizer.bin").write_bytes(b"x")
        (folder / "my_notes.py").write_text("password = 'x'")
        out = dry_run(capsys, folder, "--repo-id", "org/lcm-demo", "--entry", "lcm-demo")
        assert "not published: adapter, my_notes.py, optimizer.bin" in out

    @pytest.mark.parametrize("name", ["official_unused.safetensors", "optimizer.bin", "config.json"])
    def test_links_are_not_published(
        self, finetuned: Finetuned, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
    ) -> None:
        folder = Path(shutil.copytree(finetuned.checkpoint, tmp_path / "copy"))
        (tmp_path / "elsewhere").write_bytes((folder / "config.json").read_bytes())
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(tmp_path / "elsewhere")
        given = ("--repo-id", "org/lcm-demo", "--entry", "lcm-demo")
        assert f"{name} in {folder} is a symbolic link" in refusal(capsys, folder, *given)

    @pytest.mark.parametrize(
        ("name", "changes", "message"),
        [
            ("config.json", {"auto_map": {"AutoConfig": "../../secret.X"}}, "names code outside the folder"),
            ("config.json", {"auto_map": {"AutoConfig": "someone/else--evil.X"}}, "names code outside the folder"),
            ("model.safetensors.index.json", {"weight_map": {"a": "../secret"}}, "names files outside the folder"),
            ("model.safetensors.index.json", {"weight_map": {"a": 1}}, "names files outside the folder"),
        ],
    )
    def test_names_that_lead_out_of_the_folder(
        self,
        finetuned: Finetuned,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        name: str,
        changes: dict[str, Any],
        message: str,
    ) -> None:
        folder = Path(shutil.copytree(finetuned.checkpoint, tmp_path / "copy"))
        (folder / "checksums.json").unlink()
        content = json.loads((folder / name).read_text()) if (folder / name).is_file() else {}
        (folder / name).write_text(json.dumps(content | changes))
        assert message in refusal(capsys, folder, "--repo-id", "org/lcm-demo", "--entry", "lcm-demo")

    def test_only_listed_keys_and_needed_weights_are_published(
        self, finetuned: Finetuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        record = json.loads((finetuned.checkpoint / "training_record.json").read_text())
        record |= {
            "secret": "SECRET",
            "versions": {"torch": "2", "host": "SECRET"},
            "history": [{"epoch": 0, "x": "SECRET"}],
        }
        record["arguments"] |= {"secret": "SECRET", "data": "SECRET"}
        metrics = make_metrics() | {"secret": "SECRET"}
        metrics["protocol"] |= {"secret": "SECRET"}
        metrics["settings"] |= {"secret": {"a": "SECRET"}, "pretraining": {"output": "SECRET", "epochs": 3}}
        report = {"format": "x", "secret": "SECRET", "source": {"run": "a", "folder": "SECRET"}}
        hashes = {"training_subject_hashes": [{"salt": "00", "hashes": ["ab"], "secret": "SECRET"}]}
        public = json.dumps(
            [
                public_record(record | hashes),
                public_results(Results.from_json(metrics)).to_json(),
                public_report(report),
            ]
        )
        assert "SECRET" not in public
        assert '"hashes": ["ab"]' in public
        assert "training_subject_hashes" not in public_record(record | hashes, hashes=False)
        folder = Path(shutil.copytree(finetuned.checkpoint, tmp_path / "copy"))
        shutil.copy(folder / "model.safetensors", folder / "model-extra.safetensors")
        out = dry_run(capsys, folder, "--repo-id", "org/lcm-demo", "--entry", "lcm-demo")
        assert "not published: adapter, model-extra.safetensors" in out

    def test_listed_settings_are_settings_and_no_paths(self) -> None:
        names = {item.name for kind in (PretrainArguments, FinetuneArguments) for item in fields(kind)}
        assert set(SETTINGS) <= names - {"checkpoint", "data", "log_with", "output", "splits", "vocabulary"}

    def test_checksums_list_what_is_published(self, finetuned: Finetuned) -> None:
        facts = own_facts()
        options = PublishArguments(folder=str(finetuned.checkpoint), repo_id="org/lcm")
        with make_bundle(finetuned.checkpoint, facts, options) as bundle:
            listed = json.loads(bundle.files["checksums.json"])["files"]
            assert listed.keys() == bundle.files.keys() - {"checksums.json"}

    def test_adapter(self, finetuned: Finetuned, capsys: pytest.CaptureFixture[str]) -> None:
        given = ("--entry", "lcm-demo-adapter", "--base-model", "org/base", "--base-revision", "v2")
        out = dry_run(capsys, finetuned.adapter, "--repo-id", "org/adapter", *given)
        text = out.partition("\nadapter -> ")[0]
        metadata = check_as_the_hub_does(text)
        assert metadata["base_model"] == "org/base"
        assert metadata["library_name"] == "peft"
        assert 'load_adapter("org/adapter", revision=' in text
        assert "org/base), revision `v2`" in text
        assert str(finetuned.base) not in out
        assert "processor/bei_vocab.json" in out

    def test_parameters_without_buffers(self, finetuned: Finetuned, capsys: pytest.CaptureFixture[str]) -> None:
        model = LCMForSequenceClassification.from_pretrained(finetuned.checkpoint)
        parameters = dict(model.named_parameters())
        of_adapter = 0
        for name, tensor in load_file(finetuned.adapter / "adapter_model.safetensors").items():
            own = name.removeprefix("base_model.model.")
            of_adapter += tensor.numel() if "lora_" in own or own in parameters else 0
        given = ("--entry", "lcm-demo-adapter", "--base-model", "org/base", "--base-revision", "v2")
        out = dry_run(capsys, finetuned.adapter, "--repo-id", "org/adapter", *given)
        assert f"| parameters | {of_adapter:,} |" in out
        out = dry_run(capsys, finetuned.checkpoint, "--repo-id", "org/lcm-demo", "--entry", "lcm-demo")
        assert f"| parameters | {sum(tensor.numel() for tensor in parameters.values()):,} |" in out
        base = LCMForMultitaskPretraining.from_pretrained(finetuned.base)
        assert count_parameters(finetuned.base) == sum(tensor.numel() for tensor in base.parameters())

    def test_dataset(self, prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = dry_run(capsys, prepared, "--repo-id", "org/lemon", "--entry", "lemon-schaefer200")
        text = out.partition("\ndataset -> ")[0]
        metadata = check_as_the_hub_does(text, DatasetCard)
        assert metadata["license_name"] == "cc0-scans-mit-matrices"
        assert metadata["configs"][0]["data_files"][0]["path"] == "data/*.parquet"
        # What the folder's own README says, whole.
        local = (prepared / "README.md").read_text().partition("# dataset\n\n")[2]
        assert local.strip() in text
        for expected in ("12 fMRI scans of 12 subjects", "F: 6, M: 6", "schaefer-200", "19900 values", "pearson"):
            assert expected in local

    def test_dataset_that_says_nothing_of_itself(
        self, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = Path(shutil.copytree(prepared, tmp_path / "copy"))
        for name in ("cohorts.json", "checksums.json"):
            (folder / name).unlink()
        given = ("--repo-id", "org/lemon", "--entry", "lemon-schaefer200")
        assert "lacks quality.json or cohorts.json" in refusal(capsys, folder, *given)

    @pytest.mark.parametrize(
        ("name", "content"), [("quality.json", "{}"), ("cohorts.json", "{"), ("cohorts.json", "[7]")]
    )
    def test_dataset_with_damaged_records_is_refused(
        self, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
    ) -> None:
        folder = Path(shutil.copytree(prepared, tmp_path / "copy"))
        (folder / "checksums.json").unlink()
        (folder / name).write_text(content)
        assert "damaged" in refusal(capsys, folder, "--repo-id", "org/lemon", "--entry", "lemon-schaefer200")

    @pytest.mark.parametrize("entry", ["lcm-demo", "lcm-demo-adapter", "lemon-schaefer200"])
    def test_shipped_facts_are_complete(self, entry: str) -> None:
        assert load_facts(entry)["title"]


class TestRefusals:
    @pytest.mark.parametrize("field", [name for name in REQUIRED["model"] if name not in ("kind", "license")])
    @pytest.mark.parametrize("value", ["", "TODO", None])
    def test_empty_field(self, tmp_path: Path, field: str, value: str | None) -> None:
        with pytest.raises(ValueError, match=field):
            load_facts(card=facts_file(tmp_path, **{field: value}))

    @pytest.mark.parametrize("cohorts", [[], [{"name": "A", "people": "3"}], ["unknown name"]])
    def test_cohort_that_is_not_described(self, tmp_path: Path, cohorts: list) -> None:
        with pytest.raises(ValueError, match="cohorts"):
            load_facts(card=facts_file(tmp_path, cohorts=cohorts))

    def test_template_is_refused_as_it_is(self) -> None:
        with pytest.raises(ValueError, match="licence is not known"):
            load_facts(card=ENTRIES.with_name("card_template.yaml"))

    def test_no_facts_and_unknown_entry(self, capsys: pytest.CaptureFixture[str], converted: Path) -> None:
        assert "card_template.yaml" in refusal(capsys, converted, "--repo-id", "org/lcm")
        assert "lcm-1.2b" in refusal(capsys, converted, "--repo-id", "org/lcm", "--entry", "lcm-9b")

    def test_unknown_field_and_missing_licence_name(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="licens"):
            load_facts(card=facts_file(tmp_path, licens="mit"))
        with pytest.raises(ValueError, match="license_name"):
            load_facts(card=facts_file(tmp_path, license="other"))

    def test_no_results_and_no_reason(
        self, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        card = facts_file(tmp_path, no_results=None)
        assert "no_results" in refusal(capsys, converted, "--repo-id", "org/lcm", "--card", card)

    @pytest.mark.parametrize("absent", ["LCM", "linear", "majority", "n_subjects", "protocol"])
    def test_results_without_baselines(self, tmp_path: Path, absent: str) -> None:
        metrics = make_metrics()
        metrics.pop(absent, None)
        metrics["models"].pop(absent, None)
        path = tmp_path / "metrics.json"
        path.write_text(json.dumps(metrics))
        with pytest.raises(ValueError, match="lacks"):
            load_results(path)

    @pytest.mark.parametrize("name", ["no-owner", "a/b/c", "org/sp ace", "org/--"])
    def test_repository_s_name(
        self, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
    ) -> None:
        assert "name" in refusal(capsys, converted, "--repo-id", name, "--card", facts_file(tmp_path))

    def test_folder_of_another_kind(self, prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        given = ("--repo-id", "org/lcm", "--card", facts_file(tmp_path))
        assert "is a dataset" in refusal(capsys, prepared, *given)
        assert "no adapter" in refusal(capsys, tmp_path, *given)

    def test_adapter_without_base(self, finetuned: Finetuned, capsys: pytest.CaptureFixture[str]) -> None:
        message = refusal(capsys, finetuned.adapter, "--repo-id", "org/a", "--entry", "lcm-demo-adapter")
        assert "--base-model" in message

    def test_damaged_weights(self, converted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = Path(shutil.copytree(converted, tmp_path / "damaged"))
        shard = next(folder.glob("model-00002-*"))
        shard.write_bytes(shard.read_bytes()[:-100])
        message = refusal(capsys, folder, "--repo-id", "org/lcm", "--card", facts_file(tmp_path))
        assert "is not as it was written: model-00002-of-00003.safetensors has" in message
        (folder / "checksums.json").unlink()
        message = refusal(capsys, folder, "--repo-id", "org/lcm", "--card", facts_file(tmp_path))
        assert "truncated or damaged" in message

    def test_missing_code(self, converted: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(converted, tmp_path / "copy"))
        (folder / "loss_lcm.py").unlink()
        with pytest.raises(ValueError, match=r"loss_lcm\.py"):
            check_model(folder)

    def test_output_that_is_not_finite(self, converted: Path, tmp_path: Path) -> None:
        folder = Path(shutil.copytree(converted, tmp_path / "copy"))
        model = LCMForMultitaskPretraining.from_pretrained(folder)
        model.score.bias.data.fill_(float("nan"))
        for path in folder.glob("model*"):
            path.unlink()
        model.save_pretrained(folder)
        (folder / "checksums.json").unlink()
        with pytest.raises(ValueError, match="not finite"):
            check_model(folder)

    def test_broken_metadata(self, converted: Path, tmp_path: Path) -> None:
        options = publish.PublishArguments(repo_id="org/lcm")
        with publish.make_bundle(converted, own_facts(), options) as bundle:
            bundle.files["README.md"] = bundle.readme.replace("license: apache-2.0", "license: [").encode()
            with pytest.raises(ValueError, match="metadata"):
                check_card(bundle)
