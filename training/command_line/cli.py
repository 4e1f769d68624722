"""How a command starts and ends. Nothing heavy is imported here.

Help, typing errors and refused settings are answered before anything slow is imported: a command is a function of its
settings that imports what it needs itself.
"""

import functools
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from .doors import PACKAGE, in_users_words, program
from .settings import (
    Settings,
    did_you_mean,
    load_yaml,
    parse_arguments,
    require_choices,
    require_given,
    setting,
)


LONGEST_WORD, LONGEST = 300, 650  # characters of a word (paths are shorter), and of an error

__all__ = [
    "command",
    "did_you_mean",
    "ending_in_words",
    "hide_bars_of_files",
    "load_yaml",
    "parse_arguments",
    "require_choices",
    "sentence_of",
    "setting",
]


def command(kind: type[Settings], *positional: str) -> Callable[[Callable[[Settings], None]], Callable[..., None]]:
    """Decorator that makes a command of a function of its settings.

    A mistake or a full disk ends the command with one line, `error: ...`, and exit code 2; Ctrl-C with one line and
    exit code 130, SIGTERM likewise with 143.

    Args:
        kind (`type`): the settings' dataclass.
        positional (`str`): settings that may be given as bare words, in this order.

    Returns:
        The command `main(argv=None)`.
    """

    def decorate(run: Callable[[Settings], None]) -> Callable[..., None]:
        @functools.wraps(run)
        def main(argv: list[str] | None = None) -> None:
            with ending_in_words():
                settings = parse_arguments(kind, argv, positional, program(run.__module__))
                require_given(settings)
                use_threads()
                run(settings)

        del main.__wrapped__  # its signature is another one
        return main

    return decorate


@contextmanager
def ending_in_words() -> Iterator[None]:
    """Turn a user's mistake, a full disk or an interruption into one line and an exit code."""
    try:
        with _taking_sigterm():
            yield
    except KeyboardInterrupt as interrupt:
        print(f"stopped: {str(interrupt) or 'by the user.'}", file=sys.stderr)
        raise SystemExit(143 if isinstance(interrupt, Terminated) else 130) from interrupt
    except Exception as error:
        # safetensors has an exception of its own for damaged files; it is not imported for its sake.
        is_known = isinstance(error, (ValueError, OSError, ImportError, FloatingPointError))
        if not is_known and type(error).__name__ != "SafetensorError":
            raise
        print(f"error: {sentence_of(error)}", file=sys.stderr)
        raise SystemExit(2) from error


def sentence_of(error: Exception) -> str:
    """What a command says of an error, in one line, without control characters and endless words of a file's.

    For a library that an installation of the core alone lacks, how to get it.
    """
    name = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if name is not None and name.partition(".")[0] != PACKAGE:
        return f"{name} is not installed: run pip install 'large-connectome-model[train]'."
    text = re.sub(rf"\S{{{LONGEST_WORD},}}", lambda found: f"{found[0][:100]}...", str(error))
    shown = (letter if letter.isprintable() else ascii(letter)[1:-1] for letter in re.sub(r"\s*\n\s*", " ", text))
    text = "".join(shown)
    # What was given may be endless; what to do stands at the end.
    return in_users_words(text if len(text) <= LONGEST else f"{text[: LONGEST - 200]} ... {text[-150:]}")


class Terminated(KeyboardInterrupt):
    """The request to end that batch systems send (SIGTERM)."""


@contextmanager
def _taking_sigterm() -> Iterator[None]:
    """Raise [`Terminated`] on SIGTERM, so that everything is closed and half results are removed."""
    if threading.current_thread() is not threading.main_thread():  # Python takes signals there alone
        yield
        return
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # a fork, which just ends
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the clean-up short
        raise Terminated("by SIGTERM, as batch systems send it.")

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


threads_are_ours = False  # whether a command chose threads and how they wait, as the user did not


def use_threads() -> None:
    """Let OpenMP have the CPUs that this process may really use, and sleep while it waits; settings of one's own win.

    Threads that spin at barriers stall a training beside other work. OpenMP reads this when torch is imported, so it
    must not be imported before.
    """
    global threads_are_ours
    import joblib

    threads_are_ours = threads_are_ours or not {"OMP_WAIT_POLICY", "OMP_NUM_THREADS"} & set(os.environ)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("OMP_NUM_THREADS", str(joblib.cpu_count()))  # by affinity and by a container's quota


def hide_bars_of_files() -> None:
    """Hide "Loading weights" and "Writing model shards", which stand between a command's own lines; not downloads."""
    from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils import logging

    downloads_hidden = are_progress_bars_disabled()
    logging.disable_progress_bar()  # hides downloads, too
    if not downloads_hidden:
        enable_progress_bars()
