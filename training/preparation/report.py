"""The quality report of a data set: one HTML file with pictures per site and every exclusion with its reason."""

from collections.abc import Iterable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_lcm import FCFeatureExtractor
from modeling_lcm.atlases import find_atlas, region_coordinates, region_names

from ..data.cohort import is_phenotype
from ..reporting.figures import COLOURS
from ..reporting.pages import render_page
from ..storage.files import write_text
from .quality import coverage_text


MOST_GROUPS = 12  # sites shown one by one; the smallest others are pooled
MOST_LABELS = 8  # a text column with more is no diagnosis
OTHERS = "(other sites)"
MOST_DOTS = 40  # scans of a site that are drawn as dots; more are a box
# Median |r| of edges with motion, in multiples of what chance gives: clean below the first, bad above the second.
MOTION_CLEAN, MOTION_STRONG = 1.3, 2.0
_FEWEST_FOR_CORRELATION = 10
_QUALITY = (
    ("mean_fd", "mean FD (mm)", 3),
    ("volumes", "volumes", 0),
    ("missing_regions", "regions without signal", 0),
    ("mean_fc", "mean FC", 3),
    ("homotopic", "homotopic order", 2),
)


class Pictures:
    """Sums that the pictures need, filled chunk by chunk.

    Args:
        table (`pd.DataFrame`): one row per scan, with quality columns.
        extractor (`FCFeatureExtractor`): atlas and region names.
        mean (`np.ndarray` of shape `(edges,)`): mean FC of all scans.
    """

    def __init__(self, table: pd.DataFrame, extractor: FCFeatureExtractor, mean: np.ndarray) -> None:
        self.table = table
        self.mean = mean
        self.extractor = extractor
        self.groups = site_of(table)
        self.names = self.groups.value_counts().index.tolist()
        displacement = table["qc_mean_fd"].to_numpy(dtype=float)
        self._moved = np.isfinite(displacement)
        self._displacement = np.where(self._moved, displacement, 0)
        if self._moved.any():
            self._displacement -= np.where(self._moved, displacement[self._moved].mean(), 0)
        self._sums = np.zeros((len(self.names), len(mean)), dtype=np.float64)
        self._product, self._sum, self._squares = np.zeros((3, len(mean)))

    def add(self, chunks: Iterable[np.ndarray]) -> None:
        """Add all scans `(scans, edges)` in the order of the table."""
        codes = self.groups.map({name: number for number, name in enumerate(self.names)}).to_numpy()
        start = 0
        for part in chunks:
            values = part.astype(np.float32)
            rows = slice(start, start + len(part))
            for code in np.unique(codes[rows]):
                self._sums[code] += values[codes[rows] == code].sum(axis=0, dtype=np.float64)
            moved = values[self._moved[rows]] - self.mean.astype(np.float32)
            self._product += self._displacement[rows][self._moved[rows]] @ moved
            self._sum += moved.sum(axis=0)
            self._squares += np.square(moved).sum(axis=0)
            start += len(part)

    def means(self) -> dict[str, np.ndarray]:
        """Mean triangle of every site."""
        counts = self.groups.value_counts()
        return {name: self._sums[number] / counts[name] for number, name in enumerate(self.names)}

    def motion_correlation(self) -> np.ndarray | None:
        """Correlation of every edge with mean FD over scans; `None` for fewer than 10 scans with known motion."""
        count = int(self._moved.sum())
        spread = np.sqrt((self._displacement**2).sum())
        if count < _FEWEST_FOR_CORRELATION or spread == 0:
            return None
        deviation = np.sqrt(np.maximum(self._squares - self._sum**2 / count, 1e-12))
        return self._product / (deviation * spread)

    def distances(self) -> np.ndarray | None:
        """Distance of the two regions of every edge in mm, for atlases whose coordinates are known."""
        known = find_atlas(self.extractor.atlas) if self.extractor.atlas else None
        places = None if known is None else region_coordinates(known)
        if known is None or places is None or self.extractor.region_names != region_names(known):
            return None
        rows, columns = np.triu_indices(len(places), k=1)
        return np.linalg.norm(places[rows] - places[columns], axis=1)

    def figures(self) -> dict[str, Figure]:
        """Pictures by caption; those whose data are not recorded are left out."""
        several = len(self.names) > 1
        drawn = {"Mean FC of every site" if several else "Mean FC of all scans": self._mean_matrices()}
        distances = self.distances()
        if distances is not None:
            alike = ", alike at every site" if several else ""
            drawn[f"FC and the distance between regions: it should fall{alike}"] = _by_distance(
                distances, self.means(), "mean FC (r)"
            )
        if self.table["qc_mean_fd"].notna().sum() >= _FEWEST_FOR_CORRELATION:
            drawn["Motion and mean FC of every scan"] = self._motion_scatter()
            figure = self._motion_edges(distances)
            figure.set_label(self.motion_verdict() or "Motion does not differ between scans.")
            drawn["Motion and every edge: well denoised data centre at 0"] = figure
        drawn |= self._subjects()
        if self.table["qc_homotopic"].nunique() > 1:
            drawn[
                "Left-right counterparts: share of edges that homotopic FC beats (about 0.9 in the right order of "
                "regions, 0.5 by chance)"
            ] = self._boxes("qc_homotopic", "homotopic order")
        return drawn

    def _mean_matrices(self) -> Figure:
        means = self.means()
        columns = min(4, len(means))
        rows = -(-len(means) // columns)
        figure = Figure(figsize=(2.4 * columns + 0.7, 2.5 * rows), layout="constrained")
        grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        limit = max(np.percentile(np.abs(mean), 99) for mean in means.values())
        image = None
        for axes, (name, mean) in zip(grid, means.items(), strict=False):
            image = axes.imshow(_matrix(mean), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
            axes.set_title(f"{name} (n = {(self.groups == name).sum()})", fontsize=8)
        for axes in grid:
            axes.set_axis_off()
        if image is not None:
            figure.colorbar(image, ax=grid.tolist(), shrink=0.6, label="r")
        return figure

    def _motion_scatter(self) -> Figure:
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.subplots()
        for number, name in enumerate(self.names):
            part = self.table[self.groups == name]
            axes.scatter(part["qc_mean_fd"], part["qc_mean_fc"], s=9, alpha=0.6, color=_colour(number), label=name)
        axes.set(xlabel="mean framewise displacement (mm)", ylabel="mean FC (r)")
        _legend(axes, len(self.names))
        return figure

    def _motion_edges(self, distances: np.ndarray | None) -> Figure:
        correlation = self.motion_correlation()
        figure = Figure(figsize=(7, 3), layout="constrained")
        if correlation is None:
            return figure
        if distances is None:
            axes = figure.subplots()
            axes.hist(correlation, bins=60, color=COLOURS[0])
        else:
            axes, other = figure.subplots(1, 2)
            axes.hist(correlation, bins=60, color=COLOURS[0])
            _draw_by_distance(other, distances, correlation, COLOURS[0], None)
            other.axhline(0, color="0.6", linewidth=1)
            other.set(xlabel="distance (mm)", ylabel="r of edge and motion")
        axes.axvline(0, color="0.6", linewidth=1)
        axes.set(xlabel=f"r of edge and motion (median {np.median(correlation):.2f})", ylabel="edges")
        return figure

    def motion_verdict(self) -> str | None:
        """Whether FC follows motion more than chance would have it; `None` where motion is not known or constant."""
        correlation = self.motion_correlation()
        if correlation is None:
            return None
        scans = int(self._moved.sum())
        median = float(np.median(np.abs(correlation)))
        chance = 0.6745 / np.sqrt(scans - 1)  # median of |r| without any relation
        shares = f"edges correlate with mean FD by |r| = {median:.2f} in the median, by chance {chance:.2f}"
        if median < MOTION_CLEAN * chance:
            return f"Motion leaves little trace in FC: {shares} ({scans} scans)."
        if median < MOTION_STRONG * chance:
            return f"Motion leaves a trace in FC: {shares} ({scans} scans). Compare the labels' motion first."
        return (
            f"Motion dominates differences in FC: {shares} ({scans} scans). Denoise more strongly (--confounds "
            "scrubbing), leave out scans that moved much (--max_mean_fd 0.5), or match the labels for motion."
        )

    def label_columns(self) -> list[str]:
        """Phenotypes with few labels, such as a diagnosis, by which quality is shown as well."""
        found = []
        for column in filter(is_phenotype, self.table.columns):
            labels = self.table[column].nunique()
            is_number = pd.api.types.is_numeric_dtype(self.table[column])
            if column != "site" and 0 < labels <= MOST_LABELS and not is_number:
                found.append(str(column))
        return found

    def sentences(self) -> list[str]:
        """What is the same for all scans, and needs no picture."""
        columns = {"age": "age", "qc_volumes": "volumes", "qc_missing_regions": "regions without signal"}
        columns |= {column: column for column in self.label_columns()}
        same = [
            f"{title} {self.table[name].dropna().iloc[0]:g}"
            if pd.api.types.is_numeric_dtype(self.table[name])
            else f"{title} {self.table[name].dropna().iloc[0]}"
            for name, title in columns.items()
            if name in self.table and self.table[name].nunique() == 1
        ]
        return [f"The same for all scans: {', '.join(same)}."] if same else []

    def _subjects(self) -> dict[str, Figure]:
        drawn = {}
        age = self.table.get("age")
        if age is not None and pd.api.types.is_numeric_dtype(age) and age.nunique() > 1:
            drawn["Age by site" if len(self.names) > 1 else "Age"] = self._boxes("age", "age (years)")
        if len(self.names) > 1:
            for column in self.label_columns():
                if self.table[column].nunique() > 1:
                    drawn[f"{column[:1].upper()}{column[1:]} by site"] = self._shares(column)
        return drawn

    def _boxes(self, column: str, label: str) -> Figure:
        """A box per site, or where a site has few scans its dots, which show more."""
        figure = Figure(figsize=(7, 0.9 + 0.3 * len(self.names)), layout="constrained")
        axes = figure.subplots()
        values = [self.table.loc[self.groups == name, column].dropna() for name in self.names]
        # Matplotlib before 3.10 knows `vert` only.
        lying = (
            {"orientation": "horizontal"} if "orientation" in signature(axes.boxplot).parameters else {"vert": False}
        )
        jitter = np.random.default_rng(0)
        for place, each in enumerate(values, start=1):
            if len(each) > MOST_DOTS:
                axes.boxplot([each], positions=[place], widths=0.6, flierprops={"markersize": 3}, **lying)
            elif len(each):
                heights = place + jitter.uniform(-0.18, 0.18, len(each))
                axes.scatter(each, heights, s=14, alpha=0.7, color=COLOURS[0], linewidths=0)
                axes.plot([each.median()] * 2, [place - 0.3, place + 0.3], color=COLOURS[1], linewidth=2)
        axes.set_yticks(range(1, len(values) + 1), self.names)
        axes.set_ylim(len(values) + 0.6, 0.4)
        axes.tick_params(axis="y", labelsize=8)
        axes.set(xlabel=label)
        axes.spines[["top", "right"]].set_visible(False)
        return figure

    def _shares(self, column: str) -> Figure:
        counts = pd.crosstab(self.groups, self.table[column].fillna("(not recorded)").astype(str)).loc[self.names]
        figure = Figure(figsize=(7, 1.1 + 0.3 * len(self.names)), layout="constrained")
        axes = figure.subplots()
        left = np.zeros(len(counts))
        for number, label in enumerate(counts.columns):
            axes.barh(counts.index, counts[label], left=left, color=_colour(number), label=label, height=0.7)
            left += counts[label].to_numpy()
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=8)
        axes.set(xlabel="scans")
        _legend(axes, len(counts.columns))
        return figure


def site_of(table: pd.DataFrame) -> pd.Series:
    """Site of every scan, with its data set in front if there are several; small sites pooled beyond 12."""
    several = "dataset" in table and table["dataset"].nunique() > 1
    dataset = table["dataset"].astype(str) if "dataset" in table else pd.Series("all scans", index=table.index)
    sites = dataset
    if "site" in table and table["site"].notna().any():
        recorded = table["site"].astype("string").fillna("(not recorded)").astype(str)
        sites = dataset + " " + recorded if several else recorded
        # A data set without sites is one place.
        sites = sites.where(table["site"].notna(), dataset) if several else sites
    frequent = sites.value_counts().index
    return sites if len(frequent) <= MOST_GROUPS else sites.where(sites.isin(frequent[: MOST_GROUPS - 1]), OTHERS)


def write_quality_report(path: Path, quality: dict[str, Any], pictures: Pictures) -> None:
    """Write the report as one self-contained HTML file.

    Args:
        path (`Path`): the file.
        quality (`dict`): content of quality.json.
        pictures (`Pictures`): filled with all scans.
    """
    groups = {"site": pictures.groups} if len(pictures.names) > 1 else {}
    groups |= {column: pictures.table[column] for column in pictures.label_columns()}
    tables = {column: group_table(pictures.table, values) for column, values in groups.items() if values.nunique() > 1}
    page = render_page(
        "quality.html",
        quality=quality,
        coverage={region: coverage_text(found) for region, found in quality.get("low_coverage", {}).items()},
        figures=pictures.figures(),
        sentences=pictures.sentences(),
        tables=tables or {"": group_table(pictures.table, pictures.groups)},
        atlas=pictures.extractor.atlas,
        regions=pictures.extractor.num_regions,
    )
    write_text(path, page)


def group_table(table: pd.DataFrame, groups: pd.Series) -> list[list[str]]:
    """Medians of the quality columns by site or label, the largest group first; columns without values are left out.

    Args:
        table (`pd.DataFrame`): one row per scan.
        groups (`pd.Series`): site or label of every scan; those without one are the last row.
    """
    known = [(f"qc_{name}", title, digits) for name, title, digits in _QUALITY if table[f"qc_{name}"].notna().any()]
    rows = [["", "scans", "subjects", *(title for _, title, _ in known)]]
    texts = groups.astype("string").fillna("(not recorded)")
    for value in texts.value_counts().index:
        part = table[(texts == value).to_numpy()]
        medians = [_median(part[name], digits) for name, _, digits in known]
        rows.append([str(value), str(len(part)), str(part["subject_id"].nunique()), *medians])
    return rows


def _median(values: pd.Series, digits: int) -> str:
    return "-" if values.isna().all() else f"{values.median():.{digits}f}"


def _matrix(triangle: np.ndarray) -> np.ndarray:
    regions = round((1 + np.sqrt(1 + 8 * len(triangle))) / 2)
    matrix = np.full((regions, regions), np.nan)
    rows, columns = np.triu_indices(regions, k=1)
    matrix[rows, columns] = matrix[columns, rows] = triangle
    return matrix


def _by_distance(distances: np.ndarray, means: dict[str, np.ndarray], label: str) -> Figure:
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axes = figure.subplots()
    for number, (name, mean) in enumerate(means.items()):
        _draw_by_distance(axes, distances, mean, _colour(number), name)
    axes.set(xlabel="distance (mm)", ylabel=label)
    _legend(axes, len(means))
    return figure


def _draw_by_distance(axes: Axes, distances: np.ndarray, values: np.ndarray, colour: Any, name: str | None) -> None:
    """Mean of the values in twenty bins of equally many edges."""
    order = np.argsort(distances)
    bins = np.array_split(order, 20)
    axes.plot([distances[b].mean() for b in bins], [values[b].mean() for b in bins], color=colour, label=name)


def _colour(number: int) -> Any:
    return COLOURS[number % len(COLOURS)]


def _legend(axes: Axes, entries: int) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if entries > 1:
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
