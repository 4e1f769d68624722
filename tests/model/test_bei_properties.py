"""BEI tokenizer on arbitrary vocabularies and records: what must hold for all of them."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from modeling_lcm.bei_vocabulary import BEIVariable
from modeling_lcm.tokenization_bei import BEITokenizer


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
        np.testing.assert_array_equal(encoded["bei_targets"], old_labels)
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


@settings(deadline=None, max_examples=40)
@given(vocabularies, vocabularies)
def test_merging_keeps_every_label_and_the_first_vocabulary_in_front(first, second):
    by_name = {variable.name: variable for variable in first}
    second = [v for v in second if v.name not in by_name or by_name[v.name] == v]
    merged = BEITokenizer.merge([first, second])
    assert merged.variables[: len(first)] == first
    assert set(merged.get_vocab()) == {token for variable in [*first, *second] for token in variable.tokens}
