"""Fixtures of the FC tests: made-up scans of six regions, NumPy's correlations, a processor."""

import numpy as np
import pytest

from modeling_lcm.feature_extraction_lcm import FCFeatureExtractor


NAMES = ["V1", "M1", "A1", "S1", "Insula", "Precuneus"]


def make_scan(rng, volumes=60, regions=6, mean=0.0):
    """Signals with a shared component, so that correlations are neither 0 nor 1."""
    return rng.standard_normal((volumes, regions)) + rng.standard_normal((volumes, 1)) + mean


def pearson(scan):
    """NumPy's correlations `(regions, regions)` of a scan `(volumes, regions)`."""
    return np.corrcoef(np.asarray(scan, dtype=np.float64).T)


@pytest.fixture
def extractor():
    """FC processor of the six regions."""
    return FCFeatureExtractor(region_names=NAMES)


@pytest.fixture
def scan(rng):
    """One scan, `(60, 6)`."""
    return make_scan(rng)
