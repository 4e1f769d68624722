"""FC of scans in several atlases: each by its own extractor, scans without an atlas as NaN."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .array_inputs import as_array, brings_names
from .atlases import find_atlas


def extract_several(extractors: Mapping[str, Any], kind: str, given: Any, region_names: Any) -> dict[str, np.ndarray]:
    """FC by atlas, for those atlases that are given.

    Args:
        extractors: [`FCFeatureExtractor`] by atlas id.
        kind: `"connectivity"` or `"time_series"`.
        given: Scans by atlas; or of the one atlas that has as many regions.
        region_names: Names of the input's regions, by atlas or of the one that is given.

    Returns:
        float32 `(batch, regions, regions)` by atlas, NaN for a scan that lacks the atlas.

    Raises:
        ValueError: An atlas that is not known, different numbers of scans, or a scan without any atlas.
    """
    if not isinstance(given, Mapping):
        given = {_fitting(extractors, kind, given, region_names): given}
    scans = {_spelt(name): each for name, each in given.items() if each is not None}
    unknown = [name for name in scans if name not in extractors]
    if unknown or not scans:
        raise ValueError(
            f"Got the atlases {', '.join(map(str, given)) or 'none'}; known here are {', '.join(extractors)}. Leave "
            "out the others, or use a checkpoint that was made for them."
        )
    names = region_names if isinstance(region_names, Mapping) else dict.fromkeys(scans, region_names)
    found = {
        name: _with_gaps(extractors[name], kind, scans[name], names.get(name)) for name in extractors if name in scans
    }
    counts = {name: len(matrices) for name, matrices in found.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"The atlases have different numbers of scans ({counts}): give None for a scan without one.")
    absent = np.all([np.isnan(matrices[:, 0, 0]) for matrices in found.values()], axis=0)
    if absent.any():
        raise ValueError(f"Scan {int(np.flatnonzero(absent)[0])} has none of the atlases: leave it out.")
    return found


def _spelt(name: Any) -> str:
    known = find_atlas(str(name))
    return str(name) if known is None else known.id


def _fitting(extractors: Mapping[str, Any], kind: str, given: Any, region_names: Any) -> str:
    """The one atlas with as many regions as the scans have, or as there are names."""
    first = given[0] if isinstance(given, list | tuple) and np.ndim(given[0]) == 2 else given
    regions = np.shape(first)[-1] if np.ndim(first) else 0
    if region_names is not None:
        regions = len(region_names)
    fitting = [name for name, extractor in extractors.items() if extractor.num_regions == regions]
    if len(fitting) != 1:
        known = ", ".join(f"{name} ({extractor.num_regions})" for name, extractor in extractors.items())
        raise ValueError(
            f"{kind} has {regions} regions; {'more than one' if fitting else 'none'} of the atlases {known} fits: "
            f"give a dictionary, {kind}={{atlas: scans}}."
        )
    return fitting[0]


def _with_gaps(extractor: Any, kind: str, scans: Any, region_names: Sequence[str] | None) -> np.ndarray:
    """FC of those scans that are there, NaN for the others."""
    if isinstance(scans, list | tuple):
        several = [each if each is None or brings_names(each) else as_array(each, kind) for each in scans]
    else:
        array = scans if brings_names(scans) else as_array(scans, kind)
        several = list(array) if np.ndim(array) == 3 else [array]
    there = [row for row, each in enumerate(several) if each is not None and not _is_empty(each)]
    if len(there) == len(several):
        return extractor(**{kind: scans}, region_names=region_names)["connectivity"]
    matrices = np.full((len(several), extractor.num_regions, extractor.num_regions), np.nan, dtype=np.float32)
    if there:
        matrices[there] = extractor(**{kind: [several[row] for row in there]}, region_names=region_names)[
            "connectivity"
        ]
    return matrices


def _is_empty(scan: Any) -> bool:
    return not brings_names(scan) and bool(np.isnan(scan).all())
