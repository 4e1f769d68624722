"""Folders as laboratories and archives have them, generated: fMRIPrep derivatives, and cohorts' own downloads."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd

from modeling_lcm.atlases import region_coordinates, region_labels


SPACING = 8.0  # mm; coarse, so that an image takes 60 kB
ORIGIN = np.array([-90.0, -126.0, -72.0])
SHAPE = (23, 28, 24)


def brain_affine() -> np.ndarray:
    """Affine of the coarse MNI grid."""
    affine = np.diag([SPACING, SPACING, SPACING, 1.0])
    affine[:3, 3] = ORIGIN
    return affine


def write_label_image(path: Path) -> Path:
    """AAL-116 on the coarse grid: every region is the voxel nearest to its centre, and its free neighbours."""
    labels = np.zeros(SHAPE, dtype=np.int32)
    voxels = np.round((region_coordinates("aal-116") - ORIGIN) / SPACING).astype(int)
    for value, voxel in zip(region_labels("aal-116"), voxels, strict=True):
        for shift in ((0, 0, 0), (1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, 0, 1), (0, -1, 0), (0, 0, -1), (1, 1, 0)):
            place = tuple(voxel + shift)
            if labels[place] == 0:
                labels[place] = value
                break
    nibabel.save(nibabel.Nifti1Image(labels, brain_affine()), path)
    return path


def signals_of(number: int, volumes: int, rng: np.random.Generator) -> np.ndarray:
    """ROI time series `(volumes, 116)` in which left and right counterparts go together."""
    pairs = rng.standard_normal((volumes, 58)).repeat(2, axis=1)
    return (pairs + 0.7 * rng.standard_normal((volumes, 116)) + 0.3 * rng.standard_normal((volumes, 1))).astype("f4")


def write_image(path: Path, labels_img: Path, signals: np.ndarray, affine: np.ndarray | None = None) -> None:
    """4-D image whose regions have these signals."""
    labels = np.asarray(nibabel.load(labels_img).dataobj)
    data = np.full((*labels.shape, len(signals)), 1000, dtype=np.float32)
    for column, value in enumerate(region_labels("aal-116")):
        data[labels == value] += 50 * signals[:, column]
    image = nibabel.Nifti1Image(data, brain_affine() if affine is None else affine)
    image.header.set_zooms((SPACING, SPACING, SPACING, 2.0))
    nibabel.save(image, path)


def write_fmriprep(folder: Path, labels_img: Path, people: int = 6, volumes: int = 40) -> Path:
    """Derivatives of subjects with two sessions for the first; confounds without any effect on the signals."""
    rng = np.random.default_rng(3)
    folder.mkdir(parents=True)
    description = {"Name": "fMRIPrep", "GeneratedBy": [{"Name": "fMRIPrep", "Version": "23.2.1"}]}
    (folder / "dataset_description.json").write_text(json.dumps(description))
    table = pd.DataFrame(
        {
            "participant_id": [f"sub-{number:02d}" for number in range(1, people + 1)],
            "age": ["24,5", "45-49", "90+", "31", "n/a", "40"][:people],
            "sex": ["M ", "f", "F", "m", "F", "M"][:people],
        }
    )
    table.to_csv(folder / "participants.tsv", sep="\t", index=False)
    for number, subject in enumerate(table["participant_id"]):
        for session in ("1", "2") if number == 0 else ("1",):
            func = folder / subject / f"ses-{session}" / "func"
            func.mkdir(parents=True)
            stem = f"{subject}_ses-{session}_task-rest_run-1"
            write_image(
                func / f"{stem}_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz",
                labels_img,
                signals_of(number, volumes, rng),
            )
            write_confounds(func / f"{stem}_desc-confounds_timeseries", volumes, rng)
    return folder


def write_confounds(stem: Path, volumes: int, rng: np.random.Generator) -> None:
    """fMRIPrep's table of nuisance signals and its description."""
    names = [
        f"{name}{suffix}"
        for name in (
            "trans_x",
            "trans_y",
            "trans_z",
            "rot_x",
            "rot_y",
            "rot_z",
            "white_matter",
            "csf",
            "global_signal",
        )
        for suffix in ("", "_derivative1", "_power2", "_derivative1_power2")
    ]
    table = pd.DataFrame(rng.standard_normal((volumes, len(names))), columns=names)
    table["framewise_displacement"] = np.abs(rng.normal(0.1, 0.03, volumes))
    table["std_dvars"] = np.abs(rng.normal(1, 0.1, volumes))
    table["cosine00"] = np.cos(np.pi * (np.arange(volumes) + 0.5) / volumes)
    table.loc[0, ["framewise_displacement", *(name for name in names if "derivative1" in name)]] = np.nan
    table.to_csv(f"{stem}.tsv", sep="\t", index=False, na_rep="n/a")
    Path(f"{stem}.json").write_text("{}")


def write_xcpd(folder: Path, series: dict[str, np.ndarray], names: list[str], seg: str = "seg-Made10") -> Path:
    """XCP-D's derivatives: per scan (`sub-01[_ses-1]_task-rest`) a time series, correlations, coverage and motion.

    A region that is NaN in the signals is an `n/a` column; a volume that is NaN is a censored row.
    """
    folder.mkdir(parents=True, exist_ok=True)
    description = {"Name": "XCP-D", "GeneratedBy": [{"Name": "xcp_d", "Version": "0.10.0"}]}
    (folder / "dataset_description.json").write_text(json.dumps(description))
    subjects = sorted({stem.split("_")[0] for stem in series})
    pd.DataFrame({"participant_id": subjects, "age": [str(30 + n) for n in range(len(subjects))]}).to_csv(
        folder / "participants.tsv", sep="\t", index=False
    )
    for stem, values in series.items():
        func = folder / stem.split("_")[0] / "func"
        func.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(values, columns=names)
        space = f"{stem}_space-MNI152NLin2009cAsym_{seg}"
        table.to_csv(func / f"{space}_stat-mean_timeseries.tsv", sep="\t", index=False, na_rep="n/a")
        relmat = func / f"{space}_stat-pearsoncorrelation_relmat.tsv"
        table.corr().to_csv(relmat, sep="\t", index_label="Node", na_rep="n/a")
        coverage = pd.Series(np.where(np.isnan(values).all(axis=0), 0.2, 1.0), index=names, name="coverage")
        coverage.to_csv(func / f"{space}_stat-coverage_bold.tsv", sep="\t", index_label="Node")
        motion = pd.DataFrame({"framewise_displacement": [0.0, *[0.15] * (len(values) - 1)]})
        motion.to_csv(func / f"{stem}_motion.tsv", sep="\t", index=False)
    return folder
