"""Research-code checkpoint to Hub folder."""

import gc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import StateDictSplit, split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from modeling_lcm import (
    BEITokenizer,
    FCFeatureExtractor,
    LCMConfig,
    LCMForMultitaskPretraining,
    LCMForSequenceClassification,
    LCMProcessor,
)
from modeling_lcm.atlases import ATLASES, fingerprint, get_atlas, region_names
from modeling_lcm.loss_lcm import LayerChoice
from training.storage.files import claim, write_folder, write_json
from training.storage.manifest import seal

from .arguments import DEFAULT_HEADS, Options
from .key_mapping import UNUSED, map_tensor
from .official import Architecture, describe, infer_architecture, load_state
from .parity import measure, table_text
from .run_files import OfficialRun
from .vocabulary import NAMED, UNNAMED, build_tokenizer


REPORT = "conversion_report.json"
# Tensors that the research code saves and never uses: kept so that the way back gives the same files.
UNUSED_WEIGHTS = "official_unused.safetensors"

# Atlases that the research code reads, by their number of regions.
OFFICIAL_ATLASES = {
    ATLASES[name].num_regions: name
    for name in ("aal-116", "gordon-333", "schaefer-100", "schaefer-200", "schaefer-400", "dosenbach-160")
}
FC_DEFINITIONS: dict[str, dict[str, Any]] = {
    "pearson-whole-scan": {},
    "pearson-windows-500": {"window": 500},
    "pearson-windows-500-padded": {"window": 500, "padding": "zeros_at_end"},
}
FC_NOTES = {
    "pearson-whole-scan": "FC of whole scans, as the research code's PPMI, ABIDE, Taowu and Neurocon loaders make it. "
    "Its ADNI and HCP loaders cut windows of 500 volumes and padded the last one with zeros.",
    "pearson-windows-500": "FC of windows of 500 volumes, the last one not padded: a sound form of what the research "
    "code's ADNI and HCP loaders do.",
    "pearson-windows-500-padded": "FC of windows of 500 volumes, the last one padded with zeros before the "
    "correlation, as the research code's ADNI and HCP loaders do. Wrong for signals whose mean is not 0.",
}


def convert(run: OfficialRun, output: str | Path, options: Options | None = None) -> dict[str, Any]:
    """Convert one pair of pickles to a folder for `from_pretrained`; the folder appears complete or not at all.

    Args:
        run (`OfficialRun`): the pair.
        output (`str` or `Path`): new folder.
        options (`Options`, *optional*): how.

    Returns:
        The content of `conversion_report.json`.

    Raises:
        FileExistsError: the output holds something.
        ValueError: files, vocabulary or options do not fit each other.
        OSError, SafetensorError: the disk is full, for example; nothing is left behind.
    """
    with claim(output) as target:
        return _convert(run, target, options or Options())


def _convert(run: OfficialRun, output: Path, options: Options) -> dict[str, Any]:
    states = {"stem": load_state(run.stem), "head": load_state(run.head)}
    found = infer_architecture(states["stem"], states["head"])
    if run.layers not in (None, found.num_layers):
        raise ValueError(f"The folder's name says {run.layers} layers, the head has {found.num_layers}.")
    tokenizer, status = build_tokenizer(found, run.datasets, options.vocabulary, options.group_sizes)
    processor = LCMProcessor(_feature_extractor(found, options), tokenizer)
    model = _empty_model(_config(found, tokenizer, options))
    split = _split(model, options.max_shard_size)
    report = _report(run, states, found, model.config, processor, status, options)
    plan = _plan(states)
    del states  # each shard opens the files anew, so that no more of them than a shard is in memory

    def fill(folder: Path) -> None:
        _write_weights(folder, run, model, plan, split)
        described: Any = model.config  # declared as a dict, but its attributes are used
        custom_object_save(model, folder, config=described)
        processor.save_pretrained(folder)
        model.config.save_pretrained(folder)
        if options.reference is not None:
            report["parity"] = _agreement(folder, options)
        write_json(folder / REPORT, report)
        seal(folder)

    write_folder(output, fill)
    return report


