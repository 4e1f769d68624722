"""Atlases by name, downloaded by nilearn: image, names, networks; and what to do where that is not possible."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .atlases import ATLASES, find_atlas


@dataclass(frozen=True)
class FetchedAtlas:
    """What nilearn gives of an atlas.

    Attributes:
        image (`Any`): Path or nibabel image: labels `(x, y, z)`, or maps `(x, y, z, regions)`.
        labels (`dict[int, str]`): Value in the image (of maps: their number, from 1) to region name, in the order of
            the matrix.
        networks (`list[str]`): Network of every region, where the atlas says it.
        coordinates (`list[list[float]]`): Centre of every region, mm in MNI space, where the atlas says it.
    """

    image: Any
    labels: dict[int, str]
    networks: list[str] = field(default_factory=list)
    coordinates: list[list[float]] = field(default_factory=list)


def fetch_atlas(atlas_id: str, data_dir: str | os.PathLike | None = None) -> FetchedAtlas:
    """Download an atlas through nilearn, unless nilearn has it already.

    Args:
        atlas_id (`str`): id of a known atlas.
        data_dir (`str` or `os.PathLike`, *optional*): where nilearn keeps its downloads.

    Raises:
        ValueError: nilearn has no such atlas, or it could not be downloaded; the message says the way round.
        ImportError: nilearn is not installed.
    """
    known = find_atlas(atlas_id)
    call = None if known is None else _call(known.id)
    if call is None or known is None:
        from_elsewhere = "" if known is None else f" ({known.description}) is known, but"
        raise ValueError(
            f"The atlas {atlas_id!r}{from_elsewhere} cannot be fetched; those that can are {fetchable()}. Give its "
            "label image with labels_img, and the names of its values with labels."
        )
    from nilearn import datasets

    name, options = call
    try:
        bunch = getattr(datasets, name)(data_dir=data_dir, verbose=0, **options)
    except (OSError, RuntimeError) as error:  # no network, a server that is down, a damaged archive
        reason = str(error).strip().split("\n")[0][:80]
        raise ValueError(
            f"The atlas {known.id} could not be downloaded ({type(error).__name__}: {reason}). Without network: call "
            f"nilearn.datasets.{name} where there is one and copy its folder here (NILEARN_DATA names it), or give "
            "the label image with labels_img, and the names of its values with labels."
        ) from error
    return _read(bunch)


def fetchable() -> str:
    """The atlases that can be fetched, for messages: "aal-116, ..., schaefer-100 to schaefer-1000"."""
    names = [atlas_id for atlas_id in ATLASES if _call(atlas_id) is not None and not atlas_id.startswith("schaefer")]
    return ", ".join([*names, "schaefer-100 to -1000 (17 networks: schaefer-100-17)"])


def _call(atlas_id: str) -> tuple[str, Mapping[str, Any]] | None:
    """nilearn's function for an atlas, and its arguments."""
    if atlas_id in _CALLS:
        return _CALLS[atlas_id]
    if match := re.fullmatch(r"schaefer-(\d+)(-17)?", atlas_id):
        return "fetch_atlas_schaefer_2018", {"n_rois": int(match[1]), "yeo_networks": 17 if match[2] else 7}
    if match := re.fullmatch(r"basc-(\d+)", atlas_id):
        return "fetch_atlas_basc_multiscale_2015", {"resolution": int(match[1])}
    return None


_CALLS: dict[str, tuple[str, Mapping[str, Any]]] = {
    # NOTE: nilearn's default version is AAL3 with 166 regions; "SPM12" is the original AAL.
    "aal-116": ("fetch_atlas_aal", {"version": "SPM12"}),
    "aal3-166": ("fetch_atlas_aal", {"version": "3v2"}),
    "destrieux-148": ("fetch_atlas_destrieux_2009", {"lateralized": True}),
    "harvard-oxford-48": ("fetch_atlas_harvard_oxford", {"atlas_name": "cort-maxprob-thr25-2mm"}),
    "harvard-oxford-96": ("fetch_atlas_harvard_oxford", {"atlas_name": "cortl-maxprob-thr25-2mm"}),
    "msdl-39": ("fetch_atlas_msdl", {}),
}


def _read(bunch: Any) -> FetchedAtlas:
    table = getattr(bunch, "lut", None)
    if table is not None:
        named = zip(table["index"], table["name"], strict=True)
        labels = {int(value): str(name) for value, name in named if int(value) != 0}
    else:  # maps have no values
        labels = dict(enumerate(map(str, bunch.labels), start=1))
    networks, coordinates = getattr(bunch, "networks", None), getattr(bunch, "region_coords", None)
    return FetchedAtlas(bunch.maps, labels, list(networks or []), [list(each) for each in coordinates or []])
