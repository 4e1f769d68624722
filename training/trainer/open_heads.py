"""Closed-form read-outs of many cohorts in several atlases: pooled by atlas, subjects of two cohorts known as one."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from modeling_lcm import BEIVariable, FCFeatureExtractor
from modeling_lcm.bei_vocabulary import as_variables
from modeling_lcm.closed_form_heads import Scans
from modeling_lcm.closed_form_model import SHRINKAGES, Heads, fit_heads
from modeling_lcm.config_checks_lcm import SEPARATOR
from modeling_lcm.edges_lcm import log_edges

from ..command_line.settings import load_yaml
from ..data.cohort import load_cohort
from ..data.identity import other_names, same_subject, scan_names


NAMES = "qc_names"  # of a scan's subject in all cohorts; dropped before anything is written


@dataclass(frozen=True)
class Pool:
    """Scans of all cohorts.

    Args:
        table (`pd.DataFrame`): `cohort`, `site`, `name` (of the subject, with its cohort), `data_name` (with the name
            of the data set that it is in) and the variables' columns.
        subjects (`np.ndarray` of shape `(scans,)`): number of the subject, the same in all cohorts.
        rows (`dict[str, np.ndarray]`): positions of the scans that an atlas has, by atlas.
        edges (`dict[str, np.ndarray]`): log FC of these scans, `(their number, shrinkages, edges)`.
        connectivity (`dict[str, np.ndarray]`): their FC `(their number, regions, regions)`.
        extractors (`dict[str, FCFeatureExtractor]`): FC definition by atlas.
        variables (`list[BEIVariable]`): what is learnt; numbers are scaled on all scans.
    """

    table: pd.DataFrame
    subjects: NDArray[np.int64]
    rows: dict[str, NDArray[np.int64]]
    edges: dict[str, NDArray[np.float32]]
    connectivity: dict[str, NDArray[np.float32]]
    extractors: dict[str, FCFeatureExtractor]
    variables: list[BEIVariable]

    def edges_of(self, atlases: Sequence[str], rows: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """Log FC of some scans by atlas; NaN where a scan lacks it."""
        found = {}
        for name in atlases:
            of_atlas = self.edges[name]
            found[name] = np.full((len(rows), *of_atlas.shape[1:]), np.nan, dtype=np.float32)
            there = np.isin(rows, self.rows[name])
            found[name][there] = of_atlas[np.searchsorted(self.rows[name], rows[there])]
        return found

    def scans(self, variable: BEIVariable) -> Scans:
        """Labels of a variable, as they are learnt; NaN where none is recorded."""
        values = self.table[variable.name].to_numpy(float)
        values = values if variable.labels else variable.scaled(values)
        return Scans(values, self.subjects.tolist(), self.sites.tolist())

    @property
    def sites(self) -> pd.Series:
        """Site of every scan, with its cohort: sites of two cohorts may have one name."""
        return self.table["cohort"] + ":" + self.table["site"]


def load_pool(folder: str | Path, recipe: str | Path) -> Pool:
    """Read prepared data sets.

    Args:
        folder (`str` or `Path`): where the data sets of the recipe are.
        recipe (`str` or `Path`): YAML file of variables and cohorts; see training/configs/open/weights.yaml.

    Raises:
        FileNotFoundError: a data set is not there.
        ValueError: data sets of one atlas with different regions.
    """
    content = load_yaml(recipe)
    variables = as_variables({"name": name, **entry} for name, entry in content["variables"].items())
    tables: list[pd.DataFrame] = []
    measured = []
    extractors: dict[str, FCFeatureExtractor] = {}
    for cohort, entry in content["cohorts"].items():
        parts = [load_cohort(Path(folder) / name) for name in entry["data"]]
        keys = [list(zip(part.subjects, part.table["session"].astype(str), strict=True)) for part in parts]
        every = list(dict.fromkeys(key for of_part in keys for key in of_part))
        position = {key: row for row, key in enumerate(every)}
        start = sum(map(len, tables))
        found: pd.DataFrame | None = None
        for part, of_part in zip(parts, keys, strict=True):
            rows = np.array([position[key] for key in of_part])
            read = _read(part.table, cohort, entry, variables).set_axis(rows)
            found = read if found is None else found.combine_first(read)
            (atlas,) = part.atlases
            known = extractors.setdefault(atlas, part.feature_extractor)
            if known.region_fingerprint != part.feature_extractor.region_fingerprint:
                raise ValueError(f"{', '.join(entry['data'])}: the regions of {atlas} differ from another cohort's.")
            measured.append((atlas, start + rows, part.connectivity()))
        assert found is not None
        tables.append(found.sort_index())
    table = pd.concat(tables, ignore_index=True)
    positions, connectivity = {}, {}
    for atlas in sorted(extractors):
        together = np.concatenate([rows for name, rows, _ in measured if name == atlas])
        order = together.argsort()
        positions[atlas] = together[order]
        connectivity[atlas] = np.concatenate([each for name, _, each in measured if name == atlas])[order]
    edges = {atlas: log_edges(each, SHRINKAGES) for atlas, each in connectivity.items()}
    names = [(row, name) for row, of_scan in enumerate(table[NAMES]) for name in of_scan]
    subjects = same_subject(names, len(table))
    scaled = [_scaled(variable, table) for variable in variables]
    return Pool(
        table.drop(columns=NAMES),
        subjects,
        positions,
        edges,
        connectivity,
        {name: extractors[name] for name in edges},
        scaled,
    )


def _read(
    records: pd.DataFrame, cohort: str, entry: Mapping[str, Any], variables: Iterable[BEIVariable]
) -> pd.DataFrame:
    """What is known of a data set's scans, with labels as numbers."""
    records = records.reset_index(drop=True)
    certain = pd.Series(True, index=records.index)
    for column, values in (entry.get("only") or {}).items():
        certain &= records[column].isin(values)
    # The recipe's name of the cohort counts: a data set of one atlas has a name of its own.
    names = scan_names(records.drop(columns="dataset", errors="ignore"), cohort)
    others = other_names(records)
    site = records["site"].astype(str) if "site" in records else pd.Series("one", index=records.index)
    found = pd.DataFrame({"cohort": cohort, "site": site, "name": names})
    found["data_name"] = scan_names(records, cohort)
    found[NAMES] = [[name, *(other for row, other in others if row == index)] for index, name in enumerate(names)]
    for variable in variables:
        found[variable.name] = np.nan
        if variable.name not in records:
            continue
        values = records[variable.name].where(certain)
        if variable.labels:
            values = values.where(values.map(variable.knows, na_action="ignore").fillna(False).astype(bool))
        found[variable.name] = variable.parse(values.tolist(), lambda row: f"{cohort}, row {row}")
    return found


