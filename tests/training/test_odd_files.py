"""Files that users write or receive, changed at random: read, or refused by a sentence of ours, never by another's.

`LCM_EXAMPLES=10000 pytest --hypothesis-profile=default tests/training/test_odd_files.py` tries more.
"""

import copy
import json
import os
import shutil
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conversion.official import infer_architecture, load_state
from conversion.run_files import find_run
from modeling_lcm import BEITokenizer, LCMConfig
from tests.conftest import REPOSITORY
from training.data.folds import Folds
from training.preparation.arguments import PATHS, PrepareArguments
from training.preparation.recipes import available, load_recipe
from training.storage.checked_files import check_files, load_own_processor


RECIPES = REPOSITORY / "training" / "cohorts"
RUN = next((REPOSITORY / "tests" / "fixtures" / "official_small").glob("none_*"))
fuzz = settings(
    max_examples=int(os.environ.get("LCM_EXAMPLES", "150")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

ODD: Any = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([10**30, -(10**30), 2**63, 10**9]),
    st.floats(allow_nan=True, allow_infinity=True), st.text(max_size=8), st.just(""), st.just("a=b"),
    st.lists(st.one_of(st.integers(), st.text(max_size=3), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2), st.just([[]]), st.just({"": {}}),
)  # fmt: skip


def places(content: Any, path: tuple = ()) -> list[tuple]:
    """Where something stands in nested dictionaries and lists."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in inside for place in places(value, (*path, key)))]


@st.composite
def changed(draw: Any, content: Any) -> Any:
    """A copy with one to three odd values, missing or additional entries."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(places(content)))
        if not path:
            if draw(st.booleans()):
                return copy.deepcopy(draw(ODD))
            continue
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        action = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if action == "replace":
            parent[path[-1]] = copy.deepcopy(draw(ODD))
        elif action == "remove":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[draw(st.text(max_size=5))] = copy.deepcopy(draw(ODD))
        else:
            parent.append(copy.deepcopy(draw(ODD)))
    return content


def read(action: Callable[[], Any]) -> None:
    """Read a file; an error must be a `ValueError` or `OSError` that this repository raised, in one short sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            action()
    except (ValueError, OSError) as error:
        raised = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        assert raised.is_relative_to(REPOSITORY), f"{raised} says: {error}"
        assert len(str(error).split()) > 3, error
        assert len(str(error)) < 700, error


@fuzz
@given(data=st.data())
def test_recipes(data: st.DataObject, tmp_path: Path) -> None:
    name = data.draw(st.sampled_from(available()))
    content = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(data.draw(changed(content)), allow_unicode=False))
    given_settings = PrepareArguments(output="x", data_dir="y")
    read(lambda: load_recipe(str(path)).complete(given_settings, PATHS))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, pretrained: Path) -> Path:
    """A checkpoint's small files, without checksums."""
    folder = tmp_path_factory.mktemp("files")
    for path in pretrained.glob("*.json"):
        if path.name not in ("checksums.json", "training_record.json"):
            shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json", "bei_vocab.json"])
@fuzz
@given(data=st.data())
def test_files_of_checkpoints(data: st.DataObject, files: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    content = json.loads((files / name).read_text(encoding="utf-8"))
    (tmp_path / name).write_text(json.dumps(data.draw(changed(content))))

    def load() -> None:
        check_files(str(tmp_path))
        if name == "config.json":
            LCMConfig.from_pretrained(tmp_path)
        else:
            load_own_processor(str(tmp_path))
            BEITokenizer.from_pretrained(tmp_path)

    read(load)


@fuzz
@given(data=st.data())
def test_split_files(data: st.DataObject, tmp_path: Path) -> None:
    folds = Folds((("a", "b"), ("c", "d")), 0, groups=(("a", "x"),), data="00")
    folds.save(tmp_path / "splits.json")
    content = json.loads((tmp_path / "splits.json").read_text())
    (tmp_path / "splits.json").write_text(json.dumps(data.draw(changed(content))))
    read(lambda: Folds.load(tmp_path / "splits.json"))


STATES = {part: load_state(path) for part, path in (("bb", find_run(RUN).stem), ("head", find_run(RUN).head))}
DTYPES = [torch.float64, torch.float16, torch.int64, torch.bool, torch.complex64, torch.uint8, torch.float8_e4m3fn]
TENSORS: Any = st.one_of(
    st.builds(torch.zeros, st.lists(st.integers(0, 40), max_size=4)),
    st.builds(lambda size, kind: torch.zeros(size).to(kind), st.integers(0, 40), st.sampled_from(DTYPES)),
    st.builds(lambda size: torch.zeros(1).expand(size, 10**6), st.integers(1, 10**6)),
    st.builds(lambda size: torch.zeros(size, size).to_sparse(), st.integers(1, 5)),
    st.builds(lambda size: torch.zeros(size, 3, device="meta"), st.integers(0, 10**9)),
    st.sampled_from([None, 1, "text", [1], {"a": torch.zeros(1)}]),
)


@fuzz
@given(data=st.data())
def test_tensors(data: st.DataObject, tmp_path: Path) -> None:
    part = data.draw(st.sampled_from(["bb", "head"]))
    state: dict[Any, Any] = dict(STATES[part])
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.one_of(st.sampled_from(sorted(STATES[part])), st.text(max_size=30), st.integers()))
        if data.draw(st.booleans()):
            state[name] = data.draw(TENSORS)
        else:
            state.pop(name, None)
    torch.save(state, tmp_path / "state.pt")
    read(lambda: infer_architecture(**{
        "stem": load_state(tmp_path / "state.pt") if part == "bb" else STATES["bb"],
        "head": load_state(tmp_path / "state.pt") if part == "head" else STATES["head"],
    }))  # fmt: skip
