"""Who is one subject: names that hold across data sets and spellings, and what a checkpoint keeps of them.

A checkpoint must tell whether it has seen a subject, after it was shared as well, and must not publish who that is.
Its record therefore holds salted, slow hashes. They answer "was this id trained on?" for whoever already has the id;
ids that can be guessed can also be tried, so they are no protection against an attacker who lists all possible ids.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


SAME_PERSON = "same_person_in_"  # a prepared table's columns with a subject's id in another cohort
HASH_ROUNDS = 1000  # 0.3 ms an id
MOST_COMPARED = 2000  # ids that are looked for in cohorts of other names; 0.3 ms for each cohort
LONG_ID = 5  # characters of an id that two cohorts rarely share by chance; sub-001 is in many
HASH_LENGTH = 16  # hexadecimal digits: 64 bits, no accidental equality among millions
BARE = "bare"  # how the ids of a record are spelt before they are hashed: as by `bare_ids`
_PREFIX = re.compile(r"sub(?:ject)?[-_ ](?=.)|sub(?=\d)")  # of BIDS, in lower case
_NUMBER = re.compile(r"0*(\d+)(?:\.0+)?")  # 007, and what spreadsheets make of it


def same_subject(names: Iterable[tuple[int, str]], scans: int) -> np.ndarray:
    """Which scans are of one subject: those that have a name in common, directly or through other scans.

    Args:
        names (`Iterable[tuple[int, str]]`): scan (its position) and a name of its subject; a scan may have several.
        scans (`int`): number of scans.

    Returns:
        Number of the subject of every scan, int `(scans,)`, in the order of their first scans.
    """
    pairs = list(names)
    which = np.array([scan for scan, _ in pairs], dtype=int)
    codes, distinct = pd.factorize(np.array([name for _, name in pairs], dtype=object))
    size = scans + len(distinct)  # scans and names are the nodes of one graph
    graph = coo_array((np.ones(len(pairs)), (which, scans + codes)), shape=(size, size))
    return pd.factorize(connected_components(graph, directed=False)[1][:scans])[0]


def first_of_each(ids: Iterable[str], subjects: np.ndarray) -> list[str]:
    """One id for every subject: that of the first scan.

    Args:
        ids (`Iterable[str]`): id of every scan.
        subjects (`np.ndarray` of shape `(scans,)`): by [`same_subject`].
    """
    return pd.Series(list(ids), dtype=object).groupby(subjects).transform("first").tolist()


def bare_ids(ids: Iterable[str], keep_width: bool = True) -> list[str]:
    """Ids without what differs between spellings: `sub-001`, `SUB-001`, `001` and `1` are one.

    Args:
        ids (`Iterable[str]`): ids of one table.
        keep_width (`bool`): leave leading zeros where two ids of the table differ in nothing else.
    """
    texts = [_PREFIX.sub("", str(each).strip().casefold(), count=1) for each in ids]
    short = [match[1] if (match := _NUMBER.fullmatch(text)) else text for text in texts]
    if not keep_width:
        return short
    widths: dict[str, set[str]] = {}
    for text, number in zip(texts, short, strict=True):
        widths.setdefault(number, set()).add(text)
    return [text if len(widths[number]) > 1 else number for text, number in zip(texts, short, strict=True)]


def recorded_ids(table: pd.DataFrame) -> pd.Series:
    """Id of every scan's subject as its own cohort has it, however data sets were merged, pooled or joined."""
    ids = table["subject_id"].astype(str)
    for column in ("recorded_subject_id", "cohort_subject_id"):
        if column in table:
            ids = table[column].astype("string").fillna(ids.astype("string")).astype(str)
    return ids


