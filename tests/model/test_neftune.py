"""NEFTune of `transformers.Trainer`: noise on the pretrained tokens' embeddings, in training alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import Trainer, TrainingArguments
from transformers.integrations.neftune import activate_neftune, deactivate_neftune

from modeling_lcm import LCMConfig, LCMForSequenceClassification


@pytest.mark.parametrize("targets", [None, "all-linear", ["bei_embeddings"]], ids=str)
def test_trainer(make_config: Callable[..., LCMConfig], connectivity: Tensor, tmp_path: Path, targets: Any) -> None:
    model: Any = LCMForSequenceClassification(make_config(edge_readout=True, num_labels=2))
    if targets is not None:
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=targets))
    arguments = TrainingArguments(
        str(tmp_path), neftune_noise_alpha=5.0, num_train_epochs=1, report_to=[], save_strategy="no", use_cpu=True
    )
    data = [{"connectivity": fc, "labels": number % 2} for number, fc in enumerate(connectivity)]
    assert torch.isfinite(torch.tensor(Trainer(model, arguments, train_dataset=data).train().training_loss))


def test_noise_is_as_large_as_published(make_config: Callable[..., LCMConfig]) -> None:
    """Uniform up to alpha / sqrt(tokens x width), the same for a whole batch; none in evaluation."""
    model = LCMForSequenceClassification(make_config(num_labels=2)).model.train()
    config, device = model.config, torch.device("cpu")
    plain = model.bei_queries(device)
    handle = activate_neftune(model, 3.0)
    noise = model.bei_queries(device) - plain
    largest = 3.0 / (config.num_bei_tokens * config.hidden_size) ** 0.5
    assert noise.shape == (config.num_bei_tokens, config.hidden_size)
    assert 0.8 * largest < noise.abs().max() <= largest
    assert torch.equal(model.eval().bei_queries(device), plain)
    deactivate_neftune(model, handle)
    assert torch.equal(model.train().bei_queries(device), plain)
