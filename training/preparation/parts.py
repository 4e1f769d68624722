"""The cohorts that are merged: each one's table and scans, in one atlas or, from several data sets, in several."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from modeling_lcm import FCFeatureExtractor
from modeling_lcm.bei_vocabulary import BEIVariable

from ..data.cohort import PREFIX, AtlasScans, Cohort
from ..data.identity import bare_ids
from ..data.triangles import StoredSeries, StoredTriangles, count_edges
from .shards import CHUNK


_MOST_COMMON = 0.5  # share of the smaller cohort's scans that two data sets must have in common to be one cohort


@dataclass
class Part:
    """One of the cohorts.

    Args:
        name (`str`): the cohort.
        folders (`list[Path]`): its data sets: one, or one for each atlas.
        table (`pd.DataFrame`): one row per scan, ids made unique over cohorts.
        variables (`list[BEIVariable]`): its vocabulary; empty if none was declared.
        cohort (`Cohort`): its scans.
        positive (`dict[str, str]`): declared positive labels, by variable.
        is_named (`bool`): whether a recipe names the cohort; otherwise its folder does.
    """

    name: str
    folders: list[Path]
    table: pd.DataFrame
    variables: list[BEIVariable]
    cohort: Cohort
    positive: dict[str, str]
    is_named: bool = False

    @property
    def extractor(self) -> FCFeatureExtractor:
        """Its FC definition, of its first atlas."""
        return self.cohort.feature_extractor

    def in_atlas(self, atlas: str) -> AtlasScans | None:
        """Its scans in an atlas; `None` if it has none."""
        return next((part for part in self.cohort.by_atlas if part.id == atlas), None)

    def triangles(self, extractor: FCFeatureExtractor, chunk: int = CHUNK) -> Iterator[np.ndarray]:
        """FC of its scans in an atlas, piece by piece; NaN where there is none."""
        found, edges = self.in_atlas(str(extractor.atlas)), count_edges(extractor)
        for start in range(0, len(self.table), chunk):
            size = min(chunk, len(self.table) - start)
            if found is None:
                yield np.full((size, edges), np.nan, np.float16)
            else:
                yield found.triangles[start : start + size]

    def series(self, atlas: str, chunk: int) -> Iterator[list[np.ndarray]]:
        """Time series of its scans, `(volumes * regions)` each, in pieces of as many scans; empty without one."""
        found = self.in_atlas(atlas)
        series = None if found is None else found.series
        for start in range(0, len(self.table), chunk):
            scans = np.arange(start, min(start + chunk, len(self.table)))
            values = [None] * len(scans) if series is None else series[scans]
            yield [np.empty(0, np.float16) if each is None else each.ravel() for each in values]

    def volumes(self, atlas: str) -> list[int]:
        """Volumes of its scans' time series in an atlas; 0 where there is none."""
        found = self.in_atlas(atlas)
        return [0] * len(self.table) if found is None or found.series is None else found.series.volumes()


def join_atlases(parts: Sequence[Part]) -> list[Part]:
    """Make one of data sets that are one cohort in different atlases.

    Args:
        parts (`Sequence[Part]`): the data sets.

    Returns:
        The cohorts, in the order of their first data sets.

    Raises:
        ValueError: two data sets of one cohort contradict each other in what they record of a subject.
    """
    groups: list[list[Part]] = []
    for part in parts:
        group = next((group for group in groups if _is_same_cohort(group, part)), None)
        if group is None:
            groups.append([part])
        else:
            group.append(part)
    return [group[0] if len(group) == 1 else _joined(group) for group in groups]


def _is_same_cohort(group: list[Part], part: Part) -> bool:
    if any({*each.cohort.atlases} & {*part.cohort.atlases} for each in group):
        return False
    first = group[0]
    if first.is_named and part.is_named:
        return first.name == part.name
    mine, theirs = ({*_keys(each)} for each in (first, part))
    return len(mine & theirs) > _MOST_COMMON * min(len(mine), len(theirs))


