"""FC processor: numbers against NumPy and nilearn, bad input, windows, region order, saving."""

import doctest
import json
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modeling_lcm import connectivity as connectivity_module
from modeling_lcm import feature_extraction_lcm
from modeling_lcm.connectivity import SCANS_PER_BLOCK, connectivity_from_triangle
from modeling_lcm.feature_extraction_lcm import FCFeatureExtractor, compute_connectivity


NAMES = ["V1", "M1", "A1", "S1", "Insula", "Precuneus"]


def make_scan(rng, volumes=60, regions=6, mean=0.0):
    """Signals with a shared component, so that correlations are neither 0 nor 1."""
    return rng.standard_normal((volumes, regions)) + rng.standard_normal((volumes, 1)) + mean


def pearson(scan):
    return np.corrcoef(np.asarray(scan, dtype=np.float64).T)


@pytest.fixture
def extractor():
    return FCFeatureExtractor(region_names=NAMES)


@pytest.fixture
def scan(rng):
    return make_scan(rng)


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
            assert np.ptp(scan, axis=0).max() <= 1e-12 * np.abs(scan).max()
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


# Bad input -------------------------------------------------------------------------------------------------------

AAL = {"atlas": "aal-116"}


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        (AAL, (116, 200), r"\(116, 200\) and looks transposed.*116 regions.*\.T"),
        (AAL, (150, 200), r"200 regions \(craddock-200 or schaefer-200\).*for 116 \(aal-116\)"),
        (AAL, (150, 117), r"117 regions \(no atlas known here\)"),
        ({}, (19, 30), r"19 volumes of 30 regions; at least 20.*transpose"),
        ({"min_volumes": 100}, (99, 30), r"at least 100 volumes"),
        ({}, (60,), r"shape \(60,\)"),
        ({}, (60, 1), r"at least 2 regions"),
        ({}, (2, 2, 60, 6), r"shape \(2, 2, 60, 6\)"),
        ({}, (0, 60, 6), r"empty"),
        ({}, (0, 6), r"empty"),
    ],
)
def test_wrong_shapes_of_time_series(rng, options, shape, message):
    with pytest.raises(ValueError, match=message):
        FCFeatureExtractor(**options)(time_series=rng.standard_normal(shape))


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        (AAL, (2, 200, 200), r"200 regions \(craddock-200 or schaefer-200\).*116 \(aal-116\).*model made for 200"),
        (AAL, (6670,), r"vectorised.*connectivity_from_triangle"),
        (AAL, (4, 6670), r"vectorised"),
        (AAL, (4, 6786), r"vectorised"),
        ({}, (4, 6670), r"vectorised"),
        ({}, (4, 116), r"time_series="),
        ({}, (4, 3, 5), r"time_series="),
        ({}, (7,), r"shape \(7,\)"),
        ({}, (0, 6, 6), r"empty"),
        ({}, (2, 2, 6, 6), r"shape \(2, 2, 6, 6\)"),
    ],
)
def test_wrong_shapes_of_connectivity(rng, options, shape, message):
    with pytest.raises(ValueError, match=message):
        FCFeatureExtractor(**options)(connectivity=rng.standard_normal(shape))


def test_empty_lists_are_refused(extractor):
    with pytest.raises(ValueError, match="time_series is empty"):
        extractor(time_series=[])
    with pytest.raises(ValueError, match="connectivity is empty"):
        extractor(connectivity=[])


def test_a_likely_transposed_scan_is_pointed_out_if_the_region_count_is_not_known(rng):
    with pytest.warns(UserWarning, match=r"116 volumes of 250 regions\. aal-116 has 116.*transpose"):
        FCFeatureExtractor()(time_series=rng.standard_normal((116, 250)))


def test_scans_of_different_atlases_are_refused(rng):
    with pytest.raises(ValueError, match=r"Scan 0 has 6 regions and scan 1 has 7"):
        FCFeatureExtractor()(time_series=[make_scan(rng), make_scan(rng, regions=7)])


def test_exactly_one_kind_of_input(scan, extractor):
    for inputs in ({}, {"time_series": scan, "connectivity": np.eye(6)}):
        with pytest.raises(ValueError, match=r"either connectivity= .* or time_series="):
            extractor(**inputs)


def test_a_matrix_passed_as_time_series_is_recognised(rng):
    with pytest.raises(ValueError, match="pass it as connectivity="):
        FCFeatureExtractor()(time_series=pearson(make_scan(rng, regions=30)))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e35])
def test_bad_values_in_a_scan_are_located(rng, extractor, value):
    scans = [make_scan(rng, 50), make_scan(rng, 60), make_scan(rng, 50)]
    scans[2][7, 4] = value
    with pytest.raises(ValueError, match=r"Scan 2 holds 1 NaN.*volume 7 of region 4 \(Insula\)"):
        extractor(time_series=scans)


