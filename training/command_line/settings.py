"""Settings as dataclasses: fields, flags, YAML files, and what is refused in them. Nothing heavy is imported here."""

import argparse
import dataclasses
import difflib
import re
import sys
import types
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from .doors import in_users_words


Settings = TypeVar("Settings")

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
EMPTY = ("", "null", "~")  # no value, for settings that need not have one


def setting(
    default: Any, text: str, *, group: str | None = None, example: str | None = None, required: bool = False
) -> Any:
    """A field of a settings dataclass.

    Args:
        default: its default value; a list is copied for every object.
        text (`str`): what `--help` prints.
        group (`str`, *optional*): heading under which `--help` lists it; default: that of the setting before.
        example (`str`, *optional*): a value, as it is typed.
        required (`bool`): a command is refused without it; the default stands for "not given".
    """
    metadata = {"help": text, "group": group, "example": example, "required": required}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def parse_arguments(
    kind: type[Settings], argv: list[str] | None = None, positional: tuple[str, ...] = (), program: str | None = None
) -> Settings:
    """Read settings from `--config FILE.yaml` and from flags; flags win.

    Flags are spelt `--two_words`, or `--two-words`; switches are `--flag`, `--flag false` or `--no_flag`.

    Args:
        kind (`type`): a dataclass whose fields are made by [`setting`].
        argv (`list[str]`, *optional*): command line without the program's name; defaults to `sys.argv[1:]`.
        positional (`tuple[str, ...]`): settings that may be given as bare words, in this order.
        program (`str`, *optional*): what is typed to start it, for `--help`.

    Raises:
        ValueError: an unknown setting, a value of the wrong kind, or the YAML file is not a table of settings.
        FileNotFoundError: there is no such YAML file.
    """
    parser = _make_parser(kind, positional, program)
    given, unknown = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    values = {name: value for name, value in vars(given).items() if value is not None}
    path = values.pop("config", None)
    words = [word for word in unknown if not word.startswith("-")]
    if unknown and (words != unknown or len(words) > len(positional)):
        raise ValueError(_about_unknown(unknown, kind))
    values |= dict(zip(positional, words, strict=False))
    kinds, read = get_type_hints(kind), {} if path is None else read_settings(path, kind)
    read |= {name: as_kind(value, kinds[name], f"--{name}") for name, value in values.items()}
    return kind(**read)


def require_given(settings: Any) -> None:
    """Refuse settings of which a required one was not given.

    Raises:
        ValueError: one was not.
    """
    for item in dataclasses.fields(settings):
        if item.metadata.get("required") and not getattr(settings, item.name):
            raise ValueError(f"No {item.name} was given: add --{item.name} {_example(item)}. See --help.")


def require_choices(settings: Any) -> None:
    """Refuse settings of which one is none of its choices; for those that no command line has read.

    Raises:
        ValueError: one is none.
    """
    for name, kind in get_type_hints(type(settings)).items():
        choices, value = _choices(kind), getattr(settings, name)
        for each in (value if isinstance(value, list) else [value]) if choices and value is not None else []:
            _require_choice(each, choices, name)


def read_settings(path: str | Path, kind: type) -> dict[str, Any]:
    """Settings of a YAML file, each as its field's type wants it.

    Every value is taken as it is written: `no` is the label no, and `007` is not 7, where a setting is text. A setting
    without a value has its default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not a table, or has unknown settings or values of another kind.
    """
    content, kinds = _load(path, _TextLoader), get_type_hints(kind)
    known = [item.name for item in dataclasses.fields(kind)]
    unknown = [name for name in content if name not in known]
    if unknown:
        raise ValueError(
            f"{path}: unknown settings {', '.join(unknown)}.{did_you_mean(unknown[0], known)} --help lists all."
        )
    return {
        name: as_kind(value, kinds[name], f"{path}: {name}") for name, value in content.items() if value is not None
    }


def as_kind(value: Any, kind: Any, where: str) -> Any:
    """A setting's value, given as text or a list of texts, as its type.

    Args:
        value: what was given.
        kind: `str`, `int`, `float`, `bool`, a `Literal`, a list of these, or one of them `| None`.
        where (`str`): what it is called in an error.

    Raises:
        ValueError: it is none.
    """
    options = [each for each in get_args(kind) if each is not type(None)] if _is_union(kind) else [kind]
    if options != [kind] and isinstance(value, str) and value.lower() in EMPTY:
        return None
    kind = options[0]
    if get_origin(kind) is list:
        items = ([] if value.lower() in EMPTY else [value]) if isinstance(value, str) else value
        if not isinstance(items, list):
            raise ValueError(f"{where} is {value!r}: a list is needed.")
        return [as_kind(item, get_args(kind)[0], where) for item in items]
    if not isinstance(value, str):
        raise ValueError(f"{where} is {value!r}: one value is needed.")
    if get_origin(kind) is Literal:
        _require_choice(value, get_args(kind), where)
        return value
    return _READERS[kind](value, where)


def _require_choice(value: Any, choices: tuple[str, ...], where: str) -> None:
    if value not in choices:
        hint = did_you_mean(str(value), choices)
        raise ValueError(f"{where} must be one of {', '.join(filter(None, choices))}, got {value!r}.{hint}")


def _choices(kind: Any) -> tuple[str, ...]:
    """The choices of a setting's type, or of the items of its list; none for other types."""
    if _is_union(kind) or get_origin(kind) is list:
        return next(filter(None, map(_choices, get_args(kind))), ())
    return get_args(kind) if get_origin(kind) is Literal else ()


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _read_bool(text: str, where: str) -> bool:
    if text.lower() in TRUE + FALSE:
        return text.lower() in TRUE
    raise ValueError(f"{where} is {text!r}: true or false is needed.")


