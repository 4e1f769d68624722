"""The stem: every region's FC row becomes its memory vector."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from .configuration_lcm import LCMConfig
from .fast_paths_lcm import is_plain


class LCMStem(nn.Module):
    """Each region's FC row becomes its memory vector: Linear, batch norm over batch x regions, LeakyReLU(0.01)."""

    def __init__(self, config: LCMConfig) -> None:
        super().__init__()
        self.num_regions, self.normalize_rows = config.num_regions, config.normalize_rows
        self.proj = nn.Linear(config.num_regions, config.hidden_size)
        self.norm = nn.BatchNorm1d(config.hidden_size, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)
        self.activation = nn.LeakyReLU(0.01)

    def forward(self, connectivity: Tensor) -> Tensor:
        """Connectivity `(batch, regions, regions)` -> memory `(batch, regions, d)`."""
        # CODEPATH: off in the published checkpoints, on in the nano size.
        if self.normalize_rows:
            connectivity = nn.functional.layer_norm(connectivity, [self.num_regions])
        connectivity = connectivity.to(self.proj.weight.dtype)
        if self._norm_folds(connectivity):
            return self._folded(connectivity)
        rows = self.proj(connectivity)
        return self.activation(self.norm(rows.flatten(0, 1)).view_as(rows))

    def _norm_folds(self, connectivity: Tensor) -> bool:
        """Whether [`_folded`] is exact here: nothing hangs on Linear or norm, and all is done in one precision."""
        if not (is_plain(self.proj) and is_plain(self.norm, kind=nn.BatchNorm1d)):
            return False
        if self.norm.training:
            is_possible = self.norm.momentum is not None and connectivity[..., 0].numel() > 1
        else:
            # Scaled weights round differently; gradients in evaluation mode are for looking at, so they stay plain.
            is_possible = not torch.is_grad_enabled()
        return (
            is_possible
            and connectivity.dtype in (torch.float32, torch.float64)
            and not torch.is_autocast_enabled(connectivity.device.type)
        )

    def _folded(self, connectivity: Tensor) -> Tensor:
        """Linear and batch norm as one product: the norm scales and shifts the Linear's rows.

        In training, mean and variance of the Linear's output follow from mean and covariance of its input, W m + b and
        diag(W C W^T), so that the output before the norm is never made, nor kept for the backward pass.
        """
        proj, norm = self.proj, cast(Any, self.norm)
        if norm.training:
            inputs = connectivity.flatten(0, 1)
            input_mean = inputs.mean(0)
            centred = inputs - input_mean
            mean = proj(input_mean)
            var = ((proj.weight @ (centred.T @ centred / len(inputs))) * proj.weight).sum(1)
            self._update_statistics(mean.detach(), var.detach() * (len(inputs) / (len(inputs) - 1)))
        else:
            mean, var = norm.running_mean, norm.running_var
        scale = norm.weight * (var + norm.eps).rsqrt()
        rows = nn.functional.linear(connectivity, proj.weight * scale[:, None], (proj.bias - mean) * scale + norm.bias)
        return nn.functional.leaky_relu_(rows, self.activation.negative_slope)

    @torch.no_grad()
    def _update_statistics(self, mean: Tensor, var: Tensor) -> None:
        """The norm's own update of its running statistics."""
        norm = cast(Any, self.norm)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(var, norm.momentum)
        norm.num_batches_tracked += 1