def spoil(matrix, index, value, symmetric=True):
    matrix = matrix.copy()
    matrix[index] = value
    if symmetric:
        matrix[index[::-1]] = value
    return matrix


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: spoil(m, (1, 2), np.nan), r"Matrix 1 holds 2 NaN.*\[1, 2\] \(M1, A1\)"),
        (lambda m: spoil(m, (1, 2), np.inf), r"Matrix 1 holds 2 NaN"),
        (lambda m: spoil(m, (1, 2), 1.2), r"up to 1\.2.*\[-1, 1\].*tanh"),
        (lambda m: spoil(m, (1, 2), -3.0), r"up to 3"),
        (lambda m: np.arctanh(np.clip(3 * m, -0.99, 0.99)) * (1 - np.eye(6)), r"\[-1, 1\].*tanh"),
        (lambda m: m + np.diag([np.inf] * 6), r"infinite diagonal.*Fisher"),
        (lambda m: 4 * m, r"diagonal .* must be 1 .* holds 4: a covariance"),
        (lambda m: spoil(m, (3, 3), 0.0), r"diagonal .* holds 0"),
        (lambda m: spoil(m, (1, 2), -0.9, symmetric=False), r"Matrix 1 is not symmetric: \[1, 2\] is -0\.9"),
        (np.triu, r"not symmetric"),
    ],
)
def test_bad_values_in_a_matrix(rng, extractor, change, message):
    good, bad = pearson(make_scan(rng)), change(pearson(make_scan(rng)))
    with pytest.raises(ValueError, match=message):
        extractor(connectivity=np.stack([good, bad]))


@pytest.mark.parametrize("value", ["image.nii.gz", [["a", "b"]], [[1j, 0], [0, 1j]], [[None, 1.0], [1.0, None]]])
def test_things_that_are_not_numbers(extractor, value):
    with pytest.raises(TypeError, match="must hold real numbers"):
        extractor(connectivity=value)
    with pytest.raises(TypeError, match="must hold real numbers"):
        extractor(time_series=value)


def test_ragged_lists_are_refused(extractor):
    with pytest.raises(ValueError, match="different lengths"):
        extractor(connectivity=[[1.0, 0.5], [0.5]])


@settings(deadline=None, max_examples=80)
@given(
    hnp.arrays(
        st.sampled_from([np.float64, np.float32, np.int64]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=25),
    ),
    st.sampled_from(["connectivity", "time_series"]),
    st.sampled_from([None, 5]),
)
def test_arbitrary_arrays_never_pass_unchecked(array, kind, num_regions):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = FCFeatureExtractor(num_regions=num_regions)(**{kind: array})["connectivity"]
        except (ValueError, TypeError) as error:
            assert len(str(error)) > 30  # a sentence of ours, not NumPy's shorthand
            assert "broadcast" not in str(error)
            return
    assert result.ndim == 3 and result.shape[1] == result.shape[2]
    assert np.isfinite(result).all() and np.abs(result).max() <= 1
    np.testing.assert_array_equal(np.diagonal(result, axis1=1, axis2=2), 1)


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


# Windows -----------------------------------------------------------------------------------------------------------


def test_windows_do_not_overlap_and_keep_a_long_enough_rest(rng):
    extractor = FCFeatureExtractor(window=40)
    scans = [make_scan(rng, 100), make_scan(rng, 95), make_scan(rng, 30)]
    batch = extractor(time_series=scans, return_tensors="pt")
    # 100 = 40 + 40 + 20; of 95 the last 15 volumes are too few; 30 stay whole
    pieces = [scans[0][:40], scans[0][40:80], scans[0][80:], scans[1][:40], scans[1][40:80], scans[2]]
    np.testing.assert_allclose(batch["connectivity"], [pearson(piece) for piece in pieces], atol=1e-6)
    assert batch["scan_index"].tolist() == [0, 0, 0, 1, 1, 2]
    np.testing.assert_array_equal(extractor.window_connectivity(scans[0]), batch["connectivity"][:3])


def test_zero_padding_reproduces_the_research_code_and_ruins_uncentred_signals(rng):
    padded = FCFeatureExtractor(window=50, padding="zeros_at_end")
    scan = make_scan(rng, 70, mean=1000.0)
    windows = padded.window_connectivity(scan)
    by_hand = pearson(np.concatenate([scan[50:], np.zeros((30, 6))]))
    assert len(windows) == 2
    np.testing.assert_allclose(windows[1], by_hand, atol=1e-6)
    assert np.median(windows[1]) > 0.99 > 0.9 > np.median(windows[0])


def test_without_a_window_there_is_no_scan_index(scan, extractor):
    assert "scan_index" not in extractor(time_series=scan)
    np.testing.assert_allclose(extractor.window_connectivity(scan), [pearson(scan)], atol=1e-6)


