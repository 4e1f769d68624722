"""Connectomes in the forms that users of scikit-learn and nilearn have them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .array_inputs import as_array, brings_names
from .feature_extraction_lcm import FCFeatureExtractor
from .triangles import find_layout, rebuild


def as_matrices(connectivity: Any, triangle: str = "lower", num_regions: int | None = None) -> Any:
    """Connectomes in any accepted form as matrices.

    Args:
        connectivity: `(scans, regions, regions)` or a list of DataFrames with named regions, returned as they are, or
            triangles `(scans, edges)`, whose diagonal is recognised where they have one, as nilearn's do by default.
        triangle: Order of the triangles' values: "lower" for the lower triangle row by row, as nilearn vectorises;
            "upper" for the upper one, as `numpy.triu_indices(regions, k=1)` and this package's files have it.
        num_regions: Regions that are needed, if that is known.

    Returns:
        Array `(scans, regions, regions)`, or the list of DataFrames.

    Raises:
        ValueError: Another shape, a length that no triangle has, an unknown order, or triangles that make matrices
            which are no correlations, while in the other order they would.
        TypeError: The values are not numbers.
    """
    if triangle not in ("lower", "upper"):
        raise ValueError(f"triangle must be lower (nilearn's order) or upper (numpy.triu_indices), got {triangle!r}.")
    if isinstance(connectivity, list | tuple) and brings_names(connectivity):
        return list(connectivity)
    array = as_array(connectivity, "X")
    if array.ndim == 3:
        return array
    if array.ndim != 2 or not array.size:
        raise ValueError(
            f"X has shape {array.shape}; needed are connectomes of one scan or more, (scans, regions, regions) or "
            "triangles without the diagonal (scans, regions * (regions - 1) / 2)."
        )
    if len(array) > 1 and array.shape[0] == array.shape[1] and np.allclose(array, array.T, equal_nan=True):
        raise ValueError(f"X is one matrix of {len(array)} regions; give several scans, (scans, regions, regions).")
    return rebuild(array, find_layout(array, triangle, num_regions))


def extractor_of(given: Any) -> FCFeatureExtractor:
    """An extractor for connectomes without a checkpoint: as many regions, and their names if they have some."""
    if isinstance(given, Mapping):
        atlases = {name: _regions(part) for name, part in given.items() if part is not None}
        if len(atlases) == 1:
            ((name, regions),) = atlases.items()
            return FCFeatureExtractor(name, **regions)
        return FCFeatureExtractor(atlases=atlases)
    return FCFeatureExtractor(**_regions(given))


def _regions(matrices: Any) -> dict[str, Any]:
    names = list(matrices[0].columns) if isinstance(matrices, list) and hasattr(matrices[0], "columns") else None
    return {"num_regions": np.shape(matrices[0])[-1]} | ({} if names is None else {"region_names": names})


def extract(extractor: FCFeatureExtractor, given: Any) -> dict[str, NDArray[np.float32]]:
    """FC by atlas, `(scans, regions, regions)`; NaN for scans that lack one."""
    found = extractor(connectivity=given)["connectivity"]
    return dict(found) if isinstance(found, Mapping) else {next(iter(extractor.by_atlas)): found}
