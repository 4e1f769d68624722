"""fMRIPrep derivatives (BIDS layout): every preprocessed run in MNI space with the phenotypes of its person."""

from pathlib import Path
from typing import Any

import pandas as pd

from .images import STRATEGIES, ImageSource, entities, fmriprep_version
from .tables import as_text_table, read_table


IDENTITY = ("sub", "ses", "task", "acq", "dir", "run")
PREFERRED_SPACE = "MNI152NLin2009cAsym"
SUBJECT, SESSION = "participant_id", "scan"


def bids_source(
    folder: str,
    participants: str | None = None,
    task: str | None = None,
    space: str | None = None,
    strategy: str = "simple",
    **options: Any,
) -> ImageSource:
    """Find the runs of an fMRIPrep folder.

    The table has `participant_id`, `scan` (what tells the person's runs apart), `session_id`, `task`, `run` and the
    columns of `participants.tsv`, and of `sub-X_sessions.tsv` where there is one.

    Args:
        folder (`str`): the derivatives, with `sub-*` folders.
        participants (`str`, *optional*): table of phenotypes; default `participants.tsv` in the folder or above it.
        task (`str`, *optional*): only this task.
        space (`str`, *optional*): only this space; default MNI152NLin2009cAsym, or the one MNI space there is.
        strategy (`str`): nilearn's denoising strategy, or "none".
        options: other fields of `ImageSource`.

    Raises:
        FileNotFoundError: the folder, its scans or the table are not there.
        ValueError: an unknown strategy, no run in MNI space, or runs that cannot be told apart.
    """
    root = Path(folder)
    if strategy not in (*STRATEGIES, "none"):
        raise ValueError(f"confounds must be one of {', '.join(STRATEGIES)} or none, got {strategy!r}.")
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    found = sorted(root.glob("sub-*/**/*_desc-preproc_bold.nii*"))
    if not found:
        raise FileNotFoundError(
            f"{root} holds no scans: fMRIPrep's derivatives have sub-*/[ses-*/]func/*_desc-preproc_bold.nii.gz."
        )
    runs = _in_space([path for path in found if task in (None, entities(path).get("task"))], space, root, task)
    people, table_path = _participants(root, participants)
    records, places, without = [], [], []
    for path in runs:
        parts = entities(path)
        subject = f"sub-{parts['sub']}"
        record: dict[str, Any] = dict.fromkeys(people.columns) if subject not in people.index else {}
        if subject in people.index:
            record = people.loc[subject].to_dict()
        elif subject not in without:
            without.append(subject)
        record |= _session_record(root, parts)
        named = "_".join(f"{key}-{parts[key]}" for key in IDENTITY[1:] if key in parts)
        record |= {SUBJECT: subject, SESSION: named or "1", "task": parts.get("task")}
        record |= {"session_id": parts.get("ses"), "run": parts.get("run")}
        records.append(record)
        places.append(f"{path} (subject {subject})")
    table = as_text_table(pd.DataFrame(records))
    table.index = pd.Index(range(1, len(table) + 1))
    settings = {"confounds strategy": strategy, "space": entities(runs[0])["space"], "phenotypes": str(table_path)}
    if version := fmriprep_version(root):
        settings["preprocessing"] = version
    remarks = []
    if without:
        named = ", ".join(without[:5]) + (", ..." if len(without) > 5 else "")
        remarks.append(f"{len(without)} people have no row in {table_path}; their phenotypes are missing: {named}")
    return ImageSource(
        table=table, places=places, paths=runs, settings=settings, remarks=remarks,
        strategy=None if strategy == "none" else strategy, **options,
    )  # fmt: skip


def _in_space(paths: list[Path], space: str | None, root: Path, task: str | None) -> list[Path]:
    """The runs of one MNI space, each once."""
    if not paths:
        raise ValueError(f"{root} holds no run of the task {task!r}.")
    spaces = sorted({entities(path).get("space", "native") for path in paths})
    standard = [name for name in spaces if name.startswith("MNI")]
    if space is None and PREFERRED_SPACE in standard:
        space = PREFERRED_SPACE
    elif space is None and len(standard) == 1:
        space = standard[0]
    if space not in standard:
        wanted = "an MNI space" if space is None else f"the space {space}"
        raise ValueError(
            f"{root} holds no one set of runs in {wanted}; its spaces are {', '.join(spaces)}. Run fMRIPrep with "
            f"--output-spaces {PREFERRED_SPACE}, or choose with --bids_space."
        )
    chosen: dict[tuple[str | None, ...], Path] = {}
    for path in paths:
        parts = entities(path)
        if parts.get("space") != space:
            continue
        key = tuple(parts.get(name) for name in IDENTITY)
        if key in chosen:
            raise ValueError(f"{chosen[key]} and {path} are the same run; remove one (another resolution, perhaps).")
        chosen[key] = path
    return list(chosen.values())


def _participants(root: Path, given: str | None) -> tuple[pd.DataFrame, Path]:
    """Phenotypes by subject ("sub-01"), and their file."""
    candidates = [Path(given)] if given else [root / "participants.tsv", root.parent / "participants.tsv",
                                              root.parent.parent / "participants.tsv"]  # fmt: skip
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"There is no table of phenotypes {candidates[0]}: copy participants.tsv of the BIDS data set there, or "
            "give it with --participants."
        )
    table = read_table(path)
    if SUBJECT not in table.columns:
        raise ValueError(f"{path} has no column {SUBJECT!r}; it has {', '.join(table.columns)}.")
    table[SUBJECT] = [text if text is None or text.startswith("sub-") else f"sub-{text}" for text in table[SUBJECT]]
    repeated = table[SUBJECT].duplicated()
    if repeated.any():
        line = table.index[repeated][0]
        raise ValueError(f"{path}, line {line}: another row of {table[SUBJECT][line]}; a person has one row.")
    return table.set_index(SUBJECT), path


def _session_record(root: Path, parts: dict[str, str]) -> dict[str, Any]:
    """What `sub-X_sessions.tsv` says of this session: age may change between sessions."""
    path = root / f"sub-{parts['sub']}" / f"sub-{parts['sub']}_sessions.tsv"
    if "ses" not in parts or not path.is_file():
        return {}
    table = read_table(path)
    if "session_id" not in table.columns:
        return {}
    rows = table[table["session_id"].isin([parts["ses"], f"ses-{parts['ses']}"])]
    return {} if rows.empty else rows.iloc[0].dropna().to_dict()
