"""One table for all scans: a row per scan, with phenotypes and a column for every edge."""

import re
from collections.abc import Callable, Sequence
from math import isqrt
from pathlib import Path

import numpy as np
import pandas as pd

from modeling_lcm.triangles import find_layout

from .archives import ArchiveSource
from .layout import find_regions_of_files
from .regions import Regions
from .tables import read_table
from .text import FileArray


_FEWEST_REGIONS = 5
_LOOKED_AT = 50  # rows that tell what a column is
# What stands between the two regions in an edge's name.
_BETWEEN = ("~", "<->", "--", "__", "_to_", "_vs_", "_and_", "|", ":", ";", " - ", "-", ".")


def find_edges(table: pd.DataFrame) -> list[str] | None:
    """Columns of a table that are the edges of a connectome; `None` if there are none.

    They stand side by side, hold numbers from -1 to 1 that are not all whole, and are as many as a triangle of a
    matrix has without its diagonal.

    Args:
        table (`pd.DataFrame`): text, one row per scan.
    """
    some = table.iloc[:_LOOKED_AT]
    best: list[str] = []
    run: list[str] = []
    for name in [*map(str, table.columns), ""]:
        if name and _holds_correlations(some[name]):
            run.append(name)
            continue
        best, run = max(best, run, key=len), []
    return best if _regions_of(len(best)) is not None else None


def _holds_correlations(column: pd.Series) -> bool:
    numbers = pd.to_numeric(column, errors="coerce")
    given = numbers.dropna()
    if given.empty or len(given) < column.notna().sum():
        return False
    return bool((given.abs() <= 1).all() and not (given == given.round()).all())


def _regions_of(edges: int) -> int | None:
    regions = (1 + isqrt(1 + 8 * edges)) // 2
    return regions if regions >= _FEWEST_REGIONS and regions * (regions - 1) // 2 == edges else None


def edge_source(
    path: Path, table: pd.DataFrame, whose: Callable[[int], str], regions: Regions, triangle: str | None = None
) -> ArchiveSource:
    """Open a table of edges.

    Args:
        path (`Path`): the table with the edges; phenotypes may stand in it, too.
        table (`pd.DataFrame`): the table of phenotypes, text, one row per scan, in the same order.
        whose (`Callable`): names subject and line of a row.
        regions (`Regions`): order and number of regions that are wanted, as far as the settings say.
        triangle (`str`, *optional*): declared order of the edges, "upper" or "lower", where no names tell it.

    Raises:
        ValueError: no column holds edges, the tables have other rows, or edges of unknown order.
    """
    content = read_table(path)
    edges = find_edges(content)
    if edges is None:
        raise ValueError(
            f"{path} has no columns of edges: needed are as many neighbouring columns of correlations as a triangle "
            "of the matrix has without its diagonal (116 regions: 6670)."
        )
    if len(content) != len(table):
        raise ValueError(
            f"{path} has {len(content)} rows, the table of phenotypes {len(table)}: give one table with both, or "
            "matrices as one file per scan."
        )
    values = content[edges].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    names, layout = region_pairs(edges), None
    if names is None:
        try:
            layout = find_layout(values, triangle, regions.num_regions)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        array, own = values, None
    else:
        array, own = _matrices(values, *names), names[0]
    place = f"{path} ({whose(0)})"
    return ArchiveSource(
        table=table.drop(columns=[name for name in edges if name in table.columns]),
        places=[f"{path} ({whose(row)})" for row in range(len(table))],
        arrays=[array],
        positions=list(range(len(table))),
        kind="connectivity",
        regions=find_regions_of_files({place: FileArray(array[0], own, own)}, "connectivity", regions, layout),
        names=own,
        layout=layout,
        paths=[path],
    )


def region_pairs(edges: Sequence[str]) -> tuple[list[str], np.ndarray] | None:
    """The regions that the names of edges are made of, such as "Insula_L~Insula_R"; `None` if they are not.

    Returns:
        Names of the regions in the order in which they first occur, and the two regions of every edge `(edges, 2)`.
    """
    count = _regions_of(len(edges))
    for sign in _BETWEEN:
        pairs = [re.split(re.escape(sign), name) for name in edges]
        if any(len(pair) != 2 for pair in pairs):
            continue
        names = list(dict.fromkeys(region.strip() for pair in pairs for region in pair))
        position = {name: number for number, name in enumerate(names)}
        ends = np.array([[position[region.strip()] for region in pair] for pair in pairs])
        different = len({frozenset(pair) for pair in ends.tolist()}) == len(edges) and (ends[:, 0] != ends[:, 1]).all()
        if len(names) == count and different:
            return names, ends
    return None


def _matrices(values: np.ndarray, names: Sequence[str], ends: np.ndarray) -> np.ndarray:
    """Symmetric matrices `(scans, regions, regions)` of edges `(scans, edges)`, diagonal 1."""
    matrices = np.ones((len(values), len(names), len(names)))
    matrices[:, ends[:, 0], ends[:, 1]] = matrices[:, ends[:, 1], ends[:, 0]] = values
    return matrices
