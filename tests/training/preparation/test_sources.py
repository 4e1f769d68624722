"""Every kind of input gives the same data set: fMRIPrep folders, images, files of any format, fetched cohorts."""

import gzip
import json
import shutil
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import pytest
import scipy.io

from modeling_lcm.atlases import region_labels, region_names
from tests.training.preparation.layouts import (
    brain_affine,
    signals_of,
    write_fmriprep,
    write_image,
    write_label_image,
)
from training.data.cohort import load_cohort
from training.preparation.arguments import PrepareArguments
from training.preparation.assemble import summary_of
from training.preparation.build import prepare
from training.preparation.sources.arrays import read_array
from training.preparation.sources.entities import BIDSFile
from training.preparation.sources.images import check_confounds
from training.preparation.sources.regions import Regions
from training.preparation.sources.tables import read_table
from training.prepare import main


HALF_PRECISION = 6e-4


@pytest.fixture(scope="module")
def labels_img(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AAL-116 on a coarse grid."""
    return write_label_image(tmp_path_factory.mktemp("atlas") / "aal.nii.gz")


@pytest.fixture(scope="module")
def derivatives(labels_img: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fMRIPrep's output of six subjects, seven runs."""
    return write_fmriprep(tmp_path_factory.mktemp("bids") / "fmriprep", labels_img)


def bids_arguments(derivatives: Path, labels_img: Path, output: Path, **overrides: object) -> PrepareArguments:
    settings = {"bids": str(derivatives), "session_column": "scan", "labels_img": str(labels_img), "parquet": False}
    return PrepareArguments(output=str(output), **{**settings, **overrides})


def quality_of(folder: Path) -> dict:
    return json.loads((folder / "quality.json").read_text())


# --- fMRIPrep ---


def test_fmriprep_folder_to_data_set(derivatives: Path, labels_img: Path, tmp_path: Path) -> None:
    cohort = load_cohort(prepare(bids_arguments(derivatives, labels_img, tmp_path / "out")))
    table = cohort.table
    assert table["subject_id"].tolist() == ["sub-01", "sub-01", "sub-02", "sub-03", "sub-04", "sub-05", "sub-06"]
    assert table["session"].tolist()[:2] == ["ses-1_task-rest_run-1", "ses-2_task-rest_run-1"]
    assert table["task"].unique().tolist() == ["rest"]
    np.testing.assert_array_equal(table["age"], [24.5, 24.5, 47, 90, 31, np.nan, 40])
    assert table["sex"].tolist() == ["M", "M", "F", "F", "M", "F", "M"]
    assert table["qc_mean_fd"].between(0.05, 0.2).all()
    assert (table["qc_volumes"] == 40).all()
    assert (table["qc_homotopic"] > 0.9).all()  # names and label values lead to the right columns
    reading = quality_of(tmp_path / "out")["reading"]
    assert reading["confounds strategy"] == "simple"
    assert reading["preprocessing"] == "fMRIPrep 23.2.1"
    # The first subject's signals, less what nilearn regresses out, are what was put into the image.
    left_right = cohort.connectivity()[0][0, 1]
    assert 0.4 < left_right < 0.9


def test_fmriprep_scrubbing_and_truncated_image(derivatives: Path, labels_img: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fmriprep"
    shutil.copytree(derivatives, folder)
    image = next((folder / "sub-03").rglob("*_bold.nii.gz"))
    image.write_bytes(image.read_bytes()[:5000])
    table = next((folder / "sub-04").rglob("*timeseries.tsv"))
    confounds = pd.read_csv(table, sep="\t")
    confounds[confounds.columns] = 0.0
    confounds.to_csv(table, sep="\t", index=False)
    with pytest.raises(SystemExit) as exit_status:
        main(
            f"--bids {folder} --labels_img {labels_img} --session_column scan --parquet false "
            f"--output {tmp_path / 'out'} --confounds scrubbing".split()
        )
    assert exit_status.value.code == 1
    text, dropped = summary_of(tmp_path / "out")
    assert dropped == 2
    assert "5 scans of 4 subjects" in text
    assert f"{image} (subject sub-03): the image is unreadable or truncated" in text
    assert "holds no nuisance signals: 39 of 39 columns" in text


def test_people_without_a_row_of_phenotypes_are_kept_and_named(
    derivatives: Path, labels_img: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "fmriprep"
    shutil.copytree(derivatives, folder)
    lines = (folder / "participants.tsv").read_text().splitlines(keepends=True)
    (folder / "participants.tsv").write_text("".join(line for line in lines if "sub-02" not in line))
    for path in folder.glob("sub-0[3-6]"):
        shutil.rmtree(path)
    output = prepare(bids_arguments(folder, labels_img, tmp_path / "out"))
    table = load_cohort(output).table.set_index("subject_id")
    assert table["age"].isna().to_dict() == {"sub-01": False, "sub-02": True}
    text = summary_of(output)[0]
    assert "1 subjects have no row in" in text
    assert "4 subjects of" in text


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda folder: [shutil.rmtree(path) for path in folder.glob("sub-*")], "holds no scans: fMRIPrep's"),
        (lambda folder: (folder / "participants.tsv").unlink(), "There is no table of phenotypes"),
        (
            lambda folder: [
                path.rename(str(path).replace("MNI152NLin2009cAsym", "T1w")) for path in folder.rglob("*_bold.nii.gz")
            ],
            "no one set of runs in an MNI space; its spaces are T1w",
        ),
    ],
)
def test_fmriprep_folder_that_does_not_work(
    derivatives: Path, labels_img: Path, tmp_path: Path, change, problem: str
) -> None:
    shutil.copytree(derivatives, tmp_path / "fmriprep")
    change(tmp_path / "fmriprep")
    with pytest.raises((ValueError, FileNotFoundError), match=problem):
        prepare(bids_arguments(tmp_path / "fmriprep", labels_img, tmp_path / "out"))


