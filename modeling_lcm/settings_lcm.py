"""Names of settings: what looks like one of ours but is none is a slip of the pen, and would be ignored in silence."""

from collections.abc import Iterable
from difflib import get_close_matches


# Similarity (difflib's ratio) from which a name counts as misspelt: `num_region`, `layer_norm_epsilon`, but nothing
# that Transformers, PEFT or Trainer leave on a configuration.
MISSPELT = 0.85
# Other models' names go on where ours end: `hidden_dropout_prob`, `attention_drop_rate`.
ENDINGS = ("_prob", "_rate")


def refuse_misspelt(owner: str, given: Iterable[str], settings: Iterable[str]) -> None:
    """Refuse names that are no settings but look like one.

    Args:
        owner: Class that has the settings, for the error message.
        given: Names to look at.
        settings: Names of the settings.

    Raises:
        ValueError: A name is misspelt, or a setting's name without a word in the middle (`num_layers`); it is given
            with what was probably meant.
    """
    known = list(settings)
    for name in given:
        spelt = name.casefold()
        for ending in ENDINGS:
            spelt = spelt.removesuffix(ending)
        meant = [setting for setting in known if _is_shorter(spelt, setting)]
        meant += get_close_matches(spelt, known, n=2, cutoff=MISSPELT)
        if meant and name not in known:
            raise ValueError(f"{owner} has no setting {name!r}: did you mean {' or '.join(dict.fromkeys(meant))}?")


def _is_shorter(name: str, setting: str) -> bool:
    """Whether a name has the first and the last word of a setting and lacks some between."""
    words, whole = name.split("_"), setting.split("_")
    return 1 < len(words) < len(whole) and words == [*whole[: len(words) - 1], whole[-1]]
