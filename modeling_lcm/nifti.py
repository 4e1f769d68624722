"""From a NIfTI image and a label atlas to ROI time series, through nilearn's masker (extra `[nifti]`)."""

import csv
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .atlases import find_atlas, region_labels


MISSING_REGIONS = ("nan", "error")

# Share of an atlas's regions that a local copy must have to be taken for that atlas.
_FEWEST_KNOWN_REGIONS = 0.9

# How nilearn says that image and atlas, or mask and atlas, have no voxel in common.
_NO_OVERLAP = ("No label left", "does not contain any of the data")

# Settings of the masker that decide which column is which region: they are ours.
_OWN_MASKER_OPTIONS = {"labels_img", "labels", "lut", "background_label", "keep_masked_labels"}


@dataclass(frozen=True)
class LabelAtlas:
    """A label image and what its values mean.

    Attributes:
        id: Atlas id or a name of your own.
        image: 3-D image of whole numbers, 0 = background.
        labels: Value in the image to region name, in the order of the matrix.
    """

    id: str
    image: Any
    labels: dict[int, str]


@dataclass(frozen=True)
class RegionSignals:
    """ROI time series of one scan, in the atlas's order.

    Attributes:
        time_series: `(volumes, regions)`; NaN for regions that are not in the image.
        region_names: One name per column.
        missing: Names of the regions that are not in the image.
    """

    time_series: np.ndarray
    region_names: list[str]
    missing: list[str]


def load_label_atlas(
    atlas: str = "aal-116",
    labels_img: Any = None,
    labels: Mapping[int, str] | str | os.PathLike | None = None,
    data_dir: str | os.PathLike | None = None,
) -> LabelAtlas:
    """Fetch an atlas through nilearn, or read a local label image.

    Args:
        atlas: `"aal-116"` or a Schaefer atlas (`"schaefer-100"`, ...) can be fetched; any name with `labels_img`.
        labels_img: Local label image, path or nibabel image. Then nothing is downloaded.
        labels: Names of its values, in the order of the matrix: `{value: name}`, or a BIDS table (`dseg.tsv`) with
            columns index and name. Not needed for an atlas whose table this package has.
        data_dir: Where nilearn keeps downloaded atlases; its own default if `None`.

    Raises:
        ValueError: The atlas cannot be fetched, or values and names do not fit.
        ImportError: nilearn is not installed.
    """
    _require_nilearn()
    from nilearn.image import load_img

    known = find_atlas(atlas)
    atlas_id = atlas if known is None else known.id
    if labels_img is None:
        if labels is not None:
            raise ValueError("labels= names the values of a local label image; pass it as labels_img= too.")
        labels_img, fetched = _fetch(atlas_id, data_dir)
        table = None if known is None else region_labels(known)
        # Values are matched, not positions: the fetched list may be longer, shorter or in another order.
        chosen = fetched if table is None else table
    elif labels is not None:
        chosen = _read_labels(labels)
    else:
        chosen = {}
    image = load_img(labels_img)
    values = _label_values(image)
    if not chosen:
        chosen = _known_labels(atlas_id, values)
    if unnamed := sorted(values - chosen.keys()):
        raise ValueError(
            f"The label image holds {len(unnamed)} values without a name ({', '.join(map(str, unnamed[:5]))}"
            f"{', ...' if len(unnamed) > 5 else ''}); the names are for values {min(chosen)} to {max(chosen)}. Pass "
            "the names that belong to this image as labels={value: name}."
        )
    return LabelAtlas(atlas_id, image, chosen)


def extract_time_series(
    image: Any,
    atlas: str | LabelAtlas = "aal-116",
    confounds: Any = None,
    missing_regions: str = "nan",
    sample_mask: Any = None,
    **masker_options: Any,
) -> RegionSignals:
    """Average the voxels of every region of a preprocessed scan in MNI space.

    Args:
        image: 4-D fMRI image, path or nibabel image.
        atlas: What `load_label_atlas` returned, or the name of an atlas that it can fetch.
        confounds: Nuisance signals to regress out, as for nilearn: array, table or path.
        missing_regions: Regions that lie outside the image or vanish when the atlas is resampled to it: `"nan"` gives
            NaN and one warning, `"error"` refuses.
        sample_mask: Volumes to keep, as nilearn's `load_confounds` gives them for scrubbing; all if `None`.
        masker_options: For `nilearn.maskers.NiftiLabelsMasker`: `mask_img`, `smoothing_fwhm`, `low_pass`, `t_r`, ...

    Returns:
        Signals for `FCFeatureExtractor(time_series=signals.time_series, region_names=signals.region_names)`.

    Raises:
        ValueError: Not a 4-D image, or atlas and image do not overlap.
        ImportError: nilearn is not installed.
    """
    _require_nilearn()
    from nilearn.image import load_img
    from nilearn.maskers import NiftiLabelsMasker

    if missing_regions not in MISSING_REGIONS:
        raise ValueError(f"missing_regions is {missing_regions!r}, but must be 'nan' or 'error'.")
    if taken := _OWN_MASKER_OPTIONS & masker_options.keys():
        raise ValueError(
            f"{', '.join(sorted(taken))}: set by the atlas; pass load_label_atlas(...) as atlas= instead."
        )
    scan = load_img(image)
    if scan.ndim != 4 or scan.shape[3] < 2:
        raise ValueError(f"The image has shape {scan.shape}; a scan is 4-D (x, y, z, volumes). Pass the whole run.")
    atlas = load_label_atlas(atlas) if isinstance(atlas, str) else atlas
    # Signals stay as they are by default: the correlation standardises them anyway.
    masker = NiftiLabelsMasker(atlas.image, keep_masked_labels=False, **{"standardize": None, **masker_options})
    try:
        with warnings.catch_warnings():
            # nilearn lists lost labels by value; the warning below names the regions.
            warnings.filterwarnings("ignore", message="After (resampling the label image|applying mask)")
            signals = np.asarray(masker.fit_transform(scan, confounds=confounds, sample_mask=sample_mask))
    except ValueError as error:
        if not any(text in str(error) for text in _NO_OVERLAP):
            raise
        raise ValueError(
            f"Image and atlas {atlas.id} do not overlap. Is the image in MNI space, and the mask not empty?"
        ) from error
    # Column to label value: the masker sorts its columns by value and leaves out what it did not find.
    column_of = {int(value): column for column, value in masker.region_ids_.items() if column != "background"}
    time_series = np.full((len(signals), len(atlas.labels)), np.nan, dtype=signals.dtype)
    found = [(position, column_of[value]) for position, value in enumerate(atlas.labels) if value in column_of]
    targets, columns = np.array(found, dtype=int).reshape(-1, 2).T
    time_series[:, targets] = signals[:, columns]
    missing = [name for value, name in atlas.labels.items() if value not in column_of]
    _report_missing(missing, len(atlas.labels), missing_regions)
    return RegionSignals(time_series, list(atlas.labels.values()), missing)


