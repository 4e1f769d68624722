"""Which region is which: names that come with data, in any of the usual spellings, matched to the wanted ones."""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache


Words = tuple[str, ...]

_SIDES = {"l": "left", "lh": "left", "left": "left", "r": "right", "rh": "right", "right": "right"}
# The AAL table writes it so; much software corrects it.
_SPELLINGS = {"cerebellum": "cerebelum"}
# "2001", "#2001", "2001.0", "Mean_2001", "X2001": a value of the atlas's label image.
_LABEL = re.compile(r"(?:x|nzmean|mean|roi|label|region|parcel|node)?[\s_.#-]*0*(\d+)(?:\.0+)?", re.IGNORECASE)
# Names that software makes up for columns without one; and numbers of regions.
_MADE_UP = re.compile(r"(?:x|v|var|col|column|unnamed|feature)?[\s_.:#-]*(\d+)", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:roi|region|node|parcel|label|mean)[\s_.:#-]*(\d+)", re.IGNORECASE)
_NETWORKS = re.compile(r"(?<![0-9])(\d+)networks", re.IGNORECASE)


def find_regions(
    given: Sequence[str], wanted: Sequence[str], labels: Mapping[int, str] | None = None
) -> list[int | None]:
    """Position of each of the data's regions among the wanted ones.

    Names match as they are; or by the atlas's label values; or in another spelling of the whole list: upper and lower
    case, separators, the place of "L" or "Left", a beginning that all names share ("7Networks_"), numbers in front,
    and full names in parentheses.

    Args:
        given (`Sequence[str]`): Names as they come with the data.
        wanted (`Sequence[str]`): Names in the order that is needed.
        labels (`Mapping[int, str]`, *optional*): Value in the atlas's label image to name.

    Returns:
        For every given name its position in `wanted`, `None` for names that are not there. Two given names may have
        one position: check for doubles.
    """
    return list(_find(tuple(map(str, given)), tuple(wanted), tuple((labels or {}).items())))


@lru_cache(maxsize=256)  # the files of a data set have the same header
def _find(given: Words, wanted: Words, labels: tuple[tuple[int, str], ...]) -> tuple[int | None, ...]:
    position = {name: number for number, name in enumerate(wanted)}
    best = tuple(position.get(name.strip()) for name in given)
    if None not in best:
        return best
    if networks(given) and networks(wanted) and networks(given) != networks(wanted):
        return (None,) * len(given)  # "17Networks_LH_Vis_1" would pass for "7Networks_LH_Vis_1"
    value = {label: position[name] for label, name in labels if name in position}
    numbers = [_LABEL.fullmatch(name.strip()) for name in given]
    candidates = [tuple(value.get(int(match[1])) if match else None for match in numbers)]
    for mine in _spellings(given):
        for theirs in _spellings(wanted):
            for key in (lambda words: words, _side_first):
                of_key = {key(words): number for number, words in enumerate(theirs)}
                if len(of_key) == len(wanted):  # a spelling that merges regions tells nothing
                    candidates.append(tuple(of_key.get(key(words)) for words in mine))
    return max([best, *candidates], key=lambda found: len(found) - found.count(None))


def _spellings(names: Words) -> Iterator[list[Words]]:
    """The whole list as words, then without what all names share or that only numbers them."""
    words = [_words(name) for name in names]
    yield words
    longest = min((len(item) for item in words), default=1) - 1
    for shared in range(1, longest + 1):
        if len({item[:shared] for item in words}) > 1:
            break
        yield [item[shared:] for item in words]
    if all(len(item) > 1 and item[0].isdigit() for item in words):
        yield [item[1:] for item in words]
    inside = [re.search(r"\((.+)\)", name) for name in names]
    if all(inside):
        yield [_words(match[1]) for match in inside if match]


def _words(name: str) -> Words:
    text = name.strip().strip("\"'")
    if match := re.fullmatch(r"b['\"](.*)['\"]?", text):  # bytes that were turned into text by str()
        text = match[1]
    return tuple(_SPELLINGS.get(word, word) for word in re.split(r"[\W_]+", text.casefold()) if word)


def _side_first(words: Words) -> Words:
    """ "Left Insula", "Insula_L" and "lh.Insula" are one name."""
    sides = [word for word in words if word in _SIDES]
    if len(sides) != 1:
        return words
    return (_SIDES[sides[0]], *(word for word in words if word not in _SIDES))


def networks(names: Sequence[str]) -> set[str]:
    """Numbers of networks that Schaefer's names state: the 7- and the 17-network version order parcels differently."""
    return {match[1] for name in names if (match := _NETWORKS.search(str(name)))}


def only_numbered(names: Sequence[str], made_up: bool = False) -> bool:
    """Whether names only count their columns, from 0 or 1.

    Args:
        names (`Sequence[str]`): Names of columns.
        made_up (`bool`): Whether only those of software count ("V1", "V2", ...), not numbers of regions ("ROI_001",
            ...).
    """
    found = [
        _MADE_UP.fullmatch(name.strip()) or (None if made_up else _NUMBERED.fullmatch(name.strip())) for name in names
    ]
    numbers = [int(match[1]) for match in found if match]
    return len(numbers) == len(names) and numbers in (
        list(range(len(names))),
        list(range(1, len(names) + 1)),
    )


def doubled(names: Sequence[str]) -> list[str]:
    """Names that occur more than once."""
    return sorted({name for name in names if names.count(name) > 1})


def first_difference(given: Sequence[str], wanted: Sequence[str]) -> str:
    """Where two lists of names first differ, for messages: "region 2 is 'A' in the data and 'B' in the atlas"."""
    for number, (mine, theirs) in enumerate(zip(given, wanted, strict=False), start=1):
        if mine != theirs:
            return f"region {number} is {mine!r} in the data and {theirs!r} here"
    longer, which = (given, "only in the data") if len(given) > len(wanted) else (wanted, "not in the data")
    return f"region {min(len(given), len(wanted)) + 1}, {longer[min(len(given), len(wanted))]!r}, is {which}"
