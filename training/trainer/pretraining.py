"""Stage one: learn every BEI variable from FC."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import set_seed
from torch import nn

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining, LCMProcessor

from ..data.cohort import Cohort
from ..data.folds import hold_out
from ..data.torch_datasets import make_dataset
from .arguments import PretrainArguments
from .batches import training_dataset
from .loop import Trainer
from .targets import _class_weights, _encode
from .vocabulary import _announce, _vocabulary


def pretrain(
    cohort: Cohort,
    rows: np.ndarray,
    arguments: PretrainArguments,
    folder: Path | None = None,
    after_epoch: Callable[[nn.Module], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> tuple[LCMForMultitaskPretraining, LCMProcessor, list[dict[str, Any]]]:
    """Learn every BEI variable from FC.

    Args:
        cohort (`Cohort`): the prepared data.
        rows (`np.ndarray`): rows of the training scans; no other row is looked at.
        arguments (`PretrainArguments`): settings.
        folder (`Path`, *optional*): where resumable checkpoints and logs go.
        after_epoch (`Callable`, *optional*): called with the model after every epoch; must not change it.
        announce (`Callable`, *optional*): called with a line for every variable with labels, before training.

    Returns:
        The trained model, its processor, and one record per epoch.

    Raises:
        ValueError: a variable that the data does not have, or with a single value in the training scans.
    """
    train_rows, validation_rows = hold_out(cohort.table, rows, arguments.validation_fraction, arguments.seed, None)
    tokenizer = _vocabulary(cohort, train_rows, arguments)
    _announce(announce, tokenizer.variables, cohort.table.iloc[train_rows], "--positive VARIABLE=LABEL")
    set_seed(arguments.seed)
    model = LCMForMultitaskPretraining(
        LCMConfig.from_size(
            arguments.size,
            num_regions=cohort.feature_extractor.num_regions,
            bei_variables=tokenizer.model_variables,
            **_overrides(arguments),
        )
    )
    train_labels, validation_labels = (_encode(cohort, part, tokenizer) for part in (train_rows, validation_rows))
    if arguments.class_weights == "balanced":
        model.config.class_weights = _class_weights(tokenizer.model_variables, train_labels["labels"])
    datasets = [
        training_dataset(cohort, train_rows, train_labels, arguments),
        make_dataset(cohort, validation_rows, validation_labels) if len(validation_rows) else None,
    ]
    trainer = Trainer(model, *datasets, arguments, folder)
    history = trainer.train(after_epoch)
    return trainer.trained, LCMProcessor(cohort.feature_extractor, tokenizer), history


def _overrides(arguments: PretrainArguments) -> dict[str, Any]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "edge_readout")
    chosen = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.dropout is not None:
        chosen |= dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout"), arguments.dropout)
    return chosen
