"""The picture of the code is what the imports are, and CONTRIBUTING's table of places is true."""

import ast
import importlib.util
import re
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def drawing() -> ModuleType:
    """The script that draws."""
    spec = importlib.util.spec_from_file_location("drawing", REPOSITORY / "docs" / "draw_architecture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_true(drawing: ModuleType) -> None:
    text = drawing.PICTURE.read_text(encoding="utf-8")
    assert text == drawing.draw(drawing.imports()), "run: python docs/draw_architecture.py"


def test_arrows_point_downwards(drawing: ModuleType) -> None:
    rows = {name: number for number, names in enumerate(drawing.ROWS) for name in names}
    edges = drawing.imports()
    assert {name for edge in edges for name in edge} <= set(rows)
    assert [edge for edge in edges if rows[edge[0]] >= rows[edge[1]]] == []
    assert {*drawing.SAYS} == set(rows)


def test_only_arrows_that_follow_from_others_are_left_out(drawing: ModuleType) -> None:
    edges = {("a", "b"), ("b", "c"), ("a", "c"), ("a", "d")}
    assert drawing.reduced(edges) == edges - {("a", "c")}


def places() -> list[tuple[str, str]]:
    """Files and names of the table."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.findall(r"^\| [^|]+ \| `([\w/.]+\.py)` \| `([\w.]+)` \|$", text, re.MULTILINE)


def test_twelve_questions_are_answered() -> None:
    assert len(places()) == 12


@pytest.mark.parametrize(("path", "name"), places())
def test_the_place_is_there(path: str, name: str) -> None:
    body = ast.parse((REPOSITORY / path).read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [node for node in body if getattr(node, "name", None) == part]
        assert len(found) == 1
        body = found[0].body


def test_paths_of_the_page_are_there() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    for folder, files in re.findall(r"^\| `([\w/]+)/(?:\*\.py)?` \|[^|]*\| ([^|]+) \|$", text, re.MULTILINE):
        for name in re.findall(r"`([\w/.]+)`", files):
            assert (REPOSITORY / folder / name).is_file(), f"{folder}/{name}"
