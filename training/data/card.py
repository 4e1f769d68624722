"""README.md of a data set: what is in it, from whom, under which terms; beside the data and on the Hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from modeling_lcm import FCFeatureExtractor

from ..reporting.plain import markdown_text
from ..reporting.tables import table_markdown
from ..storage.files import write_text
from .cohort import RECORD_COLUMNS, SCAN_COLUMNS
from .dataset_folder import FC_DEFINITION, FURTHER_ATLASES
from .identity import SAME_PERSON
from .triangles import count_edges


IDENTIFIERS = {*SCAN_COLUMNS, *RECORD_COLUMNS} - {"dataset"}
MOST_LABELS = 20  # more different values are counted, not named: they may be identifiers


def write_card(folder: Path, title: str, description: str, parquet: bool) -> None:
    """Write `README.md`, and the folder `parquet/` with a copy of the small files.

    Args:
        folder (`Path`): the data set, with its FC definition.
        title (`str`): its title.
        description (`str`): by [`describe_dataset`].
        parquet (`bool`): whether there will be Parquet files.
    """
    # No `configs`: with them `datasets` caches every local folder of one name as the same data set.
    metadata = {
        "pretty_name": title,
        "license": "other",
        "license_name": "cohort-terms",
        "license_details": "The terms of the cohorts; see below.",
        "tags": ["fMRI", "connectome", "functional-connectivity", "neuroimaging"],
    }
    header = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    text = f"---\n{header}---\n\n# {markdown_text(title)}\n\n{description}"
    write_text(folder / "README.md", text)
    if parquet:
        (folder / "parquet").mkdir()
        write_text(folder / "parquet" / "README.md", text)
        write_text(folder / "parquet" / FC_DEFINITION, (folder / FC_DEFINITION).read_text(encoding="utf-8"))


def describe_dataset(
    quality: dict[str, Any],
    cohorts: list[dict[str, Any]],
    extractors: Sequence[FCFeatureExtractor],
    table: pd.DataFrame,
    has_series: bool,
) -> str:
    """What a data set folder tells of itself, in Markdown: size, cohorts and terms, FC, columns, quality.

    Args:
        quality (`dict`): content of quality.json.
        cohorts (`list[dict]`): content of cohorts.json.
        extractors (`Sequence[FCFeatureExtractor]`): FC definition of every atlas.
        table (`pd.DataFrame`): one row per scan.
        has_series (`bool`): whether time series are stored.
    """
    excluded = quality["excluded"]
    rules = markdown_text(", ".join(f"{name} {value}" for name, value in quality["rules"].items()))
    parts = [
        f"{quality['scans']} fMRI scans of {quality['subjects']} subjects as functional connectivity, with "
        "phenotypes. Research use. No attempt may be made to identify a participant.",
        "## Cohorts and terms",
        _cohort_table(cohorts),
        "\n".join(
            f"- {markdown_text(entry['citation'])} {markdown_text(entry['url'])}".rstrip()
            for entry in cohorts
            if entry["citation"]
        ),
        "## Functional connectivity",
        "\n".join(_fc_lines(extractors[0], has_series, quality.get("region_order"))),
        "\n".join(_further_lines(extractors[1:])),
        "## Columns",
        _column_table(table),
        "`qc_mean_fd` (mm), `qc_volumes`, `qc_missing_regions`, `qc_mean_fc` and `qc_homotopic` describe quality.",
        "## Quality",
        f"{len(excluded)} scans were left out, {sum(item['by_rule'] for item in excluded)} of them by rule ({rules}).",
        f"**{markdown_text(quality['order_warning'])}**" if quality["order_warning"] else "",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _cohort_table(cohorts: list[dict[str, Any]]) -> str:
    rows = [
        [
            entry["title"] or entry["dataset"],
            str(entry["scans"]),
            str(entry["subjects"]),
            entry["terms"] or "not stated: ask who gave you the data",
        ]
        for entry in cohorts
    ]
    return table_markdown([["cohort", "scans", "subjects", "terms of use"], *rows])


def _fc_lines(extractor: FCFeatureExtractor, has_series: bool, region_order: str | None) -> list[str]:
    regions = extractor.num_regions
    order = f", fingerprint of their order `{extractor.region_fingerprint}`" if extractor.region_names else ""
    lines = [
        f"- Atlas: {markdown_text(extractor.atlas)}, {regions} regions{order}; `{FC_DEFINITION}` has the settings of "
        "the `FCFeatureExtractor`.",
        *([f"- Regions: {markdown_text(region_order)}."] if region_order else []),
        f"- Estimator: {extractor.estimator}, over the whole scan, plain r (no Fisher z), diagonal 1.",
        f"- `connectivity`: the {count_edges(extractor)} values above the diagonal, row by row "
        "(`numpy.triu_indices(regions, k=1)`), float16. Regions without signal have correlation 0.",
    ]
    if has_series:
        lines.append(
            "- `time_series`: `volumes` times regions, row by row, float16, every region of mean 0 and deviation 1."
        )
    return lines


def _further_lines(extractors: Sequence[FCFeatureExtractor]) -> list[str]:
    return [
        f"- `connectivity_{each.atlas}`: the same scans in {each.num_regions} regions of {each.atlas}, likewise "
        f"(definition in `{FURTHER_ATLASES}`); NaN where a scan lacks this atlas."
        for each in extractors
    ]


def _column_table(table: pd.DataFrame) -> str:
    rows = [
        [name, f"{column.notna().sum()} of {len(table)}", _values(name, column)]
        for name, column in ((name, table[name]) for name in table.columns)
    ]
    return table_markdown([["column", "recorded", "values"], *rows])


def _values(name: str, column: pd.Series) -> str:
    """Counts of labels, or range of numbers."""
    if name in IDENTIFIERS or name.startswith(SAME_PERSON):
        return "identifier"
    if column.notna().any() and pd.api.types.is_numeric_dtype(column):
        return f"{column.min():.4g} to {column.max():.4g}, mean {column.mean():.4g}"
    if column.nunique() > MOST_LABELS:
        return f"{column.nunique()} different values"
    return ", ".join(f"{label}: {count}" for label, count in column.value_counts().items())
