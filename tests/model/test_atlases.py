"""Atlases: ids, region tables, coordinates, fingerprints; and that nothing but the tables needs data files."""

import csv
import shutil
import subprocess
import sys

import numpy as np
import pytest

from modeling_lcm import FCFeatureExtractor, atlases
from modeling_lcm.atlases import (
    ATLASES,
    atlases_with,
    find_atlas,
    fingerprint,
    get_atlas,
    region_coordinates,
    region_labels,
    region_names,
)


WITH_TABLE = [atlas.id for atlas in ATLASES.values() if atlas.has_table]
# Guards the order of the shipped tables: a changed order would silently relabel every region of a saved model.
FINGERPRINTS = {
    "aal-116": "cb807eaaa2e56660",
    "desikan-killiany-68": "85302843e1a73e99",
    "harvard-oxford-111": "9e9c4e3a78d07797",
    "schaefer-200": "ad9aa7959b2ca5e6",
}


def test_every_spelling_leads_to_exactly_one_atlas():
    spellings = [spelling for atlas in ATLASES.values() for spelling in (atlas.id, *atlas.aliases)]
    assert len(spellings) == len(set(spellings))
    assert all(get_atlas(spelling).id in ATLASES for spelling in spellings)
    assert all(atlas.id.removesuffix("-17").endswith(f"-{atlas.num_regions}") for atlas in ATLASES.values())


@pytest.mark.parametrize("spelling", ["aal-116", "AAL", " aal116 ", "AAL_SPM12"])
def test_get_atlas_ignores_case_and_underscores(spelling):
    assert get_atlas(spelling) is ATLASES["aal-116"]


def test_unknown_atlas_lists_the_known_ones():
    assert find_atlas("aal-117") is None
    with pytest.raises(ValueError, match=r"no atlas 'aal-117'.*aal-116.*schaefer-400"):
        get_atlas("aal-117")


def test_atlases_with_finds_all_of_one_size():
    assert [atlas.id for atlas in atlases_with(200)] == ["craddock-200", "schaefer-200", "schaefer-200-17"]
    assert atlases_with(117) == []


def test_the_atlases_with_tables_are_those_that_have_a_file():
    files = atlases.Path(atlases.__file__).parent.joinpath("atlas_data").glob("*.tsv")
    assert sorted(file.stem for file in files) == sorted(WITH_TABLE) == sorted(FINGERPRINTS)


@pytest.mark.parametrize("atlas_id", WITH_TABLE)
def test_tables_are_complete_and_inside_the_brain(atlas_id):
    names, coordinates, labels = region_names(atlas_id), region_coordinates(atlas_id), region_labels(atlas_id)
    count = ATLASES[atlas_id].num_regions
    assert len(set(names)) == count
    assert list(labels.values()) == names
    assert list(labels) == sorted(labels) and min(labels) > 0
    assert fingerprint(names) == FINGERPRINTS[atlas_id]
    if coordinates is None:
        return  # surfaces have none in MNI space
    assert coordinates.shape == (count, 3)
    assert len(np.unique(coordinates, axis=0)) == count
    # Extent of the MNI brain in mm: x, y, z.
    assert (coordinates > [-75, -110, -65]).all() and (coordinates < [75, 75, 85]).all()


@pytest.mark.parametrize(("atlas_id", "left", "right"), [("aal-116", "_L", "_R"), ("schaefer-200", "_LH_", "_RH_")])
def test_left_regions_are_left(atlas_id, left, right):
    x = region_coordinates(atlas_id)[:, 0]
    names = region_names(atlas_id)
    is_left = np.array([name.endswith(left) if left == "_L" else left in name for name in names])
    is_right = np.array([name.endswith(right) if right == "_R" else right in name for name in names])
    assert is_left.sum() == is_right.sum() >= 54
    assert (x[is_left] < 0).all() and (x[is_right] > 0).all()
    assert (np.abs(x[~is_left & ~is_right]) < 2).all()  # the vermis lies in the midline


def test_coordinates_are_those_of_the_named_structures():
    aal = dict(zip(region_names("aal-116"), region_coordinates("aal-116"), strict=True))
    assert aal["Calcarine_L"][1] < -70 and aal["Frontal_Med_Orb_L"][1] > 40  # back and front
    assert aal["Paracentral_Lobule_R"][2] > 60 and aal["Cerebelum_8_R"][2] < -40  # top and bottom
    schaefer = dict(zip(region_names("schaefer-200"), region_coordinates("schaefer-200"), strict=True))
    np.testing.assert_array_equal(schaefer["7Networks_LH_Vis_1"], [-24, -54, -10])
    np.testing.assert_array_equal(schaefer["7Networks_RH_Default_pCunPCC_3"], [6, -58, 44])


def test_an_atlas_without_table_has_no_names():
    assert region_names("gordon-333") is region_coordinates("gordon-333") is region_labels("gordon-333") is None


def test_fingerprint_depends_on_names_and_order():
    assert fingerprint(["a", "b"]) == fingerprint(("a", "b"))
    assert len({fingerprint(names) for names in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", "c"])}) == 4


@pytest.mark.parametrize(("atlas_id", "folder"), [("aal-116", "abide1-aal116"), ("schaefer-200", "lemon-schaefer200")])
def test_order_is_that_of_the_data_sets(shared_dir, atlas_id, folder):
    with (shared_dir / "data" / folder / "rois.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert region_names(atlas_id) == [row["name"] for row in rows]
    if "code" in rows[0]:
        assert list(region_labels(atlas_id)) == [int(row["code"]) for row in rows]


def test_a_copy_without_data_files_works_and_says_what_its_tables_need(tmp_path):
    shutil.copy(atlases.__file__, tmp_path / "atlases.py")
    code = (
        "import atlases; assert atlases.get_atlas('aal').num_regions == 116\n"
        "try: atlases.region_names('aal')\n"
        "except FileNotFoundError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "pip install large-connectome-model" in result.stdout


def test_a_checkpoint_without_names_takes_those_of_its_atlas(rng: np.random.Generator) -> None:
    names, order = region_names("harvard-oxford-111"), rng.permutation(111)
    extractor = FCFeatureExtractor(
        atlases={"aal-116": {"num_regions": 116}, "harvard-oxford-111": {"num_regions": 111}}
    )
    signals = rng.standard_normal((150, 111))
    given = {"time_series": {"harvard-oxford-111": signals}}
    turned = {"time_series": {"harvard-oxford-111": signals[:, order]}}
    expected = extractor(**given)["connectivity"]["harvard-oxford-111"]
    found = extractor(**turned, region_names={"harvard-oxford-111": [names[place] for place in order]})
    np.testing.assert_array_equal(found["connectivity"]["harvard-oxford-111"], expected)
