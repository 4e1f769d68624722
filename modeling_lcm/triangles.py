"""Vectorised connectivity: which triangle of the matrix a vector holds, in which order, and the matrix again.

For four regions the values of the two orders are, with the diagonal in brackets:

- `"upper"`, row by row, as `numpy.triu_indices`: [00] 01 02 03 [11] 12 13 [22] 23 [33]
- `"lower"`, row by row, as `numpy.tril_indices` and nilearn: [00] 10 [11] 20 21 [22] 30 31 32 [33]
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .array_inputs import as_array


TRIANGLES = ("upper", "lower")
# A correlation matrix has no negative eigenvalue. Rounding moves eigenvalues: two decimals in a text file, or float16,
# by less than this for up to 300 regions.
LEAST_EIGENVALUE = -0.1
# What a diagonal holds: 1; or, as nilearn vectorises it, 1 over the square root of 2.
_DIAGONALS = (1.0, 2**-0.5)
_DIAGONAL_TOLERANCE = 1e-3
# Two or three regions have the same values in both orders.
_FEWEST_ORDERED = 4
# Covariances show by the sizes of this many values: correlations of values that are all alike must not pass for them.
_FEWEST_WITH_VARIANCES = 12
_USUAL_RATIO = 0.5
# Scans that are looked at: their order is that of all.
_LOOKED_AT = 20
_MATRICES_AT_ONCE = 64


@dataclass(frozen=True)
class TriangleLayout:
    """How vectors hold matrices.

    Attributes:
        num_regions (`int`): Side length of the matrix.
        triangle (`str`): `"upper"` or `"lower"`.
        with_diagonal (`bool`): Whether the diagonal is among the values.
    """

    num_regions: int
    triangle: str
    with_diagonal: bool


def find_layout(
    values: Any, triangle: str | None = None, num_regions: int | None = None, with_diagonal: bool | None = None
) -> TriangleLayout:
    """Find out what vectors hold, from what is declared and from what their values rule out.

    A diagonal of ones shows where it is. Without one, the wrong order gives matrices with clearly negative
    eigenvalues, which no correlation matrix has; for fewer than some ten regions both orders may be possible.

    Args:
        values (`Any`): `(edges,)` or `(batch, edges)`.
        triangle (`str`, *optional*): The declared order, `"upper"` or `"lower"`; `None` if it is not known.
        num_regions (`int`, *optional*): The number of regions that is needed, if that is known.
        with_diagonal (`bool`, *optional*): Whether the diagonal is declared to be there or not; `None` to find it.

    Raises:
        ValueError: No such triangle, values that contradict what is declared, or values that fit both orders while
            none is declared.
        TypeError: The values are not numbers.
    """
    if triangle is not None and triangle not in TRIANGLES:
        raise ValueError(f"triangle must be 'upper' (numpy.triu_indices) or 'lower' (nilearn), got {triangle!r}.")
    array = as_vectors(values, bool(with_diagonal))
    if with_diagonal:
        num_regions = count_regions(array.shape[-1], with_diagonal=True)
    diagonal = _find_diagonal(array, num_regions)
    if diagonal is not None and with_diagonal is False:
        raise ValueError(
            f"These {array.shape[-1]} values hold a diagonal of {diagonal.num_regions} regions, in the order of "
            f"{diagonal.triangle} triangles: pass with_diagonal=True and triangle={diagonal.triangle!r}."
        )
    if diagonal is not None:
        if triangle not in (None, diagonal.triangle) and diagonal.num_regions >= _FEWEST_ORDERED:
            raise ValueError(
                f"The values are declared to be {triangle} triangles, but their diagonal is where "
                f"{diagonal.triangle} triangles have it: set triangle={diagonal.triangle!r}."
            )
        return diagonal
    with_variances = count_regions(array.shape[-1], with_diagonal=True)
    declared = with_diagonal or num_regions == with_variances
    if with_variances and (declared or (num_regions is None and _holds_variances(array, with_variances))):
        raise ValueError(
            f"{array.shape[-1]} values of {with_variances} regions hold the diagonal, but it is not 1: a covariance, "
            "or no triangle in row order? Pass Pearson correlations, as vectors or matrices."
        )
    regions = count_regions(array.shape[-1])
    if regions is None:
        raise ValueError(_no_triangle(array.shape, False))
    if regions < _FEWEST_ORDERED:
        return TriangleLayout(regions, triangle or "upper", False)
    return TriangleLayout(regions, _find_order(array, regions, triangle), False)


def _find_order(array: np.ndarray, regions: int, declared: str | None) -> str:
    """The order in which vectors without diagonal are correlation matrices, or the declared one if it is possible."""
    few = np.nan_to_num(array.reshape(-1, array.shape[-1])[:_LOOKED_AT])
    share = {
        order: could_be_correlations(rebuild(few, TriangleLayout(regions, order, False))).mean() for order in TRIANGLES
    }
    # One damaged scan must not decide for all.
    possible = [order for order in TRIANGLES if share[order] == 1] or [o for o in TRIANGLES if share[o] > 0.5]
    if declared is not None and (declared in possible or not possible):
        return declared  # what is no correlation in either order is refused by name later
    if declared is not None:
        raise ValueError(
            f"Read as {declared} triangles, the values are no correlation matrices (they have eigenvalues below "
            f"{LEAST_EIGENVALUE}), but as {possible[0]} ones they are: set triangle={possible[0]!r}. "
            "nilearn's vectors are lower ones, numpy.triu_indices gives upper ones."
        )
    if not possible:
        raise ValueError(
            f"The values (up to {np.abs(few).max():.3g}) are neither the upper nor the lower triangle of correlation "
            "matrices, which have no negative eigenvalues: partial correlations, Fisher's z (undo it with "
            "numpy.tanh), thresholded? Pass Pearson correlations."
        )
    if len(possible) > 1:
        raise ValueError(
            f"{array.shape[-1]} values fit the upper triangle (numpy.triu_indices) and the lower one (nilearn) of a "
            "correlation matrix: say which with triangle='upper' or 'lower' (--triangle), or give matrices."
        )
    return possible[0]


def rebuild(values: np.ndarray, layout: TriangleLayout) -> np.ndarray:
    """Matrices of vectors, float32 `(..., regions, regions)`; a diagonal that is not in them becomes 1.

    A vector of zeros makes an all-zero matrix, which the checks refuse.

    Raises:
        ValueError: The vectors have another length than the layout.
    """
    side = layout.num_regions
    rows, columns = np.triu_indices(side, k=0 if layout.with_diagonal else 1)
    if layout.triangle == "lower":
        # Row by row below the diagonal is column by column above it.
        rows, columns = np.tril_indices(side, k=0 if layout.with_diagonal else -1)
    if values.shape[-1] != len(rows):
        raise ValueError(
            f"{values.shape[-1]} values are no {layout.triangle} triangle of {side} regions "
            f"({'with' if layout.with_diagonal else 'without'} diagonal), which has {len(rows)}."
        )
    matrices = np.ones((*values.shape[:-1], side, side), dtype=np.float32)
    matrices[~values.any(axis=-1)] = 0
    matrices[..., rows, columns] = matrices[..., columns, rows] = values
    if layout.with_diagonal:
        diagonal = np.arange(side)
        held = matrices[..., diagonal, diagonal]
        scaled = np.abs(held - _DIAGONALS[1]) <= _DIAGONAL_TOLERANCE
        matrices[..., diagonal, diagonal] = np.where(scaled, 1, held)
    return matrices


def count_regions(edges: int, with_diagonal: bool = False) -> int | None:
    """Side length of the matrix whose triangle has this many values; `None` if there is none."""
    side = round(np.sqrt(2 * edges + 0.25) + (-0.5 if with_diagonal else 0.5))
    return side if side > 0 and 2 * edges == side * (side + 1 if with_diagonal else side - 1) else None


def could_be_correlations(matrices: np.ndarray, least: float = LEAST_EIGENVALUE) -> np.ndarray:
    """Which of `(batch, regions, regions)` have no eigenvalue below `least`; bool `(batch,)`."""
    shift = -least * torch.eye(matrices.shape[-1])
    # A Cholesky factor exists just then, and costs a tenth of the eigenvalues.
    failed = [
        torch.linalg.cholesky_ex(torch.from_numpy(matrices[start : start + _MATRICES_AT_ONCE]).float() + shift).info
        for start in range(0, len(matrices), _MATRICES_AT_ONCE)
    ]
    return (torch.cat(failed) == 0).numpy()


def as_vectors(values: Any, with_diagonal: bool = False) -> np.ndarray:
    """Values as float32 `(edges,)` or `(batch, edges)` that some triangle may have.

    Raises:
        ValueError: Another shape, or a length that no triangle has.
        TypeError: The values are not numbers.
    """
    array = as_array(values, "values").astype(np.float32)
    if array.ndim not in (1, 2) or not array.size or count_regions(array.shape[-1], with_diagonal) is None:
        raise ValueError(_no_triangle(array.shape, with_diagonal))
    return array


def _no_triangle(shape: tuple[int, ...], with_diagonal: bool) -> str:
    size = "N * (N + 1) / 2" if with_diagonal else "N * (N - 1) / 2"
    return (
        f"Got values of shape {shape}: {shape[-1] if shape else 0} values are no upper triangle, nor a lower one. A "
        f"vectorised matrix of N regions is (batch, {size}) with{'' if with_diagonal else 'out'} its diagonal. Check "
        "with_diagonal."
    )


def _find_diagonal(array: np.ndarray, num_regions: int | None) -> TriangleLayout | None:
    """Where vectors hold ones throughout at the places of a diagonal."""
    side = count_regions(array.shape[-1], with_diagonal=True)
    if side is None or num_regions not in (None, side) or (side < 3 and num_regions is None):
        return None
    few = array.reshape(-1, array.shape[-1])[:_LOOKED_AT]
    # A blank diagonal shows only where it must be one.
    diagonals = _DIAGONALS if num_regions is None or not np.nan_to_num(few).any() else (*_DIAGONALS, 0.0)
    for triangle, place in _diagonal_places(side).items():
        held = few[:, place]
        for usual in diagonals:
            # NaN: a region without signal
            if (np.isnan(held) | (np.abs(held - usual) <= _DIAGONAL_TOLERANCE)).all() and not np.isnan(held).all():
                return TriangleLayout(side, triangle, True)
    return None


def _diagonal_places(side: int) -> dict[str, np.ndarray]:
    """Positions of the diagonal in the vectors of either order."""
    steps = np.arange(side)
    return {"lower": steps * (steps + 3) // 2, "upper": steps * side - steps * (steps - 1) // 2}


def _holds_variances(array: np.ndarray, side: int) -> bool:
    """Whether vectors hold variances where a diagonal would be: relative to them, all other values are small."""
    if side < _FEWEST_WITH_VARIANCES:
        return False
    few = array.reshape(-1, array.shape[-1])[:_LOOKED_AT]
    for triangle, place in _diagonal_places(side).items():
        first, second = np.tril_indices(side) if triangle == "lower" else np.triu_indices(side)
        variance = few[:, place]
        if not (variance > 0).all():
            continue
        edges = first != second
        ratio = (np.abs(few) / np.sqrt(variance[:, first] * variance[:, second]))[:, edges]
        # nilearn divides variances by the square root of 2.
        if (ratio <= 2**0.5).all() and np.median(ratio) < _USUAL_RATIO:
            return True
    return False
