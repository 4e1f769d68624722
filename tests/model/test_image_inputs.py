"""LCMProcessor on images: every atlas of a checkpoint from one reading, absent atlases, what is refused."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modeling_lcm import BEITokenizer, FCFeatureExtractor, LCMProcessor, nifti
from modeling_lcm.nifti import extract_time_series, load_label_atlas


nib = pytest.importorskip("nibabel")
pytest.importorskip("nilearn")

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
SHAPE = (12, 8, 6)
NAMES = {"blocks": [f"block {number}" for number in range(6)], "slabs": [f"slab {number}" for number in range(4)]}


def label_image(regions: int, axis: int) -> Any:
    """Slabs of the volume along an axis, numbered from 1."""
    steps = np.arange(SHAPE[axis]) * regions // SHAPE[axis] + 1
    shape = [1, 1, 1]
    shape[axis] = -1
    return nib.Nifti1Image(np.broadcast_to(steps.reshape(shape), SHAPE).astype(np.int16), AFFINE)


@pytest.fixture
def label_images() -> dict[str, Any]:
    """Two atlases of one volume."""
    return {"blocks": label_image(6, 0), "slabs": label_image(4, 1)}


@pytest.fixture
def scan(rng: np.random.Generator, tmp_path: Path) -> str:
    """A packed image of whole numbers with a scale, as scanners write them."""
    data = (1000 + 100 * rng.standard_normal((*SHAPE, 40))).astype(np.int16)
    image = nib.Nifti1Image(data, AFFINE)
    image.header.set_slope_inter(0.5, 3.0)
    nib.save(image, tmp_path / "bold.nii.gz")
    return str(tmp_path / "bold.nii.gz")


def make_processor(**atlases: Any) -> LCMProcessor:
    """A processor of two atlases whose regions have names, or of those given."""
    named = {name: {"num_regions": len(each), "region_names": each} for name, each in NAMES.items()}
    tokenizer = BEITokenizer.from_records([{"sex": "F"}, {"sex": "M"}])
    return LCMProcessor(FCFeatureExtractor(atlases=atlases or named), tokenizer)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], str]]:
    """What was warned of."""
    logging.getLogger("transformers").propagate = True
    yield lambda: caplog.text
    logging.getLogger("transformers").propagate = False


def test_all_atlases_from_one_reading(
    scan: str, label_images: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    read, load = [], nib.load
    monkeypatch.setattr(nib, "load", lambda path, **options: read.append(path) or load(path, **options))
    array, unpacked = nib.arrayproxy.ArrayProxy.__array__, []
    monkeypatch.setattr(
        nib.arrayproxy.ArrayProxy, "__array__", lambda self, *a, **k: unpacked.append(self) or array(self, *a, **k)
    )
    atlases = {
        name: load_label_atlas(name, image, dict(enumerate(NAMES[name], start=1)))
        for name, image in label_images.items()
    }
    found = make_processor()(images=scan, label_images=atlases)["connectivity"]
    monkeypatch.undo()
    assert len(unpacked) == 1
    for name, atlas in atlases.items():
        single = extract_time_series(scan, atlas).time_series
        np.testing.assert_allclose(found[name][0], np.corrcoef(single.T), atol=1e-6)


def test_label_images_alone_take_the_checkpoints_names(scan: str, label_images: dict[str, Any]) -> None:
    found = make_processor()(images=[scan, scan], label_images=label_images, records=[{"sex": "F"}, {"sex": "M"}])
    assert {name: part.shape for name, part in found["connectivity"].items()} == {
        "blocks": (2, 6, 6),
        "slabs": (2, 4, 4),
    }
    assert found["labels"].ravel().tolist() == [0, 1]
    single = make_processor()(images=scan, label_images=label_images, return_tensors="pt")["connectivity"]
    np.testing.assert_array_equal(single["slabs"][0], found["connectivity"]["slabs"][1])


def test_regions_are_put_into_the_checkpoints_order(scan: str, label_images: dict[str, Any]) -> None:
    names = NAMES["slabs"]
    turned = make_processor(slabs={"num_regions": 4, "region_names": names[::-1]}, other={"num_regions": 7})
    image = load_label_atlas("slabs", label_images["slabs"], dict(enumerate(names, start=1)))
    found = turned(images=scan, label_images={"slabs": image})["connectivity"]["slabs"][0]
    plain = make_processor()(images=scan, label_images={"slabs": image})["connectivity"]["slabs"][0]
    np.testing.assert_array_equal(found, plain[::-1, ::-1])


def test_atlases_without_a_label_image_are_absent(
    scan: str, label_images: dict[str, Any], said: Callable[[], str]
) -> None:
    del label_images["slabs"]
    assert [*make_processor()(images=scan, label_images=label_images)["connectivity"]] == ["blocks"]
    assert "read without the atlas slabs: no label image was given" in said()


def test_without_label_images_those_are_fetched_that_can_be(
    scan: str, label_images: dict[str, Any], said: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = nifti.load_label_atlas

    def fetch(name: str, *given: Any) -> Any:
        if name == "blocks" and not given:
            return load(name, label_images[name], dict(enumerate(NAMES[name], start=1)))
        return load(name, *given)

    monkeypatch.setattr("modeling_lcm.image_inputs.load_label_atlas", fetch)
    assert [*make_processor()(images=scan)["connectivity"]] == ["blocks"]
    assert "without the atlas slabs: The atlas 'slabs' cannot be fetched" in said()


def test_one_atlas_and_names_that_nobody_knows(
    scan: str, label_images: dict[str, Any], said: Callable[[], str]
) -> None:
    tokenizer = BEITokenizer.from_records([{"sex": "F"}, {"sex": "M"}])
    one = LCMProcessor(FCFeatureExtractor("slabs", num_regions=4), tokenizer)
    found = one(images=scan, label_images={"slabs": label_images["slabs"]})["connectivity"]
    expected = make_processor()(images=scan, label_images=label_images)["connectivity"]["slabs"]
    np.testing.assert_array_equal(found, expected)
    assert "The order of the regions of slabs is not checked" in said()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"label_images": {}}, r"No atlas of the checkpoint \(blocks, slabs\) has a label image: give label_images="),
        ({"label_images": {"aal": "x.nii"}}, "label_images has aal-116; the checkpoint's atlases are blocks, slabs"),
        ({"label_images": {"slabs": label_image(3, 1)}}, "has 3 regions, the checkpoint 4"),
        ({"confounds": [1, 2], "images": ["a", "b", "c"]}, "Got 3 images and 2 confounds"),
        ({"connectivity": {"slabs": np.eye(4)}}, "Pass images alone"),
        ({"images": None, "label_images": {}}, "belong to images"),
    ],
)
def test_refusals(scan: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_processor()(**{"images": scan, **given})


def test_atlases_of_different_scans(rng: np.random.Generator, said: Callable[[], str]) -> None:
    # Sources that correlate in each scan in a way of its own.
    sources = rng.standard_normal((30, 60, 4)) @ rng.standard_normal((30, 4, 4))
    first = sources @ rng.standard_normal((4, 6)) + 0.3 * rng.standard_normal((30, 60, 6))
    second = sources + 0.3 * rng.standard_normal((30, 60, 4))
    processor = make_processor()
    processor(time_series={"blocks": first, "slabs": second})
    assert "same scans" not in said()
    processor(time_series={"blocks": first, "slabs": second[::-1]})
    assert "connectomes of blocks and slabs do not look like those of the same scans" in said()
    with pytest.raises(ValueError, match=r"Scan 0 has different numbers of volumes \(60 in blocks, 55 in slabs\)"):
        processor(time_series={"blocks": first[0], "slabs": second[0, 5:]})
