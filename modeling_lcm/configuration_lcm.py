"""Configuration of the Large Connectome Model: architecture, BEI variables, supervision stage and read-out."""

from collections.abc import Iterable
from dataclasses import field
from itertools import accumulate
from typing import Any, cast

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import logging

from .config_checks_lcm import (
    UNNAMED,
    check_atlases,
    check_choice,
    check_class_weights,
    check_closed_form,
    check_memory,
    check_names,
    check_task,
    check_variables,
    is_json,
)
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
    # The decoder is there in name only: variables are fitted in closed form, or learnt from their edges alone.
    "linear": {
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 4,
        "normalize_rows": True,
        "edge_readout": True,
        "edge_bias": True,
        "edge_shrinkages": [0.05, 0.2, 0.6],
    },
}

SUPERVISIONS = ("momentum", "adaptive", "adaptive_per_sample", "last_layer")
READOUTS = ("auto", "mean", "max", "best_layer", "last_layer")
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
            Regions of the atlas: both the number of memory vectors and the length of each region's FC row. With
            `atlases` it follows from them: the regions of all.
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
            how strongly a subject's whole brain correlates. The published models do not; the nano size does.
        edge_readout (`bool`, *optional*, defaults to `False`):
            Beyond the paper: every token also has a weight for every edge of the FC matrix's logarithm, and the sum is
            added to its logits after each layer. With a few hundred subjects this carries most of what can be learnt.
            The published models do not have it; the nano size does.
        edge_shrinkage (`float`, *optional*, defaults to 0.2):
            Share of the identity in the matrix before its logarithm, which FC of short scans needs to have full rank.
        edge_shrinkages (`list[float]`, *optional*):
            Several shares instead of one: the edges after each, side by side. Defaults to `edge_shrinkage` alone.
        edge_bias (`bool`, *optional*, defaults to `False`): Whether the edge read-outs have a bias.
        atlases (`dict[str, dict]`, *optional*):
            Beyond the paper: the atlases that the model reads, by id (`"aal-116"`, in alphabetical order), each with
            `num_regions` and, where they are known, `region_names`. Several atlases have a stem and edge read-outs
            each, and share tokens and decoder, whose memory is the regions of whichever atlases a scan has.
        closed_form (`dict[str, dict[str, dict]]`, *optional*):
            Beyond the paper: variables whose edge read-outs were fitted in closed form, by the atlases that a read-out
            needs (`"aal-116"`, or `"aal-116+harvard-oxford-111"`) and the variable's name, with the record of the fit:
            `prevalence` of the labels, what a later fit needs to take it as prior, and scores. Such a variable's
            logits are those of its edges alone, with labels as if all were equally frequent.
        supervision (`str`, *optional*, defaults to `"momentum"`):
            What the loss supervises. `"momentum"`: the mean of the logits over layers (stage 1 of the paper).
            `"adaptive"`: for each BEI variable the layer with the lowest running loss (a sound form of stage 2).
            `"adaptive_per_sample"`: for each subject the layer whose logit of the *true* class is highest (stage 2 as
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
    edge_shrinkages: list | None = None
    edge_bias: bool = False
    atlases: dict | None = None
    closed_form: dict | None = None
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
        check_atlases(self.atlases)
        # config.json is written with its keys in order; before and after, the atlases' order is the same.
        self.atlases, self.closed_form = (
            each and dict(sorted(each.items())) for each in (self.atlases, self.closed_form)
        )
        self.num_regions = sum(self.atlas_regions.values())
        for name in kwargs.keys() - vars(self).keys():  # Transformers drops what it knows from text generation
            if not self._is_setting(name):
                setattr(self, name, kwargs[name])
        if new:
            logger.warning_once(
                f"LCMConfig has no settings {', '.join(map(ascii, sorted(new)))}: they are kept, and change nothing."
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
            size (`str`): `"nano"` (CPU), `"147m"`, `"735m"` or `"1.2b"` (the published ones, paper section 4.1), or
                `"linear"` (edges alone).
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
        changed = sorted(name for name, value in content.items() if not is_json(value))
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
    def token_slices(self) -> dict[str | None, slice]:
        """Numbers of the tokens of every variable, a `slice` by its name; those of a new downstream task come last."""
        sizes: dict[str | None, int] = {
            variable["name"]: max(1, len(variable["labels"])) for variable in self.bei_variables
        }
        if not self.task_is_pretrained:
            sizes[self.task_variable] = cast(int, self.num_labels)
        ends = list(accumulate(sizes.values()))
        return {name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)}

    @property
    def bei_names(self) -> list[str]:
        """Names of the pretrained variables, in token order."""
        return [variable["name"] for variable in self.bei_variables]

    @property
    def atlas_regions(self) -> dict[str, int]:
        """Regions of every atlas, by its id."""
        return {name: atlas["num_regions"] for name, atlas in (self.atlases or {}).items()} or {
            UNNAMED: self.num_regions
        }

    @property
    def shrinkages(self) -> list[float]:
        """Shares of the identity before the logarithm, in the order of the edges."""
        return self.edge_shrinkages or [self.edge_shrinkage]

    def num_edges(self, atlases: Iterable[str]) -> int:
        """Edges of some atlases together: pairs of different regions, once for every shrinkage."""
        pairs = sum(regions * (regions - 1) // 2 for name, regions in self.atlas_regions.items() if name in atlases)
        return pairs * len(self.shrinkages)

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
        check_memory(self.num_hidden_layers, self.dtype)
        check_names("architectures", self.architectures)
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
        for share in self.edge_shrinkages or []:
            if not 0 < share < 1:
                raise ValueError(f"edge_shrinkages must lie between 0 and 1, got {self.edge_shrinkages}.")
        if self.bei_loss_weight < 0:
            raise ValueError(f"bei_loss_weight must not be negative, got {self.bei_loss_weight}.")
        check_choice("supervision", self.supervision, SUPERVISIONS)
        check_choice("readout", self.readout, READOUTS)
        if self.problem_type is not None:
            check_choice("problem_type", self.problem_type, PROBLEM_TYPES)
        check_variables(self.bei_variables)
        check_atlases(self.atlases)
        check_closed_form(self.closed_form, self.atlas_regions, self.token_slices, self.edge_readout)
        check_task(self)
        check_class_weights(self)
