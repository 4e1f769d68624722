"""Fixtures for the Hub tests: a server, a client process, and small folders to publish."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model

from conversion.arguments import Options
from conversion.converting import convert
from conversion.run_files import find_run
from modeling_lcm import (
    BEITokenizer,
    BEIVariable,
    FCFeatureExtractor,
    LCMConfig,
    LCMForMultitaskPretraining,
    LCMForSequenceClassification,
    LCMProcessor,
)
from tests.conftest import REPOSITORY
from tests.hub_cards.hub_server import HubServer, running_hub
from training.preparation.arguments import PrepareArguments
from training.preparation.build import prepare
from training.trainer.arguments import FinetuneArguments
from training.trainer.checkpoints import save_checkpoint


TOKEN = "hf_secretSecretSecretSecretSecret"
SMALL = REPOSITORY / "tests" / "fixtures" / "official_small"
TASK_LABELS = ["young", "elderly"]


def client_environment(server: HubServer, home: Path, **more: str) -> dict[str, str]:
    """Environment of a client process: this server, a cache of its own, no proxy."""
    removed = ("proxy", "hf_hub_offline", "hf_datasets_offline", "transformers_offline", "hf_token")
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith(removed)}
    return {
        **kept,
        "HF_ENDPOINT": server.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        **more,
    }


@dataclass
class Answer:
    """What a job printed, its exit code, and the value of its variable `result`."""

    out: str
    err: str
    code: int
    result: Any


class Client:
    """A process with the real clients; see `hub_worker`."""

    def __init__(self, server: HubServer, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.home = folder / "home"
        self.process = subprocess.Popen(
            [sys.executable, str(REPOSITORY / "tests" / "hub_cards" / "hub_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=folder,
            env=client_environment(server, self.home),
        )

    def _ask(self, token: str | None, **job: Any) -> Answer:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job | {"environment": {"HF_TOKEN": token}}) + "\n")
        self.process.stdin.flush()
        return Answer(**json.loads(self.process.stdout.readline()))

    def code(self, text: str, token: str | None = TOKEN) -> Answer:
        """Run Python that must succeed."""
        answer = self._ask(token, code=text)
        assert answer.code == 0, answer.err
        return answer

    def command(self, module: str, *arguments: Any, token: str | None = TOKEN) -> Answer:
        """Run a module's command line."""
        return self._ask(token, module=module, argv=[str(argument) for argument in arguments])

    def publish(self, *arguments: Any, token: str | None = TOKEN) -> Answer:
        """Upload for real."""
        return self.command("hub_cards.publish", *arguments, "--no-dry-run", token=token)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """A Hub with one user; large files are uploaded in parts."""
    with running_hub(tmp_path_factory.mktemp("hub"), {TOKEN: "me"}, part_size=8_000_000) as server:
        yield server


