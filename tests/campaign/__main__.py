"""Run the campaign: `python -m tests.campaign --minutes 30`; prints figures, and ends with 1 if anything went wrong.

What could not be run in the time is named. Figures of the last campaign are in docs/reliability.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.hub_cards.hub_server import running_hub


ROOT = Path(__file__).resolve().parents[2]
KILLS, FLIPS, DISKS, EXAMPLES = 25, 200, 10, 10_000
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--stages", nargs="*", help="stages that are killed, such as prepare or evaluate_with_workers")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        with running_hub(folder / "hub", {"token": "me"}) as server:
            # Before anything of Hugging Face is imported, which reads these once.
            os.environ |= {
                "HF_ENDPOINT": server.url, "HF_HOME": str(folder / "home"), "HF_TOKEN": "token",
                "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
                "XDG_CACHE_HOME": str(folder / "cache"), "TOKENIZERS_PARALLELISM": "false",
            }  # fmt: skip
            found = _campaign(folder, arguments)
    print(json.dumps(found, indent=2))
    sys.exit(int(any(_problems(part) for part in found.values())))


def _problems(part: Any) -> bool:
    return (
        any(_problems(each) for each in part)
        if isinstance(part, list)
        else bool(isinstance(part, dict) and (part.get("problems") or part.get("silent")))
    )


def _campaign(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    for name in PRELOADED:
        import_module(name)
    started = time.monotonic()
    end = started + 60 * arguments.minutes
    from .plan import Campaign

    campaign = Campaign(folder, arguments.seed)
    found: dict[str, Any] = {"seed": arguments.seed, "commit": _commit()}
    if "pickles" in arguments.parts:
        found["malicious pickles"] = campaign.pickles()
    if "flips" in arguments.parts:
        found["flipped bits"] = campaign.flips(FLIPS)
    if "disks" in arguments.parts:
        found["full disks"] = campaign.disks(DISKS)
    if "kills" in arguments.parts:
        found["kills"] = campaign.kills(KILLS, started + 0.7 * (end - started), arguments.stages)
    if "odd files" in arguments.parts:
        found["odd files"] = _odd_files(max(60.0, end - time.monotonic()))
    found["minutes"] = round((time.monotonic() - started) / 60, 1)
    return found


def _odd_files(seconds: float) -> dict[str, Any]:
    """The tests of randomly changed files, with other examples than every day's, as many as there is time for."""
    examples = min(EXAMPLES, int(seconds * 4))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--hypothesis-profile=default",
               f"--timeout={int(seconds)}", "tests/training/test_odd_files.py"]  # fmt: skip
    environment = {**os.environ, "LCM_EXAMPLES": str(examples)}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"examples a kind": examples, "problems": [f"not finished in {seconds:.0f} s"]}
    return {"examples a kind": examples, "problems": [] if done.returncode == 0 else done.stdout[-3000:].splitlines()}


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "not a checkout"


if __name__ == "__main__":
    main()
