"""Names of regions in the spellings that data come with, matched to those of an atlas."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_lcm.atlases import region_labels, region_names
from modeling_lcm.region_matching import find_regions, first_difference, networks, only_numbered


AAL, SCHAEFER = region_names("aal-116"), region_names("schaefer-200")
HARVARD_OXFORD = [
    f"{side} {name}" for name in ("Frontal Pole", "Insular Cortex", "Thalamus") for side in ("Left", "Right")
]


def side_first(name: str) -> str:
    """ "Insula_L" as "L_Insula"."""
    return f"{name[-1]}_{name[:-2]}" if name[-2:] in ("_L", "_R") else name


AAL_SPELLINGS = {
    "as it is": str,
    "upper case": str.upper,
    "spaces": lambda name: name.replace("_", " "),
    "R's dots": lambda name: name.replace("_", "."),
    "side first": side_first,
    "side in full": lambda name: re.sub("_R$", " Right", re.sub("_L$", " Left", name)),
    "prefix of a program": lambda name: f"Mean_{name}",
    "prefix of an atlas": lambda name: f"atlas.{name}",
    "bytes as text": lambda name: f"b'{name}'",
    "quoted": lambda name: f' "{name}" ',
    "numbered": lambda name: f"{AAL.index(name) + 1} {name}",
    "CONN": lambda name: f"aal.{name[:3]} ({name})",
    "label value": lambda name: str(list(region_labels("aal-116"))[AAL.index(name)]),
    "label value of AFNI": lambda name: f"Mean_{list(region_labels('aal-116'))[AAL.index(name)]} ",
    "label value as a decimal number": lambda name: f"{list(region_labels('aal-116'))[AAL.index(name)]}.0",
    "cerebellum": lambda name: name.replace("Cerebelum", "Cerebellum"),
}
SCHAEFER_SPELLINGS = {
    "without networks": lambda name: name.removeprefix("7Networks_"),
    "R's names": lambda name: f"X{name}",
    "authors' file": lambda name: f"Schaefer2018_200Parcels_{name}",
    "lower case": lambda name: name.removeprefix("7Networks_").lower(),
    "label value": lambda name: str(SCHAEFER.index(name) + 1),
}


@pytest.mark.parametrize("spelling", AAL_SPELLINGS)
def test_aal_in_any_spelling_and_order(spelling: str, rng: np.random.Generator) -> None:
    order = rng.permutation(116)
    given_names = [AAL_SPELLINGS[spelling](AAL[position]) for position in order]
    assert find_regions(given_names, AAL, region_labels("aal-116")) == order.tolist()


@pytest.mark.parametrize("spelling", SCHAEFER_SPELLINGS)
def test_schaefer_in_any_spelling_and_order(spelling: str, rng: np.random.Generator) -> None:
    order = rng.permutation(200)
    given_names = [SCHAEFER_SPELLINGS[spelling](SCHAEFER[position]) for position in order]
    assert find_regions(given_names, SCHAEFER, region_labels("schaefer-200")) == order.tolist()


@pytest.mark.parametrize(
    "spell",
    [
        lambda name: f"{name.split(' ', 1)[1]} {name[0]}",  # "Frontal Pole L"
        lambda name: f"{name.split(' ', 1)[1]}, {name.split()[0].lower()}",  # "Frontal Pole, left"
        lambda name: f"atlas.FP {name[0].lower()} ({name.split(' ', 1)[1]} {name.split()[0]})",  # CONN
        lambda name: name.replace("Left", "lh").replace("Right", "rh").replace(" ", "-"),
    ],
)
def test_harvard_oxford_of_other_software(spell) -> None:
    assert find_regions([spell(name) for name in HARVARD_OXFORD[::-1]], HARVARD_OXFORD) == [5, 4, 3, 2, 1, 0]


@settings(deadline=None, max_examples=50)
@given(
    names=st.lists(st.text("abcdefgh_ ", min_size=1, max_size=6).map(str.strip).filter(bool), min_size=2, unique=True),
    seed=st.integers(0, 1000),
)
def test_names_as_they_are_always_match_themselves(names: list[str], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(names))
    assert find_regions([names[position] for position in order], names) == order.tolist()


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(AAL_SPELLINGS)), st.sets(st.integers(0, 115), min_size=1), st.integers(0, 99))
def test_absent_and_unknown_names_never_become_another_region(spelling: str, kept: set[int], seed: int) -> None:
    positions = np.random.default_rng(seed).permutation(sorted(kept))
    given_names = [AAL_SPELLINGS[spelling](AAL[position]) for position in positions]
    found = find_regions([*given_names, "Confound"], AAL, region_labels("aal-116"))
    assert found[-1] is None
    assert all(place in (None, position) for place, position in zip(found, positions, strict=False))


def test_the_17_network_version_is_not_the_7_network_one() -> None:
    other = [name.replace("7Networks", "17Networks") for name in SCHAEFER]
    assert set(find_regions(other, SCHAEFER)) == {None}
    assert (networks(other), networks(SCHAEFER)) == ({"17"}, {"7"})


def test_a_spelling_that_merges_regions_is_not_used() -> None:
    assert find_regions(["a L", "L a"], ["a L", "L a"]) == [0, 1]
    assert find_regions(["A_l", "l_A"], ["a L", "L a"]) == [0, 1]
    assert find_regions(["Left a"], ["a L", "L a"]) == [None]


@pytest.mark.parametrize(
    ("names", "any_number", "made_up"),
    [
        (["V1", "V2", "V3"], True, True),
        (["0", "1", "2"], True, True),
        (["ROI_001", "ROI_002"], True, False),
        (["V2", "V1"], False, False),
        (["V1", "M1"], False, False),
    ],
)
def test_names_that_only_count(names: list[str], any_number: bool, made_up: bool) -> None:
    assert only_numbered(names) == any_number
    assert only_numbered(names, made_up=True) == made_up


def test_the_first_difference_is_named() -> None:
    assert first_difference(["a", "c"], ["a", "b"]) == "region 2 is 'c' in the data and 'b' here"
    assert first_difference(["a"], ["a", "b"]) == "region 2, 'b', is not in the data"
    assert first_difference(["a", "b", "c"], ["a", "b"]) == "region 3, 'c', is only in the data"
