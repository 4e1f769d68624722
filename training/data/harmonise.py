"""Harmonisation of FC across sites with ComBat, fitted on training scans only (package combatlearn)."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from modeling_lcm.connectivity import fisher_z

from .cohort import AtlasScans, Cohort


_FEWEST_SCANS = 3


def harmonise(cohort: Cohort, training: Cohort, column: str = "site") -> Cohort:
    """Remove differences in mean and spread of every edge between sites, as neuroComBat does.

    Location and scale of every site are estimated from the training scans; the test scans of these sites are corrected
    with them. Scans of other sites (leave-site-out) stay as they are: nothing is known of their site without looking
    at test data.

    Args:
        cohort (`Cohort`): all scans.
        training (`Cohort`): those of them that may be looked at.
        column (`str`): column with the site or scanner.

    Returns:
        The cohort with corrected FC, in memory and without time series.

    Raises:
        ImportError: combatlearn is not installed.
        ValueError: no such column, missing sites, or fewer than two sites among the training scans.

    Source: Fortin et al. 2018, NeuroImage, doi:10.1016/j.neuroimage.2017.11.024.
    """
    try:
        from combatlearn import ComBat
    except ImportError as error:
        raise ImportError(
            "Harmonisation needs combatlearn: run `pip install large-connectome-model[harmonise]`."
        ) from error
    table = cohort.table
    if column not in table or table[column].isna().any():
        raise ValueError(f"Harmonisation needs {column!r} for every scan; it is missing for some, or not in the data.")
    sites = table[column].astype(str).to_numpy()
    may_fit = table.index.isin(training.table.index)
    first, *others = (_corrected(part, sites, may_fit, column, ComBat) for part in cohort.by_atlas)
    # FC computed anew from time series would not be corrected.
    return replace(cohort, triangles=first.triangles, series=None, others=tuple(others))


def _corrected(part: AtlasScans, sites: np.ndarray, may_fit: np.ndarray, column: str, combat_of: Any) -> AtlasScans:
    """The scans in an atlas, corrected in memory; those without it stay NaN."""
    triangles = part.triangles[:].copy()
    here = ~np.isnan(triangles[:, 0])
    counts = pd.Series(sites[may_fit & here]).value_counts()
    known = counts.index[counts >= _FEWEST_SCANS]
    if len(known) < 2:
        raise ValueError(f"Harmonisation needs two sites with {_FEWEST_SCANS} training scans each, in {column!r}.")
    has_known_site = np.isin(sites, known) & here
    fitted, corrected = np.flatnonzero(may_fit & has_known_site), np.flatnonzero(has_known_site)
    z = pd.DataFrame(fisher_z(triangles.astype(np.float64)))
    combat = combat_of(pd.Series(sites), method="fortin")
    # Edges that do not vary (regions without signal throughout) have no scale to estimate.
    varying = np.flatnonzero(z.iloc[fitted].to_numpy().std(axis=0) > 0)
    combat.fit(z.iloc[fitted, varying])
    values = np.asarray(combat.transform(z.iloc[corrected, varying]))
    triangles[np.ix_(corrected, varying)] = np.tanh(values).astype(np.float16)
    return replace(part, triangles=triangles, series=None)