def _scaled(variable: BEIVariable, table: pd.DataFrame) -> BEIVariable:
    if variable.labels:
        return variable
    values = table[variable.name].dropna().to_numpy(float)
    values = np.log(values) if variable.log else values
    return BEIVariable(**{**vars(variable), "mean": float(values.mean()), "std": float(values.std())})


def fit_pool(pool: Pool, kept: NDArray[np.bool_] | None = None, site_relative: str = "never") -> Heads:
    """Read-outs of every variable from every atlas, and from every set of atlases that scans have in common.

    Args:
        pool (`Pool`): the scans.
        kept (`np.ndarray` of shape `(scans,)`, *optional*): mask of those that are fitted to; default: all.
        site_relative (`str`): whether scans are compared with their sites, see [`fit_with_sites`].
    """
    heads: Heads = {}
    for variable in pool.variables:
        scans = pool.scans(variable)
        labelled = np.isfinite(scans.values) if kept is None else np.isfinite(scans.values) & kept
        for atlases in _sharing({name: rows[labelled[rows]] for name, rows in pool.rows.items()}):
            rows = np.unique(np.concatenate([pool.rows[name] for name in atlases]))
            rows = rows[labelled[rows]]
            edges = pool.edges_of(atlases, rows)
            found = fit_heads(edges, scans.select(rows), variable, site_relative=site_relative)
            for key, of_key in found.items():
                heads.setdefault(key, {}).update(of_key)
    return heads


