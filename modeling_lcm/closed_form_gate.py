"""How far a variable's read-out compares scans with their site: chosen by leaving out whole sites of the training."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .closed_form import (
    SOFT_BELOW,
    Array,
    Channel,
    Edges,
    Fit,
    Target,
    WeightedRidge,
    agreement,
    fit_ridge,
)
from .closed_form_sites import Relative, Sites


GATES = (0.0, 0.5, 0.8)
SITE_RELATIVE = ("never", "auto", "always")
LEAST_AT_SITE = 8  # scans from which a site can say something
LEAST_SITES = 3  # of such sites
TIE = 0.003  # AUC that a larger gate has to gain
NUMBER_TIE = 0.02  # r, of numbers, which differ between sites for good reasons


def fit_with_sites(
    edges: Edges, target: Target, sites: Sites | None, site_relative: str = "never"
) -> tuple[Fit, Relative | None]:
    """Fit without a prior, and choose how far scans are compared with their sites.

    Gates are compared by the scans of left-out sites, whose means are taken without their labels.

    Args:
        edges (`Edges`): of the training scans.
        target (`Target`): what is predicted.
        sites (`Sites`, *optional*): of these scans.
        site_relative (`str`): "never"; "auto": gate 0 unless another one gains more than a tie and a standard error
            over sites (numbers: clearly more); "always": the best of the others, or the first of them where there are
            too few sites to compare.

    Returns:
        The fit, whose settings have `site_gate` and the scores of `left_out_sites` by gate (AUC or r within them); and
        the comparison with sites, None at gate 0.

    Raises:
        ValueError: another `site_relative`, or "always" without any site.
    """
    if site_relative not in SITE_RELATIVE:
        raise ValueError(f"site_relative must be one of {', '.join(SITE_RELATIVE)}, got {site_relative!r}.")
    alone = fit_ridge(edges, target)
    if site_relative == "never":
        return alone, None
    sites = Sites.make([]) if sites is None else sites
    if site_relative == "always" and not sites.names:
        raise ValueError('site_relative is "always", but no site of the training scans is recorded: give the sites.')
    compared, shares = _compare(edges, target, sites, alone) if sites.names else ({}, np.array([]))
    gate = _choose(compared, shares, target.is_class, site_relative)
    scores = {each: float(shares @ of_sites) for each, of_sites in compared.items()}
    said: dict[str, Any] = {
        "site_gate": gate,
        "left_out_sites": {f"{each:g}": score for each, score in scores.items()},
    }
    relative = _relative(sites, gate, target)
    if relative is None:
        return replace(alone, settings=alone.settings | said), None
    found = fit_ridge(edges, target, relative=relative)
    return replace(found, settings=found.settings | said), relative


def _choose(compared: dict[float, Array], shares: Array, is_class: bool, site_relative: str) -> float:
    """The smallest gate that no larger one beats by more than a tie and more than chance."""
    allowed = [gate for gate in GATES if gate or site_relative == "auto"]
    best = allowed[0]
    tie, errors = (TIE, 1) if is_class else (NUMBER_TIE, 2)
    for gate in allowed[1:] if compared else []:
        gains = compared[gate] - compared[best]
        mean = float(shares @ gains)
        error = float(np.sqrt((shares**2 @ (gains - mean) ** 2) * len(gains) / (len(gains) - 1)))
        if mean > max(tie, errors * error):
            best = gate
    return best


def _relative(sites: Sites, gate: float, target: Target) -> Relative | None:
    is_second = target.values > 0 if target.is_class else None
    return Relative.make(sites, gate, target.groups, is_second) if gate else None


def _compare(edges: Edges, target: Target, sites: Sites, alone: Fit) -> tuple[dict[float, Array], Array]:
    """AUC, or r, within every left-out site, by gate, and the sites' shares of the scans; none if there are too few.

    Within sites, because over all of them the share of patients at each site would count, which says nothing of the
    next one.
    """
    scored = [scans for scans in sites.scans() if len(scans) >= LEAST_AT_SITE and np.ptp(target.values[scans])]
    sizes = np.array([len(scans) for scans in scored], dtype=np.float64)
    if len(target) < SOFT_BELOW or len(scored) < LEAST_SITES:
        return {}, sizes
    found = {}
    for gate in GATES:
        values = left_out_of_sites(edges, target, sites, alone, _relative(sites, gate, target))
        found[gate] = np.array([_agreement(target, values, scans) for scans in scored])
    return found, sizes / sizes.sum()


def _agreement(target: Target, values: Array, scans: NDArray[np.int64]) -> float:
    """AUC or r of some scans."""
    truth, given = target.values[scans], values[scans]
    if target.is_class:
        return (agreement(given[truth > 0], given[truth < 0]) + 1) / 2
    return float(np.corrcoef(truth, given)[0, 1]) if np.ptp(given) else 0.0


def left_out_of_sites(edges: Edges, target: Target, sites: Sites, alone: Fit, relative: Relative | None) -> Array:
    """Values `(n,)` by fits without the scan's site; 0 for scans without one."""
    channel = Channel(int(alone.settings["shrinkage"]), bool(alone.settings["standardised"]))
    kernel = products = edges.kernel(channel)
    if relative is not None:
        kernel, products = relative.kernels(kernel)
    fit = WeightedRidge(kernel, target.case_weights).shrunk(float(alone.settings["penalty"]))
    values = np.zeros(len(target))
    for scans in sites.scans():
        others = np.flatnonzero(np.isin(target.groups, target.groups[scans]))  # a subject's scans at other sites, too
        values[scans] = fit.without(target.values, products, scans, others)
    return values