@pytest.fixture(scope="session")
def client(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One client process for the whole session."""
    client = Client(hub, tmp_path_factory.mktemp("client"))
    client.code("import hub_cards.upload\nhub_cards.upload.FIRST_PAUSE = 0.02\n")  # nobody has to wait here
    yield client
    client.close()


@pytest.fixture(autouse=True)
def _no_faults_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A fault that a test did not use must not hit the next one."""
    yield
    if "hub" in request.fixturenames:
        request.getfixturevalue("hub").faults.clear()


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A converted checkpoint, in several shards."""
    folder = tmp_path_factory.mktemp("converted") / "checkpoint"
    convert(find_run(next(SMALL.glob("none_*"))), folder, Options(max_shard_size="60KB"))
    return folder


@pytest.fixture(scope="session")
def card_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A filled-in card of somebody's model; JSON is YAML too."""
    path = tmp_path_factory.mktemp("card") / "card.yaml"
    path.write_text(json.dumps(own_facts()))
    return path


def own_facts(**changes: Any) -> dict[str, Any]:
    """Facts of an invented model; a change to None takes a field out."""
    cohort = {"name": "Synthetic", "people": "none: random numbers", "labels": "invented", "access": "none"}
    facts = {
        "kind": "model",
        "license": "apache-2.0",
        "title": "A model of random numbers",
        "summary": "Made by a test.",
        "cohorts": [cohort | {"licence": "none"}],
        "training": "Not trained.",
        "population": "Nobody.",
        "hardware": "One CPU.",
        "emissions": "Not measured.",
        "no_results": "There is nothing to evaluate.",
    }
    return {name: value for name, value in (facts | changes).items() if value is not None}


def make_metrics(folds: int = 3) -> dict[str, Any]:
    """Results of one task as earlier versions wrote them, which stay readable; the numbers are invented."""

    def summary(value: float) -> dict[str, Any]:
        return {"mean": value, "std": 0.01, "per_fold": [value] * folds}

    models = {"LCM": 0.7, "linear": 0.75, "majority": 0.5}
    return {
        "title": "Invented numbers of a test",
        "protocol": {"task": "cohort", "labels": TASK_LABELS, "folds": folds, "split": "by subject", "epoch": "last"},
        "n_subjects": 30,
        "n_scans": 31,
        "models": {
            name: {"roc_auc": summary(value), "accuracy": summary(value - 0.1), "mae": {**summary(0), "mean": None}}
            for name, value in models.items()
        },
        "settings": {"pretraining": None, "fine-tuning": {"data": "/home/somebody/data", "epochs": 3}},
    }


@dataclass
class Finetuned:
    """A fine-tuned checkpoint with its adapter, and the pretrained one it comes from."""

    base: Path
    checkpoint: Path

    @property
    def adapter(self) -> Path:
        """The adapter's folder."""
        return self.checkpoint / "adapter"


@pytest.fixture(scope="session")
def finetuned(tmp_path_factory: pytest.TempPathFactory) -> Finetuned:
    """The folders that the demo leaves with LoRA, with random weights and invented metrics."""
    folder = tmp_path_factory.mktemp("finetuned")
    torch.manual_seed(1)
    extractor = FCFeatureExtractor.from_atlas("schaefer-200")
    variables = [
        BEIVariable("sex", "categorical", ["F", "M"]),
        BEIVariable("age", "continuous", unit="years", std=9.0),
    ]
    tokenizer = BEITokenizer(variables=variables)
    config = LCMConfig.from_size("nano", num_regions=200, bei_variables=tokenizer.model_variables)
    LCMForMultitaskPretraining(config).save_pretrained(folder / "base")
    LCMProcessor(extractor, tokenizer).save_pretrained(folder / "base")
    tokenizer = tokenizer.add_variable(BEIVariable("cohort", "categorical", TASK_LABELS), task=True)
    model = LCMForSequenceClassification.from_pretrained(
        folder / "base",
        id2label=dict(enumerate(TASK_LABELS)),
        label2id={name: index for index, name in enumerate(TASK_LABELS)},
        problem_type="single_label_classification",
        task_variable="cohort",
    )
    whole = ["score", "stem.norm", "task_embeddings", "bei_layer_choice", "task_layer_choice"]
    targets = ["cross_attn.q_proj", "cross_attn.v_proj", "fc1"]
    lora = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=targets, modules_to_save=whole)
    model = get_peft_model(model, lora)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:  # zero at first, so that an adapter left out would go unnoticed
            torch.nn.init.normal_(parameter, std=0.1)
    arguments = FinetuneArguments(
        data="/home/somebody/data", checkpoint=str(folder / "base"), task="cohort", lora_rank=2
    )
    record = {"training_subjects": ["sub-001", "sub-002"], "num_training_scans": 2, "history": [{}], "versions": {}}
    processor = LCMProcessor(extractor, tokenizer)
    save_checkpoint(folder / "checkpoint", model, processor, arguments, record)
    (folder / "checkpoint" / "metrics.json").write_text(json.dumps(make_metrics()))
    return Finetuned(folder / "base", folder / "checkpoint")


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set as training.prepare leaves it: 12 scans of random numbers."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("prepared")
    ids = [f"sub-{index:03d}" for index in range(12)]
    people = pd.DataFrame({"participant_id": ids, "sex": ["F", "M"] * 6, "age": rng.uniform(20, 80, 12).round(1)})
    people.to_csv(folder / "participants.tsv", sep="\t", index=False)
    matrices = np.stack([np.corrcoef(rng.standard_normal((200, 60))) for _ in range(12)])
    np.savez(folder / "fc.npz", participant_id=np.array(ids), fc_triu=matrices[:, *np.triu_indices(200, k=1)])
    return prepare(
        PrepareArguments(
            output=str(folder / "dataset"),
            participants=str(folder / "participants.tsv"),
            connectivity=str(folder / "fc.npz"),
            atlas="schaefer-200",
            parquet=False,
        )
    )
