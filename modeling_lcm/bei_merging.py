"""One vocabulary of several: variables of one name become one, or are refused where they contradict each other."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .bei_vocabulary import BEIVariable


def merge_variables(
    vocabularies: Sequence[Sequence[BEIVariable]], aliases: Mapping[str, Mapping[str, str]] | None = None
) -> list[BEIVariable]:
    """Unify the vocabularies of several cohorts: see `BEITokenizer.merge`."""
    versions: dict[str, list[BEIVariable]] = {}
    for variable in (variable for vocabulary in vocabularies for variable in vocabulary):
        versions.setdefault(variable.name, []).append(variable)
    unknown = sorted(set(aliases or {}) - set(versions))
    if unknown:
        raise ValueError(f"aliases name {', '.join(unknown)}, but the vocabularies only have {', '.join(versions)}.")
    return [_merge_versions(same_name, (aliases or {}).get(name, {})) for name, same_name in versions.items()]


def _merge_versions(versions: Sequence[BEIVariable], declared: Mapping[str, str]) -> BEIVariable:
    first = versions[0]
    preferred = _preferred_spellings(first.name, [declared, *(version.aliases for version in versions)])
    for version in versions:
        clash = _first_clash(version.labels, preferred)
        if clash:
            raise ValueError(
                f"BEI variable {first.name!r}: the aliases make one label of {clash[0]!r} and {clash[1]!r}."
            )
    labels = dict.fromkeys(preferred.get(label, label) for version in versions for label in version.labels)
    return BEIVariable(
        name=first.name,
        kind=_agreed(first.name, "kind", [version.kind for version in versions]),
        labels=list(labels),
        default=_agreed(first.name, "default", [v.default and preferred.get(v.default, v.default) for v in versions]),
        positive=_agreed(
            first.name, "positive", [v.positive and preferred.get(v.positive, v.positive) for v in versions]
        ),
        aliases=preferred,
        unit=_agreed(first.name, "unit", [version.unit for version in versions]),
        mean=first.mean,
        std=first.std,
        log=first.log,
        loss_weight=first.loss_weight,
        description=first.description,
    )


def _preferred_spellings(name: str, tables: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Join alias tables, following chains (m -> male -> M), into one from every other spelling to the label."""
    joined: dict[str, str] = {}

    def follow(text: str) -> str:
        while text in joined:
            text = joined[text]
        return text

    for table in tables:
        for key, target in table.items():
            alias, label = str(key).strip(), follow(str(target).strip())
            if alias in joined and follow(alias) != label:
                raise ValueError(
                    f"BEI variable {name!r}: alias {alias!r} means {follow(alias)!r} in one vocabulary and {label!r} "
                    f"in another; rename the values of one of them, or declare that {follow(alias)!r} is {label!r}."
                )
            if alias != label:  # equal when two vocabularies declare the same pair in opposite directions
                joined[alias] = label
    return {alias: follow(alias) for alias in joined}


def _first_clash(labels: Sequence[str], preferred: Mapping[str, str]) -> tuple[str, str] | None:
    seen: dict[str, str] = {}
    for label in labels:
        other = seen.setdefault(preferred.get(label, label), label)
        if other != label:
            return other, label
    return None


def _agreed(name: str, what: str, values: Sequence[Any]) -> Any:
    given = list(dict.fromkeys(value for value in values if value is not None))
    if len(given) > 1:
        raise ValueError(
            f"BEI variable {name!r}: the vocabularies disagree on its {what}, {given[0]!r} and {given[1]!r}."
        )
    return given[0] if given else None
