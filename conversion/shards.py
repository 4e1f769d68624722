"""Writing safetensors files one tensor at a time, so that a model larger than memory can be converted.

The library's own writer takes all tensors of a file at once. The format is simple: the length of a JSON header as 8
bytes, the header (name -> type, shape, first and last byte), and the tensors' bytes one after the other.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor


# Names of the types in a safetensors header.
TYPE_NAMES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
}
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


@dataclass(frozen=True)
class Slot:
    """A tensor that is going to be written.

    Args:
        name (`str`): its key.
        shape (`tuple[int, ...]`): its shape.
        dtype (`torch.dtype`): the type that it is written in.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def parse_size(text: str) -> int:
    """Bytes in a size such as "2GB" (units of 1000).

    Raises:
        ValueError: it is not a number with KB, MB or GB.
    """
    number, unit = text[:-2].strip(), text[-2:].upper()
    if unit not in UNITS or not number.replace(".", "", 1).isdigit() or not float(number):
        raise ValueError(f"{text!r} is not a size: write a number and KB, MB or GB, such as 2GB.")
    return int(float(number) * UNITS[unit])


def plan_shards(slots: Iterable[Slot], limit: int) -> list[list[Slot]]:
    """Divide tensors, in their order, into files of at most `limit` bytes; a larger tensor gets a file of its own."""
    shards: list[list[Slot]] = [[]]
    size = 0
    for slot in slots:
        if shards[-1] and size + slot.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(slot)
        size += slot.nbytes
    return shards


def write_safetensors(path: Path, slots: list[Slot], read: Callable[[str], Tensor]) -> None:
    """Write one file; only one tensor is in memory at a time.

    Args:
        path (`Path`): the new file.
        slots (`list[Slot]`): what it holds.
        read (`Callable`): gives the tensor of a name, in any type.

    Raises:
        ValueError: a tensor has another shape than planned.
        OSError: the disk is full, for example.
    """
    # Larger types first keeps every tensor aligned to its own type.
    slots = sorted(slots, key=lambda slot: -slot.dtype.itemsize)
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    position = 0
    for slot in slots:
        offsets = [position, position + slot.nbytes]
        header[slot.name] = {"dtype": TYPE_NAMES[slot.dtype], "shape": list(slot.shape), "data_offsets": offsets}
        position = offsets[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for slot in slots:
            file.write(_bytes_of(slot, read(slot.name)))
        file.flush()
        os.fsync(file.fileno())


def _bytes_of(slot: Slot, tensor: Tensor) -> memoryview:
    if tuple(tensor.shape) != slot.shape:
        raise ValueError(f"{slot.name} has shape {tuple(tensor.shape)}, {slot.shape} was planned.")
    written = tensor.detach().to("cpu", slot.dtype).contiguous()
    return memoryview(written.reshape(-1).view(torch.uint8).numpy())


def write_shards(
    folder: Path, slots: list[Slot], limit: int, read: Callable[[int], Callable[[str], Tensor]]
) -> list[str]:
    """Write all tensors as `model.safetensors`, or as numbered shards and their index.

    Args:
        folder (`Path`): an existing folder.
        slots (`list[Slot]`): all tensors of the model, in order.
        limit (`int`): most bytes of tensors in a file.
        read (`Callable`): called with each shard's number; gives the function that `write_safetensors` reads with, so
            that the source can be opened anew, and what it had in memory be given back.

    Returns:
        Names of the weight files.
    """
    shards = plan_shards(slots, limit)
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", shards[0], read(0))
        return ["model.safetensors"]
    weight_map = {}
    names = []
    for number, shard in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / name, shard, read(number))
        names.append(name)
        weight_map |= {slot.name: name for slot in shard}
    index = {
        "metadata": {"total_size": sum(slot.nbytes for slot in slots)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return names