def _agreement(folder: Path, options: Options) -> dict[str, Any]:
    parity = measure(folder, str(options.reference))
    # Rounded weights cannot agree to 1e-5; the report then says how far they are.
    if options.dtype == "float32" and not parity["passed"]:
        raise ValueError(
            f"The converted weights do not compute what {options.reference} recorded, so they were not kept. Is it a "
            f"recording of these very weights, and is the number of heads right?\n{table_text(parity)}"
        )
    return parity


def _feature_extractor(found: Architecture, options: Options) -> FCFeatureExtractor:
    atlas = options.atlas or OFFICIAL_ATLASES.get(found.num_regions)
    if atlas is None:
        raise ValueError(
            f"The stem has {found.num_regions} regions, and the research code reads no such atlas (it reads "
            f"{', '.join(OFFICIAL_ATLASES.values())}). Name the atlas with --atlas."
        )
    known = get_atlas(atlas)
    if known.num_regions != found.num_regions:
        raise ValueError(f"{known.id} has {known.num_regions} regions, the stem {found.num_regions}.")
    return FCFeatureExtractor(
        atlas=known.id, region_names=region_names(known), **FC_DEFINITIONS[options.fc_definition]
    )


def _config(found: Architecture, tokenizer: BEITokenizer, options: Options) -> LCMConfig:
    task = tokenizer.task_variable
    config = LCMConfig(
        num_regions=found.num_regions,
        hidden_size=found.hidden_size,
        num_hidden_layers=found.num_layers,
        num_attention_heads=DEFAULT_HEADS if options.heads is None else options.heads,
        intermediate_size=found.intermediate_size,
        bei_variables=tokenizer.model_variables,
        # What the weights were trained with; the automatic read-out is then the research code's, the maximum.
        supervision="adaptive_per_sample",
        dtype=options.dtype,
        **({} if task is None else task.task_settings),
    )
    config.architectures = [(LCMForSequenceClassification if task else LCMForMultitaskPretraining).__name__]
    return config


def _plan(states: dict[str, dict[str, Tensor]]) -> dict[str, tuple[str, str]]:
    """Our name -> part ("stem" or "head") and research name of the tensor that it comes from."""
    return {
        ours: (part, theirs)
        for part, state in states.items()
        for theirs, tensor in state.items()
        for ours in map_tensor(theirs, tensor)
    }


def _empty_model(config: LCMConfig) -> LCMForMultitaskPretraining | LCMForSequenceClassification:
    """The model without memory for its weights, in the type that they are written in."""
    kind = LCMForSequenceClassification if config.task_variable else LCMForMultitaskPretraining
    with torch.device("meta"):
        model: Any = kind(config)
    return model.to(config.dtype)


def _split(model: torch.nn.Module, max_shard_size: str) -> StateDictSplit:
    """Which tensor goes into which file."""
    try:
        split = split_torch_state_dict_into_shards(model.state_dict(), max_shard_size=max_shard_size)
    except ValueError as error:
        raise ValueError(f"max_shard_size is {max_shard_size!r}; write a number and a unit, such as 2GB.") from error
    return split


