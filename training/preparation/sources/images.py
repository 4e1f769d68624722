"""Preprocessed NIfTI images, listed in a table or found in an fMRIPrep folder, through nilearn's masker."""

import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from modeling_lcm.nifti import LabelAtlas, extract_time_series, load_label_atlas

from .base import DEFAULT_ATLAS, Absent, Scan, Source
from .bounds import check_image
from .entities import BIDSFile, beside
from .files import locate
from .tables import read_table


IMAGE_FORMATS = (".nii", ".nii.gz")
STRATEGIES = ("simple", "scrubbing", "compcor", "ica_aroma")  # of nilearn's load_confounds_strategy
# Smallest share of the atlas that must lie inside an image's field of view.
_FEWEST_INSIDE = 0.7
_VOLUMES_SEEN = 5


@dataclass
class ImageSource(Source):
    """4-D images in MNI space.

    Args:
        paths (`list[Path]`): image of every row.
        atlas (`str`): atlas id.
        labels_img (`str`, *optional*): local label image, instead of one that nilearn fetches.
        labels (`str`, *optional*): table of its values (columns index and name).
        strategy (`str`, *optional*): denoising strategy for fMRIPrep's confounds; `None` regresses nothing out.
        confounds (`list[Path]`, *optional*): tables whose columns are all regressed out, instead of a strategy.
        only_atlas (`bool`): whether no other source reads the same images in another atlas.
        masker (`dict`): settings of `nilearn.maskers.NiftiLabelsMasker`, e.g. smoothing or filter.
    """

    paths: list[Path] = field(default_factory=list)
    atlas: str = DEFAULT_ATLAS
    labels_img: str | None = None
    labels: str | None = None
    strategy: str | None = None
    confounds: list[Path] | None = None
    only_atlas: bool = True
    masker: dict[str, Any] = field(default_factory=dict)

    slow = True

    @cached_property
    def label_atlas(self) -> LabelAtlas:
        """The label image, loaded once per process."""
        return load_label_atlas(self.atlas, self.labels_img, self.labels)

    @cached_property
    def atlas_voxels(self) -> tuple[np.ndarray, np.ndarray]:
        """Places of the atlas's voxels `(voxels, 3)`, mm in MNI space, and the region of each, a position."""
        import nibabel

        image, values = self.label_atlas.image, self.label_atlas.voxel_labels()
        position = {value: number for number, value in enumerate(self.label_atlas.labels)}
        voxels = np.argwhere(np.isin(values, list(position)))
        regions = np.array([position[value] for value in values[tuple(voxels.T)]])
        return nibabel.affines.apply_affine(image.affine, voxels), regions

    def __getstate__(self) -> dict[str, Any]:
        """Workers load the label image themselves."""
        cached = ("label_atlas", "atlas_voxels")
        return {key: value for key, value in super().__getstate__().items() if key not in cached}

    def region_names(self) -> list[str]:
        """See `Source.region_names`."""
        return list(self.label_atlas.labels.values())

    def read(self, row: int) -> Scan:
        """See `Source.read`."""
        path = self.paths[row]
        image = load_image(path) if self.only_atlas else _load_once(path)
        points, regions = self.atlas_voxels
        coverage = region_coverage(image, points, regions, len(self.label_atlas.labels))
        check_space(image, path, self.label_atlas.id, points[::7])
        confounds, kept, mean_fd = self._confounds(row)
        with warnings.catch_warnings():
            # Missing regions are counted in the quality columns; any other warning is the user's to read.
            warnings.filterwarnings("ignore", ".*Their signals are NaN")
            signals = extract_time_series(
                image, self.label_atlas, confounds=confounds, sample_mask=kept, **self.masker
            ).time_series
        remarks = () if kept is None else (f"{len(signals)} volumes left by scrubbing",)
        return Scan(signals, "time_series", mean_fd, len(signals), remarks, coverage, named=True)

    def files(self, row: int) -> list[Path]:
        """See `Source.files`."""
        found = [self.paths[row], *(Path(path) for path in (self.labels_img, self.labels) if path is not None)]
        if self.confounds is not None:
            found.append(self.confounds[row])
        elif self.strategy is not None:
            with suppress(ValueError):  # its absence is told when the scan is read
                found.append(confounds_path(self.paths[row]))
        return found

    def _confounds(self, row: int) -> tuple[Any, Any, float | None]:
        """Nuisance signals, volumes to keep (`None` = all) and mean framewise displacement."""
        if self.confounds is not None:
            table = read_table(self.confounds[row]).apply(pd.to_numeric, errors="raise")
            check_confounds(table, self.confounds[row])
            return table.fillna(0).to_numpy(), None, mean_displacement(table)
        if self.strategy is None:
            return None, None, None
        from nilearn.interfaces.fmriprep import load_confounds_strategy

        where = confounds_path(self.paths[row])
        raw = pd.read_csv(where, sep="\t", na_values="n/a")
        check_confounds(raw, where)
        # fMRIPrep's own limits, which are nilearn's from 0.13 on; before, the same setting kept other volumes.
        limits = {"fd_threshold": 0.5, "std_dvars_threshold": 1.5} if self.strategy == "scrubbing" else {}
        confounds, kept = load_confounds_strategy(str(self.paths[row]), denoise_strategy=self.strategy, **limits)
        return confounds, kept, mean_displacement(raw)


