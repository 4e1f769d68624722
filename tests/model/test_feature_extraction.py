"""FC processor: bad input, windows, region order, construction and saving."""

import doctest
import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modeling_lcm import connectivity as connectivity_module
from modeling_lcm import feature_extraction_lcm
from modeling_lcm.connectivity import compute_connectivity
from modeling_lcm.feature_extraction_lcm import FCFeatureExtractor
from tests.model.scans import NAMES, make_scan, pearson


# Bad input -------------------------------------------------------------------------------------------------------

AAL = {"atlas": "aal-116"}


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        (AAL, (116, 200), r"\(116, 200\) and looks transposed.*116 regions.*\.T"),
        (AAL, (150, 200), r"200 regions \(craddock-200 or schaefer-200 or schaefer-200-17\).*for 116 \(aal-116\)"),
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
        (
            AAL,
            (2, 200, 200),
            r"200 regions \(craddock-200 or schaefer-200 or .*116 \(aal-116\).*model made for 200",
        ),
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
    np.testing.assert_allclose(windows[1], by_hand, atol=1e-5)  # r close to 1 from float32 products
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


def test_differences_of_two_definitions_are_named() -> None:
    names = [f"region {number}" for number in range(6)]
    ours = FCFeatureExtractor(atlas="mine", region_names=names)
    assert ours.differences(FCFeatureExtractor(atlas="mine", region_names=names)) == {}
    # The regions' names say more than the name of the whole; limits of what is refused are no part of the definition.
    assert ours.differences(FCFeatureExtractor(atlas="other", region_names=names, min_volumes=50)) == {}
    turned = FCFeatureExtractor(atlas="mine", region_names=names[::-1], estimator="ledoit_wolf")
    assert ours.differences(turned) == {
        "region_names": (ours.region_fingerprint, turned.region_fingerprint),
        "estimator": ("pearson", "ledoit_wolf"),
    }
    unnamed = FCFeatureExtractor(atlas="other", num_regions=6)
    assert ours.differences(unnamed) == {"atlas": ("mine", "other"), "region_names": (ours.region_fingerprint, None)}
    assert unnamed.differences(FCFeatureExtractor(atlas="third", num_regions=6)) == {"atlas": ("other", "third")}
    assert ours.differences(FCFeatureExtractor(window=50, atlas="mine", region_names=names))["window"] == (None, 50)
