"""Doors answer help, typing errors and refused settings before anything slow is imported; one command has them all."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from modeling_lcm.configuration_lcm import SIZES, SUPERVISIONS
from tests.conftest import REPOSITORY
from training.__main__ import main as lcm
from training.command_line import doors
from training.command_line.doors import DOORS
from training.trainer.arguments import Size, Supervision


HEAVY = (
    *("accelerate", "datasets", "evaluate", "jinja2", "matplotlib", "nilearn", "numpy", "pandas", "peft", "scipy"),
    *("sklearn", "tensorboard", "torch", "transformers"),
)
# What a command may import to count CPUs, once its settings are read.
TO_COUNT_CPUS = {"numpy"}

RUN = """
import importlib, json, sys
module, *words = sys.argv[1:]
sys.argv = [module, *words]
code = 0
try:
    importlib.import_module(module).main()
except SystemExit as end:
    code = end.code
print(json.dumps({"code": code or 0, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""


def run(module: str, *words: str) -> tuple[int, set[str], str]:
    """Exit code, heavy packages that were imported, and what was printed as an error."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, module, *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )
    found = json.loads(done.stdout.splitlines()[-1])
    return found["code"], set(HEAVY) & set(found["modules"]), done.stderr


FILES = [path for folder in ("training", "hub_cards", "conversion") for path in (REPOSITORY / folder).glob("*.py")]
COMMANDS = {f"{path.parent.name}.{path.stem}" for path in FILES if "\n@command(" in path.read_text(encoding="utf-8")}
OF_A_CLONE = {"training.studies", "training.few_labels", "training.open_weights"}  # they repeat what the docs report


def test_every_command_is_one_of_all() -> None:
    assert {module for module, _ in DOORS.values()} == COMMANDS - OF_A_CLONE


@pytest.mark.parametrize("module", sorted(COMMANDS))
def test_what_a_door_imports_for_help_and_typing_errors(module: str) -> None:
    assert run(module, "--help") == (0, set(), "")
    code, imported, message = run(module, "--outptu", "x")
    assert (code, imported) == (2, set())
    assert message.startswith("error: Unknown settings or too many values: --outptu x.")


def test_what_a_door_imports_for_refused_settings(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "results.txt").write_text("precious")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "fc_definition.json").write_text("{}")
    (tmp_path / "bad.yaml").write_text("epochs: many\n")
    taken, data, new = ("--output", str(tmp_path / "taken")), ("--data", str(tmp_path / "data")), ("--output", "new")
    for module, words, message in (
        ("training.prepare", taken, "already holds results"),
        ("training.prepare", (*new, "--bad_scans", "keep"), "--bad_scans must be one of skip, stop, got 'keep'"),
        ("training.merge", (*new, "--inputs", "nowhere"), "nowhere is not a data set made by training.prepare"),
        ("training.pretrain", (*taken, *data), "already holds results"),
        ("training.pretrain", (*new, *data, "--config", str(tmp_path / "bad.yaml")), "epochs is 'many'"),
        ("training.pretrain", (*new, *data, "--learning_rate", "inf"), "learning_rate must be a finite number"),
        ("training.finetune", (*new, *data), "No task was given: add --task diagnosis. See --help."),
        ("training.predict", (*new, "--data", "x", "--checkpoint", "y"), "x is not a data set"),
        ("training.evaluate", (*new, *data, "--finetune", str(tmp_path / "bad.yaml")), "epochs is 'many'"),
        ("training.explain", (*new, *data), "Give either checkpoint or evaluation"),
        ("training.plan", ("--size", "2b"), "--size must be one of nano, 147m"),
        ("hub_cards.publish", (str(tmp_path / "taken"), "--repo_id", "me/x"), "is no checkpoint"),
        ("conversion.convert_official", ("nowhere", *new), "There is no folder nowhere"),
        ("conversion.export_official", (str(tmp_path), *taken), "already holds results"),
    ):
        code, imported, said = run(module, *words)
        assert (code, imported - TO_COUNT_CPUS) == (2, set()), (module, words, imported, said)
        assert message in said


def test_choices_are_those_of_the_model() -> None:
    """The settings name them on their own, because the model's module imports torch."""
    assert get_args(Supervision) == tuple(SUPERVISIONS)
    assert get_args(Size) == tuple(SIZES)


def test_all_commands_as_one(capsys: pytest.CaptureFixture[str]) -> None:
    lcm(["--help"])
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in DOORS)
    with pytest.raises(SystemExit, match="0"):
        lcm(["finetune", "--help"])
    assert capsys.readouterr().out.startswith("usage: python -m training.finetune ")
    with pytest.raises(SystemExit, match="2"):
        lcm(["pretrian"])
    assert "There is no command pretrian. Did you mean pretrain?" in capsys.readouterr().err
    lcm(["--version"])
    assert capsys.readouterr().out.count(".") == 2


def test_texts_name_commands_as_the_user_starts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Made by training.prepare, or by python -m hub_cards.publish; see training.data and training.preparation."
    assert doors.in_users_words(text) == text
    assert doors.program("training.prepare") == "python -m training.prepare"
    monkeypatch.setattr(sys, "argv", ["/usr/bin/lcm", "finetune"])
    assert doors.in_users_words(text) == (
        "Made by lcm prepare, or by lcm publish; see training.data and training.preparation."
    )
    assert doors.program("conversion.convert_official") == "lcm convert"
