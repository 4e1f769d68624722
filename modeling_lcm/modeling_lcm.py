"""The Large Connectome Model: BEI tokens read a memory of brain regions, layer by layer.

Shapes use these names: batch B, regions N, BEI tokens P, hidden size d, decoder layers L.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .adapter_checks_lcm import check_adapters
from .attention_lcm import LCMAttention
from .configuration_lcm import LCMConfig
from .edges_lcm import LCMEdgeFeatures
from .fast_paths_lcm import fast_read_out, once
from .loss_lcm import (
    LayerChoice,
    TargetLayout,
    check_labels,
    multitask_loss,
    read_out,
    supervised_losses,
)
from .outputs_lcm import LCMModelOutput, LCMMultitaskOutput, LCMSequenceClassifierOutput
from .pretrained_lcm import LCMPreTrainedModel
from .stem_lcm import LCMStem


logger = logging.get_logger("transformers.models.lcm")  # so that Transformers' verbosity rules it


class LCMDecoderLayer(GradientCheckpointingLayer):
    """Self-attention among BEI tokens, cross-attention to the regions, feed-forward; each followed by add and norm.

    The tokens' embeddings act as positions: they are added to the queries and keys of self-attention and to the
    queries of cross-attention in every layer, never to values.
    """

    def __init__(self, config: LCMConfig) -> None:
        super().__init__()
        width, eps = config.hidden_size, config.layer_norm_eps
        self.self_attn = LCMAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.cross_attn = LCMAttention(config)
        self.cross_attn_layer_norm = nn.LayerNorm(width, eps=eps)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)
        self.final_layer_norm = nn.LayerNorm(width, eps=eps)
        self.activation = nn.ReLU()
        self.activation_dropout = nn.Dropout(config.activation_dropout)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: Tensor, query_embeds: Tensor, memory: Tensor) -> Tensor:
        """Let the tokens see each other, then the regions.

        Args:
            hidden_states (`Tensor` of shape `(batch, tokens, d)`): the tokens' states.
            query_embeds (`Tensor` of shape `(tokens, d)`): the tokens' embeddings.
            memory (`Tensor` of shape `(batch, regions, d)`): from the stem.

        Returns:
            The states after this layer, `(batch, tokens, d)`.
        """
        # All subjects start from one state, so that a batch of 1 stands for all of them until they read their memory.
        states = once(hidden_states)
        positioned = states + query_embeds
        attended, _ = self.self_attn(positioned, positioned, hidden_states)
        states = self.self_attn_layer_norm(states + self.dropout(attended))
        attended, _ = self.cross_attn(states + query_embeds, memory, memory)
        states = self.cross_attn_layer_norm(states + self.dropout(attended))
        expanded = self.fc2(self.activation_dropout(self.activation(self.fc1(states))))
        return self.final_layer_norm(states + self.dropout(expanded))


class LCMModel(LCMPreTrainedModel):
    """Stem, BEI token embeddings and decoder, without a head.

    The token state starts at zero; a token's embedding says what it asks for. Tokens see each other, so the states of
    one token depend on which others are present.
    """

    _can_record_outputs = {  # noqa: RUF012 (Transformers' own declaration)
        "hidden_states": LCMDecoderLayer,
        "attentions": OutputRecorder(LCMAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(LCMAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: LCMConfig) -> None:
        super().__init__(config)
        self.stem = LCMStem(config)
        self.bei_embeddings: nn.Module = nn.Embedding(config.num_bei_tokens, config.hidden_size)
        self.layers = nn.ModuleList(LCMDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The BEI token embeddings, `(bei tokens, hidden_size)`."""
        return self.bei_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the BEI token embeddings."""
        self.bei_embeddings = value

    def bei_queries(self, device: torch.device) -> Tensor:
        """Embeddings of all pretrained tokens, `(bei tokens, hidden_size)`."""
        # Called as a module rather than read as a weight, so that adapters and offloading hooks take part.
        # As a batch of one, because that is what hooks on input embeddings expect (NEFTune).
        return self.bei_embeddings(torch.arange(self.config.num_bei_tokens, device=device)[None])[0]

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        connectivity: Tensor,
        query_embeds: Tensor | None = None,
        score: nn.Linear | None = None,
        **kwargs: Any,
    ) -> LCMModelOutput:
        """Read the connectomes with BEI tokens.

        Args:
            connectivity (`Tensor` of shape `(batch, regions, regions)`): functional connectivity; Pearson r.
            query_embeds (`Tensor` of shape `(tokens, hidden_size)`, *optional*): token embeddings; defaults to all
                pretrained tokens.
            score (`nn.Linear`, *optional*): a head's read-out, `hidden_size` -> 1. With it, `layer_logits` are
                returned in place of `layer_states`.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, as everywhere in Transformers.

        Raises:
            ValueError: connectivity has another shape than `(batch, num_regions, num_regions)`.
        """
        check_adapters(self)
        regions = self.config.num_regions
        if connectivity.ndim != 3 or connectivity.shape[1:] != (regions, regions):
            raise ValueError(
                f"connectivity has shape {tuple(connectivity.shape)}, this model needs (batch, {regions}, {regions}). "
                "LCMProcessor makes such a batch from time series or FC matrices and checks the atlas."
            )
        memory = self.stem(connectivity)
        if query_embeds is None:
            query_embeds = self.bei_queries(memory.device)
        states = memory.new_zeros(1).expand(memory.shape[0], *query_embeds.shape)
        layer_states = []
        for layer in self.layers:
            states = layer(states, query_embeds, memory)
            layer_states.append(states)
        if score is not None:
            layer_logits = torch.stack([_read(state, self.norm, score) for state in layer_states], dim=1)
            return LCMModelOutput(last_hidden_state=self.norm(states), layer_logits=layer_logits)
        normed = self.norm(torch.stack(layer_states, dim=1))
        return LCMModelOutput(last_hidden_state=normed[:, -1], layer_states=normed)


def _read(states: Tensor, norm: nn.LayerNorm, score: nn.Linear) -> Tensor:
    """Layer norm and read-out of states `(batch, tokens, d)` -> `(batch, tokens)`."""
    logits = fast_read_out(states, norm, score)
    return score(norm(states))[..., 0] if logits is None else logits


class LCMForMultitaskPretraining(LCMPreTrainedModel):
    """LCM with one shared linear read-out for every BEI token: predicts all variables of the vocabulary at once."""

    def __init__(self, config: LCMConfig) -> None:
        super().__init__(config)
        self.model = LCMModel(config)
        self.score = nn.Linear(config.hidden_size, 1)
        if config.edge_readout:
            self.edge_features = LCMEdgeFeatures(config)
            self.bei_edge_readout = _edge_readout(config, config.num_bei_tokens)
        self.bei_layer_choice = _layer_choice(config, len(config.bei_variables))
        self.post_init()

    @property
    def target_layout(self) -> TargetLayout:
        """What `labels` and `logits` are about: every BEI variable."""
        return TargetLayout.from_variables(self.config.bei_variables, self.config.class_weights)

    @can_return_tuple
    def forward(
        self, connectivity: Tensor, labels: Tensor | None = None, target_counts: Tensor | None = None, **kwargs: Any
    ) -> LCMMultitaskOutput:
        """Predict every BEI variable.

        Args:
            connectivity (`Tensor` of shape `(batch, regions, regions)`): functional connectivity; Pearson r.
            labels (`Tensor` of shape `(batch, variables)`, *optional*): as the BEI tokenizer makes them: class index
                or scaled value, -100 where nothing was recorded.
            target_counts (`Tensor` of shape `(variables,)`, *optional*): recorded labels in the whole optimisation
                step, when this batch is a part of it.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, as everywhere in Transformers.

        Raises:
            ValueError: wrong shape of connectivity or labels, or a class index that does not exist.
        """
        check_adapters(self)
        outputs = self.model(connectivity, score=self.score, **kwargs)
        layer_logits = outputs.layer_logits
        if self.config.edge_readout:
            edges = self.edge_features(connectivity).to(self.bei_edge_readout.weight.dtype)
            layer_logits = layer_logits + self.bei_edge_readout(edges)[:, None]
        readout, best_layer = self.config.effective_readout, self.bei_layer_choice.best_layer
        return LCMMultitaskOutput(
            loss=None if labels is None else self.compute_loss(layer_logits, labels, target_counts),
            logits=read_out(layer_logits, self.target_layout, readout, best_layer),
            layer_logits=layer_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )

    def compute_loss(self, layer_logits: Tensor, labels: Tensor, target_counts: Tensor | None = None) -> Tensor:
        """Multitask loss of layer logits `(batch, layers, tokens)`; the arguments are those of `forward`."""
        return _loss(self, layer_logits, labels, self.target_layout, self.bei_layer_choice, target_counts)


class LCMForSequenceClassification(LCMPreTrainedModel):
    """LCM with a downstream task as new tokens beside the pretrained ones (paper, section 3.4).

    All tokens pass the decoder together and share the pretrained read-out. `num_labels`, `id2label` and `problem_type`
    mean what they mean everywhere in Transformers; a missing `problem_type` becomes "regression" for one label and
    "single_label_classification" for more. With `config.task_variable` naming a pretrained variable, that variable's
    own tokens are fine-tuned and none is added.
    """

    def __init__(self, config: LCMConfig) -> None:
        super().__init__(config)
        if config.problem_type is None:
            config.problem_type = "regression" if config.num_labels == 1 else "single_label_classification"
        config.validate_architecture()
        self.num_labels = cast(int, config.num_labels)
        self.model = LCMModel(config)
        self.score = nn.Linear(config.hidden_size, 1)
        if config.edge_readout:
            self.edge_features = LCMEdgeFeatures(config)
            self.bei_edge_readout = _edge_readout(config, config.num_bei_tokens)
        self.bei_layer_choice = _layer_choice(config, len(config.bei_variables))
        if config.num_task_tokens:
            self.task_embeddings = nn.Embedding(config.num_task_tokens, config.hidden_size)
            if config.edge_readout:
                self.task_edge_readout = _edge_readout(config, config.num_task_tokens)
        self.task_layer_choice = _layer_choice(config, len(self.target_layout.kinds))
        self.post_init()

    @property
    def target_layout(self) -> TargetLayout:
        """What `labels` and `logits` are about: the downstream task."""
        weights = (self.config.class_weights or {}).get(self.config.task_variable)
        return TargetLayout.from_task(str(self.config.problem_type), self.num_labels, weights)

    def _task_tokens(self) -> slice:
        """Where the task's tokens stand among all tokens."""
        start = 0
        for variable in self.config.bei_variables:
            size = max(1, len(variable["labels"]))
            if variable["name"] == self.config.task_variable:
                return slice(start, start + size)
            start += size
        return slice(start, start + self.num_labels)

    @can_return_tuple
    def forward(
        self,
        connectivity: Tensor,
        labels: Tensor | None = None,
        bei_targets: Tensor | None = None,
        target_counts: Tensor | None = None,
        **kwargs: Any,
    ) -> LCMSequenceClassifierOutput:
        """Predict the downstream task, and the pretrained BEI variables beside it.

        Args:
            connectivity (`Tensor` of shape `(batch, regions, regions)`): functional connectivity; Pearson r.
            labels (`Tensor` of shape `(batch,)` or `(batch, num_labels)`, *optional*): downstream labels; -100 for a
                person without one, who then still contributes through `bei_targets`.
            bei_targets (`Tensor` of shape `(batch, variables)`, *optional*): labels or pseudo-labels of the pretrained
                variables; their loss is weighted by `config.bei_loss_weight`. Their name has no "label" in it, because
                Trainer would then wait for both before it reports a loss. The former name `bei_labels` is still read.
            target_counts (`Tensor`, *optional*): recorded labels in the whole optimisation step, `(task targets +
                variables,)`, when this batch is a part of it.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, as everywhere in Transformers.

        Raises:
            ValueError: wrong shape of connectivity or labels, or a class index that does not exist.
        """
        check_adapters(self)
        bei_targets = self._bei_targets(labels, bei_targets, kwargs.pop("bei_labels", None))
        queries = self.model.bei_queries(connectivity.device)
        if self.config.num_task_tokens:
            new = self.task_embeddings(torch.arange(self.config.num_task_tokens, device=connectivity.device))
            queries = torch.cat([queries, new])
        outputs = self.model(connectivity, query_embeds=queries, score=self.score, **kwargs)
        layer_logits = outputs.layer_logits
        if self.config.edge_readout:
            layer_logits = layer_logits + self._edge_logits(connectivity)[:, None]
        task_logits, bei_logits = self._by_target(layer_logits)
        readout = self.config.effective_readout
        return LCMSequenceClassifierOutput(
            loss=self.compute_loss(layer_logits, labels, bei_targets, target_counts),
            logits=read_out(task_logits, self.target_layout, readout, self.task_layer_choice.best_layer),
            bei_logits=read_out(bei_logits, self._bei_layout, readout, self.bei_layer_choice.best_layer),
            layer_logits=layer_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )

    def _bei_targets(self, labels: Tensor | None, given: Tensor | None, former: Tensor | None) -> Tensor | None:
        """The pretrained variables' labels, whatever name they come under; says if they are meant to train and absent.

        Trainer takes columns that `forward` does not name out of the data, `bei_labels` among them.
        """
        if given is not None and former is not None:
            raise ValueError(
                "Give the pretrained variables' labels once, as bei_targets; bei_labels is its former name."
            )
        targets = former if given is None else given
        are_missed = targets is None and labels is not None and self.training and self.config.bei_loss_weight
        if are_missed and not torch.compiler.is_compiling():
            logger.warning_once(
                f"config.bei_loss_weight is {self.config.bei_loss_weight}, but the batch has no bei_targets: only the "
                "task is trained. Trainer drops columns of other names, such as the former bei_labels."
            )
        return targets

    def _edge_logits(self, connectivity: Tensor) -> Tensor:
        """Edge read-out of all tokens, `(batch, tokens)`: the same for every layer."""
        edges = self.edge_features(connectivity).to(self.bei_edge_readout.weight.dtype)
        logits = self.bei_edge_readout(edges)
        return torch.cat([logits, self.task_edge_readout(edges)], -1) if self.config.num_task_tokens else logits

    def compute_loss(
        self,
        layer_logits: Tensor,
        labels: Tensor | None = None,
        bei_targets: Tensor | None = None,
        target_counts: Tensor | None = None,
    ) -> Tensor | None:
        """Loss of layer logits `(batch, layers, tokens)`; the arguments are those of `forward`.

        None without any label, or with `bei_targets` alone while `config.bei_loss_weight` is 0.
        """
        task_logits, bei_logits = self._by_target(layer_logits)
        num_targets = len(self.target_layout.kinds)
        task_counts, bei_counts = (None, None) if target_counts is None else target_counts.tensor_split([num_targets])
        losses = []
        if labels is not None:
            columns = labels.float().reshape(labels.shape[0], -1)
            losses.append(_loss(self, task_logits, columns, self.target_layout, self.task_layer_choice, task_counts))
        if bei_targets is not None and self.config.bei_loss_weight:
            bei_loss = _loss(self, bei_logits, bei_targets, self._bei_layout, self.bei_layer_choice, bei_counts)
            losses.append(self.config.bei_loss_weight * bei_loss)
        return torch.stack(losses).sum() if losses else None

    @property
    def _bei_layout(self) -> TargetLayout:
        return TargetLayout.from_variables(self.config.bei_variables, self.config.class_weights)

    def _by_target(self, layer_logits: Tensor) -> tuple[Tensor, Tensor]:
        """The task's and the pretrained variables' part of the layer logits."""
        return layer_logits[..., self._task_tokens()], layer_logits[..., : self.config.num_bei_tokens]


