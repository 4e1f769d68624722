"""Flipped bits, full disks and malicious pickles."""

import io
import pickle
import random
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .doors import Door


def flip_bits(
    sealed: dict[str, Path], load: dict[str, Callable[[Path], Any]], folder: Path, tries: int, seed: int
) -> dict[str, Any]:
    """Flip one bit of a random file, load the folder as the commands do, and put the bit back.

    Args:
        sealed (`dict[str, Path]`): finished folders by kind.
        load (`dict[str, Callable]`): how a command loads each kind; must raise `ValueError` or `OSError`.
        folder (`Path`): new folder for copies.
        tries (`int`): bits.
        seed (`int`): of the places.
    """
    choose, silent, noticed = random.Random(seed), [], 0
    copies = {kind: Path(shutil.copytree(place, folder / kind)) for kind, place in sealed.items()}
    for number in range(tries):
        kind = sorted(copies)[number % len(copies)]
        paths = sorted(
            path for path in copies[kind].rglob("*") if path.is_file() and path.suffix not in (".md", ".html")
        )
        # Bytes count, and so do files: half of the flips go to the largest file.
        path = max(paths, key=lambda path: path.stat().st_size) if choose.random() < 0.5 else choose.choice(paths)
        content = path.read_bytes()
        position, bit = choose.randrange(len(content)), choose.randrange(8)
        path.write_bytes(content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :])
        try:
            load[kind](copies[kind])
        except (ValueError, OSError):
            noticed += 1
        else:
            silent.append(f"{kind}: {path.name}, byte {position}, bit {bit}")
        path.write_bytes(content)
    return {"tried": tries, "noticed": noticed, "silent": silent}


def full_disks(doors: dict[str, Callable[[Path], tuple[str, list[Any]]]], folder: Path, runs: int) -> dict[str, Any]:
    """Run commands whose output lies on a disk that is too small.

    Args:
        doors (`dict`): name -> given an output, module and arguments.
        folder (`Path`): new folder for the disks.
        runs (`int`): how many; sizes grow from nothing to nearly enough.
    """
    folder.mkdir()
    disk, problems, done = folder / "disk", [], 0
    disk.mkdir()
    for number in range(runs):
        name = sorted(doors)[number % len(doors)]
        size = 8 + 16 * (number // len(doors))  # kB
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)]
        if subprocess.run(command, capture_output=True, check=False).returncode:
            return {"runs": done, "problems": ["not run: mounting a small disk needs root"]}
        try:
            module, arguments = doors[name](disk / "out")
            log = folder / f"{number}.log"
            door = Door(module, *arguments, log=log)
            code = door.wait(120)
            done += 1
            if code == 0:
                problems.append(f"{name} on {size} kB: reported success")
            elif code < 0 or "Traceback" in door.text:
                problems.append(f"{name} on {size} kB: {code}, {door.text.strip().splitlines()[-1][:200]}")
            left = [path.name for path in disk.rglob("*") if path.name in ("checkpoint", "metrics.json", "state.json")]
            problems += [f"{name} on {size} kB: left {left[0]}"] if left else []
        finally:
            subprocess.run(["umount", str(disk)], check=False)
    return {"runs": done, "problems": problems}


class _Call:
    """Unpickling it calls a function: a harmless stand-in for an attack, which writes a file."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


def malicious_files(marker: Path) -> dict[str, bytes]:
    """Files that try to run code when they are loaded, by what they are; each would make the marker."""
    import builtins
    import os
    import runpy

    write = f"open({str(marker)!r}, 'w').close()"
    script = marker.with_name("script.py")
    script.write_text(write, encoding="utf-8")
    calls = {
        "open": _Call(open, str(marker), "w"), "system": _Call(os.system, f"touch {marker}"),
        "exec": _Call(builtins.exec, write), "eval": _Call(builtins.eval, write),
        "popen": _Call(subprocess.Popen, ["touch", str(marker)]), "run": _Call(runpy.run_path, str(script)),
        "mkdir": _Call(os.mkdir, str(marker)), "import": _Call(builtins.__import__, "this"),
        "load": _Call(torch.load, str(script)),
    }  # fmt: skip
    found = {}
    for name, call in calls.items():
        for place, content in (
            ("value", {"lin.0.weight": call}),
            ("key", {"a": torch.zeros(2), "b": [call]}),
            ("top", call),
        ):
            buffer = io.BytesIO()
            torch.save(content, buffer)
            found[f"{name}, {place}"] = buffer.getvalue()
        found[f"{name}, plain pickle"] = pickle.dumps({"lin.0.weight": call})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(calls["open"]))
        archive.writestr("archive/version", "3")
    return found | {"bare archive": buffer.getvalue()}


def load_pickles(run: Path, folder: Path) -> dict[str, Any]:
    """Put each malicious file in the place of a run's stem, and convert.

    Args:
        run (`Path`): a run's folder of the research code.
        folder (`Path`): new folder.
    """
    folder.mkdir()
    marker, problems = folder / "marker", []
    files = malicious_files(marker)
    for number, (name, content) in enumerate(files.items()):
        copy = Path(shutil.copytree(run, folder / str(number) / run.name))
        next(copy.glob("bb_*")).write_bytes(content)
        door = Door(
            "conversion.convert_official", copy, "--output", folder / f"{number}.out", log=folder / f"{number}.log"
        )
        code = door.wait(60)
        if marker.exists():
            problems.append(f"{name}: its code ran")
            shutil.rmtree(marker) if marker.is_dir() else marker.unlink()
        if code != 2 or len(door.text.strip().splitlines()) != 1:
            problems.append(f"{name}: {code}, {door.text.strip()[-200:]}")
    return {"files": len(files), "problems": problems}
