"""A checkpoint as a pair of pickles for the research code."""

import json
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from modeling_lcm import BEITokenizer, LCMConfig
from training.storage.files import claim, file_name, write_folder, write_json
from training.storage.manifest import seal

from .converting import REPORT, UNUSED_WEIGHTS
from .key_mapping import FUSED_ATTENTION, HEAD, LAYER_MODULES, PROJECTIONS, STEM, UNUSED
from .run_files import FILE_NAME


@dataclass(frozen=True)
class TokenOrder:
    """Where the research code's tokens are among ours: groups, then male, female, then age.

    Args:
        rows (`list[int]`): our token of every research token.
        groups (`list[str]`): names of the groups in order.
        notes (`list[str]`): what a user of the research code has to know.
    """

    rows: list[int]
    groups: list[str]
    notes: list[str]


def token_order(tokenizer: BEITokenizer) -> TokenOrder:
    """Bring a vocabulary into the research code's order.

    Raises:
        ValueError: it lacks sex (two labels) or age, or has another continuous variable, which that code cannot hold.
    """
    slices = tokenizer.token_slices
    variables = {v.name: v for v in tokenizer.variables if not (tokenizer.task_is_new and v.name == tokenizer.task)}
    groups = [name for name, variable in variables.items() if variable.kind == "categorical" and name != "sex"]
    others = [name for name, variable in variables.items() if variable.kind == "continuous" and name != "age"]
    sex, age = variables.get("sex"), variables.get("age")
    if sex is None or age is None or len(sex.labels) != 2 or age.kind != "continuous" or others:
        raise ValueError(
            "The research code's network has categorical groups, a variable named sex with two labels, and one named "
            f"age (continuous); this vocabulary has {', '.join(f'{v.name} ({v.kind})' for v in variables.values())}."
        )
    notes = []
    sex_rows = list(range(slices["sex"].start, slices["sex"].stop))
    if sex.labels[0].casefold() in ("f", "female", "woman"):
        sex_rows.reverse()
        notes.append("The tokens of sex were swapped: the research code has male first.")
    if (age.mean, age.std) != (0, 1):
        notes.append(f"Age was trained scaled: years = output * {age.std!r} + {age.mean!r}.")
    notes.append("Groups in order: " + ("; ".join(f"{n}: {', '.join(variables[n].labels)}" for n in groups) or "none"))
    rows = [row for name in groups for row in range(slices[name].start, slices[name].stop)]
    return TokenOrder([*rows, *sex_rows, slices["age"].start], groups, notes)


