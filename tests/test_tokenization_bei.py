"""BEI tokenizer: records to labels and back, vocabularies that grow, merge and travel with a checkpoint."""

import doctest
import io
import json
import logging
import math
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.dynamic_module_utils import get_imports

from modeling_lcm import tokenization_bei
from modeling_lcm.tokenization_bei import BEITokenizer, BEIVariable


MISSING = [None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT, "", "  ", "n/a", "N/A", "nan", "NaN"]

PARTICIPANTS = (
    "participant_id\tage\tsex\tdiagnosis\tsite\n"
    "sub-01\t67.5\tF\tAD\t3\n"
    "sub-02\tn/a\tmale\tn/a\t1\n"
    "sub-03\t22.5\tn/a\tCN\tn/a\n"
)


def sex(**changes):
    fields = {"labels": ["M", "F"], "aliases": {"male": "M", "1": "M", "female": "F", "2": "F"}}
    return BEIVariable(**{"name": "sex", "kind": "categorical", **fields, **changes})


def age(**changes):
    return BEIVariable(**{"name": "age", "kind": "continuous", "unit": "years", "mean": 40.0, "std": 20.0, **changes})


def diagnosis(**changes):
    fields = {"labels": ["CN", "MCI", "AD"], "default": "CN"}
    return BEIVariable(**{"name": "diagnosis", "kind": "categorical", **fields, **changes})


@pytest.fixture
def tokenizer():
    return BEITokenizer(variables=[sex(), age(), diagnosis()])


# Property tests --------------------------------------------------------------------------------------------------

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=8)
label_texts = words.filter(lambda text: text.lower() not in ("n/a", "nan"))
names = words.filter(lambda text: "=" not in text)


@st.composite
def variables(draw, name=names):
    name = draw(name)
    if draw(st.booleans()):
        mean, std = draw(st.floats(-100, 100)), draw(st.floats(0.1, 100))
        return BEIVariable(name, "continuous", mean=mean, std=std, unit=draw(st.none() | words))
    labels = draw(st.lists(label_texts, min_size=2, max_size=5, unique=True))
    return BEIVariable(name, "categorical", labels, default=draw(st.none() | st.sampled_from(labels)))


vocabularies = st.lists(variables(), min_size=1, max_size=4, unique_by=lambda variable: variable.name)


@st.composite
def vocabularies_with_records(draw):
    vocabulary = draw(vocabularies)
    values = {}
    for variable in vocabulary:
        known = st.sampled_from(variable.labels) if variable.labels else st.floats(-50, 50)
        values[variable.name] = st.none() | known
    return vocabulary, draw(st.lists(st.fixed_dictionaries(values), min_size=1, max_size=4))


def ideal_logits(tokenizer, labels):
    """Logits of a model that is sure of every recorded label."""
    logits = np.zeros((len(labels), tokenizer.vocab_size))
    for column, (variable, tokens) in enumerate(
        zip(tokenizer.variables, tokenizer.token_slices.values(), strict=True)
    ):
        for row, label in enumerate(labels[:, column]):
            if variable.kind == "continuous":
                logits[row, tokens] = label
            elif label >= 0:
                logits[row, tokens.start + int(label)] = 50.0
    return logits


@settings(deadline=None, max_examples=40)
@given(vocabularies_with_records())
def test_records_survive_encoding_and_decoding(case):
    vocabulary, records = case
    for record in records:
        for variable in vocabulary:
            if variable.kind == "continuous" and record[variable.name] is not None:
                assume(np.float32((record[variable.name] - variable.mean) / variable.std) != -100)
    tokenizer = BEITokenizer(variables=vocabulary)
    labels = tokenizer(records)["labels"]
    assert labels.shape == (len(records), len(vocabulary)) and labels.dtype == np.float32
    for record, row, decoded in zip(
        records, labels, tokenizer.batch_decode(ideal_logits(tokenizer, labels)), strict=True
    ):
        for variable, label in zip(vocabulary, row, strict=True):
            value = record[variable.name]
            if value is None:
                assert label == -100
            elif variable.kind == "categorical":
                assert decoded[variable.name]["label"] == value
            else:
                assert decoded[variable.name]["value"] == pytest.approx(value, rel=1e-4, abs=1e-3)


