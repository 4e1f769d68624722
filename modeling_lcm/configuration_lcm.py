"""Configuration of the Large Connectome Model: architecture, BEI variables, supervision stage and read-out."""

from collections.abc import Iterable
from dataclasses import field
from typing import Any, cast

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import logging

from .settings_lcm import refuse_misspelt


logger = logging.get_logger("transformers.models.lcm")  # so that Transformers' verbosity rules it

# Widths and depths of the published models (paper, section 4.1), and a CPU size for demos, tests and small cohorts.
SIZES: dict[str, dict[str, Any]] = {
    "nano": {
        "hidden_size": 64,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "normalize_rows": True,
        "edge_readout": True,
        "hidden_dropout": 0.3,
        "attention_dropout": 0.3,
        "activation_dropout": 0.3,
    },
    "147m": {"hidden_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 768},
    "735m": {"hidden_size": 2048, "num_hidden_layers": 20, "num_attention_heads": 8, "intermediate_size": 768},
    "1.2b": {"hidden_size": 2048, "num_hidden_layers": 32, "num_attention_heads": 8, "intermediate_size": 768},
}

SUPERVISIONS = ("momentum", "adaptive", "adaptive_per_sample", "last_layer")
READOUTS = ("auto", "mean", "max", "best_layer", "last_layer")
BEI_KINDS = ("categorical", "continuous")
PROBLEM_TYPES = ("regression", "single_label_classification", "multi_label_classification")

# Where Auto classes find the code of a saved folder when this package is not installed (`trust_remote_code=True`).
AUTO_MAP = {
    "AutoConfig": "configuration_lcm.LCMConfig",
    "AutoModel": "modeling_lcm.LCMModel",
    "AutoModelForPreTraining": "modeling_lcm.LCMForMultitaskPretraining",
    "AutoModelForSequenceClassification": "modeling_lcm.LCMForSequenceClassification",
}


class NotTextError(AttributeError, ValueError):
    """Something was asked for that only a language model has."""


def default_bei_variables() -> list[dict[str, Any]]:
    """Sex (male, female) and age: the two BEI variables that every cohort of the paper has.

    Age is unscaled (years), and its squared error weighs 1e-4, as in the research code.
    """
    return [
        {"name": "sex", "kind": "categorical", "labels": ["M", "F"], "loss_weight": 1.0},
        {"name": "age", "kind": "continuous", "labels": [], "loss_weight": 1e-4},
    ]


@strict
class LCMConfig(PreTrainedConfig):
    r"""Configuration of [`LCMModel`], [`LCMForMultitaskPretraining`] and [`LCMForSequenceClassification`].

    Architecture (paper, section 3): a stem turns each region's row of the functional-connectivity matrix into a
    memory vector; `num_hidden_layers` decoder layers let brain-environment-interaction (BEI) tokens read that memory.

    Args:
        num_regions (`int`, *optional*, defaults to 116):
            Regions of the atlas: both the number of memory vectors and the length of each region's FC row.
        bei_variables (`list[dict]`, *optional*):
            The pretrained vocabulary in token order: `name`, `kind` ("categorical" or "continuous"), `labels` (one
            token each; empty for a continuous variable, which has one token) and `loss_weight`. Usually
            `tokenizer.model_variables`. Defaults to sex and age.
        hidden_size (`int`, *optional*, defaults to 2048): Width d of memory and tokens.
        num_hidden_layers (`int`, *optional*, defaults to 4): Decoder layers L.
        num_attention_heads (`int`, *optional*, defaults to 8): Heads of self- and cross-attention.
        intermediate_size (`int`, *optional*, defaults to 768): Width of the feed-forward block.
        hidden_dropout (`float`, *optional*, defaults to 0.1): Dropout after each block.
        attention_dropout (`float`, *optional*, defaults to 0.1): Dropout on attention weights.
        activation_dropout (`float`, *optional*, defaults to 0.1): Dropout inside the feed-forward block.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of the layer norms.
        batch_norm_eps (`float`, *optional*, defaults to 1e-5): Epsilon of the stem's batch norm.
        batch_norm_momentum (`float`, *optional*, defaults to 0.1): Momentum of the stem's running statistics.
        normalize_rows (`bool`, *optional*, defaults to `False`):
            Beyond the paper: centre and scale every FC row to mean 0 and deviation 1 before the stem, which takes away
            how strongly a person's whole brain correlates. The published models do not; the nano size does.
        edge_readout (`bool`, *optional*, defaults to `False`):
            Beyond the paper: every token also has a weight for every edge of the FC matrix's logarithm, and the sum is
            added to its logits after each layer. With a few hundred people this carries most of what can be learnt.
            The published models do not have it; the nano size does.
        edge_shrinkage (`float`, *optional*, defaults to 0.2):
            Share of the identity in the matrix before its logarithm, which FC of short scans needs to have full rank.
        supervision (`str`, *optional*, defaults to `"momentum"`):
            What the loss supervises. `"momentum"`: the mean of the logits over layers (stage 1 of the paper).
            `"adaptive"`: for each BEI variable the layer with the lowest running loss (a sound form of stage 2).
            `"adaptive_per_sample"`: for each person the layer whose logit of the *true* class is highest (stage 2 as
            in the research code; it lets the loss vanish without learning, so use it for comparison only).
            `"last_layer"`: the last layer alone, as in an ordinary decoder (for comparison).
        readout (`str`, *optional*, defaults to `"auto"`):
            How layer logits become logits at inference: `"mean"`, `"max"` (categorical; continuous use the mean),
            `"best_layer"` (the layer chosen per variable, saved with the weights) or `"last_layer"`. `"auto"` follows
            the supervision: momentum -> mean, adaptive -> best_layer, adaptive_per_sample -> max, last_layer the same.
        layer_loss_momentum (`float`, *optional*, defaults to 0.95):
            Decay of the running loss that `"adaptive"` chooses layers by, per optimisation step.
        task_variable (`str`, *optional*):
            Name of the downstream task. If it names one of `bei_variables`, that variable's own tokens are fine-tuned;
            otherwise new tokens are placed beside the pretrained ones.
        bei_loss_weight (`float`, *optional*, defaults to 0.0):
            Weight of the pretrained variables' loss while fine-tuning (semi-supervised fine-tuning of the paper
            uses 1.0); 0 trains the downstream task alone.
        class_weights (`dict[str, list[float]]`, *optional*):
            Beyond the paper: weight of every label of a categorical variable in the training loss, by the name of the
            variable (`task_variable` for the downstream task). Variables that are not named weigh all labels alike.
        auto_map (`dict[str, str]`, *optional*):
            Where Auto classes find the code of a saved folder on a machine without this package.

    Whatever else is set on a configuration, such as a note of another tool, is saved and loaded again;
    `config.json` lists such names as `extra_keys`.

    Raises:
        ValueError: a value out of range, an argument that looks like a misspelt setting, or labels that contradict
            `problem_type`.
    """

    model_type = "large_connectome_model"
    # A list, because Trainer appends to it.
    keys_to_ignore_at_inference = [  # noqa: RUF012 (Transformers' own declaration)
        "layer_logits",
        "bei_logits",
        "hidden_states",
        "attentions",
        "cross_attentions",
    ]

    num_regions: int = 116
    bei_variables: list = field(default_factory=default_bei_variables)
    hidden_size: int = 2048
    num_hidden_layers: int = 4
    num_attention_heads: int = 8
    intermediate_size: int = 768
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    activation_dropout: float | int = 0.1
    layer_norm_eps: float = 1e-5
    batch_norm_eps: float = 1e-5
    batch_norm_momentum: float = 0.1
    normalize_rows: bool = False
    edge_readout: bool = False
    edge_shrinkage: float = 0.2
    supervision: str = "momentum"
    readout: str = "auto"
    layer_loss_momentum: float = 0.95
    task_variable: str | None = None
    bei_loss_weight: float | int = 0.0
    class_weights: dict | None = None
    problem_type: str | None = None  # type: ignore[assignment]  # checked below, by the same words in every release
    auto_map: dict = field(default_factory=lambda: dict(AUTO_MAP))

    def __post_init__(self, extra_keys: Iterable[str] = (), **kwargs: Any) -> None:
        new = {name: value for name, value in kwargs.items() if not self._is_setting(name) and name not in extra_keys}
        self._refuse_misspelt(new)
        super().__post_init__(**kwargs)
        for name in kwargs.keys() - vars(self).keys():  # Transformers drops what it knows from text generation
            if not self._is_setting(name):
                setattr(self, name, kwargs[name])
        if new:
            logger.warning_once(
                f"LCMConfig has no settings {', '.join(sorted(new))}: they are kept as they are, and change nothing."
            )
        # `strict` runs this too, but hides the ValueError in an exception of its own.
        self.validate_architecture()
        self._is_made = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a setting, or a note, with a warning if its name looks like a misspelt setting's."""
        if "_is_made" in vars(self):
            try:
                self._refuse_misspelt([name])
            except ValueError as error:
                logger.warning_once(f"{error} It is kept as a note, and changes nothing.")
        super().__setattr__(name, value)

    @classmethod
    def _is_setting(cls, name: str) -> bool:
        """Whether a name is ours or Transformers' own: a field, a property, or the public form of a private one."""
        is_own = name in cls.__dataclass_fields__ or hasattr(cls, name) or hasattr(cls, f"_{name}")
        return is_own or name.startswith("_")

    @classmethod
    def _refuse_misspelt(cls, names: Iterable[str]) -> None:
        own = sorted(set(cls.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__))
        others = [name for name in names if not cls._is_setting(name)]
        refuse_misspelt("LCMConfig", others, [*own, "num_labels", "id2label", "label2id", "problem_type"])

    def to_dict(self) -> dict[str, Any]:
        """All settings and notes, as saved; `extra_keys` names the notes, which are no misspelt settings then."""
        extra = sorted(name for name in vars(self) if not self._is_setting(name))
        content = super().to_dict() | ({"extra_keys": extra} if extra else {})
        content.pop("_is_made", None)
        return content

    def __getattr__(self, name: str) -> Any:
        if name == "vocab_size":  # PEFT's prompt learning asks for it
            raise NotTextError(
                "A Large Connectome Model has no vocab_size: it reads connectomes, and no prompt can be put "
                "before them (prompt, prefix and P-tuning). Adapt its layers instead, with LoRA, DoRA or IA3."
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @classmethod
    def from_size(cls, size: str, **overrides: Any) -> "LCMConfig":
        """Build the configuration of a named size.

        Args:
            size (`str`): `"nano"` (CPU), `"147m"`, `"735m"` or `"1.2b"` (the published ones, paper section 4.1).
            **overrides: Any other setting of the configuration.

        Raises:
            ValueError: the size is not known.
        """
        if size not in SIZES:
            raise ValueError(f"Unknown size {size!r}: choose one of {', '.join(SIZES)}.")
        return cls(**{**SIZES[size], **overrides})

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration from `config.json`'s content and settings that replace some of it.

        Raises:
            ValueError: it is the configuration of another model type, or a name looks like a misspelt setting.
        """
        found = config_dict.get("model_type", cls.model_type)
        if found != cls.model_type:
            raise ValueError(
                f"This is the configuration of a {found!r} model, not of a Large Connectome Model "
                f"({cls.model_type!r})."
            )
        cls._refuse_misspelt(kwargs)  # Transformers hands back what it does not know, or drops it
        return super().from_dict(config_dict, **kwargs)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save as in Transformers, but look first whether all of it can be saved.

        Raises:
            ValueError: see [`check_saveable`].
        """
        self.check_saveable()
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def check_saveable(self) -> None:
        """Raise `ValueError` if a value is out of range, or would not come back from `config.json` as it is."""
        self.validate_architecture()
        content = self.to_dict()
        content["id2label"] = {str(number): label for number, label in (self.id2label or {}).items()}
        changed = sorted(name for name, value in content.items() if not _is_json(value))
        if changed:
            named = ", ".join(f"{name} ({type(content[name]).__name__})" for name in changed)
            raise ValueError(
                f"config.json cannot hold {named}: it takes texts, numbers, lists, and dictionaries with texts as "
                "keys. Set such a value, or remove it."
            )

    @property
    def num_bei_tokens(self) -> int:
        """Pretrained tokens P: one per label of a categorical variable, one per continuous variable."""
        return sum(max(1, len(variable["labels"])) for variable in self.bei_variables)

    @property
    def num_edges(self) -> int:
        """Pairs of different regions."""
        return self.num_regions * (self.num_regions - 1) // 2

    @property
    def num_task_tokens(self) -> int:
        """New tokens of the downstream task; 0 when the task re-uses a pretrained variable's tokens."""
        return 0 if self.task_is_pretrained else cast(int, self.num_labels)

    @property
    def task_is_pretrained(self) -> bool:
        """Whether the downstream task is one of the pretrained variables."""
        return any(variable["name"] == self.task_variable for variable in self.bei_variables)

    @property
    def effective_readout(self) -> str:
        """The read-out in force: `readout`, or what `supervision` implies when it is `"auto"`."""
        if self.readout != "auto":
            return self.readout
        implied = {"momentum": "mean", "adaptive": "best_layer", "adaptive_per_sample": "max"}
        return implied.get(self.supervision, self.supervision)

    def validate_architecture(self) -> None:
        """Check ranges and combinations of settings; raises `ValueError` naming the offending values."""
        for name in ("num_regions", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads})."
            )
        for name in ("hidden_dropout", "attention_dropout", "activation_dropout", "layer_loss_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}.")
        if not 0 < self.edge_shrinkage < 1:
            raise ValueError(f"edge_shrinkage must lie between 0 and 1, got {self.edge_shrinkage}.")
        if self.bei_loss_weight < 0:
            raise ValueError(f"bei_loss_weight must not be negative, got {self.bei_loss_weight}.")
        _check_choice("supervision", self.supervision, SUPERVISIONS)
        _check_choice("readout", self.readout, READOUTS)
        if self.problem_type is not None:
            _check_choice("problem_type", self.problem_type, PROBLEM_TYPES)
        _check_variables(self.bei_variables)
        self._check_task()
        self._check_class_weights()

    def _check_task(self) -> None:
        for variable in self.bei_variables:
            if variable["name"] != self.task_variable or self.problem_type is None:
                continue
            expected = max(1, len(variable["labels"]))
            continuous = variable["kind"] == "continuous"
            if self.num_labels != expected or continuous != (self.problem_type == "regression"):
                raise ValueError(
                    f"The task re-uses the pretrained variable {self.task_variable!r} ({variable['kind']}, {expected} "
                    f"token(s)), but problem_type is {self.problem_type!r} with num_labels={self.num_labels}."
                )

    def _check_class_weights(self) -> None:
        labels = {variable["name"]: len(variable["labels"]) for variable in self.bei_variables}
        if self.task_variable is not None and self.problem_type == "single_label_classification":
            labels[self.task_variable] = cast(int, self.num_labels)
        for name, weights in (self.class_weights or {}).items():
            if len(weights) != labels.get(name) or not all(weight > 0 for weight in weights):
                raise ValueError(
                    f"class_weights of {name!r} are {weights}: needed is one weight above 0 for each of its "
                    f"{labels.get(name, 0)} labels. Categorical variables: "
                    f"{', '.join(key for key, count in labels.items() if count)}."
                )


