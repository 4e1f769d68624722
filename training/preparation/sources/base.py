"""What every kind of input offers: a table with one row per scan, and the scan of a row."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd


DEFAULT_ATLAS = "aal-116"


@dataclass(frozen=True)
class Scan:
    """One scan as it was read.

    Args:
        values (`np.ndarray`): ROI time series `(volumes, regions)` or an FC matrix `(regions, regions)`.
        kind (`str`): "time_series" or "connectivity".
        mean_fd (`float`, *optional*): mean framewise displacement in mm.
        volumes (`int`, *optional*): volumes that FC was computed from, where that is known.
        remarks (`tuple[str, ...]`): what was done to the file's content, e.g. "transposed".
        coverage (`np.ndarray` of shape `(regions,)`, *optional*): share of every region's voxels with a signal.
        named (`bool`): whether names or label values told which region is which.
    """

    values: np.ndarray
    kind: str
    mean_fd: float | None = None
    volumes: int | None = None
    remarks: tuple[str, ...] = ()
    coverage: np.ndarray | None = None
    named: bool = False


@dataclass(frozen=True)
class Absent:
    """A scan that the table or folder promises and that is not there.

    Args:
        place (`str`): file, subject and row.
        reason (`str`): why there is nothing to read.
    """

    place: str
    reason: str


@dataclass
class Source(ABC):
    """Scans of one cohort; pickled once for every worker, so it holds paths and not data.

    Args:
        table (`pd.DataFrame`): text only, one row per scan, with the columns of the user's table.
        places (`list[str]`): file, subject and line of every row, for messages.
        absent (`list[Absent]`): scans that were expected and are not there; they have no row.
        settings (`dict[str, str]`): what the data set's record should say about reading, e.g. the confound strategy.
        remarks (`list[str]`): what the user should look at, such as subjects without phenotypes.
    """

    table: pd.DataFrame
    places: list[str]
    absent: list[Absent] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    kind = "time_series"  # what `read` gives: "time_series" or "connectivity"
    in_memory = False  # everything was read already: worker processes would only copy it
    slow = False  # seconds per scan: scans go to the workers one by one

    def __getstate__(self) -> dict[str, Any]:
        """What workers get: they only read, and tables of 100,000 scans take memory."""
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("table", "places", "absent", "remarks")
        }

    @abstractmethod
    def read(self, row: int) -> Scan:
        """The scan of a row.

        Raises:
            ValueError: it cannot be used; the message says why.
            OSError: it cannot be read.
        """

    def files(self, row: int) -> list[Path]:
        """The files that the scan of a row is read from, to notice when they change; none if they are not known."""
        return []

    def region_names(self) -> list[str] | None:
        """Names of the regions, if the source knows them better than the atlas's table."""
        return None

    def atlas_id(self) -> str | None:
        """Id of the atlas, if the source knows it better than the settings."""
        return None

    def num_regions(self) -> int | None:
        """Number of regions, where neither the atlas nor names tell it."""
        return None
