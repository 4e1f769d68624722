"""Checkpoints of the research code: reading a pair of files safely, and checking their shapes."""

import hashlib
import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .key_mapping import HEAD, STEM
from .run_files import FILE_NAME, OfficialRun


# Labels of every data set's group, "N/A" included. Taowu's and Neurocon's are contained in PPMI's and share its group.
GROUP_SIZES = {"adni": 3, "hcpa": 5, "hcpya": 8, "abide": 3, "ppmi": 5, "taowu": 3, "neurocon": 3}
CONTAINED = {"taowu": ("neurocon",), "neurocon": ("taowu",)}
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64)
COMMON_TOKENS = 3  # male, female, age: after the groups, in every checkpoint


@dataclass(frozen=True)
class Architecture:
    """What the shapes of a pair of state dicts say.

    Args:
        num_regions (`int`): regions N.
        hidden_size (`int`): width d.
        intermediate_size (`int`): width of the feed-forward block.
        num_layers (`int`): decoder layers L.
        num_tokens (`int`): pretrained tokens: those of the groups, two of sex, one of age.
        num_new_tokens (`int`): tokens added by fine-tuning; 0 for a pretrained head.
    """

    num_regions: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_tokens: int
    num_new_tokens: int


def load_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict without running code from it; its tensors stay on disk until they are used.

    Raises:
        ValueError: a truncated file, or a pickle that is anything but a dictionary of tensors.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not a complete PyTorch file: it is truncated, or something else. Copy it again, or save it "
            "anew with torch.save."
        )
    with zipfile.ZipFile(path) as archive:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
            raise ValueError(f"{path} is a compressed archive, which torch.save never writes: save it anew.")
    try:
        with warnings.catch_warnings():
            # torch asks to file an issue where it then refuses to read a pickle of another protocol.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors ({_wanted_global(error)}). Nothing of it was run; only plain state dicts "
            "are converted."
        ) from error
    except (RuntimeError, EOFError, KeyError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({_first_line(error)}): it is damaged. Copy it again.") from error
    is_named = isinstance(state, dict) and all(isinstance(name, str) for name in state)
    if not is_named or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a state dict (names and tensors) of the research code.")
    _refuse_odd_tensors(path, state)
    return state


def _refuse_odd_tensors(path: Path, state: dict[str, Tensor]) -> None:
    """Refuse tensors that are no plain numbers, or that would take more memory than the file has bytes.

    A view with steps of 0, or many views of the same bytes, grow to any size when they are copied.
    """
    for name, tensor in state.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.dtype not in DTYPES:
            kind = "sparse" if tensor.layout is not torch.strided else str(tensor.dtype)
            raise ValueError(f"{path}: {name[:80]} is {kind}; the research code's tensors are dense floats.")
    needed, there = sum(tensor.numel() * tensor.element_size() for tensor in state.values()), path.stat().st_size
    if needed > there:
        raise ValueError(
            f"{path} has {there:,} bytes, its tensors would take {needed:,}: they share or repeat values, which "
            "those of the research code never do. Nothing was converted."
        )


def _wanted_global(error: Exception) -> str:
    """Which class or function a refused pickle asked for; torch's own text advises to trust the file."""
    named = re.search(r"GLOBAL (\S+)|[Uu]nsupported (?:global|class)[: ]+(\S+)", str(error))
    return f"it asks for {(named[1] or named[2]).rstrip('.')}" if named else "its content is not allowed"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def infer_architecture(stem: dict[str, Tensor], head: dict[str, Tensor]) -> Architecture:
    """Read the architecture off the shapes, and check that every tensor has the shape that follows from it.

    Raises:
        ValueError: a tensor is missing, foreign, or contradicts another; the message names it.
    """
    layers = {int(number[1]) for name in head if (number := re.match(r"decoder\.layers\.(\d{1,18})\.", name))}
    if "lin.0.weight" not in stem or "object_query.weight" not in head or not layers:
        raise ValueError(
            "These files are not a stem and a head of the research code: a stem has lin.0.weight, a head "
            f"object_query.weight and decoder.layers.*; found {sorted(stem)[:3]} and {sorted(head)[:3]}."
        )
    if layers != set(range(len(layers))):
        raise ValueError(
            f"The head has {len(layers)} decoder layers with numbers up to {max(layers)}: some are missing or foreign."
        )
    for state, name in ((stem, "lin.0.weight"), (head, "object_query.weight"), (head, "finetune_query.weight")):
        if name in state and state[name].ndim != 2:
            raise ValueError(f"{name} is not a matrix.")
    linear = head.get("decoder.layers.0.linear1.weight")
    width, regions = stem["lin.0.weight"].shape
    new = head["finetune_query.weight"].shape[0] if "finetune_query.weight" in head else 0
    found = Architecture(
        num_regions=regions,
        hidden_size=width,
        intermediate_size=0 if linear is None else linear.shape[0],
        num_layers=len(layers),
        num_tokens=head["object_query.weight"].shape[0],
        num_new_tokens=new,
    )
    _check_shapes("stem", stem, {name: shape for name, shape in _shapes(found).items() if name in STEM})
    _check_shapes("head", head, {name: shape for name, shape in _shapes(found).items() if name not in STEM})
    for name, tensor in [*stem.items(), *head.items()]:
        # The stem's counter of batches is the only tensor of integers.
        if tensor.is_floating_point() == name.endswith("num_batches_tracked"):
            raise ValueError(f"{name} has the wrong type {tensor.dtype}.")
    return found


def _shapes(found: Architecture) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of both files."""
    d, wide = found.hidden_size, found.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {name: (d,) for name in (*STEM, *HEAD)}
    shapes |= {
        "lin.0.weight": (d, found.num_regions),
        "lin.1.num_batches_tracked": (),
        "object_query.weight": (found.num_tokens, d),
        "finetune_query.weight": (found.num_new_tokens, d),
    }
    for name in ("class_embed", "sex_embed", "age_embed"):
        shapes |= {f"{name}.weight": (1, d), f"{name}.bias": (1,)}
    for index in range(found.num_layers):
        layer = f"decoder.layers.{index}"
        for attention in ("self_attn", "multihead_attn"):
            shapes |= {
                f"{layer}.{attention}.in_proj_weight": (3 * d, d),
                f"{layer}.{attention}.in_proj_bias": (3 * d,),
                f"{layer}.{attention}.out_proj.weight": (d, d),
                f"{layer}.{attention}.out_proj.bias": (d,),
            }
        shapes |= {f"{layer}.norm{i}.{kind}": (d,) for i in (1, 2, 3) for kind in ("weight", "bias")}
        shapes |= {f"{layer}.linear1.weight": (wide, d), f"{layer}.linear1.bias": (wide,)}
        shapes |= {f"{layer}.linear2.weight": (d, wide), f"{layer}.linear2.bias": (d,)}
    if not found.num_new_tokens:
        del shapes["finetune_query.weight"]
    return shapes


def _check_shapes(part: str, state: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    missing, foreign = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or foreign:
        raise ValueError(
            f"The {part} has not the research code's tensors: missing {_some(missing)}, foreign {_some(foreign)}."
        )
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise ValueError(
                f"The {part}'s {name} has shape {tuple(state[name].shape)}; the other tensors say {shape}. The two "
                "files may belong to different runs."
            )


def _some(names: list[str]) -> str:
    shown = ", ".join(name[:60] for name in names[:2])
    return f"{len(names)} ({shown}{', ...' if names[2:] else ''})" if names else "none"


def infer_groups(datasets: tuple[str, ...]) -> dict[str, int] | None:
    """Name and size of every BEI group, in token order, as far as the names of the data sets tell; else None."""
    if not datasets or any(name not in GROUP_SIZES for name in datasets):
        return None
    groups: dict[str, int] = {}
    for position, name in enumerate(datasets):
        others = CONTAINED.get(name, ())
        # PPMI's labels contain the others' wherever it stands; of two equal sets the first makes the group.
        if others and ("ppmi" in datasets or any(other in datasets[:position] for other in others)):
            continue
        groups[name] = GROUP_SIZES[name]
    return groups


def describe(run: OfficialRun) -> dict[str, Any]:
    """The source of a conversion, for its report: file names without their folder, hashes, and the name's parts."""
    files = [
        {"part": part, "file": path.name, "bytes": path.stat().st_size, "sha256": sha256(path)}
        for part, path in (("stem", run.stem), ("head", run.head))
    ]
    name = FILE_NAME.fullmatch(run.stem.name)
    parts = {key: name[key] for key in ("fold", "dataset", "metric", "date")} if name else {}
    return {"run": run.stem.parent.resolve().name, "datasets": list(run.datasets), **parts, "files": files}
