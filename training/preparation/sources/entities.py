"""BIDS names: which files are scans of their own, which are versions of one scan, and choosing among them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


# In the order of BIDS; any other entity that is no version tells scans apart, too.
_ORDER = ("ses", "task", "acq", "ce", "rec", "dir", "run", "echo", "part", "chunk")
# One scan may have been written in several of these.
VERSIONS = ("space", "cohort", "res", "den", "desc", "label", "seg", "scale", "stat", "hemi", "suffix")
# Older derivatives call these otherwise.
_SYNONYMS = {"atlas": "seg", "measure": "stat"}
MOST_NAMED = 12


@dataclass(frozen=True)
class BIDSFile:
    """A file with a BIDS name.

    Args:
        path (`Path`): the file.
        entities (`dict[str, str]`): `{"sub": "01", "task": "rest", ...}`, with the last part of the name as "suffix";
            "atlas" is called "seg", as today.
    """

    path: Path
    entities: dict[str, str] = field(hash=False)

    @classmethod
    def of(cls, path: Path) -> "BIDSFile":
        """Read a name."""
        stem, _, suffix = path.name.split(".")[0].rpartition("_")
        pairs = [part.split("-", 1) for part in stem.split("_") if "-" in part]
        return cls(path, {_SYNONYMS.get(key, key): value for key, value in pairs} | {"suffix": suffix})

    @property
    def scan(self) -> dict[str, str]:
        """The entities that tell the scans of a subject apart, in the order of BIDS."""
        own = {key: value for key, value in self.entities.items() if key != "sub" and key not in VERSIONS}
        order = [*(key for key in _ORDER if key in own), *(key for key in own if key not in _ORDER)]
        return {key: own[key] for key in order}

    def without(self, key: str) -> "BIDSFile":
        """The same file as if its name lacked an entity."""
        return BIDSFile(self.path, {name: value for name, value in self.entities.items() if name != key})

    @property
    def key(self) -> tuple[str, ...]:
        """The same for two versions of one scan, and for nothing else."""
        return (self.entities.get("sub", ""), *(f"{key}-{value}" for key, value in self.scan.items()))


def parse_selection(items: Iterable[str]) -> dict[str, list[str]]:
    """The setting `select`.

    Args:
        items (`Iterable[str]`): ENTITY=VALUE; several values of one entity are alternatives, and an empty one stands
            for files without the entity.

    Raises:
        ValueError: an item is something else.
    """
    selection: dict[str, list[str]] = {}
    for item in items:
        key, sign, value = item.strip().partition("=")
        if not sign or not key.isalnum():
            raise ValueError(
                f"select has {item!r}; needed is ENTITY=VALUE, such as res=2 or echo=1 (echo= for files without it)."
            )
        selection.setdefault(_SYNONYMS.get(key, key), []).append(value.strip().removeprefix(f"{key}-"))
    return selection


def choose(files: Sequence[BIDSFile], selection: Mapping[str, Sequence[str]], where: Path) -> list[BIDSFile]:
    """The files that a selection allows.

    Raises:
        ValueError: none is left; the message names the values that there are.
    """
    left = list(files)
    for key, values in selection.items():
        found = [file for file in left if any(_same(file.entities.get(key, ""), value) for value in values)]
        if not found:
            wanted = " ".join(f"{key}={value}" for value in values)
            raise ValueError(f"No scan in {where} has {wanted}, as select asks for; there {values_of(left, key)}.")
        left = found
    return left


def values_of(files: Iterable[BIDSFile], key: str) -> str:
    """What an entity is in some files, for messages: "are res-1, res-2", or "is none with res"."""
    values = sorted({f"{key}-{file.entities[key]}" for file in files if key in file.entities})
    if not values:
        return f"is no scan with {key}"
    more = f" and {len(values) - MOST_NAMED} more" if len(values) > MOST_NAMED else ""
    return f"{'are' if len(values) > 1 else 'is'} {', '.join(values[:MOST_NAMED])}{more}"


def _same(text: str, wanted: str) -> bool:
    """Equal values; BIDS takes run-1 and run-01 for one."""
    if text.isdigit() and wanted.isdigit():
        return int(text) == int(wanted)
    return text.casefold() == wanted.casefold()


def one_version(files: Sequence[BIDSFile]) -> list[BIDSFile]:
    """Every scan once.

    Raises:
        ValueError: a scan has several versions; the message names the setting that chooses one.
    """
    chosen: dict[tuple[str, ...], BIDSFile] = {}
    for file in files:
        other = chosen.setdefault(file.key, file)
        if other is file:
            continue
        for key in VERSIONS:
            values = [each.entities.get(key, "") for each in (other, file)]
            if values[0] != values[1]:
                named = " or ".join(f"--select {key}={value}" for value in values)
                raise ValueError(
                    f"{other.path.name} and {file.path.name} are one scan in two versions: choose with {named}."
                )
        raise ValueError(f"{other.path} and {file.path} are the same scan twice; remove one.")
    return list(chosen.values())


def only_in(files: Sequence[BIDSFile], key: str) -> str | None:
    """A remark if subjects have scans that differ in one entity only, such as echoes of one run."""
    without: dict[tuple[str, ...], set[str]] = {}
    for file in files:
        without.setdefault(file.without(key).key, set()).add(file.entities.get(key, ""))
    several = {rest: values for rest, values in without.items() if len(values) > 1}
    if not several:
        return None
    subjects = len({rest[0] for rest in several})
    example = sorted(next(iter(several.values())))[-1]
    return (
        f"{subjects} subjects have scans that differ in {key} only; each is a scan of its own. One alone: --select "
        f"{key}={example}"
    )


def beside(file: BIDSFile, suffix: str, **wanted: str) -> Path | None:
    """The table beside a scan that says most about it: same folder, no entity that the scan has otherwise.

    Args:
        file (`BIDSFile`): the scan.
        suffix (`str`): end of the table's name, such as "timeseries".
        wanted (`str`): entities that the table must have, such as `desc="confounds"`; others may be absent.
    """
    best: BIDSFile | None = None
    for path in sorted(file.path.parent.glob(f"sub-{file.entities.get('sub', '')}_*{suffix}.tsv")):
        other = BIDSFile.of(path)
        theirs = {key: value for key, value in other.entities.items() if key not in ("suffix", *wanted)}
        fits = all(file.entities.get(key) == value for key, value in theirs.items())
        has_wanted = all(other.entities.get(key) == value for key, value in wanted.items())
        if other.entities["suffix"] == suffix and fits and has_wanted:
            best = other if best is None or len(other.entities) > len(best.entities) else best
    return None if best is None else best.path
