"""Folds in several processes: the same numbers, killed workers, too little memory, shards of a cluster's array."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import training.evaluation.pool
from tests.conftest import REPOSITORY
from training.evaluation.arguments import EvaluateArguments
from training.evaluation.cross_validation import evaluate, evaluate_shard
from training.evaluation.pool import Job, affordable, free_memory, run_jobs


FEW = {"epochs": 1, "momentum_epochs": 0}


def results_in(folder: Path) -> dict[str, str]:
    """Every fold's result, without how long its epochs took."""

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: timeless(each) for name, each in value.items() if "second" not in name}
        return [timeless(each) for each in value] if isinstance(value, list) else value

    paths = sorted(folder.glob("*/result.json"))
    return {path.parent.name: json.dumps(timeless(json.loads(path.read_text()))) for path in paths}


def test_two_workers_give_the_numbers_of_one_and_so_do_shards(
    evaluate_arguments: Callable[..., EvaluateArguments], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"ensemble": 2, "baselines": ["majority", "linear_best"], "resamples": 20}
    alone = evaluate_arguments(FEW, {"epochs": 1}, output=str(tmp_path / "one"), **settings)
    expected = evaluate(alone)
    both = evaluate(replace(alone, output=str(tmp_path / "two"), workers=2))
    assert results_in(tmp_path / "two") == results_in(tmp_path / "one")
    assert repr(replace(both, seconds=0)) == repr(replace(expected, seconds=0))
    shards = [replace(alone, output=str(tmp_path / "shards"), shard=f"{number}/2") for number in (1, 2)]
    assert evaluate_shard(shards[0]).startswith("Shard 1 of 2: 1 of 2 folds are done.")
    assert not (tmp_path / "shards" / "metrics.json").exists()
    evaluate_shard(shards[1])
    capsys.readouterr()
    joined = evaluate(replace(shards[0], shard=None, resume=True))
    assert "begins" not in capsys.readouterr().out  # nothing is computed again
    assert repr(replace(joined, seconds=0)) == repr(replace(expected, seconds=0))


def test_shards_do_not_mix_with_anything_else(
    evaluate_arguments: Callable[..., EvaluateArguments], tmp_path: Path
) -> None:
    (tmp_path / "folds").mkdir()
    (tmp_path / "folds" / "thesis.txt").write_text("")
    with pytest.raises(FileExistsError, match=r"thesis\.txt, which is of no shard"):
        evaluate_shard(evaluate_arguments(shard="1/2"))
    with pytest.raises(ValueError, match="use evaluate_shard"):
        evaluate(evaluate_arguments(shard="1/2"))


@pytest.mark.parametrize("shard", ["0/2", "3/2", "2", "1/0", "a/b"])
def test_shards_that_do_not_exist(shard: str) -> None:
    with pytest.raises(ValueError, match="shard must be I/N with I from 1 to N"):
        EvaluateArguments(shard=shard)


def double(value: int) -> int:
    return 2 * value


def die_once(marker: str) -> str:
    """Be killed, as the kernel does where memory runs out; the second time all is well."""
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_s_job_is_named_and_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [Job("fold 1", die_once, (str(tmp_path / "marker"),))]
    jobs += [Job(f"fold {number}", double, (number,)) for number in range(2, 8)]
    found = dict(run_jobs(jobs, 2))
    assert found == {0: "done"} | {index: 2 * (index + 1) for index in range(1, 7)}
    assert "A worker process was killed" in (error := capsys.readouterr().err)
    assert "fold 1" in error


def test_a_job_that_kills_its_worker_twice_is_given_up() -> None:
    with pytest.raises(ChildProcessError, match="The process of fold 1 was killed twice"):
        list(run_jobs([Job("fold 1", die, ())], 2))


def refuse() -> None:
    raise ValueError("no such label")


def test_a_mistake_in_a_worker_is_the_mistake_here() -> None:
    with pytest.raises(ValueError, match="no such label"):
        list(run_jobs([Job("fold 1", refuse, ()), Job("fold 2", double, (2,))], 2))


def test_workers_are_lowered_to_what_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training.evaluation.pool, "free_memory", lambda: 5_000_000_000)
    assert affordable(2, 2e9) == (2, None)
    assert affordable(8, 2e9) == (
        2, "2 of 8 workers: each needs about 2.0 GB, and 5.0 GB of memory are free."
    )  # fmt: skip
    assert affordable(8, 9e9)[0] == 1
    monkeypatch.setattr(training.evaluation.pool, "free_memory", lambda: None)
    assert affordable(8, 9e9) == (8, None)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_free_memory_is_known() -> None:
    assert free_memory() > 1e6


SLEEPER = """
import os, time
from training.evaluation.pool import Job, run_jobs

def sleep(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(120)

if __name__ == "__main__":
    import signal, sys
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    list(run_jobs([Job(str(n), sleep, (f"{sys.argv[1]}/{n}",)) for n in range(int(sys.argv[2]))], 2))
"""


@pytest.mark.skipif(not hasattr(os, "getppid") or sys.platform == "win32", reason="POSIX")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    places = [tmp_path / "0", tmp_path / "1"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(script), str(tmp_path), "2"]
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not all(place.is_file() and place.read_text() for place in places):
            assert time.monotonic() < end and parent.poll() is None
            time.sleep(0.1)
        parent.send_signal(number)
        parent.wait(60)
        workers = [int(place.read_text()) for place in places]
        end = time.monotonic() + 120
        while any(is_alive(worker) for worker in workers):
            assert time.monotonic() < end, "a worker has outlived its parent"
            time.sleep(0.2)
    finally:
        parent.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX")
def test_workers_that_never_got_a_job_end_with_their_parent(tmp_path: Path) -> None:
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, str(script), str(tmp_path), "1"]  # one job, two workers
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    end = time.monotonic() + 120
    try:
        while not (tmp_path / "0").is_file():
            assert time.monotonic() < end and parent.poll() is None
            time.sleep(0.1)
        parent.kill()
        parent.wait(60)
        with pytest.raises(ProcessLookupError):
            while True:
                os.killpg(parent.pid, 0)
                assert time.monotonic() < end, "a worker has outlived its parent"
                time.sleep(0.2)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)


def is_alive(process: int) -> bool:
    """Whether a process is there and no zombie."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")
