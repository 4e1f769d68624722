"""Tables and the HTML page of an explanation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from modeling_lcm.atlases import ATLASES, region_coordinates

from ..data.cohort import Cohort
from ..reporting.figures import CONNECTIONS, plot_connections, plot_network_bars, plot_region_attention
from ..reporting.networks import networks_of
from ..reporting.pages import render_page
from ..reporting.plain import write_table
from ..storage.files import write_folder, write_json, write_text
from .association import SIGNIFICANT, STABLE, Explained, Maps


SHOWN_REGIONS = 15
CONNECTED = 20  # regions between which connections are drawn
METHOD_TITLES = {
    "mean": "mean over heads and layers",
    "rollout": "rollout: followed through the layers, mean over heads",
    "best_layer": "the layer that predicts the variable best, mean over heads",
}


def write_explanation(
    output: Path, arguments: Any, cohort: Cohort, found: Sequence[Explained], reads_edges: bool
) -> None:
    """Write `regions.tsv`, `networks.tsv` (where regions have networks), `summary.json` and `explanation.html`.

    Args:
        output (`Path`): new folder.
        arguments (`ExplainArguments`): what was asked for.
        cohort (`Cohort`): the data that were shown.
        found (`Sequence[Explained]`): one entry per token.
        reads_edges (`bool`): whether the model has an edge read-out, which no map shows.
    """
    names = cohort.feature_extractor.region_names
    shown = names or [f"region {index + 1}" for index in range(cohort.num_regions)]
    regions = pd.concat([_region_table(entry, shown) for entry in found], ignore_index=True)

    def fill(folder: Path) -> None:
        write_table(folder / "regions.tsv", regions, decimals=5)
        if networks_of(names) is not None:
            keys = ["variable", "token", "network", "hemisphere"]
            columns = [name for name in regions.columns if name.endswith(("attention", "correlation"))]
            networks = regions.groupby(keys, sort=False)[columns].mean().reset_index()
            write_table(folder / "networks.tsv", networks, decimals=5)
        write_json(folder / "summary.json", [_summary(entry) for entry in found])
        page = render_page(
            "explanation.html",
            source=_title_of(arguments, found),
            data=Path(arguments.data).name,
            method=METHOD_TITLES[arguments.method],
            permutations=arguments.permutations,
            stable=STABLE,
            reads_edges=reads_edges,
            sections=[_section(entry, arguments.method, cohort, regions) for entry in found],
        )
        write_text(folder / "explanation.html", page)

    write_folder(output, fill)


def _title_of(arguments: Any, found: Sequence[Explained]) -> str:
    """Name of the evaluation or checkpoint; what a folder called "checkpoint" predicts, or the data set, says more."""
    name = Path(arguments.evaluation or arguments.checkpoint).resolve().name
    if name != "checkpoint":
        return name
    variables = {entry.variable for entry in found}
    return variables.pop() if len(variables) == 1 else Path(arguments.data).resolve().name


def _region_table(entry: Explained, names: Sequence[str]) -> pd.DataFrame:
    """One row per region: attention (1 = even), correlation with the label, p and q, by method."""
    groups = networks_of(names)
    table = pd.DataFrame({"variable": entry.variable, "token": entry.token, "region": list(names)})
    if groups is not None:
        table["network"], table["hemisphere"] = zip(*groups, strict=True)
    for method, maps in entry.maps.items():
        columns = {f"{method}_attention": maps.mean}
        # The first group has the token's label (or the higher values), the second has not.
        for side, values in zip(("with_label", "without"), maps.by_class.values(), strict=False):
            columns[f"{method}_{side}_attention"] = values
        columns |= {f"{method}_correlation": maps.correlation, f"{method}_p": maps.p, f"{method}_q": maps.q}
        table = table.assign(**columns)
    return table


def _summary(entry: Explained) -> dict[str, Any]:
    return {
        "variable": entry.variable,
        "token": entry.token,
        "people": entry.people,
        "best_layers": [layer + 1 for layer in entry.best_layers],
        "compared": entry.compared,
        "methods": {
            method: {
                "regions_with_effect": int((maps.q < SIGNIFICANT).sum()),
                "map_stability": maps.mean_stability,
                "effect_stability": maps.effect_stability,
                "stable": bool(not _is_unstable(maps)),
            }
            for method, maps in entry.maps.items()
        },
    }


def _section(entry: Explained, method: str, cohort: Cohort, regions: pd.DataFrame) -> dict[str, Any]:
    """What the page shows of a token."""
    table = regions[regions["token"] == entry.token].sort_values(f"{method}_attention", ascending=False)
    maps = entry.maps[method]
    layers = sorted({layer + 1 for layer in entry.best_layers})
    return {
        "token": entry.token,
        "sentence": entry.sentence(method),
        "none": why_none(maps),
        "layers": ", ".join(map(str, layers)),
        "header": ["region", "attention (1 = even)", *maps.by_class, "correlation with the label", "q"],
        "rows": [
            [row["region"], f"{row[f'{method}_attention']:.2f}"]
            + [f"{maps.by_class[group][index]:.2f}" for group in maps.by_class]
            + [f"{row[f'{method}_correlation']:+.2f}", f"{row[f'{method}_q']:.3f}"]
            for index, row in zip(
                table.index[:SHOWN_REGIONS] - table.index.min(),
                table.head(SHOWN_REGIONS).to_dict("records"),
                strict=True,
            )
        ],
        "figures": _figures(entry, method, cohort),
    }


def _figures(entry: Explained, method: str, cohort: Cohort) -> dict[str, Figure]:
    """Maps, where there is one to rely on."""
    extractor, maps = cohort.feature_extractor, entry.maps[method]
    if why_none(maps) is not None:
        return {}
    coordinates = region_coordinates(extractor.atlas) if extractor.atlas in ATLASES else None
    drawn = {}
    if coordinates is not None:
        figure = plot_region_attention(maps.mean, coordinates, f"Attention of {entry.token}")
        drawn["Regions that the token reads; larger and darker means more (1 = even)"] = figure
        strongest = np.argsort(-maps.mean)[:CONNECTED]
        edges = np.zeros((cohort.num_regions, cohort.num_regions))
        edges[np.ix_(strongest, strongest)] = _connectivity_difference(entry, cohort)[np.ix_(strongest, strongest)]
        versus = f"{entry.label} minus others" if entry.label else "upper minus lower half"
        caption = (
            f"Connectivity between the {CONNECTED} regions that are read most: {CONNECTIONS} largest differences. "
            "They are not tested: chance alone makes some of them large."
        )
        drawn[caption] = plot_connections(edges, coordinates, f"Difference in mean FC, {versus}")
    if extractor.region_names is not None and networks_of(extractor.region_names) is not None:
        drawn["By network or lobe; dots are regions"] = plot_network_bars(maps.mean, extractor.region_names)
    for caption, figure in drawn.items():
        figure.set_label(f"{caption}. {entry.sentence(method)}")
    return drawn


def _is_unstable(maps: Maps) -> bool:
    return min(maps.mean_stability, maps.effect_stability) < STABLE


def why_none(maps: Maps) -> str | None:
    """Why no map is drawn; `None` for a stable one with regions whose attention goes with the label beyond chance."""
    reasons = []
    if _is_unstable(maps):
        lowest = min(maps.mean_stability, maps.effect_stability)
        reasons.append(f"it is not stable (r {lowest:.2f}, {STABLE} is needed)")
    if not (maps.q < SIGNIFICANT).any():
        reasons.append("attention to no region goes with the label beyond chance")
    return f"No map is drawn: {' and '.join(reasons)}." if reasons else None


def _connectivity_difference(entry: Explained, cohort: Cohort) -> np.ndarray:
    """Mean FC of the scans with the label minus that of the others, `(regions, regions)`."""
    means = []
    for wanted in (True, False):
        # Scans are numbered as in the data set, of which the cohort holds those in one atlas.
        scans = cohort.table.index.get_indexer(entry.scans[entry.has_label == wanted])
        total = np.zeros((cohort.num_regions,) * 2)
        for start in range(0, len(scans), 256):
            total += cohort.connectivity(scans[start : start + 256]).sum(0)
        means.append(total / max(1, len(scans)))
    return means[0] - means[1]
