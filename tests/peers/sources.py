"""Tests of Transformers and PEFT, from the source distributions of the installed versions.

Their wheels leave the tests out. They are downloaded once with pip, and kept in the ignored build folder.
"""

import importlib
import subprocess
import sys
import tarfile
import types
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest


CACHE = Path(__file__).resolve().parents[2] / "build" / "peers"


def tests_of(package: str) -> Path:
    """Folder of a package's own tests.

    Args:
        package: Name of an installed package, at whose version the source distribution is fetched.

    Raises:
        pytest.skip.Exception: It cannot be had; the reason is named.
    """
    name = f"{package}-{version(package)}"
    if not (CACHE / name / "tests").is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=CACHE) as folder:
            wanted = ["--no-deps", "--no-binary", package, "--dest", folder, f"{package}=={version(package)}"]
            done = subprocess.run([sys.executable, "-m", "pip", "download", *wanted], capture_output=True, text=True)
            archives = [*Path(folder).glob("*.tar.gz")]
            if done.returncode or not archives:
                reason = (done.stderr.strip().splitlines() or ["pip downloaded no archive"])[-1]
                pytest.skip(f"no source distribution of {name}: {reason}", allow_module_level=True)
            with tarfile.open(archives[0]) as archive:
                archive.extractall(folder, filter="data")
            with suppress(OSError):  # another process of pytest-xdist was faster
                (Path(folder) / name).rename(CACHE / name)
    return CACHE / name / "tests"


def import_test_module(package: str, module: str, **beside: dict[str, Any]) -> types.ModuleType:
    """Import one module of a package's own tests.

    Args:
        package: See [`tests_of`].
        module: Its name, such as "test_modeling_common".
        **beside: What stands in for modules that the distribution lacks and this one imports, `{name: content}`, with
            "__" for the dots of a name relative to the tests; a name that begins with "top__" is no part of them.
    """
    folder = tests_of(package)
    root = f"{package}_tests"
    _make_module(root).__path__ = [str(folder)]
    (folder / "__init__.py").touch()  # Transformers looks for it
    for name, content in beside.items():
        path = name.removeprefix("top__") if name.startswith("top__") else f"{root}.{name.replace('__', '.')}"
        parents = path.split(".")
        for end in range(1, len(parents)):
            _make_module(".".join(parents[:end]))
        vars(_make_module(path)).update(content)
    return importlib.import_module(f"{root}.{module}")


def _make_module(name: str) -> types.ModuleType:
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__path__ = []
        sys.modules[name] = module
    return sys.modules[name]
