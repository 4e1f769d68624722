"""Who may import whom, as pyproject.toml says."""

import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY


def test_imports_keep_the_rules() -> None:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stdout + found.stderr
