"""Derivatives in BIDS layout: all runs of fMRIPrep in MNI space, or XCP-D's tables, with the subjects' phenotypes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pandas as pd

from modeling_lcm.atlases import find_atlas

from ...data.identity import bare_ids
from .base import DEFAULT_ATLAS, Absent, Source
from .entities import BIDSFile, choose, one_version, only_in, parse_selection, values_of
from .images import STRATEGIES, ImageSource, pipeline_version
from .parcels import SUFFIXES, parcel_source
from .tables import as_text_table, read_table


PREFERRED_SPACE = "MNI152NLin2009cAsym"
SUBJECT, SESSION = "participant_id", "scan"
_OF_NAMES = (SESSION, "task", "session_id", "run")  # columns that the files' names fill
# Entities in which the files of one run often differ, so that the run would count several times.
_OFTEN_COPIES = ("echo", "part", "rec")


def bids_source(
    folder: str,
    participants: str | None = None,
    select: Sequence[str] = (),
    strategy: str = "simple",
    atlas: str | None = None,
    regions: Sequence[str] | None = None,
    **images: Any,
) -> Source:
    """Find the scans of a folder of derivatives.

    The table has `participant_id`, `scan` (what tells the subject's scans apart), `session_id`, `task`, `run` and the
    columns of `participants.tsv`, and of `sub-X_sessions.tsv` where there is one.

    Args:
        folder (`str`): the derivatives, with `sub-*` folders.
        participants (`str`, *optional*): table of phenotypes; default `participants.tsv` in the folder or above it.
        select (`Sequence[str]`): ENTITY=VALUE of the scans that are wanted; default: all, in MNI152NLin2009cAsym or
            the one MNI space there is.
        strategy (`str`): nilearn's denoising strategy for images, or "none".
        atlas (`str`, *optional*): atlas id; for tables, it chooses those of the atlas.
        regions (`Sequence[str]`, *optional*): names in the order that is wanted, for tables.
        images: further fields of `ImageSource`.

    Raises:
        FileNotFoundError: the folder, its scans or the table are not there.
        ValueError: an unknown strategy, no scan in MNI space, scans in several versions, or tables of several atlases.
    """
    root = Path(folder)
    if strategy not in (*STRATEGIES, "none"):
        raise ValueError(f"confounds must be one of {', '.join(STRATEGIES)} or none, got {strategy!r}.")
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {root}.")
    selection = parse_selection(select)
    found = _selected(_find(root), selection, root)
    files = _of_one_kind(found, root)
    remarks: list[str] = []
    is_image = files[0].entities["suffix"] == "bold"
    if is_image:
        files = _in_space(files, "space" in selection, root)
    else:
        if strategy not in ("simple", "none") or any(value is not None for value in images.values()):
            raise ValueError("Tables are denoised and name their regions: leave out confounds, labels_img and labels.")
        files = _of_one_atlas(files, atlas, root)
        if "run" not in selection:
            files, remarks = _without_joined_runs(files)
    files = one_version(files)
    remarks += [remark for key in _OFTEN_COPIES if (remark := only_in(files, key)) is not None]
    described = _describe(root, files, participants)
    described["remarks"] += remarks
    described["absent"] = _absent(found, files)
    if not is_image:
        return parcel_source(files, regions, described)
    described["settings"] = {"confounds strategy": strategy, **described["settings"]}
    return ImageSource(
        paths=[file.path for file in files],
        strategy=None if strategy == "none" else strategy,
        atlas=atlas or DEFAULT_ATLAS,
        **described,
        **images,
    )


def _find(root: Path) -> list[BIDSFile]:
    """Images and tables of scans in a folder.

    Raises:
        FileNotFoundError: there is none.
    """
    images = [BIDSFile.of(path) for path in sorted(root.glob("sub-*/**/*_bold.nii*"))]
    tables = [BIDSFile.of(path) for suffix in SUFFIXES for path in sorted(root.glob(f"sub-*/**/*_{suffix}.tsv"))]
    # Tables without an atlas are nuisance signals.
    files = [*images, *(file for file in tables if "seg" in file.entities)]
    files = [file for file in files if "sub" in file.entities]
    if not files:
        raise FileNotFoundError(
            f"{root} holds no scans: fMRIPrep's derivatives have sub-*/[ses-*/]func/*_desc-preproc_bold.nii.gz, "
            "XCP-D's have *_seg-*_timeseries.tsv or *_relmat.tsv."
        )
    return files


def _selected(files: Sequence[BIDSFile], selection: dict[str, list[str]], root: Path) -> list[BIDSFile]:
    """The files that the setting `select` allows; of images the preprocessed ones, unless it says otherwise.

    Raises:
        ValueError: nothing is left.
    """
    if "desc" not in selection:
        files = [file for file in files if file.entities["suffix"] != "bold" or file.entities.get("desc") == "preproc"]
    if not files:
        raise ValueError(f"{root} holds no *_desc-preproc_bold.nii.gz; for other images: --select desc=DESC.")
    return choose(files, selection, root)


def _of_one_kind(files: Sequence[BIDSFile], root: Path) -> list[BIDSFile]:
    """Images, or else time series, or else matrices.

    Raises:
        ValueError: there are images as well as tables.
    """
    kinds = [suffix for suffix in ("bold", *SUFFIXES) if any(file.entities["suffix"] == suffix for file in files)]
    if "bold" in kinds and len(kinds) > 1:
        raise ValueError(
            f"{root} holds images as well as tables of regions: choose with --select suffix=bold or --select "
            f"suffix={kinds[1]}."
        )
    return [file for file in files if file.entities["suffix"] == kinds[0]]


def _absent(found: Sequence[BIDSFile], chosen: Sequence[BIDSFile]) -> list[Absent]:
    """Scans of which there are files, but none of the chosen kind, space or atlas."""
    here = {file.key for file in chosen}
    absent: dict[tuple[str, ...], BIDSFile] = {}
    for file in found:
        # fMRIPrep leaves single echoes in native space, and XCP-D puts runs together.
        whole = file.without("echo").key
        if file.key not in here and whole not in here and not any(_is_part(key, file.key) for key in here):
            absent.setdefault(file.key, file)
    what = ", ".join(
        f"{key}-{chosen[0].entities[key]}" for key in ("suffix", "space", "seg") if key in chosen[0].entities
    )
    return [
        Absent(f"{file.path} (subject sub-{key[0]})", f"{file.path} has no counterpart with {what}.")
        for key, file in absent.items()
    ]


def _is_part(key: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    """Whether a scan is a run of what a key without run stands for."""
    return tuple(part for part in key if not part.startswith("run-")) == whole


def _in_space(files: Sequence[BIDSFile], is_chosen: bool, root: Path) -> list[BIDSFile]:
    """The images in one MNI space.

    Raises:
        ValueError: there are none, or they are in several spaces.
    """
    spaces = {file.entities.get("space", "native") for file in files}
    standard = sorted(space for space in spaces if space.startswith("MNI"))
    if PREFERRED_SPACE in standard and not is_chosen:
        standard = [PREFERRED_SPACE]
    if len(standard) != 1:
        raise ValueError(
            f"{root} holds no one set of runs in an MNI space; its spaces are {', '.join(sorted(spaces))}. Run "
            f"fMRIPrep with --output-spaces {PREFERRED_SPACE}, or choose with --select space=SPACE."
        )
    return [file for file in files if file.entities.get("space") == standard[0]]


def _of_one_atlas(files: Sequence[BIDSFile], atlas: str | None, root: Path) -> list[BIDSFile]:
    """The tables of one atlas, in the preferred space if there are several.

    Raises:
        ValueError: there are none of the atlas, or of several ones and none was chosen.
    """
    names = sorted({file.entities["seg"] for file in files})
    if atlas is not None:
        wanted = find_atlas(atlas) or atlas.casefold()
        names = [name for name in names if (find_atlas(name) or name.casefold()) == wanted]
    if len(names) != 1:
        problem = "of several atlases" if atlas is None else f"of the atlas {atlas} none"
        raise ValueError(
            f"{root} holds tables {problem}; there {values_of(files, 'seg')}. Choose one with --select seg=NAME, "
            "without --atlas."
        )
    kept = [file for file in files if file.entities["seg"] == names[0]]
    preferred = [file for file in kept if file.entities.get("space") == PREFERRED_SPACE]
    return preferred if {file.key for file in preferred} == {file.key for file in kept} else kept


def _without_joined_runs(files: Sequence[BIDSFile]) -> tuple[list[BIDSFile], list[str]]:
    """Tables without those that XCP-D made of several runs put together: the runs are there, too."""
    runs: dict[tuple[str, ...], int] = {}
    for file in files:
        if "run" in file.entities:
            whole = file.without("run").key
            runs[whole] = runs.get(whole, 0) + 1
    joined = [file for file in files if "run" not in file.entities and runs.get(file.key, 0) > 1]
    if not joined:
        return list(files), []
    remark = (
        f"{len(joined)} tables are runs put together, whose runs are there too: left out. Take them: --select run="
    )
    return [file for file in files if file not in joined], [remark]


def _describe(root: Path, files: Sequence[BIDSFile], participants: str | None) -> dict[str, Any]:
    """Table, places, settings and remarks of a source."""
    phenotypes, table_path = _participants(root, participants)
    records, places, without = [], [], []
    row_of = _rows_of(phenotypes, files, table_path)
    for file in files:
        subject, parts = f"sub-{file.entities['sub']}", file.entities
        record: dict[str, Any] = dict.fromkeys(phenotypes.columns)
        if subject in row_of:
            record = cast(dict[str, Any], phenotypes.loc[row_of[subject]].to_dict())
        elif subject not in without:
            without.append(subject)
        record |= _session_record(root, parts)
        named = "_".join(f"{key}-{value}" for key, value in file.scan.items())
        record |= {SUBJECT: subject, SESSION: named or "1", "task": parts.get("task")}
        record |= {"session_id": parts.get("ses"), "run": parts.get("run")}
        records.append(record)
        places.append(f"{file.path} (subject {subject})")
    table = as_text_table(pd.DataFrame(records))
    table.index = pd.Index(range(1, len(table) + 1))
    settings = {"space": files[0].entities.get("space", "not stated"), "phenotypes": str(table_path)}
    if version := pipeline_version(root):
        settings["preprocessing"] = version
    scanned = {record[SUBJECT] for record in records}
    remarks = [
        *_named(without, f"subjects have no row in {table_path}; their phenotypes are missing"),
        *_named(
            [name for name in phenotypes.index if name and name not in {*row_of.values(), *scanned}],
            f"subjects of {table_path} have no scan here",
        ),
        *_named(
            [name for name in _OF_NAMES if name in phenotypes], f"columns of {table_path} give way to the files' names"
        ),
    ]
    return {"table": table, "places": places, "settings": settings, "remarks": remarks}


def _rows_of(phenotypes: pd.DataFrame, files: Sequence[BIDSFile], where: Path) -> dict[str, str]:
    """Row of the table of every subject that has one, whatever the spelling of the ids: `sub-001`, `001` or `1`.

    Raises:
        ValueError: none has; the message shows both spellings.
    """
    subjects = list(dict.fromkeys(f"sub-{file.entities['sub']}" for file in files))
    own = {subject: subject for subject in subjects if subject in phenotypes.index}
    ids = [name for name in phenotypes.index if name]
    bare = dict(zip(bare_ids(ids), ids, strict=True))
    others = [subject for subject in subjects if subject not in own]
    spelt = {subject: bare[key] for subject, key in zip(others, bare_ids(others), strict=True) if key in bare}
    if not own and not spelt:
        raise ValueError(
            f"None of the {len(subjects)} subjects, {subjects[0]} among them, has a row in {where}, whose "
            f"{SUBJECT} begins with {', '.join(ids[:3])}: give the table of these subjects with --participants."
        )
    return own | {subject: row for subject, row in spelt.items() if row not in own.values()}


def _named(items: Sequence[str], what: str) -> list[str]:
    """A remark about some subjects or columns, the first of them named; none if there are none."""
    named = ", ".join(items[:5]) + (", ..." if len(items) > 5 else "")
    return [f"{len(items)} {what}: {named}"] if items else []


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
        raise ValueError(f"{path}, line {line}: another row of {table[SUBJECT][line]}; a subject has one row.")
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
    return {} if rows.empty else cast(dict[str, Any], rows.iloc[0].dropna().to_dict())
