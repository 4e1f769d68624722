"""The BIDS-App: its command line, the containers' recipes that start it, and the cluster's scripts around it."""

import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.conftest import REPOSITORY
from tests.training.preparation.layouts import write_xcpd
from training.bids_app import main
from training.data.cohort import load_cohort


CLUSTER = REPOSITORY / "docs" / "cluster"
NAMES = [f"R{number}" for number in range(6)]
# Stands for Apptainer: notes what the image would be given, one word a line.
APPTAINER = """#!/bin/sh
while [ "${1##*.}" != sif ]; do shift; done
shift
printf '%s\\n' "$@" . >> "$NOTES"
"""


@pytest.fixture
def derivatives(tmp_path: Path, rng: np.random.Generator) -> Path:
    """XCP-D's tables of four subjects."""
    series = {f"sub-{number:02d}_task-rest": rng.standard_normal((40, 6)) for number in range(1, 5)}
    return write_xcpd(tmp_path / "my derivatives", series, NAMES)


def entry_point(recipe: str) -> list[str]:
    """The command that an image starts, as its recipe says."""
    text = (CLUSTER / recipe).read_text()
    if recipe == "Dockerfile":
        return yaml.safe_load(re.search(r"^ENTRYPOINT (.*)$", text, re.MULTILINE)[1])
    return shlex.split(re.search(r'exec (.*) "\$@"', text)[1])


def test_participant_level_prepares_the_chosen(derivatives: Path, tmp_path: Path) -> None:
    main([str(derivatives), str(tmp_path / "out"), "participant", "--participant_label", "01", "sub-03"])
    cohort = load_cohort(tmp_path / "out" / "data")
    assert cohort.subjects.tolist() == ["sub-01", "sub-03"]


def test_group_level_reports_on_what_was_prepared(
    derivatives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report's own flags go through; here it only says what it would do."""
    out = tmp_path / "out"
    main([str(derivatives), str(out), "participant", "--parquet", "false"])
    main([str(derivatives), str(out), "group", "--task", "age", "--kind", "continuous", "--dry-run"])
    assert str(out / "data") in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([str(derivatives), str(out), "group", "--task", "agee", "--dry-run"])
    assert "age" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["IN", "OUT", "subject"], r"invalid choice: 'subject'.*participant.*INPUT OUTPUT participant\|group"),
        (["IN"], "are required"),
        (["elsewhere", "OUT", "participant"], "There is no folder elsewhere.*--bind"),
        (["IN", "OUT", "group"], "run the participant level first"),
        (["IN", "OUT", "group", "--participant_label", "01"], "belongs to the participant level"),
        (["IN", "OUT", "participant", "--participant_label", "09"], "sub"),
        (["IN", "OUT", "participant", "--atlass", "aal-116"], "Did you mean --atlas"),
    ],
)
def test_wrong_commands(
    words: list[str], message: str, derivatives: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"IN": str(derivatives), "OUT": str(tmp_path / "out")}
    with pytest.raises(SystemExit) as stopped:
        main([places.get(word, word) for word in words])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert re.search(message, error)
    assert len(error) < 450
    assert not (tmp_path / "out" / "data").exists()


def test_array_of_jobs_makes_one_data_set(derivatives: Path, tmp_path: Path) -> None:
    """The cluster's scripts; what they give to the image is done here."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "apptainer").write_text(APPTAINER)
    (tmp_path / "bin" / "apptainer").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "NOTES": str(tmp_path / "notes"),
        "INPUT": str(derivatives),
        "OUTPUT": str(tmp_path / "my results"),
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_ARRAY_TASK_COUNT": "2",
        "SHARDS": "2",
        "PREPARE": "--parquet false",
    }

    def batch(script: str, *flags: str, **more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["bash", CLUSTER / script, *flags], env=environment | more, cwd=tmp_path, capture_output=True, text=True
        )

    for job in ("1", "2"):
        assert batch("participant.sbatch", "--parquet", "false", SLURM_ARRAY_TASK_ID=job).returncode == 0
    assert batch("group.sbatch", "--task", "age").returncode == 0
    *prepared, report = (tmp_path / "notes").read_text().removesuffix(".\n").split(".\n")
    for words in prepared:
        main(words.splitlines())
    cohort = load_cohort(tmp_path / "my results" / "data")
    assert cohort.subjects.tolist() == [f"sub-{number:02d}" for number in range(1, 5)]
    assert report.splitlines() == [str(derivatives), str(tmp_path / "my results"), "group", "--task", "age"]
    without = batch("participant.sbatch", INPUT="")
    assert without.returncode != 0
    assert "set INPUT to the folder of derivatives" in without.stderr


@pytest.mark.parametrize("recipe", ["Dockerfile", "lcm.def"])
def test_images_start_this_entry_point(recipe: str) -> None:
    program, *words = entry_point(recipe)
    assert (program, words) == ("python", ["-P", "-m", "training.bids_app"])
    text = (CLUSTER / recipe).read_text()
    for name in re.findall(r"tests/constraints/\w+\.txt", text):
        assert (REPOSITORY / name).is_file()
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.search(r"'\.\[(.*)\]'", text)[1].split(",")) <= set(extras)
    pinned = dict(line.split("==") for line in (REPOSITORY / "tests/constraints/newest.txt").read_text().splitlines()
                  if "==" in line and ";" not in line and not line.startswith("#"))  # fmt: skip
    assert f"torch=={pinned['torch']}" in text


def test_conda_recipe_has_the_dependencies_of_the_package() -> None:
    recipe = yaml.safe_load((CLUSTER / "recipe" / "recipe.yaml").read_text())
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert recipe["context"]["version"] == project["version"]
    renamed = {"torch": "pytorch", "huggingface-hub": "huggingface_hub"}
    wanted = {f"python {project['requires-python']}"}
    for requirement in project["dependencies"]:
        name, bounds = re.fullmatch(r"([\w-]+)(.*)", requirement).groups()
        wanted.add(f"{renamed.get(name, name)} {bounds}")
    assert set(recipe["requirements"]["run"]) == wanted
    optional = {re.sub("(?=>)", " ", each, count=1) for each in project["optional-dependencies"]["nifti"]}
    assert set(recipe["requirements"]["run_constraints"]) == optional
    assert (
        CLUSTER / "recipe" / recipe["source"]["path"] / "pyproject.toml"
    ).resolve() == REPOSITORY / "pyproject.toml"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)