@settings(deadline=None, max_examples=40)
@given(vocabularies_with_records(), variables(st.just("added")), st.booleans())
def test_adding_a_variable_leaves_earlier_tokens_and_labels_untouched(case, added, task):
    vocabulary, records = case
    assume(all(variable.name != "added" for variable in vocabulary))
    before = BEITokenizer(variables=vocabulary)
    after = before.add_variable(added, task=task)
    old, new = before.get_vocab(), after.get_vocab()
    assert {token: new[token] for token in old} == old
    assert sorted(new.values()) == list(range(len(old) + max(1, len(added.labels))))
    old_labels = before(records)["labels"]
    encoded = after(records)
    if task:
        np.testing.assert_array_equal(encoded["bei_labels"], old_labels)
        assert after.model_variables == before.model_variables
    else:
        np.testing.assert_array_equal(encoded["labels"][:, :-1], old_labels)


@settings(deadline=None, max_examples=40)
@given(vocabularies, st.data())
def test_decoded_probabilities_are_a_softmax_that_sums_to_one(vocabulary, data):
    tokenizer = BEITokenizer(variables=vocabulary)
    logits = data.draw(st.lists(st.floats(-1e4, 1e4), min_size=len(tokenizer), max_size=len(tokenizer)))
    decoded = tokenizer.decode(logits)
    for variable in vocabulary:
        entry = decoded[variable.name]
        if variable.kind == "continuous":
            assert entry["unit"] == variable.unit
            continue
        expected = torch.tensor(logits, dtype=torch.float64)[tokenizer.token_slices[variable.name]].softmax(0)
        assert list(entry["probabilities"]) == variable.labels
        np.testing.assert_allclose(list(entry["probabilities"].values()), expected, atol=1e-12)
        assert sum(entry["probabilities"].values()) == pytest.approx(1.0)
        assert entry["probability"] == max(entry["probabilities"].values()) == entry["probabilities"][entry["label"]]


@settings(deadline=None, max_examples=40)
@given(vocabularies_with_records(), st.data())
def test_saved_vocabulary_loads_unchanged(tmp_path_factory, case, data):
    vocabulary, records = case
    task = data.draw(st.none() | st.sampled_from([variable.name for variable in vocabulary]))
    tokenizer = BEITokenizer(variables=vocabulary, task=task, task_is_new=task == vocabulary[-1].name)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    loaded = BEITokenizer.from_pretrained(folder)
    assert loaded.variables == tokenizer.variables == vocabulary
    assert (loaded.task, loaded.task_is_new) == (task, tokenizer.task_is_new)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    for name, array in tokenizer(records).items():
        np.testing.assert_array_equal(loaded(records)[name], array)


# Encoding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", MISSING, ids=repr)
def test_missing_values_are_marked_or_take_the_default_on_request(tokenizer, value):
    record = {"sex": value, "age": value, "diagnosis": value}
    np.testing.assert_array_equal(tokenizer(record)["labels"], [[-100, -100, -100]])
    np.testing.assert_array_equal(tokenizer(record, pseudo_labels=True)["labels"], [[-100, -100, 0]])
    np.testing.assert_array_equal(tokenizer({}, pseudo_labels=True)["labels"], [[-100, -100, 0]])


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *((text, 1) for text in ("F", " F ", "f", "Female", "2.0", np.str_("F"), np.array("female"))),
        *((number, 1) for number in (2, 2.0, np.int64(2), torch.tensor(2))),
        *((number, 0) for number in (1, True, np.float32(1), np.bool_(True))),
    ],
)
def test_labels_match_by_text_then_alias_then_case_then_number(tokenizer, value, label):
    assert tokenizer({"sex": value})["labels"][0, 0] == label


def test_labels_that_differ_in_case_or_notation_only_match_exactly():
    tokenizer = BEITokenizer(variables=[BEIVariable("code", "categorical", ["a", "A", "01", "1"])])
    assert tokenizer([{"code": code} for code in ("A", "a", "1", "01")])["labels"][:, 0].tolist() == [1, 0, 3, 2]
    two_spellings = BEITokenizer(variables=[BEIVariable("code", "categorical", ["ab", "AB", "01", "001"])])
    for value in ("Ab", 1.0):  # either label could be meant
        with pytest.raises(ValueError, match="unknown label"):
            two_spellings({"code": value})


