"""What all Large Connectome Models share: initialisation, strict loading and saving, adapters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import logging

from .adapter_checks_lcm import refuse_inexact, refuse_mixed_batch, refuse_unmerged
from .adapter_loading_lcm import check_adapter, put_adapter, refuse_adapter_alone
from .configuration_lcm import LCMConfig
from .edges_lcm import LCMEdgeFeatures
from .loading_lcm import BUILT_IN, RENAMED, check_loaded, check_saveable, hub_arguments, new_names, without_load_report
from .loss_lcm import UNSEEN, LayerChoice
from .readouts_lcm import LCMEdgeReadouts


logger = logging.get_logger("transformers.models.lcm")  # so that Transformers' verbosity rules it


class LCMPreTrainedModel(PreTrainedModel):
    """Initialisation, strict loading and strict saving, shared by all Large Connectome Models."""

    config: LCMConfig
    base_model_prefix = "model"
    main_input_name = "connectivity"
    input_modalities = "time"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LCMDecoderLayer", "LCMStem"]  # noqa: RUF012 (Transformers' own declaration)
    _supports_sdpa = True
    _supports_attention_backend = True
    # The loss averages over the labels of this batch; Trainer must then do its own division when it accumulates.
    accepts_loss_kwargs = False
    is_packed = False  # `quantization_lcm.pack` sets it
    if not hasattr(PreTrainedModel, "activation_checkpointing_enable"):  # Transformers before 5.23
        activation_checkpointing_enable = PreTrainedModel.gradient_checkpointing_enable  # type: ignore[assignment]
        activation_checkpointing_disable = PreTrainedModel.gradient_checkpointing_disable
        is_activation_checkpointing = PreTrainedModel.is_gradient_checkpointing
    _checkpoint_conversion_mapping = RENAMED  # PEFT's loaders look for it

    def __init__(self, config: LCMConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self._built = {name: getattr(config, name) for name in BUILT_IN}
        self.register_load_state_dict_pre_hook(new_names)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "peft_config":  # PEFT puts it here when it has changed the model
            refuse_inexact(self, value)
        super().__setattr__(name, value)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, adapter_names: Any = None, **kwargs: Any) -> Iterator[None]:
        """PEFT enters this where an adapter's method has no such thing, and passes over `adapter_names`."""
        refuse_mixed_batch(adapter_names)
        yield

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            if getattr(module, "starts_at_zero", False):  # an edge read-out: untrained, it changes nothing
                init.zeros_(module.weight)
            else:
                init.xavier_uniform_(module.weight)
            if cast(Tensor | None, module.bias) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight)
        elif isinstance(module, (nn.LayerNorm, nn.BatchNorm1d)):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            if isinstance(module, nn.BatchNorm1d):
                buffers = dict(module.named_buffers(recurse=False))
                init.zeros_(buffers["running_mean"])
                init.ones_(buffers["running_var"])
                init.zeros_(buffers["num_batches_tracked"])
        elif isinstance(module, LCMEdgeFeatures):
            init.zeros_(module.mean)
            init.zeros_(module.batches)
        elif isinstance(module, LCMEdgeReadouts):
            for weights in module.parameters(recurse=False):
                init.zeros_(weights)
        elif isinstance(module, LayerChoice):
            init.constant_(module.running_loss, UNSEEN)
            init.constant_(module.best_layer, module.running_loss.shape[1] - 1)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a model as in Transformers, but strictly: weights that do not fit are an error, never a warning.

        A head's own weights may be new (a pretrained model loaded for a downstream task) or left aside (a head's
        checkpoint loaded as [`LCMModel`]); every other tensor has to be in the file, and in the model.

        Raises:
            ValueError: tensors are missing, left over or of another shape (each is named), the weights file is
                damaged, or the folder holds an adapter alone.
        """
        with_info = kwargs.pop("output_loading_info", False)
        may_differ = kwargs.pop("ignore_mismatched_sizes", False)
        kwargs["key_mapping"] = RENAMED | (kwargs.get("key_mapping") or {})
        try:
            # Transformers' own error on other shapes does not name the tensors; `check_loaded` does.
            with without_load_report():
                loaded: Any = super().from_pretrained(
                    pretrained_model_name_or_path,
                    *args,
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    **kwargs,
                )
        except SafetensorError as error:
            raise ValueError(
                f"The weights of {pretrained_model_name_or_path} cannot be read ({error}): the file is truncated or "
                "damaged. Download or copy it again."
            ) from error
        except OSError:
            refuse_adapter_alone(pretrained_model_name_or_path, **hub_arguments(kwargs))
            raise
        model, info = loaded
        kinds = {kind.__name__: kind for kind in LCMPreTrainedModel.__subclasses__()}
        saved_as = kinds.get((model.config.architectures or [""])[0], type(model))
        model.untrained = fresh = check_loaded(model, info, may_differ, saved_as)
        if fresh:
            logger.warning(
                "New in this %s, not from %s: %s. Train them before you use the predictions.",
                cls.__name__,
                pretrained_model_name_or_path,
                ", ".join(fresh),
            )
        return (model, info) if with_info else model

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> Any:
        """Return the BEI token embeddings; their number follows from the vocabulary and is never changed by itself.

        Args:
            new_num_tokens (`int`, *optional*): the number that there are, with or without a new task's tokens, as
                language models' scripts and PEFT ask for; any other one is refused.
            pad_to_multiple_of (`int`, *optional*): as `new_num_tokens`.
            mean_resizing (`bool`): not used.

        Raises:
            ValueError: another number; the model stays as it is.
        """
        present = self.config.num_bei_tokens
        of_task = self.config.num_task_tokens if hasattr(self, "task_embeddings") else 0
        asked = present if new_num_tokens is None else new_num_tokens
        if asked in (present, present + of_task) and not asked % (pad_to_multiple_of or 1):
            return self.get_input_embeddings()
        raise ValueError(
            f"BEI tokens belong to variables, so this model keeps its {present}, and is not resized to {asked}: add a "
            "variable to the vocabulary with BEITokenizer.add_variable(variable, task=True), and load the model with "
            "from_pretrained(..., task_variable=its name, id2label=its labels)."
        )

    def train(self, mode: bool = True) -> Any:
        """Training mode as in PyTorch; a packed model has none.

        Raises:
            ValueError: the model is packed for prediction.
        """
        if mode and self.is_packed:
            raise ValueError("A packed model is for prediction only: load it without quantization_config to train it.")
        return super().train(mode)

    def load_adapter(
        self, peft_model_id: Any = None, adapter_name: str | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load an adapter as in Transformers, but only onto the base that it was made for, with its task.

        PEFT itself reads the files: Transformers' own loader asks for PEFT releases that may not be out, and has left
        out what an adapter trains whole. Without a place (`peft_config` and `adapter_state_dict` are given), or to
        exchange weights in place (`hotswap=True`), Transformers' loader is used.

        Args:
            peft_model_id: Folder or Hub repository of the adapter.
            adapter_name: What to call it; "default" by default.
            *args: As in Transformers.
            **kwargs: As in Transformers; of these, `is_trainable` says whether it will be trained further, and
                `adapter_kwargs`, `revision`, `token`, `cache_dir` and `local_files_only` where on the Hub to look.

        Raises:
            ValueError: the adapter was made for other regions, another vocabulary, size or other weights, for another
                number of task tokens than this model has, or does not fit; or there is one of that name already.
            ImportError: PEFT is not installed.
        """
        if peft_model_id is None or args or kwargs.get("hotswap") is True:
            return super().load_adapter(peft_model_id, adapter_name, *args, **kwargs)
        hub = hub_arguments(kwargs) | hub_arguments(kwargs.get("adapter_kwargs") or {})
        config = check_adapter(self, peft_model_id, **hub)
        if config is not None and config.num_task_tokens != self.config.num_task_tokens:
            raise ValueError(
                f"The adapter {peft_model_id} brings {config.num_task_tokens} tokens of its task, this model has "
                f"{self.config.num_task_tokens}: load the base for that task, with from_pretrained(base, "
                "**modeling_lcm.adapter_task(adapter))."
            )
        is_trainable = bool(kwargs.get("is_trainable", False))
        return put_adapter(self, peft_model_id, adapter_name or "default", is_trainable, **hub)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Save as in Transformers, but only what will load again as the same model.

        Raises:
            ValueError: the configuration was changed so that it no longer describes the model, or holds what
                `config.json` cannot; `state_dict` does not have exactly this model's tensors; or a `PeftModel` around
                this model has put adapters into it.
        """
        if not getattr(self, "_hf_peft_config_loaded", False):
            refuse_unmerged(self)
        check_saveable(self, self._built, kwargs.get("state_dict"))
        # Never back to the names of an earlier version that the model may have been loaded from.
        return super().save_pretrained(save_directory, *args, **{"save_original_format": False, **kwargs})
