"""Experiment trackers, through Accelerate: which ones follow a training, and what they are told."""

import errno
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_trackio_available, is_wandb_available

from .arguments import LoopArguments


PROJECT = "large-connectome-model"
LOGS = "logs"  # folder of the files that trackers keep beside the run
INSTALLED: dict[str, Callable[[], bool]] = {
    "tensorboard": is_tensorboard_available,
    "wandb": is_wandb_available,
    "trackio": is_trackio_available,
}


def chosen_trackers(log_with: str) -> list[str]:
    """The trackers that a training is followed by.

    Args:
        log_with (`str`): the setting: one of them, "all" that are installed, or "none".

    Raises:
        ImportError: it is not installed, or none is.
    """
    if log_with == "none":
        return []
    wanted = list(INSTALLED) if log_with == "all" else [log_with]
    found = [name for name in wanted if INSTALLED[name]()]
    if not found:
        raise ImportError(
            f"log_with is {log_with}, but {' and '.join(wanted)} {'is' if len(wanted) == 1 else 'are'} not installed: "
            f"run `pip install {wanted[0]}`, or set log_with to none."
        )
    return found


def start_trackers(accelerator: Accelerator, folder: Path, arguments: LoopArguments) -> None:
    """Open a run in every tracker that the accelerator was made with, named after the output's folder.

    They are told the settings of the training loop and, later, losses and learning rate: no paths, no subjects, no
    weights. Where they send this, and as whom, is their own configuration, which is never read or written here. (W&B
    notes the command line and the machine by itself.)

    Raises:
        ValueError: a tracker does not start; says what to try.
    """
    folder.mkdir(parents=True, exist_ok=True)  # wandb would write elsewhere
    output = Path(arguments.output or folder).name
    settings = {item.name: getattr(arguments, item.name) for item in fields(LoopArguments) if item.name != "output"}
    # W&B would send what is printed, too, and an error may name subjects.
    of_wandb = {"name": output, "dir": str(folder), "settings": {"console": "off"}}
    options = {"wandb": of_wandb, "trackio": {"name": output}}
    try:
        accelerator.init_trackers(PROJECT, settings, options)
    except Exception as error:  # every tracker has exceptions of its own
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(f"Nothing can be written to {folder} ({error.strerror}): choose another output.") from error
        # Not the tracker's own words: they may hold an address with a token in it.
        raise ValueError(
            f"The tracker of log_with={arguments.log_with} does not start ({type(error).__name__}). Log in to it "
            "first (`wandb login`, `hf auth login`), let it work offline (WANDB_MODE=offline), or set log_with: none."
        ) from error
