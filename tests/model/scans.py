"""The scans of the FC tests: made-up signals of six regions, and NumPy's correlations."""

import numpy as np


NAMES = ["V1", "M1", "A1", "S1", "Insula", "Precuneus"]


def make_scan(rng, volumes=60, regions=6, mean=0.0):
    """Signals with a shared component, so that correlations are neither 0 nor 1."""
    return rng.standard_normal((volumes, regions)) + rng.standard_normal((volumes, 1)) + mean


def pearson(scan):
    """NumPy's correlations `(regions, regions)` of a scan `(volumes, regions)`."""
    return np.corrcoef(np.asarray(scan, dtype=np.float64).T)
