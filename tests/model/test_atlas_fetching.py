"""Atlases by name: nilearn's own functions read files laid out as its downloads are; without them a sentence helps."""

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from modeling_lcm import FCFeatureExtractor
from modeling_lcm.atlas_fetching import fetch_atlas, fetchable
from modeling_lcm.atlases import ATLASES, find_atlas, region_coordinates, region_labels, region_names
from modeling_lcm.nifti import extract_time_series, load_label_atlas, region_table


AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
SHAPE = (12, 12, 12)


def write_labels(path: Path, values: list[int]) -> Path:
    """A label image with two voxels of every value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.zeros(SHAPE, dtype=np.int16)
    data.ravel()[: 2 * len(values)] = np.repeat(values, 2)
    plain = path.with_suffix("") if path.name.endswith(".gz") else path
    nibabel.save(nibabel.Nifti1Image(data, AFFINE), plain)
    if plain != path:
        with plain.open("rb") as source, gzip.open(path, "wb") as target:
            shutil.copyfileobj(source, target)
        plain.unlink()
    return path


def write_schaefer(folder: Path, networks: int) -> None:
    stem = f"schaefer_2018/Schaefer2018_100Parcels_{networks}Networks_order"
    write_labels(folder / f"{stem}_FSLMNI152_1mm.nii.gz", list(range(1, 101)))
    names = [f"{networks}Networks_{side}H_{'Vis' if n < 20 else 'Default'}_{n}" for side in "LR" for n in range(50)]
    lines = [f"{value}\t{name}\t1\t2\t3\t0" for value, name in enumerate(names, start=1)]
    (folder / f"{stem}.txt").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(("name", "networks"), [("schaefer-100", 7), ("Schaefer2018_100Parcels_17Networks_order", 17)])
def test_schaefer_with_both_numbers_of_networks(tmp_path: Path, name: str, networks: int) -> None:
    write_schaefer(tmp_path, networks)
    atlas = load_label_atlas(name, data_dir=tmp_path)
    assert atlas.id == ("schaefer-100" if networks == 7 else "schaefer-100-17")
    table = region_table(atlas)
    assert [row["label"] for row in table] == list(range(1, 101))
    assert [row["network"] for row in table[18:22]] == ["Vis", "Vis", "Default", "Default"]
    # The centre of mass of the two voxels, from the image itself.
    assert [table[0][axis] for axis in "xyz"] == [0.0, 0.0, 2.0]
    extractor = FCFeatureExtractor(atlas=atlas.id, region_names=list(atlas.labels.values()))
    assert extractor.num_regions == 100


def test_basc_and_msdl(tmp_path: Path, rng: np.random.Generator) -> None:
    folder = tmp_path / "basc_multiscale_2015" / "template_cambridge_basc_multiscale_nii_sym"
    write_labels(folder / "template_cambridge_basc_multiscale_sym_scale064.nii.gz", list(range(1, 65)))
    assert len(load_label_atlas("basc-64", data_dir=tmp_path).labels) == 64

    rois = tmp_path / "msdl_atlas" / "MSDL_rois"
    rois.mkdir(parents=True)
    maps = np.zeros((*SHAPE, 39), dtype=np.float32)
    for region in range(39):
        maps[region % 12, region // 12, 2:5, region] = (1, 2, 1)
    nibabel.save(nibabel.Nifti1Image(maps, AFFINE), rois / "msdl_rois.nii")
    places = rng.uniform(-60, 60, (39, 3)).round()
    table = pd.DataFrame(places, columns=["x", "y", "z"]).assign(**{"name": [f" R{n} " for n in range(39)]})
    table.assign(**{"net name": " Aud "}).to_csv(rois / "msdl_rois_labels.csv", index=False)
    atlas = load_label_atlas("msdl", data_dir=tmp_path)
    assert atlas.has_maps and list(atlas.labels.values())[:2] == ["R0", "R1"]
    regions = region_table(atlas)
    assert regions[3]["network"] == "Aud" and [regions[3][axis] for axis in "xyz"] == places[3].tolist()
    signals = rng.standard_normal((30, 39)).astype("f4")
    scan = np.tensordot(maps, signals, (3, 1))
    found = extract_time_series(nibabel.Nifti1Image(scan.astype("f4"), AFFINE), atlas).time_series
    np.testing.assert_allclose(found, signals, atol=1e-4)
    assert set(np.unique(atlas.voxel_labels())) == set(range(40))


@pytest.mark.parametrize(
    "name", ["aal", "aal3", "schaefer-1000-17", "msdl", "basc-122", "harvard-oxford-48", "destrieux"]
)
def test_without_network_a_sentence_says_the_way_round(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    with pytest.raises(ValueError, match=r"could not be downloaded .*NILEARN_DATA.*labels_img") as caught:
        fetch_atlas(name, tmp_path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["gordon", "4S456Parcels", "glasser", "craddock-200", "harvard-oxford-111", "mine"])
def test_atlases_that_nilearn_does_not_have(name: str) -> None:
    with pytest.raises(ValueError, match=r"cannot be fetched; those that can are aal-116, .*labels_img") as caught:
        fetch_atlas(name)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "atlas_id"),
    [
        ("atlas-4S156Parcels", "4s-156"),
        ("seg-4S1056Parcels", "4s-1056"),
        ("Schaefer2018_400Parcels_7Networks_order", "schaefer-400"),
        ("schaefer200x17", "schaefer-200-17"),
        ("Schaefer417", None),
        ("schaefer-250", None),
        ("4S150Parcels", None),
        ("Glasser", "glasser-360"),
        ("atlas-Gordon", "gordon-333"),
        ("AAL3v2", "aal3-166"),
        ("DK", "desikan-killiany-68"),
        ("MSDL", "msdl-39"),
        ("CC200", "craddock-200"),
        ("Tian", None),
    ],
)
def test_spellings_of_pipelines(name: str, atlas_id: str | None) -> None:
    found = find_atlas(name)
    assert (None if found is None else found.id) == atlas_id


def test_every_atlas_is_found_by_its_id_and_counts_its_regions() -> None:
    for atlas_id, atlas in ATLASES.items():
        assert find_atlas(atlas_id.upper().replace("-", "_")) is atlas
        assert str(atlas.num_regions) in atlas_id
        if atlas.has_table:
            assert len(region_names(atlas_id)) == atlas.num_regions
    assert region_coordinates("desikan-killiany-68") is None
    assert region_labels("dk")[2035] == "ctx-rh-insula"
    assert len(region_labels("dk")) == 68 and 1004 not in region_labels("dk")  # the corpus callosum is no region
    assert "msdl-39" in fetchable()