def _sharing(rows: Mapping[str, NDArray[np.int64]]) -> list[list[str]]:
    """Atlases that have scans, in groups that have some of them in common."""
    groups: list[tuple[set[str], set[int]]] = []
    for name, of_atlas in rows.items():
        found = {name}, set(of_atlas.tolist())
        if not found[1]:
            continue
        apart = []
        for group in groups:
            if group[1] & found[1]:
                found = found[0] | group[0], found[1] | group[1]
            else:
                apart.append(group)
        groups = [*apart, found]
    return [sorted(names) for names, _ in groups]


def evaluate_pool(pool: Pool, folds: int = 5, seed: int = 0, site_relative: str = "never") -> list[dict[str, Any]]:
    """Scores of subjects that a fit has not seen, by cohort: every subject is tested once.

    Args:
        pool (`Pool`): all scans.
        folds (`int`): parts that the subjects are dealt into.
        seed (`int`): of the deal.
        site_relative (`str`): as for [`fit_pool`].

    Returns:
        One row per read-out and cohort: `atlases`, `variable`, `cohort`, `scans`, and `auc` with `balanced_accuracy`,
        or `r` and `mae`.
    """
    subjects = np.unique(pool.subjects)
    dealt = np.random.default_rng(seed).permutation(len(subjects)) % folds
    part = dealt[np.searchsorted(subjects, pool.subjects)]
    sites = pool.sites.to_numpy()
    logits: dict[tuple[str, str], NDArray] = {}
    for fold in range(folds):
        for key, of_key in fit_pool(pool, part != fold, site_relative).items():
            atlases = key.split(SEPARATOR)
            tested = reduce(np.intersect1d, (pool.rows[name] for name in atlases))
            tested = tested[part[tested] == fold]
            edges = pool.edges_of(atlases, tested)
            for name, head in of_key.items():
                into = logits.setdefault((key, name), np.full((len(part), len(head.tokens)), np.nan))
                into[tested] = head.logits(edges, sites[tested].tolist())
    variables = {variable.name: variable for variable in pool.variables}
    rows = []
    for (key, name), values in sorted(logits.items()):
        truth = pool.table[name].to_numpy(float)
        for cohort in pool.table["cohort"].unique():
            known = np.isfinite(truth) & ~np.isnan(values[:, 0]) & (pool.table["cohort"] == cohort).to_numpy()
            scores = _scores(variables[name], truth[known], values[known])
            if scores is not None:
                rows.append({"atlases": key, "variable": name, "cohort": cohort, "scans": int(known.sum()), **scores})
    return rows


def _scores(variable: BEIVariable, truth: NDArray, logits: NDArray) -> dict[str, float] | None:
    """Scores of a variable in one cohort; None where they say nothing."""
    if not variable.labels:
        predicted = variable.values(logits[:, 0])
        if len(truth) < 10 or not np.ptp(truth):
            return None
        return {"r": float(np.corrcoef(predicted, truth)[0, 1]), "mae": float(np.abs(predicted - truth).mean())}
    counts = np.bincount(truth.astype(int), minlength=len(variable.labels))
    if counts.min() < 5:
        return None
    recalls = [(logits[truth == label].argmax(1) == label).mean() for label in range(len(counts))]
    ranked = pd.DataFrame(logits - logits.mean(1, keepdims=True)).rank().to_numpy()
    aucs = [
        (ranked[truth == label, label].sum() - count * (count + 1) / 2) / (count * (len(truth) - count))
        for label, count in enumerate(counts)
    ]
    return {"auc": float(np.mean(aucs)), "balanced_accuracy": float(np.mean(recalls))}
