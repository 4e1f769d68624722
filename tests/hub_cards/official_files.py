"""Random weights in the research code's files, of any size."""

from pathlib import Path

import torch


SEVEN_DATASETS = "adni-hcpa-hcpya-abide-ppmi-taowu-neurocon"
GROUP_TOKENS = 3 + 5 + 8 + 3 + 5  # adni, hcpa, hcpya, abide, and ppmi with the last two


def make_official_run(folder: Path, layers: int, width: int, wide: int) -> Path:
    """Write a pair of files for 116 regions and the seven data sets.

    Args:
        folder: where the run's folder goes.
        layers: decoder layers.
        width: hidden size, a multiple of 8.
        wide: width of the feed-forward block.

    Returns:
        The run's folder.
    """
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.02

    run = folder / f"none_decoder{layers}_{SEVEN_DATASETS}_boldwin500_FCFC"
    run.mkdir(parents=True)
    stem = {"lin.0.weight": random(width, 116), "lin.0.bias": random(width), "lin.1.weight": torch.ones(width)}
    stem |= {"lin.1.bias": random(width), "lin.1.running_mean": random(width), "lin.1.running_var": torch.ones(width)}
    stem["lin.1.num_batches_tracked"] = torch.tensor(7)
    torch.save(stem, run / "bb_fold0_hcpaBest-y_2025-01-01-00-00-00.pt")
    head = {"object_query.weight": random(GROUP_TOKENS + 3, width)}
    head |= {"decoder.norm.weight": torch.ones(width), "decoder.norm.bias": random(width)}
    for name in ("class_embed", "sex_embed", "age_embed"):
        head |= {f"{name}.weight": random(1, width), f"{name}.bias": random(1)}
    for index in range(layers):
        layer = f"decoder.layers.{index}"
        for attention in ("self_attn", "multihead_attn"):
            head[f"{layer}.{attention}.in_proj_weight"] = random(3 * width, width)
            head[f"{layer}.{attention}.in_proj_bias"] = random(3 * width)
            head[f"{layer}.{attention}.out_proj.weight"] = random(width, width)
            head[f"{layer}.{attention}.out_proj.bias"] = random(width)
        for norm in ("norm1", "norm2", "norm3"):
            head |= {f"{layer}.{norm}.weight": torch.ones(width), f"{layer}.{norm}.bias": random(width)}
        head |= {f"{layer}.linear1.weight": random(wide, width), f"{layer}.linear1.bias": random(wide)}
        head |= {f"{layer}.linear2.weight": random(width, wide), f"{layer}.linear2.bias": random(width)}
    torch.save(head, run / "head_fold0_hcpaBest-y_2025-01-01-00-00-00.pt")
    return run
