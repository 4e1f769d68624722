"""Fixtures of the conversion tests: the small checkpoint in the research code's files, a vocabulary for it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conversion import convert_official
from tests.conftest import REPOSITORY


SMALL = REPOSITORY / "tests" / "fixtures" / "official_small"
RUN = next(SMALL.glob("none_*"))
TEMPLATE = REPOSITORY / "conversion" / "vocabularies" / "seven_datasets.json"


def convert(*arguments: Any) -> None:
    """The command line."""
    convert_official.main([str(argument) for argument in arguments])


@pytest.fixture
def run_copy(tmp_path: Path) -> Path:
    """A copy of the run's folder that a test may damage."""
    return Path(shutil.copytree(RUN, tmp_path / RUN.name))


@pytest.fixture
def vocabulary(tmp_path: Path) -> Callable[..., Path]:
    """Factory of vocabulary files that fit the small checkpoint, whose groups are adni, hcpa, hcpya, ppmi, abide."""

    def make(**changes: Any) -> Path:
        content = json.loads(TEMPLATE.read_text()) | {"status": "named"}
        by_name = {variable["name"]: variable for variable in content["variables"]}
        order = ["adni", "hcpa", "hcpya", "ppmi", "abide", "sex", "age"]
        content["variables"] = [by_name[name] | changes.get(name, {}) for name in order] + changes.get("more", [])
        path = tmp_path / "vocabulary.json"
        path.write_text(json.dumps(content))
        return path

    return make


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line that a refused conversion prints; the output must not exist afterwards, not even in part."""
    output = Path(arguments[arguments.index("--output") + 1])
    with pytest.raises(SystemExit) as stopped:
        convert(*arguments)
    assert stopped.value.code == 2
    if output.parent.is_dir():
        assert [path.name for path in output.parent.iterdir() if output.name in path.name] == []
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    return message
