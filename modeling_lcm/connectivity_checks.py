"""Checks of ROI time series and connectivity matrices: what was given, what is needed, what to do."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .array_inputs import as_array
from .atlases import atlases_with
from .correlation_checks import RANGE_TOLERANCE, NotCorrelationsError, check_are_correlations, check_not_empty
from .triangles import count_regions


# Larger values are no signal, and their squares leave the range of float32.
_LARGEST_SIGNAL = 1e30
# A row of this many numbers is taken for a vectorised matrix even if the processor's region count is not known.
_LONG_ROW = 1000
# Steps between rows, in units of the smallest one, are whole numbers in a column that counts: rounding of times.
_COUNTER_TOLERANCE = 0.05
_FEWEST_FOR_COUNTER = 16
# A diagonal that was blanked, and came out of a subtraction.
_BLANK = 1e-6


def as_scans(time_series: Any) -> list[np.ndarray]:
    """Turn one scan, a stack or a list of scans into a list of arrays `(volumes, regions)`.

    Raises:
        ValueError: Empty input or the wrong number of axes.
        TypeError: The values are not numbers.
    """
    several = isinstance(time_series, list | tuple) and len(time_series) > 0 and _axes(time_series[0]) > 1
    if several:
        scans = [as_array(scan, f"time_series[{number}]") for number, scan in enumerate(time_series)]
    else:
        array = as_array(time_series, "time_series")
        if array.size == 0:
            raise ValueError(f"time_series is empty (shape {array.shape}); give at least one scan (volumes, regions).")
        scans = list(array) if array.ndim == 3 else [array]
    for number, scan in enumerate(scans):
        if scan.ndim != 2 or scan.shape[1] < 2:
            raise ValueError(
                f"Scan {number} has shape {scan.shape}; a scan is (volumes, regions), with at least 2 regions."
            )
    return scans


def _axes(item: Any) -> int:
    try:
        return int(np.ndim(item))
    except ValueError:  # lists of different lengths
        return 2


def check_scan_shapes(
    scans: Sequence[np.ndarray], num_regions: int | None, min_volumes: int, atlas: str | None = None
) -> None:
    """Check that every scan is `(volumes, regions)`, with the right regions and enough volumes.

    Args:
        scans (`Sequence[np.ndarray]`): Arrays with two axes.
        num_regions (`int | None`): Number of regions needed, or `None` if any number will do as long as all scans
            agree.
        min_volumes (`int`): Fewest volumes a correlation may be computed from.
        atlas (`str`, *optional*): Name of the atlas for the messages.

    Raises:
        ValueError: Transposed scan, wrong region count, connectivity matrix instead of a time series, or too short.
    """
    for number, scan in enumerate(scans):
        volumes, regions = scan.shape
        if num_regions is not None and regions != num_regions:
            if volumes == num_regions:
                raise ValueError(
                    f"Scan {number} has shape {scan.shape} and looks transposed: a time series is (volumes, "
                    f"{num_regions} regions). Pass its transpose (`.T`)."
                )
            raise ValueError(wrong_region_count(f"Scan {number}", regions, num_regions, atlas))
        if regions != scans[0].shape[1]:
            raise ValueError(
                f"Scan 0 has {scans[0].shape[1]} regions and scan {number} has {regions}; all scans must come from "
                "one atlas. Process them separately."
            )
        if volumes == regions and np.allclose(scan, scan.T, equal_nan=True):
            raise ValueError(
                f"Scan {number} of shape {scan.shape} is a connectivity matrix (symmetric), not a time series; pass "
                "it as connectivity=."
            )
        if volumes < min_volumes:
            raise ValueError(
                f"Scan {number} has shape {scan.shape}, that is {volumes} volumes of {regions} regions; at least "
                f"{min_volumes} volumes are needed. Leave it out, or transpose it if its rows are regions."
            )
    volumes, regions = scans[0].shape
    if num_regions is None and volumes < regions and atlases_with(volumes) and not atlases_with(regions):
        warnings.warn(
            f"Scan 0 has shape {scans[0].shape}, read as {volumes} volumes of {regions} regions. "
            f"{_atlas_names(volumes)} has {volumes} regions: transpose the scan if these are its rows, "
            "or set num_regions.",
            stacklevel=3,
        )


def check_signal_values(block: np.ndarray, numbers: Sequence[int], region_names: Sequence[str] | None) -> np.ndarray:
    """Check the values of scans `(batch, volumes, regions)`; regions that are NaN throughout become 0 (no signal).

    Raises:
        ValueError: Other NaN, infinite or absurdly large values, or a column that counts the volumes; the message
            names scan and region.
    """
    for number, scan in zip(numbers, block, strict=True):
        if (counting := np.flatnonzero(find_counters(scan))).size:
            column = scan[:, counting[0]]
            raise ValueError(
                f"Region {counting[0]} of scan {number} only counts up, from {column[0]:g} to {column[-1]:g}: an "
                "index or time column, not a region's signal. Leave this column out."
            )
    low, high = torch.aminmax(torch.from_numpy(block))  # NaN if there is one
    if low > -_LARGEST_SIGNAL and high < _LARGEST_SIGNAL:
        return block
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(block) < _LARGEST_SIGNAL)
    outside = np.isnan(block).all(axis=1, keepdims=True)
    bad &= ~outside
    if bad.any():
        scan, volume, region = np.argwhere(bad)[0]
        name = f"region {region}" if region_names is None else f"region {region} ({region_names[region]})"
        raise ValueError(
            f"Scan {numbers[scan]} holds {int(bad[scan].sum())} NaN, infinite or absurdly large values, the first "
            f"({block[scan, volume, region]}) at volume {volume} of {name}. Repair or leave out these volumes "
            "or the scan."
        )
    return np.where(outside, 0, block)


def find_counters(values: np.ndarray) -> np.ndarray:
    """Columns of `(rows, columns)` that number the rows or say their time, also with gaps; bool `(columns,)`."""
    found = np.zeros(values.shape[1], dtype=bool)
    if len(values) < 3:
        return found
    # Three steps rule nearly all signals out before whole columns are looked at.
    rising = np.flatnonzero((np.diff(values[:4], axis=0) > 0).all(axis=0))
    for column in rising:
        found[column] = _counts(values[:, column].astype(np.float64))
    return found


def _counts(column: np.ndarray) -> bool:
    if column[0] in (0, 1) and np.array_equal(column, column[0] + np.arange(len(column))):
        return True
    steps = np.diff(column)
    if len(column) < _FEWEST_FOR_COUNTER or not (steps > 0).all() or not np.isfinite(steps).all():
        return False
    units = steps / steps.min()
    return bool((np.abs(units - np.round(units)) <= _COUNTER_TOLERANCE).all())


def check_connectivity(
    connectivity: Any,
    num_regions: int | None,
    atlas: str | None = None,
    region_names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Check ready matrices of Pearson correlations.

    Args:
        connectivity (`Any`): `(regions, regions)` or `(batch, regions, regions)`, array, tensor or nested list.
        num_regions (`int | None`): Number of regions needed, or `None` if any number will do.
        atlas (`str`, *optional*): Name of the atlas for the messages.
        region_names (`Sequence[str]`, *optional*): Names for the messages.

    Returns:
        float32 `(batch, regions, regions)`, and which regions have no signal, bool `(batch, regions)`: their rows were
        NaN off the diagonal and are now 0. A diagonal of zeros becomes 1; correct values are not touched.

    Raises:
        ValueError: Wrong shape or region count, vectorised, NaN or infinite values.
        NotCorrelationsError: A `ValueError`, too: a diagonal that is not 1, values outside [-1, 1], asymmetric
            matrices, nothing but zeros, or eigenvalues that no correlation matrix has.
        TypeError: The values are not numbers.
    """
    array = _square_matrices(connectivity, num_regions)
    if num_regions is not None and array.shape[-1] != num_regions:
        raise ValueError(wrong_region_count("connectivity", array.shape[-1], num_regions, atlas))
    check_not_empty(array)
    matrices, silent = _without_silent_rows(array, region_names)
    diagonal = np.arange(matrices.shape[-1])
    values = matrices[:, diagonal, diagonal]
    # Some tools blank self-connections; a blank diagonal carries no information, so it can be put back.
    blank = ((np.abs(values) <= _BLANK) | silent).all(axis=1, keepdims=True)
    if not (blank | (np.abs(values - 1) <= RANGE_TOLERANCE)).all():
        worst = values.flat[np.argmax(np.where(blank, 0, np.abs(values - 1)))]
        raise NotCorrelationsError(
            f"The diagonal of connectivity must be 1 (Pearson correlation) but holds {worst:.4g}: a covariance, "
            "partial correlation or Fisher z? Pass correlations, or time_series= to have them computed."
        )
    matrices[:, diagonal, diagonal] = 1
    check_are_correlations(matrices)
    return np.clip(matrices, -1, 1), silent