def test_boolean_columns_match_labels_spelt_as_numbers_and_the_other_way_round():
    numbers = BEITokenizer(variables=[BEIVariable("smoker", "categorical", ["0", "1"])])
    words = BEITokenizer(variables=[BEIVariable("smoker", "categorical", ["False", "True"])])
    for tokenizer in (numbers, words):
        values = [True, 1, "1", 1.0, "true", False, 0]
        labels = tokenizer([{"smoker": value} for value in values])["labels"][:, 0]
        assert labels.tolist() == [1, 1, 1, 1, 1, 0, 0]


def test_unknown_label_error_names_row_person_variable_and_known_labels(tokenizer):
    records = [{"sex": "M"}, {"participant_id": "sub-02", "sex": "diverse"}]
    with pytest.raises(ValueError) as caught:
        tokenizer(records)
    message = str(caught.value)
    assert message.startswith("row 1 (sub-02), BEI variable 'sex': unknown label 'diverse'")
    assert "Known labels: M, F, male (= M), 1 (= M), female (= F), 2 (= F)." in message


@pytest.mark.parametrize("value", ["old", "90+", math.inf, "-inf", 10**400])
def test_continuous_value_that_is_no_finite_number_is_an_error_with_its_place(tokenizer, value):
    with pytest.raises(ValueError, match=r"row 1, BEI variable 'age': .* is not a finite number"):
        tokenizer([{"age": 30}, {"age": value}])


@pytest.mark.parametrize("value", [40.0 - 100 * 20.0, 1e300])
def test_continuous_value_that_cannot_be_a_label_is_an_error(tokenizer, value):
    with pytest.raises(ValueError, match=r"row 0, BEI variable 'age': .* after scaling with mean 40 and std 20"):
        tokenizer({"age": value})


@pytest.mark.parametrize(
    ("records", "error", "text"),
    [
        ([], ValueError, "batch of records is empty"),
        (pd.DataFrame({"sex": []}), ValueError, "batch of records is empty"),
        ("sex=M", TypeError, "records must be a dict, a list of dicts or a DataFrame, got a str"),
        (3, TypeError, "got a int"),
        (["M", "F"], TypeError, "Record 0 must be a dict of variable name to value, got a str"),
        ({"sex": ["M", "F"]}, TypeError, "row 0, BEI variable 'sex': got a list"),
        ({"age": np.array([1.0, 2.0])}, TypeError, "row 0, BEI variable 'age': got a ndarray"),
    ],
)
def test_what_is_not_a_batch_of_records_is_refused(tokenizer, records, error, text):
    with pytest.raises(error, match=text):
        tokenizer(records)


@pytest.mark.parametrize("keep_default_na", [True, False])
def test_participants_table_gives_the_same_labels_however_pandas_reads_missing_values(tokenizer, keep_default_na):
    table = pd.read_csv(io.StringIO(PARTICIPANTS), sep="\t", keep_default_na=keep_default_na)
    expected = np.float32([[1, 1.375, 2], [0, -100, -100], [-100, -0.875, 0]])
    rows = [row for _, row in table.iterrows()]
    for records in (table, table.convert_dtypes(), table.to_dict("records"), rows):
        np.testing.assert_array_equal(tokenizer(records)["labels"], expected)
    np.testing.assert_array_equal(tokenizer(table.iloc[0])["labels"], expected[:1])
    sites = tokenizer.add_variable(BEIVariable("site", "categorical", ["1", "2", "3"]))
    assert sites(table)["labels"][:, -1].tolist() == [2, 0, -100]


def test_error_in_a_participants_table_names_the_participant(tokenizer):
    table = pd.read_csv(io.StringIO(PARTICIPANTS.replace("AD", "dementia")), sep="\t")
    with pytest.raises(ValueError, match=r"row 0 \(sub-01\), BEI variable 'diagnosis'.*Known labels: CN, MCI, AD"):
        tokenizer(table)


