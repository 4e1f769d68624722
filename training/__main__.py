"""All commands as one, `lcm NAME ...`; the same as `python -m training NAME ...` in a clone."""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version

from .command_line.cli import ending_in_words
from .command_line.doors import DOORS, started_as_lcm
from .command_line.settings import did_you_mean


def main(argv: list[str] | None = None) -> None:
    """Start the command that the first word names, with the other words."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("--help", "-h"):
        print(_overview())
    elif name == "--version":
        print(version("large-connectome-model"))
    else:
        with ending_in_words():
            start = _open(name)
        start(rest)


def _open(name: str) -> Callable[[list[str]], None]:
    if name not in DOORS:
        raise ValueError(f"There is no command {name}.{did_you_mean(name, DOORS)} There are {', '.join(DOORS)}.")
    path, _ = DOORS[name]
    # In the wheel, this folder is the package, and hub_cards and conversion lie in it.
    return import_module(path if __package__ == "training" else f"{__package__}.{path.removeprefix('training.')}").main


def _overview() -> str:
    lines = [
        f"usage: {'lcm' if started_as_lcm() else 'python -m training'} COMMAND [--SETTING VALUE ...]",
        "",
        "commands:",
    ]
    lines += [f"  {name:<{max(map(len, DOORS))}}  {text}" for name, (_, text) in DOORS.items()]
    return "\n".join([*lines, "", "COMMAND --help shows a command's settings."])


if __name__ == "__main__":
    main()
