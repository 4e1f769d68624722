"""A prepared cohort: scans, phenotypes, folds, and who is one subject."""

from typing import Any


# Loaded when asked for: half of what lies here (folds, identities) needs neither torch nor datasets.
_HOME = {"Cohort": "cohort", "load_cohort": "cohort"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