def scan_names(table: pd.DataFrame, cohort: str | None = None, keep_width: bool = True) -> pd.Series:
    """`COHORT/ID` of every scan, with the bare id within its own cohort.

    Args:
        table (`pd.DataFrame`): one row per scan, with `subject_id`.
        cohort (`str`, *optional*): name of the cohort where the table does not say it; without one, the plain id.
        keep_width (`bool`): see [`bare_ids`].
    """
    ids = recorded_ids(table)
    cohorts = pd.Series(cohort or "", index=table.index, dtype=object)
    if "dataset" in table:
        cohorts = table["dataset"].astype(object).where(table["dataset"].notna(), cohorts)
    names = pd.Series("", index=table.index, dtype=object)
    for name in cohorts.unique():
        here = (cohorts == name).to_numpy()
        names[here] = np.array(
            [f"{name}/{each}" if name else each for each in bare_ids(ids[here], keep_width)], dtype=object
        )
    return names


def other_names(table: pd.DataFrame) -> list[tuple[int, str]]:
    """The names that subjects have in other cohorts: scan (its position) and name, as of [`scan_names`]."""
    return [
        (row, f"{column.removeprefix(SAME_PERSON)}/{bare_ids([value])[0]}")
        for column in map(str, table.columns)
        if column.startswith(SAME_PERSON)
        for row, value in enumerate(table[column])
        if pd.notna(value)
    ]


def hash_names(names: Iterable[str]) -> dict[str, Any]:
    """Salted hashes of names, for a checkpoint's record; the salt is a new one each time.

    Args:
        names (`Iterable[str]`): subjects, as `scan_names` calls them.
    """
    salt = secrets.token_hex(16)
    return {"salt": salt, "ids": BARE, "hashes": sorted({_hash(name, salt) for name in names})}


def require_subjects(record: dict[str, Any], where: str) -> None:
    """Check what a checkpoint's record says of its training subjects, which may come from anywhere.

    Args:
        record (`dict`): content of `training_record.json`.
        where (`str`): what it is called in an error.

    Raises:
        ValueError: it cannot be compared with anything.
    """
    named, hashed, cohorts = (
        record.get(name, kind())
        for name, kind in (("training_subjects", list), ("training_subject_hashes", list), ("cohorts", dict))
    )
    right = isinstance(named, list) and isinstance(hashed, list) and isinstance(cohorts, dict)
    if not (right and all(isinstance(each, str) for each in named) and all(map(_is_hashed, hashed))):
        raise ValueError(f"{where} is damaged: it does not say in a known form which subjects were trained on.")


def _is_hashed(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("hashes"), list):
        return False
    try:
        return bool(bytes.fromhex(entry["salt"])) and all(isinstance(each, str) for each in entry["hashes"])
    except (KeyError, TypeError, ValueError):
        return False


def seen_subjects(record: dict[str, Any], table: pd.DataFrame) -> list[str]:
    """Subject ids of a table that a checkpoint's record says were trained on, under any of their names and spellings.

    A scan without the name of its cohort (column `dataset`) may be of any that the record names, if its id is long
    enough to tell: whoever prepares a public cohort from their own table has no such column.

    Args:
        record (`dict`): content of `training_record.json`.
        table (`pd.DataFrame`): one row per scan.
    """
    ids = table["subject_id"].astype(str).tolist()
    known = [*_names_of(table), *_in_any_cohort(table, record.get("cohorts", ()))]
    hashed = record.get("training_subject_hashes")
    if hashed is None:  # a record of an older version, which has plain ids
        trained = set(bare_ids(map(str, record.get("training_subjects", [])), keep_width=False))
        return sorted({ids[row] for row, name in known if name in trained})
    seen: set[str] = set()
    for entry in hashed:
        hashes = set(entry["hashes"])
        names = known if entry.get("ids") == BARE else _spelt_as_before(table)
        of_name: dict[str, set[str]] = {}
        for row, name in names:
            of_name.setdefault(name, set()).add(ids[row])
        for name, subjects in of_name.items():
            if _hash(name, entry["salt"]) in hashes:
                seen |= subjects
    return sorted(seen)


