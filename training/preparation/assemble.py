"""Finished scans -> the data set folder: exclusion rules, duplicates, statistics, report and card."""

import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from modeling_lcm import FCFeatureExtractor
from modeling_lcm.bei_vocabulary import BEIVariable

from ..data.cohort import PREFIX
from ..data.dataset_folder import QUALITY
from ..data.duplicates import find_duplicates
from ..data.labels import data_set_labels
from ..data.triangles import count_edges
from ..storage.files import write_folder
from .agreement import check_agreement
from .content import Content, to_write, write_dataset
from .phenotypes import Cleaned
from .quality import (
    HOMOTOPIC_ORDER,
    Rules,
    Statistics,
    coverage_text,
    low_coverage,
    shift_against,
)
from .recipes import Recipe
from .report import Pictures
from .shards import FinishedScans
from .sources.base import Source


ORDER_NOT_CHECKED = "order of regions not checked"
_OTHER_COUNT = re.compile(r"has (\d+ regions \([^)]*\)), but this processor is for")
MEASURES = ("mean_fd", "volumes", "missing_regions", "mean_fc", "homotopic")


@dataclass(frozen=True)
class Excluded:
    """A scan that is not in the data set.

    Args:
        place (`str`): file, subject and row.
        reason (`str`): why.
        by_rule (`bool`): whether a rule of the user's or the recipe's asked for it.
    """

    place: str
    reason: str
    by_rule: bool


@dataclass(frozen=True)
class PreparedCohort:
    """Everything but the scans.

    Args:
        recipe (`Recipe`): description and terms.
        table (`pd.DataFrame`): table to store, one row per scan of the source.
        cleaned (`Cleaned`): problems and remarks of the phenotypes.
        source (`Source`): places and settings.
        extractor (`FCFeatureExtractor`): FC definition.
        rules (`Rules`): exclusion rules.
        excluded (`list[Excluded]`): scans left out before reading.
        settings (`dict`): settings of the run.
        positive (`dict[str, str]`): declared positive labels, by variable.
        others (`tuple[FCFeatureExtractor, ...]`): FC definitions of further atlases.
    """

    recipe: Recipe
    table: pd.DataFrame
    cleaned: Cleaned
    source: Source
    extractor: FCFeatureExtractor
    rules: Rules
    excluded: list[Excluded]
    settings: dict[str, Any]
    positive: dict[str, str]
    others: tuple[FCFeatureExtractor, ...] = ()


def assemble(
    output: Path,
    cohort: PreparedCohort,
    scans: FinishedScans,
    rows: list[int],
    work: Path,
    reference: str | None = None,
    parquet: bool = True,
) -> Path:
    """Write the data set and remove the work folder.

    Args:
        output (`Path`): folder of the data set.
        cohort (`PreparedCohort`): everything but the scans.
        scans (`FinishedScans`): their values and measures.
        rows (`list[int]`): row of the table of every finished scan.
        work (`Path`): work folder.
        reference (`str`, *optional*): data set whose FC this one's is compared with.
        parquet (`bool`): also write Parquet files.

    Raises:
        ValueError: no scan is left, or the disk is full.
    """
    table, excluded = _with_measures(cohort, scans, rows), list(cohort.excluded)
    edges = [count_edges(extractor) for extractor in (cohort.extractor, *cohort.others)]
    by_atlas = [scans.in_atlas(number, edges) for number in range(len(edges))] if cohort.others else [scans]
    scans = by_atlas[0]
    kept = []
    for number, (row, record) in enumerate(zip(rows, scans.records, strict=True)):
        measures = record | {"mean_fd": _number(table["qc_mean_fd"].iloc[number])}
        reason = record.get("error") or cohort.rules.reason(measures)
        if reason is None:
            kept.append(number)
        else:
            excluded.append(Excluded(cohort.source.places[row], reason, "error" not in record))
            continue
        for extractor, part in zip((cohort.extractor, *cohort.others), by_atlas, strict=True):
            if (error := part.record_of(number).get("error")) is not None:
                excluded.append(Excluded(cohort.source.places[row], f"in the atlas {extractor.atlas}: {error}", False))
    if all("error" in record for part in by_atlas for record in part.records):
        shutil.rmtree(work, ignore_errors=True)  # nothing to go on with: other settings may be tried at once
    _require_scans(kept, excluded)
    subjects = table["subject_id"].astype(str)
    statistics = _statistics(scans, kept)
    pairs = find_duplicates(
        lambda: scans.triangles(kept), subjects.iloc[kept].tolist(), statistics.mean, cohort.rules.duplicate_r
    )
    places = [cohort.source.places[row] for row in rows]
    doubles = [(kept[first], kept[second], r) for first, second, r in pairs]
    if cohort.rules.duplicates == "drop" and doubles:
        for first, second, r in doubles:
            if second in kept:
                kept.remove(second)
                text = f"its FC is near-identical (r = {r:.3f}) with that of {places[first]}"
                excluded.append(Excluded(places[second], text, True))
        statistics = _statistics(scans, kept)
    table = table.iloc[kept].reset_index(drop=True)
    pictures = Pictures(table, cohort.extractor, statistics.mean)
    pictures.add(filled(part, statistics.mean) for part in scans.triangles(kept))
    quality = _quality(cohort, scans, kept, table, excluded, [(places[a], places[b], r) for a, b, r in doubles])
    quality["motion"] = pictures.motion_verdict()
    if reference is not None:
        quality["shift"] = shift_against(reference, statistics, cohort.extractor.region_fingerprint)
    keep_series = cohort.settings["keep_time_series"]
    if cohort.others:
        quality["remarks"] += _compare(cohort, by_atlas, kept, [places[number] for number in kept])
    others = tuple(
        (extractor, to_write(part, kept, keep_series, f"_{extractor.atlas}"))
        for extractor, part in zip(cohort.others, by_atlas[1:], strict=True)
    )
    content = Content(
        table, to_write(scans, kept, keep_series), cohort.extractor, statistics, pictures,
        quality, [cohort_record(cohort, table)], vocabulary_of(cohort), parquet, others,
    )  # fmt: skip
    write_folder(output, lambda folder: write_dataset(folder, content))
    shutil.rmtree(work)
    return output


