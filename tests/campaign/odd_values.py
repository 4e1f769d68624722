"""Content of files changed at random: odd values in odd places, text cut, doubled or strewn with odd characters."""

import copy
import random
from typing import Any


# What JSON and YAML can hold and nobody expects.
ODD = (
    None, True, False, 0, 1, -1, 3, 10**9, 2**63, 10**30, -(10**30), 10**400, 0.0, -0.5, 1e308, 1e-320,
    float("nan"), float("inf"), -float("inf"), "", " ", "no", "007", "1e3", ".inf", "a=b", "--output", "../../x",
    "/etc", "nul\0", "\ud800", "\u202e", "é" * 300, "=1+1", "<b>", "a\nb", "{}", "%s", [], [None], [[]], ["a", "a"],
    [1, "a"], [float("nan")] * 3, {}, {"": {}}, {"a": 1}, {"name": None}, [{}], [{"name": "x", "kind": "categorical"}],
)  # fmt: skip
ODD_NAMES = ("", "a", "name", "labels", "auto_map", "model_type", "__class__", "\ud800", "1", "x" * 300)
ODD_TEXT = ("\0", "\ufeff", "\r", "\n", "\t", ",", ";", "|", '"', "'", "{", "]", ":", "#", "&a", "*a",
            "!!python/name:os", "é", "\u2028", "-", "9" * 5000, "[" * 3000, "NaN", "\x1b[31m")  # fmt: skip


def places(content: Any, path: tuple = ()) -> list[tuple]:
    """Where something stands in nested dictionaries and lists."""
    inside = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [path, *(place for key, value in inside for place in places(value, (*path, key)))]


def changed(content: Any, choose: random.Random) -> Any:
    """A copy with one to three odd values, missing or additional entries.

    Args:
        content: nested dictionaries and lists.
        choose (`random.Random`): chooses.
    """
    content = copy.deepcopy(content)
    for _ in range(choose.randint(1, 3)):
        path = choose.choice(places(content))
        if not path:
            if choose.random() < 0.2:
                return odd(choose)
            continue
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        action = choose.choice(("replace", "replace", "swap", "remove", "add"))
        if action == "replace":
            parent[path[-1]] = odd(choose)
        elif action == "swap":  # another value of the same file: the right kind in the wrong place
            parent[path[-1]] = copy.deepcopy(choose.choice([_at(content, each) for each in places(content) if each]))
        elif action == "remove":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[choose.choice(ODD_NAMES)] = odd(choose)
        else:
            parent.append(odd(choose))
    return content


def odd(choose: random.Random) -> Any:
    """An odd value."""
    return copy.deepcopy(choose.choice(ODD))


def changed_text(text: str, choose: random.Random) -> str:
    """A text with one to three places cut out, doubled, moved or strewn with odd characters."""
    for _ in range(choose.randint(1, 3)):
        start, stop = sorted((choose.randint(0, len(text)), choose.randint(0, len(text))))
        stop = choose.choice((stop, min(stop, start + 1), min(stop, start + 8)))
        action = choose.choice(("cut", "double", "end", "odd", "odd"))
        if action == "cut":
            text = text[:start] + text[stop:]
        elif action == "double":
            text = text[:stop] + text[start:stop] + text[stop:]
        elif action == "end":
            text = text[:start]
        else:
            text = text[:start] + choose.choice(ODD_TEXT) + text[start:]
    return text


def _at(content: Any, path: tuple) -> Any:
    for key in path:
        content = content[key]
    return content
