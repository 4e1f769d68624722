"""Bringing what a file holds into the data set's order of regions, by the names that the file gives."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modeling_lcm.atlases import ATLASES, find_atlas, region_labels
from modeling_lcm.region_matching import doubled, find_regions, first_difference, networks, only_numbered


_NUISANCE = re.compile(
    r"global[ _]?signal|white[ _]?matter|(?:trans|rot)_[xyz]|framewise[ _]?displacement|(?:std_)?dvars|"
    r"[act]_comp_cor_\d+|cosine\d+",
    re.IGNORECASE,
)
# Fewer of an atlas's regions are another atlas with some of the same names.
_FEWEST_OF_ATLAS = 0.5


@dataclass(frozen=True)
class Regions:
    """What is needed to bring a file's columns into the data set's order.

    Args:
        num_regions (`int`, *optional*): regions of the atlas.
        names (`Sequence[str]`, *optional*): their names in matrix order.
        labels (`Mapping[int, str]`, *optional*): value in the atlas's label image to name.
        atlas (`str`): what the names are of, for messages.
        must_be_named (`bool`): whether files without names are refused, because others of the data set have them.
    """

    num_regions: int | None
    names: Sequence[str] | None = None
    labels: Mapping[int, str] | None = None
    atlas: str = "the atlas"
    must_be_named: bool = False

    @classmethod
    def of_atlas(
        cls,
        atlas: str,
        num_regions: int | None,
        names: Sequence[str] | None,
        labels: Mapping[int, str] | None = None,
    ) -> "Regions":
        """Names as given; label values as given, or from the atlas's table where the package has it."""
        known = find_atlas(atlas)
        if labels is None and known is not None:
            labels = region_labels(known)
        return cls(num_regions, names, labels, atlas if known is None else known.id)

    def orient(self, values: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
        """A time series as `(volumes, regions)`: transposed when only its rows can be the regions."""
        if values.ndim == 2 and self.num_regions == values.shape[0] != values.shape[1]:
            return values.T, ("transposed",)
        return values, ()

    def names_rows(self, rows: Sequence[str] | None, header: Sequence[str] | None) -> bool:
        """Whether the names of a time series' rows, and not those of its columns, are the regions."""
        if rows is None or only_numbered(rows):
            return False
        if self.names is None:
            return (header is None or only_numbered(header)) and not _count_volumes(rows)
        found = find_regions(rows, self.names, self.labels)
        return None not in found and (header is None or None in find_regions(header, self.names, self.labels))

    def arrange(self, values: np.ndarray, header: Sequence[str] | None) -> tuple[np.ndarray, tuple[str, ...]]:
        """Columns of a time series in the data set's order, by label value or name where the header has them.

        Regions that the header lacks become NaN (no signal): what counts is which region a column is, never how many
        columns there are.

        Raises:
            ValueError: a column is twice in the header, the header's regions are of another atlas, or there is no
                header while other files have one.
        """
        position = self._positions(header, values.shape[-1])
        if position is None:
            return values, ()
        width = self.num_regions or len(self.names or [])
        if position == list(range(width)):
            return values, ()
        arranged = np.full((len(values), width), np.nan)
        arranged[:, position] = values
        return arranged, _done(position, width)

    def arrange_matrix(
        self, values: np.ndarray, rows: Sequence[str] | None, columns: Sequence[str] | None
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Rows and columns of an FC matrix in the data set's order; raises as [`arrange`]."""
        if rows is None or columns is None:
            rows = columns = columns if rows is None else rows
        if values.ndim != 2:
            return values, ()
        across = self._positions(columns, values.shape[1])
        down = across if rows == columns else self._positions(rows, values.shape[0])
        if across is None or down is None:
            return values, ()
        width = self.num_regions or len(self.names or [])
        if across == down == list(range(width)):
            return values, ()
        arranged = np.full((width, width), np.nan)
        arranged[np.ix_(down, across)] = values
        return arranged, _done(across, width)

    def _positions(self, given: Sequence[str] | None, count: int) -> list[int] | None:
        """Where every column belongs; `None` if nothing names them, so that their order is taken as it is."""
        found = [] if given is None or self.names is None else find_regions(given, self.names, self.labels)
        # Numbers in order ("V1", "V2", ...) name nothing, unless the atlas's regions are called so.
        if given is None or self._says_nothing(given, found):
            if self.must_be_named:
                raise ValueError(
                    "the file does not name its regions, but others of the data set do: whether they have one order "
                    "cannot be checked. Give it a header, or leave it out."
                )
            return None
        if len(given) != count:
            raise ValueError(f"it names {len(given)} regions for {count} columns.")
        if double := doubled(list(given)):
            raise ValueError(f"the region {double[0]} has two columns.")
        if self.names is None:
            return None
        positions = [place for place in found if place is not None]
        if len(positions) < len(found):
            raise ValueError(self._unknown(given, found))
        if len(set(positions)) < len(positions):
            place = next(place for place in positions if positions.count(place) > 1)
            raise ValueError(f"the region {self.names[place]} has two columns.")
        self._check_whole_atlas(len(positions))
        return positions

    def _says_nothing(self, given: Sequence[str], found: Sequence[int | None]) -> bool:
        if self.names is None:
            return only_numbered(given, made_up=True)
        return None in found and only_numbered(given)

    def are_named(self, given: Sequence[str] | None) -> bool:
        """Whether a file's names tell which region is which."""
        if given is None or self.names is None:
            return False
        return not self._says_nothing(given, find_regions(given, self.names, self.labels))

    def _unknown(self, given: Sequence[str], found: Sequence[int | None]) -> str:
        unknown = [name for name, place in zip(given, found, strict=True) if place is None]
        text = (
            f"{len(unknown)} of its columns are no regions of the atlas: {', '.join(unknown[:2])}"
            f"{', ...' if len(unknown) > 2 else ''} ({self.atlas}: "
            f"{first_difference(list(given), self.names or [])}). "
        )
        mine, theirs = networks(given), networks(self.names or [])
        if mine and theirs and mine != theirs:
            return text + (
                f"The {max(mine)}-network version has another order; extract with the {max(theirs)}-network one."
            )
        return text + (
            "Are these signals of another atlas, or confounds? If only the spelling differs, give --regions TABLE "
            "with these names in a column `name`."
        )

    def _check_whole_atlas(self, found: int) -> None:
        """Refuse another atlas of the same family, whose names may all be among the wanted ones."""
        width = len(self.names or [])
        family = self.atlas.rpartition("-")[0]
        siblings = [a.id for a in ATLASES.values() if family and a.num_regions == found and a.id.startswith(family)]
        if found < width and (found < _FEWEST_OF_ATLAS * width or siblings):
            of = f", as many as {siblings[0]}" if siblings else ""
            raise ValueError(f"it holds {found} of the {width} regions of {self.atlas}{of}: signals of another atlas?")


def _count_volumes(rows: Sequence[str]) -> bool:
    """Whether names of rows count: numbers in one text ("vol1", "vol2", ...), or times of day."""
    texts = {re.sub(r"\d+(?:[:.,]\d+)*", "0", name) for name in rows}
    return len(texts) == 1 and "0" in texts.pop()


def _done(position: list[int], width: int) -> tuple[str, ...]:
    missing = width - len(position)
    done = ("reordered",) if position != sorted(position) else ()
    return (*done, *((f"{missing} regions absent from the file",) if missing else ()))


def check_names(names: Sequence[str]) -> None:
    """Refuse names of a file that would become the data set's, but are nuisance signals.

    Raises:
        ValueError: some are.
    """
    if nuisance := [name for name in names if _NUISANCE.fullmatch(name)]:
        raise ValueError(
            f"{len(nuisance)} of its columns are nuisance signals, not regions: {', '.join(nuisance[:3])}. Leave them "
            "out, or name the regions with --regions TABLE."
        )
