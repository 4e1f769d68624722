"""From a NIfTI image and a label atlas to ROI time series, through nilearn's masker (extra `[nifti]`)."""

import csv
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .atlas_fetching import fetch_atlas
from .atlases import find_atlas, region_coordinates, region_labels


MISSING_REGIONS = ("nan", "error")
# Schaefer's names state the network: "7Networks_LH_Vis_1".
_NETWORK = re.compile(r"(?:7|17)Networks_[LR]H_([A-Za-z]+)")

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
        id (`str`): Atlas id or a name of your own.
        image (`Any`): Image of whole numbers `(x, y, z)`, 0 = background; or maps `(x, y, z, regions)`.
        labels (`dict[int, str]`): Value in the image (of maps: their number, from 1) to region name, in the order of
            the matrix.
        networks (`list[str]`): Network of every region, where the atlas says it.
        coordinates (`list[list[float]]`): Centre of every region, mm in MNI space, where the atlas says it; else see
            [`region_table`].
    """

    id: str
    image: Any
    labels: dict[int, str]
    networks: list[str] = field(default_factory=list)
    coordinates: list[list[float]] = field(default_factory=list)

    @property
    def has_maps(self) -> bool:
        """Whether regions are overlapping maps rather than labels."""
        return len(self.image.shape) == 4

    def voxel_labels(self) -> np.ndarray:
        """Value of every voxel, int `(x, y, z)`: of maps, the strongest one."""
        values = np.asarray(self.image.dataobj)
        if not self.has_maps:
            return np.round(values).astype(int)
        return np.where(values.max(axis=3) > 0, values.argmax(axis=3) + 1, 0)


@dataclass(frozen=True)
class RegionSignals:
    """ROI time series of one scan, in the atlas's order.

    Attributes:
        time_series (`np.ndarray`): `(volumes, regions)`; NaN for regions that are not in the image.
        region_names (`list[str]`): One name per column.
        missing (`list[str]`): Names of the regions that are not in the image.
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
        atlas (`str`): Name of an atlas that nilearn has (`modeling_lcm.atlas_fetching`): AAL, AAL3, Schaefer 100 to
            1000 with 7 or 17 networks, Harvard-Oxford, Destrieux, BASC, MSDL; any name with `labels_img`.
        labels_img (`Any`, *optional*): Local label image, path or nibabel image. Then nothing is downloaded.
        labels (`Mapping[int, str] | str | os.PathLike`, *optional*): Names of its values, in the order of the matrix:
            `{value: name}`, or a BIDS table (`dseg.tsv`) with columns index and name. Not needed for an atlas whose
            table this package has.
        data_dir (`str | os.PathLike`, *optional*): Where nilearn keeps downloaded atlases; its own default if `None`.

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
        fetched = fetch_atlas(atlas_id, data_dir)
        image, table = load_img(fetched.image), None if known is None else region_labels(known)
        if len(image.shape) == 4:
            return LabelAtlas(atlas_id, image, fetched.labels, fetched.networks, fetched.coordinates)
        labels_img = image
        # Values are matched, not positions: the fetched list may be longer, shorter or in another order. Names of
        # regions that this version of the image does not have are left out.
        chosen = table or {value: name for value, name in fetched.labels.items() if value in _label_values(image)}
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


def region_table(atlas: str | LabelAtlas) -> list[dict[str, Any]]:
    """Names, label values, MNI coordinates and networks of an atlas's regions, in the order of the matrix.

    Args:
        atlas (`str` or `LabelAtlas`): what `load_label_atlas` returned, or the name of an atlas that it can fetch.

    Returns:
        One `{"name", "label", "x", "y", "z", "network"}` per region; the network is `None` where the atlas and its
        names say none.

    Raises:
        ValueError: as for `load_label_atlas`.
    """
    atlas = load_label_atlas(atlas) if isinstance(atlas, str) else atlas
    known = find_atlas(atlas.id)
    table = None if known is None else region_labels(known)
    places = None if known is None or table != atlas.labels else region_coordinates(known)
    if places is None:
        places = np.array(atlas.coordinates or _centres(atlas))
    names = list(atlas.labels.values())
    networks: Sequence[str | None] = atlas.networks
    if not networks:
        networks = [match[1] if (match := _NETWORK.match(name)) else None for name in names]
    return [
        {"name": name, "label": value, **dict(zip("xyz", map(float, place), strict=True)), "network": network}
        for (value, name), place, network in zip(atlas.labels.items(), places, networks, strict=True)
    ]


def _centres(atlas: LabelAtlas) -> np.ndarray:
    """Centre of mass of every region, mm `(regions, 3)`; NaN for one without voxels."""
    from nibabel.affines import apply_affine

    values = atlas.voxel_labels()
    centres = [
        np.argwhere(values == value).mean(axis=0) if (values == value).any() else np.full(3, np.nan)
        for value in atlas.labels
    ]
    return apply_affine(atlas.image.affine, np.array(centres))


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
        image (`Any`): 4-D fMRI image, path or nibabel image.
        atlas (`str | LabelAtlas`): What `load_label_atlas` returned, or the name of an atlas that it can fetch.
        confounds (`Any`, *optional*): Nuisance signals to regress out, as for nilearn: array, table or path.
        missing_regions (`str`): Regions that lie outside the image or vanish when the atlas is resampled to it:
            `"nan"` gives NaN and one warning, `"error"` refuses.
        sample_mask (`Any`, *optional*): Volumes to keep, as nilearn's `load_confounds` gives them for scrubbing; all
            if `None`.
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
    if atlas.has_maps:
        return _from_maps(scan, atlas, confounds, sample_mask, masker_options)
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


def _from_maps(
    scan: Any, atlas: LabelAtlas, confounds: Any, sample_mask: Any, options: Mapping[str, Any]
) -> RegionSignals:
    """Signals of overlapping maps, by regression."""
    from nilearn.maskers import NiftiMapsMasker

    masker = NiftiMapsMasker(atlas.image, **{"standardize": None, **options})
    signals = np.asarray(masker.fit_transform(scan, confounds=confounds, sample_mask=sample_mask))
    if signals.shape[1] != len(atlas.labels):
        raise ValueError(f"The atlas {atlas.id} has {len(atlas.labels)} names for {signals.shape[1]} maps.")
    return RegionSignals(signals, list(atlas.labels.values()), [])


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


def read_once(image: Any) -> Any:
    """A scan with its values in memory, for several atlases: otherwise each would read and unpack the file again.

    Args:
        image (`Any`): 4-D image, path or nibabel image.
    """
    _require_nilearn()
    from nilearn.image import load_img, new_img_like

    scan = load_img(image)
    return new_img_like(scan, np.asanyarray(scan.dataobj), copy_header=True)


def label_values(image: Any) -> set[int]:
    """Values of a label image, path or nibabel image, without the background.

    Raises:
        ValueError: It is no label image.
        ImportError: nilearn is not installed.
    """
    _require_nilearn()
    from nilearn.image import load_img

    return _label_values(load_img(image))


def _label_values(image: Any) -> set[int]:
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
