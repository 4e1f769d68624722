"""LCMProcessor: inputs that a model takes as they are, records from its outputs, saving and loading."""

import doctest
import json

import numpy as np
import pytest
import torch

from modeling_lcm import LCMForMultitaskPretraining, LCMForSequenceClassification, processing_lcm
from modeling_lcm.bei_vocabulary import BEIVariable
from modeling_lcm.feature_extraction_lcm import FCFeatureExtractor
from modeling_lcm.processing_lcm import LCMProcessor
from modeling_lcm.tokenization_bei import BEITokenizer


REGIONS = 12
RECORDS = [{"sex": "F", "age": 60}, {"sex": "n/a", "age": 20}, {"sex": "M"}]
DIAGNOSIS = BEIVariable("diagnosis", "categorical", ["CN", "MCI", "AD"])


@pytest.fixture
def tokenizer():
    return BEITokenizer(
        variables=[
            BEIVariable("state", "categorical", ["rest", "movie"], default="rest"),
            BEIVariable("sex", "categorical", ["M", "F"]),
            BEIVariable("age", "continuous", unit="years", mean=40.0, std=20.0),
        ]
    )


def make_processor(tokenizer, **options):
    return LCMProcessor(FCFeatureExtractor(num_regions=REGIONS, **options), tokenizer)


@pytest.fixture
def scans(rng):
    return [rng.standard_normal((length, REGIONS)) for length in (40, 50, 40)]


def test_multitask_model_takes_the_batch_as_it_is(tokenizer, scans, make_config):
    processor = make_processor(tokenizer)
    model = LCMForMultitaskPretraining(make_config(bei_variables=tokenizer.model_variables)).eval()
    processor.check_config(model.config)
    inputs = processor(time_series=scans, records=RECORDS, return_tensors="pt")
    assert list(inputs) == processor.model_input_names == ["connectivity", "labels"]
    assert inputs["labels"].tolist() == [[-100, 1, 1], [-100, -100, -1], [-100, 0, -100]]
    outputs = model(**inputs)
    outputs.loss.backward()
    assert torch.isfinite(outputs.loss)

    records = processor.post_process(outputs)
    assert [list(record) for record in records] == [["state", "sex", "age"]] * 3
    assert records[0] == processor.decode(outputs.logits[0]) == processor.batch_decode(outputs.logits)[0]
    assert records[0]["age"]["value"] == pytest.approx(40 + 20 * outputs.logits[0, -1].item(), abs=1e-4)


def test_a_new_task_comes_first_beside_the_pretrained_variables(tokenizer, scans, make_config):
    processor = make_processor(tokenizer.add_variable(DIAGNOSIS, task=True))
    model = LCMForSequenceClassification(make_config(bei_variables=tokenizer.model_variables, num_labels=3)).eval()
    processor.check_config(model.config)
    records = [{**record, "diagnosis": label} for record, label in zip(RECORDS, ["AD", "CN", "n/a"], strict=True)]
    inputs = processor(time_series=scans, records=records, return_tensors="pt")
    assert list(inputs) == ["connectivity", "labels", "bei_targets"]
    assert set(processor.model_input_names) == set(inputs)
    assert inputs["labels"].tolist() == [2, 0, -100]
    outputs = model(**inputs)
    assert torch.isfinite(outputs.loss)
    decoded = processor.post_process(outputs)
    assert list(decoded[0]) == ["diagnosis", "state", "sex", "age"]
    expected = outputs.logits.softmax(-1)[1, 2].item()
    assert decoded[1]["diagnosis"]["probabilities"]["AD"] == pytest.approx(expected, abs=1e-6)


def test_a_pretrained_task_is_read_from_its_own_logits(tokenizer):
    class Outputs:
        logits = torch.tensor([[0.0, 5.0]])
        bei_logits = torch.tensor([[1.0, 0.0, 9.0, -9.0, 0.5]])

    record = make_processor(tokenizer.for_task("sex")).post_process(Outputs)[0]
    assert list(record) == ["sex", "state", "age"]
    assert record["sex"]["label"] == "F"
    assert record["age"]["value"] == pytest.approx(50)


def test_task_output_needs_a_tokenizer_with_a_task(tokenizer):
    class Outputs:
        logits = torch.zeros(1, 3)
        bei_logits = torch.zeros(1, 5)

    with pytest.raises(ValueError, match="has none; load the tokenizer that was saved with the model"):
        make_processor(tokenizer).post_process(Outputs)


def test_records_are_optional_and_pseudo_labels_on_request(tokenizer, scans):
    processor = make_processor(tokenizer)
    assert list(processor(time_series=scans)) == ["connectivity"]
    filled = processor(time_series=scans, records=RECORDS, pseudo_labels=True)["labels"]
    assert isinstance(filled, np.ndarray) and filled[:, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 25])
def test_one_record_per_scan(tokenizer, scans, count, window):
    records = (RECORDS * 2)[:count]
    with pytest.raises(ValueError, match=f"Got 3 scans but {count} records"):
        make_processor(tokenizer, window=window)(time_series=scans, records=records)


@pytest.mark.parametrize("return_tensors", [None, "pt"])
def test_every_window_gets_the_labels_of_its_scan(tokenizer, scans, return_tensors):
    processor = make_processor(tokenizer, window=25)
    batch = processor(time_series=scans, records=RECORDS, return_tensors=return_tensors)
    assert batch["scan_index"].tolist() == [0, 1, 1, 2]
    assert batch["labels"][:, 1].tolist() == [1, -100, -100, 0]
    assert len(batch["connectivity"]) == len(batch["labels"]) == 4


def test_regions_are_reordered_by_name(tokenizer, scans):
    names = [f"region {number}" for number in range(REGIONS)]
    processor = LCMProcessor(FCFeatureExtractor(region_names=names), tokenizer)
    flipped = processor(time_series=[scan[:, ::-1] for scan in scans], region_names=names[::-1])["connectivity"]
    np.testing.assert_allclose(flipped, processor(time_series=scans)["connectivity"], atol=1e-6)


def test_a_model_of_another_atlas_or_vocabulary_is_refused(tokenizer, make_config):
    processor = make_processor(tokenizer)
    with pytest.raises(ValueError, match=r"12 regions.*the model for 116"):
        processor.check_config(make_config(bei_variables=tokenizer.model_variables, num_regions=116))
    with pytest.raises(ValueError, match="disagree on the labels of BEI variable 0"):
        processor.check_config(make_config())


def test_saving_keeps_both_parts(tokenizer, scans, tmp_path):
    processor = make_processor(tokenizer.add_variable(DIAGNOSIS, task=True), window=25, fisher_z=True)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "processor_config.json").read_text())
    assert saved["feature_extractor"]["window"] == 25  # Transformers itself would leave it out
    loaded = LCMProcessor.from_pretrained(tmp_path)
    assert type(loaded.feature_extractor) is FCFeatureExtractor
    assert loaded.tokenizer.task == "diagnosis"
    mine, other = (part(time_series=scans, records=RECORDS) for part in (processor, loaded))
    assert mine.keys() == other.keys() == {"connectivity", "scan_index", "labels", "bei_targets"}
    for name in mine:
        np.testing.assert_array_equal(mine[name], other[name])


def test_parts_in_the_wrong_order_are_refused(tokenizer):
    with pytest.raises(TypeError, match="feature_extractor"):
        LCMProcessor(tokenizer, FCFeatureExtractor())


def test_examples_in_the_documentation_run():
    result = doctest.testmod(processing_lcm)
    assert result.attempted > 0 and result.failed == 0
