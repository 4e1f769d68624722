"""An adapter fine-tuned on real connectomes, pushed to a Hub on loopback and pulled by every loader."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from modeling_lcm import FCFeatureExtractor, save_adapter
from modeling_lcm.atlases import region_names
from tests.hub_cards.conftest import TASK_LABELS, Client
from training.data.cohort import Cohort
from training.data.triangles import to_matrices
from training.first_report.demonstration import DEMO_DATA
from training.trainer.arguments import FinetuneArguments, PretrainArguments
from training.trainer.checkpoints import save_checkpoint
from training.trainer.finetuning import finetune
from training.trainer.prediction import predict_logits
from training.trainer.pretraining import pretrain


PEOPLE, HELD_OUT = 60, 20
BASE, ADAPTER = "me/lemon-base", "me/lemon-adapter"
LOOP = {"epochs": 2, "batch_size": 10, "momentum_epochs": 1, "progress": False, "checkpoint_every": 0}


@pytest.fixture(scope="module")
def lemon() -> Cohort:
    """The first subjects of the cohort that comes with the repository."""
    with np.load(DEMO_DATA / "fc.npz") as file:
        people, triangles = file["participant_id"][:PEOPLE], file["fc_triu"][:PEOPLE]
    table = pd.read_csv(DEMO_DATA / "participants.tsv", sep="\t", index_col="participant_id").loc[people]
    table = table[["sex", "age", "cohort"]].reset_index(names="subject_id").assign(session="1")
    return Cohort(
        table, triangles, FCFeatureExtractor(atlas="schaefer-200", region_names=region_names("schaefer-200"))
    )


@pytest.fixture(scope="module", params=["cohort", "sex"])
def pushed(
    request: pytest.FixtureRequest, lemon: Cohort, client: Client, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Tensor]:
    """Task of a trained adapter that lies on the Hub with its base, and its logits of subjects held out.

    "cohort" has tokens of its own, "sex" is a pretrained variable.
    """
    task, folder = request.param, tmp_path_factory.mktemp("trained")
    rows = np.arange(PEOPLE - HELD_OUT)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    settings = PretrainArguments(categorical=["sex"], continuous=["age"], **size, **LOOP)
    model, processor, _ = pretrain(lemon.select(rows), settings)
    save_checkpoint(folder / "base", model, processor, settings, {})
    labels = TASK_LABELS if task == "cohort" else None
    tuning = FinetuneArguments(
        checkpoint=str(folder / "base"), task=task, labels=labels, adapter="lora", lora_rank=2, **LOOP
    )
    adapted, with_task, _ = finetune(lemon.select(rows), tuning)
    expected = predict_logits(adapted, lemon.select(np.arange(PEOPLE - HELD_OUT, PEOPLE)))["logits"]
    adapted.peft_config["default"].base_model_name_or_path = f"{BASE}-{task}"
    save_adapter(adapted, with_task, folder / "adapter")
    client.code(
        f"""
from huggingface_hub import HfApi
for name, folder in (("{BASE}-{task}", "base"), ("{ADAPTER}-{task}", "adapter")):
    HfApi().create_repo(name)
    HfApi().upload_folder(repo_id=name, folder_path={str(folder)!r} + "/" + folder)
"""
    )
    return task, expected


def test_pulled_adapter_predicts_what_the_trained_one_did(
    pushed: tuple[str, Tensor], lemon: Cohort, client: Client, tmp_path: Path
) -> None:
    task, expected = pushed
    scans = to_matrices(torch.from_numpy(lemon.triangles[-HELD_OUT:]), lemon.feature_extractor.num_regions)
    torch.save(scans, tmp_path / "scans.pt")
    found = client.code(
        f"""
import torch
from peft import AutoPeftModelForSequenceClassification
from modeling_lcm import adapter_task, load_adapter
scans = torch.load({str(tmp_path / "scans.pt")!r})
name = "{ADAPTER}-{task}"
model, processor = load_adapter(name)
automatic = AutoPeftModelForSequenceClassification.from_pretrained(name, **adapter_task(name)).eval()
with torch.no_grad():
    ours = model(connectivity=scans)
    theirs = automatic(connectivity=scans)
    with model.disable_adapter():
        plain = model(connectivity=scans).logits
labels = [subject[{task!r}]["label"] for subject in processor.post_process(ours)]
origin = model.peft_config["default"].base_model_name_or_path
result = [ours.logits.tolist(), theirs.logits.tolist(), plain.tolist(), labels, origin]
"""
    ).result
    ours, automatic, without = (torch.tensor(values) for values in found[:3])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(automatic, expected, rtol=0, atol=1e-6)
    assert (without - expected).abs().max() > 1e-3
    names = TASK_LABELS if task == "cohort" else ["F", "M"]
    assert found[3] == [names[index] for index in expected.argmax(1).tolist()]
    assert found[4] == f"{BASE}-{task}"
