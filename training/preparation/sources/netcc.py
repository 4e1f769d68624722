"""Files of AFNI's 3dNetCorr (.netcc): several matrices of one scan, of which the Pearson correlations are wanted."""

import re

import numpy as np

from .text import FileArray


PEARSON = "CC"
_BLOCK = re.compile(r"#\s*([A-Za-z][\w-]*)\s*")
_NAMES = {"FZ": "Fisher's z", "PC": "partial correlations", "PCB": "partial regression coefficients"}


def is_netcc(text: str) -> bool:
    """Whether a text is such a file, whatever it is called."""
    return re.match(r"\s*#\s*\d+\s*#\s*Number of network ROIs", text) is not None


def read_netcc(text: str, name: str | None = None) -> FileArray:
    """The Pearson correlations of a file, with the labels of its regions where it has them.

    Args:
        text (`str`): the content.
        name (`str`, *optional*): another matrix than "CC".

    Raises:
        ValueError: the matrix is not there, or not as large as the file says.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    size = int(re.findall(r"\d+", lines[0])[0])
    blocks: dict[str, list[list[str]]] = {"": []}
    current = ""
    for line in lines[2:]:
        if match := _BLOCK.fullmatch(line):
            if match[1] != "WITH_ROI_LABELS":
                current = match[1]
                blocks[current] = []
        elif not line.startswith("#"):
            blocks[current].append(line.split())
    labels = [names for names in blocks.pop("") if len(names) == size]
    wanted = name or PEARSON
    if wanted not in blocks:
        found = ", ".join(f"{key} ({_NAMES[key]})" if key in _NAMES else key for key in blocks) or "none"
        raise ValueError(
            f"this file of AFNI's 3dNetCorr holds no matrix {wanted}, but {found}; run it for Pearson's r"
        )
    if wanted in _NAMES:
        raise ValueError(f"{wanted} of AFNI's 3dNetCorr is {_NAMES[wanted]}; leave --array_name out to read {PEARSON}")
    try:
        values = np.array(blocks[wanted], dtype=np.float64)
    except ValueError:
        values = np.empty((0, 0))
    if values.shape != (size, size):
        raise ValueError(
            f"this file of AFNI's 3dNetCorr is incomplete: {wanted} has not {size} rows of {size} numbers"
        )
    # Labels stand above numbers; numbers that only count name nothing.
    names = next((found for found in labels if not all(text.isdigit() for text in found)), None)
    numbers = next((found for found in labels if all(text.isdigit() for text in found)), None)
    if names is None and numbers != [str(number) for number in range(1, size + 1)]:
        names = numbers
    return FileArray(values, names, names)
