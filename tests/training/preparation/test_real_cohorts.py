"""The real cohorts beside the repository, where they are: prepared by recipe, merged, reported."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.training.preparation.layouts import write_fmriprep, write_label_image
from training.data.cohort import load_cohort
from training.data.folds import leave_site_out
from training.preparation.arguments import MergeArguments, PrepareArguments
from training.preparation.build import prepare
from training.preparation.merging import merge


COHORTS = Path(__file__).parent / "cohorts"


@pytest.fixture
def real_data(shared_dir: Path) -> Path:
    """Folder of real cohorts in the converted layout."""
    folder = shared_dir / "data"
    if not (folder / "neurocon-aal116").is_dir():
        pytest.skip("needs real cohorts in data/ of the reference data")
    return folder


def prepare_real(real_data: Path, name: str, folder: str, output: Path) -> Path:
    recipe = str(COHORTS / f"{name}.yaml")
    return prepare(
        PrepareArguments(recipe=recipe, data_dir=str(real_data / folder), output=str(output / name), parquet=False)
    )


def stored_fc(folder: Path) -> np.ndarray:
    with np.load(folder / "fc.npz") as file:
        return np.nan_to_num(file["fc_triu"].astype(np.float32))


def test_neurocon_equals_the_connectomes_that_came_with_it(real_data: Path, tmp_path: Path) -> None:
    cohort = load_cohort(prepare_real(real_data, "neurocon", "neurocon-aal116", tmp_path))
    np.testing.assert_allclose(cohort.triangles, stored_fc(real_data / "neurocon-aal116"), atol=1e-3)
    assert cohort.table["parkinson"].value_counts().to_dict() == {"PD": 26, "CN": 15}
    assert cohort.table["qc_homotopic"].median() > 0.8


@pytest.mark.slow
def test_all_real_cohorts_and_an_fmriprep_folder_become_one(real_data: Path, tmp_path: Path) -> None:
    folders = {"abide1": "abide1-aal116", "adhd200": "adhd200-aal116", "neurocon": "neurocon-aal116"}
    folders |= {"pain": "pain-mist122"}
    prepared = [prepare_real(real_data, name, folder, tmp_path) for name, folder in folders.items()]
    lemon = PrepareArguments(recipe="lemon", data_dir=str(real_data / "lemon-schaefer200"), parquet=False)
    lemon.output = str(tmp_path / "lemon")
    labels = write_label_image(tmp_path / "aal.nii.gz")
    derivatives = write_fmriprep(tmp_path / "fmriprep", labels)
    bids = PrepareArguments(
        output=str(tmp_path / "bids"), bids=str(derivatives), labels_img=str(labels), parquet=False
    )
    bids.session_column = "scan"
    prepared += [prepare(lemon), prepare(bids)]
    merged = merge(MergeArguments(inputs=list(map(str, prepared)), output=str(tmp_path / "merged"), by_atlas=True))
    assert [folder.name for folder in merged] == ["aal-116", "mist-122", "schaefer-200"]
    aal = load_cohort(merged[0])
    counts = aal.table["dataset"].value_counts().to_dict()
    assert counts == {"abide1": 646, "adhd200": 436, "neurocon": 41, "bids": 7}
    abide = pd.read_csv(real_data / "abide1-aal116" / "participants.tsv", sep="\t", dtype=str)
    adhd = pd.read_csv(real_data / "adhd200-aal116" / "participants.tsv", sep="\t", dtype=str)
    both = set(abide["same_person_in_adhd200"].dropna()) & set(adhd["participant_id"])
    shared_ids = aal.table.groupby("subject_id")["dataset"].nunique()
    assert (shared_ids == 2).sum() == len(both) > 30
    sited = aal.select(aal.table["site"].notna().to_numpy())
    folds = leave_site_out(sited.table)
    for fold in range(len(folds.test_subjects)):
        training, test = folds.split(sited, fold)
        assert not set(training.subjects) & set(test.subjects)
    # Two subjects of the pain cohort have the same scan.
    assert "sub-essen004" in (tmp_path / "pain" / "quality.html").read_text()
    assert "Mean FC of every site" in (merged[0] / "quality.html").read_text()
