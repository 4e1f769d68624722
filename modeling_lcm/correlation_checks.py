"""Whether matrices are Pearson correlations, by range, symmetry, zeros and eigenvalues; and what else they may be."""

import numpy as np

from .triangles import TRIANGLES, TriangleLayout, could_be_correlations, rebuild


# Matrices read from text or half precision are not exactly symmetric, nor exactly 1 on the diagonal.
_SYMMETRY_TOLERANCE = 1e-4
RANGE_TOLERANCE = 1e-3
# Partial correlations are 2I minus a scaled precision matrix: their eigenvalues are below 2. The largest one of
# Pearson correlations of so many regions is 9 and more in ten data sets, unless the signals are pure noise.
_LARGEST_OF_PARTIAL = 2.001
_FEWEST_FOR_PARTIAL = 30
# One region with a signal among a few others makes a matrix of zeros, too; not so among this many.
_FEWEST_CONNECTED = 10
# Share of exact zeros between regions with signal from which on a matrix was thresholded, unless it was rounded to few
# decimals, the coarsest being one decimal; and how far such values may be from whole steps.
_THRESHOLDED = 0.1
_COARSEST = 0.1
_RANGE_OF_STEPS = 0.05


class NotCorrelationsError(ValueError):
    """A matrix whose values are no Pearson correlations, so that others of the same origin are none either."""


def check_are_correlations(matrices: np.ndarray) -> None:
    """Refuse matrices that cannot be Pearson correlations, by what they may be.

    Partial correlations, covariances, Fisher's z, thresholded matrices and triangles in the wrong order are found
    where their values allow it: by eigenvalues that no correlation matrix has. Of few regions some of them pass.

    Args:
        matrices (`np.ndarray`): float32 `(batch, regions, regions)`, finite, diagonal 1.

    Raises:
        NotCorrelationsError: The message says what they may be and what to do.
    """
    _check_range_and_symmetry(matrices)
    _check_eigenvalues(matrices)


def _check_range_and_symmetry(matrices: np.ndarray) -> None:
    largest = np.abs(matrices).max()
    if largest > 1 + RANGE_TOLERANCE:
        raise NotCorrelationsError(
            f"connectivity holds values up to {largest:.4g}, but a Pearson correlation lies in [-1, 1]. Undo Fisher's "
            "z with numpy.tanh, divide a covariance by its deviations, or pass time_series= to have correlations "
            "computed."
        )
    difference = np.abs(matrices - matrices.swapaxes(1, 2))
    if difference.max() <= _SYMMETRY_TOLERANCE:
        return
    number, row, column = np.unravel_index(difference.argmax(), difference.shape)
    for half, other in ((np.tril, "upper"), (np.triu, "lower")):
        if not half(matrices[number], -1 if half is np.tril else 1).any():
            raise NotCorrelationsError(
                f"Matrix {number} is not symmetric: only its {other} triangle is filled. Pass both triangles: "
                "M + M.T - numpy.eye(len(M))."
            )
    raise NotCorrelationsError(
        f"Matrix {number} is not symmetric: [{row}, {column}] is {matrices[number, row, column]:.4g} and "
        f"[{column}, {row}] is {matrices[number, column, row]:.4g}. Pass an undirected correlation matrix; "
        "for a stored triangle use connectivity_from_triangle."
    )


def check_not_empty(array: np.ndarray) -> None:
    """Refuse matrices that hold nothing but zeros, as a failed or interrupted program leaves them."""
    filled = np.count_nonzero(array, axis=(1, 2))
    empty = filled == 0
    if array.shape[-1] >= _FEWEST_CONNECTED:
        empty |= filled == np.count_nonzero(np.diagonal(array, axis1=1, axis2=2), axis=1)
    if empty.any():
        raise NotCorrelationsError(
            f"Matrix {int(empty.argmax())} holds no correlations: every value off the diagonal is 0. An empty file, "
            "or a scan without signal? Leave it out."
        )


