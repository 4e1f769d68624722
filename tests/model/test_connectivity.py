"""Connectivity: numbers against NumPy and nilearn, regions without signal, vectorised matrices."""

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modeling_lcm.connectivity import SCANS_PER_BLOCK, compute_connectivity, connectivity_from_triangle
from modeling_lcm.feature_extraction_lcm import FCFeatureExtractor
from tests.model.scans import NAMES, make_scan, pearson


# Numbers ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    volumes=st.integers(20, 200),
    regions=st.integers(2, 40),
    mean=st.sampled_from([0.0, 1.0, 1e4]),
    unit=st.sampled_from([1e-15, 1.0, 1e12]),
    dtype=st.sampled_from([np.float64, np.float32]),
)
def test_pearson_equals_numpy(seed, volumes, regions, mean, unit, dtype):
    scan = (make_scan(np.random.default_rng(seed), volumes, regions, mean) * unit).astype(dtype)
    matrix = compute_connectivity(scan)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, pearson(scan), rtol=0, atol=1e-6)


def test_small_fluctuations_on_a_large_single_precision_mean(rng):
    """The float32 mean of such a signal is off by more than 1 % of the fluctuations."""
    scan = (10000.3 + 0.03 * make_scan(rng, 500)).astype(np.float32)
    np.testing.assert_allclose(compute_connectivity(scan), pearson(scan), atol=1e-6)


@pytest.mark.parametrize("convert", [np.int16, np.float16, torch.tensor, lambda x: torch.tensor(x).bfloat16(), list])
def test_any_kind_of_number_is_accepted(rng, convert):
    scan = convert(np.round(make_scan(rng) * 20))
    expected = pearson(scan.float() if isinstance(scan, torch.Tensor) else scan)
    np.testing.assert_allclose(compute_connectivity(scan), expected, atol=1e-6)


def test_scans_of_different_lengths_are_each_correlated_on_their_own(rng, extractor):
    # More scans of one length than a block holds, shuffled among another length.
    lengths = [50, 80] * (SCANS_PER_BLOCK + 1) + [31]
    scans = [make_scan(rng, length) for length in lengths]
    result = extractor(time_series=scans)["connectivity"]
    np.testing.assert_allclose(result, [pearson(scan) for scan in scans], atol=1e-6)


@pytest.mark.parametrize("build", [np.stack, torch.tensor, lambda scans: [scan.tolist() for scan in scans]])
def test_a_stack_is_the_same_as_a_list(rng, extractor, build):
    scans = [make_scan(rng) for _ in range(3)]
    stacked = build(np.stack(scans) if build is torch.tensor else scans)
    np.testing.assert_array_equal(
        extractor(time_series=stacked)["connectivity"], extractor(time_series=scans)["connectivity"]
    )


def test_nilearn_shrinks_by_default_and_we_do_not(rng):
    """The trap: nilearn's "correlation" is Ledoit-Wolf shrunk, so models trained on Pearson see values too small."""
    connectome = pytest.importorskip("nilearn.connectome")
    from sklearn.covariance import EmpiricalCovariance

    scans = [make_scan(rng, 100, 20) for _ in range(3)]
    shrunk = connectome.ConnectivityMeasure(kind="correlation").fit_transform(scans)
    plain = connectome.ConnectivityMeasure(EmpiricalCovariance(), kind="correlation").fit_transform(scans)
    ours = FCFeatureExtractor()(time_series=scans)["connectivity"]
    np.testing.assert_allclose(ours, plain, atol=1e-6)
    off_diagonal = ~np.eye(20, dtype=bool)
    ratio = np.median((shrunk / ours)[:, off_diagonal])
    assert 0.8 < ratio < 0.98
    np.testing.assert_allclose(
        FCFeatureExtractor(estimator="ledoit_wolf")(time_series=scans)["connectivity"], shrunk, atol=1e-6
    )


def test_ledoit_wolf_leaves_silent_regions_out_of_the_shrinkage(rng):
    scan = make_scan(rng)
    with_silent = np.insert(scan, 2, 7.0, axis=1)
    with pytest.warns(UserWarning, match="1 of 7 regions"):
        matrix = compute_connectivity(with_silent, estimator="ledoit_wolf")
    kept = np.delete(np.delete(matrix, 2, axis=0), 2, axis=1)
    np.testing.assert_allclose(kept, compute_connectivity(scan, estimator="ledoit_wolf"), atol=1e-6)


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float64, (25, 4), elements=st.floats(-1e6, 1e6)))
def test_every_finite_scan_gives_a_valid_matrix_or_a_sentence(scan):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            matrix = compute_connectivity(scan)
        except ValueError as error:
            assert "no region with a signal" in str(error)
            # Subnormal numbers are zero to some processors.
            assert np.ptp(scan, axis=0).max() <= max(1e-12 * np.abs(scan).max(), 1e-300)
            return
        assert np.isfinite(matrix).all() and np.abs(matrix).max() <= 1
        np.testing.assert_array_equal(np.diagonal(matrix), 1)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
        # What came out goes in again, unchanged.
        np.testing.assert_array_equal(FCFeatureExtractor()(connectivity=matrix)["connectivity"][0], matrix)


