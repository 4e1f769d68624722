"""Several prepared cohorts -> one data set."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from modeling_lcm import BEITokenizer, FCFeatureExtractor
from modeling_lcm.bei_vocabulary import BEIVariable
from modeling_lcm.loading_lcm import foreign_errors_named

from ..command_line.cli import load_yaml
from ..data.cohort import PREFIX, load_cohort
from ..data.dataset_folder import COHORTS_FILE, QUALITY, cohort_records
from ..data.duplicates import find_duplicates
from ..data.identity import first_of_each, other_names, same_subject, scan_names
from ..data.labels import data_set_labels, load_vocabulary
from ..data.triangles import count_edges
from ..storage.files import claim, file_name, read_json, write_folder
from .agreement import check_agreement
from .arguments import MergeArguments
from .assemble import filled, order_warning
from .content import SERIES_CHUNK, VOCABULARY, Content, write_dataset
from .dataset_files import Scans
from .parts import Part, join_atlases, look_alike
from .quality import Rules, Statistics, shift_against
from .report import Pictures
from .shards import CHUNK


_OF_AN_ATLAS = ("atlas", "num_regions", "region_names")  # what is another one in another atlas


def merge(arguments: MergeArguments) -> list[Path]:
    """Merge prepared data sets.

    A subject gets the id `COHORT/ID`; whom a cohort's columns `same_person_in_OTHER` declare the same has one id in
    all of them, so that every split by `subject_id` keeps both on one side. The original id is `cohort_subject_id`.
    Data sets of one cohort in different atlases become one cohort in several.

    Args:
        arguments (`MergeArguments`): what to merge.

    Returns:
        The data set's folder, or with `by_atlas` one per atlas.

    Raises:
        ValueError: fewer than two inputs, two of one name, FC that does not fit together, or contradicting labels.
    """
    with claim(arguments.output) as output:
        return _merge(arguments, output)


def _merge(arguments: MergeArguments, output: Path) -> list[Path]:
    if len(arguments.inputs) < 2:
        raise ValueError("Give at least two data sets: --inputs FOLDER FOLDER.")
    parts = [_open(Path(folder), arguments.prefix_sites) for folder in arguments.inputs]
    names = [part.name for part in parts]
    if not arguments.by_atlas:
        parts = join_atlases(parts)
        names = [part.name for part in parts]
    if len(set(names)) < len(names):
        raise ValueError(f"Two inputs are the cohort {max(names, key=names.count)!r}; merge each cohort once.")
    aliases = load_yaml(arguments.aliases) if arguments.aliases else {}
    variables = _merge_vocabularies(parts, aliases)
    _agreed_positive(parts)
    _join_subjects(parts)
    if len(parts) == 1:  # one cohort in several atlases: its subjects keep their ids
        whole = parts[0].table.assign(subject_id=parts[0].table["cohort_subject_id"])
        parts[0].table = whole.drop(columns=["cohort_subject_id", *([] if parts[0].is_named else ["dataset"])])
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(file_name(str(part.extractor.atlas)) if arguments.by_atlas else "", []).append(part)
    for group in groups.values():
        _check_fit(group, arguments.union)

    def fill(folder: Path) -> None:
        for name, group in groups.items():
            (folder / name).mkdir(exist_ok=True)
            content = _content(group, variables, arguments, f"{Path(arguments.output).name} {name}".strip())
            write_dataset(folder / name, content)

    write_folder(output, fill)
    return [output / name for name in groups]


def _open(folder: Path, prefix_sites: bool) -> Part:
    cohort = load_cohort(folder)
    records = cohort_records(folder)
    if not records:
        raise ValueError(f"{folder} does not record its cohort ({COHORTS_FILE}): make it again.")
    if len(records) != 1:
        raise ValueError(f"{folder} was merged already; merge its cohorts and the new ones in one step.")
    name = records[0]["dataset"]
    table = cohort.table.copy()
    table["dataset"] = name
    table["cohort_subject_id"] = table["subject_id"].astype(str)
    table["subject_id"] = name + "/" + table["cohort_subject_id"]
    for column in {"site", "scanner"} & set(table) if prefix_sites else ():
        table[column] = [None if pd.isna(place) else f"{name}/{place}" for place in table[column]]
    vocabulary = folder / VOCABULARY
    variables = load_vocabulary(vocabulary) if vocabulary.is_dir() else []
    return Part(name, [folder], table, variables, cohort, dict(cohort.positive), "dataset" in cohort.table)


def _merge_vocabularies(parts: list[Part], aliases: Mapping[str, Mapping[str, str]]) -> list[BEIVariable]:
    """One vocabulary; labels of the tables become its labels."""
    declared = [part.variables for part in parts if part.variables]
    variables = BEITokenizer.merge(declared, aliases).variables if declared else []
    spellings = {variable.name: variable.aliases for variable in variables if variable.kind == "categorical"}
    for part in parts:
        for name in set(part.table.columns) & {*spellings, *aliases}:
            table = spellings.get(name, dict(aliases.get(name, {})))
            part.table[name] = part.table[name].replace(table)
            if name in part.positive:
                part.positive[name] = table.get(part.positive[name], part.positive[name])
    return variables


def _agreed_positive(parts: list[Part]) -> dict[str, str]:
    """Positive labels of all cohorts, by variable."""
    agreed: dict[str, str] = {}
    for part in parts:
        for name, label in part.positive.items():
            if agreed.setdefault(name, label) != label:
                raise ValueError(
                    f"The cohorts disagree on the positive label of {name!r}, {agreed[name]!r} and {label!r}: prepare "
                    f"one of them again with --positive {name}=LABEL, or declare the two the same with --aliases."
                )
    return agreed


def _join_subjects(parts: list[Part]) -> None:
    """Give subjects who are in several cohorts one id, that in the first of these cohorts."""
    whole = pd.concat([part.table for part in parts], ignore_index=True)
    ids = whole["subject_id"].tolist()
    links = [*enumerate(map("id {}".format, ids)), *enumerate(map("name {}".format, scan_names(whole)))]
    links += [(scan, f"name {name}") for scan, name in other_names(whole)]
    joined = pd.Series(first_of_each(ids, same_subject(links, len(ids))))
    cohorts = whole.groupby(joined)["dataset"].transform("nunique")
    start = 0
    for part in parts:
        here = slice(start, start + len(part.table))
        # Sessions of one subject from two cohorts must differ.
        both = (cohorts[here] > 1).to_numpy()
        part.table.loc[both, "session"] = part.name + "-" + part.table.loc[both, "session"].astype(str)
        part.table["subject_id"] = joined[here].to_numpy()
        start = here.stop


def _check_fit(parts: list[Part], union: bool) -> None:
    """FC of all parts must be of the same regions in the same order, computed the same way, and columns alike.

    In a union, regions must be the same where the atlas is.
    """
    first = parts[0]
    known = {atlas: (first.name, extractor) for atlas, extractor in first.cohort.atlases.items()}
    for part in parts[1:]:
        shared = [(*known[atlas], each) for atlas, each in part.cohort.atlases.items() if atlas in known]
        if not shared and union:
            _require_same_fc(first.name, part.name, first.extractor, part.extractor, _OF_AN_ATLAS)
        # Without an atlas in common, the first ones say what differs.
        for name, mine, theirs in shared or [(first.name, first.extractor, part.extractor)] * (not union):
            _require_same_fc(name, part.name, mine, theirs)
        known = {atlas: (part.name, each) for atlas, each in part.cohort.atlases.items()} | known
        for name in set(part.table.columns) & set(first.table.columns):
            kinds = [
                pd.api.types.is_numeric_dtype(p.table[name]) for p in (first, part) if p.table[name].notna().any()
            ]
            if len(set(kinds)) > 1:
                raise ValueError(
                    f"The column {name!r} holds numbers in one of {first.name} and {part.name} and text in the other; "
                    "rename one with --phenotypes or in its recipe."
                )


def _require_same_fc(
    first: str, second: str, mine: FCFeatureExtractor, theirs: FCFeatureExtractor, may_differ: Sequence[str] = ()
) -> None:
    for key, (here, there) in mine.differences(theirs).items():
        if key in may_differ:
            continue
        if key == "region_names":
            raise ValueError(
                f"{first} and {second} have other region names, or another order of them (fingerprints {here} and "
                f"{there}): prepare both with the same table of regions."
            )
        ways_out = ", keep atlases apart with --by_atlas true, or put them side by side with --union true"
        raise ValueError(
            f"{first} and {second} do not fit together: {key} is {here!r} and {there!r}. Prepare both alike"
            f"{ways_out if key in _OF_AN_ATLAS else ''}."
        )


def _content(
    parts: list[Part],
    variables: list[BEIVariable],
    arguments: MergeArguments,
    title: str,
) -> Content:
    table = pd.concat([part.table for part in parts], ignore_index=True)
    quality_columns = [name for name in table.columns if name.startswith(PREFIX)]
    table = table[[name for name in table.columns if name not in quality_columns] + quality_columns]
    extractors: dict[str, FCFeatureExtractor] = {}
    for part in parts:
        extractors = part.cohort.atlases | extractors
    extractors = {name: extractors[name] for name in dict.fromkeys([*parts[0].cohort.atlases, *extractors])}
    extractor, *others = extractors.values()
    triangles = partial(_triangles, parts, extractor)
    statistics = Statistics(count_edges(extractor))
    for chunk in triangles():
        statistics.add(chunk)
    pictures = Pictures(table, extractor, statistics.mean)
    pictures.add(filled(chunk, statistics.mean) for chunk in triangles())
    doubles = find_duplicates(triangles, table["subject_id"].tolist(), statistics.mean, Rules().duplicate_r)
    with foreign_errors_named(f"The {QUALITY} of a data set is damaged, make it again"):
        quality = _merged_quality(parts, table, title, doubles)
    several = (table.groupby("subject_id")["dataset"].nunique() > 1).sum() if "dataset" in table else 0
    if several:
        quality["remarks"].append(f"{several} subjects are in two cohorts and have one subject_id")
    quality["remarks"] += look_alike(parts)
    if arguments.reference is not None:
        quality["shift"] = shift_against(arguments.reference, statistics, extractor.region_fingerprint)
    if others:
        every = [partial(_triangles, parts, each) for each in extractors.values()]
        quality["remarks"] += check_agreement(list(extractors), every, table["subject_id"].tolist())
    records = [cohort_records(part.folders[0])[0] | {"positive": part.positive} for part in parts]
    return Content(
        table, _scans(parts, extractor), extractor, statistics, pictures, quality, records, variables,
        arguments.parquet, tuple((each, _scans(parts, each, f"_{each.atlas}")) for each in others),
    )  # fmt: skip


def _triangles(parts: list[Part], extractor: FCFeatureExtractor, chunk: int = CHUNK) -> Iterator[np.ndarray]:
    """FC of all parts in an atlas, piece by piece; NaN for scans that lack it."""
    return chain.from_iterable(part.triangles(extractor, chunk) for part in parts)


def _scans(parts: list[Part], extractor: FCFeatureExtractor, suffix: str = "") -> Scans:
    """Scans of all parts in an atlas as they are written; time series if a part has them."""
    atlas = str(extractor.atlas)
    # Pieces have the same size in every atlas.
    every = [found for part in parts for found in part.cohort.by_atlas]
    chunk = SERIES_CHUNK if any(found.series is not None for found in every) else CHUNK
    triangles = partial(_triangles, parts, extractor, chunk)
    if not any(found.series is not None for found in every if found.id == atlas):
        return Scans(count_edges(extractor), triangles, suffix=suffix)
    volumes = [count for part in parts for count in part.volumes(atlas)]

    def series() -> Iterator[list[np.ndarray]]:
        return chain.from_iterable(part.series(atlas, chunk) for part in parts)

    return Scans(count_edges(extractor), triangles, series, volumes, suffix)


def _merged_quality(
    parts: list[Part], table: pd.DataFrame, title: str, doubles: list[tuple[int, int, float]]
) -> dict[str, Any]:
    each = {
        part.name if len(part.folders) == 1 else f"{part.name} ({folder.name})": read_json(folder / QUALITY)
        for part in parts
        for folder in part.folders
    }
    warnings = [f"{name}: {quality['order_warning']}" for name, quality in each.items() if quality["order_warning"]]
    silent = [quality["regions_without_signal"] for quality in each.values()]
    return {
        "title": title,
        "scans": len(table),
        "subjects": int(table["subject_id"].nunique()),
        "excluded": [item | {"scan": f"{name}: {item['scan']}"} for name, q in each.items() for item in q["excluded"]],
        "unusable_values": [f"{name}: {text}" for name, q in each.items() for text in q["unusable_values"]],
        "questions": [f"{name}: {text}" for name, q in each.items() for text in q.get("questions", [])],
        "labels": data_set_labels(table, _agreed_positive(parts)),
        "remarks": [f"{name}: {text}" for name, q in each.items() for text in q["remarks"]],
        "duplicates": [
            {"first": table["subject_id"][a], "second": table["subject_id"][b], "r": round(r, 4)}
            for a, b, r in doubles
        ],
        "regions_without_signal": {
            region: sum(counts.get(region, 0) for counts in silent)
            for region in dict.fromkeys(r for c in silent for r in c)
        },
        "low_coverage": _merged_coverage([quality.get("low_coverage", {}) for quality in each.values()]),
        "order_warning": " ".join(warnings) or order_warning(table),
        "region_order": "; ".join(dict.fromkeys(q["region_order"] for q in each.values() if "region_order" in q)),
        "rules": {f"{name}: {rule}": value for name, q in each.items() for rule, value in q["rules"].items()},
        "reading": {f"{name}: {key}": value for name, q in each.items() for key, value in q["reading"].items()},
    }


def _merged_coverage(parts: list[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """What `low_coverage` says of all cohorts together."""
    merged: dict[str, dict[str, float]] = {}
    for region, found in (item for part in parts for item in part.items()):
        before = merged.get(region, {"scans": 0, "least": 1.0, "most": 0.0})
        merged[region] = {
            "scans": before["scans"] + found["scans"],
            "least": min(before["least"], found["least"]),
            "most": max(before["most"], found["most"]),
        }
    return merged
