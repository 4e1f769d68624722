"""Who has been trained on: names of people that hold across data sets, and what a checkpoint keeps of them.

A checkpoint must tell whether it has seen a person, after it was shared as well, and must not publish who that is. Its
record therefore holds salted, slow hashes. They answer "was this id trained on?" for whoever already has the id; ids
that can be guessed can also be tried, so they are no protection against somebody who lists all possible ids.
"""

import hashlib
import secrets
from collections.abc import Iterable
from typing import Any

import pandas as pd


SAME_PERSON = "same_person_in_"  # a prepared table's columns with a person's id in another cohort
HASH_ROUNDS = 1000  # 0.3 ms an id
HASH_LENGTH = 16  # hexadecimal digits: 64 bits, no accidental equality among millions


def scan_names(table: pd.DataFrame, cohort: str | None = None) -> pd.Series:
    """`COHORT/ID` of every scan: the id within its own cohort, however data sets were merged, pooled or joined.

    Args:
        table (`pd.DataFrame`): one row per scan, with `subject_id`.
        cohort (`str`, *optional*): name of the cohort where the table does not say it; without one, the plain id.
    """
    names = table["subject_id"].astype(str)
    for column in ("recorded_subject_id", "cohort_subject_id"):
        if column in table:
            names = table[column].astype("string").fillna(names.astype("string")).astype(str)
    if "dataset" in table:
        return (table["dataset"].astype("string") + "/" + names).fillna(names).astype(str)
    return names if cohort is None else cohort + "/" + names


def other_names(table: pd.DataFrame) -> pd.DataFrame:
    """The names that people have in other cohorts: columns `row` (position) and `name`."""
    found = [
        pd.DataFrame(
            {
                "row": [row for row, value in enumerate(table[column]) if pd.notna(value)],
                "name": [f"{column.removeprefix(SAME_PERSON)}/{value}" for value in table[column].dropna()],
            }
        )
        for column in map(str, table.columns)
        if column.startswith(SAME_PERSON)
    ]
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame({"row": [], "name": []})


def hash_names(names: Iterable[str]) -> dict[str, Any]:
    """Salted hashes of names, for a checkpoint's record; the salt is a new one each time.

    Args:
        names (`Iterable[str]`): people, as `scan_names` calls them.
    """
    salt = secrets.token_hex(16)
    return {"salt": salt, "hashes": sorted({_hash(name, salt) for name in names})}


def seen_people(record: dict[str, Any], table: pd.DataFrame) -> list[str]:
    """Subject ids of a table that a checkpoint's record says were trained on, under any of their names.

    Args:
        record (`dict`): content of `training_record.json`.
        table (`pd.DataFrame`): one row per scan.
    """
    ids = table["subject_id"].astype(str)
    hashed = record.get("training_subject_hashes")
    if hashed is None:  # a record of an older version, which has plain ids
        return sorted(set(ids) & set(record.get("training_subjects", [])))
    own, others = scan_names(table), other_names(table)
    # The plain id as well: a checkpoint trained on a table without the cohort's name knows no other.
    known = {*zip(own, ids, strict=True), *zip(ids, ids, strict=True)}
    known |= {(name, ids.iloc[int(row)]) for row, name in zip(others["row"], others["name"], strict=True)}
    seen = set()
    for entry in hashed:
        hashes = set(entry["hashes"])
        seen |= {subject for name, subject in known if _hash(name, entry["salt"]) in hashes}
    return sorted(seen)


def _hash(name: str, salt: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", name.encode(), bytes.fromhex(salt), HASH_ROUNDS).hex()[:HASH_LENGTH]