def _write_weights(
    folder: Path, run: OfficialRun, model: torch.nn.Module, plan: dict[str, tuple[str, str]], split: StateDictSplit
) -> None:
    """Weights and unused tensors; of the source, no more than a file's worth is in memory."""
    # Which layer is best for a variable was never recorded; the read-out in force does not ask.
    fresh = _layer_choices(model)
    wanted = model.state_dict()
    if wanted.keys() != plan.keys() | fresh.keys():
        raise ValueError(
            f"The mapping does not fit the model: {sorted(wanted.keys() ^ (plan.keys() | fresh.keys()))}."
        )
    for file, names in split.filename_to_tensors.items():
        tensors = _read({name: wanted[name].dtype for name in names}, run, plan, fresh)
        save_file(tensors, folder / file, metadata={"format": "pt"})
        del tensors  # before the next file's are read
    if split.is_sharded:
        write_json(
            folder / SAFE_WEIGHTS_INDEX_NAME, {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        )
    head = load_state(run.head)
    save_file({name: head[name].contiguous() for name in UNUSED if name in head}, folder / UNUSED_WEIGHTS)


def _read(
    types: dict[str, torch.dtype], run: OfficialRun, plan: dict[str, tuple[str, str]], fresh: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of one file in these types, from a source that is opened anew."""
    gc.collect()  # torch.load leaves cycles that keep the previous file's pages in memory
    states = {"stem": load_state(run.stem), "head": load_state(run.head)}
    tensors = {}
    for name, dtype in types.items():
        if name in fresh:
            tensors[name] = fresh[name].to(dtype)
        else:
            part, theirs = plan[name]
            tensors[name] = _checked(map_tensor(theirs, states[part][theirs])[name], theirs, dtype)
    return tensors


def _layer_choices(model: torch.nn.Module) -> dict[str, Tensor]:
    fresh: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        if isinstance(module, LayerChoice):
            targets, layers = module.running_loss.shape
            state = LayerChoice(targets, layers, module.momentum).state_dict()
            fresh |= {f"{prefix}.{name}": tensor for name, tensor in state.items()}
    return fresh


def _checked(tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    if not tensor.isfinite().all():
        raise ValueError(f"{name} holds NaN or infinite values: the checkpoint is broken.")
    if name.endswith("running_var") and (tensor < 0).any():
        raise ValueError(f"{name} has negative variances: the checkpoint is broken.")
    converted = tensor.to(dtype).contiguous()
    if not converted.isfinite().all():
        raise ValueError(f"{name} has values too large for {dtype}: use --dtype bfloat16 or float32.")
    return converted


def _report(
    run: OfficialRun,
    states: dict[str, dict[str, Tensor]],
    found: Architecture,
    config: LCMConfig,
    processor: LCMProcessor,
    status: str,
    options: Options,
) -> dict[str, Any]:
    extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    tensors, unused, parameters = [], [], 0
    for part, state in states.items():
        for name, tensor in state.items():
            targets = map_tensor(name, tensor)
            if not targets:
                unused.append(name)
                continue
            shape = list(tensor.shape)
            tensors.append(
                {"part": part, "from": name, "shape": shape, "type": str(tensor.dtype), "to": list(targets)}
            )
            is_buffer = "running" in name or "num_batches" in name
            parameters += 0 if is_buffer else tensor.numel()
    notes = [FC_NOTES[options.fc_definition]]
    if options.heads is None:
        notes.append(f"The number of attention heads is not in the weights; {DEFAULT_HEADS} was assumed.")
    if options.atlas is None:
        notes.append(
            f"The atlas ({extractor.atlas}) was inferred from the number of regions; the order of its regions is to "
            "be confirmed by the weights' owner."
        )
    if status == UNNAMED:
        notes.append("No vocabulary was given: what the labels of the groups mean is not known.")
    elif status != NAMED:
        notes.append(f"The order of labels within the groups is {status}.")
    return {
        "format": "lcm-conversion-report",
        "version": 1,
        "source": describe(run),
        "architecture": {**asdict(found), "num_attention_heads": config.num_attention_heads},
        "parameters": parameters,
        "dtype": options.dtype,
        "vocabulary": {
            "status": status,
            "variables": {variable.name: len(variable.tokens) for variable in tokenizer.variables},
        },
        "fc_definition": options.fc_definition,
        "atlas": extractor.atlas,
        "region_fingerprint": None if extractor.region_names is None else fingerprint(extractor.region_names),
        "tensors": tensors,
        "unused": unused,
        "notes": notes,
        "parity": None,
    }
