"""The commands of docs/conversion.md and docs/sharing.md run as they are printed."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.hub_cards.conftest import Client, Finetuned, make_metrics, own_facts
from tests.hub_cards.official_files import make_official_run


def blocks(name: str) -> list[tuple[str, str]]:
    """Language and content of every bash and python block of a page."""
    page = (REPOSITORY / "docs" / name).read_text()
    return re.findall(r"^```(bash|python)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


@pytest.fixture
def desk(client: Client, tmp_path: Path) -> Iterator[Path]:
    """A folder with the repository's files that the commands name, in which the client process works."""
    (tmp_path / "tests").mkdir()
    for name in ("conversion/vocabularies", "hub_cards", "tests/fixtures"):
        shutil.copytree(REPOSITORY / name, tmp_path / name)
    client.code(f"import os\nos.chdir({str(tmp_path)!r})\n")
    yield tmp_path
    client.code(f"import os\nos.chdir({str(client.folder)!r})\n")


def follow(client: Client, desk: Path, page: str) -> str:
    """Run every block of a page; returns all that was printed."""
    printed = []
    for language, content in blocks(page):
        if language == "python":
            printed.append(client.code(content).out)
            continue
        for line in content.strip().splitlines():
            words = shlex.split(line)
            if words[:3] == ["hf", "auth", "login"]:
                continue  # asks a subject; here the token is in the environment
            if words[0] == "cp":
                shutil.copy(desk / words[1], desk / words[2])
                # What a user does next: fill it in.
                (desk / words[2]).write_text(json.dumps(own_facts()))
                continue
            assert words[:2] == ["python", "-m"], line
            answer = client.command(words[2], *words[3:])
            assert answer.code == 0, f"{line}\n{answer.err}"
            printed.append(answer.out)
    return "\n".join(printed)


def test_use_official_weights(client: Client, desk: Path) -> None:
    make_official_run(desk / "weights", layers=4, width=64, wide=48)
    printed = follow(client, desk, "conversion.md")
    assert "to be confirmed by the weights' owner" in printed
    assert "(unnamed)" in printed
    assert "loss adaptive, total" in printed
    assert next((desk / "for-the-research-code").glob("none_decoder4_*/head_fold0_*.pt")).is_file()


def test_share_your_model(client: Client, desk: Path, finetuned: Finetuned, prepared: Path) -> None:
    for source, target in (
        (finetuned.checkpoint, "runs/demo/checkpoint"),
        (prepared, "runs/demo/dataset"),
        (finetuned.base, "runs/pretrain/checkpoint"),
        (finetuned.checkpoint, "runs/finetune/checkpoint"),
    ):
        shutil.copytree(source, desk / target)
    (desk / "runs" / "demo" / "metrics.json").write_text(json.dumps(make_metrics()))
    (desk / "adapter.yaml").write_text(json.dumps(own_facts(kind="adapter")))
    printed = follow(client, desk, "sharing.md")
    assert printed.count("every file and tensor is the same") == 4
    assert printed.count("Dry run") == 1
