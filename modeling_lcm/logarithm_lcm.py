"""What a matrix logarithm is made of: eigenvalues, or nothing but products where these are slow or not known."""

from concurrent.futures import ThreadPoolExecutor
from math import ceil

import torch
from torch import Tensor


WORK_OF_A_THREAD = 1e7  # cubed sizes of its matrices, some milliseconds: less is not worth starting one
ROOTS = 6  # square roots taken before the series; after them, all eigenvalues lie near 1
TERMS = 12  # of the series
CONVERGED = 1e-10  # what a square root may be off by


def eigenvalues(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of symmetric matrices `(batch, size, size)`, as `torch.linalg.eigh` gives them.

    On a CPU every matrix gets one thread, and as many are done at once as there are threads. Several threads on one
    matrix of an atlas's size meet at barriers thousands of times: they gain nothing, and where they wait passively,
    they take five to ten times as long. Values are the same with any number of threads.
    """
    in_one_graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if in_one_graph or matrices.device.type != "cpu" or (threads := torch.get_num_threads()) == 1:
        return torch.linalg.eigh(matrices)
    torch.set_num_threads(1)
    try:
        count = min(threads, len(matrices), ceil(len(matrices) * matrices.shape[-1] ** 3 / WORK_OF_A_THREAD))
        # Whether gradients are wanted is known to this thread alone.
        if count < 2 or (matrices.requires_grad and torch.is_grad_enabled()):
            return torch.linalg.eigh(matrices)
        with ThreadPoolExecutor(count) as pool:
            parts = matrices.detach().tensor_split(count)
            values, vectors = zip(*pool.map(torch.linalg.eigh, parts), strict=True)
    finally:
        torch.set_num_threads(threads)
    return torch.cat(values), torch.cat(vectors)


def logarithm_by_products(matrices: Tensor, least: float) -> Tensor:
    """Logarithm of symmetric matrices by inverse scaling and squaring.

    Log A = 2^k log A^(1/2^k). The roots come from the coupled Newton-Schulz iteration, Y -> Y T and Z -> T Z with
    T = (3 - Z Y) / 2, which takes Y from A to its root and Z from 1 to the inverse of it. Computed in float64, since
    a small eigenvalue's logarithm would lose its digits otherwise.

    Args:
        matrices (`Tensor` of shape `(batch, size, size)`): symmetric, with no eigenvalue below `least`.
        least (`float`): above 0.

    Returns:
        `Tensor` of the same shape and type; NaN for a matrix with a smaller eigenvalue.

    Source:
        Higham 2008, Functions of Matrices, chapters 6 and 11.
    """
    identity = torch.eye(matrices.shape[-1], dtype=torch.float64, device=matrices.device)
    root = matrices.double()
    norm = root.square().sum((1, 2), keepdim=True).sqrt()  # the largest eigenvalue or more
    root = root / norm
    # The largest eigenvalue of a correlation matrix is at most its size, so is the norm.
    smallest = least / matrices.shape[-1]
    error = torch.zeros_like(norm)
    for _ in range(ROOTS):
        inverse = identity.expand_as(root)
        for _ in range(_steps(smallest)):
            turn = 1.5 * identity - 0.5 * inverse @ root
            root, inverse = root @ turn, turn @ inverse
        error = torch.maximum(error, (inverse @ root - identity).abs().amax((1, 2), keepdim=True))
        smallest **= 0.5
    rest = identity - root
    series = identity / TERMS
    for term in range(TERMS - 1, 0, -1):  # log(1 - R) = -(R + R^2 / 2 + R^3 / 3 + ...)
        series = identity / term + rest @ series
    logarithm = norm.log() * identity - 2**ROOTS * (rest @ series)
    return torch.where(error < CONVERGED, logarithm, torch.nan).to(matrices.dtype)


def _steps(smallest: float) -> int:
    """Steps of the iteration until an eigenvalue `smallest` of a matrix of norm 1 has converged."""
    steps, product = 0, smallest  # of its Y and Z
    while 1 - product > CONVERGED / 100:
        steps, product = steps + 1, product * ((3 - product) / 2) ** 2
    return steps
