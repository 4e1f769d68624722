"""Derivatives in BIDS layout: which files are scans, choosing among them, XCP-D's tables, coverage of regions."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.preparation.layouts import brain_affine, signals_of, write_image, write_label_image, write_xcpd
from training.data.cohort import Cohort, load_cohort
from training.preparation.arguments import PrepareArguments
from training.preparation.assemble import summary_of
from training.preparation.build import prepare
from training.preparation.sources.bids import bids_source
from training.preparation.sources.entities import BIDSFile, choose, one_version, parse_selection
from training.preparation.sources.images import confounds_path, region_coverage
from training.preparation.sources.parcels import without_censored
from training.prepare import main


REGIONS = 10
NAMES = [f"R{number}" for number in range(REGIONS)]
MNI = "space-MNI152NLin2009cAsym"
TELLING = ("ses", "task", "acq", "ce", "rec", "dir", "run", "echo", "part", "chunk")


def file_of(name: str) -> BIDSFile:
    return BIDSFile.of(Path("func") / name)


# --- names ---


@given(st.dictionaries(st.sampled_from(TELLING), st.integers(1, 30).map(str), min_size=1))
def test_every_entity_tells_scans_apart_and_no_version_does(entities: dict[str, str]) -> None:
    stem = "_".join(["sub-01", *(f"{key}-{value}" for key, value in entities.items())])
    file = file_of(f"{stem}_{MNI}_res-2_desc-preproc_bold.nii.gz")
    assert file.scan == entities
    assert list(file.scan) == [key for key in TELLING if key in entities]
    assert file.key == file_of(f"{stem}_space-T1w_cohort-1_desc-denoised_bold.nii.gz").key
    for key in entities:
        assert file.key != file.without(key).key
        changed = {**entities, key: "other"}
        other = "_".join(["sub-01", *(f"{name}-{value}" for name, value in changed.items())])
        assert len(one_version([file, file_of(f"{other}_{MNI}_res-2_desc-preproc_bold.nii.gz")])) == 2


@pytest.mark.parametrize("key", ["res", "den", "space", "desc", "label", "cohort"])
def test_versions_of_one_scan_name_the_setting(key: str) -> None:
    files = [file_of(f"sub-01_task-rest_{key}-{value}_bold.nii.gz") for value in ("a", "b")]
    with pytest.raises(
        ValueError, match=rf"one scan in two versions: choose with --select {key}=a or --select {key}=b"
    ):
        one_version(files)
    assert one_version(choose(files, parse_selection([f"{key}=b"]), Path("x"))) == files[1:]


def test_selection() -> None:
    files = [file_of(f"sub-01_run-{run}_{MNI}_bold.nii.gz") for run in ("01", "02", "10")]
    files.append(file_of(f"sub-01_{MNI}_bold.nii.gz"))
    found = choose(files, parse_selection(["run=1", "run=run-10"]), Path("x"))
    assert [file.entities["run"] for file in found] == ["01", "10"]
    assert choose(files, parse_selection(["run="]), Path("x")) == files[3:]
    with pytest.raises(ValueError, match=r"No scan in x has run=3, .*; there are run-01, run-02, run-10"):
        choose(files, parse_selection(["run=3"]), Path("x"))
    with pytest.raises(ValueError, match="there is no scan with echo"):
        choose(files, parse_selection(["echo=1"]), Path("x"))
    for item in ("res", "res-2", "=2"):
        with pytest.raises(ValueError, match=rf"select has '{item}'; needed is ENTITY=VALUE"):
            parse_selection([item])


# --- images ---


@pytest.fixture(scope="module")
def labels_img(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AAL-116 on a coarse grid."""
    return write_label_image(tmp_path_factory.mktemp("atlas") / "aal.nii.gz")


