"""Run the campaign: `python -m tests.campaign --minutes 30`; prints figures, and ends with 1 if anything went wrong.

`--record FILE` keeps the figures, and goes on from them when it is run again at the same commit with the same seed.
Figures of the last campaign are in docs/reliability.md.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.hub_cards.hub_server import running_hub


ROOT = Path(__file__).resolve().parents[2]
# What every command would import anew.
PRELOADED = (
    "accelerate",
    "conversion.converting",
    "datasets",
    "hub_cards.publish",
    "peft",
    "training.evaluation.cross_validation",
    "training.preparation.build",
    "training.trainer.finetuning",
    "training.trainer.pretraining",
)
PARTS = ("pickles", "flips", "disks", "kills", "odd files")
MEMORY = Path("/dev/shm")  # killed processes lose nothing that they have written, wherever it lies
LARGEST = 16 * 2**30  # bytes of address space; a file that asks for more than there is must not take the machine along


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--stages", nargs="*", help="stages that are killed, such as prepare or evaluate_with_workers")
    parser.add_argument("--kinds", nargs="*", help="kinds of odd files, such as recipes")
    parser.add_argument("--kills", type=int, default=25, help="of each stage")
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--disks", type=int, default=10)
    parser.add_argument("--files", type=int, default=10_000, help="odd files of each kind")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--record", type=Path, help="JSON file of figures, to go on from")
    parser.add_argument("--folder", type=Path, default=MEMORY if MEMORY.is_dir() else None, help="for scratch")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        folder = Path(temporary).resolve()
        with running_hub(folder / "hub", {"token": "me"}) as server:
            # Before anything of Hugging Face is imported, which reads these once.
            os.environ |= {
                "HF_ENDPOINT": server.url, "HF_HOME": str(folder / "home"), "HF_TOKEN": "token",
                "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
                "XDG_CACHE_HOME": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "false", "TMPDIR": str(folder),
            }  # fmt: skip
            found = _campaign(folder, arguments)
    print(json.dumps(found, indent=2))
    sys.exit(int(_problems(found)))


def _problems(part: Any) -> bool:
    """Whether anything went wrong, at any depth."""
    return isinstance(part, dict) and bool(
        part.get("problems") or part.get("silent") or any(map(_problems, part.values()))
    )


def _campaign(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        import_module(name)
    started = time.monotonic()
    end = started + 60 * arguments.minutes
    from .plan import Campaign

    found = _begun(arguments)
    campaign = Campaign(folder, arguments.seed)
    for part, try_it in (
        ("pickles", campaign.pickles),
        ("flips", lambda: campaign.flips(arguments.flips)),
        ("disks", lambda: campaign.disks(arguments.disks)),
    ):
        if part in arguments.parts and part not in found:
            found[part] = try_it()
            _keep(found, arguments)
    if "kills" in arguments.parts:
        _kill(campaign, found, arguments, end - (0.4 * (end - started) if "odd files" in arguments.parts else 0))
    if "odd files" in arguments.parts:
        _odd_files(campaign, found, arguments, end)
    found["minutes"] = round(found.get("minutes", 0) + (time.monotonic() - started) / 60, 1)
    _keep(found, arguments)
    return found


def _kill(campaign: Any, found: dict[str, Any], arguments: argparse.Namespace, deadline: float) -> None:
    """Kill loops of all stages, each with its share of the time."""
    from .kills import kill_loop

    wanted = [
        each for each in campaign.stages() if not arguments.stages or each.name.replace(" ", "_") in arguments.stages
    ]
    for number, stage in enumerate(wanted):
        share = (deadline - time.monotonic()) / (len(wanted) - number)
        before = found.setdefault("kills", {}).get(stage.name, {})
        done = before.get("kills", 0)
        if done >= arguments.kills:
            continue
        place = campaign.folder / stage.name.replace(" ", "_")
        seed = f"{arguments.seed} {stage.name} {done}"
        now = kill_loop(stage, place, arguments.kills - done, time.monotonic() + share, seed)
        found["kills"][stage.name] = _sum(before, now)
        _keep(found, arguments)


def _odd_files(campaign: Any, found: dict[str, Any], arguments: argparse.Namespace, deadline: float) -> None:
    """Odd files of all kinds, a few of each by turns."""
    import logging

    from .odd_files import read_odd_files

    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (LARGEST, resource.getrlimit(resource.RLIMIT_AS)[1]))
    kinds = campaign.odd_files().kinds
    counts = found.setdefault("odd files", {})
    for name in kinds:
        if not arguments.kinds or name in arguments.kinds:
            counts.setdefault(name, {"files": 0, "problems": []})
    while time.monotonic() < deadline and any(entry["files"] < arguments.files for entry in counts.values()):
        for name, entry in counts.items():
            numbers = range(entry["files"], min(arguments.files, entry["files"] + 100))
            counts[name] = _sum(entry, read_odd_files(name, kinds[name], arguments.seed, numbers))
        _keep(found, arguments)


def _sum(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Figures of two parts of a campaign together: counts and lists."""
    return {name: before[name] + value if name in before else value for name, value in now.items()}


def _begun(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures to go on from, or none."""
    identity = {
        "seed": arguments.seed, "commit": _commit(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
    }  # fmt: skip
    if arguments.record is not None and arguments.record.is_file():
        found = json.loads(arguments.record.read_text(encoding="utf-8"))
        if {name: found.get(name) for name in ("seed", "commit")} == {
            "seed": arguments.seed,
            "commit": identity["commit"],
        }:
            return found
        raise SystemExit(f"{arguments.record} is of another commit or seed: give another file.")
    return identity


def _keep(found: dict[str, Any], arguments: argparse.Namespace) -> None:
    if arguments.record is not None:
        arguments.record.write_text(json.dumps(found, indent=2), encoding="utf-8")


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "not a checkout"


if __name__ == "__main__":
    main()
