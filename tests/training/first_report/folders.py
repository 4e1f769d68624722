"""Folders as laboratories have them, simulated from the real connectomes that come with the repository."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from tests.training.preparation.layouts import write_confounds, write_image


DEMO_DATA = Path(__file__).parents[3] / "training" / "demo_data" / "lemon-schaefer200"
VOLUMES = 80


def demo_subjects(count: int) -> tuple[pd.DataFrame, np.ndarray, list[str]]:
    """Table, correlation matrices `(subjects, 200, 200)` and names of regions; half young, half elderly."""
    archive = np.load(DEMO_DATA / "fc.npz")
    table = pd.read_csv(DEMO_DATA / "participants.tsv", sep="\t").set_index("participant_id")
    table = table.loc[archive["participant_id"]].reset_index()
    parts = [np.flatnonzero(table["cohort"] == label)[: count // 2] for label in ("young", "elderly")]
    rows = np.sort(np.concatenate(parts))
    matrices = np.tile(np.eye(200), (len(rows), 1, 1))
    upper = np.triu_indices(200, 1)
    matrices[:, *upper] = archive["fc_triu"][rows].astype(float)
    matrices = np.maximum(matrices, np.swapaxes(matrices, 1, 2)) + np.minimum(matrices, np.swapaxes(matrices, 1, 2))
    matrices[:, np.arange(200), np.arange(200)] = 1
    names = pd.read_csv(DEMO_DATA / "rois.tsv", sep="\t")["name"].tolist()
    return table.iloc[rows].rename(columns={"cohort": "Group"}).reset_index(drop=True), matrices, names


def signals_like(matrix: np.ndarray, rng: np.random.Generator, volumes: int = VOLUMES) -> np.ndarray:
    """Region time series `(volumes, regions)` whose correlations are near a matrix."""
    values, vectors = np.linalg.eigh(matrix)
    root = vectors * np.sqrt(values.clip(1e-6))
    return rng.standard_normal((volumes, len(matrix))) @ root.T


def write_xcpd(folder: Path, count: int = 24) -> Path:
    """XCP-D's output: a table of time series and one of motion for every subject."""
    table, matrices, names = demo_subjects(count)
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    description = {"Name": "XCP-D", "GeneratedBy": [{"Name": "xcp_d", "Version": "0.10.6"}]}
    (folder / "dataset_description.json").write_text(json.dumps(description))
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    for subject, matrix in zip(table["participant_id"], matrices, strict=True):
        func = folder / subject / "func"
        func.mkdir(parents=True)
        stem = func / f"{subject}_task-rest_space-MNI152NLin2009cAsym"
        series = pd.DataFrame(signals_like(matrix, rng), columns=names).round(4)
        series.to_csv(f"{stem}_seg-Schaefer200_stat-mean_timeseries.tsv", sep="\t", index=False)
        motion = pd.DataFrame({"framewise_displacement": np.abs(rng.normal(rng.uniform(0.05, 0.2), 0.02, VOLUMES))})
        motion.to_csv(func / f"{subject}_task-rest_motion.tsv", sep="\t", index=False)
    return folder


def write_fmriprep_of_demo(folder: Path, labels_img: Path, count: int = 12) -> Path:
    """fMRIPrep's output: coarse images whose 116 regions have the signals of the demo's first ones."""
    table, matrices, _ = demo_subjects(count)
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    description = {"Name": "fMRIPrep", "GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.2.1"}]}
    (folder / "dataset_description.json").write_text(json.dumps(description))
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    for subject, matrix in zip(table["participant_id"], matrices, strict=True):
        func = folder / subject / "func"
        func.mkdir(parents=True)
        stem = f"{subject}_task-rest"
        image = func / f"{stem}_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz"
        write_image(image, labels_img, signals_like(matrix[:116, :116], rng).astype("f4"))
        write_confounds(func / f"{stem}_desc-confounds_timeseries", VOLUMES, rng)
    return folder


def write_matrices(folder: Path, count: int = 24) -> Path:
    """One CSV of FC for every subject, and a table beside them with other spellings of the ids."""
    table, matrices, names = demo_subjects(count)
    folder.mkdir(parents=True)
    for subject, matrix in zip(table["participant_id"], matrices, strict=True):
        frame = pd.DataFrame(matrix.round(4), columns=names)
        frame.to_csv(folder / f"{subject}_fc.csv", index=False)
    table.to_csv(folder / "participants.csv", index=False)
    return folder
