"""The open weights that come with the repository: they load without a network, predict, and name no subject."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from hub_cards.bundle import model_bundle
from hub_cards.facts import load_facts
from hub_cards.validate import check_model
from modeling_lcm import LCMClassifier, LCMConfig
from tests.conftest import REPOSITORY
from training.data.identity import seen_subjects


FOLDER = REPOSITORY / "hub_cards" / "lcm-open"
DEMO = REPOSITORY / "training" / "demo_data" / "lemon-schaefer200"


@pytest.fixture(scope="module")
def demo() -> tuple[np.ndarray, pd.DataFrame]:
    """Real connectomes that come with the repository, and their subjects."""
    rows, columns = np.triu_indices(200, k=1)
    with np.load(DEMO / "fc.npz") as stored:
        matrices = np.ones((len(stored["fc_triu"]), 200, 200), dtype=np.float32)
        matrices[:, rows, columns] = matrices[:, columns, rows] = stored["fc_triu"]
    return matrices, pd.read_csv(DEMO / "participants.tsv", sep="\t")


def test_first_example_of_the_readme_runs_without_a_network() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    code = (
        "import socket\n"
        "def refuse(*args, **kwargs):\n"
        "    raise OSError('no network')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code + blocks[0] + blocks[1]],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    sex, age = run.stdout.split("\n")[0].split()
    assert sex == "F" and 50 < int(age) < 85
    assert float(run.stdout.split("\n")[1]) > 0.85


def test_sane_predictions_for_people_whom_it_knows(demo: tuple[np.ndarray, pd.DataFrame]) -> None:
    """They were trained on: this is about regions and labels being in their order, not about how good it is."""
    from modeling_lcm import LCMForMultitaskPretraining, LCMProcessor

    matrices, people = demo
    processor = LCMProcessor.from_pretrained(FOLDER)
    model = LCMForMultitaskPretraining.from_pretrained(FOLDER).eval()
    records = processor.post_process(model(**processor(connectivity=matrices, return_tensors="pt")))
    assert set(records[0]) == {"sex", "age", "age_group", "task_state"}
    assert np.mean([record["sex"]["label"] for record in records] == people["sex"]) > 0.9
    assert np.corrcoef([record["age"]["value"] for record in records], people["age"])[0, 1] > 0.9
    groups = [record["age_group"]["label"] for record in records]
    assert np.mean(groups == people["cohort"]) > 0.95
    assert {record["task_state"]["label"] for record in records} == {"rest"}


def test_few_labels_of_a_variable_that_it_knows(demo: tuple[np.ndarray, pd.DataFrame]) -> None:
    matrices, people = demo
    few, others = np.arange(16), np.arange(16, len(people))
    fitted = LCMClassifier(FOLDER, task="sex").fit({"schaefer-200": matrices[few]}, people["sex"][few])
    assert fitted.report_["schaefer-200"]["prior"] > 0
    assert roc_auc_score(people["sex"][others] == "M", fitted.decision_function(matrices[others])) > 0.9


def test_folder_is_small_complete_and_what_the_card_says() -> None:
    check_model(FOLDER, "linear")
    assert (FOLDER / "model.safetensors").stat().st_size < 16e6
    bundle = model_bundle(FOLDER, load_facts("lcm-open"), "your-org/lcm-open", "main")
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == bundle.readme
    assert "not a diagnostic device" in bundle.readme.lower()
    assert "cc-by-nc" in bundle.readme
    assert {"modeling_lcm.py", "processing_lcm.py"} <= set(bundle.files)
    config = LCMConfig.from_pretrained(FOLDER)
    assert set(config.atlases) == {
        "aal-116",
        "basc-64",
        "harvard-oxford-111",
        "mist-122",
        "schaefer-200",
        "umcd-177",
    }
    assert "autism" in config.closed_form["aal-116+harvard-oxford-111"]


def test_it_knows_its_subjects_and_names_none() -> None:
    people = pd.read_csv(DEMO / "participants.tsv", sep="\t", dtype=str)
    record = json.loads((FOLDER / "training_record.json").read_text(encoding="utf-8"))
    table = pd.DataFrame({"subject_id": people["participant_id"], "session": "", "dataset": "lemon"})
    assert len(seen_subjects(record, table)) == len(people)
    text = "".join(path.read_text(encoding="utf-8") for path in Path(FOLDER).glob("*.json"))
    # As words: six digits in a row may stand inside a number or a hash.
    words = set(re.findall(r"[\w-]+", text))
    assert not [name for name in people["participant_id"] if {name, name.removeprefix("sub-")} & words]
    assert not [name for name in people["participant_id"] if name in text]