def test_window_connectivity_takes_one_scan(rng):
    with pytest.raises(ValueError, match="one scan"):
        FCFeatureExtractor(window=40).window_connectivity(rng.standard_normal((2, 60, 6)))


# Region order ------------------------------------------------------------------------------------------------------


@given(st.permutations(range(6)))
@settings(deadline=None, max_examples=20)
def test_regions_are_matched_by_name(order):
    scan = make_scan(np.random.default_rng(0))
    extractor = FCFeatureExtractor(region_names=NAMES)
    expected = extractor(time_series=scan)["connectivity"]
    names = [*(NAMES[position] for position in order), "Vermis"]
    shuffled = np.concatenate([scan[:, order], scan[:, :1] + scan[:, 1:2]], axis=1)
    from_series = extractor(time_series=[shuffled], region_names=names)["connectivity"]
    from_matrix = extractor(connectivity=compute_connectivity(shuffled), region_names=names)["connectivity"]
    np.testing.assert_allclose(from_series, expected, atol=1e-6)
    np.testing.assert_allclose(from_matrix, expected, atol=1e-6)


def test_names_that_do_not_fit(scan, extractor):
    matrix = compute_connectivity(scan)
    with pytest.raises(ValueError, match=r"2 of 6 regions are missing from the data: Insula, Precuneus\."):
        extractor(time_series=scan, region_names=["V1", "M1", "A1", "S1", "x", "y"])
    with pytest.raises(ValueError, match="double: V1"):
        extractor.reorder(matrix, ["V1", "V1", *NAMES[2:]])
    with pytest.raises(ValueError, match="one name per row"):
        extractor.reorder(matrix, [*NAMES, "Vermis"])
    with pytest.raises(ValueError, match=r"6 regions .* for 7"):
        extractor(time_series=scan, region_names=[*NAMES, "Vermis"])
    with pytest.raises(ValueError, match="no region names to match"):
        FCFeatureExtractor().reorder(matrix, NAMES)


# Construction and saving ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"estimator": "spearman"}, ValueError, "'pearson', 'ledoit_wolf'"),
        ({"padding": "mirror"}, ValueError, "'none', 'zeros_at_end'"),
        ({"constant_regions": "drop"}, ValueError, "'zero', 'error'"),
        ({"padding": "zeros_at_end"}, ValueError, "needs window="),
        ({"window": 10}, ValueError, "min_volumes"),
        ({"min_volumes": 1}, ValueError, "at least 2"),
        ({"atlas": "AAL", "num_regions": 200}, ValueError, "num_regions says 200, atlas aal-116 says 116"),
        ({"region_names": ["a", "b"], "num_regions": 3}, ValueError, "contradictory"),
        ({"region_names": ["a", "a"]}, ValueError, "double: a"),
        ({"fisherz": True}, TypeError, "no argument fisherz"),
    ],
)
def test_contradicting_options(options, error, message):
    with pytest.raises(error, match=message):
        FCFeatureExtractor(**options)


def test_atlas_ids_are_canonical_and_own_names_allowed():
    assert FCFeatureExtractor(atlas="AAL").atlas == "aal-116"
    assert FCFeatureExtractor(atlas="AAL").num_regions == 116
    own = FCFeatureExtractor(atlas="my-parcels")
    assert (own.atlas, own.num_regions, own.region_fingerprint) == ("my-parcels", None, None)


def test_from_atlas_brings_the_names():
    extractor = FCFeatureExtractor.from_atlas("schaefer200", fisher_z=True)
    assert extractor.region_names[0] == "7Networks_LH_Vis_1" and extractor.fisher_z
    assert extractor.region_fingerprint == "ad9aa7959b2ca5e6"
    with pytest.raises(ValueError, match="names of 'gordon' are not in this package"):
        FCFeatureExtractor.from_atlas("gordon")


def test_every_field_survives_saving(tmp_path, scan):
    options = {
        "atlas": "six",
        "region_names": NAMES,
        "num_regions": 6,
        "estimator": "ledoit_wolf",
        "window": 40,
        "padding": "zeros_at_end",
        "fisher_z": True,
        "constant_regions": "error",
        "min_volumes": 25,
    }
    extractor = FCFeatureExtractor(**options)
    extractor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert {key: saved[key] for key in options} == options
    loaded = FCFeatureExtractor.from_pretrained(tmp_path)
    assert {key: getattr(loaded, key) for key in options} == options
    np.testing.assert_array_equal(
        loaded(time_series=scan)["connectivity"], extractor(time_series=scan)["connectivity"]
    )


@pytest.mark.parametrize("module", [feature_extraction_lcm, connectivity_module])
def test_examples_in_the_documentation_run(module):
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
