"""Files of a prepared data set beside its Arrow data. Nothing heavy is imported here."""

from pathlib import Path


FC_DEFINITION = "fc_definition.json"  # the FC processor's settings
FURTHER_ATLASES = "further_atlases.json"  # FC definitions of the columns `connectivity_ATLAS`, if there are any
QUALITY = "quality.json"  # what was left out and why
COHORTS_FILE = "cohorts.json"  # the cohorts with their terms


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
