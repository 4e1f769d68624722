"""README.md of a data set: what is in it, from whom, under which terms; the card of the Hub."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from modeling_lcm import FCFeatureExtractor

from .data import FC_DEFINITION, is_phenotype
from .files import write_text


COHORTS_FILE = "cohorts.json"


def write_card(
    folder: Path,
    quality: dict[str, Any],
    extractor: FCFeatureExtractor,
    table: pd.DataFrame,
    parquet: bool,
    has_series: bool = False,
) -> None:
    """Write `README.md`, and the folder `parquet/` with a copy of the small files.

    Args:
        folder (`Path`): the data set, with its JSON files.
        quality (`dict`): content of quality.json.
        extractor (`FCFeatureExtractor`): FC definition.
        table (`pd.DataFrame`): one row per scan.
        parquet (`bool`): whether there will be Parquet files.
        has_series (`bool`): whether time series are stored.
    """
    cohorts = json.loads((folder / COHORTS_FILE).read_text(encoding="utf-8"))
    text = card_text(quality, cohorts, extractor, table, has_series)
    write_text(folder / "README.md", text)
    if parquet:
        (folder / "parquet").mkdir()
        write_text(folder / "parquet" / "README.md", text)
        write_text(folder / "parquet" / FC_DEFINITION, (folder / FC_DEFINITION).read_text(encoding="utf-8"))


def card_text(
    quality: dict[str, Any],
    cohorts: list[dict[str, Any]],
    extractor: FCFeatureExtractor,
    table: pd.DataFrame,
    has_series: bool,
) -> str:
    """The card in Markdown, with the metadata that the Hub reads on top."""
    # No `configs`: with them `datasets` caches every local folder of one name as the same data set.
    metadata = {
        "pretty_name": quality["title"],
        "license": "other",
        "license_name": "cohort-terms",
        "license_details": "The terms of the cohorts; see below.",
        "tags": ["fMRI", "connectome", "functional-connectivity", "neuroimaging"],
    }
    excluded = quality["excluded"]
    lines = [
        "---", yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True).strip(), "---", "",
        f"# {quality['title']}", "",
        f"{quality['scans']} fMRI scans of {quality['subjects']} people as functional connectivity, with phenotypes. "
        "Research use. Nobody may try to identify a participant.", "",
        "## Cohorts and terms", "",
        "| cohort | scans | people | terms of use |", "| --- | --- | --- | --- |",
        *(
            f"| {_cell(cohort['title'] or cohort['dataset'])} | {cohort['scans']} | {cohort['subjects']} | "
            f"{_cell(cohort['terms']) or 'not stated: ask who gave you the data'} |"
            for cohort in cohorts
        ),
        "",
        *(f"- {cohort['citation']} {cohort['url']}".rstrip() for cohort in cohorts if cohort["citation"]), "",
        "## Functional connectivity", "",
        f"- Atlas: {extractor.atlas}, {extractor.num_regions} regions"
        + (f", fingerprint of their order `{extractor.region_fingerprint}`." if extractor.region_names else "."),
        f"- Estimator: {extractor.estimator}, over the whole scan, plain r (no Fisher z), diagonal 1.",
        "- `connectivity`: upper triangle without the diagonal, row by row (`numpy.triu_indices(regions, k=1)`), "
        "float16. Regions without signal have correlation 0.",
        *(["- `time_series`: `volumes` times regions, row by row, float16, every region of mean 0 and deviation 1."]
          if has_series else []),
        "",
        "## Columns", "",
        "| column | recorded | values |", "| --- | --- | --- |",
        *(f"| {name} | {table[name].notna().sum()} of {len(table)} | {_values(table[name])} |"
          for name in table.columns if is_phenotype(name)),
        "",
        "`qc_mean_fd` (mm), `qc_volumes`, `qc_missing_regions`, `qc_mean_fc` and `qc_homotopic` describe quality.", "",
        "## Quality", "",
        f"{len(excluded)} scans were left out, {sum(item['by_rule'] for item in excluded)} of them by rule"
        f" ({', '.join(f'{name} {value}' for name, value in quality['rules'].items())}).",
        *([f"**{quality['order_warning']}**"] if quality["order_warning"] else []), "",
    ]  # fmt: skip
    return "\n".join(lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _values(column: pd.Series) -> str:
    if pd.api.types.is_numeric_dtype(column):
        return f"{column.min():.4g} to {column.max():.4g}" if column.notna().any() else ""
    counts = column.value_counts()
    shown = ", ".join(f"{_cell(str(label))} ({count})" for label, count in counts.head(12).items())
    return shown + (f", ... ({len(counts)} in all)" if len(counts) > 12 else "")
