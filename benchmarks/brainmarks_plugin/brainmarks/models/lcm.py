"""LCM, and a second baseline for it, as models of Brainmarks: a namespace plugin, found when it is on the path.

    PYTHONPATH=benchmarks/brainmarks_plugin:. python -m brainmarks.models.test_models lcm_schaefer400 log_connectome

Both get FC of Brainmarks' series, Pearson r. `log_connectome_schaefer400` is what an edge read-out is given, without
anything learnt: the matrix logarithm of slightly shrunk FC. Brainmarks' own `connectome` models are plain FC.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from brainmarks.models.base import Embeddings
from brainmarks.models.registry import register_model
from torch import Tensor, nn

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining, LCMForSequenceClassification, LCMProcessor
from modeling_lcm.connectivity import correlate_scans
from modeling_lcm.edges_lcm import matrix_logarithm


SPACE, REGIONS = "schaefer400", 400
SHRINKAGE = 0.1  # that of the edge read-out
# The 7-network version has the same parcels in another order; Brainmarks reads the 17-network version.
OTHER_ORDER = "schaefer-400"

LCMHead = LCMForMultitaskPretraining | LCMForSequenceClassification


class ConnectivityTransform:
    """FC instead of the time series of a sample.

    Args:
        estimator (`str`): as in `FCFeatureExtractor`.
    """

    def __init__(self, estimator: str = "pearson") -> None:
        self.estimator = estimator

    def __call__(self, sample: dict[str, Tensor]) -> dict[str, Tensor]:
        """`bold` `(frames, regions)` to `connectivity` `(regions, regions)`, float32; mean and scale do not matter."""
        matrices, _ = correlate_scans([sample["bold"].double().numpy()], self.estimator)
        return {"connectivity": torch.from_numpy(matrices[0])}


class LogConnectome(nn.Module):
    """Log FC of every pair of regions as one embedding."""

    __space__ = SPACE

    def forward(self, batch: dict[str, Tensor]) -> Embeddings:
        """FC `(batch, regions, regions)` to `(batch, 1, edges)`; nothing else."""
        logarithm = matrix_logarithm(batch["connectivity"].float(), SHRINKAGE)
        regions = logarithm.shape[-1]
        rows, columns = torch.triu_indices(regions, regions, offset=1, device=logarithm.device)
        return Embeddings(logarithm[:, None, rows, columns], None, None)


class LCMWrapper(nn.Module):
    """A checkpoint's view of a connectome: what it predicts, and the states of its tokens.

    Args:
        head (`LCMForMultitaskPretraining` or `LCMForSequenceClassification`): for 400 regions; frozen here.
    """

    __space__ = SPACE

    def __init__(self, head: LCMHead) -> None:
        super().__init__()
        self.head = head.eval().requires_grad_(False)

    def forward(self, batch: dict[str, Tensor]) -> Embeddings:
        """FC to logits `(batch, 1, tokens)` and token states after the last layer `(batch, tokens, width)`."""
        outputs = self.head(connectivity=batch["connectivity"], output_hidden_states=True)
        states = outputs.hidden_states[-1]
        return Embeddings(outputs.logits[:, None], states, None)


@register_model
def log_connectome_schaefer400(**kwargs: object) -> tuple[ConnectivityTransform, LogConnectome]:
    """The baseline; it has no settings."""
    return ConnectivityTransform(), LogConnectome()


@register_model
def lcm_schaefer400(ckpt_path: str | Path | None = None, **kwargs: object) -> tuple[ConnectivityTransform, LCMWrapper]:
    """LCM with a checkpoint's weights.

    Args:
        ckpt_path (`str` or `Path`, *optional*): folder or Hub repository; without one the weights are random (seed 0),
            which is a baseline, too.
        **kwargs: other models' settings.

    Raises:
        ValueError: the checkpoint has other regions, or the same in another order.
    """
    if ckpt_path is None:
        warnings.warn("lcm_schaefer400 has random weights: give ckpt_path to test a checkpoint.", stacklevel=2)
        variables: list[dict[str, Any]] = [
            {"name": "sex", "kind": "categorical", "labels": ["F", "M"], "loss_weight": 1.0},
            {"name": "age", "kind": "continuous", "labels": [], "loss_weight": 1.0},
        ]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = LCMConfig.from_size("nano", num_regions=REGIONS, bei_variables=variables)
            return ConnectivityTransform(), LCMWrapper(LCMForMultitaskPretraining(config))
    config = LCMConfig.from_pretrained(ckpt_path)
    processor = LCMProcessor.from_pretrained(ckpt_path)
    atlas = processor.feature_extractor.atlas
    if config.num_regions != REGIONS or atlas == OTHER_ORDER:
        raise ValueError(
            f"{ckpt_path} is for {config.num_regions} regions of {atlas}; Brainmarks has Schaefer's 400 in the order "
            "of 17 networks: train a checkpoint on these, with --atlas schaefer-400-17networks or a name of your own."
        )
    kind = LCMForSequenceClassification if config.task_variable else LCMForMultitaskPretraining
    return ConnectivityTransform(processor.feature_extractor.estimator), LCMWrapper(kind.from_pretrained(ckpt_path))
