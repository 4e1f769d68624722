"""Pretraining from Parquet files that are never loaded as a whole."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import torch

from modeling_lcm import BEITokenizer, LCMConfig, LCMForMultitaskPretraining
from training.data.cohort import load_cohort
from training.streaming import StreamedConnectomes


pytest_plugins = ["tests.training_fixtures"]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library waits five seconds at the end of every pass, for the threads that read Parquet files."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)  # not in old releases


def test_streamed_batches_train_a_model(dataset: Path) -> None:
    cohort = load_cohort(dataset)
    tokenizer = BEITokenizer.from_records(cohort.table, ["sex", "age"]).fit_scaling(cohort.table)
    stream = StreamedConnectomes(dataset / "parquet", tokenizer, batch_size=8, seed=1)
    config = LCMConfig(
        num_regions=10, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        bei_variables=tokenizer.model_variables,
    )  # fmt: skip
    model = LCMForMultitaskPretraining(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for epoch in range(8):
        stream.set_epoch(epoch)
        batches = list(torch.utils.data.DataLoader(stream, batch_size=None))
        assert [len(batch["labels"]) for batch in batches] == [8, 8, 8]
        for batch in batches:
            loss = model(**batch).loss
            loss.backward()
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.9 * np.mean(losses[:3])
    everything = torch.cat([batch["connectivity"] for batch in batches]).numpy()
    order = np.lexsort(everything[:, 0].T)
    expected = cohort.connectivity()
    np.testing.assert_array_equal(everything[order], expected[np.lexsort(expected[:, 0].T)])


def test_stream_leaves_subjects_out_and_needs_the_folder(dataset: Path, tmp_path: Path) -> None:
    cohort = load_cohort(dataset)
    tokenizer = BEITokenizer.from_records(cohort.table, ["sex"])
    stream = StreamedConnectomes(dataset / "parquet", tokenizer, leave_out=frozenset({"0001", "0002"}))
    (batch,) = list(stream)
    assert len(batch["labels"]) == 22
    halves = [
        sum(
            len(part["labels"])
            for part in StreamedConnectomes(dataset / "parquet", tokenizer, rank=rank, world_size=2)
        )
        for rank in (0, 1)
    ]
    assert halves == [12, 12]
    with pytest.raises(FileNotFoundError, match="is not the parquet/ folder"):
        StreamedConnectomes(tmp_path, tokenizer)