class _Weights:
    """The tensors of a checkpoint folder, read one by one."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        paths = sorted(folder.glob("model*.safetensors"))
        if not paths:
            raise FileNotFoundError(f"{folder} holds no model.safetensors and no shards of one.")
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in paths]
        self.files = {name: file for file in files for name in file.keys()}  # noqa: SIM118 (not a dictionary)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.files:
            raise ValueError(f"The checkpoint has no tensor {name}: it is damaged, or not an LCM with a read-out.")
        tensor = self.files[name].get_tensor(name)
        # The research code computes in float32; widening is exact.
        return tensor.float() if tensor.is_floating_point() else tensor


def export(checkpoint: str | Path, output: str | Path, dataset: str | None = None, fold: int = 0) -> Path:
    """Write a checkpoint as a pair of pickles in a run's folder of the research code.

    Args:
        checkpoint (`str` or `Path`): folder of `LCMForMultitaskPretraining` or `LCMForSequenceClassification`.
        output (`str` or `Path`): new folder; gets `none_decoder{L}_{data sets}_boldwin500_FCFC/` with both files,
            and `export_report.json`.
        dataset (`str`, *optional*): data set in the files' names; default: the source's, or the first group's name.
        fold (`int`): fold in the files' names, where the checkpoint was not converted from such files.

    Returns:
        The run's folder.

    Raises:
        FileExistsError: the output holds something.
        ValueError: the network or its vocabulary does not exist in the research code.
    """
    with claim(output) as target:
        return _export(Path(checkpoint), target, dataset, fold)


def _export(checkpoint: Path, output: Path, dataset: str | None, fold: int) -> Path:
    if not (checkpoint / "config.json").is_file():
        raise FileNotFoundError(f"{checkpoint} is not a checkpoint folder: it has no config.json.")
    config = LCMConfig.from_pretrained(checkpoint)
    tokenizer = BEITokenizer.from_pretrained(checkpoint)
    tokenizer.check_config(config)
    for name in ("normalize_rows", "edge_readout"):
        if getattr(config, name):
            raise ValueError(f"This network has {name}, which the research code's network does not have.")
    order = token_order(tokenizer)
    run, names = _file_names(checkpoint, config, order, dataset, fold)

    def fill(folder: Path) -> None:
        (folder / run).mkdir()
        with ExitStack() as stack:
            weights = _Weights(checkpoint, stack)
            torch.save(_stem(weights), folder / run / names["bb"])
            torch.save(_head(weights, config, order, checkpoint), folder / run / names["head"])
        write_json(folder / "export_report.json", {"files": names, "notes": order.notes})
        seal(folder)

    write_folder(output, fill)
    return output / run


def _file_names(
    checkpoint: Path, config: LCMConfig, order: TokenOrder, dataset: str | None, fold: int
) -> tuple[str, dict[str, str]]:
    """Name of the run's folder and of both files; those of the source where the checkpoint was converted."""
    report = checkpoint / REPORT
    source: dict[str, Any] = {}
    if report.is_file():
        source = json.loads(report.read_text(encoding="utf-8"))["source"]
    datasets = "-".join(source.get("datasets") or order.groups or ["sexage"])
    run = file_name(f"none_decoder{config.num_hidden_layers}_{datasets}_boldwin500_FCFC")
    parts = {entry["part"]: entry["file"] for entry in source.get("files", [])}
    if dataset is None and "stem" in parts and FILE_NAME.fullmatch(parts["stem"]):
        # A fine-tuned head may be called anything; beside its stem it needs the matching name.
        stem = file_name(parts["stem"])
        return run, {"bb": stem, "head": stem.replace("bb_", "head_", 1)}
    name = dataset or (order.groups or ["sexage"])[0]
    date = datetime.now().strftime("%Y-%m-%d-%H-%M-%S")
    return run, {part: file_name(f"{part}_fold{fold}_{name}Best-y_{date}.pt") for part in ("bb", "head")}


def _stem(weights: _Weights) -> dict[str, Tensor]:
    return {theirs: weights[ours] for theirs, ours in STEM.items()}


def _head(weights: _Weights, config: LCMConfig, order: TokenOrder, checkpoint: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for theirs, ours in HEAD.items():
        if theirs != "finetune_query.weight" or ours in weights.files:
            state[theirs] = weights[ours]
    state["object_query.weight"] = state["object_query.weight"][order.rows]
    for index in range(config.num_hidden_layers):
        layer, ours = f"decoder.layers.{index}", f"model.layers.{index}"
        for name, module in FUSED_ATTENTION.items():
            for kind in ("weight", "bias"):
                parts = [weights[f"{ours}.{module}.{part}.{kind}"] for part in PROJECTIONS]
                state[f"{layer}.{name}.in_proj_{kind}"] = torch.cat(parts)
        for name, module in LAYER_MODULES.items():
            for kind in ("weight", "bias"):
                state[f"{layer}.{name}.{kind}"] = weights[f"{ours}.{module}.{kind}"]
    return state | _unused(checkpoint, config.hidden_size)


def _unused(checkpoint: Path, width: int) -> dict[str, Tensor]:
    """The tensors that no forward pass uses: as they came, or zeros, so that the research code's loader finds them."""
    path = checkpoint / UNUSED_WEIGHTS
    if not path.is_file():
        return {name: torch.zeros((1, width) if name.endswith("weight") else 1) for name in UNUSED}
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
