"""One run, one output: locks that end with their holder, links, permissions, leftovers, and an orderly death."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from training import predict, splits
from training.command_line import cli
from training.storage.files import claim, remove_leftovers, write_folder, write_text


HOLD = """
import sys, time
from training.storage.files import claim
with claim(sys.argv[1]) as output:
    print(output, flush=True)
    time.sleep(60)
"""


def hold(output: Path) -> subprocess.Popen:
    """A process that holds an output."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(output)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == str(output)
    return process


def test_second_run_is_told_who_holds_the_output(tmp_path: Path) -> None:
    process = hold(tmp_path / "out")
    try:
        with pytest.raises(BlockingIOError, match=rf"process {process.pid} on .*, since 20.*choose another") as caught:
            claim(tmp_path / "out").__enter__()
        assert len(str(caught.value)) < 400 + len(str(tmp_path))
        with claim(tmp_path / "other"):
            pass
    finally:
        process.kill()
        process.wait()
    with claim(tmp_path / "out") as output:  # the holder is dead, its file is not
        assert output == tmp_path / "out"
    assert not list(tmp_path.iterdir())


def test_same_process_does_not_hold_it_twice(tmp_path: Path) -> None:
    with claim(tmp_path / "out"), pytest.raises(BlockingIOError, match="another run"), claim(tmp_path / "out"):
        pass


def test_lock_file_that_was_replaced_keeps_nobody_out(tmp_path: Path) -> None:
    with claim(tmp_path / "out"):
        (tmp_path / ".out.lock").unlink()
        with claim(tmp_path / "out"):
            holder = json.loads((tmp_path / ".out.lock").read_text())
            assert holder["pid"] == os.getpid()


def test_links_lead_to_one_output(tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "out").symlink_to(tmp_path / "large" / "target")
    with claim(tmp_path / "small" / "out") as output:
        assert output == tmp_path / "large" / "target"
        with pytest.raises(BlockingIOError, match="another run"), claim(output):
            pass
        write_folder(output, lambda folder: (folder / "a").write_text("a"))
    assert (tmp_path / "small" / "out").is_symlink()
    assert (tmp_path / "small" / "out" / "a").read_text() == "a"
    with pytest.raises(FileExistsError, match="never overwritten"), claim(tmp_path / "small" / "out"):
        pass


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: Path(path).write_text("")])
def test_what_is_there_is_never_replaced(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "out")
    before = (tmp_path / "out").stat()
    with pytest.raises(FileExistsError, match="never overwritten"), claim(tmp_path / "out"):
        pass
    assert os.path.samestat(before, (tmp_path / "out").stat())


def test_every_door_that_writes_is_kept_out(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "table"
    with claim(output):
        for door, flags in ((splits, ["--n_folds", "2"]), (predict, ["--checkpoint", str(tmp_path)])):
            with pytest.raises(SystemExit) as caught:
                door.main(["--data", str(dataset), "--output", str(output), *flags])
            assert caught.value.code == 2
            assert "is being written by another run" in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(("mask", "folder_mode", "file_mode"), [(0o077, 0o700, 0o600), (0o022, 0o755, 0o644)])
def test_permissions_are_the_umask_s(tmp_path: Path, mask: int, folder_mode: int, file_mode: int) -> None:
    before = os.umask(mask)
    try:

        def fill(folder: Path) -> None:
            save_file({"a": np.zeros(2)}, folder / "model.safetensors")
            (folder / "inside").mkdir()
            write_text(folder / "inside" / "note.txt", "text")

        write_folder(tmp_path / "out", fill)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in [tmp_path / "out", *tmp_path.rglob("out/**/*")]}
    assert modes == {"out": folder_mode, "inside": folder_mode, "model.safetensors": file_mode, "note.txt": file_mode}


def test_leftovers_go_and_those_of_other_outputs_stay(tmp_path: Path) -> None:
    mine = [".data.0123abcd.partial", "data/fold_0/.training.0123abcd.partial", "data/.metrics.json.0123abcd.partial"]
    others = [".data.v2.0123abcd.partial", ".data2.0123abcd.partial", ".data.lock", "data/.hidden", ".data.partial"]
    for name in (*mine, *others):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / ".data.4567abcd.partial").write_text("half a file")
    remove_leftovers(tmp_path / "data")
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob(".*")} == set(others)


def test_killed_between_two_renames_the_previous_folder_comes_back(tmp_path: Path) -> None:
    (tmp_path / ".out.0123abcd.old").mkdir()
    (tmp_path / ".out.0123abcd.old" / "a").write_text("a")
    remove_leftovers(tmp_path / "out")
    assert (tmp_path / "out" / "a").read_text() == "a"


def test_folder_in_which_a_killed_run_wrote_nothing_whole_is_new(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".arguments.json.0123abcd.partial").write_text("{")
    with claim(tmp_path / "out") as output:
        assert not list(output.iterdir())


def test_folder_that_was_being_replaced_is_no_new_one(tmp_path: Path) -> None:
    (tmp_path / ".out.0123abcd.old").mkdir()
    (tmp_path / ".out.0123abcd.old" / "a").write_text("a")
    with pytest.raises(FileExistsError, match="never overwritten"), claim(tmp_path / "out"):
        pass
    assert (tmp_path / "out" / "a").read_text() == "a"


# --- SIGTERM ---

SLOW = """
import sys, time
from pathlib import Path
from dataclasses import dataclass
from training.command_line.cli import command
from training.storage.files import claim, write_folder
from training.command_line.settings import setting

@dataclass
class Slow:
    "Slow."
    output: str = setting("", "Output.")

@command(Slow)
def main(arguments):
    def fill(folder):
        (folder / "half").write_text("half")
        print("working", flush=True)
        time.sleep(60)
    with claim(arguments.output) as output:
        write_folder(output, fill)

main(sys.argv[1:])
"""


def test_sigterm_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "--output", str(tmp_path / "out")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "working\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[1].startswith("stopped: by SIGTERM")
    assert process.returncode == 143
    assert not list(tmp_path.iterdir())


def test_handler_of_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, cli.ending_in_words():
        signal.raise_signal(signal.SIGTERM)
        time.sleep(5)
    assert caught.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