def _report_missing(missing: list[str], total: int, missing_regions: str) -> None:
    if not missing:
        return
    found = (
        f"{len(missing)} of {total} regions are not in the image: {', '.join(missing[:5])}"
        f"{', ...' if len(missing) > 5 else ''}."
    )
    if missing_regions == "error":
        raise ValueError(f"{found} Check the field of view and the mask, or set missing_regions='nan'.")
    warnings.warn(f"{found} Their signals are NaN (no signal).", stacklevel=3)


def _require_nilearn() -> None:
    try:
        import nilearn  # noqa: F401 - only whether it is there
    except ImportError as error:
        raise ImportError(
            "Reading NIfTI images needs nilearn: run `pip install large-connectome-model[nifti]`, or extract the "
            "region signals elsewhere and pass them as time_series=."
        ) from error


def _fetch(atlas_id: str, data_dir: str | os.PathLike | None) -> tuple[Any, dict[int, str]]:
    """Label image and names of its values, downloaded by nilearn unless it has them already."""
    from nilearn import datasets

    if atlas_id == "aal-116":
        # NOTE: nilearn's default version is AAL3 with 166 regions; "SPM12" is the original AAL.
        bunch = datasets.fetch_atlas_aal(version="SPM12", data_dir=data_dir)
    elif atlas_id.startswith("schaefer-"):
        bunch = datasets.fetch_atlas_schaefer_2018(
            n_rois=int(atlas_id.removeprefix("schaefer-")), yeo_networks=7, data_dir=data_dir
        )
    else:
        raise ValueError(
            f"The atlas {atlas_id!r} cannot be fetched (aal-116 and schaefer-100 to -400 can); pass its label image "
            "as labels_img= and the names of its values as labels=."
        )
    named = zip(bunch.lut["index"], bunch.lut["name"], strict=True)
    return bunch.maps, {int(value): str(name) for value, name in named if int(value) != 0}


def _label_values(image: Any) -> set[int]:
    """Values of a label image without the background."""
    if image.ndim != 3:
        raise ValueError(f"The label image has shape {image.shape}; an atlas is 3-D with one whole number per region.")
    values = np.unique(np.asarray(image.dataobj))
    whole = np.round(values)
    if not np.allclose(values, whole, atol=1e-3):
        raise ValueError(
            "The label image holds fractions, so it is a probabilistic map or was resampled with interpolation; "
            "pass the original label image."
        )
    labels = {int(value) for value in whole} - {0}
    if not labels:
        raise ValueError("The label image is empty: all its voxels are 0 (background). Pass another file.")
    return labels


def _known_labels(atlas_id: str, values: set[int]) -> dict[int, str]:
    """Names for a local copy of a known atlas, with its published values or with values 1, 2, 3, ... in order."""
    table = region_labels(atlas_id) if find_atlas(atlas_id) is not None else None
    if table is None:
        raise ValueError(f"The region names of {atlas_id!r} are not in this package; pass labels={{value: name}}.")
    numbered = dict(enumerate(table.values(), start=1))
    for candidate in (table, numbered):
        # A coarse copy may have lost a few small regions; a smaller atlas would lack many.
        if values <= candidate.keys() and len(values) >= _FEWEST_KNOWN_REGIONS * len(candidate):
            return candidate
    raise ValueError(
        f"The label image is not {atlas_id}: it holds {len(values)} regions with values from {min(values)} to "
        f"{max(values)}, the atlas has {len(table)} from {min(table)} to {max(table)}. Pass another image, or "
        "labels={value: name} for this one."
    )


def _read_labels(labels: Mapping[int, str] | str | os.PathLike) -> dict[int, str]:
    if not isinstance(labels, Mapping):
        with open(labels, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        try:
            labels = {int(row["index"]): row["name"] for row in rows}
        except (KeyError, TypeError, ValueError):
            raise ValueError(
                f"{labels} must be a tab-separated table with columns index (a whole number, the value in the image) "
                "and name."
            ) from None
    named = {int(value): str(name) for value, name in labels.items()}
    # A table numbered from 0 would shift every name by one region, so only a named background may be 0.
    if named.get(0, "background").lower() not in ("background", "unknown"):
        raise ValueError(
            f"labels names the value 0 {named[0]!r}, but 0 is the background of a label image. Number the regions by "
            "their value in the image."
        )
    named.pop(0, None)
    if not named:
        raise ValueError("labels names no region; give {value: name} for every value of the label image.")
    return named