def test_column_that_differs_in_case_only_is_pointed_out(tokenizer, caplog):
    logger = logging.getLogger("modeling_lcm.bei_vocabulary")
    logger.addHandler(caplog.handler)
    try:
        labels = tokenizer({"Sex": "F", "age": 40})["labels"]
        assert labels.tolist() == [[-100, 0, -100]]
        assert "'Sex' but no 'sex'" in caplog.text
        caplog.clear()
        tokenizer({"sex": "F", "Sex": "F"})
        assert caplog.text == ""
    finally:
        logger.removeHandler(caplog.handler)


def test_tensors_are_returned_on_request(tokenizer):
    records = [{"sex": "F", "age": 60, "diagnosis": "AD"}, {}]
    tensors = tokenizer(records, return_tensors="pt")
    assert tensors["labels"].dtype == torch.float32
    torch.testing.assert_close(tensors["labels"], torch.tensor([[1.0, 1.0, 2.0], [-100.0] * 3]))
    with pytest.raises(ValueError, match="not a valid TensorType"):
        tokenizer(records, return_tensors="torch")


def test_ten_thousand_records_take_well_under_a_second(tokenizer):
    records = [{"sex": "male", "age": 30.0 + row % 50, "diagnosis": "cn"} for row in range(10_000)]
    start = time.process_time()
    labels = tokenizer(records)["labels"]
    assert time.process_time() - start < 0.8
    assert labels[:, 0].tolist() == [0] * 10_000


# Downstream task -------------------------------------------------------------------------------------------------


def test_new_task_is_left_out_of_the_pretrained_labels_and_never_gets_a_pseudo_label():
    tokenizer = BEITokenizer(variables=[sex(default="F"), age()]).add_variable(diagnosis(), task=True)
    encoded = tokenizer([{"diagnosis": "AD", "sex": "M"}, {"age": 40}], pseudo_labels=True, return_tensors="pt")
    assert encoded["labels"].dtype == torch.int64 and encoded["labels"].tolist() == [2, -100]
    assert encoded["bei_labels"].tolist() == [[0, -100], [1, 0]]
    assert tokenizer.task_variable == diagnosis()
    assert [variable["name"] for variable in tokenizer.model_variables] == ["sex", "age"]


def test_pretrained_task_keeps_an_ignored_column(tokenizer):
    for_sex = tokenizer.for_task("sex")
    encoded = for_sex([{"sex": "F", "age": 60}])
    assert encoded["labels"].tolist() == [1]
    assert encoded["bei_labels"].tolist() == [[-100, 1, -100]]
    assert for_sex.model_variables == tokenizer.model_variables
    assert tokenizer.task is None


def test_continuous_task_gives_scaled_values(tokenizer):
    labels = tokenizer.for_task("age")([{"age": 50}, {}])["labels"]
    assert labels.dtype == np.float32 and labels.tolist() == [0.5, -100]


def test_only_a_task_leaves_no_pretrained_labels():
    encoded = BEITokenizer(variables=[]).add_variable(sex(), task=True)([{"sex": "M"}, {}], return_tensors="pt")
    assert encoded["labels"].tolist() == [0, -100]
    assert encoded["bei_labels"].shape == (2, 0) and encoded["bei_labels"].dtype == torch.float32


def test_task_must_exist_and_a_new_one_stays_last(tokenizer):
    with pytest.raises(ValueError, match="'site' is not in the vocabulary"):
        BEITokenizer(variables=[sex()], task="site")
    with pytest.raises(ValueError, match="put 'sex' last"):
        BEITokenizer(variables=[sex(), age()], task="sex", task_is_new=True)
    with pytest.raises(ValueError, match="no BEI variable 'site'"):
        tokenizer.for_task("site")
    fine_tuned = BEITokenizer(variables=[sex()]).add_variable(diagnosis(), task=True)
    for growing in (lambda: fine_tuned.add_variable(age()), lambda: fine_tuned.for_task("sex")):
        with pytest.raises(ValueError, match="already has the new task 'diagnosis'"):
            growing()
    with pytest.raises(ValueError, match="Two BEI variables are called 'sex'"):
        tokenizer.add_variable(sex())


# Decoding --------------------------------------------------------------------------------------------------------