def wrong_region_count(what: str, given: int, needed: int, atlas: str | None) -> str:
    """Message about a region count, naming the known atlases that have the given one."""
    return (
        f"{what} has {given} regions ({_atlas_names(given)}), but this processor is for {needed} "
        f"({atlas or _atlas_names(needed)}). Extract the signals with that atlas, or use a model made for {given} "
        "regions."
    )


def _atlas_names(num_regions: int) -> str:
    return " or ".join(atlas.id for atlas in atlases_with(num_regions)) or "no atlas known here"


def _square_matrices(connectivity: Any, num_regions: int | None) -> np.ndarray:
    array = as_array(connectivity, "connectivity")
    if array.size == 0:
        raise ValueError(f"connectivity is empty (shape {array.shape}); give at least one matrix (regions, regions).")
    if array.ndim == 2 and array.shape[0] == array.shape[1]:
        array = array[None]
    if array.ndim == 3 and array.shape[1] == array.shape[2] and array.shape[1] > 1:
        return array
    given = f"Got connectivity of shape {array.shape}; needed is (batch, regions, regions)."
    if array.ndim in (1, 2) and _is_vectorised(array.shape, num_regions):
        raise ValueError(
            f"{given} These look like vectorised matrices (one triangle each): rebuild them with "
            "connectivity_from_triangle(values, triangle='lower') if nilearn made them, 'upper' if numpy.triu_indices."
        )
    rows, columns = array.shape[-2:] if array.ndim in (2, 3) else (0, 0)
    if (num_regions is not None and rows == num_regions < columns) or rows + 1 == columns:
        raise ValueError(
            f"{given} Rows and columns must be the same regions: leave out columns that number or name the rows, and "
            f"further targets (CONN's ROI files: keep the first {rows} columns, and undo Fisher's z with numpy.tanh)."
        )
    if array.ndim in (2, 3):
        raise ValueError(f"{given} If these are signals (volumes, regions), pass them as time_series=.")
    raise ValueError(given)