def test_images_of_a_table_and_wrong_space(labels_img: Path, tmp_path: Path, rng: np.random.Generator) -> None:
    pd.DataFrame({"participant_id": ["a", "b", "c"], "age": [20, 30, 40]}).to_csv(tmp_path / "people.csv", index=False)
    signals = {person: signals_of(number, 40, rng) for number, person in enumerate("abc")}
    far = brain_affine()
    far[:3, 3] += 150
    for person, values in signals.items():
        write_image(tmp_path / f"{person}.nii.gz", labels_img, values, far if person == "b" else None)
    folder = prepare(
        PrepareArguments(
            output=str(tmp_path / "out"), participants=str(tmp_path / "people.csv"), labels_img=str(labels_img),
            images=str(tmp_path / "{participant_id}.nii.gz"),
        )
    )  # fmt: skip
    cohort = load_cohort(folder)
    assert cohort.table["subject_id"].tolist() == ["a", "c"]
    np.testing.assert_allclose(cohort.connectivity()[1], np.corrcoef(signals["c"].T), atol=2e-3)
    (excluded,) = quality_of(folder)["excluded"]
    assert "not in MNI space" in excluded["reason"]
    assert not excluded["by_rule"]


def test_bids_entities_and_zero_confounds(tmp_path: Path) -> None:
    assert BIDSFile.of(Path("sub-1_task-rest_space-MNI_desc-preproc_bold.nii.gz")).entities["space"] == "MNI"
    with pytest.raises(ValueError, match="3 of 3 columns are zero"):
        check_confounds(pd.DataFrame({"trans_x": [0.0] * 9, "rot_x": [0.0] * 9, "csf": [np.nan] * 9}), tmp_path)


# --- files ---


@pytest.fixture
def series(rng: np.random.Generator) -> np.ndarray:
    """ROI time series `(60, 116)`."""
    return rng.standard_normal((60, 116))


def save_series(path: Path, values: np.ndarray) -> Path:
    if path.suffix == ".mat":
        scipy.io.savemat(path, {"data": values, "tr": 2.0})
    elif path.suffix == ".npz":
        np.savez(path, signals=values)
    elif path.suffix == ".npy":
        np.save(path, values)
    else:
        np.savetxt(path, values, delimiter={".csv": ",", ".tsv": "\t"}.get(path.suffix, " "))
    return path


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".txt", ".1D", ".npy", ".npz", ".mat"])
def test_every_format_and_both_orientations(series: np.ndarray, tmp_path: Path, suffix: str) -> None:
    regions = Regions.of_atlas("aal-116", 116, region_names("aal-116"))
    file = read_array(save_series(tmp_path / f"turned{suffix}", series.T))
    turned, remarks = regions.orient(file.values)
    np.testing.assert_allclose(turned, series)
    assert remarks == ("transposed",)
    straight, remarks = regions.orient(read_array(save_series(tmp_path / f"straight{suffix}", series)).values)
    np.testing.assert_allclose(straight, series)
    assert remarks == ()


def test_columns_are_matched_by_label_value(series: np.ndarray, tmp_path: Path) -> None:
    """As many columns as the atlas has regions would not be enough: which region each one is decides."""
    labels = list(region_labels("aal-116"))
    kept = [position for position in range(116) if position not in (3, 90)][::-1]
    header = "\t".join(f"#{labels[position]}" for position in kept)
    np.savetxt(tmp_path / "scan.1D", series[:, kept], header=header, comments="", delimiter="\t")
    regions = Regions.of_atlas("aal-116", 116, region_names("aal-116"))
    file = read_array(tmp_path / "scan.1D")
    values, remarks = regions.arrange(file.values, file.header)
    np.testing.assert_allclose(values[:, kept], series[:, kept])
    assert np.isnan(values[:, [3, 90]]).all()
    assert remarks == ("reordered", "2 regions absent from the file")
    other_atlas = [str(label) for label in labels[:60]] + [f"unknown {number}" for number in range(56)]
    with pytest.raises(ValueError, match="56 of its columns are no regions of the atlas: unknown 0, unknown 1"):
        regions.arrange(series, other_atlas)