def image_source(
    pattern: str,
    table: pd.DataFrame,
    whose: Callable[[int], str],
    confounds: str | None = None,
    **options: Any,
) -> ImageSource:
    """Locate the images of a table.

    Args:
        pattern (`str`): path with names of columns in braces.
        table (`pd.DataFrame`): text, one row per scan.
        whose (`Callable`): names subject and line of a row.
        confounds (`str`, *optional*): pattern of nuisance tables.
        options: other fields of `ImageSource`.

    Raises:
        ValueError: the pattern does not fit the table, or a file is no NIfTI image.
    """
    paths = locate(pattern, table, whose)
    nuisance = None if confounds is None else locate(confounds, table, whose)
    here, absent = [], []
    for row, path in enumerate(paths):
        if not path.name.endswith(IMAGE_FORMATS):
            raise ValueError(f"{path} ({whose(row)}) is no NIfTI image ({', '.join(IMAGE_FORMATS)}).")
        missing = path if not path.is_file() else None
        if missing is None and nuisance is not None and not nuisance[row].is_file():
            missing = nuisance[row]
        if missing is None:
            here.append(row)
        else:
            absent.append(Absent(whose(row), f"There is no file {missing} ({whose(row)})."))
    return ImageSource(
        table=table.iloc[here],
        places=[f"{paths[row]} ({whose(row)})" for row in here],
        absent=absent,
        paths=[paths[row] for row in here],
        confounds=None if nuisance is None else [nuisance[row] for row in here],
        **options,
    )


def load_image(path: Path) -> Any:
    """Read an image once and whole, so that damage shows here and not as a riddle inside nilearn.

    Raises:
        ValueError: the file is damaged, or not 4-D.
    """
    import nibabel

    try:
        image: Any = nibabel.load(path)
        check_image(path, image)
        if image.ndim == 4:
            image = nibabel.Nifti1Image(
                image.get_fdata(dtype=np.float32, caching="unchanged"), image.affine, image.header
            )
    except Exception as error:  # nibabel, gzip and zlib each have their own
        kind = type(error).__name__
        raise ValueError(f"the image is unreadable or truncated ({kind}: {error}); copy it again.") from error
    if image.ndim != 4:
        raise ValueError(f"the image has shape {image.shape}; a scan is 4-D (x, y, z, volumes).")
    return image


_read_last: dict[Path, Any] = {}


def _load_once(path: Path) -> Any:
    """An image that several atlases want one after the other; no more than one is kept in memory."""
    if path not in _read_last:
        _read_last.clear()
        _read_last[path] = load_image(path)
    return _read_last[path]