def _is_vectorised(shape: tuple[int, ...], num_regions: int | None) -> bool:
    sides = [count_regions(shape[-1], with_diagonal) for with_diagonal in (False, True)]
    if num_regions is not None:
        return num_regions in sides
    return sides[0] is not None and (len(shape) == 1 or shape[-1] > _LONG_ROW)


def _without_silent_rows(array: np.ndarray, region_names: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Copy in float32 with rows and columns of NaN regions set to 0, and which regions those are."""
    matrices = np.array(array, dtype=np.float32)
    identity = np.eye(matrices.shape[-1], dtype=bool)
    absent = np.isnan(matrices) | identity
    silent = np.logical_and(absent.all(axis=2), absent.all(axis=1))
    matrices[(silent[:, :, None] | silent[:, None, :]) & ~identity] = 0
    matrices[silent[:, :, None] & identity] = 1
    bad = ~np.isfinite(matrices)
    if not bad.any():
        return matrices, silent
    if not (bad & ~identity).any():
        raise NotCorrelationsError(
            "connectivity has a NaN or infinite diagonal and looks like Fisher's z (as CONN writes it), but Pearson's "
            "r is needed: undo it with numpy.tanh and set the diagonal to 1."
        )
    number, row, column = np.argwhere(bad & ~identity)[0]
    below = np.isnan(matrices[number][np.tril_indices(len(identity), -1)])
    above = np.isnan(matrices[number][np.triu_indices(len(identity), 1)])
    if (below.all() and not above.all()) or (above.all() and not below.all()):
        raise NotCorrelationsError(
            f"Matrix {number} holds one triangle only; the other one is NaN. Fill it: both triangles of a correlation "
            "matrix are the same."
        )
    name = "" if region_names is None else f" ({region_names[row]}, {region_names[column]})"
    raise ValueError(
        f"Matrix {number} holds {int(bad[number].sum())} NaN or infinite values, the first at [{row}, {column}]"
        f"{name}. Only a region without signal may be NaN, in its whole row and column. Repair "
        "or leave out this matrix."
    )
