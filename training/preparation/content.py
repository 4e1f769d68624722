"""What a data set folder holds, and writing it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from modeling_lcm import BEITokenizer, FCFeatureExtractor
from modeling_lcm.bei_vocabulary import BEIVariable

from ..data.card import describe_dataset, write_card
from ..data.dataset_folder import COHORTS_FILE, FC_DEFINITION, FURTHER_ATLASES, QUALITY
from ..storage.files import write_json
from ..storage.manifest import seal
from .dataset_files import Scans, write_arrow, write_parquet
from .quality import STATISTICS, Statistics
from .report import Pictures, write_quality_report
from .shards import FinishedScans, disk_full_explained


VOCABULARY = "vocabulary"
SERIES_CHUNK = 32  # scans with time series that are copied at once: 100 kB to 1 MB each


@dataclass(frozen=True)
class Content:
    """Everything that a data set folder holds.

    Args:
        table (`pd.DataFrame`): one row per scan.
        scans (`Scans`): FC and, if they are kept, time series.
        extractor (`FCFeatureExtractor`): FC definition.
        statistics (`Statistics`): of the FC.
        pictures (`Pictures`): of the report.
        quality (`dict`): content of quality.json.
        cohorts (`list[dict]`): content of cohorts.json.
        variables (`list[BEIVariable]`): the vocabulary; may be empty.
        parquet (`bool`): whether to write Parquet files too.
        others (`tuple[tuple[FCFeatureExtractor, Scans], ...]`): the same scans in further atlases.
    """

    table: pd.DataFrame
    scans: Scans
    extractor: FCFeatureExtractor
    statistics: Statistics
    pictures: Pictures
    quality: dict[str, Any]
    cohorts: list[dict[str, Any]]
    variables: list[BEIVariable]
    parquet: bool = True
    others: tuple[tuple[FCFeatureExtractor, Scans], ...] = ()


def to_write(scans: FinishedScans, kept: list[int], keep_series: bool, suffix: str = "") -> Scans:
    """The scans of a data set as they are written, in one atlas."""
    if not keep_series:
        return Scans(scans.edges, lambda: scans.triangles(kept), suffix=suffix)
    volumes = [scans.record_of(number).get("volumes") or 0 for number in kept]
    return Scans(
        scans.edges,
        lambda: scans.triangles(kept, SERIES_CHUNK),
        lambda: scans.series(kept, SERIES_CHUNK),
        volumes,
        suffix,
    )


def write_dataset(folder: Path, content: Content) -> None:
    """Write a data set into an empty folder.

    Raises:
        ValueError: the disk is full.
    """
    with disk_full_explained():
        scans = [content.scans, *(part for _, part in content.others)]
        write_arrow(folder, content.table, scans)
        content.extractor.to_json_file(folder / FC_DEFINITION)
        if content.others:
            write_json(folder / FURTHER_ATLASES, [extractor.to_dict() for extractor, _ in content.others])
        content.statistics.save(folder / STATISTICS, content.extractor.region_fingerprint)
        write_json(folder / QUALITY, content.quality)
        write_json(folder / COHORTS_FILE, content.cohorts)
        if content.variables:
            BEITokenizer(variables=content.variables).save_pretrained(folder / VOCABULARY)
            seal(folder / VOCABULARY)
        write_quality_report(folder / "quality.html", content.quality, content.pictures)
        has_series = content.scans.series is not None
        extractors = [content.extractor, *(extractor for extractor, _ in content.others)]
        description = describe_dataset(content.quality, content.cohorts, extractors, content.table, has_series)
        write_card(folder, content.quality["title"], description, content.parquet)
        if content.parquet:
            write_parquet(folder / "parquet", content.table, scans)
        seal(folder)
