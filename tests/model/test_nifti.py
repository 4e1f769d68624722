"""NIfTI images through nilearn's masker: which column is which region, missing regions, local and fetched atlases."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from modeling_lcm.atlases import region_labels, region_names
from modeling_lcm.feature_extraction_lcm import FCFeatureExtractor
from modeling_lcm.nifti import LabelAtlas, extract_time_series, load_label_atlas


nib = pytest.importorskip("nibabel")
pytest.importorskip("nilearn")

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
VOLUMES = 24
# Values above 127 and out of order: the names decide which column is which, not the values.
LABELS = {300: "Insula", 2: "Vermis", 170: "Cuneus"}


def label_image(values, affine=AFFINE, dtype=np.int16):
    """Image of 2 x 2 x 2 voxel cubes, one per value, along the first axis."""
    data = np.zeros((2 * len(values) + 2, 4, 4), dtype=dtype)
    for position, value in enumerate(values):
        data[2 * position + 1 : 2 * position + 3, 1:3, 1:3] = value
    return nib.Nifti1Image(data, affine)


def scan_image(atlas_image, signals):
    """4-D image whose voxels carry the signal `{value: (volumes,)}` of their region, plus noise that averages to 0."""
    labels = np.asarray(atlas_image.dataobj)
    data = np.zeros((*labels.shape, VOLUMES), dtype=np.float32)
    for value, signal in signals.items():
        voxels = labels == value
        sign = np.where(np.arange(voxels.sum()) % 2, 1, -1)
        data[voxels] = signal + 0.5 * sign[:, None]
    return nib.Nifti1Image(data, atlas_image.affine)


@pytest.fixture
def signals(rng):
    return {value: 100 + rng.standard_normal(VOLUMES) for value in LABELS}


@pytest.fixture
def atlas():
    return load_label_atlas("three", label_image(sorted(LABELS)), LABELS)


@pytest.fixture
def scan(atlas, signals):
    return scan_image(atlas.image, signals)


def test_columns_follow_the_names_not_the_values(atlas, scan, signals):
    result = extract_time_series(scan, atlas)
    assert result.region_names == ["Insula", "Vermis", "Cuneus"] and result.missing == []
    expected = np.stack([signals[value] for value in LABELS], axis=1)
    np.testing.assert_allclose(result.time_series, expected, rtol=1e-5)


def test_signals_go_straight_into_the_extractor(atlas, scan, signals):
    result = extract_time_series(scan, atlas)
    extractor = FCFeatureExtractor(region_names=["Cuneus", "Insula", "Vermis"])
    matrix = extractor(time_series=result.time_series, region_names=result.region_names)["connectivity"][0]
    np.testing.assert_allclose(matrix, np.corrcoef([signals[value] for value in (170, 300, 2)]), atol=1e-4)


def test_files_on_disk(atlas, scan, signals, tmp_path):
    nib.save(atlas.image, tmp_path / "atlas.nii.gz")
    nib.save(scan, tmp_path / "bold.nii.gz")
    rows = ["index\tname", "0\tBackground", *(f"{value}\t{name}" for value, name in LABELS.items())]
    (tmp_path / "dseg.tsv").write_text("\n".join(rows), encoding="utf-8-sig")  # as spreadsheets save it
    local = load_label_atlas("three", tmp_path / "atlas.nii.gz", tmp_path / "dseg.tsv")
    assert local.labels == LABELS
    result = extract_time_series(tmp_path / "bold.nii.gz", local)
    np.testing.assert_allclose(result.time_series[:, 0], signals[300], rtol=1e-5)


@pytest.mark.parametrize("content", ["value\tname\n1\tInsula", "index,name\n1,Insula", "index\tname\none\tInsula"])
def test_a_table_that_names_no_values(atlas, tmp_path, content):
    (tmp_path / "labels.tsv").write_text(content)
    with pytest.raises(ValueError, match="must be a tab-separated table with columns index"):
        load_label_atlas("three", atlas.image, tmp_path / "labels.tsv")


def test_masker_options_and_confounds_reach_nilearn(atlas, scan, signals):
    confounds = np.linspace(-1, 1, VOLUMES)[:, None]
    cleaned = extract_time_series(scan, atlas, confounds=confounds, standardize="zscore_sample").time_series
    np.testing.assert_allclose(cleaned.std(axis=0, ddof=1), 1, rtol=1e-4)
    assert np.abs(confounds.T @ cleaned).max() < 1e-3 < np.abs(confounds.T @ (signals[2] - 100)).max()


@pytest.mark.parametrize("lost", sorted(LABELS))
def test_a_region_that_is_missing_is_found_by_its_value(scan, signals, lost):
    """By count alone, the columns after the lost region would silently take the names of their neighbours."""
    data = np.asarray(label_image(sorted(LABELS)).dataobj).copy()
    data[data == lost] = 0
    atlas = load_label_atlas("three", nib.Nifti1Image(data, AFFINE), LABELS)
    with pytest.warns(UserWarning, match=f"1 of 3 regions are not in the image: {LABELS[lost]}"):
        result = extract_time_series(scan, atlas)
    assert result.missing == [LABELS[lost]]
    for column, value in enumerate(LABELS):
        expected = np.full(VOLUMES, np.nan) if value == lost else signals[value]
        np.testing.assert_allclose(result.time_series[:, column], expected, rtol=1e-5)
    with pytest.warns(UserWarning, match=f"constant .* {LABELS[lost]}"):
        matrix = FCFeatureExtractor(region_names=result.region_names)(time_series=result.time_series)["connectivity"]
    assert np.isfinite(matrix).all()
    with pytest.raises(ValueError, match=f"{LABELS[lost]}.*missing_regions='nan'"):
        extract_time_series(scan, atlas, missing_regions="error")


def test_a_region_outside_the_mask_is_missing(atlas, scan):
    mask = (np.asarray(atlas.image.dataobj) != 170).astype(np.int8)
    with pytest.warns(UserWarning) as caught:
        result = extract_time_series(scan, atlas, mask_img=nib.Nifti1Image(mask, AFFINE))
    assert [str(warning.message)[:49] for warning in caught] == ["1 of 3 regions are not in the image: Cuneus. Thei"]
    assert np.isnan(result.time_series[:, 2]).all() and np.isfinite(result.time_series[:, :2]).all()


def test_a_region_that_vanishes_when_the_atlas_is_resampled_is_missing(signals):
    fine = np.zeros((24, 8, 8), dtype=np.int16)
    fine[:8], fine[8:16] = 2, 170
    fine[20, 3, 3] = 300  # one voxel between the centres of the scan's voxels
    atlas = load_label_atlas("three", nib.Nifti1Image(fine, np.eye(4)), LABELS)
    coarse = nib.Nifti1Image(np.random.default_rng(0).random((6, 2, 2, VOLUMES), dtype=np.float32), AFFINE)
    with pytest.warns(UserWarning) as caught:
        result = extract_time_series(coarse, atlas)
    assert result.missing == ["Insula"]
    assert [str(warning.message) for warning in caught if warning.category is UserWarning] == [
        "1 of 3 regions are not in the image: Insula. Their signals are NaN (no signal)."
    ]


@pytest.mark.parametrize("distance", [20, 1000])  # a corner in common, but no region; nothing in common
def test_an_image_elsewhere_does_not_overlap(atlas, scan, distance):
    far = AFFINE.copy()
    far[:3, 3] = distance
    with pytest.raises(ValueError, match=r"do not overlap\. Is the image in MNI space"):
        extract_time_series(nib.Nifti1Image(np.asarray(scan.dataobj), far), atlas)


@pytest.mark.parametrize("volumes", [None, 1])
def test_a_single_volume_is_no_scan(atlas, scan, volumes):
    data = np.asarray(scan.dataobj)[..., 0 if volumes is None else slice(volumes)]
    with pytest.raises(ValueError, match="a scan is 4-D"):
        extract_time_series(nib.Nifti1Image(data, AFFINE), atlas)


def test_options_that_would_change_the_columns_are_refused(atlas, scan):
    with pytest.raises(ValueError, match="keep_masked_labels: set by the atlas"):
        extract_time_series(scan, atlas, keep_masked_labels=True)
    with pytest.raises(ValueError, match="must be 'nan' or 'error'"):
        extract_time_series(scan, atlas, missing_regions="drop")


def test_other_errors_of_the_masker_pass_through(atlas, scan):
    with pytest.raises(ValueError, match=r"(?i)strategy"):
        extract_time_series(scan, atlas, strategy="middle")


# Atlases -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbered", [False, True])
def test_a_local_copy_of_aal_needs_no_names(numbered):
    values = range(1, 117) if numbered else region_labels("aal-116")
    atlas = load_label_atlas(labels_img=label_image(list(values)))
    assert list(atlas.labels) == list(values)
    assert list(atlas.labels.values()) == region_names("aal-116")


def test_a_copy_that_lost_a_few_small_regions_keeps_their_places():
    values = [value for value in region_labels("aal-116") if value not in (9140, 9170)]
    assert list(load_label_atlas(labels_img=label_image(values)).labels) == list(region_labels("aal-116"))


@pytest.mark.parametrize("values", [range(1, 167), range(1, 91), [*range(1, 116), 2001], range(5000, 5116)])
def test_another_atlas_is_not_taken_for_aal(values):
    with pytest.raises(ValueError, match=r"not aal-116: it holds \d+ regions.*the atlas has 116 from 2001 to 9170"):
        load_label_atlas("aal", label_image(list(values)))


@pytest.mark.parametrize(
    ("values", "labels", "message"),
    [
        ([1, 2, 3], {1: "a", 2: "b"}, r"1 values without a name \(3\); the names are for values 1 to 2"),
        ([1, 2], {0: "a", 1: "b"}, "0 'a', but 0 is the background"),
        ([1, 2], {0: "Background"}, "names no region"),
        ([1, 2], None, "names of 'mine' are not in this package"),
        ([1.5, 2], {1: "a", 2: "b"}, "holds fractions"),
        ([0], {1: "a"}, "is empty"),
    ],
)
def test_names_and_values_that_do_not_fit(values, labels, message):
    with pytest.raises(ValueError, match=message):
        load_label_atlas("mine", label_image(values, dtype=np.float32), labels)


def test_a_four_dimensional_atlas_is_refused(scan):
    with pytest.raises(ValueError, match="an atlas is 3-D"):
        load_label_atlas("mine", scan, LABELS)


def test_a_table_without_the_needed_columns_is_refused(tmp_path):
    (tmp_path / "rois.tsv").write_text("number\tname\n1\ta\n")
    with pytest.raises(ValueError, match="columns index"):
        load_label_atlas("mine", label_image([1]), tmp_path / "rois.tsv")


def test_names_without_an_image_are_refused():
    with pytest.raises(ValueError, match="pass it as labels_img="):
        load_label_atlas("aal-116", labels=LABELS)


def fake_fetcher(monkeypatch, name, labels, values):
    """Replace a download by a small label image; returns the arguments it gets."""
    from nilearn import datasets

    calls = []

    def fetch(**arguments):
        calls.append(arguments)
        lut = {"index": [0, *labels], "name": ["Background", *labels.values()]}
        return SimpleNamespace(maps=label_image(values), lut=lut)

    monkeypatch.setattr(datasets, name, fetch)
    return calls


def test_aal_is_fetched_in_its_116_region_version(monkeypatch, rng, tmp_path):
    table = region_labels("aal-116")
    backwards = dict(reversed(table.items()))
    calls = fake_fetcher(monkeypatch, "fetch_atlas_aal", backwards, list(table))
    atlas = load_label_atlas(data_dir=tmp_path)
    assert calls == [{"version": "SPM12", "data_dir": tmp_path, "verbose": 0}]
    assert atlas.id == "aal-116" and list(atlas.labels.values()) == region_names("aal-116")

    signals = {value: rng.standard_normal(VOLUMES) for value in table}
    result = extract_time_series(scan_image(atlas.image, signals))
    matrix = FCFeatureExtractor.from_atlas("aal-116")(time_series=result.time_series)["connectivity"][0]
    np.testing.assert_allclose(matrix, np.corrcoef(list(signals.values())), atol=1e-4)


def test_schaefer_names_come_with_the_download_if_we_have_none(monkeypatch):
    labels = {value: f"parcel {value}" for value in range(1, 101)}
    calls = fake_fetcher(monkeypatch, "fetch_atlas_schaefer_2018", labels, list(labels))
    assert load_label_atlas("Schaefer100").labels == labels
    assert calls == [{"n_rois": 100, "yeo_networks": 7, "data_dir": None, "verbose": 0}]


@pytest.mark.parametrize("atlas", ["gordon", "mine"])
def test_atlases_that_cannot_be_fetched(atlas):
    with pytest.raises(ValueError, match=r"cannot be fetched.*label image with labels_img"):
        load_label_atlas(atlas)


def test_without_nilearn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "nilearn", None)
    message = r"pip install large-connectome-model\[nifti\]"
    with pytest.raises(ImportError, match=message):
        load_label_atlas()
    with pytest.raises(ImportError, match=message):
        extract_time_series("bold.nii.gz", LabelAtlas("three", None, LABELS))
