"""Settings of the commands: dataclass -> flags and YAML, and how a command ends."""

import functools
import sys
from collections.abc import Callable
from dataclasses import field, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from huggingface_hub.utils import are_progress_bars_disabled, enable_progress_bars
from safetensors import SafetensorError
from transformers import HfArgumentParser
from transformers.utils import logging


def setting(default: Any, text: str) -> Any:
    """A dataclass field with a default value and the help text that `--help` prints."""
    return field(default=default, metadata={"help": text})


Arguments = TypeVar("Arguments")


def parse_arguments(kind: type[Arguments], argv: list[str] | None = None, positional: str | None = None) -> Arguments:
    """Read settings from `--config FILE.yaml` and from flags; flags win.

    Args:
        kind (`type`): a dataclass whose fields are made by [`setting`].
        argv (`list[str]`, *optional*): command line without the program's name; defaults to `sys.argv[1:]`.
        positional (`str`, *optional*): a setting that must be given, and may be given as a bare word.

    Raises:
        ValueError: an unknown setting, the positional one is missing, or the YAML file is not a table of settings.
    """
    parser = HfArgumentParser(
        kind,
        description=(kind.__doc__ or "").split("\n")[0],
        usage=f"%(prog)s {(positional or '').upper()} [--config FILE.yaml] [--SETTING VALUE ...]",
        allow_abbrev=False,  # a misspelt flag must not pass as the beginning of another one
    )
    parser.add_argument("--config", help="YAML file with any of these settings; flags on the command line win.")
    argv = list(sys.argv[1:] if argv is None else argv)
    path = None if {"-h", "--help"} & set(argv) else _config_path(argv)
    settings = {} if path is None else _read_settings(path, kind)
    # An empty list cannot be written as a flag.
    parser.set_defaults(**{name: value for name, value in settings.items() if value == []})
    parsed, _, unknown = parser.parse_args_into_dataclasses(
        _as_flags(settings) + argv, return_remaining_strings=True, look_for_args_file=False
    )
    if positional is not None and len(unknown) == 1 and not unknown[0].startswith("-"):
        parsed = replace(parsed, **{positional: unknown.pop()})
    if unknown:
        raise ValueError(f"Unknown settings or too many values: {' '.join(unknown)}. See --help.")
    if positional is not None and not getattr(parsed, positional):
        raise ValueError(f"No {positional} was given. See --help.")
    return parsed


def _config_path(argv: list[str]) -> str | None:
    for position, flag in enumerate(argv):
        if flag.startswith("--config="):
            return flag.partition("=")[2]
        if flag == "--config" and position + 1 < len(argv):
            return argv[position + 1]
    return None


def _read_settings(path: str, kind: type) -> dict[str, Any]:
    settings = load_yaml(path)
    known = set(kind.__dataclass_fields__)
    unknown = sorted(str(name) for name in set(settings) - known)
    if unknown:
        raise ValueError(f"{path}: unknown settings {', '.join(unknown)}. Known: {', '.join(sorted(known))}.")
    return settings


def _as_flags(settings: dict[str, Any]) -> list[str]:
    flags: list[str] = []
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        if value is not None and values:
            flags += [f"--{name}", *map(str, values)]
    return flags


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a table of settings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not valid YAML, or not a table.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration file {path}.")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a table of settings (name: value), got {type(settings).__name__}.")
    return settings


def command_line(main: Callable[[list[str] | None], None]) -> Callable[..., None]:
    """Decorator of a script's `main`: a mistake or a full disk ends it with one line, `error: ...`, and exit code 2.

    Ctrl-C and SIGTERM end it with one line and exit code 130.
    """

    @functools.wraps(main)
    def wrapper(argv: list[str] | None = None) -> None:
        _hide_bars_of_files()
        try:
            main(argv)
        except (ValueError, OSError, ImportError, FloatingPointError, SafetensorError) as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from error
        except KeyboardInterrupt as interrupt:
            print(f"stopped: {str(interrupt) or 'by the user.'}", file=sys.stderr)
            raise SystemExit(130) from interrupt

    return wrapper


def _hide_bars_of_files() -> None:
    """Hide "Loading weights" and "Writing model shards", which stand between a script's own lines; not downloads."""
    downloads_hidden = are_progress_bars_disabled()
    logging.disable_progress_bar()  # hides downloads, too
    if not downloads_hidden:
        enable_progress_bars()
