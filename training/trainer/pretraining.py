"""Stage one: learn every BEI variable from FC."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import set_seed
from torch import nn

from modeling_lcm import BEITokenizer, LCMConfig, LCMForMultitaskPretraining, LCMProcessor
from modeling_lcm.closed_form_fit import one_extractor

from ..data.cohort import Cohort
from ..data.folds import hold_out
from ..data.torch_datasets import ConnectomeDataset
from .arguments import PretrainArguments
from .batches import require_two_atlases, training_dataset
from .limits import training_limits
from .loop import Trainer
from .targets import class_weights
from .vocabulary import announce_labels, pretraining_tokenizer


def pretrain(
    cohort: Cohort,
    arguments: PretrainArguments,
    folder: Path | None = None,
    after_epoch: Callable[[nn.Module], None] | None = None,
    announce: Callable[[str], None] | None = None,
) -> tuple[LCMForMultitaskPretraining, LCMProcessor, list[dict[str, Any]]]:
    """Learn every BEI variable from FC.

    Args:
        cohort (`Cohort`): the training scans.
        arguments (`PretrainArguments`): settings.
        folder (`Path`, *optional*): where resumable checkpoints and logs go.
        after_epoch (`Callable`, *optional*): called with the model after every epoch; must not change it.
        announce (`Callable`, *optional*): called with a line for every variable with labels, before training.

    Returns:
        The trained model, its processor, and one record per epoch.

    Raises:
        ValueError: a variable that the data does not have, or with a single value in the training scans; atlases whose
            FC is defined differently; or atlas dropout, and no scan has two atlases.
    """
    cohort = cohort if arguments.atlas is None else cohort.with_atlas(arguments.atlas)
    require_two_atlases(cohort, arguments)
    extractor = one_extractor(cohort.atlases)
    training, held_out = (
        cohort.select(part) for part in hold_out(cohort.table, arguments.validation_fraction, arguments.seed, None)
    )
    tokenizer = pretraining_tokenizer(training, arguments)
    announce_labels(announce, tokenizer.variables, training.table, "--positive VARIABLE=LABEL")
    set_seed(arguments.seed)
    model = LCMForMultitaskPretraining(
        LCMConfig.from_size(
            arguments.size,
            bei_variables=tokenizer.model_variables,
            **({"atlases": extractor.atlases} if cohort.others else {"num_regions": cohort.num_regions}),
            **_overrides(arguments),
        )
    )
    scans = _labelled(training, tokenizer)
    if arguments.class_weights == "balanced":
        model.config.class_weights = class_weights(tokenizer.model_variables, scans.labels["labels"])
    validation = _labelled(held_out, tokenizer) if len(held_out) else None
    trainer = Trainer(model, training_dataset(scans, arguments), validation, arguments, folder)
    history = trainer.train(after_epoch)
    made = LCMProcessor(extractor, tokenizer)
    made.limits = training_limits(training, [variable.name for variable in tokenizer.variables])
    return trainer.trained, made, history


def _labelled(cohort: Cohort, tokenizer: BEITokenizer) -> ConnectomeDataset:
    """Scans with the labels of every variable."""
    return ConnectomeDataset(cohort, dict(tokenizer(cohort.table, return_tensors="pt")))


def _overrides(arguments: PretrainArguments) -> dict[str, Any]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "edge_readout")
    chosen = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    if arguments.dropout is not None:
        chosen |= dict.fromkeys(("hidden_dropout", "attention_dropout", "activation_dropout"), arguments.dropout)
    return chosen
