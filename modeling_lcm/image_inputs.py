"""Images as input of a processor: region signals in all atlases of a checkpoint, each image read once."""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray
from transformers.utils import logging

from .atlases import find_atlas
from .nifti import LabelAtlas, extract_time_series, label_values, load_label_atlas, read_once


logger = logging.get_logger("transformers.models.lcm")


def signals_of_images(
    images: Any,
    extractors: Mapping[str, Any],
    label_images: Mapping[str, Any] | None = None,
    confounds: Any = None,
    options: Mapping[str, Any] | None = None,
) -> tuple[dict[str, list[NDArray]], dict[str, list[str]]]:
    """Region signals of scans in those of a checkpoint's atlases that there are label images of.

    Args:
        images: 4-D image in MNI space, path or nibabel image; or a list of them.
        extractors: [`FCFeatureExtractor`] of every atlas, by its id.
        label_images: Label image of every atlas, path, nibabel image or [`LabelAtlas`], by its id; the others are
            absent. Without it nilearn fetches those that it has.
        confounds: Nuisance signals of the image, as for [`extract_time_series`]; or a list of them.
        options: Other arguments of [`extract_time_series`].

    Returns:
        Signals `(volumes, regions)` of every scan by atlas, and the names of the regions by atlas, where the
        extractor has names to match them with.

    Raises:
        ValueError: No atlas has a label image, one has other regions than the checkpoint, or as for
            [`extract_time_series`].
        ImportError: nilearn is not installed.
    """
    several = isinstance(images, list | tuple)
    scans, nuisance = (list(images), confounds) if several else ([images], [confounds])
    nuisance = [None] * len(scans) if nuisance is None else list(nuisance)
    if not scans or len(nuisance) != len(scans):
        raise ValueError(f"Got {len(scans)} images and {len(nuisance)} confounds: give one for each image, or none.")
    atlases = _atlases(extractors, label_images)
    signals: dict[str, list[NDArray]] = {name: [] for name in atlases}
    for scan, regressed in zip(scans, nuisance, strict=True):
        image = read_once(scan)
        for name, atlas in atlases.items():
            found = extract_time_series(image, atlas, confounds=regressed, **(options or {}))
            signals[name].append(found.time_series)
    names = {name: list(atlas.labels.values()) for name, atlas in atlases.items()}
    return signals, {name: each for name, each in names.items() if extractors[name].knows_regions}


def _atlases(extractors: Mapping[str, Any], label_images: Mapping[str, Any] | None) -> dict[str, LabelAtlas]:
    """The atlases that there are label images of; a warning names the others."""
    given = None if label_images is None else {_spelt(name): image for name, image in label_images.items()}
    unknown = [] if given is None else [name for name in given if name not in extractors]
    if unknown:
        raise ValueError(
            f"label_images has {', '.join(unknown)}; the checkpoint's atlases are {', '.join(extractors)}."
        )
    found, absent = {}, {}
    for name, extractor in extractors.items():
        if given is not None:
            if given.get(name) is None:
                absent[name] = "no label image was given"
            else:
                found[name] = _atlas(name, given[name], extractor)
            continue
        try:
            found[name] = load_label_atlas(name)
        except ValueError as error:
            absent[name] = str(error)
    if not found:
        first = next(iter(absent))
        raise ValueError(
            f"No atlas of the checkpoint ({', '.join(absent)}) has a label image: give label_images={{{first!r}: "
            f"path}}. {absent[first]}"[:399]
        )
    for name, reason in absent.items():
        logger.warning("The scans are read without the atlas %s: %s.", name, reason.split(". ")[0].rstrip("."))
    for name, atlas in found.items():
        _check_regions(name, atlas, extractors[name])
    return found


def _atlas(name: str, given: Any, extractor: Any) -> LabelAtlas:
    """A label image with names: its own, the package's, or by its values' order the checkpoint's."""
    if isinstance(given, LabelAtlas):
        return given
    known = find_atlas(name)
    if known is not None and known.has_table:
        return load_label_atlas(name, given)
    values = sorted(label_values(given))
    names = extractor.region_names or [f"region {number}" for number in range(1, len(values) + 1)]
    if len(values) != extractor.num_regions:
        raise ValueError(
            f"The label image of {name} has {len(values)} regions, the checkpoint {extractor.num_regions}: give the "
            "atlas's own image, or load_label_atlas(name, image, names of its values)."
        )
    return load_label_atlas(name, given, dict(zip(values, names, strict=True)))


def _check_regions(name: str, atlas: LabelAtlas, extractor: Any) -> None:
    if extractor.knows_regions:
        return  # matched by name
    if len(atlas.labels) != extractor.num_regions:
        raise ValueError(
            f"The label image of {name} has {len(atlas.labels)} regions, the checkpoint {extractor.num_regions}: give "
            "the image that it was made with."
        )
    logger.warning(
        "The order of the regions of %s is not checked: the checkpoint has no names of them. They are taken in the "
        "order of the label image's names or values.",
        name,
    )


def _spelt(name: Any) -> str:
    known = find_atlas(str(name))
    return str(name) if known is None else known.id
