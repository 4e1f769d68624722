"""Fixtures of the model's tests: a BEI tokenizer, an FC processor of six regions, and a scan for it."""

import numpy as np
import pytest

from modeling_lcm.feature_extraction_lcm import FCFeatureExtractor
from modeling_lcm.tokenization_bei import BEITokenizer
from tests.model.bei_variables import age, diagnosis, sex
from tests.model.scans import NAMES, make_scan


@pytest.fixture
def tokenizer() -> BEITokenizer:
    """Tokenizer of sex, age and diagnosis: six tokens."""
    return BEITokenizer(variables=[sex(), age(), diagnosis()])


@pytest.fixture
def extractor() -> FCFeatureExtractor:
    """FC processor of the six regions."""
    return FCFeatureExtractor(region_names=NAMES)


@pytest.fixture
def scan(rng: np.random.Generator) -> np.ndarray:
    """One scan, `(60, 6)`."""
    return make_scan(rng)