def region_coverage(image: Any, points: np.ndarray, regions: np.ndarray, count: int) -> np.ndarray:
    """Share of every region's voxels that lie inside an image and have a signal there.

    Args:
        image: 4-D image.
        points (`np.ndarray` of shape `(voxels, 3)`): places of the atlas's voxels, mm.
        regions (`np.ndarray` of shape `(voxels,)`): region of each, a position.
        count (`int`): number of regions.

    Returns:
        `(regions,)`, from 0 to 1; NaN for a region without voxels.
    """
    voxels = np.round(_in_voxels(image, points)).astype(int)
    inside = ((voxels >= 0) & (voxels < image.shape[:3])).all(axis=1)
    # Outside the measured part of the brain all volumes are 0: a few of them tell.
    data = np.asarray(image.dataobj)
    some = [data[..., volume] for volume in np.linspace(0, image.shape[3] - 1, _VOLUMES_SEEN).astype(int)]
    has_signal = np.any([volume != some[0] for volume in some[1:]], axis=0) & np.isfinite(some[0])
    inside[inside] = has_signal[tuple(voxels[inside].T)]
    with np.errstate(invalid="ignore"):
        return np.bincount(regions, inside, count) / np.bincount(regions, minlength=count)


def _in_voxels(image: Any, points: np.ndarray) -> np.ndarray:
    """Places in mm as positions in an image's grid."""
    from nibabel.affines import apply_affine

    return apply_affine(np.linalg.inv(image.affine), points)


def check_space(image: Any, path: Path, atlas: str, points: np.ndarray) -> None:
    """Refuse an image that is not in MNI space, as far as its name and its field of view tell.

    Args:
        image: the image.
        path (`Path`): its file, whose BIDS name may state the space.
        atlas (`str`): id of the atlas.
        points (`np.ndarray` of shape `(points, 3)`): places in the atlas, mm.

    Raises:
        ValueError: the name says another space, or most of the atlas lies outside the image.
    """
    space = BIDSFile.of(path).entities.get("space")
    if space is not None and not space.startswith("MNI"):
        raise ValueError(f"the image is in the space {space!r}, not in MNI space; use fMRIPrep's output in MNI space.")
    voxels = _in_voxels(image, points)
    inside = ((voxels >= -0.5) & (voxels <= np.array(image.shape[:3]) - 0.5)).all(axis=1).mean()
    if inside < _FEWEST_INSIDE:
        raise ValueError(
            f"only {inside:.0%} of the atlas {atlas} lies inside the image: it is not in MNI space, or covers a part "
            "of the brain."
        )


def confounds_path(image: Path) -> Path:
    """Table of nuisance signals that fMRIPrep wrote beside an image; all echoes of a run share one.

    Raises:
        ValueError: there is none.
    """
    file = BIDSFile.of(image)
    for suffix in ("timeseries", "regressors"):
        if (path := beside(file, suffix, desc="confounds")) is not None:
            return path
    stem = "_".join(file.key[1:])
    raise ValueError(f"there is no sub-{file.key[0]}_{stem}_desc-confounds_timeseries.tsv beside the image.")


def check_confounds(table: pd.DataFrame, path: Path) -> None:
    """Refuse a table of nuisance signals that holds nothing: regressing zeros out would pass unnoticed.

    Raises:
        ValueError: most columns, or all motion parameters, are zero or missing throughout.
    """
    values = table.select_dtypes("number")
    empty = [name for name in values.columns if not (values[name].fillna(0) != 0).any()]
    motion = [name for name in values.columns if name in MOTION]
    if len(values.columns) == 0 or len(empty) * 2 > len(values.columns) or (motion and set(motion) <= set(empty)):
        raise ValueError(
            f"{path} holds no nuisance signals: {len(empty)} of {len(values.columns)} columns are zero or missing "
            f"throughout ({', '.join(empty[:4])}). Run the preprocessing again."
        )


MOTION = ("trans_x", "trans_y", "trans_z", "rot_x", "rot_y", "rot_z")


def mean_displacement(table: pd.DataFrame) -> float | None:
    """Mean framewise displacement in mm, if the table has it (the first volume has none)."""
    for name in ("framewise_displacement", "FramewiseDisplacement", "fd"):
        if name in table.columns:
            values = pd.to_numeric(table[name], errors="coerce")
            return None if values.isna().all() else float(values.mean())
    return None


def pipeline_version(folder: Path) -> str | None:
    """Name and version of the pipeline from `dataset_description.json`."""
    path = folder / "dataset_description.json"
    try:
        made_by: Sequence[dict[str, str]] = json.loads(path.read_text(encoding="utf-8"))["GeneratedBy"]
        return " ".join(filter(None, (made_by[0].get("Name"), made_by[0].get("Version"))))
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
