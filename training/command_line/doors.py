"""The commands by name: where each lives, what `lcm --help` says of it, and how texts name it."""

import re
import sys
from pathlib import Path


# Modules as in a clone. In the wheel `training` is the package `large_connectome_model`, and the others lie in it.
DOORS = {
    "report": ("training.report", "from a folder of scans to one page: everything below in one command"),
    "prepare": ("training.prepare", "one data set of a phenotype table and scans"),
    "merge": ("training.merge", "one data set of several"),
    "splits": ("training.splits", "a file of folds by subject"),
    "pretrain": ("training.pretrain", "stage one: learn every BEI variable from FC"),
    "finetune": ("training.finetune", "stage two: learn one task from a pretrained checkpoint"),
    "predict": ("training.predict", "a table of predictions"),
    "evaluate": ("training.evaluate", "cross-validation of the whole recipe beside baselines"),
    "explain": ("training.explain", "regions that the tokens of a variable read"),
    "verify": ("training.verify", "whether finished files are as they were written"),
    "plan": ("training.plan", "memory of a training or a prediction"),
    "demo": ("training.demo", "all of it on 168 connectomes that come along"),
    "publish": ("hub_cards.publish", "a checkpoint, adapter or data set with its card to the Hub"),
    "convert": ("conversion.convert_official", "weights of the research code to a checkpoint"),
    "export": ("conversion.export_official", "a checkpoint to weights of the research code"),
    "parity": ("conversion.verify_parity", "a converted checkpoint beside a recorded run"),
}

PACKAGE = str(__package__).partition(".")[0]  # "training" in a clone
_NAMES = {module: name for name, (module, _) in DOORS.items()}
_MENTION = re.compile(rf"(?:python -m )?\b({'|'.join(map(re.escape, _NAMES))})\b")


def started_as_lcm() -> bool:
    """Whether the user typed `lcm ...`, or has the wheel, whose modules have other names than in a clone."""
    return PACKAGE != "training" or Path(sys.argv[0]).stem == "lcm"


def in_users_words(text: str) -> str:
    """A text that names commands as the user starts them: `lcm prepare` for `training.prepare` where that was typed.

    Args:
        text (`str`): help or an error.
    """
    return _MENTION.sub(lambda found: f"lcm {_NAMES[found[1]]}", text) if started_as_lcm() else text


def program(module: str) -> str:
    """What is typed to start the command of a module.

    Args:
        module (`str`): its name; `__main__` for the one that Python was started with.
    """
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        module = spec.name if spec is not None else Path(sys.argv[0]).stem
    if PACKAGE != "training":
        inside = module.removeprefix(f"{PACKAGE}.")
        module = inside if "." in inside else f"training.{inside}"
    return in_users_words(f"python -m {module}")
