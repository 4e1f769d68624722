"""What an input is: a folder of derivatives, scans with their table, one table of edges, a prepared data set."""

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from modeling_lcm.atlases import find_atlas

from ..data.cohort import FC_DEFINITION
from .patterns import SESSION_COLUMNS, find_pattern, find_regions, find_table, kind_of_scan, scans_in
from .sources.bids import SESSION
from .sources.edge_tables import find_edges
from .sources.entities import BIDSFile
from .sources.images import IMAGE_FORMATS, pipeline_version
from .sources.parcels import SUFFIXES
from .sources.tables import read_table


DATASET, FMRIPREP, XCP_D = "dataset", "fmriprep", "xcp_d"
TIME_SERIES, CONNECTIVITY, IMAGES, EDGES = "time_series", "connectivity", "images", "edges"
USUAL_REGIONS = 200  # of several atlases, if none was chosen, the one nearest to it is taken


@dataclass(frozen=True)
class Recognised:
    """What an input was taken for.

    Args:
        kind (`str`): "dataset" (prepared already), "fmriprep", "xcp_d", "time_series", "connectivity", "images" or
            "edges" (one table of them).
        words (`str`): one sentence about it, for the user.
        settings (`dict[str, Any]`): the settings of training.prepare that read it; empty for a prepared data set.
    """

    kind: str
    words: str
    settings: dict[str, Any] = field(default_factory=dict)


def recognise(place: str | Path, participants: str = "", atlas: Sequence[str] = ()) -> Recognised:
    """Say what an input is; no scan is read but, at most, one.

    Args:
        place (`str` or `Path`): a folder, a file, or a pattern with names of columns in braces.
        participants (`str`): table of phenotypes, where it does not lie beside the scans.
        atlas (`Sequence[str]`): atlases that are wanted, if that was said.

    Raises:
        FileNotFoundError: there is no such place, or no table of phenotypes.
        ValueError: it is nothing that can be read, or lies at another level; the message says what to give instead.
    """
    text, path = str(place), Path(place)
    if not text:
        raise ValueError("No input was given: add --input with a folder of derivatives, or of scans with their table.")
    if "{" in text and not path.exists():
        return _pattern(text, participants)
    if path.is_file():
        return _file(path, participants)
    if not path.is_dir():
        near = path.parent if path.parent.is_dir() else Path.cwd()
        names = sorted(entry.name for entry in near.iterdir() if not entry.name.startswith("."))[:6]
        raise FileNotFoundError(f"There is no {path}. {near} holds {', '.join(names) or 'nothing'}.")
    if (path / FC_DEFINITION).is_file():
        return Recognised(DATASET, f"{path} is a data set that training.prepare made.")
    subjects = [entry for entry in path.glob("sub-*") if entry.is_dir()]
    if subjects and (found := _derivatives(path, atlas)) is not None:
        return found
    _require_level(path)
    return _folder_of_scans(path, participants)


def _pattern(pattern: str, participants: str) -> Recognised:
    start = pattern[: pattern.index("{")]
    folder = Path(start) if start.endswith("/") else Path(start).parent
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} for the pattern {pattern}.")
    table = participants or str(find_table(folder, [])[0])
    kind = _kind_of_pattern(pattern)
    return Recognised(
        kind,
        f"{pattern} is a pattern of {_NAMES[kind]}; the table is {table}.",
        {kind: pattern, "participants": table},
    )


def _kind_of_pattern(pattern: str) -> str:
    """What the files of a pattern hold.

    Raises:
        FileNotFoundError: there are none.
    """
    if pattern.endswith(IMAGE_FORMATS):
        return IMAGES
    anything = re.sub(r"\{[^{}]*\}", "*", pattern.replace("{{", "[{]").replace("}}", "[}]"))
    files = sorted(glob.glob(anything))
    if not files:
        raise FileNotFoundError(f"No file fits the pattern {pattern}, whatever the columns hold.")
    return kind_of_scan(Path(files[0]))


_NAMES = {TIME_SERIES: "ROI time series", CONNECTIVITY: "FC matrices", IMAGES: "4-D images in MNI space"}


def _file(path: Path, participants: str) -> Recognised:
    if path.suffix.lower() == ".npz":
        kind = kind_of_scan(path)
        table = participants or str(find_table(path.parent, [path])[0])
        words = f"{path} is an archive of {_NAMES[kind]}; the table is {table}."
        return Recognised(kind, words, {kind: str(path), "participants": table})
    try:
        content = read_table(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is no input that can be read: give a folder of derivatives, or of scans with their table; one "
            f"archive (.npz); or one table of edges. ({error})"
        ) from error
    edges = find_edges(content)
    if edges is None:
        raise ValueError(
            f"{path} is a table, but its columns are no edges of a connectome: if it is the table of phenotypes, give "
            f"the folder of the scans as --input, and this file with --participants."
        )
    words = f"{path} is one table of {len(edges)} edges a scan, and phenotypes."
    return Recognised(EDGES, words, {"connectivity": str(path), "participants": participants or str(path)})


