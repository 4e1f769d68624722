"""Does a converted checkpoint compute what the research code computed?

A recording is a folder with `meta.json` (architecture and losses of the run) and `expected.safetensors` (its input
`fc` and its outputs, in evaluation mode).
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining, LCMForSequenceClassification
from modeling_lcm.loss_lcm import IGNORE_INDEX, TargetLayout, labelled, read_out, supervised_losses

from .arguments import TOLERANCE


STAGES = {"momentum": "momentum", "adaptive": "adaptive_per_sample"}


def measure(checkpoint: str | Path, reference: str | Path, tolerance: float = TOLERANCE) -> dict[str, Any]:
    """Compare a checkpoint with a recording, in float32 on the CPU.

    Args:
        checkpoint (`str` or `Path`): converted folder; pretrained or fine-tuned.
        reference (`str` or `Path`): folder of the recording.
        tolerance (`float`): largest difference that passes, relative to the quantity's largest value.

    Returns:
        `tolerance`, `passed`, and `quantities`: per name the largest absolute difference, the recorded array's largest
        value, and their ratio.

    Raises:
        FileNotFoundError: there is no such checkpoint or recording.
        ValueError: the recording is of another architecture.
    """
    reference = Path(reference)
    if not (Path(checkpoint) / "config.json").is_file():
        raise FileNotFoundError(f"{checkpoint} is not a checkpoint folder: it has no config.json.")
    for name in ("meta.json", "expected.safetensors"):
        if not (reference / name).is_file():
            raise FileNotFoundError(f"{reference} is not a recording: it has no {name}.")
    meta = json.loads((reference / "meta.json").read_text(encoding="utf-8"))
    expected = load_file(reference / "expected.safetensors")
    model = _load(checkpoint)
    _check_same_architecture(model.config, meta)
    quantities = {}
    with torch.no_grad():
        for name, ours, theirs in _pairs(model, meta, expected):
            if ours.shape != theirs.shape:
                raise ValueError(f"{name} has shape {tuple(ours.shape)}, the recording {tuple(theirs.shape)}.")
            difference = (ours.double() - theirs.double()).abs().max().item()
            largest = theirs.double().abs().max().item()
            quantities[name] = {
                "max_difference": difference,
                "largest_value": largest,
                "relative": difference / largest if largest else difference,
            }
    # NaN compares false, so a broken output does not pass.
    passed = all(entry["relative"] <= tolerance for entry in quantities.values())
    return {"tolerance": tolerance, "passed": passed, "quantities": quantities}


def _load(checkpoint: str | Path) -> LCMForMultitaskPretraining | LCMForSequenceClassification:
    architectures = LCMConfig.from_pretrained(checkpoint).architectures or []
    finetuned = LCMForSequenceClassification.__name__ in architectures
    kind = LCMForSequenceClassification if finetuned else LCMForMultitaskPretraining
    # Only eager attention returns its maps.
    return kind.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager").eval()


def _check_same_architecture(config: Any, meta: dict[str, Any]) -> None:
    names = {
        "num_regions": "num_regions",
        "hidden_size": "d_model",
        "num_hidden_layers": "num_layers",
        "num_attention_heads": "num_heads",
        "intermediate_size": "ffn_dim",
    }
    for ours, theirs in names.items():
        if getattr(config, ours) != meta[theirs]:
            raise ValueError(
                f"The recording is of another network: {ours} is {meta[theirs]} there, {getattr(config, ours)} here."
            )


def _pairs(model: Any, meta: dict[str, Any], expected: dict[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Name, our value and the recorded value of every quantity."""
    yield "memory", model.model.stem(expected["fc"]), expected["memory"]
    if isinstance(model, LCMForSequenceClassification):
        yield from _finetuned_pairs(model, meta, expected)
        return
    outputs = model(expected["fc"], output_attentions=True)
    layout = model.target_layout
    # Recorded layer first, ours subject first.
    yield "layer logits", outputs.layer_logits, expected["layer_logits"].transpose(0, 1)
    maps = torch.stack(outputs.cross_attentions, dim=1).mean(2)  # heads averaged: (batch, layers, tokens, regions)
    yield "cross-attention", maps, expected["cross_attention_mean_over_heads"]
    logits = read_out(outputs.layer_logits, layout, "max")
    yield "read-out, categorical", logits[:, :-1], expected["readout_categorical_max"]
    yield "read-out, age", logits[:, -1:], expected["readout_age_mean"]
    labels = _labels(meta, expected)
    for stage, supervision in STAGES.items():
        yield from _losses(outputs.layer_logits, labels, layout, supervision, meta[f"loss_{stage}"], stage)


def _finetuned_pairs(
    model: LCMForSequenceClassification, meta: dict[str, Any], expected: dict[str, Tensor]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    ours = model(expected["fc"]).layer_logits
    groups, new = sum(meta["group_sizes"]), meta["finetune"]["new_tokens"]
    theirs = expected["finetune_layer_logits"].transpose(0, 1)
    # Theirs: groups, new tokens, sex, age. Ours: groups, sex, age, new tokens.
    order = [*range(groups), *range(groups + new, theirs.shape[-1]), *range(groups, groups + new)]
    yield "layer logits, fine-tuned", ours, theirs[..., order]


def _labels(meta: dict[str, Any], expected: dict[str, Tensor]) -> Tensor:
    """Label table `(batch, variables)` of the recorded subjects."""
    columns = [expected["labels"], expected["sex"][:, None], expected["age"]]
    table = torch.cat([column.float() for column in columns], dim=1)
    return table.masked_fill(table == meta["missing_label"], float(IGNORE_INDEX))


def _losses(
    layer_logits: Tensor,
    labels: Tensor,
    layout: TargetLayout,
    supervision: str,
    recorded: dict[str, float],
    stage: str,
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Loss of every group, of sex and of age, and their weighted sum; recorded by the research code's names."""
    losses = supervised_losses(layer_logits, labels, layout, supervision)
    means = losses.sum(0) / labelled(labels).sum(0).clamp_min(1)
    names = [name for name in recorded if name != "total"]
    theirs = torch.tensor([recorded[name] for name in names], dtype=torch.float64)
    # One quantity each: squared years would hide the cross-entropies.
    for name, mine, other in zip(names, means, theirs, strict=True):
        yield f"loss {stage}, {name}", mine[None], other[None]
    total = (means.double() * torch.tensor(layout.weights, dtype=torch.float64)).sum()
    yield f"loss {stage}, total", total[None], torch.tensor([recorded["total"]], dtype=torch.float64)


def table_text(parity: dict[str, Any]) -> str:
    """The result of [`measure`] as a table for the terminal."""
    rows = [("quantity", "largest difference", "largest value", "relative", "")]
    for name, entry in parity["quantities"].items():
        verdict = "ok" if entry["relative"] <= parity["tolerance"] else "DIFFERS"
        numbers = (f"{entry[key]:.2e}" for key in ("max_difference", "largest_value", "relative"))
        rows.append((name, *numbers, verdict))
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
