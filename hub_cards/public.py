"""What is published of the records beside a model: the keys that are listed here, and nothing else.

Names of subjects are never among them, because data use terms rarely allow it, nor are paths on the machine of whoever
trained. A new setting or field stays at home until it is listed.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from training.reporting.results import Results, TaskResults


RECORD = ("num_training_scans", "training_subject_hashes", "cohorts", "history", "versions", "git_revision")
EPOCH = ("epoch", "stage", "train_loss", "validation_loss", "lr", "best_layers")
VERSIONS = ("python", "torch", "transformers")
HASHES = ("salt", "ids", "hashes")
SETTINGS = (
    "activation_checkpointing", "adapter", "adaptive", "atlas", "batch_size", "categorical",
    "checkpoint_every", "checkpoint_every_steps", "class_weights", "continuous", "default_labels", "dropout",
    "edge_readout", "epochs", "fold", "frozen_layers", "gradient_accumulation_steps", "head",
    "hidden_size", "input_noise", "intermediate_size", "keep_checkpoints", "kind", "labels", "labels_per_class",
    "layer_decay", "learning_rate", "lora_rank", "max_grad_norm", "mixed_precision",
    "mixup", "momentum_epochs", "new_tokens", "num_attention_heads", "num_hidden_layers", "optimizer", "patience",
    "positive", "process_timeout", "progress", "pseudo_labels", "pseudo_label_threshold", "resume", "seed",
    "site_relative", "size", "task", "total_batch_size", "trainable", "validation_fraction", "warmup_fraction",
    "weight_decay", "window_fraction", "window_volumes",
)  # fmt: skip
PROTOCOL = (
    "task", "labels", "positive", "folds", "repeats", "split", "split_checksum", "epoch", "pretraining", "optimistic",
    "interval", "p_value", "ensemble", "harmonised", "labelled_training_scans", "other_cohorts", "same_person",
)  # fmt: skip
REPORT = (
    "format", "version", "source", "architecture", "parameters", "dtype", "vocabulary", "fc_definition", "atlas",
    "region_fingerprint", "tensors", "unused", "notes", "parity",
)  # fmt: skip
SOURCE = ("run", "datasets", "fold", "dataset", "metric", "date", "files")


def listed(content: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    """The listed keys that a dictionary has; nothing of anything else."""
    return {key: content[key] for key in keys if key in content} if isinstance(content, dict) else {}


def public_record(record: dict[str, Any], hashes: bool = True) -> dict[str, Any]:
    """What is published of a `training_record.json`.

    Args:
        record (`dict`): its content.
        hashes (`bool`): whether salted hashes of the subjects' ids are among it.
    """
    kept = listed(record, RECORD)
    kept["num_training_subjects"] = record.get("num_training_subjects", len(record.get("training_subjects") or []))
    kept["arguments"] = listed(record.get("arguments"), SETTINGS)
    kept["history"] = [listed(epoch, EPOCH) for epoch in record.get("history") or []]
    kept["versions"] = listed(record.get("versions"), VERSIONS)
    found = kept.pop("training_subject_hashes", None)
    if hashes and found is not None:
        kept["training_subject_hashes"] = [listed(entry, HASHES) for entry in found]
    return kept


def public_results(results: Results) -> Results:
    """What is published of a `metrics.json`."""
    settings = {name: None if stage is None else listed(stage, SETTINGS) for name, stage in results.settings.items()}
    tasks = {name: _public_task(task) for name, task in results.tasks.items()}
    return replace(results, protocol=_public_protocol(results.protocol), tasks=tasks, settings=settings)


def _public_task(results: TaskResults) -> TaskResults:
    external = {name: _public_task(each) for name, each in results.external.items()}
    return replace(results, protocol=_public_protocol(results.protocol), external=external)


def _public_protocol(protocol: dict[str, Any]) -> dict[str, Any]:
    kept = listed(protocol, PROTOCOL)
    checkpoint = Path(kept.get("pretraining") or "")
    if checkpoint.name and (checkpoint.is_absolute() or checkpoint.exists()):
        kept["pretraining"] = f"an existing checkpoint ({checkpoint.name})"
    return kept


def public_report(report: dict[str, Any]) -> dict[str, Any]:
    """What is published of a `conversion_report.json`."""
    kept = listed(report, REPORT)
    if "source" in kept:
        kept["source"] = listed(kept["source"], SOURCE)
    return kept
