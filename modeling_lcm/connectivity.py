"""Functional connectivity from ROI time series: batched Pearson or Ledoit-Wolf correlation, in NumPy arrays."""

import warnings
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .array_inputs import as_array
from .connectivity_checks import as_scans, check_signal_values
from .triangles import as_vectors, find_layout, rebuild


ESTIMATORS = ("pearson", "ledoit_wolf")
CONSTANT_REGIONS = ("zero", "error")

# Scans correlated in one product. All at once is slower: the centred copies no longer fit into the CPU caches.
SCANS_PER_BLOCK = 8
# Sums of squares that float32 holds with room to spare.
_SQUARES = (1e-25, 1e25)
# A region counts as constant when its deviation is within the rounding of its mean (in multiples of the epsilon).
_CONSTANT_TOLERANCE = 8
# atanh(1) is infinite: perfectly correlated regions get atanh of these instead, 7.25 and 3.80. Storage in float16
# rounds correlations above 0.9998 up to 1, so that those of stored scans are cut earlier.
LARGEST_R, LARGEST_STORED_R = 1 - 1e-6, 0.999


def compute_connectivity(
    time_series: Any,
    estimator: str = "pearson",
    fisher_z: bool = False,
    constant_regions: str = "zero",
    region_names: Sequence[str] | None = None,
) -> np.ndarray:
    """Correlate every region's signal with every other's.

    Args:
        time_series (`Any`): One scan `(volumes, regions)` or scans of one length `(batch, volumes, regions)`, array or
            tensor.
        estimator (`str`): `"pearson"`, which equals `numpy.corrcoef`, or `"ledoit_wolf"`, the shrunk estimate that
            nilearn's `ConnectivityMeasure(kind="correlation")` computes by default. The paper and its models use
            Pearson.
        fisher_z (`bool`): Return `atanh(r)` off the diagonal.
        constant_regions (`str`): What a region without variance (or all NaN: outside the field of view) does: `"zero"`
            gives correlations of 0 and one warning, `"error"` refuses.
        region_names (`Sequence[str]`, *optional*): Names for the messages.

    Returns:
        float32 `(regions, regions)` or `(batch, regions, regions)`; the diagonal is 1.

    Raises:
        ValueError: Not two or three axes, NaN or infinite values, no region with a signal, or an unknown option.
        TypeError: The values are not numbers.

    Source: paper, "Data"; NaN correlations become 0 as in the research code.
    """
    check_option("estimator", estimator, ESTIMATORS)
    check_option("constant_regions", constant_regions, CONSTANT_REGIONS)
    single = as_array(time_series, "time_series").ndim == 2
    matrices, silent = correlate_scans(as_scans(time_series), estimator, region_names)
    report_silent_regions(silent, constant_regions, region_names)
    matrices = to_fisher_z(matrices) if fisher_z else matrices
    return matrices[0] if single else matrices


