"""Settings of the training scripts: one dataclass per script, read from a YAML file, from flags, or from both."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from ..command_line.settings import require_choices, setting


# Those of `modeling_lcm.configuration_lcm` (SUPERVISIONS, SIZES), which imports torch.
Supervision = Literal["momentum", "adaptive", "adaptive_per_sample", "last_layer"]
Size = Literal["nano", "147m", "735m", "1.2b", "linear"]
Tracker = Literal["tensorboard", "wandb", "trackio", "all", "none"]


@dataclass
class DataArguments:
    """Which scans are used, and how they are split."""

    data: str = setting("", "Folder made by training.prepare.", example="runs/dataset", required=True)
    splits: str | None = setting(
        None, "Split file (JSON) of subject-wise folds; made by training.splits.", group="subjects"
    )
    fold: int | None = setting(None, "Fold whose test subjects are kept out. Needs --splits.")
    validation_fraction: float = setting(
        0.0, "Part of the training subjects held back to choose the epoch. 0: train for all epochs, no choice."
    )

    def __post_init__(self) -> None:
        """Refuse settings out of range, before any data are read."""
        require_choices(self)
        if (self.splits is None) != (self.fold is None):
            raise ValueError("Give both splits (a split file) and fold, or neither to train on every subject.")


@dataclass
class LoopArguments(DataArguments):
    """The training loop, the same for both stages."""

    output: str = setting(
        "",
        "Folder for the checkpoint and its records. Refused if it already holds results.",
        example="runs/trained",
        required=True,
    )
    epochs: int = setting(40, "Passes over the training subjects.", group="optimisation")
    batch_size: int = setting(16, "Scans per process and forward pass.")
    gradient_accumulation_steps: int = setting(1, "Batches per optimisation step.")
    total_batch_size: int = setting(
        0,
        "Scans per optimisation step over all processes, the same on any number of them: batch_size then is an upper "
        "limit, and accumulation follows. 0: batch_size x processes x gradient_accumulation_steps.",
    )
    optimizer: Literal["adamw", "adafactor"] = setting(
        "adamw", '"adamw", or "adafactor": no copies of the weights in memory, for large models on small machines.'
    )
    learning_rate: float = setting(1e-3, "Peak learning rate; cosine decay to zero (paper: 1e-4 at 147M).")
    weight_decay: float = setting(0.1, "Weight decay of weight matrices; biases and norms have none.")
    warmup_fraction: float = setting(0.1, "Part of the steps over which the learning rate rises.")
    max_grad_norm: float = setting(1.0, "Gradients are clipped to this norm.")
    input_noise: float = setting(
        0.0,
        "Standard deviation of symmetric Gaussian noise on training FC; 0 for none. Not for models with edge_readout, "
        "whose matrix logarithm such noise ruins.",
    )
    mixup: float = setting(
        0.0,
        "Mix pairs of scans, and their losses, by a share drawn from Beta(mixup, mixup); 0: never. 1 suits cohorts "
        "of hundreds, where it is the regulariser that helps most.",
    )
    mixup_of: Literal["fc", "log_fc"] = setting(
        "fc",
        '"fc": the edge read-out takes the logarithm of mixed FC; "log_fc": logarithms are mixed, too, and computed '
        "once per scan: about a quarter faster. Needs whole scans without noise.",
    )
    atlas_dropout: float = setting(
        0.0,
        "Probability of a training scan to lose each of its atlases, but never the last one: for models of several "
        "atlases, which then do with one.",
    )
    class_weights: Literal["none", "balanced"] = setting(
        "none",
        '"none", or "balanced": in every categorical variable each label has the same share in the loss, whatever its '
        "frequency in the training labels.",
    )
    window_volumes: int = setting(
        0,
        "Train on FC of a random window of so many volumes, another one in every epoch; 0: on the whole scan. Needs "
        "data prepared with --keep_time_series. Predictions always use the whole scan.",
    )
    window_fraction: float = setting(
        0.0, "Instead: windows of a random length between this part of a scan and the whole scan; 0: not."
    )
    momentum_epochs: int = setting(5, "Length of the momentum stage (the mean over layers is supervised).")
    adaptive: Supervision = setting(
        "momentum",
        'Supervision after it: "momentum", "adaptive" (layer per variable), "adaptive_per_sample" (research code), or '
        '"last_layer".',
    )
    patience: int = setting(0, "Stop after so many epochs without a better validation loss; 0: never.")
    mixed_precision: Literal["no", "bf16", "fp16"] = setting(
        "no", "Type of the products; weights stay float32.", group="memory, interruptions and records"
    )
    activation_checkpointing: bool = setting(False, "Recompute activations in the backward pass: less memory, slower.")
    checkpoint_every: int = setting(5, "Epochs between resumable checkpoints; 0: none.")
    checkpoint_every_steps: int = setting(0, "Also after so many optimisation steps within an epoch; 0: not.")
    keep_checkpoints: int = setting(2, "Resumable checkpoints kept; the oldest goes when a newer one is complete.")
    process_timeout: int = setting(600, "Seconds a process waits for another one before it takes it for lost.")
    resume: bool = setting(False, "Go on from the last checkpoint in --output.")
    seed: int = setting(0, "Seed of weights, order, dropout, noise and windows.")
    log_with: Tracker = setting(
        "tensorboard",
        'Experiment tracker that follows losses and learning rate: "tensorboard" (files in OUTPUT/run/logs), "wandb", '
        '"trackio", "all" that are installed, or "none".',
    )
    progress: bool = setting(True, "Show progress bars.")

    def __post_init__(self) -> None:
        """Refuse settings out of range, before any data are read."""
        super().__post_init__()
        for name in ("learning_rate", "weight_decay", "input_noise", "mixup"):
            _require(self, name, math.isfinite(getattr(self, name)), "must be a finite number")
        at_least_one = ("epochs", "batch_size", "gradient_accumulation_steps", "keep_checkpoints", "process_timeout")
        for name in at_least_one:
            _require(self, name, getattr(self, name) >= 1, "must be at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            _require(self, name, getattr(self, name) > 0, "must be above 0")
        not_negative = ("weight_decay", "input_noise", "mixup", "momentum_epochs", "patience", "total_batch_size")
        for name in (*not_negative, "checkpoint_every", "checkpoint_every_steps"):
            _require(self, name, getattr(self, name) >= 0, "must not be negative")
        _require(self, "window_volumes", self.window_volumes in (0, *range(10, 100_000)), "must be 0, or 10 or more")
        _require(self, "window_fraction", 0 <= self.window_fraction < 1, "must be 0, or lie between 0 and 1")
        if self.window_volumes and self.window_fraction:
            raise ValueError("Give window_volumes or window_fraction, not both.")
        if self.mixup_of == "log_fc" and (self.input_noise or self.window_volumes or self.window_fraction):
            raise ValueError(
                'mixup_of "log_fc" mixes logarithms that are computed once per scan, which noise and windows change: '
                'set input_noise, window_volumes and window_fraction to 0, or mixup_of to "fc".'
            )
        _require(self, "atlas_dropout", 0 <= self.atlas_dropout < 1, "must be 0, or lie between 0 and 1")
        _require(self, "warmup_fraction", 0 <= self.warmup_fraction <= 1, "must lie between 0 and 1")


def _require(arguments: Any, name: str, valid: bool, need: str) -> None:
    if not valid:
        raise ValueError(f"{name} {need}, got {getattr(arguments, name)!r}.")


@dataclass
class PretrainArguments(LoopArguments):
    """Pretrain on brain-environment interactions: predict every BEI variable from FC."""

    categorical: list[str] = setting(
        ["sex"], "Phenotype columns with labels to learn from.", group="what is learnt", example="sex diagnosis"
    )
    continuous: list[str] = setting(["age"], "Phenotype columns with numbers to learn from.")
    atlas: str | None = setting(None, "Atlas to learn from alone. Default: all that the data have.", example="aal-116")
    vocabulary: str | None = setting(
        None, "Folder of a saved BEI tokenizer, instead of a vocabulary built from the training records."
    )
    positive: list[str] = setting(
        [],
        "Positive label of variables with two labels, as VARIABLE=LABEL. Default: what the data set "
        "declares, else the last in alphabetical order that is no comparison group such as control.",
    )
    size: Size = setting("nano", "Named size.", group="model")
    hidden_size: int | None = setting(None, "Overrides the size's width.")
    num_hidden_layers: int | None = setting(None, "Overrides the size's depth.")
    num_attention_heads: int | None = setting(None, "Overrides the size's heads.")
    intermediate_size: int | None = setting(None, "Overrides the size's feed-forward width.")
    dropout: float | None = setting(None, "Overrides all three of the size's dropout rates.")
    edge_readout: bool | None = setting(None, "Overrides whether the size has an edge read-out (nano has).")


@dataclass
class FinetuneArguments(LoopArguments):
    """Fine-tune a pretrained checkpoint for one downstream variable."""

    checkpoint: str = setting(
        "",
        "Pretrained checkpoint: folder or Hub repository. Needed, but by the ridge head.",
        example="runs/pretrained/checkpoint",
    )
    task: str = setting("", "Phenotype column to predict.", example="diagnosis", required=True)
    kind: Literal["categorical", "continuous"] = setting(
        "categorical", '"categorical" (labels) or "continuous" (numbers).', group="task"
    )
    labels: list[str] | None = setting(
        None,
        "Class names in order; the last of two is the positive one. Default: sorted, of two the "
        "comparison group (control, healthy, ...) first.",
    )
    positive: str | None = setting(
        None,
        "The positive one of two labels, of which sensitivity, F1 and ROC AUC speak. Default: the last of labels.",
    )
    labels_per_class: int | None = setting(None, "Use only so many labelled scans per class (few-label studies).")
    head: Literal["decoder", "ridge"] = setting(
        "decoder",
        '"decoder": training by gradients; "ridge": an edge read-out in closed form, for small cohorts. A checkpoint '
        "with a closed-form read-out of the task is its prior; without a checkpoint there is none.",
    )
    site_relative: Literal["never", "auto", "always"] = setting(
        "never",
        "Of the ridge head: compare scans with the mean of their site (column site), for predictions at new sites: "
        '"never"; "auto": as far as that helps at training sites that are left out; "always".',
    )
    new_tokens: Literal["random", "related"] = setting(
        "random",
        'Start of a new task\'s tokens: "random" (as in the paper) or "related" (pretrained tokens whose predictions '
        "follow the training labels; only where the task is known to be a matter of a pretrained variable).",
    )
    trainable: Literal["all", "tokens"] = setting(
        "all",
        '"all", or "tokens": only the read-out and the tokens of the task (all tokens, where pretrained ones train '
        "too) are trained; everything else, the batch norm's statistics included, stays as it was pretrained.",
    )
    frozen_layers: int = setting(
        0, "So many decoder layers, from the first one on, and the stem with its batch norm stay as pretrained."
    )
    decay_towards: Literal["pretrained", "zero"] = setting(
        "zero",
        'Where weight_decay draws the weight matrices: "zero", or "pretrained": to the values that fine-tuning starts '
        "from. With a weight_decay of 10 or more, few labels then move only what they move far.",
    )
    layer_decay: float = setting(
        1.0, "The learning rate falls by this factor from the read-out to the last layer, and so on down to the stem."
    )
    adapter: Literal["none", "lora", "dora", "rslora"] = setting(
        "none", '"none", or low-rank updates of attention and feed-forward: "lora", "dora" or "rslora".'
    )
    lora_rank: int = setting(0, 'Rank of the adapter, 8 if there is one; with a rank alone, it is "lora".')
    pseudo_labels: Literal["none", "recorded", "defaults", "model"] = setting(
        "none",
        'Training of the pretrained tokens: "none"; "recorded" (the subjects\' own records); "defaults" (also the '
        "vocabulary's default labels where nothing is recorded); \"model\" (also the pretrained model's own confident "
        "predictions).",
    )
    default_labels: list[str] | None = setting(
        None,
        'Tokens that pseudo_labels="defaults" takes for subjects of whom nothing is recorded, e.g. '
        "'adhd=control'; they replace the vocabulary's own.",
    )
    pseudo_label_threshold: float = setting(0.9, 'Least probability of a pseudo-label with pseudo_labels="model".')

    def __post_init__(self) -> None:
        """Refuse settings out of range, before any data are read."""
        super().__post_init__()
        _require(self, "lora_rank", self.lora_rank >= 0, "must not be negative")
        if self.adapter == "none" and self.lora_rank:
            self.adapter = "lora"
        if self.adapter != "none" and not self.lora_rank:
            self.lora_rank = 8
        _require(self, "frozen_layers", self.frozen_layers >= 0, "must not be negative")
        _require(self, "layer_decay", 0 < self.layer_decay <= 1, "must lie above 0 and not above 1")
        if self.trainable == "tokens" and (self.adapter != "none" or self.frozen_layers):
            raise ValueError('trainable="tokens" leaves the layers alone: set adapter to none and frozen_layers to 0.')
        if self.default_labels and self.pseudo_labels not in ("defaults", "model"):
            raise ValueError("default_labels are used with pseudo_labels set to defaults or model only: set it, too.")
        if self.positive is not None and self.kind != "categorical":
            raise ValueError(f"positive is {self.positive!r}, but {self.task!r} is continuous: leave it out.")
        if self.head == "ridge" and (self.validation_fraction or self.adapter != "none"):
            raise ValueError('head="ridge" is chosen by leaving scans out: leave out validation_fraction and adapter.')
        if self.head != "ridge" and self.site_relative != "never":
            raise ValueError("site_relative is for the ridge head: set head to ridge, or leave it out.")
        _require(self, "pseudo_label_threshold", 0 <= self.pseudo_label_threshold <= 1, "must lie between 0 and 1")


@dataclass
class PlanArguments:
    """What fits where: memory of training and prediction, by arithmetic."""

    size: Size = setting("147m", "Named size.")
    mode: Literal["", "pretrain", "finetune", "lora", "predict"] = setting("", "What is planned; default: all four.")
    gpus: str = setting("", "Number and memory; without, the CPU and --memory.", example="1x24GB")
    memory: float = setting(0.0, "Gigabytes of main memory; 0: this machine's.")
    batch_size: int = setting(8, "Scans per process and forward pass.")
    regions: int = setting(116, "Regions of the atlas.")
    atlases: list[str] = setting(
        [], "Instead of regions: the atlases of a model of several, by id.", example="aal-116 harvard-oxford-111"
    )
    tokens: int = setting(31, "BEI tokens: one per label and per continuous variable.")
    lora_rank: int = setting(8, "Rank of the adapters.")

    def __post_init__(self) -> None:
        """Refuse what cannot be planned."""
        require_choices(self)
        for name, least in (("batch_size", 1), ("regions", 1), ("lora_rank", 1), ("tokens", 3)):
            _require(self, name, getattr(self, name) >= least, f"must be at least {least}")
        _require(self, "memory", 0 <= self.memory < math.inf, "must be a finite number, and not negative")