def _is_json(value: Any) -> bool:
    """Whether JSON gives a value back; tuples become lists, as everywhere in Transformers."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_json(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_json, value))
    return value is None or isinstance(value, (str, int, float))


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def _check_variables(variables: list) -> None:
    keys = {"name", "kind", "labels", "loss_weight"}
    names = []
    for variable in variables:
        if not isinstance(variable, dict) or set(variable) != keys:
            raise ValueError(f"Each of bei_variables needs exactly the keys {sorted(keys)}, got {variable!r}.")
        name, kind, labels = variable["name"], variable["kind"], variable["labels"]
        names.append(name)
        _check_choice(f"kind of the BEI variable {name!r}", kind, BEI_KINDS)
        if kind == "continuous" and labels:
            raise ValueError(f"The continuous BEI variable {name!r} must not have labels, got {labels}.")
        if kind == "categorical" and (len(labels) < 2 or len(set(labels)) != len(labels)):
            raise ValueError(f"The categorical variable {name!r} needs two or more different labels, got {labels}.")
        if variable["loss_weight"] < 0:
            raise ValueError(f"loss_weight of {name!r} must not be negative, got {variable['loss_weight']}.")
    if len(set(names)) != len(names):
        raise ValueError(f"bei_variables must have different names, got {names}.")
    if not names:
        raise ValueError("bei_variables is empty: the model needs at least one BEI variable.")
