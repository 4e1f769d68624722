"""Auto classes: with this package installed, and in a fresh process where it cannot be imported (remote code)."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    pipeline,
)

import modeling_lcm
from modeling_lcm import (
    BEITokenizer,
    BEIVariable,
    FCFeatureExtractor,
    LCMConfig,
    LCMForMultitaskPretraining,
    LCMForSequenceClassification,
    LCMModel,
    LCMProcessor,
)
from tests.conftest import NUM_REGIONS, REPOSITORY


CODE_FILES = {
    "configuration_lcm.py",
    "modeling_lcm.py",
    "loss_lcm.py",
    "feature_extraction_lcm.py",
    "tokenization_bei.py",
    "processing_lcm.py",
}


@pytest.fixture
def processor() -> LCMProcessor:
    """Processor of 12 regions, sex and age."""
    variables = [
        BEIVariable("sex", "categorical", ["M", "F"]),
        BEIVariable("age", "continuous", unit="years", mean=40.0, std=10.0),
    ]
    names = [f"region {i}" for i in range(NUM_REGIONS)]
    return LCMProcessor(FCFeatureExtractor(region_names=names), BEITokenizer(variables=variables))


@pytest.fixture
def checkpoint(processor: LCMProcessor, make_config: Callable[..., LCMConfig], tmp_path: Path) -> Path:
    """Folder with a pretraining model and its processor."""
    folder = tmp_path / "checkpoint"
    config = make_config(bei_variables=processor.tokenizer.model_variables)
    LCMForMultitaskPretraining(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def run_without_package(code: str, folder: Path, *arguments: str) -> dict:
    """Run `code` in a new process that cannot import this package; it prints one line of JSON last."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(folder / "modules"), "OMP_NUM_THREADS": "1"}
    # An entry of None makes `import modeling_lcm` fail even where it is installed.
    block = "import sys; sys.modules['modeling_lcm'] = None\n"
    command = [sys.executable, "-c", block + code, *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("trust_remote_code", [None, False, True])
def test_installed_package(checkpoint: Path, trust_remote_code: bool | None) -> None:
    expected = {
        AutoConfig: LCMConfig,
        AutoModel: LCMModel,
        AutoModelForPreTraining: LCMForMultitaskPretraining,
        AutoModelForSequenceClassification: LCMForSequenceClassification,
        AutoProcessor: LCMProcessor,
        AutoTokenizer: BEITokenizer,
    }
    for auto_class, cls in expected.items():
        loaded = auto_class.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
        # Exactly our class: a copy of it from the folder would be another one.
        assert type(loaded) is cls, auto_class


def test_feature_extractor_on_its_own(processor: LCMProcessor, tmp_path: Path) -> None:
    processor.feature_extractor.save_pretrained(tmp_path)
    loaded = AutoFeatureExtractor.from_pretrained(tmp_path)
    assert type(loaded) is FCFeatureExtractor
    assert loaded.to_dict() == processor.feature_extractor.to_dict()


def test_tokenizer_on_its_own(processor: LCMProcessor, tmp_path: Path) -> None:
    processor.tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is BEITokenizer
    assert loaded.variables == processor.tokenizer.variables


def test_from_config(tiny_config: LCMConfig) -> None:
    assert type(AutoModelForPreTraining.from_config(tiny_config)) is LCMForMultitaskPretraining


def test_everything_public_is_listed() -> None:
    assert all(hasattr(modeling_lcm, name) for name in modeling_lcm.__all__)
    assert modeling_lcm.__version__ in (REPOSITORY / "pyproject.toml").read_text()


def test_saved_folders_hold_their_code(checkpoint: Path, processor: LCMProcessor, tmp_path: Path) -> None:
    assert {path.name for path in checkpoint.glob("*.py")} >= CODE_FILES
    auto_map = json.loads((checkpoint / "config.json").read_text())["auto_map"]
    assert auto_map["AutoModelForSequenceClassification"] == "modeling_lcm.LCMForSequenceClassification"
    assert auto_map["AutoModelForPreTraining"] == "modeling_lcm.LCMForMultitaskPretraining"
    # Loaded and saved again, as after fine-tuning.
    AutoModelForSequenceClassification.from_pretrained(checkpoint).save_pretrained(tmp_path / "again")
    AutoProcessor.from_pretrained(checkpoint).save_pretrained(tmp_path / "again")
    again = tmp_path / "again"
    assert {path.name for path in again.glob("*.py")} == {path.name for path in checkpoint.glob("*.py")}
    assert json.loads((again / "config.json").read_text())["auto_map"] == auto_map


REMOTE = """
import json
import numpy as np
import torch
from transformers import (
    AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForSequenceClassification, AutoProcessor, AutoTokenizer,
    pipeline,
)

folder, series, again, pipeline_folder = sys.argv[1:]
try:
    AutoModel.from_pretrained(folder, trust_remote_code=False)
except ValueError as error:
    untrusted = str(error)
trust = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **trust)
processor = AutoProcessor.from_pretrained(folder, **trust)
tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
model = AutoModelForPreTraining.from_pretrained(folder, **trust)
base = AutoModel.from_pretrained(folder, **trust)
task = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, **trust)
inputs = processor(time_series=np.load(series), records=2 * [{"sex": "F", "age": 50}], return_tensors="pt")
outputs = model(**inputs)
try:
    AutoModelForPreTraining.from_pretrained(folder, num_regions=13, **trust)
except ValueError as error:
    refusal = str(error)
model.save_pretrained(again)
processor.save_pretrained(again)
modules = {type(thing).__module__.split(".")[0] for thing in (config, processor, tokenizer, model, base, task)}
print(json.dumps({
    "modules": sorted(modules),
    "loss": outputs.loss.item(),
    "logits": outputs.logits.tolist(),
    "records": processor.post_process(outputs),
    "task_logits": list(task(inputs["connectivity"]).logits.shape),
    "refusal": refusal,
    "untrusted": untrusted,
    "pipeline": pipeline(model=pipeline_folder, **trust)(np.load(series)[0]),
}))
"""


def test_remote_code(checkpoint: Path, processor: LCMProcessor, rng: np.random.Generator, tmp_path: Path) -> None:
    series = rng.standard_normal((2, 40, NUM_REGIONS))
    np.save(tmp_path / "series.npy", series)
    again = tmp_path / "again"
    config = LCMForMultitaskPretraining.from_pretrained(checkpoint).config
    config.architectures = None
    here = pipeline("connectome-classification", LCMForSequenceClassification(config), processor=processor)
    here.save_pretrained(tmp_path / "pipeline")
    arguments = [str(path) for path in (checkpoint, tmp_path / "series.npy", again, tmp_path / "pipeline")]
    remote = run_without_package(REMOTE, tmp_path, *arguments)
    assert remote["modules"] == ["transformers_modules"]
    assert "trust_remote_code=True" in remote["untrusted"]
    assert [answer["label"] for answer in remote["pipeline"]] == [answer["label"] for answer in here(series[0])]

    model = LCMForMultitaskPretraining.from_pretrained(checkpoint)
    inputs = processor(time_series=series, records=2 * [{"sex": "F", "age": 50}], return_tensors="pt")
    outputs = model(**inputs)
    assert remote["loss"] == pytest.approx(outputs.loss.item(), rel=1e-4)
    assert torch.allclose(torch.tensor(remote["logits"]), outputs.logits, atol=1e-5)
    assert [record["sex"]["label"] for record in remote["records"]] == [
        record["sex"]["label"] for record in processor.post_process(outputs)
    ]
    assert remote["task_logits"] == [2, 3]
    assert "model.stem.proj.weight is (16, 12) in the file" in remote["refusal"]
    # What the other process saved has its code and its weights, and loads here.
    assert {path.name for path in again.glob("*.py")} >= CODE_FILES
    for name, tensor in LCMForMultitaskPretraining.from_pretrained(again).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
