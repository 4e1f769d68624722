"""Kill a command again and again at random moments, and compare what it ends with with an undisturbed run."""

import hashlib
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .doors import Door, run


LIFE_AFTER = 10  # seconds that workers may take to notice that their parent is gone


@dataclass(frozen=True)
class Stage:
    """A command, how it goes on after a kill, and what of its output must come out the same.

    Args:
        name (`str`): of the report.
        module (`str`): the command.
        arguments (`Callable`): its command line, given the output.
        same (`tuple[str, ...]`): patterns of the files that must be bit for bit those of an undisturbed run.
        again (`tuple[str, ...]`): more arguments where the output holds something already.
    """

    name: str
    module: str
    arguments: Callable[[Path], list[Any]]
    same: tuple[str, ...]
    again: tuple[str, ...] = ()


def kill_loop(stage: Stage, folder: Path, kills: int, deadline: float, seed: str) -> dict[str, Any]:
    """Kill a stage, let it finish, and compare.

    Every second kill hits the command alone, as the system's does when memory runs out: the next run meets what its
    workers are still doing.

    Args:
        stage (`Stage`): what.
        folder (`Path`): new folder for everything.
        kills (`int`): kills wanted; a run that is over before its kill is done over from the start.
        deadline (`float`): no more kills after this time (monotonic).
        seed (`str`): of the moments.
    """
    folder.mkdir()
    choose = random.Random(seed)
    whole, killed, log = folder / "whole", folder / "killed", folder / "log"
    started = time.monotonic()
    run(stage.module, *stage.arguments(whole), log=log)
    length = time.monotonic() - started
    wanted, done, finished, problems = digest(whole, stage.same), 0, 0, []
    doors: list[Door] = []
    while done < kills and time.monotonic() < deadline and len(problems) <= 3:
        log.unlink(missing_ok=True)
        door = Door(stage.module, *_arguments(stage, killed), log=log)
        code = door.wait(choose.uniform(0, length), alone=done % 2 == 1)
        doors.append(door)
        if code == -signal.SIGKILL:
            done += 1
            continue
        problems += _compared(door, killed, stage, wanted)
        finished += 1
        shutil.rmtree(killed, ignore_errors=True)
    log.unlink(missing_ok=True)
    door = Door(stage.module, *_arguments(stage, killed), log=log)
    door.wait(300)
    problems += _compared(door, killed, stage, wanted)
    problems += [f"workers of {door.pid} outlived it" for door in doors if door.outlived(LIFE_AFTER)]
    leftovers = [path.name for path in folder.rglob(".*") if path.name.endswith((".partial", ".old", ".lock"))]
    problems += [f"left behind: {name}" for name in leftovers]
    return {"kills": done, "runs that finished": finished + 1, "problems": problems}


def _compared(door: Door, output: Path, stage: Stage, wanted: dict[str, str]) -> list[str]:
    """What is wrong about a run that was left alone."""
    if not is_done(door):
        return [f"does not finish ({door.code}): {door.text[-300:]}"]
    found = digest(output, stage.same)
    return [f"{name} differs" for name in {*found, *wanted} if found.get(name) != wanted.get(name)]


def is_done(door: Door) -> bool:
    """Whether a command has finished its output, or the life before was killed when it had."""
    return door.code == 0 or (door.code == 2 and "already holds results" in door.text.strip().splitlines()[-1])


def _arguments(stage: Stage, output: Path) -> list[Any]:
    begun = output.is_dir() and any(not path.name.startswith(".") for path in output.iterdir())
    return [*stage.arguments(output), *(stage.again if begun else ())]


def digest(folder: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of the files of some patterns."""
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
