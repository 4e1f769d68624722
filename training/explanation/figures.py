"""Pictures of edge patterns: pairs of networks, and regions."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from ..reporting.figures import COLOURS, NETWORK_TITLES, WIDTH_INCHES, _tidy


MOST_REGIONS = 15


def plot_network_pairs(pairs: pd.DataFrame, significant: float) -> Figure:
    """How the score goes with FC between and within networks; a dot marks pairs that go with the label itself.

    Args:
        pairs: `first`, `second`, `pattern`, `label_r` and `q`, see [`Patterns`].
        significant: q below which a pair is marked.
    """
    names = list(dict.fromkeys([*pairs["first"], *pairs["second"]]))
    place = {name: number for number, name in enumerate(names)}
    values = np.full((len(names), len(names)), np.nan)
    for first, second, pattern in pairs[["first", "second", "pattern"]].itertuples(index=False):
        values[max(place[first], place[second]), min(place[first], place[second])] = pattern
    figure = Figure(figsize=(WIDTH_INCHES, 0.55 * len(names) + 1.6), layout="constrained")
    axes = figure.subplots()
    limit = max(float(np.nanmax(np.abs(values))), 1e-6)
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for row in pairs[pairs["q"] < significant].itertuples(index=False):
        low, high = sorted((place[row.first], place[row.second]))
        axes.scatter(low, high, s=16, color="black", linewidths=0)
    titles = [NETWORK_TITLES.get(name, name).replace("-\n", "").replace("\n", " ") for name in names]
    axes.set_xticks(range(len(names)), titles, rotation=40, ha="right", fontsize=9)
    axes.set_yticks(range(len(names)), titles, fontsize=9)
    _tidy(axes)
    figure.colorbar(image, ax=axes, shrink=0.8, label="r of mean log FC and score")
    return figure


def plot_region_shares(regions: pd.DataFrame) -> Figure:
    """The regions whose edges go most with the score; red where FC rises with it, blue where it falls.

    Args:
        regions: `region`, `share` and `pattern`, the largest share first.
    """
    shown = regions.head(MOST_REGIONS).iloc[::-1]
    figure = Figure(figsize=(WIDTH_INCHES, 0.26 * len(shown) + 0.9), layout="constrained")
    axes = figure.subplots()
    colours = [COLOURS[1] if value > 0 else COLOURS[0] for value in shown["pattern"]]
    axes.barh(shown["region"], 100 * shown["share"], color=colours, height=0.7)
    axes.axvline(100 / len(regions), color="0.4", linestyle="--", linewidth=1)
    axes.annotate("even", (100 / len(regions), 1.0), xycoords=("data", "axes fraction"), fontsize=8, ha="center")
    axes.tick_params(axis="y", labelsize=8)
    axes.set(xlabel="share of the pattern (%)")
    _tidy(axes)
    return figure
