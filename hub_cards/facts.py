"""What people state about a repository: entries of `checkpoints.yaml` or a file of one's own, complete or refused."""

from pathlib import Path
from typing import Any

from training.command_line.cli import load_yaml


ENTRIES = Path(__file__).parent / "checkpoints.yaml"
KINDS = ("model", "adapter", "dataset")
_COMMON = ("kind", "license", "title", "summary", "population")
_TRAINED = (*_COMMON, "cohorts", "training", "hardware", "emissions")
REQUIRED = {
    "model": _TRAINED,
    "adapter": _TRAINED,
    "dataset": (*_COMMON, "source", "terms", "preprocessing", "data_citation"),
}
OPTIONAL = ("size", "license_name", "license_link", "no_results", "reported_results")
COHORT_FIELDS = ("name", "people", "labels", "access", "licence")
# Text that stands for something still to be written.
PLACEHOLDERS = ("todo", "tbd", "xxx", "fixme", "more information needed", "lorem ipsum", "n/a")


def load_facts(entry: str | None = None, card: str | Path | None = None, **overrides: str | None) -> dict[str, Any]:
    """The facts of a repository.

    Args:
        entry (`str`, *optional*): name in `checkpoints.yaml`.
        card (`str` or `Path`, *optional*): YAML file of one's own instead; see `card_template.yaml`.
        **overrides: facts given on the command line, such as `license`; None is no override.

    Returns:
        All fields, cohorts written out.

    Raises:
        ValueError: neither or both sources, an unknown field, or a field that is empty.
    """
    shipped = load_yaml(ENTRIES)
    if (entry is None) == (card is None):
        raise ValueError(
            "Say what the card is about: --card FILE.yaml (a filled-in copy of hub_cards/card_template.yaml) or "
            f"--entry NAME, one of {', '.join(shipped['entries'])}."
        )
    if entry is not None and entry not in shipped["entries"]:
        raise ValueError(f"There is no entry {entry!r}; {ENTRIES.name} has {', '.join(shipped['entries'])}.")
    where = f"entry {entry}" if card is None else str(card)
    facts = dict(shipped["entries"][entry] if card is None else load_yaml(card))
    facts |= {name: value for name, value in overrides.items() if value is not None}
    cohorts = facts.get("cohorts")
    if isinstance(cohorts, list):
        facts["cohorts"] = [shipped["cohorts"].get(item, item) if isinstance(item, str) else item for item in cohorts]
    check_facts(facts, where)
    return facts


def check_facts(facts: dict[str, Any], where: str) -> None:
    """Raise `ValueError` naming every field that is missing, empty, unknown or a placeholder."""
    kind = facts.get("kind")
    if kind not in KINDS:
        raise ValueError(f"{where}: kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    unknown = sorted(set(facts) - set(REQUIRED[kind]) - set(OPTIONAL))
    if unknown:
        raise ValueError(f"{where}: unknown fields {', '.join(unknown)}; a {kind} has {', '.join(REQUIRED[kind])}.")
    empty = [name for name in REQUIRED[kind] if _is_empty(facts.get(name))]
    empty += [name for name in OPTIONAL if name in facts and _is_empty(facts[name])]
    if isinstance(facts.get("cohorts"), list):
        for number, cohort in enumerate(facts["cohorts"], start=1):
            fields = cohort if isinstance(cohort, dict) else {}
            empty += [f"cohorts, number {number}: {name}" for name in COHORT_FIELDS if _is_empty(fields.get(name))]
    if facts.get("license") == "other" and _is_empty(facts.get("license_name")):
        empty.append("license_name")
    if "license" in empty:
        raise ValueError(
            f"{where}: the licence is not known, and nothing is published without one. For the authors' weights ask "
            "the authors; then give it with --license."
            + (f" Also empty: {', '.join(name for name in empty if name != 'license')}." if len(empty) > 1 else "")
        )
    if empty:
        raise ValueError(f"{where}: these fields are empty or placeholders: {', '.join(empty)}. Fill them in.")


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        text = value.strip().strip("[].").casefold()
        return not text or text in PLACEHOLDERS
    return value is None or value in ([], {})
