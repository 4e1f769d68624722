"""The variables of the tokenizer tests: sex, age and diagnosis."""

from modeling_lcm.bei_vocabulary import BEIVariable


def sex(**changes):
    """A categorical variable with aliases."""
    fields = {"labels": ["M", "F"], "aliases": {"male": "M", "1": "M", "female": "F", "2": "F"}}
    return BEIVariable(**{"name": "sex", "kind": "categorical", **fields, **changes})


def age(**changes):
    """A continuous variable."""
    return BEIVariable(**{"name": "age", "kind": "continuous", "unit": "years", "mean": 40.0, "std": 20.0, **changes})


def diagnosis(**changes):
    """A categorical variable with a default."""
    fields = {"labels": ["CN", "MCI", "AD"], "default": "CN"}
    return BEIVariable(**{"name": "diagnosis", "kind": "categorical", **fields, **changes})
