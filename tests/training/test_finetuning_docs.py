"""docs/finetuning.md: its blocks run as they are printed, in order, and its errors are those that are raised."""

import importlib
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from peft import PeftModel

from modeling_lcm import LCMForSequenceClassification, load_adapter
from tests.conftest import REPOSITORY
from tests.training.conftest import ATLAS, PEOPLE, Study
from training.data.cohort import Cohort
from training.estimator import LCMClassifier
from training.preparation.arguments import PrepareArguments
from training.preparation.build import prepare
from training.trainer.arguments import FinetuneArguments
from training.trainer.checkpoints import load_processor, read_record
from training.trainer.finetuning import finetune


PAGE = (REPOSITORY / "docs" / "finetuning.md").read_text(encoding="utf-8")


@pytest.fixture
def desk(study: Study, pretrained: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder with what the page starts from, the made-up study in the place of the shipped subjects."""
    people = study.participants.assign(cohort=np.where(study.participants["group"] == "A", "young", "elderly"))
    people.to_csv(tmp_path / "participants.tsv", sep="\t", index=False)
    prepare(
        PrepareArguments(
            output=str(tmp_path / "runs" / "lemon" / "dataset"),
            participants=str(tmp_path / "participants.tsv"),
            connectivity=str(study.folder / "fc.npz"),
            atlas=ATLAS,
            phenotypes=["sex", "age", "cohort"],
        )
    )
    shutil.copytree(pretrained, tmp_path / "runs" / "lemon" / "pretrained" / "checkpoint")
    before = Path.cwd()
    os.chdir(tmp_path)
    yield tmp_path
    os.chdir(before)


def test_every_block_runs(desk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert {language for language, _ in blocks} == {"bash", "python"}
    found: dict[str, Any] = {}
    for language, content in blocks:
        if language == "python":
            exec(content, found)
            continue
        for line in content.strip().splitlines():
            words = shlex.split(line)
            assert words[:2] == ["python", "-m"], line
            importlib.import_module(words[2]).main([*words[3:], *(["--progress", "false"] * ("finetune" in words[2]))])
    lemon = desk / "runs" / "lemon"
    # What Trainer sets on the configuration must not keep the adapter from being loaded.
    assert load_adapter(lemon / "trainer" / "adapter")[1].tokenizer.task == "cohort"
    assert isinstance(found["model"], PeftModel)
    assert isinstance(found["merged"], LCMForSequenceClassification)
    assert re.search(r"^ROC AUC \d\.\d\d\n(?:.*\n)*(young|elderly)\n(F|M)$", capsys.readouterr().out, re.MULTILINE)
    for table, task in (("cohort", "cohort"), ("sex", "sex")):
        assert task in pd.read_csv(lemon / f"{table}.tsv", sep="\t").columns
    # The files of an adapter, as the page's table names them; Trainer's has the same.
    named = set(re.findall(r"`([\w/.]+)`", PAGE.split("| file | what it is |")[1].split("```")[0]))
    for folder in (lemon / "cohort" / "checkpoint" / "adapter", lemon / "trainer" / "adapter"):
        files = {path.name for path in folder.iterdir()} | {"checksums.json"}  # which our script alone writes
        assert files - {"README.md"} == {name.strip("/") for name in named}
    assert load_processor(str(lemon / "careful" / "checkpoint")).tokenizer.task == "cohort"
    assert read_record(lemon / "few" / "checkpoint")["num_training_scans"] == PEOPLE


def test_defaults_on_the_page() -> None:
    defaults = FinetuneArguments()
    assert (defaults.new_tokens, defaults.pseudo_labels, defaults.pseudo_label_threshold) == ("random", "none", 0.9)
    assert (defaults.mixup, defaults.validation_fraction, defaults.trainable) == (0.0, 0.0, "all")
    assert FinetuneArguments(lora_rank=8).adapter == "lora"
    assert FinetuneArguments(adapter="dora").lora_rank == 8
    assert LCMClassifier().triangle == "lower"


def test_errors_on_the_page(
    cohort: Cohort,
    finetune_arguments: Callable[..., FinetuneArguments],
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    cohort.table["empty"] = None
    cohort.table["rare"] = ["a", *["b"] * 11, *["c"] * 12]
    cohort.table["scanner"] = np.where(cohort.table["group"] == "A", "p", "q")
    other = Cohort(cohort.table, cohort.triangles, type(cohort.feature_extractor)(atlas="other", num_regions=10))
    said = []
    for data, settings in (
        (cohort, {"task": "nothing"}),
        (cohort, {"task": "empty"}),
        (cohort, {"labels": ["A", "B", "C"]}),
        (cohort, {"task": "rare"}),
        (cohort, {"positive": "C"}),
        (other, {}),
        (cohort, {"window_volumes": 20}),
        (cohort, {"patience": 2}),
        (cohort, {"trainable": "tokens", "adapter": "lora"}),
        (cohort, {"frozen_layers": 2, "adapter": "lora"}),
        (cohort, {"task": "sex", "kind": "continuous"}),
        (cohort, {"checkpoint": str(tmp_path)}),
    ):
        with pytest.raises(ValueError) as error:
            finetune(data, finetune_arguments(**settings))
        said.append(str(error.value))
    said += [record.getMessage() for record in caplog.records]
    listed = re.findall(r"^\| `(.*?)`", PAGE.split("## What an error says")[1], re.MULTILINE)
    assert len(listed) == 17  # the last four are adapters': see test_adapter_saving.py
    for message, text in zip(listed, said[:12], strict=False):
        assert message in text
    assert any(listed[11] in text for text in said)
