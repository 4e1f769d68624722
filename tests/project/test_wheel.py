"""The wheel holds what the README promises, and works where there is no clone."""

import ast
import json
import os
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY


pytest.importorskip("hatchling", reason="builds the wheel")
# The installation of the tests is an editable one: without it on the path, nothing of the clone can be imported.
ELSEWHERE = """
import sys
sys.path = [{site!r}, *(place for place in sys.path if place not in ("", {clone!r}))]
sys.argv = ["lcm", *sys.argv[1:]]
"""
COMMAND = "from large_connectome_model.__main__ import main\nmain()\n"
README = """
import json
from large_connectome_model.__main__ import main
for words in json.loads(sys.argv[1]):
    main(words)

from large_connectome_model.data import load_cohort
from large_connectome_model.estimator import LCMClassifier
from modeling_lcm import LCMForMultitaskPretraining

model = LCMForMultitaskPretraining.from_pretrained("pretrained/checkpoint")
print(len(load_cohort("dataset")), model.config.num_regions)
print([name for name in ("training", "hub_cards", "conversion") if name in sys.modules])
"""
SMALL = "--hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2 --intermediate_size 16 --epochs 1"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, timeout=120)
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and nothing else installed in it."""
    return install(wheel, tmp_path_factory.mktemp("site"))


def install(wheel: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([*command, str(wheel)], check=True, capture_output=True, timeout=120)
    return folder


def run(site: Path, code: str, *words: object, cwd: Path) -> subprocess.CompletedProcess:
    """Run Python, or the command, outside the clone with the installed wheel."""
    start = ELSEWHERE.format(site=str(site), clone=str(REPOSITORY))
    return subprocess.run(
        [sys.executable, "-c", start + code, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_no_generic_name_gets_into_site_packages(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {
        "modeling_lcm",
        "large_connectome_model",
    }
    assert {"modeling_lcm/py.typed", "large_connectome_model/py.typed"} <= set(names)
    assert not [name for name in names if name.endswith((".safetensors", ".pyc")) or "/studies/" in name]
    for needed in ("cohorts/abide1.yaml", "reporting/templates", "hub_cards/checkpoints.yaml", "demo_data"):
        assert any(needed in name for name in names), needed


def test_modules_import_each_other_by_their_new_names(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    for name in archive.namelist():
        if name.endswith(".py"):
            for node in ast.walk(ast.parse(archive.read(name))):
                modules = [each.name for each in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
                assert not {"training", "hub_cards", "conversion"} & {each.partition(".")[0] for each in modules}, name


def test_one_command_for_all(site: Path, tmp_path: Path) -> None:
    assert (site / "bin" / "lcm").is_file()
    shown = run(site, COMMAND, "--help", cwd=tmp_path)
    assert shown.stdout.startswith("usage: lcm COMMAND")
    for name in ("prepare", "pretrain", "evaluate", "publish", "convert"):
        assert f"  {name} " in shown.stdout
        door = run(site, COMMAND, name, "--help", cwd=tmp_path)
        assert (door.returncode, door.stderr) == (0, "")
        assert f"usage: lcm {name} " in door.stdout
        assert "python -m" not in door.stdout and "training." not in door.stdout
    wrong = run(site, COMMAND, "merge", "--inputs", "nowhere", "--output", "new", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: nowhere is not a data set made by lcm prepare:")


def test_the_readme_without_the_clone(site: Path, tmp_path: Path) -> None:
    rng, names = np.random.default_rng(0), [f"s{number:02d}" for number in range(24)]
    for name in names:
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(60, 116)))
    rows = [f"{name}\t{'FM'[number % 2]}\t{20 + number}" for number, name in enumerate(names)]
    (tmp_path / "participants.tsv").write_text("\n".join(["participant_id\tsex\tage", *rows]))
    lines = [line for line in (REPOSITORY / "README.md").read_text().splitlines() if line.startswith("lcm ")]
    commands = [shlex.split(line)[1:] for line in lines]
    assert [words[0] for words in commands] == ["--help", "prepare", "pretrain", "predict"]
    commands[2] += SMALL.split()
    # All in one process: most of its time goes into imports.
    done = run(site, README, json.dumps(commands), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: lcm COMMAND")
    assert done.stdout.splitlines()[-2:] == ["24 116", "[]"]
    assert len((tmp_path / "predictions.tsv").read_text().splitlines()) == 25


def test_an_editable_installation_has_the_command(tmp_path: Path) -> None:
    pytest.importorskip("editables", reason="hatchling needs it for editable installations")
    code = f"from hatchling.build import build_editable\nprint(build_editable({str(tmp_path)!r}))"
    built = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False
    )
    assert built.returncode == 0, built.stderr
    site = install(tmp_path / built.stdout.split()[-1], tmp_path / "site")
    on_path = f"import site\nsite.addsitedir({str(site)!r})\n"
    shown = run(site, on_path + COMMAND, "publish", "--help", cwd=tmp_path)
    assert shown.stdout.startswith("usage: lcm publish "), shown.stderr
    where = "import large_connectome_model.predict as predict\nprint(predict.__file__)"
    shown = run(site, on_path + where, cwd=tmp_path)
    assert Path(shown.stdout.strip()) == REPOSITORY / "training" / "predict.py"
