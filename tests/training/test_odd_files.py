"""Files that users write or receive, changed at random; `python -m tests.campaign` tries 10,000 of each kind."""

import random
from pathlib import Path

import pytest

from modeling_lcm import save_adapter
from tests.campaign.odd_files import KINDS, OddFiles, read_odd_file
from tests.training.trainer.test_adapters import make_adapter


@pytest.fixture(scope="module")
def odd_files(pretrained: Path, dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> OddFiles:
    folder = tmp_path_factory.mktemp("odd")
    save_adapter(*make_adapter(pretrained, "group"), folder / "adapter")
    return OddFiles(pretrained, folder / "adapter", dataset, folder / "files")


@pytest.mark.parametrize("kind", KINDS)
def test_odd_files_are_read_or_refused_in_a_sentence(odd_files: OddFiles, kind: str) -> None:
    for number in range(120):
        assert read_odd_file(odd_files.kinds[kind], random.Random(f"{kind} {number}")) is None, number
