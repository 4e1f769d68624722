"""The variables that a stage learns: those of pretraining, and the downstream one with its labels."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import cast

import pandas as pd

from modeling_lcm import (
    BEITokenizer,
    BEIVariable,
)

from ..data.cohort import Cohort
from ..data.labels import infer_variable, label_lines, load_vocabulary, read_positive, with_positive
from ..data.leakage import leaking_columns
from .arguments import FinetuneArguments, PretrainArguments


logger = logging.getLogger(__name__)


def only_labels(table: pd.DataFrame, arguments: FinetuneArguments) -> pd.DataFrame:
    """The table with the task's labels that the settings name; other subjects' count as not recorded.

    So two groups of a cohort of three can be told apart. Says how many are left out.
    """
    if arguments.kind != "categorical" or arguments.labels is None:
        return table
    variable = BEIVariable(arguments.task, "categorical", arguments.labels)
    values = table[arguments.task]
    others = values.notna() & ~values.map(variable.knows, na_action="ignore").fillna(False).astype(bool)
    if others.any():
        counts = ", ".join(f"{label}: {count}" for label, count in values[others].value_counts().items())
        logger.warning(
            "Not among the labels %s of %r, and left out: %s.", ", ".join(arguments.labels), arguments.task, counts
        )
    return table.assign(**{arguments.task: values.mask(others)})


def task_of(tokenizer: BEITokenizer) -> BEIVariable:
    """The downstream variable of a tokenizer that has one."""
    return cast(BEIVariable, tokenizer.task_variable)


def task_variable(
    table: pd.DataFrame, arguments: FinetuneArguments, known: BEIVariable | None, declared: Mapping[str, str]
) -> BEIVariable:
    """The downstream variable, its positive label settled.

    The setting `positive` decides; then the order of `labels`, what the data set declares, and the default order.

    Args:
        table (`pd.DataFrame`): training records.
        arguments (`FinetuneArguments`): settings.
        known (`BEIVariable`, *optional*): the variable, if it was pretrained: its tokens keep their order.
        declared (`Mapping[str, str]`): positive labels of the data set, by variable.

    Raises:
        ValueError: labels, kind or positive label do not fit the data or the checkpoint.
    """
    if known is not None and known.kind != arguments.kind:
        raise ValueError(
            f"The checkpoint was pretrained on {known.name!r} as a {known.kind} variable: set kind to that."
        )
    if known is not None and arguments.labels is not None and set(arguments.labels) != set(known.labels):
        raise ValueError(
            f"The checkpoint was pretrained on {known.name!r} with the labels {', '.join(known.labels)}: give "
            "these, or none."
        )
    variable = known or infer_variable(table, arguments.task, arguments.kind, arguments.labels)
    wanted = arguments.positive
    if wanted is None and len(variable.labels) == 2:
        wanted = declared.get(variable.name) if arguments.labels is None else arguments.labels[-1]
        wanted = wanted if wanted is not None and variable.knows(wanted) else None
    return with_positive(variable, wanted, keep_order=known is not None)


def task_tokenizer(pretrained: BEITokenizer, cohort: Cohort, arguments: FinetuneArguments) -> BEITokenizer:
    """The checkpoint's vocabulary with the downstream variable as its task: its own tokens if it was pretrained.

    Args:
        pretrained (`BEITokenizer`): the checkpoint's.
        cohort (`Cohort`): the training scans.
        arguments (`FinetuneArguments`): settings.
    """
    known = next((variable for variable in pretrained.variables if variable.name == arguments.task), None)
    variable = task_variable(cohort.table, arguments, known, cohort.positive)
    if known is not None:
        return pretrained.for_task(arguments.task, variable.positive)
    tokenizer = pretrained.add_variable(variable, task=True)
    return tokenizer.fit_scaling(cohort.table, [arguments.task]) if variable.kind == "continuous" else tokenizer


def pretraining_variables(
    cohort: Cohort, arguments: PretrainArguments, names: Sequence[str] | None = None
) -> list[BEIVariable]:
    """The variables of a pretraining: those of a saved vocabulary, or of the training records.

    Args:
        cohort (`Cohort`): the training scans.
        arguments (`PretrainArguments`): settings.
        names (`Sequence[str]`, *optional*): only these; default: all.

    Raises:
        ValueError: a variable that the data do not have, or a positive label that no variable has.
    """
    if arguments.vocabulary is not None:
        variables = load_vocabulary(arguments.vocabulary)
        known = {variable.name for variable in variables}
        variables = [variable for variable in variables if names is None or variable.name in names]
    else:
        kinds = [(name, "categorical") for name in arguments.categorical]
        kinds += [(name, "continuous") for name in arguments.continuous]
        known = {name for name, _ in kinds}
        kinds = [(name, kind) for name, kind in kinds if names is None or name in names]
        for name, _ in kinds:
            cohort.require_column(name)
        variables = [infer_variable(cohort.table, name, kind) for name, kind in kinds]
    others = known - {variable.name for variable in variables}
    entries = [entry for entry in arguments.positive if entry.partition("=")[0] not in others]
    given = read_positive(entries, {variable.name: variable.labels for variable in variables if variable.labels})
    settled = []
    for variable in variables:
        label = given.get(variable.name)
        declared = cohort.positive.get(variable.name)
        if label is None and variable.positive is None and len(variable.labels) == 2 and variable.knows(declared):
            label = declared
        settled.append(with_positive(variable, label, keep_order=arguments.vocabulary is not None))
    return settled


def pretraining_tokenizer(cohort: Cohort, arguments: PretrainArguments) -> BEITokenizer:
    """The saved vocabulary, or one built from the training records; continuous variables scaled on these alone.

    Args:
        cohort (`Cohort`): the training scans.
        arguments (`PretrainArguments`): settings.

    Raises:
        ValueError: no variable is named, or none of them is in the data.
    """
    if arguments.vocabulary is not None:
        tokenizer = BEITokenizer(variables=pretraining_variables(cohort, arguments))
        names = [variable.name for variable in tokenizer.variables]
        if not set(names) & set(cohort.phenotypes()):
            raise ValueError(
                f"No variable of the vocabulary {arguments.vocabulary} ({', '.join(names)}) is in the data, which has "
                f"{', '.join(cohort.phenotypes())}."
            )
        return tokenizer
    if not arguments.categorical and not arguments.continuous:
        raise ValueError("There is nothing to learn: name phenotype columns in categorical or continuous.")
    return BEITokenizer(variables=pretraining_variables(cohort, arguments)).fit_scaling(cohort.table)


def warn_of_leakage(records: pd.DataFrame, task: BEIVariable, pretrained: Sequence[str]) -> None:
    """Warn of columns from which the label can be told for certain, such as a site with patients only.

    Args:
        records (`pd.DataFrame`): training records.
        task (`BEIVariable`): the downstream variable.
        pretrained (`Sequence[str]`): variables that the checkpoint knows.
    """
    known = records[records[task.name].notna()]
    is_class = task.kind == "categorical"
    truth = pd.factorize(known[task.name])[0] if is_class else known[task.name].to_numpy(dtype=float)
    for line in leaking_columns(known, task.name, truth, is_class, pretrained):
        logger.warning("Possible leakage. %s", line)


def announce_labels(
    announce: Callable[[str], None] | None, variables: Sequence[BEIVariable], records: pd.DataFrame, setting: str
) -> None:
    """Say, where anybody listens, which labels the variables have, how many scans have each, and which is positive."""
    if announce is None:
        return
    for line in label_lines(variables, records, setting):
        announce(line)


def with_default_labels(tokenizer: BEITokenizer, arguments: FinetuneArguments) -> BEITokenizer:
    """The pretrained vocabulary with the settings' default labels (paper: "rest", "healthy") in place of its own.

    Raises:
        ValueError: a default is not a token of the vocabulary, or defaults are asked for and there are none.
    """
    if arguments.pseudo_labels not in ("defaults", "model"):
        return tokenizer
    chosen = dict(token.partition("=")[::2] for token in arguments.default_labels or [])
    tokens = [token for variable in tokenizer.variables if variable.labels for token in variable.tokens]
    unknown = set(arguments.default_labels or []) - set(tokens)
    if unknown:
        raise ValueError(
            f"default_labels: {', '.join(sorted(unknown))} is no categorical token of {arguments.checkpoint}; it has "
            f"{', '.join(tokens)}."
        )
    variables = [replace(item, default=chosen.get(item.name, item.default)) for item in tokenizer.variables]
    if arguments.pseudo_labels == "defaults" and all(item.default is None for item in variables):
        raise ValueError(
            f'pseudo_labels="defaults", but no variable of {arguments.checkpoint} has a default label: give some in '
            f'default_labels (tokens among {", ".join(tokens)}), or take pseudo_labels="recorded".'
        )
    return BEITokenizer(variables=variables, task=tokenizer.task, task_is_new=tokenizer.task_is_new)
