"""BEI tokenizer: records to labels and back, the task, files."""

import cProfile
import doctest
import io
import json
import logging
import math
import pstats
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers.dynamic_module_utils import get_imports

from modeling_lcm import tokenization_bei
from modeling_lcm.bei_vocabulary import BEIVariable
from modeling_lcm.tokenization_bei import BEITokenizer
from tests.model.bei_variables import age, diagnosis, sex


MISSING = [None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT, "", "  ", "n/a", "N/A", "nan", "NaN"]

PARTICIPANTS = (
    "participant_id\tage\tsex\tdiagnosis\tsite\n"
    "sub-01\t67.5\tF\tAD\t3\n"
    "sub-02\tn/a\tmale\tn/a\t1\n"
    "sub-03\t22.5\tn/a\tCN\tn/a\n"
)


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
    logger = logging.getLogger("modeling_lcm.bei_records")
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


def test_records_cost_a_few_calls_each_however_many_there_are(tokenizer):
    """Counted, not timed: ten thousand records take well under a second."""
    records = [{"sex": "male", "age": 30.0 + row % 50, "diagnosis": "cn"} for row in range(10_000)]
    profile = cProfile.Profile()
    labels = profile.runcall(tokenizer, records)["labels"]
    assert pstats.Stats(profile).total_calls < 100 * len(records)
    assert labels[:, 0].tolist() == [0] * 10_000


# Downstream task -------------------------------------------------------------------------------------------------


def test_new_task_is_left_out_of_the_pretrained_labels_and_never_gets_a_pseudo_label():
    tokenizer = BEITokenizer(variables=[sex(default="F"), age()]).add_variable(diagnosis(), task=True)
    encoded = tokenizer([{"diagnosis": "AD", "sex": "M"}, {"age": 40}], pseudo_labels=True, return_tensors="pt")
    assert encoded["labels"].dtype == torch.int64 and encoded["labels"].tolist() == [2, -100]
    assert encoded["bei_targets"].tolist() == [[0, -100], [1, 0]]
    assert tokenizer.task_variable == diagnosis()
    assert [variable["name"] for variable in tokenizer.model_variables] == ["sex", "age"]


def test_pretrained_task_keeps_an_ignored_column(tokenizer):
    for_sex = tokenizer.for_task("sex")
    encoded = for_sex([{"sex": "F", "age": 60}])
    assert encoded["labels"].tolist() == [1]
    assert encoded["bei_targets"].tolist() == [[-100, 1, -100]]
    assert for_sex.model_variables == tokenizer.model_variables
    assert tokenizer.task is None


def test_continuous_task_gives_scaled_values(tokenizer):
    labels = tokenizer.for_task("age")([{"age": 50}, {}])["labels"]
    assert labels.dtype == np.float32 and labels.tolist() == [0.5, -100]


def test_only_a_task_leaves_no_pretrained_labels():
    encoded = BEITokenizer(variables=[]).add_variable(sex(), task=True)([{"sex": "M"}, {}], return_tensors="pt")
    assert encoded["labels"].tolist() == [0, -100]
    assert encoded["bei_targets"].shape == (2, 0) and encoded["bei_targets"].dtype == torch.float32


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
    needed = {
        name
        for file in ("tokenization_bei.py", "bei_vocabulary.py", "bei_records.py")
        for name in get_imports(folder / file)
    }
    assert needed - set(sys.stdlib_module_names) == {"numpy", "torch", "transformers"}
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert tokenizer([{"age": 60}])["labels"].tolist() == [[-100, 1, -100]]
    with pytest.raises(ImportError, match="to_frame needs pandas"):
        tokenizer.to_frame(np.zeros((1, 6)))


def test_docstring_example_prints_what_it_says():
    result = doctest.testmod(tokenization_bei)
    assert (result.attempted, result.failed) == (3, 0)


# Special tokens --------------------------------------------------------------------------------------------------


def test_special_tokens_are_of_the_vocabulary_or_refused(tokenizer, tmp_path):
    tokenizer.pad_token = tokenizer.eos_token  # as scripts for texts do; there is none
    for give in (
        lambda: setattr(tokenizer, "pad_token", "[PAD]"),
        lambda: tokenizer.add_special_tokens({"pad_token": "[PAD]"}),
        lambda: tokenizer.add_tokens(["new"]),
    ):
        with pytest.raises(ValueError, match=r"BEI tokens stand for labels|a token belongs to a variable"):
            give()
    assert tokenizer.pad_token is None
    tokenizer.pad_token = next(iter(tokenizer.get_vocab()))
    tokenizer.save_pretrained(tmp_path)
    loaded = BEITokenizer.from_pretrained(tmp_path)
    assert (loaded.pad_token, len(loaded), loaded.get_vocab()) == (
        tokenizer.pad_token,
        len(tokenizer),
        tokenizer.get_vocab(),
    )
