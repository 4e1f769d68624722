"""Input that brings more than numbers: names, masks, units and types; extractor, pipeline and estimator."""

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import pipeline

from modeling_lcm import BEITokenizer, BEIVariable, FCFeatureExtractor, LCMForSequenceClassification, LCMProcessor
from modeling_lcm.atlases import region_labels, region_names
from tests.model.scans import NAMES, make_scan, pearson
from training.estimator import LCMClassifier


def table(scan: np.ndarray, order: Any = range(6), names: list[str] = NAMES) -> pd.DataFrame:
    """A scan as a table with named columns in some order."""
    return pd.DataFrame(scan, columns=names).iloc[:, list(order)]


class LabelledArray:
    """An array with named axes, as xarray's."""

    def __init__(self, values: np.ndarray, names: list[str]) -> None:
        self.values, self.shape, self.ndim = values, values.shape, values.ndim
        self.dims, self.coords = ("time", "region"), {"region": np.array(names)}

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.values


# Names --------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    order=st.permutations(range(6)),
    other=st.permutations(range(6)),
    spell=st.sampled_from([str, str.upper, str.lower]),
)
def test_tables_are_matched_by_the_names_of_their_columns(order, other, spell):
    scan = make_scan(np.random.default_rng(0))
    extractor, names = FCFeatureExtractor(region_names=NAMES), [spell(name) for name in NAMES]
    fc = pd.DataFrame(pearson(scan), index=names, columns=names).iloc[list(order), list(other)]
    structured = np.rec.fromarrays(scan[:, list(order)].T, names=[names[n] for n in order])
    inputs = [
        {"time_series": table(scan, order, names)},
        {"time_series": [table(scan, order, names), table(scan, other, names)]},
        {"time_series": table(scan, order, names), "region_names": [names[n] for n in order]},
        {"time_series": LabelledArray(scan[:, list(order)], [names[n] for n in order])},
        {"time_series": structured},
        {"connectivity": fc},
        {"connectivity": [fc, fc.T]},
        {"connectivity": fc.reset_index(drop=True).iloc[[order.index(n) for n in other]].reset_index(drop=True)},
    ]
    for given_input in inputs:
        for matrix in extractor(**given_input)["connectivity"]:
            np.testing.assert_allclose(matrix, pearson(scan), atol=1e-6)


def test_label_values_of_a_known_atlas(rng):
    order, labels = rng.permutation(116), list(region_labels("aal-116"))
    scan = make_scan(rng, 40, 116)
    for atlas in (FCFeatureExtractor(atlas="aal-116"), FCFeatureExtractor.from_atlas("aal-116")):
        for names in (labels, region_names("aal-116")):
            matrix = atlas(time_series=table(scan, order, names))["connectivity"][0]
            np.testing.assert_allclose(matrix, pearson(scan), atol=1e-6)


def test_names_that_do_not_fit_are_refused(scan, extractor):
    fc = pd.DataFrame(pearson(scan), index=NAMES, columns=NAMES)
    turned = pd.DataFrame(scan.T, index=NAMES)
    twice = table(scan, names=["V1", "V1", *NAMES[2:]])
    for given_input, message in (
        ({"time_series": table(scan, names=[*NAMES[:5], "Crus"])}, "1 of 6 regions are missing .*: Precuneus.*'Crus'"),
        ({"time_series": [table(scan), pd.DataFrame(scan)]}, "Scan 1 names no regions, but others do"),
        ({"time_series": table(scan), "region_names": NAMES[::-1]}, "region_names differ from the table's own names"),
        ({"time_series": twice}, "double: V1"),
        ({"time_series": turned}, r"names its rows as regions.*\.T"),
        ({"connectivity": fc.reset_index()}, "TypeError"),
        ({"connectivity": fc.reset_index(drop=True).assign(index=1.0)}, "7 region names do not fit a table of shape"),
        ({"connectivity": fc.iloc[:5]}, "1 of 6 regions are missing"),
    ):  # fmt: skip
        kind = TypeError if message == "TypeError" else ValueError
        with pytest.raises(kind, match="hold none: index" if kind is TypeError else message) as told:
            extractor(**given_input)
        assert len(str(told.value)) < 400


def test_columns_that_are_no_region_are_left_out_with_a_warning(scan, extractor):
    with pytest.warns(UserWarning, match="1 columns of the table are none of the wanted regions, left out: time"):
        matrix = extractor(time_series=table(scan).assign(time=np.arange(60)))["connectivity"][0]
    np.testing.assert_allclose(matrix, pearson(scan), atol=1e-6)