def test_fisher_z_is_atanh_off_the_diagonal(scan):
    scan[:, 1] = 3 * scan[:, 0]  # r = 1, whose z would be infinite
    z = FCFeatureExtractor(fisher_z=True)(time_series=scan)["connectivity"][0]
    r = compute_connectivity(scan)
    np.testing.assert_array_equal(np.diagonal(z), 1)
    np.testing.assert_allclose(z[2:, :2], np.arctanh(r[2:, :2]), rtol=1e-6)
    assert 7 < z[0, 1] < 8
    np.testing.assert_array_equal(compute_connectivity(scan, fisher_z=True), z)
    np.testing.assert_array_equal(FCFeatureExtractor(fisher_z=True)(connectivity=r)["connectivity"][0], z)


def test_tensors_on_request(scan, extractor):
    batch = extractor(time_series=scan, return_tensors="pt")
    assert list(batch) == ["connectivity"]
    assert batch["connectivity"].dtype == torch.float32 and batch["connectivity"].shape == (1, 6, 6)
    assert isinstance(extractor(time_series=scan)["connectivity"], np.ndarray)


def test_valid_matrices_come_out_unchanged_and_the_input_is_not_touched(rng, extractor):
    matrices = np.stack([pearson(make_scan(rng)) for _ in range(3)]).astype(np.float32)
    matrices[1, 0, 0] = 0.9999  # as from half precision
    before = matrices.copy()
    result = extractor(connectivity=matrices)["connectivity"]
    np.testing.assert_array_equal(matrices, before)
    before[1, 0, 0] = 1
    np.testing.assert_array_equal(result, before)


def test_a_blank_diagonal_is_filled(rng, extractor):
    matrix = pearson(make_scan(rng)).astype(np.float32)
    blank = matrix - np.diag(np.diag(matrix))
    np.testing.assert_allclose(extractor(connectivity=blank)["connectivity"][0], matrix, atol=1e-6)


# Regions without signal --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4, 1e-12, np.nan])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_constant_regions_become_zero_with_one_warning(rng, extractor, value, dtype):
    scans = np.stack([make_scan(rng) for _ in range(3)]).astype(dtype)
    scans[0, :, [1, 4]] = value
    scans[2, :, 4] = value
    with pytest.warns(UserWarning) as caught:
        matrices = extractor(time_series=scans)["connectivity"]
    assert [str(warning.message).split(" Their")[0] for warning in caught] == [
        "2 of 6 regions are constant (no signal) in 2 of 3 scans: M1, Insula."
    ]
    assert (matrices[0, [1, 4]] == np.eye(6, dtype=np.float32)[[1, 4]]).all()
    kept = [0, 2, 3, 5]
    np.testing.assert_allclose(matrices[0][np.ix_(kept, kept)], pearson(scans[0][:, kept]), atol=1e-6)


def test_the_warning_names_at_most_five_regions(rng):
    scan = make_scan(rng, regions=9)
    scan[:, :7] = 0
    with pytest.warns(UserWarning, match=r"7 of 9 regions .* in 1 of 1 scans: 0, 1, 2, 3, 4, \.\.\.\."):
        compute_connectivity(scan)


def test_constant_regions_can_be_refused(scan):
    scan[:, 3] = 5
    extractor = FCFeatureExtractor(region_names=NAMES, constant_regions="error")
    with pytest.raises(ValueError, match=r"1 of 6 regions.*S1.*constant_regions='zero'"):
        extractor(time_series=scan)
    matrix = pearson(make_scan(np.random.default_rng(1)))
    matrix[3, :] = matrix[:, 3] = np.nan
    with pytest.raises(ValueError, match=r"1 of 6 regions.*S1"):
        extractor(connectivity=matrix)


@pytest.mark.parametrize("diagonal", [1.0, 0.0, np.nan])
def test_nan_rows_of_a_matrix_are_regions_without_signal(rng, extractor, diagonal):
    matrix = pearson(make_scan(rng))
    expected = matrix.copy()
    expected[3, :] = expected[:, 3] = 0
    expected[3, 3] = 1
    matrix[3, :] = matrix[:, 3] = np.nan
    np.fill_diagonal(matrix, 1 if np.isnan(diagonal) else diagonal)
    matrix[3, 3] = diagonal
    with pytest.warns(UserWarning, match=r"1 of 6 regions.*in 1 of 1 scans: S1\."):
        result = extractor(connectivity=matrix)["connectivity"][0]
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_a_scan_without_any_signal_is_refused(extractor, scan):
    with pytest.raises(ValueError, match=r"Scan 1 has no region with a signal"):
        extractor(time_series=[scan, np.ones((40, 6))])


# Vectorised matrices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_diagonal", [False, True])
@pytest.mark.parametrize("regions", [2, 3, 116, 200])
def test_triangle_round_trip(rng, regions, with_diagonal):
    matrices = np.stack([pearson(make_scan(rng, 30, regions)) for _ in range(2)]).astype(np.float32)
    rows, columns = np.triu_indices(regions, k=0 if with_diagonal else 1)
    rebuilt = connectivity_from_triangle(matrices[:, rows, columns], with_diagonal)
    np.testing.assert_allclose(rebuilt, matrices, atol=1e-6)
    np.testing.assert_array_equal(connectivity_from_triangle(matrices[0, rows, columns], with_diagonal), rebuilt[0])


@pytest.mark.parametrize("shape", [(7,), (2, 7), (2, 0), (1, 1, 3), ()])
def test_a_triangle_of_impossible_length_is_refused(shape):
    with pytest.raises(ValueError, match=r"N \* \(N - 1\) / 2"):
        connectivity_from_triangle(np.zeros(shape))
