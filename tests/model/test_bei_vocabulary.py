"""BEI vocabularies: tokens, contradictions, scaling, a table's columns, merging."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from modeling_lcm.bei_vocabulary import BEIVariable
from modeling_lcm.tokenization_bei import BEITokenizer
from tests.model.bei_variables import age, diagnosis, sex


# Vocabulary ------------------------------------------------------------------------------------------------------


def test_tokens_are_numbered_in_vocabulary_order_without_special_tokens(tokenizer):
    tokens = ["sex=M", "sex=F", "age", "diagnosis=CN", "diagnosis=MCI", "diagnosis=AD"]
    assert tokenizer.get_vocab() == {token: number for number, token in enumerate(tokens)}
    assert tokenizer.vocab_size == len(tokenizer) == 6
    assert tokenizer.convert_ids_to_tokens([2, 0]) == ["age", "sex=M"]
    assert tokenizer.convert_tokens_to_ids("diagnosis=AD") == 5
    assert tokenizer.token_slices == {"sex": slice(0, 2), "age": slice(2, 3), "diagnosis": slice(3, 6)}
    assert tokenizer.all_special_tokens == []


def test_tokens_cannot_be_added_outside_variables_nor_text_be_tokenized(tokenizer):
    with pytest.raises(ValueError, match="use add_variable"):
        tokenizer.add_tokens(["sex=X"])
    with pytest.raises(ValueError, match="use add_variable"):
        BEITokenizer(variables=[sex()], pad_token="[PAD]")
    with pytest.raises(TypeError, match="not text"):
        tokenizer.tokenize("sex=F")


def test_vocabulary_is_safe_from_changes_of_its_copies(tokenizer):
    mine = sex()
    other = BEITokenizer(variables=[mine])
    mine.labels.append("X")
    other.variables[0].labels.append("Y")
    other.model_variables[0]["labels"].append("Z")
    assert other.get_vocab() == {"sex=M": 0, "sex=F": 1} and other.variables == [sex()]


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: sex(kind="ordinal"), "kind must be one of categorical, continuous, got 'ordinal'"),
        (lambda: sex(name="a=b"), "name without '='"),
        (lambda: sex(name=" "), "non-empty name"),
        (lambda: sex(labels="MF"), "labels must be a list"),
        (lambda: sex(labels=["M"], aliases={}), "two or more different labels"),
        (lambda: sex(labels=["M", "F", "M "]), "two or more different labels"),
        (lambda: sex(labels=["M", "F", "N/A"]), "reads as a missing value"),
        (lambda: sex(aliases={"n/a": "F"}), "reads as a missing value"),
        (lambda: sex(aliases={"male": "Male"}), "alias 'male' points to 'Male'"),
        (lambda: sex(aliases={"M": "F"}), "alias 'M' stands for two labels, 'M' and 'F'"),
        (lambda: sex(aliases={1: "M", "1": "F"}), "alias '1' stands for two labels, 'M' and 'F'"),
        (lambda: sex(default="X"), "default 'X' is not one of its labels"),
        (lambda: sex(std=2.0), "mean and std are for continuous"),
        (lambda: sex(loss_weight=-1.0), "loss_weight must be at least 0"),
        (lambda: sex(loss_weight=math.nan), "loss_weight must be at least 0"),
        (lambda: age(std=0.0), "std above 0"),
        (lambda: age(mean=math.nan), "finite mean"),
        (lambda: age(labels=["old", "young"]), "no labels, aliases or default"),
        (lambda: age(default="40"), "no labels, aliases or default"),
        (lambda: BEITokenizer(), "either vocab_file"),
        (lambda: BEITokenizer(variables=[{"name": "sex"}]), "needs name and kind"),
        (lambda: BEITokenizer(variables=[{"name": "a", "kind": "continuous", "units": "mm"}]), "may have labels"),
    ],
)
def test_contradictory_vocabularies_are_refused(build, text):
    with pytest.raises(ValueError, match=text):
        build()


def test_variables_from_a_config_file_may_spell_labels_as_numbers():
    settings = {"name": "group", "kind": "categorical", "labels": [0, 1], "default": 0, "aliases": {"case": 1}}
    tokenizer = BEITokenizer(variables=[settings])
    assert tokenizer([{"group": 1}, {"group": "case"}, {"group": "0"}])["labels"][:, 0].tolist() == [1, 1, 0]


def test_scaling_is_fitted_to_recorded_values_and_can_spare_pretrained_variables(tokenizer):
    records = [{"age": 20, "score": "1"}, {"age": "n/a"}, {"age": 40, "score": 5}]
    with_score = tokenizer.add_variable(BEIVariable("score", "continuous"), task=True)
    fitted = with_score.fit_scaling(records)
    np.testing.assert_array_equal(fitted(records)["bei_targets"][:, 1], [-1, -100, 1])
    np.testing.assert_array_equal(fitted(records)["labels"], [-1, -100, 1])
    assert (fitted.task, fitted.task_is_new) == ("score", True)
    spared = with_score.fit_scaling(records, names=["score"])
    assert [(v.mean, v.std) for v in spared.variables if v.kind == "continuous"] == [(40, 20), (3, 2)]
    constant = with_score.fit_scaling([{"score": 7}, {"score": 7}])
    assert [(v.mean, v.std) for v in constant.variables if v.kind == "continuous"] == [(40, 20), (7, 1)]
    with pytest.raises(ValueError, match="'sex' is not a continuous variable; those are age, score"):
        with_score.fit_scaling(records, names=["sex"])


def test_vocabulary_is_inferred_from_a_table():
    table = pd.DataFrame(
        {
            "participant_id": [f"sub-{row}" for row in range(12)],
            "age": np.linspace(20, 75, 12),
            "sex": ["M", "F"] * 6,
            "runs": [10.0, 2.0, np.nan] * 4,
            "scanner": ["Verio"] * 12,
        }
    )
    inferred = BEITokenizer.from_records(table)
    assert inferred.variables == [
        BEIVariable("age", "continuous"),
        BEIVariable("sex", "categorical", ["F", "M"]),
        BEIVariable("runs", "categorical", ["2", "10"]),
    ]
    assert inferred(table)["labels"][:3, 2].tolist() == [1, 0, -100]
    assert [v.name for v in BEITokenizer.from_records(table.to_dict("records"), columns=["sex"]).variables] == ["sex"]
    with pytest.raises(ValueError, match="no column handedness; they have participant_id, age"):
        BEITokenizer.from_records(table, columns=["handedness"])
    with pytest.raises(ValueError, match="'scanner': a categorical variable needs two or more"):
        BEITokenizer.from_records(table, columns=["scanner"])
    with pytest.raises(ValueError, match="Column 'notes' has 60 different texts"):
        BEITokenizer.from_records([{"notes": f"text {row}"} for row in range(60)])


def test_check_config_names_the_first_difference(tokenizer):
    def config(variables):
        return SimpleNamespace(bei_variables=variables)

    pretrained = tokenizer.model_variables
    tokenizer.check_config(config(pretrained))
    tokenizer.add_variable(BEIVariable("group", "categorical", ["a", "b"]), task=True).check_config(config(pretrained))
    swapped = [{**pretrained[0], "labels": ["F", "M"]}, *pretrained[1:]]
    for other, text in (
        (swapped, r"labels of BEI variable 0: \['M', 'F'\] and \['F', 'M'\]"),
        ([pretrained[1], pretrained[0]], "name of BEI variable 0: 'sex' and 'age'"),
        (pretrained[:2], "3 pretrained BEI variables, the model 2; .* 'diagnosis'"),
        ([*pretrained, {**pretrained[0], "name": "site"}], "the model 4; .* 'site'"),
    ):
        with pytest.raises(ValueError, match=text):
            tokenizer.check_config(config(other))


# Merging ---------------------------------------------------------------------------------------------------------


def test_cohorts_merge_by_declared_aliases():
    first = BEITokenizer(variables=[sex(aliases={"m": "M"}), age()])
    second = [sex(labels=["male", "female"], aliases={"man": "male"}), diagnosis()]
    third = [{"name": "sex", "kind": "categorical", "labels": [1, 2]}]
    declared = {"sex": {"male": "M", "female": "F", 1: "M", 2: "F"}}
    merged = BEITokenizer.merge([first, second, third], aliases=declared)
    assert [variable.name for variable in merged.variables] == ["sex", "age", "diagnosis"]
    assert merged.variables[0].labels == ["M", "F"]
    values = ["M", "m", "male", "man", 1, "F", "female", 2.0]
    assert merged([{"sex": value} for value in values])["labels"][:, 0].tolist() == [0] * 5 + [1] * 3
    assert merged.variables[1] == age()


def test_aliases_of_a_label_follow_it_when_a_later_cohort_renames_it():
    long = sex(labels=["male", "female"], aliases={"man": "male"})
    short = sex(aliases={"male": "M", "female": "F"})
    merged = BEITokenizer.merge([[long], [short]]).variables[0]
    assert merged.labels == ["M", "F"]
    assert merged.aliases == {"man": "M", "male": "M", "female": "F"}


def test_label_lists_are_united_in_first_seen_order():
    ppmi = BEIVariable("parkinson", "categorical", ["CN", "SWEDD", "prodromal", "PD"], default="CN")
    taowu = BEIVariable("parkinson", "categorical", ["PD", "CN"])
    other = BEIVariable("parkinson", "categorical", ["CN", "atypical"], default="CN")
    merged = BEITokenizer.merge([[ppmi], [taowu], [other]]).variables[0]
    assert merged.labels == ["CN", "SWEDD", "prodromal", "PD", "atypical"] and merged.default == "CN"


def test_vocabularies_may_declare_one_pair_in_opposite_directions():
    short = sex(aliases={"male": "M", "female": "F"})
    long = sex(labels=["female", "male"], aliases={"M": "male", "F": "female"}, default="female")
    assert BEITokenizer.merge([[short], [long]]).variables == [sex(aliases=short.aliases, default="F")]


@pytest.mark.parametrize(
    ("second", "aliases", "text"),
    [
        (sex(aliases={"1": "F"}), None, "alias '1' means 'M' in one vocabulary and 'F' in another"),
        (sex(labels=["1", "2"], aliases={"M": "2"}), None, "the aliases make one label of 'M' and 'F'"),
        (sex(), {"sex": {"F": "M"}}, "the aliases make one label of 'M' and 'F'"),
        (sex(), {"gender": {"f": "F"}}, "aliases name gender, but the vocabularies only have sex"),
        (sex(default="F"), None, "disagree on its default, 'M' and 'F'"),
        (BEIVariable("sex", "continuous"), None, "disagree on its kind, 'categorical' and 'continuous'"),
    ],
)
def test_contradictory_cohorts_are_refused(second, aliases, text):
    with pytest.raises(ValueError, match=text):
        BEITokenizer.merge([[sex(default="M")], [second]], aliases)


def test_units_must_agree_when_merging():
    assert BEITokenizer.merge([[age(unit=None)], [age()]]).variables == [age()]
    with pytest.raises(ValueError, match="disagree on its unit, 'years' and 'months'"):
        BEITokenizer.merge([[age()], [age(unit="months")]])
