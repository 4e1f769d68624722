"""Full and read-only disks: one sentence, and the last checkpoint stays."""

import contextlib
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.training.child_processes import run_one
from tests.training.trainer.test_faults import at_the_end_of_epoch, lively_trainer
from training import predict, pretrain
from training.data.cohort import Cohort, load_cohort
from training.storage.files import require_writable
from training.trainer.resume_store import CheckpointStore, find_damage


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True)
    if done.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill_disk(folder: Path) -> Path:
    """Write until nothing more fits."""
    path = folder / "others"
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"0" * 4096)
    return path


def test_full_disk_is_one_sentence_and_the_last_checkpoint_stays(cohort: Cohort, small_disk: Path) -> None:
    settings = {"epochs": 3, "checkpoint_every_steps": 0}
    history = lively_trainer(cohort, None, **settings).train()
    trainer = lively_trainer(cohort, small_disk / "run", **settings)
    trainer._log = lambda record: None  # whose small files would meet the full disk before the checkpoint does
    at_the_end_of_epoch(trainer, 1, lambda: fill_disk(small_disk))
    with pytest.raises(
        OSError, match=r"could not be written to .* \(no space left on the device\)\. The last"
    ) as caught:
        trainer.train()
    assert "epoch_00001_step_0000000: free space and go on with --resume true." in str(caught.value)
    (small_disk / "others").unlink()
    resumed = lively_trainer(cohort, small_disk / "run", **settings, resume=True)
    assert resumed.train() == history


def test_too_little_room_is_noticed_before_training(cohort: Cohort, small_disk: Path) -> None:
    fill_disk(small_disk).open("r+b").truncate(2**21 - 2**16)
    trainer = lively_trainer(cohort, small_disk / "run")
    trainer._step = lambda *given: pytest.fail("training began")
    with pytest.raises(OSError, match=r"has 0\.\d+ GB of free space, and one checkpoint of this run takes about 0\."):
        trainer.train()


def train_under_a_file_limit(dataset: Path, folder: Path) -> None:
    """A checkpoint that cannot be written, without root: files may not grow any more."""
    trainer = lively_trainer(load_cohort(dataset), folder, epochs=3, checkpoint_every_steps=0)
    at_the_end_of_epoch(trainer, 1, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)))
    try:
        trainer.train()
    except OSError as error:
        print(error)


def test_file_that_cannot_grow(dataset: Path, tmp_path: Path) -> None:
    assert run_one(train_under_a_file_limit, dataset, tmp_path / "run", log=tmp_path / "log") == 0
    message = (tmp_path / "log").read_text()
    assert "The checkpoint could not be written to" in message
    assert "File too large" in message
    (checkpoint,) = CheckpointStore(tmp_path / "run" / "resume", 2).complete()
    assert find_damage(checkpoint) is None
    assert not (tmp_path / "run" / "resume" / ".partial").exists()


def test_output_that_cannot_be_written(
    cohort: Cohort, small_disk: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match=r"Nothing can be written to .*/run \(Read-only file system\): choose another"):
        require_writable(small_disk / "run")
    data = ["--data", str(dataset), "--output"]
    for script, given in (
        (pretrain, [*data, str(small_disk / "out")]),
        (predict, [*data, str(small_disk / "table.tsv"), "--checkpoint", "unread"]),
    ):
        with pytest.raises(SystemExit) as caught:
            script.main(given)
        assert caught.value.code == 2
        assert capsys.readouterr().err.count("error: Nothing can be written to") == 1