def _edge_readout(config: LCMConfig, num_tokens: int) -> nn.Linear:
    """Centred edges -> one logit per token.

    A plain Linear, which adapters know how to change; its name must not end in `score`, by which PEFT finds read-outs.
    """
    return nn.Linear(config.num_edges, num_tokens, bias=False)


def _layer_choice(config: LCMConfig, num_targets: int) -> LayerChoice:
    return LayerChoice(num_targets, config.num_hidden_layers, config.layer_loss_momentum)


def _loss(
    model: LCMPreTrainedModel,
    layer_logits: Tensor,
    labels: Tensor,
    layout: TargetLayout,
    choice: LayerChoice,
    target_counts: Tensor | None,
) -> Tensor:
    """Multitask loss under the configured supervision; in training, the layer choice learns from the batch first."""
    labels = labels.float()
    # On an accelerator the check would wait for the device at every step; there the tokenizer has made the labels.
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        check_labels(labels, layout)
    if model.training:
        choice.observe(layer_logits, labels, layout)
    # A copy, because the next batch may change the choice before this one's gradient is computed (mixup).
    best_layer = choice.best_layer.clone()
    losses = supervised_losses(layer_logits, labels, layout, model.config.supervision, best_layer)
    return multitask_loss(losses, labels, layout, target_counts)