def _check_eigenvalues(matrices: np.ndarray) -> None:
    """Refuse matrices whose values or eigenvalues no correlation matrix has, by what they may be."""
    possible = could_be_correlations(matrices)
    if not possible.all():
        number = int((~possible).argmax())
        raise NotCorrelationsError(f"Matrix {number} holds no Pearson correlations: {_what_it_is(matrices[number])}")
    regions = matrices.shape[-1]
    zeros = _share_of_zeros(matrices) if regions >= _FEWEST_CONNECTED else np.zeros(1)
    for number in map(int, np.flatnonzero(zeros > _THRESHOLDED)):
        if not _is_rounded(matrices[number]):
            raise NotCorrelationsError(f"Matrix {number} was thresholded: {_thresholded(zeros[number])}")
    if regions < _FEWEST_FOR_PARTIAL:
        return
    identity = np.eye(regions, dtype=np.float32)
    for number in map(int, np.flatnonzero(could_be_correlations(_LARGEST_OF_PARTIAL * identity - matrices, least=0))):
        if not _is_noise(matrices[number]):
            raise NotCorrelationsError(f"Matrix {number} holds no Pearson correlations: {_PARTIAL}")


def _share_of_zeros(matrices: np.ndarray) -> np.ndarray:
    """Share of edges that are exactly 0 among regions with any connection, `(batch,)`."""
    zero = matrices == 0
    alive = (~zero).sum(axis=2) > 1  # more than the diagonal
    edges = alive.sum(axis=1) * (alive.sum(axis=1) - 1)
    found = (zero & alive[:, :, None] & alive[:, None, :]).sum(axis=(1, 2))
    return found / np.maximum(edges, 1)


def _is_rounded(matrix: np.ndarray) -> bool:
    """Whether zeros come from few decimals: then all values are multiples of the smallest one."""
    smallest = np.abs(matrix[matrix != 0]).min()
    steps = matrix / smallest
    return bool(smallest <= _COARSEST and np.abs(steps - np.round(steps)).max() <= _RANGE_OF_STEPS)


def _is_noise(matrix: np.ndarray) -> bool:
    """Whether eigenvalues are those of correlations of independent noise (Marchenko-Pastur law), as in simulations.

    With `g` = regions / volumes, their variance is `g`, their skewness the root of `g` and the largest one
    `(1 + sqrt(g))**2`. The tolerances hold for 100 simulations each of 30 to 200 regions.
    """
    eigenvalues, regions = np.linalg.eigvalsh(matrix.astype(np.float64)), len(matrix)
    variance = np.mean((eigenvalues - 1) ** 2)
    if variance == 0:
        return True
    skewness = np.mean((eigenvalues - 1) ** 3) / variance**1.5
    largest = (eigenvalues[-1] - 1) / (2 * np.sqrt(variance) + variance)
    return bool(abs(skewness - np.sqrt(variance)) <= 8 / regions and largest >= 1 - 1.5 / np.sqrt(regions))


_PARTIAL = (
    "its largest eigenvalue is at most 2, as that of partial correlations (a precision matrix). Pass full "
    "correlations, or time_series= to have them computed."
)


def _thresholded(zeros: float) -> str:
    return f"{zeros:.0%} of its edges are exactly 0. Pass all correlations, weak and negative ones too."


def _what_it_is(matrix: np.ndarray) -> str:
    """What a matrix may be that has negative eigenvalues, and what to do."""
    eigenvalues = np.linalg.eigvalsh(matrix.astype(np.float64))
    if eigenvalues[-1] <= _LARGEST_OF_PARTIAL:
        return _PARTIAL
    for triangle, rows_and_columns in zip(TRIANGLES, (np.tril_indices, np.triu_indices), strict=True):
        shift = -1 if rows_and_columns is np.tril_indices else 1
        vector = matrix[*rows_and_columns(len(matrix), shift)]
        if could_be_correlations(rebuild(vector[None], TriangleLayout(len(matrix), triangle, False)))[0]:
            return (
                f"its values make correlations when they are put as the {triangle} triangle, so the other one was "
                "taken when it was rebuilt. See the argument triangle of connectivity_from_triangle."
            )
    if (zeros := _share_of_zeros(matrix[None])[0]) > _THRESHOLDED:
        return f"it was thresholded, {_thresholded(zeros)}"
    others = {
        "Fisher's z: undo it with numpy.tanh and set the diagonal to 1.": np.tanh(matrix),
        "distances, 1 - r: pass r.": 1 - matrix,
    }
    for text, other in others.items():
        np.fill_diagonal(other, 1)
        if could_be_correlations(other[None])[0]:
            return f"an eigenvalue is {eigenvalues[0]:.2g}. They look like {text}"
    return (
        f"an eigenvalue is {eigenvalues[0]:.2g}, where correlations have none below 0. Partial correlations, another "
        "measure, or a triangle in the wrong order? Pass Pearson correlations, or time_series=."
    )
