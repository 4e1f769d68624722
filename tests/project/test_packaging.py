"""The versions that pyproject.toml allows are those of the two tested sets, without what does not fit together."""

import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

from tests.conftest import REPOSITORY


def required() -> dict[str, SpecifierSet]:
    """Dependencies of the package and of its extras, but for the tools of development."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["nifti"], *extras["train"]]
    return {requirement.name: requirement.specifier for requirement in map(Requirement, lines)}


def versions_of(name: str) -> dict[str, list[str]]:
    """Versions of a tested set; several where they differ between releases of Python."""
    found: dict[str, list[str]] = {}
    for line in (REPOSITORY / "tests" / "constraints" / f"{name}.txt").read_text().splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line)
            (version,) = requirement.specifier
            assert version.operator == "==", line
            found.setdefault(requirement.name, []).append(version.version)
    return found


def test_lower_bounds_are_the_lowest_tested_versions() -> None:
    floors = {
        name: [bound.version for bound in bounds if bound.operator == ">="] for name, bounds in required().items()
    }
    lowest = versions_of("lowest")
    assert lowest.keys() == floors.keys()
    for name, (version,) in lowest.items():
        (floor,) = floors[name]
        assert version in SpecifierSet(f"=={floor}"), f"{name}: {floor} is allowed, {version} is tested"


def test_the_newest_tested_versions_are_allowed() -> None:
    bounds, newest = required(), versions_of("newest")
    assert newest.keys() == bounds.keys()
    for name, versions in newest.items():
        assert all(version in bounds[name] for version in versions), name


@pytest.mark.parametrize("file", ["modeling_lcm", "processing_lcm", "pipeline_lcm"])
def test_remote_code_needs_the_core_dependencies_only(file: str) -> None:
    start = str(REPOSITORY / "modeling_lcm" / f"{file}.py")
    core = {"torch", "transformers", "huggingface_hub", "safetensors", "numpy"} | set(sys.stdlib_module_names)
    for path in (start, *get_relative_import_files(start)):
        assert set(get_imports(path)) <= core, path


@pytest.mark.parametrize("version", ["5.24.0", "5.24.1", "6.0.0", "5.11.0"])
def test_releases_of_transformers_that_do_not_fit_are_left_out(version: str) -> None:
    assert version not in required()["transformers"]
