"""Atlases that come as the user's own label image, folders that mix atlases, and scanners beside sites."""

import re
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest

from tests.conftest import REPOSITORY
from tests.training.preparation.layouts import SHAPE, brain_affine
from training.data.cohort import load_cohort
from training.preparation.arguments import MergeArguments, PrepareArguments
from training.preparation.assemble import summary_of
from training.preparation.build import prepare
from training.preparation.merging import merge


@pytest.fixture
def write_labelled_scan(tmp_path: Path, rng: np.random.Generator) -> Callable[[np.ndarray, str], np.ndarray]:
    """Function that writes a scan whose regions, by value in a label array, have random signals, and returns these."""

    def write(labels: np.ndarray, name: str) -> np.ndarray:
        values = np.unique(labels[labels > 0])
        signals = rng.standard_normal((30, len(values))).astype(np.float32)
        data = np.full((*labels.shape, 30), 1000, dtype=np.float32)
        for column, value in enumerate(values):
            data[labels == value] += 20 * signals[:, column]
        nibabel.save(nibabel.Nifti1Image(data, brain_affine()), tmp_path / name)
        return signals

    return write


def spread_labels(values: range) -> np.ndarray:
    """A label array with three voxels per value, far from the edge of the coarse grid."""
    labels = np.zeros(SHAPE, dtype=np.int32)
    inner = labels[3:-3, 3:-3, 3:-3].copy()
    inner.flat[: 3 * len(values)] = np.repeat(list(values), 3)
    labels[3:-3, 3:-3, 3:-3] = inner
    return labels


def people(folder: Path, names: str, **columns: list) -> str:
    """A table of subjects called by single letters."""
    table = pd.DataFrame({"participant_id": list(names), **columns})
    table.to_csv(folder / "people.tsv", sep="\t", index=False)
    return str(folder / "people.tsv")


def test_gordon_from_a_label_image_of_ones_own(tmp_path: Path, write_labelled_scan: Callable) -> None:
    labels = spread_labels(range(1, 334))
    nibabel.save(nibabel.Nifti1Image(labels, brain_affine()), tmp_path / "gordon.nii.gz")
    table = pd.DataFrame({"index": range(1, 334), "name": [f"parcel {value}" for value in range(1, 334)]})
    table.to_csv(tmp_path / "gordon.tsv", sep="\t", index=False)
    signals = write_labelled_scan(labels, "a.nii.gz")
    labels[labels == 7] = 0  # a region that this subject's image lacks is found by its value
    write_labelled_scan(labels, "b.nii.gz")
    settings = PrepareArguments(
        output=str(tmp_path / "out"), participants=people(tmp_path, "ab"), parquet=False,
        images=str(tmp_path / "{participant_id}.nii.gz"),
        atlas="gordon", labels_img=str(tmp_path / "gordon.nii.gz"), labels=str(tmp_path / "gordon.tsv"),
    )  # fmt: skip
    cohort = load_cohort(prepare(settings))
    assert (cohort.feature_extractor.atlas, cohort.feature_extractor.num_regions) == ("gordon-333", 333)
    assert cohort.feature_extractor.region_names[6] == "parcel 7"
    np.testing.assert_allclose(cohort.connectivity()[0], np.corrcoef(signals.T), atol=2e-3)


def test_harvard_oxford_as_the_data_guide_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nilearn's own fetcher, whose archive lies in its download folder already, then the guide's lines."""
    folder = tmp_path / "fsl" / "data" / "atlases"
    (folder / "HarvardOxford").mkdir(parents=True)
    names = ["Left Frontal Pole", "Right Frontal Pole", "Left Insular Cortex", "Right Insular Cortex"]
    image = nibabel.Nifti1Image(spread_labels(range(1, 5)), brain_affine())
    nibabel.save(image, folder / "HarvardOxford" / "HarvardOxford-cortl-maxprob-thr25-2mm.nii.gz")
    lines = "".join(f'<label index="{index}" x="1" y="1" z="1">{name}</label>' for index, name in enumerate(names))
    (folder / "HarvardOxford-Cortical-Lateralized.xml").write_text(f"<atlas><data>{lines}</data></atlas>")
    monkeypatch.setenv("NILEARN_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    guide = (REPOSITORY / "docs" / "data.md").read_text()
    (code,) = re.findall(
        r"```python\n(from nilearn.datasets import fetch_atlas_harvard_oxford.*?)```", guide, re.DOTALL
    )
    exec(compile(code, "docs/data.md", "exec"), {})
    table = pd.read_csv("ho.tsv", sep="\t")
    assert table["index"].tolist() == [1, 2, 3, 4]
    assert table["name"].tolist() == names
    assert set(np.unique(nibabel.load("ho.nii.gz").dataobj)) == {0, 1, 2, 3, 4}


def test_a_folder_that_mixes_atlases_says_so(tmp_path: Path, rng: np.random.Generator) -> None:
    for name, regions in zip("abcd", (116, 100, 116, 100), strict=True):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((40, regions)))
    folder = prepare(
        PrepareArguments(
            output=str(tmp_path / "out"), participants=people(tmp_path, "abcd"), parquet=False,
            time_series=str(tmp_path / "{participant_id}.npy"),
        )
    )  # fmt: skip
    assert load_cohort(folder).table["subject_id"].tolist() == ["a", "c"]
    text, dropped = summary_of(folder)
    assert dropped == 2
    assert "2 scans have 100 regions (schaefer-100 or schaefer-100-17): the input mixes atlases" in text


def test_scanners_are_kept_beside_sites(tmp_path: Path, rng: np.random.Generator) -> None:
    inputs = []
    for number, scanners in enumerate((["Trio", "Prisma"], ["Trio", None])):
        place = tmp_path / f"cohort{number}"
        place.mkdir()
        for name in "ab":
            np.save(place / f"{name}.npy", rng.standard_normal((40, 116)))
        table = people(place, "ab", centre=["Berlin", "Berlin"], machine=scanners, age=[20, 30])
        settings = PrepareArguments(
            output=str(tmp_path / f"out{number}"), participants=table, time_series=str(place / "{participant_id}.npy"),
            site_column="centre", scanner_column="machine", phenotypes=["age"], parquet=False,
        )  # fmt: skip
        inputs.append(prepare(settings))
    assert load_cohort(inputs[0]).table[["site", "scanner"]].to_numpy().tolist() == [
        ["Berlin", "Trio"],
        ["Berlin", "Prisma"],
    ]
    (merged,) = merge(
        MergeArguments(
            inputs=list(map(str, inputs)), output=str(tmp_path / "merged"), prefix_sites=True, parquet=False
        )
    )
    table = load_cohort(merged).table
    assert table["site"].tolist() == ["out0/Berlin", "out0/Berlin", "out1/Berlin", "out1/Berlin"]
    assert table["scanner"].tolist()[:3] == ["out0/Trio", "out0/Prisma", "out1/Trio"]
    assert table["scanner"].isna().tolist() == [False, False, False, True]
    with pytest.raises(ValueError, match="no column 'serial'"):
        prepare(
            PrepareArguments(
                output=str(tmp_path / "again"), participants=str(tmp_path / "cohort0" / "people.tsv"),
                time_series=str(tmp_path / "cohort0" / "{participant_id}.npy"), scanner_column="serial",
            )
        )  # fmt: skip
