"""A look at the first scans, so that FC of another kind is refused before all are read, and whole."""

import warnings

import numpy as np

from modeling_lcm import FCFeatureExtractor
from modeling_lcm.correlation_checks import NotCorrelationsError

from .sources.base import Source


LOOKED_AT = 20


def refuse_other_measures(source: Source, extractor: FCFeatureExtractor, rows: list[int]) -> None:
    """Refuse a data set whose FC files are no Pearson correlations.

    Single matrices of Fisher's z or partial correlations may pass for correlations; the files of one data set are of
    one kind, so where half of some are refused, all are.

    Args:
        source (`Source`): the scans.
        extractor (`FCFeatureExtractor`): the FC definition.
        rows (`list[int]`): rows of the source that will be read.

    Raises:
        ValueError: half of the scans that were looked at, or more, hold something else; the message names the first.
    """
    if source.kind != "connectivity" or not rows:
        return
    chosen = [rows[n] for n in np.unique(np.linspace(0, len(rows) - 1, min(LOOKED_AT, len(rows)), dtype=int))]
    refused: dict[int, str] = {}
    for row in chosen:
        try:
            with warnings.catch_warnings():
                # Counted, and said, when all scans are read.
                warnings.filterwarnings("ignore", r"\d+ of \d+ regions are constant", UserWarning)
                extractor(connectivity=source.read(row).values)
        except NotCorrelationsError as error:
            refused[row] = str(error)
        except (ValueError, TypeError, OSError):
            continue  # reported with all others
    if len(refused) * 2 >= len(chosen):
        row, reason = next(iter(refused.items()))
        raise ValueError(f"{source.places[row]}: {reason} ({len(refused)} of {len(chosen)} scans looked at.)")
