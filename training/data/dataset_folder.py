"""Files of a prepared data set beside its Arrow data. Nothing heavy is imported here."""

from pathlib import Path
from typing import Any

from ..storage.files import read_json


FC_DEFINITION = "fc_definition.json"  # the FC processor's settings
FURTHER_ATLASES = "further_atlases.json"  # FC definitions of the columns `connectivity_ATLAS`, if there are any
QUALITY = "quality.json"  # what was left out and why
COHORTS_FILE = "cohorts.json"  # the cohorts with their terms

_TEXTS = ("dataset", "title", "terms", "url", "citation")  # what is recorded of a cohort, as text


def require_dataset(folder: str | Path) -> Path:
    """The folder of a prepared data set.

    Args:
        folder (`str` or `Path`): what the user gave.

    Raises:
        ValueError: no folder was given.
        FileNotFoundError: it is not a prepared data set.
    """
    if not str(folder):
        raise ValueError("No data was given: add --data FOLDER (made by training.prepare).")
    if not (Path(folder) / FC_DEFINITION).is_file():
        raise FileNotFoundError(
            f"{folder} is not a data set made by training.prepare: it has no {FC_DEFINITION}, or does not exist."
        )
    return Path(folder)


def cohort_records(folder: str | Path) -> list[dict[str, Any]]:
    """What a data set records of its cohorts: `dataset` (the name), terms, and so on; empty where it records nothing.

    Raises:
        ValueError: the record is damaged.
    """
    path = Path(folder) / COHORTS_FILE
    records = read_json(path, list) if path.is_file() else []
    for record in records:
        positive = record.get("positive", {}) if isinstance(record, dict) else None
        texts = [record.get(name, "") for name in _TEXTS] if isinstance(record, dict) else [None]
        if not isinstance(positive, dict) or not all(isinstance(text, str) for text in texts) or not texts[0]:
            raise ValueError(f"{path} is damaged: it does not say in a known form which cohorts these are.")
    return [
        dict.fromkeys(_TEXTS, "") | dict.fromkeys(("scans", "subjects"), "not recorded") | each for each in records
    ]
