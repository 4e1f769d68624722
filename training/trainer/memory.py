"""What fits where: memory of a training or a prediction, and the settings that make it fit.

Weights, gradients and optimiser state are counted; activations are those that the model's own forward pass would keep,
found by running it on tensors without content. `benchmarks.memory` measures some of the same cases.
"""

import os
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining, LCMForSequenceClassification
from modeling_lcm.atlases import get_atlas

from .arguments import FinetuneArguments, PlanArguments
from .distributed import copy_with_tensors
from .lora import with_adapter
from .trainable import LCMHead, lcm_head


MODES = ("pretrain", "finetune", "lora", "predict")
GB = 1e9
# Python, PyTorch and the libraries, without any model: measured on Linux with the CPU build, and on a GPU the usual
# size of a CUDA context, which nobody has measured here.
BASE = {"cpu": 0.65 * GB, "gpu": 0.9 * GB}
# What passes between, and what the allocator keeps, is not counted: measured peaks are up to 1.32 times the sum.
HEADROOM = 1.35
BYTES = {"float32": 4, "bf16": 2}


@dataclass(frozen=True)
class Setup:
    """One way to run a model.

    Args:
        size, mode, batch_size, regions, tokens, lora_rank: see [`PlanArguments`].
        atlases (`tuple[int, ...]`): regions of each of several atlases, which every scan is taken to have.
        optimizer (`str`): "adamw" or "adafactor".
        checkpointing (`bool`): whether activations are recomputed in the backward pass.
        precision (`str`): "float32" or "bf16": of the weights in prediction, of the products (mixed precision) in
            training, whose weights stay float32.
        shards (`int`): GPUs that share weights, gradients and optimiser state (FSDP2); 1: each has all of them.
        device (`str`): "cpu" or "gpu".
        overrides (`tuple`): pairs of other settings of the configuration, for models of no named size.
    """

    size: str
    mode: str
    batch_size: int = 8
    regions: int = 116
    tokens: int = 31
    lora_rank: int = 8
    optimizer: str = "adamw"
    checkpointing: bool = False
    precision: str = "float32"
    shards: int = 1
    device: str = "cpu"
    overrides: tuple[tuple[str, Any], ...] = ()
    atlases: tuple[int, ...] = ()

    @property
    def flags(self) -> str:
        """The settings of the training scripts that this is."""
        if self.mode == "predict":
            return "weights in bf16" if self.precision == "bf16" else "float32"
        chosen = [f"--optimizer {self.optimizer}"] if self.optimizer != "adamw" else []
        chosen += ["--activation_checkpointing true"] if self.checkpointing else []
        chosen += ["--mixed_precision bf16"] if self.precision == "bf16" else []
        chosen += [f"fsdp2.yaml on {self.shards} GPUs"] if self.shards > 1 else []
        return " ".join(chosen) or "defaults"


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak, per device: `weights`, `gradients`, `optimizer`, `activations`, and `base` (libraries)."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    base: float

    @property
    def total(self) -> float:
        """All together."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.base


def footprint(setup: Setup) -> Footprint:
    """Memory of a setup at its peak, per device."""
    # What the forward pass keeps does not depend on these.
    plain = replace(setup, optimizer="adamw", checkpointing=False, shards=1, device="cpu")
    whole = _without_content(replace(plain, precision="float32"), None)
    if setup.atlases:  # which of them a scan has is read from its content; all regions in one atlas keep a bit more
        plain = replace(plain, regions=sum(setup.atlases), atlases=())
    weights = sum(tensor.numel() for tensor in whole.state_dict().values())
    trained = [p.numel() for p in whole.parameters() if p.requires_grad]
    layer = sum(p.numel() for p in _layers(whole)[0].parameters())
    one, two = (_kept_by_forward(plain, layers) for layers in (1, 2))
    if setup.mode == "predict":
        # Nothing is kept for a backward pass: one layer at a time.
        return Footprint(weights * BYTES[setup.precision], 0, 0, one, BASE[setup.device])
    config = lcm_head(whole).config
    depth = config.num_hidden_layers
    per_layer, rest = two - one, 2 * one - two
    state = 4 * setup.batch_size * setup.tokens * config.hidden_size  # what a layer is given
    kept = max(rest, 0) + (depth * state + per_layer if setup.checkpointing else depth * per_layer)
    copies = 2 * (weights if not setup.checkpointing else layer) if setup.precision == "bf16" else 0
    gathered = 4 * (2 * layer + weights - depth * layer) if setup.shards > 1 else 0
    per_weight = 8 if setup.optimizer == "adamw" else 0
    # Adafactor's step on a tensor makes a few others of its size.
    passing = 0 if setup.optimizer == "adamw" else 3 * 4 * max(trained)
    return Footprint(
        weights=4 * weights / setup.shards + gathered,
        gradients=4 * sum(trained) / setup.shards,
        optimizer=per_weight * sum(trained) / setup.shards + passing,
        # The backward pass of a layer makes about as much as its forward pass has kept.
        activations=kept + per_layer + copies,
        base=BASE[setup.device],
    )


@lru_cache(maxsize=32)
def _kept_by_forward(setup: Setup, layers: int) -> int:
    """Bytes that a forward pass through so many layers keeps for the backward pass."""
    sizes: dict[int, tuple[int, Tensor]] = {}
    halved = setup.precision == "bf16" and setup.mode != "predict"
    blank = _without_content(setup, layers)
    width = lcm_head(blank).config.hidden_size
    with FakeTensorMode():
        model = copy_with_tensors(blank, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        own = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            # Copies of weights in another precision are counted with the weights.
            is_weight = halved and tensor.ndim == 2 and tensor.numel() >= width**2
            if storage._cdata not in own and not is_weight:
                sizes[storage._cdata] = (storage.nbytes(), tensor)
            return tensor

        connectivity = torch.empty(setup.batch_size, setup.regions, setup.regions)
        saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with saving, torch.autocast("cpu", torch.bfloat16, enabled=halved):
            model(connectivity=connectivity)
    return sum(size for size, _ in sizes.values())


@lru_cache(maxsize=16)
def _without_content(setup: Setup, layers: int | None) -> LCMHead | PeftModel:
    with torch.device("meta"):
        return _make(setup, layers)


def _make(setup: Setup, layers: int | None) -> LCMHead | PeftModel:
    """The model of a setup, with its adapters; made where the caller says, with no content."""
    labels = [str(number) for number in range(setup.tokens - 1)]
    variables = [
        {"name": "group", "kind": "categorical", "labels": labels, "loss_weight": 1.0},
        {"name": "age", "kind": "continuous", "labels": [], "loss_weight": 1.0},
    ]
    chosen = dict(setup.overrides) | ({} if layers is None else {"num_hidden_layers": layers})
    if setup.atlases:
        chosen["atlases"] = {f"atlas-{index}": {"num_regions": count} for index, count in enumerate(setup.atlases)}
    config = LCMConfig.from_size(setup.size, num_regions=setup.regions, bei_variables=variables, **chosen)
    if setup.mode == "pretrain" or setup.mode == "predict":
        return LCMForMultitaskPretraining(config).train()
    model = LCMForSequenceClassification(config).train()
    if setup.mode == "finetune":
        return model
    return with_adapter(model, FinetuneArguments(lora_rank=setup.lora_rank)).train()


def _layers(model: nn.Module) -> nn.ModuleList:
    return next(module for name, module in model.named_modules() if name.endswith("layers"))


def candidates(arguments: PlanArguments, mode: str, gpus: int) -> list[Setup]:
    """Setups from the fastest to the smallest.

    Args:
        arguments (`PlanArguments`): size, batch, regions, tokens.
        mode (`str`): one of `MODES`.
        gpus (`int`): 0 for the CPU.
    """
    atlases = tuple(get_atlas(name).num_regions for name in arguments.atlases)
    first = Setup(
        arguments.size,
        mode,
        arguments.batch_size,
        atlases[0] if atlases else arguments.regions,
        arguments.tokens,
        arguments.lora_rank,
        atlases=atlases if len(atlases) > 1 else (),
        precision="bf16" if gpus and mode != "predict" else "float32",
        device="gpu" if gpus else "cpu",
    )
    if mode == "predict":
        return [first, replace(first, precision="bf16")]
    found = [first, replace(first, checkpointing=True)]
    if mode != "lora":
        if gpus > 1:
            found += [replace(setup, shards=gpus) for setup in found]
        # Its second moments follow whole rows and columns, which shards do not have.
        found += [replace(setup, optimizer="adafactor") for setup in found if setup.shards == 1]
    return found


def parse_gpus(text: str) -> tuple[int, float]:
    """Number and gigabytes of "1x24GB"; (0, 0) for an empty text.

    Raises:
        ValueError: another form.
    """
    if not text:
        return 0, 0.0
    match = re.fullmatch(r"(\d+)\s*x\s*(\d+(?:\.\d+)?)\s*GB?", text, re.IGNORECASE)
    if not match or int(match[1]) < 1:
        raise ValueError(f'gpus must look like 1x24GB or 8x80GB, got "{text}".')
    return int(match[1]), float(match[2])


def plan(arguments: PlanArguments) -> list[str]:
    """Lines of the answer: every setup with its memory, and what to use."""
    gpus, memory = parse_gpus(arguments.gpus)
    if not gpus:
        memory = arguments.memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GB
    where = f"{gpus} GPU(s) of {memory:g} GB" if gpus else f"CPU with {memory:.1f} GB of memory"
    regions = " + ".join(str(get_atlas(name).num_regions) for name in arguments.atlases) or arguments.regions
    lines = [
        f"{arguments.size}, batch {arguments.batch_size}, {regions} regions, {arguments.tokens} tokens; "
        f"{where}; GB per device",
        f"{'mode':9}{'weights':>8}{'grads':>7}{'optim.':>7}{'activ.':>7}{'total':>7}  fits  settings",
    ]
    for mode in [arguments.mode] if arguments.mode else MODES:
        chosen = None
        for setup in candidates(arguments, mode, gpus):
            found = footprint(setup)
            fits = found.total * HEADROOM <= memory * GB
            chosen = chosen or (setup if fits else None)
            parts = (found.weights, found.gradients, found.optimizer, found.activations, found.total)
            numbers = "".join(f"{part / GB:{8 if not index else 7}.1f}" for index, part in enumerate(parts))
            lines.append(f"{mode:9}{numbers}  {'yes' if fits else 'no ':4}  {setup.flags}")
        use = chosen.flags if chosen else "nothing of these fits; take a smaller batch, a smaller size, or more memory"
        lines.append(f"{mode:9}-> {use}")
    return lines