def _derivatives(root: Path, atlas: Sequence[str]) -> Recognised | None:
    """fMRIPrep's or XCP-D's output; `None` if the folders of subjects hold something else.

    Raises:
        ValueError: it is a BIDS data set before preprocessing.
    """
    images = [BIDSFile.of(path) for path in root.glob("sub-*/**/*_bold.nii*")]
    tables = [BIDSFile.of(path) for suffix in SUFFIXES for path in root.glob(f"sub-*/**/*_{suffix}.tsv")]
    tables = [file for file in tables if "seg" in file.entities]
    made_by = pipeline_version(root)
    if tables:
        names = sorted({file.entities["seg"] for file in tables})
        chosen, words = _choose_atlas(names, atlas)
        select = [] if chosen is None else [f"seg={name}" for name in chosen]
        if any(file.entities.get("desc") == "preproc" for file in images):
            suffixes = {file.entities["suffix"] for file in tables}
            select.append(f"suffix={next(suffix for suffix in SUFFIXES if suffix in suffixes)}")
        text = f"{root} holds tables of regions as XCP-D writes them{f' ({made_by})' if made_by else ''}. {words}"
        return Recognised(XCP_D, text, {"bids": str(root), "select": select, "session_column": SESSION})
    if any(file.entities.get("desc") == "preproc" for file in images):
        text = f"{root} holds preprocessed images as fMRIPrep writes them{f' ({made_by})' if made_by else ''}."
        return Recognised(FMRIPREP, text, {"bids": str(root), "session_column": SESSION})
    if images and not any("desc" in file.entities or "space" in file.entities for file in images):
        nested = [folder for folder in _nested(root / "derivatives") if _holds_derivatives(folder)]
        hint = f" Is {nested[0]} meant?" if nested else " Run fMRIPrep on it, and give the folder of its output."
        raise ValueError(
            f"{root} is a BIDS data set before preprocessing: its images cannot be used as they are.{hint}"
        )
    return None


def _choose_atlas(names: list[str], wanted: Sequence[str]) -> tuple[list[str] | None, str]:
    """Names of the tables' atlases that are taken, `None` where the setting `atlas` decides; and words about it.

    Raises:
        ValueError: the atlas that is wanted is not there.
    """
    known = {name: find_atlas(name) for name in names}
    if wanted:
        for each in wanted:
            target = find_atlas(each)
            if not any(name.casefold() == each.casefold() or (target and known[name] == target) for name in names):
                raise ValueError(
                    f"There are no tables of the atlas {each}: choose with --atlas among {', '.join(names)}."
                )
        return None, f"Taken: {', '.join(wanted)}."
    if len(names) == 1:
        return names, f"Their atlas is {names[0]}."
    sizes = {name: found.num_regions for name, found in known.items() if found is not None}
    tables = {name for name, found in known.items() if found is not None and found.has_table}
    best = min(names, key=lambda name: (name not in tables, abs(sizes.get(name, 10**6) - USUAL_REGIONS), name))
    return [best], f"Of the atlases {', '.join(names)}, {best} is taken; another one: --atlas NAME."


def _holds_derivatives(folder: Path) -> bool:
    return any(folder.glob("sub-*/**/*_desc-preproc_bold.nii*")) or any(
        "seg" in BIDSFile.of(path).entities for suffix in SUFFIXES for path in folder.glob(f"sub-*/**/*_{suffix}.tsv")
    )


def _nested(folder: Path) -> list[Path]:
    """Folders inside that hold folders of subjects, or prepared data."""
    found = {path.parent for depth in ("*/", "*/*/") for path in folder.glob(f"{depth}sub-*") if path.is_dir()}
    found |= {path.parent for depth in ("*/", "*/*/") for path in folder.glob(f"{depth}{FC_DEFINITION}")}
    return sorted(found)


def _require_level(path: Path) -> None:
    """Refuse a folder above or inside the one that is meant.

    Raises:
        ValueError: it is one; the message names the other.
    """
    whole = path.resolve()
    for level in (whole, *whole.parents[:2]):
        if level.name.startswith("sub-") and level.is_dir():
            raise ValueError(f"{path} is the folder of one subject: give the folder of all, {level.parent}.")
    inside = [folder for folder in _nested(path) if (folder / FC_DEFINITION).is_file() or _holds_derivatives(folder)]
    if len(inside) == 1:
        raise ValueError(f"{path} holds no scans itself. Is {inside[0]} meant?")
    if inside:
        named = ", ".join(map(str, inside[:4]))
        raise ValueError(f"{path} holds several folders with scans: give one of {named} as --input.")


def _folder_of_scans(folder: Path, participants: str) -> Recognised:
    files = scans_in(folder)
    if participants:
        files = [file for file in files if file.resolve() != Path(participants).resolve()]
    table_path, files = find_table(folder, files, participants)
    regions, files = find_regions(files)
    named = {} if regions is None else {"regions": str(regions)}
    archives = [file for file in files if file.suffix.lower() == ".npz"]
    if len(archives) == 1 and len(files) == 1:
        found = _file(archives[0], str(table_path))
        return replace(found, settings=found.settings | named, words=found.words + _words_of(regions))
    if not files:
        edges = find_edges(read_table(table_path))
        if edges is not None:
            return _file(table_path, participants)
        raise FileNotFoundError(
            f"{folder} holds no scans beside the table {table_path.name}: there should be time series or FC matrices "
            "(.tsv .csv .txt .npy .npz .mat .1D), images (.nii.gz), or folders sub-* of fMRIPrep or XCP-D."
        )
    table = read_table(table_path)
    pattern, column, session = find_pattern(folder, files, table, table_path)
    kind = _kind_of_pattern(pattern)
    settings = {kind: pattern, "participants": str(table_path), "subject_column": column} | named
    if session is None:
        repeated = table[column].duplicated().any()
        session = next((name for name in SESSION_COLUMNS if name in table.columns), None) if repeated else None
    if session is not None:
        settings["session_column"] = session
    words = f"{folder} holds {_NAMES[kind]}, one file a scan ({pattern}); the table is {table_path}."
    words += _words_of(regions)
    return Recognised(kind, words, settings)


def _words_of(regions: Path | None) -> str:
    return "" if regions is None else f" {regions.name} names the regions."