def test_an_index_column_among_the_regions_is_refused(scan):
    for counter in (np.arange(60), 2.0 * np.arange(60), np.r_[0, 3:62], np.round(0.735 * np.arange(60), 2)):
        with pytest.raises(ValueError, match=r"Region 0 of scan 0 only counts up.*index or time column"):
            FCFeatureExtractor()(time_series=np.column_stack([counter, scan]))
    with pytest.raises(ValueError, match="leave out columns that number or name the rows"):
        FCFeatureExtractor()(connectivity=np.column_stack([np.arange(6), pearson(scan)]))


def test_without_names_of_its_own_the_extractor_says_that_the_order_is_not_checked(scan):
    with pytest.warns(UserWarning, match="order of regions is not checked"):
        matrices = FCFeatureExtractor()(time_series=[table(scan), table(scan, [3, 1, 2, 0, 5, 4])])["connectivity"]
    np.testing.assert_allclose(matrices, [pearson(scan)] * 2, atol=1e-6)
    with pytest.raises(ValueError, match="are missing from the data"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        FCFeatureExtractor()(time_series=[table(scan), table(scan, names=list("abcdef"))])


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame,
        lambda scan: pd.DataFrame(scan, columns=[f"column_{n}" for n in range(6)]),
        lambda scan: pd.DataFrame(scan, index=pd.timedelta_range(0, periods=60, freq="2s")),
        lambda scan: pd.DataFrame(np.vstack([scan, scan])).iloc[60:],
        lambda scan: pd.DataFrame(scan).astype("Float64"),
    ],
)
def test_tables_without_names_are_arrays(scan, extractor, frame):
    np.testing.assert_allclose(extractor(time_series=frame(scan))["connectivity"][0], pearson(scan), atol=1e-6)


# Masks, units, types ------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 5)), min_size=1, max_size=5), st.booleans())
def test_masked_values_are_not_used(places, in_a_list):
    scan = make_scan(np.random.default_rng(0))
    mask = np.zeros(scan.shape, dtype=bool)
    mask[tuple(np.transpose(places))] = True
    hidden = np.ma.masked_array(np.where(mask, 1000, scan), mask)
    with pytest.raises(ValueError, match=f"holds {len(set(places))} NaN"):
        FCFeatureExtractor()(time_series=[hidden, hidden] if in_a_list else hidden)
    edges = np.ma.masked_array(pearson(scan), np.zeros((6, 6), dtype=bool))
    edges[0, 1] = edges[1, 0] = np.ma.masked
    with pytest.raises(ValueError, match="Matrix 0 holds 2 NaN"):
        FCFeatureExtractor()(connectivity=[edges, edges] if in_a_list else edges)


def test_a_masked_region_has_no_signal(scan, extractor):
    mask = np.zeros(scan.shape, dtype=bool)
    mask[:, 2] = True
    with pytest.warns(UserWarning, match="1 of 6 regions are constant"):
        matrix = extractor(time_series=np.ma.masked_array(scan, mask))["connectivity"][0]
    np.testing.assert_array_equal(matrix[2], np.eye(6)[2])
    whole = np.ma.masked_array((100 * scan).round().astype(np.int16), False)
    np.testing.assert_allclose(extractor(time_series=whole)["connectivity"][0], pearson(whole.data), atol=1e-6)


@settings(deadline=None, max_examples=80)
@given(
    exponents=st.lists(st.integers(-30, 29), min_size=6, max_size=6),
    offset=st.sampled_from([0.0, 3.0]),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_correlation_does_not_depend_on_units(exponents, offset, dtype):
    scan = (make_scan(np.random.default_rng(0)) + offset) * 10.0 ** np.array(exponents)
    scan = scan.astype(dtype)
    np.testing.assert_allclose(FCFeatureExtractor()(time_series=scan)["connectivity"][0], pearson(scan), atol=1e-6)


def test_larger_units_are_refused(scan):
    with pytest.raises(ValueError, match="absurdly large"):
        FCFeatureExtractor()(time_series=scan * 1e31)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda scan: scipy.sparse.csr_array(scan), r"sparse csr_array.*\.toarray\(\)"),
        (lambda scan: [scipy.sparse.csr_matrix(scan)] * 2, "sparse"),
        (lambda scan: torch.tensor(scan).to_sparse(), r"sparse.*\.to_dense\(\)"),
        (lambda scan: torch.tensor(scan, device="meta"), "meta device, which holds no values"),
        (lambda scan: scan.astype(object), "must hold real numbers, got ndarray of type object"),
        (lambda scan: np.array([scan, scan[:30]], dtype=object), r"array of arrays \(cells\): pass a list"),
        (lambda scan: [*scan.tolist(), [1.0, 2.0]], "different lengths"),
        (lambda scan: [*scan.tolist(), "a"], "must hold real numbers|different lengths"),
        (lambda scan: scan + 1j, "must hold real numbers"),
        (lambda scan: scan > 0, "must hold real numbers"),
        (lambda scan: scan.astype(str), "must hold real numbers"),
        (lambda scan: pd.DataFrame(scan).assign(group="a"), "1 of 7 columns of the table hold none: group"),
        (lambda scan: [torch.tensor(scan), torch.tensor(scan, device="meta")], "meta device"),
        (lambda scan: SimpleNamespace(), "must hold real numbers"),
    ],
)
@pytest.mark.parametrize("kind", ["time_series", "connectivity"])
def test_other_types_get_a_sentence(scan, extractor, make, message, kind):
    with pytest.raises((TypeError, ValueError), match=message) as told:
        extractor(**{kind: make(scan)})
    assert 20 < len(str(told.value)) < 400


