"""Phenotypes as subjects write them, and cohort recipes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.io

from modeling_lcm.atlases import region_labels
from modeling_lcm.bei_vocabulary import BEIVariable
from tests.training.preparation.layouts import signals_of, write_image, write_label_image
from training.data.cohort import load_cohort
from training.preparation.arguments import PrepareArguments
from training.preparation.assemble import summary_of
from training.preparation.build import prepare
from training.preparation.phenotypes import Column, clean_columns, infer_columns
from training.preparation.recipes import COHORTS, available, load_recipe
from training.preparation.sources.tables import as_text_table


def raw_table(**columns: list) -> pd.DataFrame:
    table = as_text_table(pd.DataFrame(columns))
    table.index = pd.Index(range(2, len(table) + 2))
    return table


def test_declared_columns_keep_going_and_name_the_line() -> None:
    sex = BEIVariable("sex", "categorical", ["M", "F"], aliases={"1": "M", "male": "M"})
    raw = raw_table(Gender=["male", " F ", "1.0", "x", "n/a", "-999"], Age=["24,5", "1000", "old", "-999", "90+", "3"])
    cleaned = clean_columns(
        raw,
        [
            Column(sex, "Gender", missing=("-999",)),
            Column(BEIVariable("age", "continuous", unit="years"), "Age", missing=("-999",), low=0, high=120),
        ],
    )
    assert cleaned.table["sex"].tolist() == ["M", "F", "M", None, None, None]
    np.testing.assert_array_equal(cleaned.table["age"], [24.5, np.nan, np.nan, np.nan, 90, 3])
    found = [(problem.line, problem.column) for problem in cleaned.problems]
    assert found == [(5, "Gender"), (3, "Age"), (4, "Age")]
    assert "unknown label 'x'" in cleaned.problems[0].reason
    assert "'1000' is outside 0 to 120 years" in cleaned.problems[1].reason
    assert cleaned.remarks == [
        "Gender: 1 cell holds -999, declared as missing",
        "Age: 1 cell holds -999, declared as missing",
        "Age: 1 values were bounds such as 90+, replaced by the bound",
    ]


def test_undeclared_columns_are_numbers_or_joined_labels() -> None:
    raw = raw_table(
        age=["20", "25-29", "eighty", "40"],
        visit=["1", "2", "1", "2"],
        group=["PD", "pd ", "HC", "PD"],
        none=[None] * 4,
    )
    cleaned = infer_columns(raw, {name: name for name in raw.columns})
    np.testing.assert_array_equal(cleaned.table["age"], [20, 27, np.nan, 40])
    assert cleaned.table["visit"].dtype == "int64"
    assert cleaned.table["group"].tolist() == ["PD", "PD", "HC", "PD"]
    assert cleaned.table["none"].isna().all()
    assert [(problem.line, problem.column) for problem in cleaned.problems] == [(4, "age")]
    assert "'pd' read as 'PD' (1 rows)" in " ".join(cleaned.remarks)


# --- recipes ---


def test_ten_recipes_are_valid_and_state_their_terms() -> None:
    expected = "abide1 adhd200 adni cobre hcp_aging hcp_ya lemon neurocon ppmi taowu"
    assert available() == expected.split()
    for name in available():
        recipe = load_recipe(name)
        assert len(recipe.terms) > 40, name
        assert recipe.url.startswith("http"), name
        assert {"sex", "age", "state"} <= {variable.name for variable in recipe.variables}, name
        PrepareArguments(**recipe.settings)  # all are settings of the command


def test_cohorts_of_the_open_weights_know_each_other_by_name() -> None:
    """Otherwise `same_person` names nobody, and a subject of two cohorts is trained on and tested."""
    recipes = [load_recipe(str(path)) for path in (COHORTS.parent / "configs" / "open").glob("*-*.yaml")]
    assert len(recipes) == 9
    named = {cohort for recipe in recipes for cohort in recipe.same_person}
    assert named == {"abide1", "adhd200"}
    assert named < {recipe.name for recipe in recipes}
    PrepareArguments(**recipes[0].settings)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("title: x\nterms: y\nsettings: {}\nvariables: {}\ntypo: 1", "unknown keys typo"),
        ("title: x", "missing keys terms, settings, variables"),
        ("title: x\nterms: y\nsettings: {}\nvariables: {sex: {kind: categorical}}", "either column or value"),
        (
            "title: x\nterms: y\nsettings: {}\n"
            "variables: {task: {kind: categorical, labels: [rest, film], value: rest, exclude: [film]}}",
            "'task' has the same value for all, so exclude cannot",
        ),
        (
            "title: x\nterms: y\nsettings: {}\nvariables: {sex: {column: s, kind: categorical, labels: [M]}}",
            "two or more different labels",
        ),
        (
            "title: x\nterms: y\nsettings: {}\nvariables: {sex: {column: s, kind: categorical, label: [M, F]}}",
            "'sex' has unknown keys label",
        ),
    ],
)
def test_recipe_mistakes_are_named(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"mine\.yaml: .*{problem}"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_recipe_needs_its_download(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"add --data_dir FOLDER\. Put Neurocon_metadata\.csv"):
        prepare(PrepareArguments(output=str(tmp_path / "out"), recipe="neurocon"))
    with pytest.raises(FileNotFoundError, match="no recipe oasis; those here are abide1, "):
        prepare(PrepareArguments(output=str(tmp_path / "out"), recipe="oasis"))


def write_neurocon(folder: Path, name: str, scans: dict[str, np.ndarray]) -> None:
    rows = [f"{key},{'PD' if 'patient' in key else 'Control'},{60 + n},{'MF'[n % 2]}" for n, key in enumerate(scans)]
    (folder / f"{name}_metadata.csv").write_text("Subject,Group,Age,Sex\n" + "\n".join(rows))
    for subject, values in scans.items():
        place = folder / name.lower() / f"sub-{subject}"
        place.mkdir(parents=True)
        scipy.io.savemat(place / f"sub-{subject}_AAL116_features_timeseries.mat", {"data": values})


def write_ida(folder: Path, scans: dict[str, np.ndarray], groups: list[str]) -> None:
    rows = [
        f"I{100 + n},{key.split('@')[0]},{groups[n % len(groups)]},{'MF'[n % 2]},{70 + n}"
        for n, key in enumerate(scans)
    ]
    (folder / "participants.csv").write_text("Image Data ID,Subject,Group,Sex,Age\n" + "\n".join(rows))
    (folder / "rois").mkdir()
    for number, (key, values) in enumerate(scans.items()):
        np.savetxt(folder / "rois" / f"{key.split('@')[0]}_I{100 + number}.tsv", values, delimiter="\t")


def write_cobre(folder: Path, scans: dict[str, np.ndarray]) -> None:
    kinds = ["Patient,", "Control,", "Disenrolled,"]
    rows = [f"{key},{20 + n},{('Male', 'Female')[n % 2]},R,{kinds[n % 3]}" for n, key in enumerate(scans)]
    (folder / "COBRE_phenotypic_data.csv").write_text(
        ",Current Age,Gender,Handedness,Subject Type,Diagnosis\n" + "\n".join(rows)
    )
    (folder / "rois").mkdir()
    for key, values in scans.items():
        np.savetxt(folder / "rois" / f"{key}.tsv", values, delimiter="\t")


def write_adhd(folder: Path, scans: dict[str, np.ndarray]) -> None:
    labels = list(region_labels("aal-116"))
    rows = ["ScanDir ID\tSite\tGender\tAge\tDX", "99999\t1\t0\t10\t0"]  # a subject without a released scan
    for number, (key, values) in enumerate(scans.items()):
        rows.append(f"{key}\t5\t{number % 2}\t{8.5 + number}\t{('0', '1', '3', 'pending')[number % 4]}")
        place = folder / "ADHD200_AAL_TCs_filtfix" / "NYU" / key.zfill(7)
        place.mkdir(parents=True)
        table = pd.DataFrame(values, columns=[f"Mean_{label}" for label in labels])
        table.insert(0, "Sub-brick", [f"{volume}[?]" for volume in range(len(values))])
        table.insert(0, "File", "scan.nii.gz")
        table.to_csv(place / f"sfnwmrda{key.zfill(7)}_session_1_rest_1_aal_TCs.1D", sep="\t", index=False)
    (folder / "adhd200_preprocessed_phenotypics.tsv").write_text("\n".join(rows))


@pytest.mark.parametrize("name", ["neurocon", "taowu", "adni", "ppmi", "cobre", "adhd200"])
def test_recipe_on_a_folder_in_the_cohorts_layout(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    keys = {
        "neurocon": ["control1", "patient2", "patient3"], "taowu": ["control1", "patient2", "patient3"],
        "adni": ["002_S_1", "002_S_2", "002_S_1@later", "003_S_9"], "ppmi": ["3000", "3001", "3002", "3003"],
        "cobre": ["A00000300", "A00000301", "A00000302"], "adhd200": ["10001", "10002", "10003", "10004"],
    }[name]  # fmt: skip
    scans = {key: signals_of(number, 40, rng) for number, key in enumerate(keys)}
    if name in ("neurocon", "taowu"):
        write_neurocon(tmp_path, name.capitalize(), scans)
    elif name == "cobre":
        write_cobre(tmp_path, scans)
    elif name == "adhd200":
        write_adhd(tmp_path, scans)
    else:
        write_ida(
            tmp_path,
            scans,
            {"adni": ["EMCI", "LMCI", "CN", "SMC"], "ppmi": ["Control", "PD", "SWEDD", "Prodromal"]}[name],
        )
    folder = prepare(
        PrepareArguments(
            output=str(tmp_path / "out"), recipe=name, data_dir=str(tmp_path), parquet=False, bad_scans="stop"
        )
    )
    cohort = load_cohort(folder)
    expected = {
        "neurocon": ("parkinson", ["CN", "PD", "PD"]), "taowu": ("parkinson", ["CN", "PD", "PD"]),
        "adni": ("alzheimer", ["CN", "AD", "CN", "CN"]), "ppmi": ("parkinson", ["CN", "PD", "SWEDD", "prodromal"]),
        "cobre": ("schizophrenia", ["schizophrenia", "control"]), "adhd200": ("adhd", ["control", "ADHD", "ADHD"]),
    }[name]  # fmt: skip
    assert cohort.table[expected[0]].tolist() == expected[1]
    assert set(cohort.table["sex"]) == {"M", "F"}
    assert cohort.table["age"].notna().all()
    assert (cohort.table["state"] == "rest").all()
    first = next(iter(scans.values()))
    np.testing.assert_allclose(cohort.connectivity()[0], np.corrcoef(first.T), atol=1e-3)


HCP_SCANS = {
    "hcp_ya": {"EMOTION": "emotion", "WM": "working memory"},
    "hcp_aging": {"rfMRI_REST1_AP": "rest", "tfMRI_CARIT_PA": "inhibition"},
}


def write_hcp(folder: Path, name: str, scans: dict[str, np.ndarray], labels_img: Path) -> None:
    """The archive's table and minimally preprocessed images, with `SUBJECT@SCAN` as keys."""
    subjects = sorted({key.split("@")[0] for key in scans})
    if name == "hcp_ya":
        rows = [f"{subject},S900,Q01,{'MF'[n % 2]},{('22-25', '36+')[n % 2]},26" for n, subject in enumerate(subjects)]
        (folder / "unrestricted.csv").write_text(
            "Subject,Release,Acquisition,Gender,Age,MMSE_Score\n" + "\n".join(rows)
        )
        place = "{0}/MNINonLinear/Results/tfMRI_{1}_LR/tfMRI_{1}_LR.nii.gz"
    else:
        # The NIMH Data Archive quotes everything and explains its columns in a second line.
        header = ["subjectkey", "src_subject_id", "interview_date", "interview_age", "sex"]
        told = ["The NDAR Global Unique Identifier", "Subject ID how it's defined in lab", "Date", "Months", "Sex"]
        rows = [
            ["NDAR1", subject, "01/01/2016", str(12 * (40 + 20 * n)), "MF"[n % 2]]
            for n, subject in enumerate(subjects)
        ]
        text = "\n".join("\t".join(f'"{cell}"' for cell in row) for row in (header, told, *rows))
        (folder / "ndar_subject01.txt").write_text(text)
        place = "{0}_V1_MR/MNINonLinear/Results/{1}/{1}_hp0_clean.nii.gz"
    for key, values in scans.items():
        path = folder / place.format(*key.split("@"))
        path.parent.mkdir(parents=True)
        write_image(path, labels_img, values)


