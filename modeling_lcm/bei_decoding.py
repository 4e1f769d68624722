"""Logits of several variables as readable records."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .bei_vocabulary import BEIVariable


def decode_records(
    chosen: Sequence[BEIVariable], logits: Any, prevalence: Mapping[str, np.ndarray] | None = None
) -> list[dict[str, Any]]:
    """Records of logits `(batch, tokens)`: see `BEITokenizer.batch_decode`."""
    width = sum(len(variable.tokens) for variable in chosen)
    array = plain_logits(logits)
    if array.ndim != 2 or array.shape[1] != width:
        raise ValueError(
            f"Got logits of shape {array.shape}, but {', '.join(v.name for v in chosen)} take (batch, {width}): "
            f"one column per token. Name the variables that the columns stand for with variables=[...]."
        )
    unread = np.isnan(array)
    if not np.isfinite(array[~unread]).all() or unread.all(axis=1).any():
        raise ValueError("The logits contain NaN or infinite values; check the model's input and weights.")
    records: list[dict[str, Any]] = [{} for _ in array]
    start = 0
    for variable in chosen:
        stop = start + len(variable.tokens)
        rows = np.flatnonzero(~unread[:, start:stop].all(axis=1))
        if unread[rows, start:stop].any():
            raise ValueError(f"Some logits of {variable.name!r} are NaN; check the model's input and weights.")
        shares = (prevalence or {}).get(variable.name)
        entries = variable.decode(array[rows, start:stop], None if shares is None else shares[rows])
        for row, entry in zip(rows.tolist(), entries, strict=True):
            records[row][variable.name] = entry
        start = stop
    return records


def plain_logits(logits: Any) -> np.ndarray:
    """Logits as a float64 array."""
    if isinstance(logits, torch.Tensor):
        return logits.detach().to("cpu", torch.float64).numpy()
    return np.asarray(logits, dtype=np.float64)
