"""Scans in several atlases: from series, images and XCP-D's tables to one data set; what does not fit."""

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from modeling_lcm.atlases import region_coordinates, region_labels
from tests.training.preparation.layouts import (
    ORIGIN,
    SHAPE,
    SPACING,
    brain_affine,
    write_fmriprep,
    write_label_image,
    write_xcpd,
)
from training.data.cohort import Cohort, load_cohort
from training.preparation import agreement
from training.preparation.agreement import compare_atlases
from training.preparation.arguments import MergeArguments, PrepareArguments, in_each_atlas
from training.preparation.assemble import summary_of
from training.preparation.build import prepare
from training.preparation.merging import _open, merge
from training.preparation.parts import look_alike
from training.preparation.sources import images


SUBJECTS, VOLUMES = 24, 40
IDS = [f"s{number:02d}" for number in range(SUBJECTS)]
SIZES = {"small": 8, "large": 12}


@pytest.fixture
def series(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Time series by atlas `(subjects, volumes, regions)`; both are mixtures of the subject's own signals."""
    mixing = rng.standard_normal((SUBJECTS, 6, 6)) * 1.5
    sources = rng.standard_normal((SUBJECTS, VOLUMES, 6)) @ mixing
    weights = rng.standard_normal((6, 12))
    noise = 0.3 * rng.standard_normal((SUBJECTS, VOLUMES, 12))
    whole = sources @ weights + noise
    return {"small": whole[:, :, :8] + 0.1 * noise[:, :, ::-1][:, :, :8], "large": whole}


def fc_of(series: np.ndarray) -> np.ndarray:
    return np.stack([np.corrcoef(each.T) for each in series])


@pytest.fixture
def study(tmp_path: Path, series: dict[str, np.ndarray]) -> Path:
    """`participants.tsv`, and a file per scan and atlas `ATLAS/ID.npy`."""
    pd.DataFrame({"participant_id": IDS, "age": range(20, 20 + SUBJECTS)}).to_csv(
        tmp_path / "participants.tsv", sep="\t", index=False
    )
    for atlas, scans in series.items():
        (tmp_path / atlas).mkdir()
        for subject, scan in zip(IDS, scans, strict=True):
            np.save(tmp_path / atlas / f"{subject}.npy", scan.astype("f4"))
    return tmp_path


@pytest.fixture
def prepared(study: Path) -> Callable[..., Cohort]:
    """Function that prepares both atlases and loads the data set."""

    def make(name: str = "out", **settings: object) -> Cohort:
        given = {"atlas": ["small", "large"], "time_series": str(study / "{atlas}" / "{participant_id}.npy")}
        output = prepare(
            PrepareArguments(
                output=str(study / name), participants=str(study / "participants.tsv"), **{**given, **settings}
            )
        )
        return load_cohort(output)

    return make


def test_two_atlases_of_every_scan(
    prepared: Callable[..., Cohort], series: dict[str, np.ndarray], study: Path
) -> None:
    cohort = prepared(keep_time_series=True)
    assert {name: each.num_regions for name, each in cohort.atlases.items()} == SIZES
    for atlas, found in cohort.connectivity().items():
        np.testing.assert_allclose(found, fc_of(series[atlas]), atol=2e-3)
        one = cohort.with_atlas(atlas)
        np.testing.assert_array_equal(one.connectivity(), found)
        kept = one.time_series(np.arange(SUBJECTS))[3]
        assert kept.shape == (VOLUMES, SIZES[atlas])
        np.testing.assert_allclose(np.corrcoef(kept.astype(float).T), found[3], atol=5e-3)
    assert cohort.phenotypes() == ["age"]
    # The first atlas reads as a data set of this atlas alone.
    data = datasets.load_from_disk(str(study / "out"))
    assert data.column_names[-6:] == [
        "connectivity", "time_series", "volumes", "connectivity_large", "time_series_large", "volumes_large",
    ]  # fmt: skip
    assert json.loads((study / "out" / "fc_definition.json").read_text())["atlas"] == "small"
    parquet = datasets.load_dataset(str(study / "out" / "parquet"), split="train", cache_dir=str(study / "cache"))
    np.testing.assert_array_equal(np.array(parquet["connectivity_large"], np.float16), cohort.others[0].triangles)
    assert "`connectivity_large`: the same scans in 12 regions of large" in (study / "out" / "README.md").read_text()
    # A pattern for each atlas says the same, and so do the atlases one by one.
    patterns = [str(study / atlas / "{participant_id}.npy") for atlas in SIZES]
    assert prepared("again", time_series=patterns, keep_time_series=True).checksum() == cohort.checksum()
    alone = prepared("alone", atlas="large", time_series=patterns[1])
    np.testing.assert_array_equal(alone.connectivity(), cohort.connectivity()["large"])


def test_scans_that_lack_an_atlas_are_nan_there(prepared: Callable[..., Cohort], study: Path) -> None:
    (study / "small" / "s01.npy").unlink()
    (study / "large" / "s02.npy").unlink()
    (study / "large" / "s03.npy").write_bytes(b"broken")
    for name in ("small", "large"):
        (study / name / "s04.npy").unlink()
    cohort = prepared(keep_time_series=True)
    absent = {"small": ["s01"], "large": ["s02", "s03"]}
    for atlas, found in cohort.connectivity().items():
        missing = cohort.table["subject_id"][np.isnan(found).all(axis=(1, 2))].tolist()
        assert missing == absent[atlas]
        assert not set(absent[atlas]) & set(cohort.with_atlas(atlas).subjects)
        own = cohort.with_atlas(atlas)
        assert all(scan is not None for scan in own.time_series(np.arange(len(own))))
    assert len(cohort) == SUBJECTS - 1
    text, dropped = summary_of(study / "out")
    assert "1 scans are not there in the atlas large" in text
    assert "in the atlas large: s03.npy cannot be read" in text and dropped == 2
    assert np.isfinite(np.load(study / "out" / "fc_statistics.npz")["mean"]).all()


def test_interrupted_and_sharded_runs_give_the_same(prepared: Callable[..., Cohort], study: Path) -> None:
    whole = prepared()
    settings = {"output": str(study / "parts"), "participants": str(study / "participants.tsv"),
                "atlas": [*SIZES], "time_series": str(study / "{atlas}" / "{participant_id}.npy")}  # fmt: skip
    for shard in ("1/2", "2/2"):
        prepare(PrepareArguments(**settings, shard=shard))
    assert load_cohort(prepare(PrepareArguments(**settings, merge_shards=2))).checksum() == whole.checksum()
    assert prepared("workers", workers=2).checksum() == whole.checksum()


def test_atlases_of_other_scans_are_refused_or_named(
    prepared: Callable[..., Cohort], study: Path, series: dict[str, np.ndarray], rng: np.random.Generator
) -> None:
    order = np.roll(np.arange(SUBJECTS), 5)
    for subject, other in zip(IDS, order, strict=True):
        np.save(study / "large" / f"{subject}.npy", series["large"][other].astype("f4"))
    with pytest.raises(ValueError, match=r"small and large are not of the same scans: .* mixed up\?"):
        prepared()
    for subject, scan in zip(IDS, series["large"], strict=True):
        np.save(study / "large" / f"{subject}.npy", scan.astype("f4"))
    np.save(study / "large" / "s05.npy", rng.standard_normal((VOLUMES - 5, 12)).astype("f4"))
    prepared("named")
    text = summary_of(study / "named")[0]
    assert "1 scans have other numbers of volumes in one atlas than in another" in text


def test_agreement_of_atlases(series: dict[str, np.ndarray], rng: np.random.Generator) -> None:
    small, large = (fc_of(each)[:, *np.triu_indices(each.shape[-1], 1)] for each in series.values())
    rank, odd = compare_atlases(lambda: iter([small]), lambda: iter(np.array_split(large, 5)))
    assert rank < 0.05 and odd == []
    shuffled = large[rng.permutation(SUBJECTS)]
    assert compare_atlases(lambda: iter([small]), lambda: iter([shuffled]))[0] > agreement.SHUFFLED
    swapped = large.copy()
    swapped[[2, 9]] = swapped[[9, 2]]
    rank, odd = compare_atlases(lambda: iter([small]), lambda: iter([swapped]))
    assert rank < agreement.SHUFFLED and set(odd) <= {2, 9} and odd
    assert np.isnan(compare_atlases(lambda: iter([small[:9]]), lambda: iter([large[:9]]))[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"atlas": ["a", "b"], "time_series": "x/{id}.npy"},
            r"atlas has 2 values and time_series has 1: .* \{atlas\}",
        ),
        ({"atlas": ["a"], "connectivity": ["x", "y"]}, "connectivity has 2 values and atlas has 1: with several"),
        ({"connectivity": ["x", "y"]}, "connectivity has 2 values: name the atlas of each with --atlas"),
        ({"atlas": ["a", "a"]}, "atlas has a twice"),
        ({"atlas": ["a", "b"], "images": "x", "labels_img": "y"}, "atlas has 2 values and labels_img has 1"),
    ],
)
def test_settings_of_atlases_that_do_not_fit(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        in_each_atlas(PrepareArguments(**settings))


def write_half_atlas(path: Path) -> None:
    """An atlas of the left and right halves of AAL's regions, with its table."""
    import nibabel

    labels = np.zeros(SHAPE, dtype=np.int32)
    voxels = np.round((region_coordinates("aal-116") - ORIGIN) / SPACING).astype(int)
    for number, voxel in enumerate(voxels[:20], start=1):
        labels[tuple(voxel)] = number
    nibabel.save(nibabel.Nifti1Image(labels, brain_affine()), path)
    names = list(region_labels("aal-116").values())[:20]
    pd.DataFrame({"index": range(1, 21), "name": names}).to_csv(path.with_suffix(".tsv"), sep="\t", index=False)


def test_images_are_read_once_for_all_atlases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels_img = write_label_image(tmp_path / "aal.nii.gz")
    folder = write_fmriprep(tmp_path / "fmriprep", labels_img)
    write_half_atlas(tmp_path / "half.nii")
    aal = pd.DataFrame([{"index": value, "name": name} for value, name in region_labels("aal-116").items()])
    aal.to_csv(tmp_path / "aal.tsv", sep="\t", index=False)
    read, load = [], images.load_image
    monkeypatch.setattr(images, "load_image", lambda path: read.append(path) or load(path))
    cohort = load_cohort(
        prepare(
            PrepareArguments(
                output=str(tmp_path / "out"), bids=str(folder), session_column="scan", confounds="none",
                atlas=["aal-116", "half"], labels_img=[str(labels_img), str(tmp_path / "half.nii")],
                labels=[str(tmp_path / "aal.tsv"), str(tmp_path / "half.tsv")],
            )
        )
    )  # fmt: skip
    assert len(read) == len(cohort) == 7
    found = cohort.connectivity()
    assert [each.shape[1] for each in found.values()] == [116, 20]
    # Regions of one voxel and of eight with the same signal correlate with the others alike.
    np.testing.assert_allclose(found["half"], found["aal-116"][:, :20, :20], atol=0.05)


def test_tables_of_xcpd_in_two_atlases(tmp_path: Path, series: dict[str, np.ndarray]) -> None:
    for atlas, scans in series.items():
        names = [f"{atlas} {number}" for number in range(SIZES[atlas])]
        folder = write_xcpd(
            tmp_path / "xcpd", {f"sub-{n:02d}_task-rest": scan for n, scan in enumerate(scans)}, names, f"seg-{atlas}"
        )
    settings = {"output": str(tmp_path / "out"), "input": str(folder), "atlas": ["small", "large"], "parquet": False}
    cohort = load_cohort(prepare(PrepareArguments(**settings)))
    for atlas, found in cohort.connectivity().items():
        np.testing.assert_allclose(found, fc_of(series[atlas]), atol=2e-3)


# --- merging ---


@pytest.fixture
def one_by_one(study: Path) -> Callable[..., Path]:
    """Function that prepares one atlas of the study alone."""

    def make(atlas: str, name: str | None = None, **settings: object) -> Path:
        given = {"participants": str(study / "participants.tsv"), "keep_time_series": True, "parquet": False}
        pattern = str(study / atlas / "{participant_id}.npy")
        output = str(study / (name or f"only {atlas}"))
        return prepare(PrepareArguments(output=output, atlas=atlas, time_series=pattern, **{**given, **settings}))

    return make


def merged(*inputs: Path, output: Path, **settings: object) -> Cohort:
    (folder,) = merge(MergeArguments(inputs=list(map(str, inputs)), output=str(output), parquet=False, **settings))
    return load_cohort(folder)


def test_data_sets_of_one_cohort_in_two_atlases_become_one(
    one_by_one: Callable[..., Path], prepared: Callable[..., Cohort], study: Path
) -> None:
    (study / "small" / "s01.npy").unlink()
    (study / "large" / "s02.npy").unlink()
    parts = [one_by_one("small"), one_by_one("large")]
    both = merged(*parts, output=study / "both")
    assert list(both.atlases) == ["small", "large"] and len(both) == SUBJECTS
    assert set(both.table["subject_id"]) == set(IDS)  # one cohort: ids stay
    assert both.phenotypes() == ["age"]
    whole = prepared(keep_time_series=True)
    for atlas in SIZES:
        mine, theirs = both.with_atlas(atlas), whole.with_atlas(atlas)
        order = [mine.subjects.tolist().index(subject) for subject in theirs.subjects]
        np.testing.assert_array_equal(mine.triangles[order], theirs.triangles[:])
        for scan, other in zip(
            mine.time_series(np.array(order)), theirs.time_series(np.arange(len(theirs))), strict=True
        ):
            np.testing.assert_array_equal(scan, other)
    # More cohorts join those two; the scans of one that lacks an atlas are NaN there.
    table = pd.DataFrame({"participant_id": IDS, "age": range(50, 50 + SUBJECTS)})
    table.assign(participant_id="x" + table["participant_id"]).to_csv(study / "others.tsv", sep="\t", index=False)
    for subject in IDS:
        if (study / "small" / f"{subject}.npy").is_file():
            scan = np.load(study / "small" / f"{subject}.npy")
            np.save(study / "small" / f"x{subject}.npy", scan[::-1] + np.random.default_rng(1).normal(size=scan.shape))
    other = one_by_one("small", "other cohort", participants=str(study / "others.tsv"))
    three = merged(*parts, other, output=study / "three")
    assert three.table["dataset"].value_counts().to_dict() == {"only small": SUBJECTS, "other cohort": SUBJECTS - 1}
    assert three.has_atlas("large").sum() == SUBJECTS - 1
    assert three.with_atlas("small").table["dataset"].value_counts()["other cohort"] == SUBJECTS - 1
    assert set(three.table["subject_id"]) == {*(f"only small/{n}" for n in IDS), *(
        f"other cohort/x{n}" for n in IDS if n != "s01")}  # fmt: skip


def test_atlases_that_are_not_of_one_cohort_or_contradict(
    one_by_one: Callable[..., Path], study: Path, series: dict[str, np.ndarray]
) -> None:
    small = one_by_one("small")
    table = pd.read_csv(study / "participants.tsv", sep="\t")
    table.assign(age=table["age"] + (table["participant_id"] == "s07")).to_csv(
        study / "older.tsv", sep="\t", index=False
    )
    older = one_by_one("large", "older", participants=str(study / "older.tsv"))
    with pytest.raises(ValueError, match=r"in two atlases, but 'age' of subject s07 is 27\S* in one and 28"):
        merged(small, older, output=study / "both")
    for subject in IDS:
        (study / "large" / f"{subject}.npy").rename(study / "large" / f"y{subject}.npy")
    table.assign(participant_id="y" + table["participant_id"]).to_csv(study / "y.tsv", sep="\t", index=False)
    strangers = one_by_one("large", "strangers", participants=str(study / "y.tsv"))
    with pytest.raises(ValueError, match=r"do not fit together: num_regions is 8 and 12.* --by_atlas true"):
        merged(small, strangers, output=study / "both")
    order = np.roll(np.arange(SUBJECTS), 3)
    for subject, number in zip(IDS, order, strict=True):
        np.save(study / "large" / f"{subject}.npy", series["large"][number].astype("f4"))
    with pytest.raises(ValueError, match="are not of the same scans"):
        merged(small, one_by_one("large", "mixed up"), output=study / "both")
    assert not (study / "both").exists()


def test_cohorts_in_different_atlases_side_by_side(one_by_one: Callable[..., Path], study: Path) -> None:
    small = one_by_one("small")
    table = pd.read_csv(study / "participants.tsv", sep="\t")
    table.assign(participant_id="y" + table["participant_id"]).to_csv(study / "y.tsv", sep="\t", index=False)
    for subject in IDS:
        (study / "large" / f"{subject}.npy").rename(study / "large" / f"y{subject}.npy")
    settings = {"participants": str(study / "y.tsv")}
    strangers = one_by_one("large", "strangers", **settings)
    both = merged(small, strangers, output=study / "both", union=True)
    assert len(both) == 2 * SUBJECTS
    assert (both.has_atlas("small") ^ both.has_atlas("large")).all()
    assert (both.has_atlas("large") == (both.table["dataset"] == "strangers")).all()
    assert "in common, and count as different subjects" not in summary_of(study / "both")[0]
    # What is in the same atlas must have the same regions, whichever cohort comes first.
    names = study / "names.tsv"
    names.write_text("\n".join(["name", *(f"region {number}" for number in range(SIZES["large"]))]))
    named = one_by_one("large", "named", regions=str(names), **settings)
    with pytest.raises(ValueError, match="strangers and named have other region names"):
        merged(small, strangers, named, output=study / "three", union=True)


def test_cohorts_of_other_names_with_the_same_ids_are_named(one_by_one: Callable[..., Path]) -> None:
    small, large = (_open(one_by_one(atlas), prefix_sites=False) for atlas in SIZES)
    (remark,) = look_alike([small, large])
    assert remark.startswith(f"only small and only large have the ids of {SUBJECTS} scans in common")
    assert look_alike([small, small]) == []  # in one atlas, merging has its own words for it
    large.table["cohort_subject_id"] = "y" + large.table["cohort_subject_id"]
    assert look_alike([small, large]) == []
