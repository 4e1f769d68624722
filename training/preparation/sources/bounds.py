"""Files that would fill the memory: small on the disk, and huge, or said to be, once they are unpacked.

Correlations and signals hardly compress (below 5 times), images with an empty background by 20 times at most.
"""

import gzip
import struct
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np


HARMLESS = 100_000_000  # bytes that any file may hold when it is unpacked
MOST_GROWTH = 200  # times its size on the disk
MAT_HEADER = 128  # bytes
MAT_COMPRESSED = 15


def check_growth(what: str, unpacked: int, stored: int) -> None:
    """Raise `ValueError` where so few bytes on the disk say that they are so many."""
    if unpacked > max(HARMLESS, MOST_GROWTH * stored):
        raise ValueError(
            f"{what} would take {unpacked / 1e9:.1f} GB of memory, and has {stored:,} bytes on the disk: no scans "
            "compress like this, the file is damaged or made to fill the memory"
        )


def check_npy(path: Path) -> None:
    """Check an array by its header, before it is read.

    Raises:
        ValueError: it is larger than its bytes can be, or damaged.
    """
    with path.open("rb") as file:
        check_growth(path.name, _size_of_array(file), path.stat().st_size)


def check_npz(path: Path) -> None:
    """Check every array of an archive before any is read.

    Raises:
        ValueError: one is larger than its bytes can be.
        zipfile.BadZipFile: it is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            check_growth(entry.filename, entry.file_size, entry.compress_size)
            if entry.filename.endswith(".npy"):
                with archive.open(entry) as file:
                    if (size := _size_of_array(file)) > entry.file_size:
                        check_growth(entry.filename, size, entry.file_size)


def _size_of_array(file: IO[bytes]) -> int:
    """Bytes of the numbers that a `.npy` header announces."""
    version = np.lib.format.read_magic(file)
    read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return prod(shape) * dtype.itemsize


def check_mat(path: Path) -> None:
    """Check the compressed variables of a MATLAB file by the sizes that stand in front of them.

    Raises:
        ValueError: one is larger than its bytes can be.
    """
    stored = path.stat().st_size
    with path.open("rb") as file:
        order = ">" if file.read(MAT_HEADER)[-2:] == b"MI" else "<"
        while len(tag := file.read(8)) == 8:
            kind, length = struct.unpack(f"{order}II", tag)
            if kind != MAT_COMPRESSED:
                return  # what is not compressed is not longer than the file
            start, begin = file.tell(), zlib.decompressobj().decompress(file.read(min(length, 1000)), 8)
            if len(begin) == 8:
                check_growth(path.name, struct.unpack(f"{order}II", begin)[1], stored)
            file.seek(start + length)


def unpack_text(path: Path) -> bytes:
    """Content of a `.gz` file of text.

    Raises:
        ValueError: it is larger than text can be.
        OSError: it is damaged.
    """
    stored = path.stat().st_size
    with gzip.open(path) as file:
        content = file.read(max(HARMLESS, MOST_GROWTH * stored) + 1)
    check_growth(path.name, len(content), stored)
    return content


def check_image(path: Path, image: Any) -> None:
    """Check a NIfTI image by its header, before its voxels are read.

    Args:
        path (`Path`): its file.
        image: as nibabel loaded it.

    Raises:
        ValueError: it is larger than its bytes can be.
    """
    check_growth(path.name, prod(map(int, image.shape)) * image.get_data_dtype().itemsize, path.stat().st_size)
