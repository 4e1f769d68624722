"""Several prepared cohorts -> one data set."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from modeling_lcm import BEITokenizer, FCFeatureExtractor
from modeling_lcm.bei_vocabulary import BEIVariable

from ..cli import load_yaml
from ..data.cohort import PREFIX, Cohort, load_cohort
from ..data.dataset_folder import COHORTS_FILE, QUALITY
from ..data.duplicates import find_duplicates
from ..data.identity import first_of_each, other_names, same_subject, scan_names
from ..data.labels import data_set_labels, load_vocabulary
from ..data.triangles import count_edges
from ..files import claim, file_name, write_folder
from .arguments import MergeArguments
from .assemble import order_warning
from .content import SERIES_CHUNK, VOCABULARY, Content, write_dataset
from .dataset_files import Scans
from .quality import Rules, Statistics, shift_against
from .report import Pictures
from .shards import CHUNK


@dataclass
class Part:
    """One of the cohorts.

    Args:
        name (`str`): the cohort.
        folder (`Path`): its data set.
        table (`pd.DataFrame`): one row per scan, ids made unique over cohorts.
        variables (`list[BEIVariable]`): its vocabulary; empty if none was declared.
        cohort (`Cohort`): its scans.
        positive (`dict[str, str]`): declared positive labels, by variable.
    """

    name: str
    folder: Path
    table: pd.DataFrame
    variables: list[BEIVariable]
    cohort: Cohort
    positive: dict[str, str]

    @property
    def extractor(self) -> FCFeatureExtractor:
        """Its FC definition."""
        return self.cohort.feature_extractor

    def triangles(self, chunk: int = CHUNK) -> Iterator[np.ndarray]:
        """FC of its scans, piece by piece."""
        for start in range(0, len(self.table), chunk):
            yield self.cohort.triangles[start : start + chunk]

    def series(self, chunk: int) -> Iterator[list[np.ndarray]]:
        """Time series of its scans, `(volumes * regions)` each, in pieces of as many scans; empty without one."""
        for start in range(0, len(self.table), chunk):
            rows = np.arange(start, min(start + chunk, len(self.table)))
            found = self.cohort.time_series(rows)
            yield [np.empty(0, np.float16) if values is None else values.ravel() for values in found]


def merge(arguments: MergeArguments) -> list[Path]:
    """Merge prepared data sets.

    A person gets the id `COHORT/ID`; whom a cohort's columns `same_person_in_OTHER` declare the same has one id in all
    of them, so that every split by `subject_id` keeps both on one side. The original id is `cohort_subject_id`.

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
    if len(set(names)) < len(names):
        raise ValueError(f"Two inputs are the cohort {max(names, key=names.count)!r}; merge each cohort once.")
    aliases = load_yaml(arguments.aliases) if arguments.aliases else {}
    variables = _merge_vocabularies(parts, aliases)
    _agreed_positive(parts)
    _join_subjects(parts)
    groups: dict[str, list[Part]] = {}
    for part in parts:
        groups.setdefault(file_name(str(part.extractor.atlas)) if arguments.by_atlas else "", []).append(part)
    for group in groups.values():
        _check_fit(group)

    def fill(folder: Path) -> None:
        for name, group in groups.items():
            (folder / name).mkdir(exist_ok=True)
            content = _content(group, variables, arguments, f"{Path(arguments.output).name} {name}".strip())
            write_dataset(folder / name, content)

    write_folder(output, fill)
    return [output / name for name in groups]


def _open(folder: Path, prefix_sites: bool) -> Part:
    cohort = load_cohort(folder)
    records = json.loads((folder / COHORTS_FILE).read_text(encoding="utf-8"))
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
    return Part(name, folder, table, variables, cohort, dict(cohort.positive))


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


def _check_fit(parts: list[Part]) -> None:
    """FC of all parts must be of the same regions in the same order, computed the same way, and columns alike."""
    first = parts[0]
    for part in parts[1:]:
        for key, (theirs, mine) in first.extractor.differences(part.extractor).items():
            if key == "region_names":
                raise ValueError(
                    f"{first.name} and {part.name} have other region names, or another order of them (fingerprints "
                    f"{theirs} and {mine}): prepare both with the same table of regions."
                )
            raise ValueError(
                f"{first.name} and {part.name} do not fit together: {key} is {theirs!r} and {mine!r}. Prepare both "
                "alike" + (", or keep atlases apart with --by_atlas true." if key in ("atlas", "num_regions") else ".")
            )
        for name in set(part.table.columns) & set(first.table.columns):
            kinds = [
                pd.api.types.is_numeric_dtype(p.table[name]) for p in (first, part) if p.table[name].notna().any()
            ]
            if len(set(kinds)) > 1:
                raise ValueError(
                    f"The column {name!r} holds numbers in one of {first.name} and {part.name} and text in the other; "
                    "rename one with --phenotypes or in its recipe."
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
    extractor = parts[0].extractor

    def triangles() -> Iterator[np.ndarray]:
        for part in parts:
            yield from part.triangles()

    statistics = Statistics(count_edges(extractor))
    for chunk in triangles():
        statistics.add(chunk)
    pictures = Pictures(table, extractor, statistics.mean)
    pictures.add(triangles())
    doubles = find_duplicates(triangles, table["subject_id"].tolist(), statistics.mean, Rules().duplicate_r)
    quality = _merged_quality(parts, table, title, doubles)
    if several := int((table.groupby("subject_id")["dataset"].nunique() > 1).sum()):
        quality["remarks"].append(f"{several} subjects are in two cohorts and have one subject_id")
    if arguments.reference is not None:
        quality["shift"] = shift_against(arguments.reference, statistics, extractor.region_fingerprint)
    records = [
        json.loads((part.folder / COHORTS_FILE).read_text(encoding="utf-8"))[0] | {"positive": part.positive}
        for part in parts
    ]
    scans = _scans(parts, statistics.edges)
    return Content(table, scans, extractor, statistics, pictures, quality, records, variables, arguments.parquet)


def _scans(parts: list[Part], edges: int) -> Scans:
    """Scans of all parts as they are written; time series if a part has them."""
    has_series = any(part.cohort.has_time_series for part in parts)
    chunk = SERIES_CHUNK if has_series else CHUNK

    def triangles() -> Iterator[np.ndarray]:
        return chain.from_iterable(part.triangles(chunk) for part in parts)

    if not has_series:
        return Scans(edges, triangles)
    volumes = [count for part in parts for count in part.cohort.volumes()]
    return Scans(edges, triangles, lambda: chain.from_iterable(part.series(chunk) for part in parts), volumes)


def _merged_quality(
    parts: list[Part], table: pd.DataFrame, title: str, doubles: list[tuple[int, int, float]]
) -> dict[str, Any]:
    each = {part.name: json.loads((part.folder / QUALITY).read_text(encoding="utf-8")) for part in parts}
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