def filled(triangles: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Triangles with the mean where a scan lacks the atlas."""
    return np.where(np.isnan(triangles), mean.astype(np.float16), triangles)


def _compare(cohort: PreparedCohort, by_atlas: list[FinishedScans], kept: list[int], places: list[str]) -> list[str]:
    """Remarks about scans that lack an atlas, or whose atlases seem to be of different scans.

    Raises:
        ValueError: two atlases are of other scans altogether.
    """
    atlases = [str(extractor.atlas) for extractor in (cohort.extractor, *cohort.others)]
    remarks = check_agreement(atlases, [partial(part.triangles, kept) for part in by_atlas], places)
    unlike = []
    for place, number in zip(places, kept, strict=True):
        volumes = {part.record_of(number).get("volumes") for part in by_atlas} - {None}
        unlike += [place] if len(volumes) > 1 else []
    if unlike:
        remarks.append(f"{len(unlike)} scans have other numbers of volumes in one atlas than in another: {unlike[0]}")
    return remarks


def _with_measures(cohort: PreparedCohort, scans: FinishedScans, rows: list[int]) -> pd.DataFrame:
    """The table of the finished scans, with a column for every measure."""
    table = cohort.table.iloc[rows].reset_index(drop=True)
    for name in MEASURES:
        values = pd.Series([record.get(name) for record in scans.records], dtype="float64")
        # What the file says goes before what the table says.
        table[PREFIX + name] = values.combine_first(table[PREFIX + name]) if PREFIX + name in table else values
    phenotypes = [name for name in table.columns if not name.startswith(PREFIX)]
    return table[[*phenotypes, *(PREFIX + name for name in MEASURES)]]


def _number(value: float) -> float | None:
    return None if pd.isna(value) else float(value)


def _require_scans(kept: list[int], excluded: list[Excluded]) -> None:
    if not kept:
        raise ValueError(
            f"No scan can be used, of {len(excluded)}; the first is {excluded[0].place}: {excluded[0].reason}"
        )


def _statistics(scans: FinishedScans, kept: list[int]) -> Statistics:
    statistics = Statistics(scans.edges)
    for part in scans.triangles(kept):
        statistics.add(part)
    return statistics


def _quality(
    cohort: PreparedCohort,
    scans: FinishedScans,
    kept: list[int],
    table: pd.DataFrame,
    excluded: list[Excluded],
    duplicates: list[tuple[str, str, float]],
) -> dict[str, Any]:
    """Content of quality.json."""
    names = cohort.extractor.region_names
    silent = Counter(region for number in kept for region in scans.records[number].get("silent", ()))
    remarks = Counter(remark for number in kept for remark in scans.records[number].get("remarks", ()))
    where = cohort.settings.get("participants") or cohort.settings.get("bids") or "the table"
    return {
        "title": cohort.recipe.title or Path(cohort.settings["output"]).name,
        "scans": len(table),
        "subjects": int(table["subject_id"].nunique()),
        "excluded": [{"scan": item.place, "reason": item.reason, "by_rule": item.by_rule} for item in excluded],
        "unusable_values": [
            f"{where}, line {item.line}, column {item.column!r}: {item.reason}" for item in cohort.cleaned.problems
        ],
        "questions": cohort.cleaned.questions,
        "labels": data_set_labels(table, cohort.positive),
        "remarks": [
            *cohort.source.remarks,
            *cohort.cleaned.remarks,
            *(f"{count} files: {text}" for text, count in remarks.items()),
            *other_atlases(excluded),
        ],
        "duplicates": [{"first": first, "second": second, "r": round(r, 4)} for first, second, r in duplicates],
        "regions_without_signal": {
            str(region) if names is None else names[region]: count for region, count in silent.most_common(10)
        },
        "low_coverage": low_coverage([scans.records[number] for number in kept], names),
        "order_warning": order_warning(table),
        "region_order": region_order(cohort.extractor, [bool(scans.records[n].get("named")) for n in kept]),
        "rules": {name: value for name, value in vars(cohort.rules).items() if value is not None},
        "reading": cohort.source.settings,
    }


def other_atlases(excluded: list[Excluded]) -> list[str]:
    """Scans that were left out because they have the regions of another atlas, counted by number of regions."""
    found = Counter(match[1] for item in excluded if (match := _OTHER_COUNT.search(item.reason)))
    return [
        f"{count} scans have {regions}: the input mixes atlases; prepare them on their own with their --atlas"
        for regions, count in found.most_common()
    ]


def region_order(extractor: FCFeatureExtractor, named: list[bool]) -> str:
    """How it is known which row of the matrix is which region.

    Args:
        extractor (`FCFeatureExtractor`): FC definition.
        named (`list[bool]`): whether names or label values told the regions of each scan.
    """
    atlas = extractor.atlas
    if extractor.region_names is None:
        return f"{ORDER_NOT_CHECKED}: neither the files nor a table of {atlas} name them"
    if all(named):
        return "order of regions known by the names, or label values, that came with every scan"
    those = "the files do" if not any(named) else f"{len(named) - sum(named)} of {len(named)} scans do"
    return f"order of regions taken to be that of {atlas}: {those} not name them"


def order_warning(table: pd.DataFrame) -> str | None:
    """What homotopic connections say about the order of the regions, if it looks wrong."""
    values = table["qc_homotopic"].dropna()
    if values.empty or values.median() >= HOMOTOPIC_ORDER:
        return None
    return (
        f"Left and right counterparts are not the strongly connected regions that they are in every brain: they beat "
        f"{values.median():.0%} of the edges (usual: about 90 %, by chance 50 %). The regions are probably in another "
        "order than the atlas's, or hemispheres are mixed up."
    )


def vocabulary_of(cohort: PreparedCohort) -> list[BEIVariable]:
    """The recipe's variables, with the positive labels of the settings."""
    return [
        replace(variable, positive=cohort.positive.get(variable.name, variable.positive))
        for variable in cohort.recipe.variables
    ]


def cohort_record(cohort: PreparedCohort, table: pd.DataFrame) -> dict[str, Any]:
    """What stays known of a cohort when it is merged with others."""
    recipe = cohort.recipe
    return {
        "dataset": recipe.name or Path(cohort.settings["output"]).name,
        "title": recipe.title, "terms": recipe.terms, "url": recipe.url, "citation": recipe.citation,
        "scans": len(table), "subjects": int(table["subject_id"].nunique()),
        "settings": {name: value for name, value in cohort.settings.items() if value not in (None, "", [])},
        "reading": cohort.source.settings, "positive": cohort.positive,
    }  # fmt: skip


def summary_of(folder: str | Path) -> tuple[str, int]:
    """What a run did, for the terminal, and how many scans and values were dropped without a rule, or need a word."""
    quality = json.loads((Path(folder) / QUALITY).read_text(encoding="utf-8"))
    ruled = [item for item in quality["excluded"] if item["by_rule"]]
    unruled = [item for item in quality["excluded"] if not item["by_rule"]]
    lines = [f"{quality['scans']} scans of {quality['subjects']} subjects written to {folder}"]
    lines += [f"{len(ruled)} scans left out by rule"] if ruled else []
    lines += _first(f"{len(unruled)} scans could not be used:", [f"{i['scan']}: {i['reason']}" for i in unruled])
    lines += _first(
        f"{len(quality['unusable_values'])} values could not be used and are missing:", quality["unusable_values"]
    )
    lines += _first("Please confirm:", quality["questions"])
    lines += _first("Labels:", quality["labels"])
    lines += _first(
        "Near-identical FC of different subjects:",
        [f"{i['first']} and {i['second']} (r = {i['r']:.3f})" for i in quality["duplicates"]],
    )
    lines += _first(
        "Regions with most of their voxels outside the field of view:",
        [f"{region}: {coverage_text(found)}" for region, found in quality.get("low_coverage", {}).items()],
    )
    lines += [f"Warning: {quality['order_warning']}"] if quality["order_warning"] else []
    order = quality.get("region_order", "")
    lines += [f"Warning: {order}; name them with --regions TABLE"] if order.startswith(ORDER_NOT_CHECKED) else []
    lines += [f"Against {quality['shift']['reference']}: {quality['shift']['verdict']}"] if "shift" in quality else []
    lines += [*quality["remarks"], f"Report: {Path(folder) / 'quality.html'}"]
    return "\n".join(lines), len(unruled) + len(quality["unusable_values"]) + len(quality["questions"])


def _first(title: str, items: list[str], most: int = 10) -> Iterator[str]:
    if items:
        yield title
        yield from (f"  {item}" for item in items[:most])
        if len(items) > most:
            yield f"  ... and {len(items) - most} more; all are in {QUALITY}"