def test_decode_gives_labels_probabilities_and_values_in_units(tokenizer):
    logits = torch.tensor([0.0, math.log(4.0), -0.5, 1.0, 1.0, 3.0], requires_grad=True)
    decoded = tokenizer.decode(logits)
    assert decoded["sex"]["label"] == "F"
    assert decoded["sex"]["probabilities"] == pytest.approx({"M": 0.2, "F": 0.8}, abs=1e-6)
    assert decoded["age"] == {"value": pytest.approx(30.0), "unit": "years"}
    assert decoded["diagnosis"]["label"] == "AD"
    assert tokenizer.batch_decode(logits[None].repeat(2, 1)) == [decoded, decoded]
    assert tokenizer.decode(logits.to(torch.bfloat16))["sex"]["probability"] == pytest.approx(0.8, abs=0.01)
    assert tokenizer.decode(logits[3:], variables=["diagnosis"]) == {"diagnosis": decoded["diagnosis"]}
    table = tokenizer.to_frame(logits[None])
    assert list(table) == ["sex", "sex_probability", "age", "diagnosis", "diagnosis_probability"]
    assert table.loc[0, "sex"] == "F" and table.loc[0, "age"] == pytest.approx(30.0)


@pytest.mark.parametrize(
    ("method", "logits", "text"),
    [
        ("decode", np.zeros(5), r"shape \(1, 5\), but sex, age, diagnosis take \(batch, 6\)"),
        ("decode", np.zeros((1, 6)), r"got shape \(1, 6\); use batch_decode"),
        ("batch_decode", np.zeros(6), r"Got logits of shape \(6,\)"),
        ("batch_decode", np.zeros((2, 4, 6)), r"Got logits of shape \(2, 4, 6\)"),
        ("batch_decode", np.full((2, 6), np.nan), "NaN or infinite"),
    ],
)
def test_logits_of_another_shape_or_not_finite_are_refused(tokenizer, method, logits, text):
    with pytest.raises(ValueError, match=text):
        getattr(tokenizer, method)(logits)


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
    np.testing.assert_array_equal(fitted(records)["bei_labels"][:, 1], [-1, -100, 1])
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


@settings(deadline=None, max_examples=40)
@given(vocabularies, vocabularies)
def test_merging_keeps_every_label_and_the_first_vocabulary_in_front(first, second):
    by_name = {variable.name: variable for variable in first}
    second = [v for v in second if v.name not in by_name or by_name[v.name] == v]
    merged = BEITokenizer.merge([first, second])
    assert merged.variables[: len(first)] == first
    assert set(merged.get_vocab()) == {token for variable in [*first, *second] for token in variable.tokens}


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


# Files -----------------------------------------------------------------------------------------------------------


def test_damaged_or_foreign_vocabulary_files_are_named(tokenizer, tmp_path):
    (path,) = tokenizer.save_vocabulary(str(tmp_path), filename_prefix="old")
    assert Path(path).name == "old-bei_vocab.json"
    complete = Path(path).read_text(encoding="utf-8")
    assert BEITokenizer(path).variables == tokenizer.variables
    Path(path).write_text(complete[:100], encoding="utf-8")
    with pytest.raises(ValueError, match=r"old-bei_vocab\.json is not a complete JSON file"):
        BEITokenizer(path)
    for content in ({**json.loads(complete), "version": 2}, {"sex": 0}, []):
        Path(path).write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(ValueError, match="not a BEI vocabulary of version 1"):
            BEITokenizer(path)


def test_pandas_is_needed_for_tables_only(tokenizer, monkeypatch):
    folder = Path(tokenization_bei.__file__).parent
    needed = {name for file in ("tokenization_bei.py", "bei_vocabulary.py") for name in get_imports(folder / file)}
    assert needed - set(sys.stdlib_module_names) == {"numpy", "torch", "transformers"}
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert tokenizer([{"age": 60}])["labels"].tolist() == [[-100, 1, -100]]
    with pytest.raises(ImportError, match="to_frame needs pandas"):
        tokenizer.to_frame(np.zeros((1, 6)))


def test_docstring_example_prints_what_it_says():
    result = doctest.testmod(tokenization_bei)
    assert (result.attempted, result.failed) == (3, 0)