def alike_subjects(record: dict[str, Any], table: pd.DataFrame) -> list[str]:
    """Sentences about ids that subjects of a checkpoint's training have in cohorts of other names than a table's.

    They may be the same subjects, of a data set that was renamed or prepared anew, or have like ids by chance: who
    knows the data must tell. Ids that are in many cohorts, such as sub-001, are not looked for.

    Args:
        record (`dict`): content of `training_record.json`.
        table (`pd.DataFrame`): one row per scan.

    Returns:
        One sentence per cohort, with the counts.
    """
    ids = bare_ids(recorded_ids(table), keep_width=False)
    cohorts = table["dataset"].astype(object).tolist() if "dataset" in table else [None] * len(table)
    own = sorted(
        {(name, each) for name, each in zip(cohorts, ids, strict=True) if pd.notna(name) and len(each) >= LONG_ID}
    )
    own = own[:: -(-len(own) // MOST_COMPARED)] if own else []  # evenly chosen of very many
    found = []
    for cohort in record.get("cohorts", {}):
        others = [(name, each) for name, each in own if name != cohort]
        alike = {pair for entry in record.get("training_subject_hashes", []) for pair in _among(others, cohort, entry)}
        if alike:
            names = ", ".join(sorted({name for name, _ in alike}))
            found.append(
                f"{len(alike)} of {len(others)} subject ids of {names} are also ids of {cohort}, which the checkpoint "
                "was trained on: if they are the same subjects, what it says of them is no test."
            )
    return found


def _among(pairs: Iterable[tuple[str, str]], cohort: str, entry: dict[str, Any]) -> list[tuple[str, str]]:
    """Those of some subjects, by cohort and bare id, whose id a record has hashed as one of `cohort`."""
    hashes = set(entry["hashes"])
    return [(name, each) for name, each in pairs if _hash(f"{cohort}/{each}", entry["salt"]) in hashes]


def _names_of(table: pd.DataFrame) -> list[tuple[int, str]]:
    """All names of a table's subjects, with the scan's position, as a record may have them."""
    # The plain id as well: a checkpoint trained on a table without the cohort's name knows no other.
    names = [(row, name) for wide in (True, False) for row, name in enumerate(scan_names(table, keep_width=wide))]
    for ids in (table["subject_id"].astype(str), recorded_ids(table)):
        names += [(row, name) for row, name in enumerate(bare_ids(ids, keep_width=False))]
    return [*names, *other_names(table)]


def _in_any_cohort(table: pd.DataFrame, cohorts: Iterable[str]) -> list[tuple[int, str]]:
    """Names, with the scan's position, that scans without a cohort would have in each of some."""
    unnamed = table["dataset"].isna() if "dataset" in table else pd.Series(True, index=table.index)
    bare = zip(np.flatnonzero(unnamed), bare_ids(recorded_ids(table)[unnamed], keep_width=False), strict=True)
    return [(int(row), f"{cohort}/{each}") for row, each in bare if len(each) >= LONG_ID for cohort in cohorts]


def _spelt_as_before(table: pd.DataFrame) -> list[tuple[int, str]]:
    """Names in the spellings that records of older versions may have hashed."""
    ids = recorded_ids(table)
    cohorts = table["dataset"].tolist() if "dataset" in table else [None] * len(table)
    names = [(row, str(each)) for row, each in enumerate(table["subject_id"])]
    for row, (each, cohort) in enumerate(zip(ids, cohorts, strict=True)):
        plain = re.sub("^sub-", "", each, flags=re.IGNORECASE)
        for text in {each, plain, f"sub-{plain}"}:
            names.append((row, text if pd.isna(cohort) else f"{cohort}/{text}"))
    others = [
        (row, f"{str(column).removeprefix(SAME_PERSON)}/{value}")
        for column in table.columns
        if str(column).startswith(SAME_PERSON)
        for row, value in enumerate(table[column])
        if pd.notna(value)
    ]
    return names + others


def _hash(name: str, salt: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", name.encode(), bytes.fromhex(salt), HASH_ROUNDS).hex()[:HASH_LENGTH]
