"""A linear read-out of all edges beside the decoder, from the matrix logarithm of FC (beyond the paper)."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .configuration_lcm import LCMConfig
from .logarithm_lcm import eigenvalues, logarithm_by_products


_AT_ONCE = 64


def matrix_logarithm(connectivity: Tensor, shrinkage: float) -> Tensor:
    """log((1 - shrinkage) FC + shrinkage I) of Pearson matrices `(batch, regions, regions)`; same shape.

    Raises:
        ValueError: in an export to ONNX by PyTorch's former exporter.
    """
    identity = torch.eye(connectivity.shape[-1], dtype=connectivity.dtype, device=connectivity.device)
    mixed = (1 - shrinkage) * connectivity + shrinkage * identity
    if torch.onnx.is_in_onnx_export():  # which has no eigenvalues
        if torch.jit.is_tracing():
            raise ValueError(
                "PyTorch's former ONNX exporter cannot take the edge read-out's logarithm: pass dynamo=True to "
                "torch.onnx.export, or use a model with edge_readout=False."
            )
        return logarithm_by_products(mixed, shrinkage / 2)
    if _prefers_products(mixed):
        return logarithm_without_eigenvalues(mixed, shrinkage / 2)
    return logarithm_by_eigenvalues(mixed, shrinkage / 2)


def logarithm_by_eigenvalues(matrices: Tensor, least: float) -> Tensor:
    """Logarithm of symmetric matrices `(batch, regions, regions)`, whose smaller eigenvalues count as `least`."""
    values, vectors = eigenvalues(matrices)
    # A correlation matrix has no eigenvalue below the shrinkage; rounding, noise or filled-in regions may.
    return (vectors * values.clamp_min(least).log()[:, None]) @ vectors.transpose(1, 2)


def logarithm_without_eigenvalues(matrices: Tensor, least: float) -> Tensor:
    """The same from products, but for the matrices that have a smaller eigenvalue: many times as fast on a GPU."""
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    is_indefinite = torch.linalg.cholesky_ex(matrices - least * identity).info != 0
    logarithms = logarithm_by_products(matrices, least)
    if is_indefinite.any():
        logarithms[is_indefinite] = logarithm_by_eigenvalues(matrices[is_indefinite], least)
    return logarithms


def _prefers_products(matrices: Tensor) -> bool:
    """Eigenvalues of many small matrices are what a GPU is slow at; only they have a gradient, or one graph."""
    return matrices.device.type == "cuda" and not (matrices.requires_grad or torch.compiler.is_compiling())


def matrix_logarithms(connectivity: Tensor, shrinkages: Sequence[float]) -> Tensor:
    """The logarithm after each of several shrinkages, `(batch, shrinkages, regions, regions)`."""
    if len(shrinkages) == 1 or torch.onnx.is_in_onnx_export() or _prefers_products(connectivity):
        return torch.stack([matrix_logarithm(connectivity, share) for share in shrinkages], 1)
    values, vectors = eigenvalues(connectivity)  # shrinkage changes the eigenvalues alone
    shares = values.new_tensor(shrinkages)[:, None]
    shrunk = ((1 - shares) * values[:, None] + shares).maximum(shares / 2)
    return (vectors[:, None] * shrunk.log()[:, :, None]) @ vectors.transpose(1, 2)[:, None]


def log_edges(connectivity: NDArray, shrinkages: Sequence[float]) -> NDArray[np.float32]:
    """Edges of log FC, which models take beside connectivity, so that nothing computes it twice.

    Args:
        connectivity (`np.ndarray` of shape `(scans, regions, regions)`): Pearson r; NaN for a scan without this atlas.
        shrinkages (`Sequence[float]`): the model's `config.shrinkages`.

    Returns:
        `(scans, shrinkages, edges)`, float32; NaN where connectivity is.
    """
    rows, columns = np.triu_indices(connectivity.shape[-1], 1)
    found = np.full((len(connectivity), len(shrinkages), len(rows)), np.nan, dtype=np.float32)
    there = np.flatnonzero(~np.isnan(connectivity[:, 0, 0]))
    for part in np.split(there, range(_AT_ONCE, len(there), _AT_ONCE)):
        matrices = torch.from_numpy(np.asarray(connectivity[part], dtype=np.float32))
        found[part] = matrix_logarithms(matrices, shrinkages)[:, :, rows, columns].numpy()
    return found


class LCMEdgeFeatures(nn.Module):
    """Edges of a connectome as a linear model reads them best: matrix logarithm, centred with a running mean.

    The logarithm of a correlation matrix spreads its small eigenvalues, in which subjects differ, as far as its large
    ones, which they share. It needs full rank, which a shrinkage towards the identity gives. Noise on the matrix ends
    up in the small eigenvalues: train without `input_noise`.

    With several shrinkages, the edges after each of them stand side by side.

    The mean over subjects is learnt from the training batches and saved with the weights; all processes of a
    distributed run agree on it. Of several atlases each has its own, and a batch in which few scans have an atlas
    moves its mean less. Gradients with respect to connectivity need matrices whose eigenvalues differ.

    Attributes:
        mean (`Tensor` of shape `(edges,)`): running mean of the logarithms' upper triangles.
        batches (`Tensor`): scalar, how many batches it has seen.

    Source:
        Log-Euclidean metric: Arsigny et al. 2006.
    """

    mean: Tensor
    batches: Tensor
    weight = None  # PEFT asks for one when it takes a copy of a module back

    def __init__(self, config: LCMConfig, num_regions: int | None = None) -> None:
        super().__init__()
        self.num_regions = num_regions or config.num_regions
        self.shrinkages = config.shrinkages
        self.momentum = config.batch_norm_momentum
        self.num_pairs = self.num_regions * (self.num_regions - 1) // 2
        self.register_buffer("mean", torch.zeros(len(self.shrinkages) * self.num_pairs))
        self.register_buffer("batches", torch.tensor(0))

    def forward(self, connectivity: Tensor, scans: int | None = None, log_edges: Tensor | None = None) -> Tensor:
        """Connectivity `(batch, regions, regions)` -> centred `(batch, edges)`, float32 (double stays double).

        Args:
            connectivity (`Tensor` of shape `(batch, regions, regions)`): of the scans that have this atlas.
            scans (`int`, *optional*): how many there are with those that lack it.
            log_edges (`Tensor` of shape `(batch, shrinkages, edges)`, *optional*): of these scans, where it is known.

        Raises:
            ValueError: log FC of another shape.
        """
        with torch.autocast(connectivity.device.type, enabled=False):
            if log_edges is None:
                connectivity = connectivity.to(torch.promote_types(connectivity.dtype, torch.float32))
                rows, columns = torch.triu_indices(self.num_regions, self.num_regions, 1, device=connectivity.device)
                log_edges = matrix_logarithms(connectivity, self.shrinkages)[:, :, rows, columns]
            elif log_edges.shape != (needed := (len(connectivity), len(self.shrinkages), self.num_pairs)):
                raise ValueError(f"log_edges has shape {tuple(log_edges.shape)}, these scans need {needed}.")
            edges = log_edges.flatten(1)  # (batch, shrinkages, edges of one) -> side by side
            if self.training:
                self._observe(edges.detach(), len(edges) if scans is None else scans)
            return edges - self.mean.to(edges.dtype)

    @torch.no_grad()
    def _observe(self, edges: Tensor, scans: int) -> None:
        total = torch.cat([edges.sum(0), edges.new_tensor([len(edges), scans])])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        count, of = total[-2:]
        has_some = count > 0
        self.batches += has_some
        # The plain mean of the first batches, then an exponential one over as many scans as with a single atlas.
        weight = torch.maximum(1 / self.batches.clamp_min(1), self.momentum * (count / of).float()) * has_some
        self.mean.lerp_((total[:-2] / count.clamp_min(1)).to(self.mean.dtype), weight.to(self.mean.dtype))