def look_alike(parts: Sequence[Part]) -> list[str]:
    """Remarks about cohorts of other names, without an atlas in common, most of whose scans have the same ids."""
    remarks = []
    for first, second in combinations(parts, 2):
        mine, theirs = ({*_keys(each)} for each in (first, second))
        shared = len(mine & theirs)
        if {*first.cohort.atlases} & {*second.cohort.atlases} or shared <= _MOST_COMMON * min(len(mine), len(theirs)):
            continue
        remarks.append(
            f"{first.name} and {second.name} have the ids of {shared} scans in common, and count as different "
            "subjects: if they are one cohort in two atlases, prepare both under one name and merge them again"
        )
    return remarks


def _keys(part: Part) -> list[tuple[str, str]]:
    """What tells the scans of a cohort apart: bare subject id and session."""
    sessions = part.table["session"].astype(str)
    return list(zip(bare_ids(part.table["cohort_subject_id"]), sessions, strict=True))


def _joined(group: list[Part]) -> Part:
    first = group[0]
    place: dict[tuple[str, str], int] = {}
    for part in group:
        for key in _keys(part):
            place.setdefault(key, len(place))
    table = pd.DataFrame(index=pd.RangeIndex(len(place)))
    scans: list[AtlasScans] = []
    for part in group:
        rows = np.array([place[key] for key in _keys(part)])
        own = part.table.set_axis(rows)
        _refuse_contradictions(table, own, first, part)
        table = table.combine_first(own) if len(table.columns) else own.reindex(table.index)
        positions = np.full(len(place), -1)
        positions[rows] = np.arange(len(rows))
        scans += [_at(each, positions) for each in part.cohort.by_atlas]
    order = list(dict.fromkeys(name for part in group for name in part.table.columns))
    table = table[order].assign(dataset=first.name)
    table["subject_id"] = first.name + "/" + table["cohort_subject_id"]
    main, *others = scans
    cohort = replace(
        first.cohort,
        table=table,
        triangles=main.triangles,
        series=main.series,
        others=tuple(others),
    )
    positive = {name: label for part in reversed(group) for name, label in part.positive.items()}
    variables = {variable.name: variable for part in reversed(group) for variable in part.variables}
    folders = [folder for part in group for folder in part.folders]
    return Part(first.name, folders, table, list(variables.values()), cohort, positive, first.is_named)


def _at(scans: AtlasScans, positions: np.ndarray) -> AtlasScans:
    """Scans at other positions; -1 stands for a scan that lacks the atlas."""
    if not isinstance(scans.triangles, StoredTriangles):
        raise TypeError("The scans of a data set lie on the disk.")
    return AtlasScans(
        scans.feature_extractor,
        scans.triangles.at(positions),
        None if not isinstance(scans.series, StoredSeries) else scans.series.at(positions),
    )


def _refuse_contradictions(table: pd.DataFrame, own: pd.DataFrame, first: Part, part: Part) -> None:
    common = [name for name in own.columns if name in table.columns and not name.startswith(PREFIX)]
    for name in common:
        if name in ("subject_id", "dataset", "cohort_subject_id"):
            continue
        before = table.loc[table.index.isin(own.index), name].dropna()
        both = before.index.intersection(own[name].dropna().index)
        mine, theirs = before.loc[both], own[name].loc[both]
        differ = mine.astype(str) != theirs.astype(str)
        if pd.api.types.is_numeric_dtype(mine) and pd.api.types.is_numeric_dtype(theirs):
            differ = ~pd.Series(np.isclose(mine, theirs), index=both)
        if differ.any():
            row = differ.index[differ][0]
            raise ValueError(
                f"{first.name} and {part.name} are one cohort in two atlases, but {name!r} of subject "
                f"{own['cohort_subject_id'].loc[row]} is {mine.loc[row]} in one and {theirs.loc[row]} in the other: "
                "prepare both from the same table."
            )
