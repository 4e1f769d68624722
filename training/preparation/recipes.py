"""Cohort recipes: one YAML file says where a cohort's files lie, what its columns mean, and its terms of use."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from modeling_lcm.bei_vocabulary import BEIVariable

from ..command_line.cli import load_yaml
from ..command_line.settings import as_kind, default_of
from .phenotypes import Column


COHORTS = Path(__file__).parents[1] / "cohorts"
_COLUMN_KEYS = ("column", "value", "missing", "range", "exclude", "factor")
_VARIABLE_KEYS = tuple(item.name for item in fields(BEIVariable) if item.name not in ("name", "mean", "std"))
_KEYS = ("name", "title", "terms", "url", "citation", "download", "settings", "variables", "same_person", "keep_rows")
_REQUIRED = ("title", "terms", "settings", "variables")


@dataclass(frozen=True)
class Recipe:
    """A cohort's description.

    Args:
        name (`str`): id of the cohort, else the file's name; becomes the column `dataset`, by which other cohorts'
            `same_person` and checkpoints' records know its subjects.
        title (`str`): full name.
        terms (`str`): terms of use, shown before anything is prepared.
        url (`str`): where to apply or download.
        citation (`str`): what to cite.
        download (`str`): what to download, and how it must lie in the data folder.
        settings (`dict`): settings of training.prepare; paths are relative to `--data_dir`.
        columns (`tuple[Column, ...]`): the phenotypes.
        same_person (`dict[str, str]`): other cohort -> column with the id that the same subject has there.
        keep_rows (`dict[str, list[str]]`): column -> values; rows with other values are left out.
    """

    name: str = ""
    title: str = ""
    terms: str = ""
    url: str = ""
    citation: str = ""
    download: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()
    same_person: dict[str, str] = field(default_factory=dict)
    keep_rows: dict[str, list[str]] = field(default_factory=dict)

    @property
    def variables(self) -> list[BEIVariable]:
        """The BEI variables of the cohort's phenotypes."""
        return [column.variable for column in self.columns]

    def complete(self, arguments: Any, paths: tuple[str, ...]) -> Any:
        """Settings with the recipe's where the user left the default.

        Args:
            arguments: dataclass of settings; has `data_dir`.
            paths (`tuple[str, ...]`): names of settings that are paths or patterns, relative to `data_dir`.

        Raises:
            ValueError: the recipe sets something unknown, or needs `data_dir`.
        """
        known = {item.name: item for item in fields(arguments)}
        unknown = sorted(set(self.settings) - set(known))
        if unknown:
            raise ValueError(f"The recipe {self.name} has unknown settings {', '.join(unknown)}.")
        changes, kinds = {}, get_type_hints(type(arguments))
        for name, value in self.settings.items():
            if getattr(arguments, name) != default_of(known[name]):
                continue
            if name in paths and value is not None:
                if arguments.data_dir is None:
                    raise ValueError(
                        f"The recipe {self.name} needs the folder of your download: add --data_dir FOLDER. "
                        f"{self.download}".strip()
                    )
                folder = Path(arguments.data_dir)
                value = (
                    [str(folder / str(each)) for each in value]
                    if isinstance(value, list)
                    else str(folder / str(value))
                )
            changes[name] = _of_kind(value, kinds[name], f"The recipe {self.name}: {name}")
        return replace(arguments, **changes)


def _of_kind(value: Any, kind: Any, where: str) -> Any:
    """A value of a recipe as the setting's type, read as on the command line."""
    if value is None and type(None) in get_args(kind):
        return None
    texts = [_as_text(each) for each in value] if isinstance(value, list) else _as_text(value)
    return as_kind(texts, kind, where)


def _as_text(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else value


def available() -> list[str]:
    """Names of the recipes that come with the repository."""
    return sorted(path.stem for path in COHORTS.glob("*.yaml"))


def load_recipe(name: str | None) -> Recipe:
    """Read a recipe by its name or from a YAML file; `None` gives an empty one.

    Raises:
        FileNotFoundError: there is no such recipe.
        ValueError: a key is unknown or missing, or a variable contradicts itself; the message names file and key.
    """
    if name is None:
        return Recipe()
    path = Path(name) if name.endswith((".yaml", ".yml")) else COHORTS / f"{name}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"There is no recipe {name}; those here are {', '.join(available())}, or give a file.")
    content = load_yaml(path)
    try:
        return _recipe(path, content)
    except (TypeError, AttributeError, KeyError, RecursionError) as error:  # a list where a table is needed, or so
        raise ValueError(
            f"{path} is no recipe: something in it is of another kind than in the others ({error})."
        ) from error


def _recipe(path: Path, content: dict[str, Any]) -> Recipe:
    unknown = sorted(set(map(str, content)) - set(_KEYS))
    absent = [key for key in _REQUIRED if key not in content]
    if unknown or absent:
        raise ValueError(
            f"{path}: {'unknown keys ' + ', '.join(unknown) if unknown else 'missing keys ' + ', '.join(absent)}. "
            f"A recipe has {', '.join(_KEYS)}."
        )
    columns = tuple(_column(path, name, entry) for name, entry in content["variables"].items())
    return Recipe(
        str(content.get("name", path.stem)),
        columns=columns,
        same_person={str(key): str(value) for key, value in (content.get("same_person") or {}).items()},
        keep_rows={key: [str(value) for value in values] for key, values in (content.get("keep_rows") or {}).items()},
        settings=dict(content["settings"]),
        **{key: str(content.get(key, "")).strip() for key in ("title", "terms", "url", "citation", "download")},
    )


def _column(path: Path, name: str, entry: Any) -> Column:
    if not isinstance(entry, dict) or "kind" not in entry or ("column" in entry) == ("value" in entry):
        raise ValueError(f"{path}: the variable {name!r} needs kind, and either column or value (the same for all).")
    unknown = sorted(set(entry) - {*_COLUMN_KEYS, *_VARIABLE_KEYS})
    if unknown:
        raise ValueError(f"{path}: the variable {name!r} has unknown keys {', '.join(unknown)}.")
    if "value" in entry and entry.get("exclude"):
        raise ValueError(
            f"{path}: the variable {name!r} has the same value for all, so exclude cannot choose rows by it: give "
            "exclude to a variable with a column, or choose rows with keep_rows."
        )
    low, high = entry.get("range") or (None, None)
    try:
        variable = BEIVariable(name=name, **{key: entry[key] for key in _VARIABLE_KEYS if key in entry})
        return Column(
            variable,
            str(entry.get("column", "")),
            value=None if "value" not in entry else str(entry["value"]),
            missing=tuple(map(str, entry["missing"] or ())) if "missing" in entry else None,
            low=None if low is None else float(low),
            high=None if high is None else float(high),
            exclude=tuple(map(str, entry.get("exclude") or ())),
            factor=float(entry.get("factor", 1)),
        )
    except (ValueError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: {error}") from error