def image_folder(folder: Path, labels_img: Path, parts: list[str]) -> Path:
    """An fMRIPrep folder of one subject with these images; the signals are those of the position in the list."""
    func = folder / "sub-01" / "func"
    func.mkdir(parents=True)
    for number, part in enumerate(parts):
        signals = signals_of(number, 30, np.random.default_rng(number))
        write_image(func / f"sub-01_task-rest_{part}_desc-preproc_bold.nii.gz", labels_img, signals)
    (folder / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\n")
    return folder


def prepare_images(folder: Path, labels_img: Path, **settings: object) -> Cohort:
    given = {"bids": str(folder), "labels_img": str(labels_img), "session_column": "scan", "confounds": "none"}
    output = prepare(PrepareArguments(output=str(folder.parent / "out"), parquet=False, **{**given, **settings}))
    return load_cohort(output)


def test_echoes_are_scans_that_can_be_chosen(labels_img: Path, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "bids", labels_img, [f"echo-1_{MNI}", f"echo-2_{MNI}"])
    cohort = prepare_images(folder, labels_img)
    assert cohort.table["session"].tolist() == ["task-rest_echo-1", "task-rest_echo-2"]
    for number, found in enumerate(cohort.connectivity()):
        truth = np.corrcoef(signals_of(number, 30, np.random.default_rng(number)).T)
        np.testing.assert_allclose(found, truth, atol=5e-3)
    assert "1 subjects have scans that differ in echo only" in summary_of(tmp_path / "out")[0]
    source = bids_source(str(folder), select=["echo=2"], strategy="none")
    assert source.table["scan"].tolist() == ["task-rest_echo-2"]


def test_resolutions_and_spaces_are_chosen(labels_img: Path, tmp_path: Path) -> None:
    parts = [f"{MNI}_res-1", f"{MNI}_res-2", "space-MNI152NLin6Asym_res-2", "space-T1w"]
    folder = image_folder(tmp_path / "bids", labels_img, parts)
    with pytest.raises(ValueError, match=r"choose with --select res=1 or --select res=2"):
        prepare_images(folder, labels_img)
    assert not (tmp_path / "out").exists()
    cohort = prepare_images(folder, labels_img, select=["res=2"])
    truth = np.corrcoef(signals_of(1, 30, np.random.default_rng(1)).T)
    np.testing.assert_allclose(cohort.connectivity()[0], truth, atol=5e-3)
    source = bids_source(str(folder), select=["space=MNI152NLin6Asym"], strategy="none")
    assert (len(source.table), source.settings["space"]) == (1, "MNI152NLin6Asym")
    with pytest.raises(ValueError, match=r"no one set of runs in an MNI space; its spaces are T1w"):
        bids_source(str(folder), select=["space=T1w"], strategy="none")
    with pytest.raises(ValueError, match="select chooses among the files of a BIDS folder"):
        prepare(PrepareArguments(output=str(tmp_path / "x"), participants="p", images="i", select=["res=2"]))


def test_a_run_that_is_not_in_the_chosen_space_is_told(labels_img: Path, tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "bids", labels_img, [f"run-1_{MNI}", "run-2_space-T1w", "run-1_echo-1_space-T1w"])
    source = bids_source(str(folder), strategy="none")
    assert len(source.table) == 1
    (absent,) = source.absent
    assert "run-2_space-T1w" in absent.place
    assert f"has no counterpart with suffix-bold, {MNI}" in absent.reason


def test_echoes_share_the_nuisance_signals_of_their_run(tmp_path: Path) -> None:
    for name in ("run-1_desc-confounds_timeseries", "run-2_desc-confounds_timeseries", "desc-confounds_timeseries"):
        (tmp_path / f"sub-01_task-rest_{name}.tsv").write_text("x\n")
    image = tmp_path / f"sub-01_task-rest_run-1_echo-2_{MNI}_res-2_desc-preproc_bold.nii.gz"
    assert confounds_path(image).name == "sub-01_task-rest_run-1_desc-confounds_timeseries.tsv"
    with pytest.raises(ValueError, match="there is no sub-02_task-rest_desc-confounds_timeseries"):
        confounds_path(tmp_path / f"sub-02_task-rest_{MNI}_desc-preproc_bold.nii.gz")


def test_coverage_of_regions() -> None:
    rng = np.random.default_rng(0)
    data = rng.normal(size=(4, 4, 4, 12)).astype(np.float32)
    data[2], data[3] = 0, np.nan
    image = nibabel.Nifti1Image(data, np.diag([2.0, 2, 2, 1]))
    # Region 0 is measured, 1 has three voxels of four without signal, 2 lies outside the image, 3 has no voxel.
    points = np.array([[0, 0, 0], [2, 2, 2], [2, 0, 0], [4, 0, 0], [6, 0, 0], [4, 2, 2], [40, 0, 0], [-9, 0, 0]])
    regions = np.array([0, 0, 1, 1, 1, 1, 2, 2])
    np.testing.assert_array_equal(region_coverage(image, points, regions, 4), [1, 0.25, 0, np.nan])


def test_a_region_outside_the_field_of_view_is_reported(tmp_path: Path) -> None:
    labels = np.zeros((10, 8, 8), dtype=np.int16)
    for region in range(REGIONS):
        labels[region, 2:6, 2:6] = region + 1
    nibabel.save(nibabel.Nifti1Image(labels, brain_affine()), tmp_path / "labels.nii.gz")
    pd.DataFrame({"index": range(1, 11), "name": NAMES}).to_csv(tmp_path / "labels.tsv", sep="\t", index=False)
    func = tmp_path / "bids" / "sub-01" / "func"
    func.mkdir(parents=True)
    data = np.random.default_rng(0).normal(100, 1, size=(10, 8, 8, 40)).astype(np.float32)
    data[3, 2:6, 2:5] = 0  # R3 keeps a quarter of its voxels
    image = nibabel.Nifti1Image(data, brain_affine())
    nibabel.save(image, func / f"sub-01_task-rest_{MNI}_desc-preproc_bold.nii.gz")
    (tmp_path / "bids" / "participants.tsv").write_text("participant_id\tage\nsub-01\t30\n")
    arguments = PrepareArguments(
        output=str(tmp_path / "out"), bids=str(tmp_path / "bids"), atlas="mine", confounds="none", parquet=False,
        labels_img=str(tmp_path / "labels.nii.gz"), labels=str(tmp_path / "labels.tsv"),
    )  # fmt: skip
    folder = prepare(arguments)
    found = json.loads((folder / "quality.json").read_text())["low_coverage"]
    assert found == {"R3": {"scans": 1, "least": 0.25, "most": 0.25}}
    assert "R3: 1 scan, coverage 25 %" in summary_of(folder)[0]
    assert "R3" in (folder / "quality.html").read_text()


# --- XCP-D ---


def series_of(count: int, volumes: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    common = rng.normal(size=(count, volumes, 1))
    signals = rng.normal(size=(count, volumes, REGIONS)) + common
    return {f"sub-{number + 1:02d}_task-rest": values for number, values in enumerate(signals)}


def prepare_tables(folder: Path, **settings: object) -> Cohort:
    given = {"bids": str(folder), "session_column": "scan", "parquet": False}
    output = folder.parent / f"out{len(list(folder.parent.iterdir()))}"
    return load_cohort(prepare(PrepareArguments(output=str(output), **{**given, **settings})))


@pytest.mark.parametrize("select", [[], ["suffix=relmat"]])
def test_xcpd_tables_with_missing_regions_and_censored_volumes(tmp_path: Path, select: list[str]) -> None:
    series = series_of(3)
    first, second, _ = series.values()
    first[:, 4] = np.nan
    second[[3, 7, 20]] = np.nan
    cohort = prepare_tables(write_xcpd(tmp_path / "xcp", series, NAMES), select=select)
    assert cohort.feature_extractor.atlas == "Made10"
    assert cohort.feature_extractor.region_names == NAMES
    assert cohort.table["age"].tolist() == [30, 31, 32]
    assert cohort.table["qc_missing_regions"].tolist() == [1, 0, 0]
    assert cohort.table["qc_mean_fd"].to_numpy() == pytest.approx([0.15 * 39 / 40] * 3)
    if not select:
        assert cohort.table["qc_volumes"].tolist() == [40, 37, 40]
    for found, values in zip(cohort.connectivity(), series.values(), strict=True):
        truth = pd.DataFrame(values).corr().fillna(0).to_numpy(copy=True)
        np.fill_diagonal(truth, 1)
        np.testing.assert_allclose(found, truth, atol=5e-4)
    quality = json.loads(next(tmp_path.glob("out*/quality.json")).read_text())
    assert quality["low_coverage"] == {"R4": {"scans": 1, "least": 0.2, "most": 0.2}}
    assert quality["reading"]["preprocessing"] == "xcp_d 0.10.0"


def test_xcpd_files_in_another_order_are_reordered_and_others_refused(tmp_path: Path) -> None:
    series = series_of(3)
    folder = write_xcpd(tmp_path / "xcp", series, NAMES, "atlas-Made10")
    table = next((folder / "sub-02").rglob("*_timeseries.tsv"))
    pd.read_csv(table, sep="\t")[NAMES[::-1]].to_csv(table, sep="\t", index=False)
    other = next((folder / "sub-03").rglob("*_timeseries.tsv"))
    pd.read_csv(other, sep="\t").rename(columns={"R9": "Amygdala"}).to_csv(other, sep="\t", index=False)
    with pytest.raises(SystemExit) as exit_status:
        main(f"--bids {folder} --session_column scan --parquet false --output {tmp_path / 'out'}".split())
    assert exit_status.value.code == 1
    cohort, text = load_cohort(tmp_path / "out"), summary_of(tmp_path / "out")[0]
    truth = [np.corrcoef(values.T) for values in list(series.values())[:2]]
    np.testing.assert_allclose(cohort.connectivity(), truth, atol=5e-4)
    assert "1 files: reordered" in text
    assert "1 regions that the data set has not, the first is 'Amygdala'" in text


def test_one_of_several_atlases_is_chosen(tmp_path: Path) -> None:
    series = series_of(2)
    write_xcpd(tmp_path / "xcp", {name: values[:, :4] for name, values in series.items()}, NAMES[:4], "seg-Tiny")
    folder = write_xcpd(tmp_path / "xcp", series, NAMES)
    with pytest.raises(ValueError, match=r"tables of several atlases; there are seg-Made10, seg-Tiny.*--select seg="):
        bids_source(str(folder))
    for settings in ({"select": ["seg=made10"]}, {"select": ["atlas=Made10"]}, {"atlas": "Made10"}):
        source = bids_source(str(folder), **settings)
        assert (source.atlas_id(), source.region_names()) == ("Made10", NAMES)
    with pytest.raises(ValueError, match="of the atlas aal-116 none; there are seg-Made10"):
        bids_source(str(folder), atlas="aal-116")
    (folder / "sub-01" / "func" / f"sub-01_task-rest_{MNI}_seg-Made10_stat-mean_timeseries.tsv").unlink()
    (absent,) = bids_source(str(folder), atlas="Made10").absent
    assert "sub-01" in absent.place


def test_settings_of_images_do_not_go_with_tables(tmp_path: Path) -> None:
    folder = write_xcpd(tmp_path / "xcp", series_of(1), NAMES)
    for settings in ({"strategy": "compcor"}, {"labels_img": "labels.nii.gz"}):
        with pytest.raises(ValueError, match="Tables are denoised and name their regions: leave out confounds"):
            bids_source(str(folder), **settings)
    func = folder / "sub-01" / "func"
    (func / f"sub-01_task-rest_{MNI}_desc-preproc_bold.nii.gz").touch()
    with pytest.raises(ValueError, match="images as well as tables of regions: choose with --select suffix=bold"):
        bids_source(str(folder))
    assert len(bids_source(str(folder), select=["suffix=timeseries"]).table) == 1


def test_what_the_table_of_participants_says_beyond_the_scans_is_told(tmp_path: Path) -> None:
    folder = write_xcpd(tmp_path / "xcp", series_of(1), NAMES)
    (folder / "participants.tsv").write_text("participant_id\tage\ttask\n01\t30\tstroop\n02\t40\tstroop\n")
    source = bids_source(str(folder))
    assert source.table["task"].tolist() == ["rest"]
    assert "1 subjects of" in source.remarks[0]
    assert "have no scan here: sub-02" in source.remarks[0]
    assert "give way to the files' names: task" in source.remarks[1]


def test_tables_of_runs_put_together_do_not_count_again(tmp_path: Path) -> None:
    values = series_of(3)
    names = ["sub-01_task-rest_run-1", "sub-01_task-rest_run-2", "sub-01_task-rest"]
    folder = write_xcpd(tmp_path / "xcp", dict(zip(names, values.values(), strict=True)), NAMES)
    source = bids_source(str(folder))
    assert source.table["scan"].tolist() == ["task-rest_run-1", "task-rest_run-2"]
    assert "1 tables are runs put together, whose runs are there too" in source.remarks[0]
    assert bids_source(str(folder), select=["run="]).table["scan"].tolist() == ["task-rest"]


def test_a_known_atlas_keeps_its_own_order(tmp_path: Path) -> None:
    from modeling_lcm.atlases import region_names

    names = region_names("aal-116")
    values = np.random.default_rng(0).normal(size=(30, 116))
    folder = write_xcpd(tmp_path / "xcp", {"sub-01_task-rest": values}, names[::-1], "seg-AAL116")
    cohort = prepare_tables(folder)
    assert (cohort.feature_extractor.atlas, cohort.feature_extractor.region_names) == ("aal-116", names)
    np.testing.assert_allclose(cohort.connectivity()[0], np.corrcoef(values[:, ::-1].T), atol=5e-4)


def test_censored_volumes_by_mark(tmp_path: Path) -> None:
    values = np.arange(20.0).reshape(10, 2)
    marks = pd.DataFrame({"framewise_displacement": [0, 1, 0, 0, 0, 0, 0, 0, 0, 1], "exact_100": [1] * 10})
    marks.to_csv(tmp_path / "outliers.tsv", sep="\t", index=False)
    kept, censored = without_censored(values, tmp_path / "outliers.tsv")
    assert (len(kept), censored) == (8, 2)
    # A table that is shorter has lost them already.
    assert without_censored(values[:8], tmp_path / "outliers.tsv")[1] == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text.replace("R3", "R2"), "the region R2 has two columns"),
        (lambda text: text.replace("\n", "\nbad\t", 1), r"holds 'bad' for R0, where a number is needed"),
        (lambda text: "", "it has no columns of regions"),
    ],
)
def test_damaged_tables_get_a_sentence(tmp_path: Path, change, problem: str) -> None:
    folder = write_xcpd(tmp_path / "xcp", series_of(1), NAMES)
    table = next(folder.rglob("*_timeseries.tsv"))
    text = table.read_text()
    first = text.splitlines()[1].split("\t")[0]
    table.write_text(change(text).replace(f"bad\t{first}", "bad", 1))
    with pytest.raises(ValueError, match=problem) as error:
        prepare_tables(folder)
    assert len(str(error.value)) < 400


def test_other_statistics_than_pearson_are_refused(tmp_path: Path) -> None:
    folder = write_xcpd(tmp_path / "xcp", series_of(1), NAMES)
    for path in folder.rglob("*_stat-pearsoncorrelation_relmat.tsv"):
        path.rename(str(path).replace("pearson", "partial"))
    with pytest.raises(ValueError, match="holds no Pearson correlations; there is stat-partialcorrelation"):
        bids_source(str(folder), select=["suffix=relmat"])