@pytest.mark.parametrize("convert", [torch.float8_e4m3fn, torch.bfloat16, torch.float16, torch.int8])
def test_small_numbers_of_torch(rng, convert):
    scan = torch.tensor(make_scan(rng) * 10).to(convert)
    expected = pearson(scan.float() if scan.is_floating_point() else scan)
    np.testing.assert_allclose(FCFeatureExtractor()(time_series=scan)["connectivity"][0], expected, atol=1e-6)


# Pipeline and estimator ---------------------------------------------------------------------------------------------


@pytest.fixture
def classify(make_config):
    """Pipeline of a model of six named regions."""
    variables = [BEIVariable("sex", "categorical", ["M", "F"])]
    tokenizer = BEITokenizer(variables=variables).add_variable(
        BEIVariable("group", "categorical", ["a", "b"]), task=True
    )
    config = make_config(num_regions=6, num_labels=2, bei_variables=BEITokenizer(variables=variables).model_variables)
    processor = LCMProcessor(FCFeatureExtractor(region_names=NAMES), tokenizer)
    model = LCMForSequenceClassification(config).eval()
    return pipeline("connectome-classification", model=model, processor=processor)


def test_the_pipeline_matches_names_and_checks_measures(classify, scan):
    expected = classify(scan)
    fc = pd.DataFrame(pearson(scan), index=NAMES, columns=NAMES)
    order = [4, 2, 0, 1, 5, 3]
    named = [
        table(scan, order),
        fc.iloc[order, order],
        {"connectivity": fc.iloc[order]},
        {"time_series": table(scan, order)},
    ]
    for answer in [*(classify(item) for item in named), *classify(named)]:
        assert [entry["score"] for entry in answer] == pytest.approx([e["score"] for e in expected], abs=1e-5)
    for item, message in (
        (np.zeros((6, 6)), "holds no correlations"),
        (np.arctanh(pearson(scan) - np.eye(6)) * 2, "tanh|no Pearson"),
        (pearson(scan)[np.tril_indices(6, -1)], "vectorised"),
        (np.ma.masked_array(scan, scan > 2), "NaN"),
        (table(scan, names=list("abcdef")), "are missing from the data"),
    ):
        with pytest.raises(ValueError, match=message):
            classify(item)


def test_the_estimator_matches_names_and_checks_measures(rng):
    scans, y = [make_scan(rng) for _ in range(8)], np.array(["a", "b"] * 4)
    matrices = np.stack([pearson(scan) for scan in scans])
    settings_of_test = {"epochs": 1, "batch_size": 8, "settings": {"hidden_size": 16, "num_hidden_layers": 1}}
    model = LCMClassifier(**settings_of_test).fit(matrices, y)
    frames = [pd.DataFrame(matrix, index=NAMES, columns=NAMES) for matrix in matrices]
    mixed = [frame.iloc[order, order] for frame in frames for order in [rng.permutation(6)]]
    named = LCMClassifier(**settings_of_test).fit(frames, y)
    assert named.processor_.feature_extractor.region_names == NAMES
    np.testing.assert_allclose(named.predict_proba(mixed), model.predict_proba(matrices), atol=1e-5)
    with pytest.raises(ValueError, match="are missing from the data"):
        named.predict([frame.rename(columns={"V1": "V9"}) for frame in frames])
    vectors = matrices[:, *np.tril_indices(6)]
    np.testing.assert_allclose(model.predict_proba(vectors), model.predict_proba(matrices), atol=1e-6)
    columns = [f"edge {n}" for n in range(21)]
    of_table = LCMClassifier(**settings_of_test).fit(pd.DataFrame(vectors, columns=columns), y)
    with pytest.raises(ValueError, match="columns of X differ from those of fit: region 1 is 'edge 20'"):
        of_table.predict(pd.DataFrame(vectors, columns=columns).iloc[:, ::-1])
    for bad, message in (
        (np.zeros((8, 6, 6)), "holds no correlations"),
        (matrices[0], "X is one matrix of 6 regions"),
        (np.ma.masked_array(matrices, matrices < 0.45), "NaN"),
        (scipy.sparse.csr_array(matrices.reshape(8, -1)), "sparse"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            LCMClassifier(**settings_of_test).fit(bad, y[: bad.shape[0]])
