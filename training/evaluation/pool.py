"""Jobs in several processes, through joblib: loky's on this machine, or those of a backend that the caller chose.

`joblib.parallel_config(backend="dask")` around an evaluation spreads its jobs over a cluster.
"""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import joblib

from ..command_line.cli import hide_bars_of_files


WATCH_SECONDS = 0.5  # how often a worker looks whether its parent is still there
BASE_BYTES = 0.7e9  # what a worker needs beside its data and its model: Python with torch, scikit-learn and pandas


@dataclass(frozen=True)
class Job:
    """Something to do, in whatever process.

    Args:
        name (`str`): for messages, such as "fold 3".
        function (`Callable`): of a module, so that it can be sent.
        arguments (`tuple`): of it.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


def run_jobs(jobs: Sequence[Job], workers: int, threads_each: int = 1) -> Iterator[tuple[int, Any]]:
    """Do jobs in several processes.

    A worker that is killed (out of memory, usually) costs the jobs that were being done a second try, one by one.

    Args:
        jobs (`Sequence[Job]`): independent of each other; started in this order.
        workers (`int`): processes; two or more.
        threads_each (`int`): threads of every worker.

    Yields:
        Number and result of each job, as they end.

    Raises:
        ChildProcessError: a job's process was killed when it was done alone, too.
    """
    waiting = list(range(len(jobs)))
    while waiting:
        started: list[int] = []
        try:
            for number, result in _parallel(jobs, tuple(waiting), workers, threads_each, started):
                waiting.remove(number)
                started.remove(number)
                yield number, result
            return
        except BrokenProcessPool:
            names = ", ".join(jobs[number].name for number in started)
            print(
                f"A worker process was killed, usually because memory ran out; repeated one at a time: {names}.",
                file=sys.stderr,
            )
        for number in list(started):
            try:
                # Two workers of which one idles: a single one would be this process itself.
                for done, result in _parallel(jobs, [number], 2, threads_each, []):
                    waiting.remove(done)
                    yield done, result
            except BrokenProcessPool as error:
                raise ChildProcessError(
                    f"The process of {jobs[number].name} was killed twice, the second time alone: it needs more "
                    "memory than there is. Use a smaller batch_size or model, or a machine with more memory."
                ) from error


def _parallel(
    jobs: Sequence[Job], numbers: Sequence[int], workers: int, threads_each: int, started: list[int]
) -> Iterator[tuple[int, Any]]:
    """Numbers and results as they end; `started` holds what has been handed to a worker."""

    def hand_out() -> Iterator[Any]:
        for number in numbers:
            started.append(number)
            yield joblib.delayed(_work)(number, jobs[number], threads_each, os.getpid())

    # No job waits inside the engine: those that were handed out are those that are being done.
    engine = joblib.Parallel(
        n_jobs=workers, return_as="generator_unordered", pre_dispatch="n_jobs", batch_size=1, max_nbytes=None,
        initializer=_end_with, initargs=(socket.gethostname(), os.getpid()),
    )  # fmt: skip
    yield from engine(hand_out())


def _work(number: int, job: Job, threads_each: int, parent: int) -> tuple[int, Any]:
    from ..trainer.threads import threads  # with torch, which handing out jobs does without

    if os.getpid() != parent:
        hide_bars_of_files()
    with threads(threads_each):
        return number, job.function(*job.arguments)


def _end_with(host: str, parent: int) -> None:
    """Leave Ctrl-C to the parent, and end when it does, even if it is killed before this process gets any work."""
    with suppress(ValueError):  # in a thread, where a backend of another kind may be
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    if socket.gethostname() != host:
        return  # a worker of a cluster, which has its own ways

    lives = _is_child if os.getppid() == parent else _exists

    def watch() -> None:
        while lives(parent):
            time.sleep(WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _is_child(parent: int) -> bool:
    return os.getppid() == parent


def _exists(process: int) -> bool:
    """Whether there is a process; asked where the parent died before this one began, or a server started this one."""
    if os.name != "posix":  # signal 0 is no question elsewhere
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def affordable(workers: int, bytes_each: float) -> tuple[int, str | None]:
    """As many workers as memory allows, and a sentence if they are fewer than asked for.

    Args:
        workers (`int`): how many are wanted.
        bytes_each (`float`): what one needs, about.
    """
    free = free_memory()
    if free is None or workers * bytes_each <= free:
        return workers, None
    fitting = max(1, int(free // bytes_each))
    return fitting, (
        f"{fitting} of {workers} workers: each needs about {bytes_each / 1e9:.1f} GB, and {free / 1e9:.1f} GB of "
        "memory are free."
    )


def free_memory() -> int | None:
    """Bytes that this process may still use, by the machine and by a container's limit; None where nobody says."""
    found = []
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # "max": no limit
            found.append(int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(0, min(found)) if found else None
