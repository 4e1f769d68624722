"""What an input is taken for, from a folder of a laboratory to a data set in one step; the likeliest mistakes."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.training.preparation.layouts import write_fmriprep, write_label_image, write_xcpd
from training.data.cohort import Cohort, load_cohort
from training.preparation.arguments import PrepareArguments
from training.preparation.assemble import summary_of
from training.preparation.build import prepare
from training.preparation.recognise import recognise
from training.preparation.sources.edge_tables import find_edges, region_pairs


REGIONS, VOLUMES, SUBJECTS = 10, 40, 6
NAMES = [f"R{number}" for number in range(REGIONS)]
IDS = [f"sub-{number:02d}" for number in range(1, SUBJECTS + 1)]


@pytest.fixture
def series(rng: np.random.Generator) -> np.ndarray:
    """Time series `(subjects, volumes, regions)`."""
    return rng.standard_normal((SUBJECTS, VOLUMES, REGIONS))


def fc_of(series: np.ndarray) -> np.ndarray:
    return np.stack([np.corrcoef(each.T) for each in series])


def write_table(folder: Path, ids: list[str], **columns: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame({"participant_id": ids, "sex": [("F", "M")[n % 2] for n in range(len(ids))], **columns})
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


@pytest.fixture
def prepared(tmp_path: Path) -> Callable[..., Cohort]:
    """Function that prepares an input and loads the data set."""
    outputs = iter(range(9))

    def make(place: Path | str, **settings: object) -> Cohort:
        output = str(tmp_path / f"out{next(outputs)}")
        return load_cohort(prepare(PrepareArguments(input=str(place), output=output, parquet=False, **settings)))

    return make


def test_xcpd_in_one_step_takes_one_of_its_atlases_and_says_so(
    prepared: Callable[..., Cohort], series: np.ndarray, tmp_path: Path
) -> None:
    scans = {f"{subject}_task-rest": each for subject, each in zip(IDS, series, strict=True)}
    for seg in ("seg-Made10", "seg-Other"):
        folder = write_xcpd(tmp_path / "xcpd", scans, NAMES, seg)
    found = recognise(folder)
    assert found.kind == "xcp_d"
    assert "xcp_d 0.10.0" in found.words and "Of the atlases Made10, Other, Made10 is taken" in found.words
    cohort = prepared(folder)
    np.testing.assert_allclose(cohort.connectivity(), fc_of(series), atol=5e-3)
    assert list(cohort.atlases) == ["Made10"]
    assert list(prepared(folder, atlas="other").atlases) == ["Other"]
    with pytest.raises(ValueError, match=r"no tables of the atlas gordon: choose with --atlas among Made10, Other"):
        recognise(folder, atlas=["gordon"])


def test_fmriprep_in_one_step(prepared: Callable[..., Cohort], tmp_path: Path) -> None:
    labels_img = write_label_image(tmp_path / "aal.nii.gz")
    folder = write_fmriprep(tmp_path / "study" / "derivatives" / "fmriprep", labels_img)
    found = recognise(folder)
    assert found.kind == "fmriprep" and "fMRIPrep 23.2.1" in found.words
    cohort = prepared(folder, labels_img=str(labels_img))
    assert len(cohort) == 7 and cohort.table["subject_id"].nunique() == 6  # one subject has two sessions
    with pytest.raises(ValueError, match=r"study holds no scans itself. Is .*derivatives/fmriprep meant\?"):
        recognise(tmp_path / "study")
    with pytest.raises(ValueError, match=r"is the folder of one subject: give the folder of all, .*fmriprep"):
        recognise(folder / "sub-01")
    with pytest.raises(ValueError, match="is the folder of one subject"):
        recognise(folder / "sub-01" / "ses-1")
    raw = tmp_path / "study" / "sub-01" / "func" / "sub-01_task-rest_bold.nii.gz"
    raw.parent.mkdir(parents=True)
    raw.touch()
    with pytest.raises(ValueError, match=r"before preprocessing: .* Is .*derivatives/fmriprep meant\?"):
        recognise(tmp_path / "study")
    shutil.rmtree(tmp_path / "study" / "derivatives")
    with pytest.raises(ValueError, match="Run fMRIPrep on it"):
        recognise(tmp_path / "study")
    (labels_img.parent / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"put a participants\.tsv there"):
        recognise(labels_img.parent / "empty")


@pytest.mark.parametrize("name", ["{}_atlas-mine.tsv", "{}/func/timeseries.csv", "ts_{}.npy", "scans/{}.txt"])
def test_a_folder_of_series_with_its_table(
    prepared: Callable[..., Cohort], series: np.ndarray, tmp_path: Path, name: str
) -> None:
    folder = write_table(tmp_path / "lab", [subject[4:] for subject in IDS])  # ids without "sub-"
    for subject, each in zip(IDS, series, strict=True):
        path = folder / name.format(subject)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".npy":
            np.save(path, each)
        else:
            pd.DataFrame(each, columns=NAMES).to_csv(path, sep="," if path.suffix == ".csv" else "\t", index=False)
    found = recognise(folder)
    assert found.kind == "time_series"
    assert found.settings["time_series"] == f"{folder}/{name.format('sub-{participant_id}')}"
    np.testing.assert_allclose(prepared(folder, atlas="mine").connectivity(), fc_of(series), atol=5e-3)
    assert recognise(found.settings["time_series"]).kind == "time_series"
    assert recognise(found.settings["time_series"], str(folder / "participants.tsv")).settings == {
        "time_series": found.settings["time_series"],
        "participants": str(folder / "participants.tsv"),
    }


def test_sessions_in_the_names_of_files(prepared: Callable[..., Cohort], series: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    for session in ("pre", "post"):
        (folder / session).mkdir(parents=True)
        for subject, each in zip(IDS, series, strict=True):
            np.save(folder / session / f"{subject}_fc.npy", np.corrcoef(each[10 * (session == "post") :].T))
    write_table(folder, IDS)
    with pytest.raises(ValueError, match=r"Every subject has 2 files, such as .*: give the table a row per scan"):
        recognise(folder)
    write_table(folder, IDS * 2, session=["pre"] * SUBJECTS + ["post"] * SUBJECTS)
    found = recognise(folder)
    assert found.settings["connectivity"] == f"{folder}/{{session}}/{{participant_id}}_fc.npy"
    assert found.settings["session_column"] == "session"
    cohort = prepared(folder, atlas="mine")
    np.testing.assert_allclose(
        cohort.connectivity(), fc_of(series).tolist() + fc_of(series[:, 10:]).tolist(), atol=5e-3
    )


def test_archives(prepared: Callable[..., Cohort], series: np.ndarray, tmp_path: Path) -> None:
    folder = write_table(tmp_path / "lab", IDS)
    np.savez(folder / "all.npz", participant_id=IDS, connectivity=fc_of(series))
    assert recognise(folder).settings == recognise(folder / "all.npz").settings
    np.testing.assert_allclose(prepared(folder, atlas="mine").connectivity(), fc_of(series), atol=5e-3)


@pytest.mark.parametrize("between", ["~", "_to_", "-", None])
def test_one_wide_table_of_edges(
    prepared: Callable[..., Cohort], series: np.ndarray, tmp_path: Path, between: str | None, rng: np.random.Generator
) -> None:
    first, second = np.triu_indices(REGIONS, 1)
    edges = [f"edge {n}" if between is None else f"{NAMES[a]}{between}{NAMES[b]}"
             for n, (a, b) in enumerate(zip(first, second, strict=True))]  # fmt: skip
    values = pd.DataFrame(fc_of(series)[:, first, second], columns=edges)
    if between is not None:  # names tell which edge is which, in any order
        values = values[[edges[column] for column in rng.permutation(len(edges))]]
    table = pd.DataFrame({"participant_id": IDS, "age": range(20, 20 + SUBJECTS), "group": list("ABABAB")})
    path = tmp_path / "edges.csv"
    pd.concat([table, values], axis=1).to_csv(path, index=False)
    found = recognise(path)
    assert found.kind == "edges" and "45 edges a scan" in found.words
    cohort = prepared(path, atlas="mine", triangle=None if between else "upper")
    assert cohort.phenotypes() == ["age", "group"]
    order = list(map(NAMES.index, cohort.feature_extractor.region_names)) if between else slice(None)
    np.testing.assert_allclose(cohort.connectivity(), fc_of(series)[:, order][:, :, order], atol=1e-3)


def test_what_is_no_edge() -> None:
    table = pd.DataFrame({"score": ["0.1", "0.2"], "id": ["a", "b"], **{f"e{n}": ["0.5", "-0.25"] for n in range(10)}})
    assert find_edges(table) == [f"e{n}" for n in range(10)]
    assert find_edges(table.drop(columns="e9")) is None  # no triangle has nine values
    assert find_edges(table.assign(e3="2.5")) is None
    assert region_pairs(["a~b", "a~c", "b~b"]) is None
    assert region_pairs(["a-1-b-1"] * 10) is None


def test_likely_mistakes_name_what_to_give(series: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "lab"
    folder.mkdir()
    for number, each in enumerate(series):
        np.save(folder / f"subj{number}x.npy", each)
    with pytest.raises(FileNotFoundError, match=r"no table of phenotypes .* --participants FILE"):
        recognise(folder)
    write_table(folder, IDS)
    with pytest.raises(ValueError, match=r"participant_id has 'sub-01', the files are called like subj0x.npy"):
        recognise(folder)
    with pytest.raises(FileNotFoundError, match=r"There is no .*nowhere. .* holds lab"):
        recognise(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"its columns are no edges .* --participants"):
        recognise(folder / "participants.tsv")
    with pytest.raises(ValueError, match="is no input that can be read"):
        recognise(folder / "subj0x.npy")
    (folder / "demographics.csv").write_text("subject_id,age\n1,2\n")
    assert recognise_table(folder) == "participants.tsv"  # BIDS's name goes first
    (folder / "participants.tsv").rename(folder / "people.tsv")
    with pytest.raises(ValueError, match=r"several tables, demographics.csv, people.tsv: .* --participants"):
        recognise(folder)
    with pytest.raises(ValueError, match="No input was given"):
        recognise("")
    only_table = write_table(tmp_path / "bare", IDS)
    with pytest.raises(FileNotFoundError, match=r"holds no scans beside the table participants\.tsv"):
        recognise(only_table)
    with pytest.raises(ValueError, match="input is recognised, and bids says where the scans are"):
        prepare(PrepareArguments(input=str(folder), bids=str(folder), output=str(tmp_path / "out")))


def recognise_table(folder: Path) -> str:
    from training.preparation.patterns import find_table

    return find_table(folder, [])[0].name


def test_a_prepared_data_set_is_known(prepared: Callable[..., Cohort], series: np.ndarray, tmp_path: Path) -> None:
    folder = write_table(tmp_path / "lab", IDS)
    np.savez(folder / "all.npz", participant_id=IDS, connectivity=fc_of(series))
    prepared(folder, atlas="mine")
    assert recognise(tmp_path / "out0").kind == "dataset"
    with pytest.raises(ValueError, match="There is nothing to prepare: give it as --data"):
        prepare(PrepareArguments(input=str(tmp_path / "out0"), output=str(tmp_path / "again")))


def test_ids_of_the_table_and_the_folders_in_other_spellings(
    prepared: Callable[..., Cohort], series: np.ndarray, tmp_path: Path
) -> None:
    scans = {f"sub-{n:03d}_task-rest": each for n, each in enumerate(series, start=1)}
    folder = write_xcpd(tmp_path / "xcpd", scans, NAMES)
    table = pd.DataFrame({"participant_id": range(1, SUBJECTS + 1), "age": range(30, 30 + SUBJECTS)})
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    assert prepared(folder).table["age"].tolist() == list(range(30, 30 + SUBJECTS))
    table.assign(participant_id=[f"x{n}" for n in range(SUBJECTS)]).to_csv(
        folder / "participants.tsv", sep="\t", index=False
    )
    with pytest.raises(ValueError, match=r"None of the 6 subjects, sub-001 among them, has a row .* --participants"):
        prepared(folder)
    (folder / "participants.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no table of phenotypes .* --participants"):
        prepared(folder)


def test_an_atlas_with_a_typing_error_is_asked_about(
    prepared: Callable[..., Cohort], series: np.ndarray, tmp_path: Path
) -> None:
    folder = write_table(tmp_path / "lab", IDS)
    np.savez(folder / "all.npz", participant_id=IDS, connectivity=fc_of(series))
    prepared(folder, atlas="shaefer-200")
    assert "Did you mean schaefer-200" in summary_of(tmp_path / "out0")[0]


def test_no_room_is_said_before_scans_are_read(
    prepared: Callable[..., Cohort], series: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_table(tmp_path / "lab", IDS)
    np.savez(folder / "all.npz", participant_id=IDS, connectivity=fc_of(series))
    full = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: full)
    with pytest.raises(ValueError, match=r"has 0.00 GB of free space, and the FC of these scans takes about"):
        prepared(folder, atlas="mine")
    assert not list(tmp_path.glob("out*"))


def test_a_pattern_that_fits_no_file_shows_what_there_is(series: np.ndarray, tmp_path: Path) -> None:
    folder = write_table(tmp_path / "lab", IDS)
    (folder / "series").mkdir()
    np.save(folder / "series" / "subj7_ts.npy", series[0])
    settings = {"participants": str(folder / "participants.tsv"), "output": str(tmp_path / "out"), "atlas": "mine"}
    for pattern, words in (
        (
            "series/{participant_id}_ts.npy",
            r"no scan .*sub-01_ts.npy .* There is .*subj7_ts.npy: spell the ids",
        ),
        ("series/{participant_id}_bold.npy", r"series holds subj7_ts.npy: correct the pattern"),
        ("serie/{participant_id}.npy", r"lab holds participants.tsv, series: correct the pattern"),
    ):
        with pytest.raises(FileNotFoundError, match=words):
            prepare(PrepareArguments(time_series=str(folder / pattern), **settings))
    with pytest.raises(ValueError, match=r"no column 'sexx'.* Did you mean sex\?"):
        prepare(PrepareArguments(time_series=str(folder / "{participant_id}"), phenotypes=["sexx"], **settings))
