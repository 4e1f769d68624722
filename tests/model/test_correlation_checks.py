"""What is a Pearson correlation matrix, and what is refused by its name; vectors in either order, with a diagonal."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modeling_lcm import FCFeatureExtractor
from modeling_lcm.connectivity import connectivity_from_triangle
from modeling_lcm.correlation_checks import NotCorrelationsError
from modeling_lcm.triangles import could_be_correlations, count_regions, find_layout, rebuild
from training.first_report.demonstration import DEMO_DATA


ORDERS = {"upper": np.triu_indices, "lower": np.tril_indices}


def signals(seed: int, volumes: int, regions: int) -> np.ndarray:
    """Signals whose neighbours go together, as left and right do, over components that all share."""
    rng = np.random.default_rng(seed)
    pairs = rng.normal(size=(volumes, (regions + 1) // 2)).repeat(2, axis=1)[:, :regions]
    common = rng.normal(size=(volumes, 6)) @ rng.normal(size=(6, regions)) / 3
    return pairs + common + 0.5 * rng.normal(size=(volumes, regions))


def correlations(seed: int, volumes: int = 60, regions: int = 40) -> np.ndarray:
    """Pearson FC of such signals."""
    return np.corrcoef(signals(seed, volumes, regions).T)


def vector(matrix: np.ndarray, order: str, with_diagonal: bool = False) -> np.ndarray:
    """One triangle, row by row."""
    offset = 0 if with_diagonal else 1 if order == "upper" else -1
    return matrix[ORDERS[order](len(matrix), offset)]


@pytest.fixture(scope="module")
def lemon() -> np.ndarray:
    """Real FC of 20 subjects, as stored in half precision."""
    with np.load(DEMO_DATA / "fc.npz") as file:
        return connectivity_from_triangle(file["fc_triu"][:20])


# Correlations pass -------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    volumes=st.integers(20, 300),
    regions=st.integers(2, 120),
    digits=st.sampled_from([2, 4, None, "half"]),
    noise=st.booleans(),
)
def test_correlations_pass_as_they_are(seed, volumes, regions, digits, noise):
    """Whatever the rank, of pure noise too, in two decimals or half precision."""
    scan = np.random.default_rng(seed).normal(size=(volumes, regions)) if noise else signals(seed, volumes, regions)
    matrix = np.corrcoef(scan.T)
    if digits is not None:
        matrix = matrix.astype(np.float16) if digits == "half" else matrix.round(digits)
    result = FCFeatureExtractor()(connectivity=matrix)["connectivity"][0]
    np.testing.assert_allclose(result, matrix, atol=1e-3)


def test_real_connectomes_pass(lemon):
    np.testing.assert_array_equal(
        FCFeatureExtractor.from_atlas("schaefer-200")(connectivity=lemon)["connectivity"], lemon
    )


# Other measures are refused by name --------------------------------------------------------------------------------


def blank(matrix: np.ndarray, value: float = 0.0) -> np.ndarray:
    """Another diagonal."""
    matrix = matrix.copy()
    np.fill_diagonal(matrix, value)
    return matrix


def partial(matrix: np.ndarray, shrinkage: float = 0.3) -> np.ndarray:
    """Partial correlations of shrunk correlations."""
    precision = np.linalg.inv((1 - shrinkage) * matrix + shrinkage * np.eye(len(matrix)))
    scale = np.sqrt(np.diag(precision))
    return blank(-precision / np.outer(scale, scale), 1)


def wrong_order(matrix: np.ndarray) -> np.ndarray:
    """A lower triangle that was put where the upper one belongs."""
    other = np.eye(len(matrix))
    other[np.triu_indices(len(matrix), 1)] = vector(matrix, "lower")
    return np.maximum(other, other.T) + np.minimum(other, other.T) - np.diag(np.diag(other))


OTHERS = {
    "partial": (partial, "partial correlations"),
    "covariance": (lambda r: r * np.outer(*2 * [np.linspace(0.5, 2, len(r))]), "a covariance"),
    "percent": (lambda r: 100 * r, r"\[-1, 1\]|diagonal"),
    "z, NaN diagonal (CONN)": (lambda r: blank(np.arctanh(blank(r)), np.nan), r"NaN or infinite diagonal.*CONN.*tanh"),
    "z, infinite diagonal": (lambda r: blank(np.arctanh(blank(r)), np.inf), "tanh"),
    "z, blank diagonal": (lambda r: np.arctanh(blank(r)), "tanh"),
    "z, ones": (lambda r: blank(np.arctanh(blank(r)), 1), "tanh"),
    "z, large diagonal": (lambda r: blank(np.arctanh(blank(r)), 18.0), "Fisher z"),
    "distance": (lambda r: blank(1 - r), r"1 - r|\[-1, 1\]"),
    "thresholded": (lambda r: np.where(np.abs(r) < 0.2, 0, r), "thresholded"),
    "positive edges": (lambda r: np.maximum(r, 0), "thresholded"),
    "binary": (lambda r: blank((r > 0.3).astype(float), 1), "thresholded"),
    "zeros": (np.zeros_like, "every value off the diagonal is 0"),
    "identity": (lambda r: np.eye(len(r)), "every value off the diagonal is 0"),
    "wrong order": (wrong_order, "as the lower triangle"),
    "upper half": (np.triu, "only its upper triangle is filled"),
    "lower half": (np.tril, "only its lower triangle is filled"),
    "upper half, else NaN": (lambda r: np.where(np.tri(len(r), k=-1), np.nan, r), "one triangle only"),
    "lower half, else NaN": (lambda r: np.where(np.tri(len(r), k=-1).T, np.nan, r), "one triangle only"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("source", ["simulated", "real"])
def test_other_measures_are_refused_by_name(kind, source, lemon):
    make, message = OTHERS[kind]
    good = lemon[:2] if source == "real" else np.stack([correlations(1), correlations(2)])
    bad = make(good[1].astype(np.float64))
    with pytest.raises(NotCorrelationsError, match=message) as told:
        FCFeatureExtractor()(connectivity=np.stack([good[0], bad]))
    assert len(str(told.value)) < 300


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), regions=st.integers(40, 80), shrinkage=st.floats(0.05, 0.4))
def test_partial_correlations_without_a_negative_eigenvalue(seed, regions, shrinkage):
    with pytest.raises(NotCorrelationsError, match="partial correlations"):
        FCFeatureExtractor()(connectivity=partial(correlations(seed, 150, regions), shrinkage))


def test_a_zero_edge_is_no_threshold(rng):
    matrix = correlations(0, regions=12)
    matrix[3, 4] = matrix[4, 3] = 0
    FCFeatureExtractor()(connectivity=matrix)
    matrix[5] = matrix[:, 5] = 0
    matrix[5, 5] = 1
    FCFeatureExtractor()(connectivity=matrix)  # a region without signal


# Vectors -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**31),
    scans=st.integers(1, 3),
    regions=st.integers(30, 60),
    order=st.sampled_from(sorted(ORDERS)),
    with_diagonal=st.booleans(),
    scaled=st.booleans(),
    declared=st.booleans(),
)
def test_the_order_of_vectors_is_found(seed, scans, regions, order, with_diagonal, scaled, declared):
    matrices = np.stack([correlations(seed + scan, 60, regions) for scan in range(scans)])
    stored = matrices.copy()
    if scaled:  # as nilearn's sym_matrix_to_vec
        stored[:, range(regions), range(regions)] /= np.sqrt(2)
    values = np.stack([vector(matrix, order, with_diagonal) for matrix in stored])
    layout = find_layout(values, order if declared else None, regions if declared else None)
    assert (layout.num_regions, layout.triangle, layout.with_diagonal) == (regions, order, with_diagonal)
    np.testing.assert_allclose(rebuild(values, layout), matrices, atol=1e-6)
    other = next(name for name in ORDERS if name != order)
    with pytest.raises(ValueError, match=f"triangle='{order}'"):
        find_layout(values, other)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(3, 40), st.floats(0, 3), st.sampled_from(sorted(ORDERS)))
def test_correlations_never_pass_for_covariances_of_one_region_less(seed, regions, common, order):
    """Nor where all signals are alike, as with a strong global signal."""
    rng = np.random.default_rng(seed)
    scans = [signals(seed + n, 100, regions) + common * rng.normal(size=(100, 1)) for n in range(5)]
    layout = find_layout(np.stack([vector(np.corrcoef(scan.T), order) for scan in scans]), order)
    assert (layout.num_regions, layout.with_diagonal) == (regions, False)


@pytest.mark.parametrize("order", ORDERS)
def test_a_known_atlas_decides_between_diagonal_and_one_more_region(order):
    """78 values are 12 regions with the diagonal or 13 without."""
    values = vector(correlations(0, regions=12), order, with_diagonal=True)
    assert find_layout(values).num_regions == 12
    assert find_layout(vector(correlations(0, regions=13), order), order).num_regions == 13
    covariance = correlations(0, regions=12) * np.outer(*2 * [np.linspace(0.5, 2, 12)])
    for known in (12, None):
        with pytest.raises(
            ValueError, match="78 values of 12 regions hold the diagonal, but it is not 1: a covariance"
        ):
            find_layout(vector(covariance, order, with_diagonal=True), order, known)


def test_nilearns_vectors():
    connectome = pytest.importorskip("nilearn.connectome")
    matrices = np.stack([correlations(seed) for seed in range(3)])
    for discard in (True, False):
        values = connectome.sym_matrix_to_vec(matrices, discard_diagonal=discard)
        layout = find_layout(values)
        assert (layout.triangle, layout.with_diagonal) == ("lower", not discard)
        np.testing.assert_allclose(connectivity_from_triangle(values, not discard, "lower"), matrices, atol=1e-6)


def test_what_could_be_either_order_is_asked(rng):
    values = 0.2 * rng.uniform(-1, 1, size=(5, 15))
    with pytest.raises(
        ValueError, match=r"15 values fit the upper triangle.*triangle='upper' or 'lower' \(--triangle\)"
    ):
        find_layout(values)
    for order in ORDERS:
        assert find_layout(values, order).triangle == order
    assert find_layout(values[:, :3]).num_regions == 3  # the same in both orders
    with pytest.raises(ValueError, match="triangle must be 'upper'"):
        find_layout(values, "left")


def test_vectors_of_another_measure_are_told():
    z = np.arctanh(blank(correlations(0)))
    for values in (vector(z, "upper"), vector(partial(correlations(0, 400), 0.0), "lower")):
        with pytest.raises(ValueError, match=r"neither the upper nor the lower triangle.*Fisher's z .*tanh"):
            find_layout(values)


def test_a_diagonal_that_is_not_expected_is_told():
    with pytest.raises(ValueError, match="hold a diagonal of 40 regions, in the order of lower triangles"):
        connectivity_from_triangle(vector(correlations(0), "lower", with_diagonal=True))
    with pytest.raises(ValueError, match="set triangle='lower'"):
        connectivity_from_triangle(vector(correlations(0), "lower", with_diagonal=True), with_diagonal=True)
    with pytest.raises(ValueError, match="set triangle='lower'"):
        connectivity_from_triangle(vector(correlations(0), "lower"))


def test_a_vector_of_zeros_is_an_empty_scan():
    matrices = connectivity_from_triangle(np.stack([vector(correlations(0), "upper"), np.zeros(780)]))
    with pytest.raises(NotCorrelationsError, match="Matrix 1 holds no correlations"):
        FCFeatureExtractor()(connectivity=matrices)


@given(st.integers(1, 2000), st.booleans())
def test_lengths_of_triangles(regions, with_diagonal):
    edges = regions * (regions + 1) // 2 if with_diagonal else regions * (regions - 1) // 2
    assume(edges)
    assert count_regions(edges, with_diagonal) == regions
    assert count_regions(edges + 1, with_diagonal) is None or regions < 2


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(2, 60))
def test_cholesky_says_what_eigenvalues_say(seed, regions):
    values = np.random.default_rng(seed).uniform(-1, 1, size=(3, regions, regions))
    matrices = (values + values.swapaxes(1, 2)) / 2
    least = np.linalg.eigvalsh(matrices)[:, 0]
    assume((np.abs(least + 0.1) > 1e-4).all())
    np.testing.assert_array_equal(could_be_correlations(matrices), least > -0.1)