def correlate_scans(
    scans: Sequence[np.ndarray], estimator: str, region_names: Sequence[str] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Correlate scans of any lengths, those of one length together.

    Args:
        scans (`Sequence[np.ndarray]`): Arrays `(volumes, regions)` that agree in the number of regions.
        estimator (`str`): See `compute_connectivity`.
        region_names (`Sequence[str]`, *optional*): Names for the messages.

    Returns:
        Matrices, float32 `(scans, regions, regions)`, and which regions had no signal, bool `(scans, regions)`; their
        correlations are 0.

    Raises:
        ValueError: NaN, infinite or absurdly large values; the message names scan and region.
    """
    num_regions = scans[0].shape[1]
    # Scans of one length lie behind each other, so that products are written where they stay.
    order = sorted(range(len(scans)), key=lambda number: len(scans[number]))
    matrices = np.empty((len(scans), num_regions, num_regions), dtype=np.float32)
    silent = np.empty((len(scans), num_regions), dtype=bool)
    done = 0
    for length, same in groupby(order, key=lambda number: len(scans[number])):
        numbers = list(same)
        # One buffer for all blocks: fresh memory for each would cost more than the arithmetic on it.
        kind = np.result_type(*{scans[number].dtype for number in numbers})
        buffer = np.empty((min(len(numbers), SCANS_PER_BLOCK), length, num_regions), dtype=kind)
        for start in range(0, len(numbers), SCANS_PER_BLOCK):
            chosen = numbers[start : start + SCANS_PER_BLOCK]
            place = slice(done, done + len(chosen))
            block = np.stack([scans[number] for number in chosen], out=buffer[: len(chosen)])
            block = check_signal_values(block, chosen, region_names)
            found = _correlate_block(torch.from_numpy(block), torch.from_numpy(matrices[place]), estimator)
            silent[place] = found.numpy()
            done += len(chosen)
    if order == list(range(len(scans))):
        return matrices, silent
    position = np.argsort(order)
    return matrices[position], silent[position]


def _correlate_block(series: Tensor, matrices: Tensor, estimator: str) -> Tensor:
    """Correlate `(batch, volumes, regions)`, which is overwritten, into `matrices`; returns the silent regions."""
    mean = series.mean(1, keepdim=True)
    # Centred twice: in float32 the first mean is rounded, which matters for signals of mean 10,000 and deviation 1.
    series -= mean
    series -= series.mean(1, keepdim=True)
    scaled, scale = series.float(), torch.ones(())
    torch.bmm(scaled.mT, scaled, out=matrices)
    squares = matrices.diagonal(dim1=1, dim2=2).clone()  # (batch, regions)
    smallest, largest = torch.aminmax(squares)
    if not (smallest > _SQUARES[0] and largest < _SQUARES[1]):
        # Silent regions, or units beyond float32: a factor per region, `(batch, regions)`, brings the products back.
        scale = series.abs().amax(1).clamp(min=torch.finfo(series.dtype).tiny)
        scaled = series.div_(scale[:, None, :]).float()
        torch.bmm(scaled.mT, scaled, out=matrices)
        squares = matrices.diagonal(dim1=1, dim2=2).clone()
    rounding = _CONSTANT_TOLERANCE * torch.finfo(series.dtype).eps * mean[:, 0].abs()
    silent = (squares / series.shape[1]).sqrt() <= rounding / scale
    # 1 / norm of each region's signal; 0 wipes out the rounding noise of silent ones
    norms = torch.where(silent, 0.0, squares.rsqrt())
    matrices.mul_(norms[:, :, None]).mul_(norms[:, None, :])
    if estimator == "ledoit_wolf":
        matrices *= 1 - _ledoit_wolf_shrinkage(matrices, scaled * norms[:, None, :])[:, None, None]
    matrices.clamp_(-1, 1).diagonal(dim1=1, dim2=2).fill_(1)
    return silent


def _ledoit_wolf_shrinkage(matrices: Tensor, unit_series: Tensor) -> Tensor:
    """Weight `(batch,)` of the identity in the shrunk correlation; silent regions (all zero) do not count.

    Source: Ledoit & Wolf 2004, J Multivariate Analysis, doi:10.1016/S0047-259X(03)00096-4, lemmas 3.1 to 3.4, for
    signals of unit variance, where the shrinkage target is the identity.
    """
    num_volumes = unit_series.shape[1]
    num_regions = (matrices.diagonal(dim1=1, dim2=2) > 0).sum(1).clamp(min=1)
    sum_of_squares = matrices.double().square().sum((1, 2))
    distance = (sum_of_squares - num_regions) / num_regions
    # (batch, volumes): squared length of each volume's standardised pattern
    power = num_volumes * unit_series.double().square().sum(2)
    noise = (power.square().sum(1) / num_volumes - sum_of_squares) / (num_regions * num_volumes)
    return torch.where(distance > 0, (noise / distance).clamp(0, 1), 0.0).float()


def fisher_z(correlations: np.ndarray, largest: float = LARGEST_STORED_R) -> np.ndarray:
    """Fisher's z, `atanh(r)`, of correlations of any shape; those beyond `largest` count as `largest`."""
    return np.arctanh(np.clip(correlations, -largest, largest))


def to_fisher_z(matrices: np.ndarray) -> np.ndarray:
    """Fisher's z, `atanh(r)`, of correlations `(batch, regions, regions)`; the diagonal stays 1."""
    z = fisher_z(matrices, LARGEST_R)
    diagonal = np.arange(z.shape[-1])
    z[:, diagonal, diagonal] = 1
    return z


def report_silent_regions(
    silent: np.ndarray, constant_regions: str, region_names: Sequence[str] | None = None
) -> None:
    """Warn about, or refuse, regions without a signal.

    Args:
        silent (`np.ndarray`): bool `(scans, regions)`.
        constant_regions (`str`): `"zero"` warns once for all scans, `"error"` refuses.
        region_names (`Sequence[str]`, *optional*): Names for the message.

    Raises:
        ValueError: No region of a scan has a signal, or `constant_regions` is `"error"` and one has none.
    """
    if silent.all(axis=1).any():
        raise ValueError(
            f"Scan {int(silent.all(axis=1).argmax())} has no region with a signal (all constant or NaN); check that "
            "image, atlas and brain mask overlap, or leave the scan out."
        )
    if not silent.any():
        return
    regions = np.flatnonzero(silent.any(axis=0))
    named = ", ".join(str(number) if region_names is None else region_names[number] for number in regions[:5])
    found = (
        f"{len(regions)} of {silent.shape[1]} regions are constant (no signal) in {int(silent.any(axis=1).sum())} of "
        f"{len(silent)} scans: {named}{', ...' if len(regions) > 5 else ''}."
    )
    if constant_regions == "error":
        raise ValueError(f"{found} Leave these scans out, or set constant_regions='zero'.")
    warnings.warn(f"{found} Their correlations are set to 0; constant_regions='error' refuses instead.", stacklevel=3)


def check_option(name: str, value: Any, known: Sequence[str]) -> None:
    """Refuse an option that is none of the known ones.

    Raises:
        ValueError: The value is unknown; the message lists the known ones.
    """
    if value not in known:
        raise ValueError(f"{name} is {value!r}, but must be one of {', '.join(map(repr, known))}.")


def connectivity_from_triangle(values: Any, with_diagonal: bool = False, triangle: str = "upper") -> np.ndarray:
    """Rebuild symmetric matrices from vectorised ones.

    Args:
        values (`Any`): `(edges,)` or `(batch, edges)`: one triangle row by row.
        with_diagonal (`bool`): Whether the vector holds the diagonal; otherwise the diagonal becomes 1. nilearn
            divides the diagonal by the square root of 2; that is undone.
        triangle (`str`): `"upper"`, the order of `numpy.triu_indices`, or `"lower"`, that of nilearn's vectors.

    Returns:
        float32 `(regions, regions)` or `(batch, regions, regions)`.

    Raises:
        ValueError: No matrix has this many edges; or the values say themselves that they are in the other order, or
            that they hold the diagonal.
        TypeError: The values are not numbers.

    Example:
        >>> connectivity_from_triangle([0.5, -0.25, 0.0])
        array([[ 1.  ,  0.5 , -0.25],
               [ 0.5 ,  1.  ,  0.  ],
               [-0.25,  0.  ,  1.  ]], dtype=float32)
    """
    array = as_vectors(values, with_diagonal)
    return rebuild(array, find_layout(array, triangle, with_diagonal=with_diagonal))
