"""Commands in processes of their own, forked from one that has imported everything, and a small cohort for them."""

import os
import signal
import sys
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml


SCANS, REGIONS, VOLUMES = 60, 12, 80
COMMON = {"epochs": 4, "batch_size": 8, "checkpoint_every": 1, "checkpoint_every_steps": 2, "progress": False}
FACTS = {
    "kind": "model", "license": "apache-2.0", "title": "A model of random numbers", "summary": "Made by a test.",
    "cohorts": [{"name": "Synthetic", "people": "none", "labels": "invented", "access": "none", "licence": "none"}],
    "training": "Hardly.", "population": "Nobody.", "hardware": "One CPU.", "emissions": "Not measured.",
    "no_results": "There is nothing to evaluate.",
}  # fmt: skip


class Door:
    """A command that has been started.

    Args:
        module (`str`): such as "training.prepare".
        arguments: its command line.
        log (`Path`): gets what it prints.
    """

    def __init__(self, module: str, *arguments: Any, log: Path) -> None:
        self.log, self.code = log, None
        sys.stdout.flush()
        self.pid = os.fork()
        with suppress(OSError):  # both set it: whoever comes second finds it done
            os.setpgid(self.pid, self.pid)
        if self.pid == 0:
            code = 1
            try:
                output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                os.dup2(output, 1)
                os.dup2(output, 2)
                sys.argv = [module, *map(str, arguments)]
                import_module(module).main([str(argument) for argument in arguments])
                code = 0
            except SystemExit as error:
                code = error.code if isinstance(error.code, int) else int(error.code is not None)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def wait(self, seconds: float, alone: bool = False) -> int:
        """Exit code, negative for a signal; what is not over by then is killed, with its workers or alone."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                return self.code
            if time.monotonic() > end:
                with suppress(ProcessLookupError):
                    (os.kill if alone else os.killpg)(self.pid, signal.SIGKILL)
                end = time.monotonic() + 60
            time.sleep(0.003)

    def outlived(self, seconds: float) -> bool:
        """Whether workers of an ended command still live after so long; they are then killed."""
        end = time.monotonic() + seconds
        with suppress(ProcessLookupError):
            while time.monotonic() < end:
                os.killpg(self.pid, 0)
                time.sleep(0.05)
            os.killpg(self.pid, signal.SIGKILL)
            return True
        return False

    @property
    def text(self) -> str:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def run(module: str, *arguments: Any, log: Path, seconds: float = 300) -> str:
    """Run a command that must succeed; what it prints."""
    log.unlink(missing_ok=True)
    door = Door(module, *arguments, log=log)
    if door.wait(seconds) != 0:
        raise RuntimeError(f"{module} ended with {door.code}: {door.text[-500:]}")
    return door.text


def make_cohort(folder: Path) -> list[str]:
    """Time series of noise and their table; the settings of training.prepare that read them."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(SCANS):
        np.save(folder / f"{number}.npy", rng.normal(size=(VOLUMES, REGIONS)))
    columns = {
        "participant_id": [f"s{number:03d}" for number in range(SCANS)],
        "file": range(SCANS),
        "sex": ["F", "M"] * (SCANS // 2),
        "dx": [("c", "p")[number // 2 % 2] for number in range(SCANS)],
    }
    pd.DataFrame(columns).to_csv(folder / "people.tsv", sep="\t", index=False)
    return [
        "--participants", str(folder / "people.tsv"), "--time_series", f"{folder}/{{file}}.npy", "--atlas", "made-up",
        "--phenotypes", "sex", "dx", "--parquet", "false",
    ]  # fmt: skip


def write_yaml(path: Path, **content: Any) -> Path:
    """A settings file."""
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def pretraining(folder: Path, **more: Any) -> Path:
    """Settings of a pretraining of seconds."""
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    name = more.pop("name", "pretrain.yaml")
    return write_yaml(folder / name, size="nano", categorical=["sex"], continuous=[], **small, **(COMMON | more))


def finetuning(folder: Path, **more: Any) -> Path:
    """Settings of a fine-tuning of seconds."""
    return write_yaml(folder / more.pop("name", "finetune.yaml"), task="dx", **(COMMON | more))