def test_semicolons_and_decimal_commas(series: np.ndarray, tmp_path: Path) -> None:
    lines = [";".join(f"{value:.6f}".replace(".", ",") for value in row) for row in series]
    (tmp_path / "scan.csv").write_text("\n".join(lines))
    np.testing.assert_allclose(read_array(tmp_path / "scan.csv").values, series, atol=1e-6)


def test_file_with_several_arrays_needs_a_name(series: np.ndarray, tmp_path: Path) -> None:
    np.savez(tmp_path / "scan.npz", first=series, second=series)
    with pytest.raises(ValueError, match=r"2 matrices of numbers \(arrays: first, second\).*--array_name"):
        read_array(tmp_path / "scan.npz")
    np.testing.assert_allclose(read_array(tmp_path / "scan.npz", "second").values, series)
    (tmp_path / "scan.mat").write_bytes(b"no MATLAB file at all")
    with pytest.raises(ValueError, match=r"scan\.mat cannot be read"):
        read_array(tmp_path / "scan.mat")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_tables_in_any_encoding_and_separator(tmp_path: Path, encoding: str, separator: str) -> None:
    rows = [
        ["participant_id", " age", "Ort"],
        ["0051", "24", " Köln "],
        ["0052", " n/a", "\u00a0Zürich"],
        ["", "", ""],
    ]
    text = "\r\n".join(separator.join(row) for row in rows)
    (tmp_path / "people.csv").write_bytes(text.encode(encoding))
    table = read_table(tmp_path / "people.csv")
    assert table.columns.tolist() == ["participant_id", "age", "Ort"]
    assert table.to_numpy().tolist() == [["0051", "24", "Köln"], ["0052", None, "Zürich"]]
    assert table.index.tolist() == [2, 3]


def test_binary_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "people.tsv").write_bytes(gzip.compress(b"participant_id\tage\n" * 50) + b"\x00")
    with pytest.raises(ValueError, match="is no text"):
        read_table(tmp_path / "people.tsv")


# --- nilearn's fetcher against a local server ---


@pytest.fixture
def abide_server(tmp_path: Path, rng: np.random.Generator) -> Iterator[str]:
    """A server in the layout of the Preprocessed Connectomes Project, on the loopback interface."""
    root = tmp_path / "server"
    folder = root / "Outputs" / "cpac" / "filt_noglobal" / "rois_aal"
    folder.mkdir(parents=True)
    rows = []
    header = "\t".join(f"#{label}" for label in region_labels("aal-116"))
    for number in range(6):
        name = f"Site_{number % 2}_00{number}"
        rows.append(
            {"SUB_ID": 50000 + number, "SITE_ID": f"SITE_{number % 2}", "FILE_ID": name, "DX_GROUP": 1 + number % 2}
            | {"AGE_AT_SCAN": 10.5 + number, "SEX": 1 + number // 3, "func_mean_fd": 0.1, "qc_rater_1": "OK"}
            | {"qc_anat_rater_2": "OK", "qc_func_rater_2": "maybe" if number else "fail"}
            | {"qc_anat_rater_3": "OK", "qc_func_rater_3": "OK", "notes": "a, b"}
        )
        np.savetxt(folder / f"{name}_rois_aal.1D", signals_of(number, 50, rng), header=header, comments="")
    pd.DataFrame(rows).to_csv(root / "Phenotypic_V1_0b_preprocessed1.csv")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(root)))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_abide_through_nilearns_client(abide_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        f"--recipe abide1 --data_dir {tmp_path / 'nilearn'} --output {tmp_path / 'out'} "
        f"--fetch_url {abide_server}".split()
    )
    printed = capsys.readouterr().out
    assert printed.index("CC BY-NC-SA 3.0") < printed.index("5 scans of 5 subjects")
    cohort = load_cohort(tmp_path / "out")
    assert cohort.phenotypes() == ["site", "autism", "sex", "age", "state"]
    assert cohort.table["subject_id"].tolist() == [
        "50001",
        "50002",
        "50003",
        "50004",
        "50005",
    ]  # one failed raters' QC
    assert cohort.table["autism"].tolist() == ["control", "ASD", "control", "ASD", "control"]
    assert cohort.table["sex"].tolist() == ["M", "M", "F", "F", "F"]
    assert cohort.table["site"].tolist() == ["SITE_1", "SITE_0", "SITE_1", "SITE_0", "SITE_1"]
    assert (cohort.table["qc_homotopic"] > 0.9).all()
    assert "CC BY-NC-SA 3.0" in (tmp_path / "out" / "README.md").read_text()
