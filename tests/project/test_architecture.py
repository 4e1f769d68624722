"""The picture of the code is what the imports are, and CONTRIBUTING's table of places is true."""

import ast
import importlib.util
import re
from pathlib import Path
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


def test_modules_of_the_reference_are_there() -> None:
    text = (REPOSITORY / "docs" / "api.md").read_text(encoding="utf-8")
    modules = re.findall(r"^\.\. automodule:: ([\w.]+)$", text, re.MULTILINE)
    assert len(modules) > 20
    for name in modules:
        place = REPOSITORY.joinpath(*name.split("."))
        assert place.with_suffix(".py").is_file() or (place / "__init__.py").is_file(), name


PAGES = [
    *REPOSITORY.glob("*.md"),
    *(REPOSITORY / "docs").glob("*.md"),
    *(REPOSITORY / "hub_cards").glob("*/README.md"),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target