@pytest.mark.parametrize("name", ["hcp_ya", "hcp_aging"])
def test_hcp_recipe_on_images_in_the_archives_layout(tmp_path: Path, rng: np.random.Generator, name: str) -> None:
    people = {"hcp_ya": ["100307", "100408"], "hcp_aging": ["HCA6002236", "HCA6010538"]}[name]
    states = HCP_SCANS[name]
    first, second = states
    # The second subject did not do the second task.
    keys = [f"{people[0]}@{first}", f"{people[0]}@{second}", f"{people[1]}@{first}"]
    scans = {key: signals_of(number, 30, rng) for number, key in enumerate(keys)}
    labels_img = write_label_image(tmp_path / "aal.nii.gz")
    write_hcp(tmp_path, name, scans, labels_img)
    settings = PrepareArguments(
        output=str(tmp_path / "out"), recipe=name, data_dir=str(tmp_path), labels_img=str(labels_img), parquet=False
    )
    folder = prepare(settings)
    cohort = load_cohort(folder)
    found = cohort.table.set_index(cohort.table["subject_id"] + "@" + cohort.table["session"])
    assert sorted(found.index) == sorted(keys)
    assert found.loc[keys, "state"].tolist() == [states[first], states[second], states[first]]
    assert found.loc[keys, "sex"].tolist() == ["M", "M", "F"]
    assert found.loc[keys, "age"].tolist() == {"hcp_ya": [23.5, 23.5, 36], "hcp_aging": [40, 40, 60]}[name]
    order = [list(found.index).index(key) for key in keys]
    expected = np.stack([np.corrcoef(scans[key].T) for key in keys])
    np.testing.assert_allclose(cohort.connectivity(np.array(order)), expected, atol=2e-3)
    text, dropped = summary_of(folder)
    assert dropped == 0, text  # tasks that somebody did not do are no mistake
