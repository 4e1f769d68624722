"""BEI vocabulary of a converted checkpoint: from a file of its owner's, or with labels that say they are unnamed."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modeling_lcm import BEITokenizer, BEIVariable

from .official import COMMON_TOKENS, Architecture, infer_groups


# The weights' own units: years, not scaled; the research code's weight of the squared error.
AGE: dict[str, Any] = {"name": "age", "kind": "continuous", "unit": "years", "loss_weight": 1e-4}
SEX: dict[str, Any] = {
    "name": "sex",
    "kind": "categorical",
    "labels": ["M", "F"],
    "aliases": {"male": "M", "female": "F"},
    "description": "Sex as the cohorts recorded it.",
}
NAMED, UNNAMED = "named", "unnamed"


def build_tokenizer(
    found: Architecture,
    datasets: tuple[str, ...],
    vocabulary: str | Path | None = None,
    group_sizes: Sequence[int] | None = None,
) -> tuple[BEITokenizer, str]:
    """The tokenizer of a checkpoint.

    Args:
        found (`Architecture`): number of pretrained and of new tokens.
        datasets (`tuple[str, ...]`): data sets that the run's folder names.
        vocabulary (`str` or `Path`, *optional*): file in the format of `bei_vocab.json`: groups in token order, then
            sex, then age, then (for a fine-tuned head) the new variable.
        group_sizes (`Sequence[int]`, *optional*): tokens of every group, where neither names nor vocabulary tell.

    Returns:
        The tokenizer, and the status of its label names: "named", "unnamed", or what the vocabulary file says.

    Raises:
        ValueError: sizes are unknown, or do not fit the checkpoint; the message names the group that differs.
    """
    groups = infer_groups(datasets)
    if group_sizes is not None:
        groups = {f"group_{index}": size for index, size in enumerate(group_sizes)}
    total = found.num_tokens - COMMON_TOKENS
    if groups is not None and sum(groups.values()) != total:
        said = ", ".join(f"{name} {size}" for name, size in groups.items())
        # Names of data sets are a hint; sizes that somebody typed are a statement.
        if group_sizes is not None or vocabulary is None:
            raise ValueError(
                f"The checkpoint has {total} tokens besides sex and age, but its groups ({said}) have "
                f"{sum(groups.values())}. Give --group-sizes, or a vocabulary."
            )
        groups = None
    if vocabulary is not None:
        return _from_file(Path(vocabulary), found, groups)
    if groups is None:
        raise ValueError(
            f"How the {total} tokens besides sex and age form groups cannot be seen in the weights, and the folder's "
            f"name does not tell ({', '.join(datasets) or 'no data sets named'}). Give --vocabulary FILE or "
            "--group-sizes N N ..."
        )
    variables = [_unnamed(f"group_{index}", size) for index, size in enumerate(groups.values())]
    tokenizer = BEITokenizer(variables=[*variables, BEIVariable(**SEX), BEIVariable(**AGE)])
    if found.num_new_tokens == 1:
        tokenizer = tokenizer.add_variable(
            BEIVariable("task", "continuous", description="Unnamed: what was fine-tuned for is not in the weights."),
            task=True,
        )
    elif found.num_new_tokens:
        tokenizer = tokenizer.add_variable(_unnamed("task", found.num_new_tokens), task=True)
    return tokenizer, UNNAMED


def _unnamed(name: str, size: int) -> BEIVariable:
    labels = [f"{name}/label_{index} (unnamed)" for index in range(size)]
    return BEIVariable(name, "categorical", labels, description="Unnamed: the weights do not say what a label means.")


def _from_file(path: Path, found: Architecture, groups: dict[str, int] | None) -> tuple[BEITokenizer, str]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no vocabulary file {path}.")
    tokenizer = BEITokenizer(vocab_file=path)
    variables = tokenizer.variables
    names = [variable.name for variable in variables]
    if "sex" not in names or names.index("sex") + 2 > len(names) or names[names.index("sex") + 1] != "age":
        raise ValueError(f"{path}: after the groups come sex and age, in this order; it has {', '.join(names)}.")
    end = names.index("sex")
    sex, age = variables[end : end + 2]
    if len(sex.labels) != 2 or age.kind != "continuous" or (age.mean, age.std) != (0, 1):
        raise ValueError(
            f"{path}: a checkpoint has two tokens of sex (male, female) and one of age in unscaled years "
            f"(continuous, mean 0, std 1); got {sex.labels} and age {age.kind}, mean {age.mean}, std {age.std}."
        )
    sizes = {variable.name: len(variable.tokens) for variable in variables[:end]}
    _check_groups(path, sizes, groups, found.num_tokens - COMMON_TOKENS)
    new = variables[end + 2 :]
    if len(new) != (found.num_new_tokens > 0) or sum(len(variable.tokens) for variable in new) != found.num_new_tokens:
        listed = ", ".join(f"{variable.name} ({len(variable.tokens)})" for variable in new) or "none"
        raise ValueError(
            f"{path}: the head has {found.num_new_tokens} fine-tuned tokens, so after age there must be "
            f"{'one variable with as many labels' if found.num_new_tokens else 'no variable'}; got {listed}."
        )
    if new:
        tokenizer = BEITokenizer(variables=variables, task=new[0].name, task_is_new=True)
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tokenizer, str(content.get("status", NAMED))


def _check_groups(path: Path, sizes: dict[str, int], groups: dict[str, int] | None, total: int) -> None:
    if groups is not None:
        for index, (mine, theirs) in enumerate(zip(sizes.items(), groups.items(), strict=False)):
            if mine[1] != theirs[1]:
                raise ValueError(
                    f"{path} does not fit the checkpoint: group {index} ({theirs[0]}) has {theirs[1]} tokens there, "
                    f"and {mine[0]!r} has {mine[1]} in the vocabulary."
                )
        if len(sizes) != len(groups):
            longer = list(sizes if len(sizes) > len(groups) else groups)
            raise ValueError(
                f"{path} does not fit the checkpoint: it has {len(sizes)} groups before sex, the checkpoint "
                f"{len(groups)}; group {min(len(sizes), len(groups))} ({longer[min(len(sizes), len(groups))]}) is in "
                "one of them only."
            )
    if sum(sizes.values()) != total:
        listed = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise ValueError(
            f"{path} does not fit the checkpoint, which has {total} tokens besides sex and age: the vocabulary's "
            f"groups have {sum(sizes.values())} ({listed})."
        )
