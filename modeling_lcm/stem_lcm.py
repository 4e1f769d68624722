"""The stem: every region's FC row becomes its memory vector."""

from torch import Tensor, nn

from .configuration_lcm import LCMConfig
from .fast_paths_lcm import fast_stem


class LCMStem(nn.Module):
    """Each region's FC row becomes its memory vector: Linear, batch norm over batch x regions, LeakyReLU(0.01)."""

    def __init__(self, config: LCMConfig, num_regions: int | None = None) -> None:
        super().__init__()
        self.num_regions, self.normalize_rows = num_regions or config.num_regions, config.normalize_rows
        self.proj = nn.Linear(self.num_regions, config.hidden_size)
        self.norm = nn.BatchNorm1d(config.hidden_size, eps=config.batch_norm_eps, momentum=config.batch_norm_momentum)
        self.activation = nn.LeakyReLU(0.01)

    def forward(self, connectivity: Tensor) -> Tensor:
        """Connectivity `(batch, regions, regions)` -> memory `(batch, regions, d)`."""
        # CODEPATH: off in the published checkpoints, on in the nano size.
        if self.normalize_rows:
            connectivity = nn.functional.layer_norm(connectivity, [self.num_regions])
        connectivity = connectivity.to(self.proj.weight.dtype)
        memory = fast_stem(self.proj, self.norm, connectivity, self.activation.negative_slope)
        if memory is not None:
            return memory
        rows = self.proj(connectivity)
        # Batch norm knows one batch axis: (batch x regions, d), and back.
        return self.activation(self.norm(rows.flatten(0, 1)).view_as(rows))


def make_stem(config: LCMConfig) -> nn.Module:
    """The stem, or one for every atlas."""
    if len(config.atlas_regions) == 1:
        return LCMStem(config)
    return nn.ModuleDict({name: LCMStem(config, regions) for name, regions in config.atlas_regions.items()})