def _read_int(text: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"{where} is {text!r}: a whole number is needed.") from None


def _read_float(text: str, where: str) -> float:
    try:
        return float(text.replace(".inf", "inf") if text.strip("+-") == ".inf" else text)
    except ValueError:
        raise ValueError(f"{where} is {text!r}: a number is needed.") from None


_READERS: dict[Any, Callable[[str, str], Any]] = {
    str: lambda text, where: text,
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(f"{message[:1].upper()}{message[1:]}. See --help.")


def _make_parser(kind: type, positional: tuple[str, ...], program: str | None) -> argparse.ArgumentParser:
    fields = dataclasses.fields(kind)
    needed = [item for item in fields if item.metadata.get("required")]
    bare = "".join(f"{name.upper()} " for name in positional)
    parser = _Parser(
        prog=program,
        description=in_users_words((kind.__doc__ or "").split("\n")[0]),
        usage=f"%(prog)s {bare}[--config FILE.yaml] [--SETTING VALUE ...]",
        epilog=_example_command(needed, positional),
        allow_abbrev=False,  # a misspelt flag must not pass as the beginning of another one
    )
    parser.add_argument("--config", help="YAML file with any of these settings; flags on the command line win.")
    kinds, title = get_type_hints(kind), "settings"
    groups = {"required": parser.add_argument_group("required")} if needed else {}
    for item in fields:
        title = item.metadata.get("group") or title
        where = "required" if item in needed else title
        if where not in groups:
            groups[where] = parser.add_argument_group(where)
        _add_flag(groups[where], item, kinds[item.name])
    return parser


def _add_flag(parser: Any, item: Field, kind: Any) -> None:
    """One setting's flags. Values stay text here; [`as_kind`] reads them, as it reads those of a YAML file."""
    names = [f"--{item.name}"] + ([f"--{item.name.replace('_', '-')}"] if "_" in item.name else [])
    options = [each for each in get_args(kind) if each is not type(None)] if _is_union(kind) else [kind]
    shape: dict[str, Any] = {"metavar": "VALUE"}
    if get_origin(options[0]) is list:
        shape = {"nargs": "*", "metavar": "VALUE"}
    elif options[0] is bool:
        shape = {"nargs": "?", "const": "true", "metavar": "true|false"}
        opposite = [f"--no{name[1:].replace('-', '_', 1)}" for name in names]
        opposite += [name.replace("_", "-") for name in opposite if "_" in name]
        parser.add_argument(
            *dict.fromkeys(opposite), dest=item.name, action="store_const", const="false", help=argparse.SUPPRESS
        )
    text = _help(item, tuple(filter(None, _choices(kind)))).replace("%", "%%")
    for name, shown in zip(names, (text, argparse.SUPPRESS), strict=False):
        parser.add_argument(name, dest=item.name, default=None, help=shown, **shape)


def _example_command(needed: list[Field], positional: tuple[str, ...]) -> str | None:
    words = [_example(item) if item.name in positional else f"--{item.name} {_example(item)}" for item in needed]
    return f"Example: %(prog)s {' '.join(words)}" if words else None


def _help(item: Field, choices: tuple[str, ...]) -> str:
    """A setting's text, choices, default, and an example where it has choices or none is needed to understand it."""
    default = default_of(item)
    shown = " ".join(map(str, default)) if isinstance(default, list) else default
    text = item.metadata.get("help", "")
    if choices:
        text += f" One of: {', '.join(choices)}."
    if shown not in (None, ""):
        text += f" Default: {str(shown).lower() if isinstance(shown, bool) else shown}."
    example = item.metadata.get("example") or next((choice for choice in choices if choice != default), None)
    return in_users_words(f"{text} Example: --{item.name} {example}" if example else text)


def default_of(item: Field) -> Any:
    """Default value of a setting."""
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _example(item: Field) -> str:
    return item.metadata.get("example") or item.name.upper()


def _about_unknown(unknown: list[str], kind: type) -> str:
    flags = [f"--{item.name}" for item in dataclasses.fields(kind)]
    first = next((word for word in unknown if word.startswith("--")), None)
    hint = (
        "" if first is None else did_you_mean(first.partition("=")[0].replace("-", "_").replace("__", "--", 1), flags)
    )
    return f"Unknown settings or too many values: {' '.join(unknown)}.{hint} See --help."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of an error about a name that nothing has: the names that it resembles, or nothing.

    Args:
        word (`str`): what was given.
        known (`Iterable[str]`): what there is.
    """
    near = difflib.get_close_matches(word, list(known), n=2, cutoff=0.7)
    return f" Did you mean {' or '.join(near)}?" if near else ""


# --- YAML ---


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without what nobody means by it: `no` for false, `007` for 7, `1:30` for 90, dates; nothing twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        """A table; refuses a name that stands twice in it, of which only the last would count."""
        names = [key.value for key, _ in node.value]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"{twice!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


class _TextLoader(_Loader):
    """Every value as it is written, but for no value."""


_KEPT = ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
for _kind in (_Loader, _TextLoader):
    _kind.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    ("float", r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$", "-+.0123456789"),
    ("float", r"^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$", "-+."),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML file that holds a table. `yes`, `no`, `on`, `off`, `007` and dates are text in it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not valid YAML, not a table, or names something twice.
    """
    return _load(path, _Loader)


def _load(path: str | Path, loader: type[yaml.SafeLoader]) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no configuration file {path}.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a table of settings (name: value), got {type(content).__name__}.")
    return content
