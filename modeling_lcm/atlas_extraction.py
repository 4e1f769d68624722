"""FC of scans in several atlases: each by its own extractor, scans without an atlas as NaN."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from .array_inputs import as_array, brings_names
from .atlas_agreement import who_disagree
from .atlases import find_atlas


logger = logging.get_logger("transformers.models.lcm")


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
    scans = {name: _listed(kind, each) for name, each in scans.items()}
    if kind == "time_series":
        _require_same_volumes(scans)
    found = {
        name: _with_gaps(extractors[name], kind, scans[name], names.get(name)) for name in extractors if name in scans
    }
    counts = {name: len(matrices) for name, matrices in found.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"The atlases have different numbers of scans ({counts}): give None for a scan without one.")
    absent = np.all([np.isnan(matrices[:, 0, 0]) for matrices in found.values()], axis=0)
    if absent.any():
        raise ValueError(f"Scan {int(np.flatnonzero(absent)[0])} has none of the atlases: leave it out.")
    if others := who_disagree(found):
        logger.warning(
            "The connectomes of %s and %s do not look like those of the same scans: scans that are alike in one are "
            "not in the other. Are subjects or sessions in another order?",
            *others,
        )
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
    there = [row for row, each in enumerate(scans) if not _is_empty(each)]
    matrices = np.full((len(scans), extractor.num_regions, extractor.num_regions), np.nan, dtype=np.float32)
    if there:
        matrices[there] = extractor(**{kind: [scans[row] for row in there]}, region_names=region_names)["connectivity"]
    return matrices


def _listed(kind: str, scans: Any) -> list[Any]:
    """Scans one by one."""
    if isinstance(scans, list | tuple):
        return [each if each is None or brings_names(each) else as_array(each, kind) for each in scans]
    array = scans if brings_names(scans) else as_array(scans, kind)
    return list(array) if np.ndim(array) == 3 else [array]


def _require_same_volumes(scans: Mapping[str, list[Any]]) -> None:
    """Raise `ValueError` where a scan has more volumes in one atlas than in another: they are not of one scan."""
    if len({len(each) for each in scans.values()}) > 1:
        return  # which is told elsewhere
    for row in range(len(next(iter(scans.values())))):
        volumes = {name: len(each[row]) for name, each in scans.items() if not _is_empty(each[row])}
        if len(set(volumes.values())) > 1:
            shown = ", ".join(f"{count} in {name}" for name, count in volumes.items())
            raise ValueError(
                f"Scan {row} has different numbers of volumes ({shown}): are the atlases of different subjects or "
                "sessions? Give signals of the same scan, from the same volumes."
            )


def _is_empty(scan: Any) -> bool:
    return scan is None or (not brings_names(scan) and bool(np.isnan(scan).all()))
