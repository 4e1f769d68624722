"""Names of settings: what looks like one of ours but is none is a slip of the pen, and would be ignored in silence."""

from collections.abc import Iterable
from difflib import get_close_matches


# Similarity (difflib's ratio) from which a name counts as misspelt: `num_region`, `hidden_dropout_prob`, but nothing
# that Transformers, PEFT or Trainer leave on a configuration.
MISSPELT = 0.8


def refuse_misspelt(owner: str, given: Iterable[str], settings: Iterable[str]) -> None:
    """Refuse names that are no settings but look like one.

    Args:
        owner: Class that has the settings, for the error message.
        given: Names to look at.
        settings: Names of the settings.

    Raises:
        ValueError: A name is misspelt, or has some words of a setting's name (`num_layers`); it is given with what was
            probably meant.
    """
    known = list(settings)
    for name in given:
        words = set(name.casefold().split("_"))
        meant = [setting for setting in known if len(words) > 1 and words < set(setting.split("_"))]
        meant += get_close_matches(name.casefold(), known, n=2, cutoff=MISSPELT)
        if meant and name not in known:
            raise ValueError(f"{owner} has no setting {name!r}: did you mean {' or '.join(dict.fromkeys(meant))}?")
