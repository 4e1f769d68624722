"""Checks of what a configuration says: choices, variables, atlases and closed-form read-outs."""

from collections.abc import Iterable
from typing import Any

import torch


MOST_LAYERS = 1000
BEI_KINDS = ("categorical", "continuous")
SEPARATOR = "+"  # between the atlases of a read-out that needs several
UNNAMED = "atlas"  # of a model whose one atlas has no name


def is_json(value: Any) -> bool:
    """Whether JSON gives a value back; tuples become lists, as everywhere in Transformers."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and is_json(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_json, value))
    return value is None or isinstance(value, (str, int, float))


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def check_memory(layers: int, dtype: Any) -> None:
    """Raise `ValueError` for more layers than can be built in seconds, and for what is no type of weights."""
    if layers > MOST_LAYERS:
        raise ValueError(f"num_hidden_layers must be at most {MOST_LAYERS}, got {layers}.")
    named = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(named, torch.dtype) and named.is_floating_point):
        raise ValueError(f"dtype must be a floating-point type of torch, such as 'float32', got {dtype!r}.")


def check_names(setting: str, names: Any) -> None:
    """Raise `ValueError` for anything but a list of names, or none."""
    if names is not None and not (isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{setting} must be a list of names, got {names!r}.")


def check_variables(variables: list) -> None:
    keys = {"name", "kind", "labels", "loss_weight"}
    names = []
    for variable in variables:
        if not isinstance(variable, dict) or set(variable) != keys:
            raise ValueError(f"Each of bei_variables needs exactly the keys {sorted(keys)}, got {variable!r}.")
        name, kind, labels = variable["name"], variable["kind"], variable["labels"]
        names.append(name)
        check_choice(f"kind of the BEI variable {name!r}", kind, BEI_KINDS)
        if kind == "continuous" and labels:
            raise ValueError(f"The continuous BEI variable {name!r} must not have labels, got {labels}.")
        if kind == "categorical" and (len(labels) < 2 or len(set(labels)) != len(labels)):
            raise ValueError(f"The categorical variable {name!r} needs two or more different labels, got {labels}.")
        if variable["loss_weight"] < 0:
            raise ValueError(f"loss_weight of {name!r} must not be negative, got {variable['loss_weight']}.")
    if len(set(names)) != len(names):
        raise ValueError(f"bei_variables must have different names, got {names}.")
    if not names:
        raise ValueError("bei_variables is empty: the model needs at least one BEI variable.")


def check_atlases(atlases: dict[str, Any] | None) -> None:
    """Raise `ValueError` unless every atlas has a usable id, a number of regions, and as many names or none."""
    for name, atlas in (atlases or {}).items():
        if not isinstance(name, str) or not name or "." in name or SEPARATOR in name:
            raise ValueError(
                f"An atlas's id is a text without '.' and '{SEPARATOR}', such as 'aal-116', got {name!r}."
            )
        regions = atlas.get("num_regions") if isinstance(atlas, dict) else None
        if not isinstance(regions, int) or regions < 2:
            raise ValueError(f"atlases needs num_regions of {name!r}, a whole number above 1, got {atlas!r:.80}.")
        names = atlas.get("region_names")
        if names is not None and len(names) != regions:
            raise ValueError(f"The atlas {name!r} has {regions} regions, but {len(names)} region_names.")


def check_closed_form(
    closed_form: dict[str, Any] | None, atlases: Iterable[str], variables: Iterable[str | None], edge_readout: bool
) -> None:
    """Raise `ValueError` unless closed-form read-outs belong to atlases and variables that the model has.

    Args:
        closed_form: `LCMConfig.closed_form`.
        atlases: Ids in the model's order.
        variables: Names of the variables, the task's included.
        edge_readout: Whether the model has edge read-outs.
    """
    known, names = list(atlases), list(variables)
    if closed_form and not edge_readout:
        raise ValueError("closed_form describes edge read-outs: it needs edge_readout=True.")
    for key, records in (closed_form or {}).items():
        needed = key.split(SEPARATOR)
        if needed != [atlas for atlas in known if atlas in needed]:
            raise ValueError(
                f"closed_form has a read-out of {key!r}, but the model's atlases are {', '.join(known)}: name some of "
                f"them, in alphabetical order, joined by '{SEPARATOR}'."
            )
        unknown = [name for name in records if name not in names]
        if unknown:
            raise ValueError(f"closed_form has the variables {', '.join(unknown)}, which the model does not have.")


def check_task(config: Any) -> None:
    """Raise `ValueError` if a task that re-uses a pretrained variable has another kind or number of labels."""
    for variable in config.bei_variables:
        if variable["name"] != config.task_variable or config.problem_type is None:
            continue
        expected = max(1, len(variable["labels"]))
        continuous = variable["kind"] == "continuous"
        if config.num_labels != expected or continuous != (config.problem_type == "regression"):
            raise ValueError(
                f"The task re-uses the pretrained variable {config.task_variable!r} ({variable['kind']}, {expected} "
                f"token(s)), but problem_type is {config.problem_type!r} with num_labels={config.num_labels}."
            )


def check_class_weights(config: Any) -> None:
    """Raise `ValueError` unless class weights are one number above 0 for each label of a categorical variable."""
    labels = {variable["name"]: len(variable["labels"]) for variable in config.bei_variables}
    if config.task_variable is not None and config.problem_type == "single_label_classification":
        labels[config.task_variable] = config.num_labels
    for name, weights in (config.class_weights or {}).items():
        if len(weights) != labels.get(name) or not all(weight > 0 for weight in weights):
            raise ValueError(
                f"class_weights of {name!r} are {weights}: needed is one weight above 0 for each of its "
                f"{labels.get(name, 0)} labels. Categorical variables: "
                f"{', '.join(key for key, count in labels.items() if count)}."
            )
