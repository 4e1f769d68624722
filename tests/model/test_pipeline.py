"""The pipeline "connectome-classification"."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import pipeline

from modeling_lcm import (
    BEITokenizer,
    BEIVariable,
    ConnectomeClassificationPipeline,
    FCFeatureExtractor,
    LCMConfig,
    LCMForMultitaskPretraining,
    LCMForSequenceClassification,
    LCMProcessor,
)
from modeling_lcm.limits_lcm import NOT_KNOWN
from tests.conftest import NUM_REGIONS


TASK = "connectome-classification"
LABELS = ["healthy", "Parkinson", "prodromal"]
PRETRAINED = [
    BEIVariable("sex", "categorical", ["M", "F"]),
    BEIVariable("age", "continuous", unit="years", mean=40.0, std=10.0),
]


def make_processor(task: BEIVariable | None = None, **options: Any) -> LCMProcessor:
    """Processor of 12 regions; `task` is added to sex and age as a new downstream variable."""
    tokenizer = BEITokenizer(variables=PRETRAINED)
    if task is not None:
        tokenizer = tokenizer.add_variable(task, task=True)
    return LCMProcessor(FCFeatureExtractor(num_regions=NUM_REGIONS, **options), tokenizer)


@pytest.fixture
def make_model(make_config: Callable[..., LCMConfig]) -> Callable[..., LCMForSequenceClassification]:
    """Factory of models with a downstream task beside sex and age."""

    def make(**settings: Any) -> LCMForSequenceClassification:
        variables = BEITokenizer(variables=PRETRAINED).model_variables
        return LCMForSequenceClassification(make_config(bei_variables=variables, **settings)).eval()

    return make


@pytest.fixture
def checkpoint(make_model: Callable[..., LCMForSequenceClassification], tmp_path: Path) -> Path:
    """Folder with a fine-tuned model of three diagnoses and its processor."""
    names = dict(enumerate(LABELS))
    make_model(num_labels=3, id2label=names, label2id={name: i for i, name in names.items()}).save_pretrained(tmp_path)
    make_processor(BEIVariable("diagnosis", "categorical", LABELS)).save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def series(rng: np.random.Generator) -> list[np.ndarray]:
    """Time series of five scans of different lengths, `(volumes, 12)`."""
    return [rng.standard_normal((30 + 5 * i, NUM_REGIONS)) for i in range(5)]


def test_scores_are_those_of_the_model(checkpoint: Path, series: list[np.ndarray]) -> None:
    answer = pipeline(TASK, model=str(checkpoint))(series[0])
    processor = LCMProcessor.from_pretrained(checkpoint)
    model = LCMForSequenceClassification.from_pretrained(checkpoint)
    probabilities = model(**processor(time_series=series[0], return_tensors="pt")).logits[0].softmax(-1)
    assert [entry["score"] for entry in answer] == sorted((entry["score"] for entry in answer), reverse=True)
    scores = {entry["label"]: entry["score"] for entry in answer}
    assert scores == pytest.approx(dict(zip(LABELS, probabilities.tolist(), strict=True)), abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_batch_size_does_not_matter(checkpoint: Path, series: list[np.ndarray], batch_size: int) -> None:
    pipe = pipeline(TASK, model=str(checkpoint))
    answers = pipe(series, batch_size=batch_size)
    assert len(answers) == 5
    for scan, answer in zip(series, answers, strict=True):
        alone = pipe(scan)
        assert [entry["label"] for entry in answer] == [entry["label"] for entry in alone]
        assert [entry["score"] for entry in answer] == pytest.approx([entry["score"] for entry in alone], abs=1e-6)


def test_all_kinds_of_input_agree(checkpoint: Path, series: list[np.ndarray]) -> None:
    pipe = pipeline(TASK, model=str(checkpoint))
    matrix = np.corrcoef(series[0].T)
    expected = pipe(series[0])
    inputs = [
        matrix,
        torch.tensor(matrix),
        {"connectivity": matrix},
        {"connectivity": matrix.tolist()},
        {"time_series": series[0]},
        torch.tensor(series[0]),
    ]
    answers = [pipe(scan) for scan in inputs] + pipe(inputs) + pipe(tuple(inputs))
    answers += pipe(np.stack([matrix, matrix])) + pipe(np.stack([series[0], series[0]]))
    assert len(answers) == 3 * len(inputs) + 4
    for answer in answers:
        assert [entry["label"] for entry in answer] == [entry["label"] for entry in expected]
        assert [entry["score"] for entry in answer] == pytest.approx([e["score"] for e in expected], abs=1e-5)


def test_top_k(checkpoint: Path, series: list[np.ndarray]) -> None:
    pipe = pipeline(TASK, model=str(checkpoint))
    assert pipe(series[0], top_k=1) == pipe(series[0])[:1]
    assert pipeline(TASK, model=str(checkpoint), top_k=2)(series) == [answer[:2] for answer in pipe(series)]
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        pipe(series[0], top_k=0)


def test_regression_is_in_the_unit_of_the_task(
    make_model: Callable[..., LCMForSequenceClassification], series: list[np.ndarray]
) -> None:
    model = make_model(num_labels=1)
    processor = make_processor(BEIVariable("score", "continuous", unit="points", mean=100.0, std=15.0))
    pipe = pipeline(TASK, model=model, processor=processor)
    logit = model(**processor(time_series=series[0], return_tensors="pt")).logits.item()
    unknown = {"out_of_distribution": None, "limits": NOT_KNOWN}
    assert pipe(series[0]) == {"value": pytest.approx(100 + 15 * logit, rel=1e-5), "unit": "points", **unknown}
    assert [answer["unit"] for answer in pipe(series, batch_size=2)] == 5 * ["points"]


def test_regression_without_a_task_variable(
    make_model: Callable[..., LCMForSequenceClassification], series: list[np.ndarray]
) -> None:
    one = pipeline(TASK, model=make_model(num_labels=1), processor=make_processor())(series[0])
    assert one["unit"] is None
    two = make_model(num_labels=2, problem_type="regression")
    answer = pipeline(TASK, model=two, processor=make_processor())(series[0])
    assert [entry["label"] for entry in answer] == ["LABEL_0", "LABEL_1"]
    assert [set(entry) for entry in answer] == 2 * [{"label", "value", "unit", "out_of_distribution", "limits"}]


def test_multi_label_scores_do_not_compete(
    make_model: Callable[..., LCMForSequenceClassification], series: list[np.ndarray]
) -> None:
    model = make_model(num_labels=3, problem_type="multi_label_classification")
    processor = make_processor()
    answer = pipeline(TASK, model=model, processor=processor)(series[0])
    logits = model(**processor(time_series=series[0], return_tensors="pt")).logits[0]
    scores = {int(entry["label"].removeprefix("LABEL_")): entry["score"] for entry in answer}
    assert [scores[i] for i in range(3)] == pytest.approx(logits.sigmoid().tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("scan", "message"),
    [
        ([], "The list of scans is empty"),
        ({"fc": np.eye(NUM_REGIONS)}, r"needs one key, connectivity or time_series, got \['fc'\]"),
        ({"connectivity": np.eye(12), "time_series": np.eye(12)}, "needs one key"),
        (np.eye(13), "13 regions"),
        (np.random.default_rng(0).standard_normal((NUM_REGIONS, 40)), "transpose"),
        (np.full((40, NUM_REGIONS), np.nan), "NaN"),
        (np.eye(12) + np.diag(np.full(11, 0.5), 1), "symmetric"),
    ],
)
def test_bad_input(checkpoint: Path, scan: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pipeline(TASK, model=str(checkpoint))(scan)


def test_unknown_option(checkpoint: Path, series: list[np.ndarray]) -> None:
    with pytest.raises(TypeError, match="does not know threshold"):
        pipeline(TASK, model=str(checkpoint))(series[0], threshold=0.5)


def test_scans_cut_into_windows_are_refused(
    make_model: Callable[..., LCMForSequenceClassification], series: list[np.ndarray]
) -> None:
    pipe = pipeline(TASK, model=make_model(num_labels=2), processor=make_processor(window=25))
    with pytest.raises(ValueError, match=r"into 2 windows \(window=25 volumes\)"):
        pipe(series[4])


def test_an_untrained_task_is_refused(
    make_config: Callable[..., LCMConfig], tmp_path: Path, series: list[np.ndarray]
) -> None:
    processor = make_processor()
    config = make_config(bei_variables=processor.tokenizer.model_variables)
    LCMForMultitaskPretraining(config).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="saved by LCMForMultitaskPretraining: it has no downstream task yet"):
        pipeline(TASK, model=str(tmp_path))
    model = LCMForSequenceClassification.from_pretrained(tmp_path, num_labels=2).train()
    inputs = processor(time_series=series, return_tensors="pt")
    model(**inputs, labels=torch.tensor([0, 1, 0, 1, 0])).loss.backward()
    assert len(pipeline(TASK, model=model, processor=processor)(series)) == 5
    assert not model.training


def test_processor_of_another_model_is_refused(checkpoint: Path) -> None:
    model = LCMForSequenceClassification.from_pretrained(checkpoint)
    other = LCMProcessor(FCFeatureExtractor(num_regions=NUM_REGIONS), BEITokenizer(variables=PRETRAINED[:1]))
    with pytest.raises(ValueError, match="The tokenizer has 1 pretrained BEI variables, the model 2"):
        pipeline(TASK, model=model, processor=other)
    with pytest.raises(ValueError, match="needs processor="):
        ConnectomeClassificationPipeline(model)


def test_saved_pipeline(checkpoint: Path, tmp_path: Path, series: list[np.ndarray]) -> None:
    pipe = pipeline(TASK, model=str(checkpoint))
    pipe.save_pretrained(tmp_path / "saved")
    again = pipeline(model=str(tmp_path / "saved"), trust_remote_code=True)
    assert again(series) == pipe(series)
    assert not (tmp_path / "saved" / "preprocessor_config.json").exists()
    # Batching still works after saving.
    assert len(pipe(series, batch_size=2)) == 5
