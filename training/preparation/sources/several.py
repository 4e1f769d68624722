"""One cohort's scans in several atlases: which scan of each atlas's source belongs to which row."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from .base import Scan, Source


@dataclass
class SeveralAtlases(Source):
    """The scans of several sources, of one atlas each, matched by subject and session.

    Args:
        parts (`list[Source]`): the sources.
        rows (`list[list[int | None]]`): per scan its row in every source; `None` where an atlas lacks the scan.
    """

    parts: list[Source] = field(default_factory=list)
    rows: list[list[int | None]] = field(default_factory=list)

    def read(self, row: int) -> Scan:
        """The scan of a row in the first atlas that has it."""
        number, own = self.first(row)
        return self.parts[number].read(own)

    def first(self, row: int) -> tuple[int, int]:
        """Number of the first atlas that has a scan, and its row there."""
        return next((number, own) for number, own in enumerate(self.rows[row]) if own is not None)

    def files(self, row: int) -> list[Path]:
        """See `Source.files`."""
        pairs = zip(self.parts, self.rows[row], strict=True)
        return [path for part, own in pairs if own is not None for path in part.files(own)]


def join_sources(sources: Sequence[Source], atlases: Sequence[str], keys: Sequence[str]) -> SeveralAtlases:
    """Match the scans of sources in different atlases.

    Args:
        sources (`Sequence[Source]`): one per atlas.
        atlases (`Sequence[str]`): their ids.
        keys (`Sequence[str]`): columns of the tables that tell the scans apart.
    """
    place: dict[tuple[str, ...], int] = {}
    rows: list[list[int | None]] = []
    tables, places, origin = [], [], []
    for number, source in enumerate(sources):
        fresh = []
        for own, key in enumerate(source.table[list(keys)].itertuples(index=False, name=None)):
            if key not in place:
                place[key] = len(rows)
                rows.append([None] * len(sources))
                places.append(source.places[own])
                fresh.append(own)
            rows[place[key]][number] = own
        tables.append(source.table.iloc[fresh])
        origin += fresh
    everywhere = set.intersection(*({each.place for each in source.absent} for source in sources))
    remarks = list(dict.fromkeys(remark for source in sources for remark in source.remarks))
    for number, atlas in enumerate(atlases):
        lacking = [places[row] for row, each in enumerate(rows) if each[number] is None]
        if lacking:
            remarks.append(f"{len(lacking)} scans are not there in the atlas {atlas}, {lacking[0]} among them")
    joined = SeveralAtlases(
        table=pd.concat(tables),
        places=places,
        absent=[each for each in sources[0].absent if each.place in everywhere],
        settings={name: value for source in reversed(sources) for name, value in source.settings.items()},
        remarks=remarks,
        parts=list(sources),
        rows=rows,
    )
    joined.kind = sources[0].kind
    joined.in_memory = any(source.in_memory for source in sources)
    joined.slow = any(source.slow for source in sources)
    return joined
