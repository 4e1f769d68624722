"""The Large Connectome Model: BEI tokens read a memory of brain regions, layer by layer.

Shapes use these names: batch B, regions N, BEI tokens P, hidden size d, decoder layers L.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.utils import logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .adapter_checks_lcm import check_adapters
from .atlas_batches_lcm import atlases_present, by_atlas, side_by_side
from .attention_lcm import LCMAttention
from .configuration_lcm import LCMConfig
from .decoder_lcm import LCMDecoderLayer
from .fast_paths_lcm import fast_read_out
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
from .reading_lcm import read_scans
from .readouts_lcm import make_edge_features, make_edge_readout
from .sites_lcm import make_site_readout
from .stem_lcm import make_stem


logger = logging.get_logger("transformers.models.lcm")  # so that Transformers' verbosity rules it


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
        self.stem = make_stem(config)
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

    def _memory(self, connectivity: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Memory vectors of the regions of each scan's atlases, `(batch, regions, hidden_size)`.

        And a mask `(batch, regions)`, False for padding, where the scans have different atlases. Each stem is called
        once, with the scans that have its atlas, even if there are none: several processes wait for each other there.
        """
        if not isinstance(self.stem, nn.ModuleDict):
            return self.stem(next(iter(connectivity.values()))), None
        present = atlases_present(connectivity)
        if present is None:
            return torch.cat([self.stem[name](part) for name, part in connectivity.items()], 1), None
        columns = zip(connectivity.items(), present.T, strict=True)
        return side_by_side([self.stem[name](part[here]) for (name, part), here in columns], present)

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        connectivity: Tensor | dict[str, Tensor],
        query_embeds: Tensor | None = None,
        score: nn.Linear | None = None,
        **kwargs: Any,
    ) -> LCMModelOutput:
        """Read the connectomes with BEI tokens.

        Args:
            connectivity (`Tensor` of shape `(batch, regions, regions)`): functional connectivity; Pearson r. With
                several atlases `dict[str, Tensor]` by atlas, NaN for scans without one.
            query_embeds (`Tensor` of shape `(tokens, hidden_size)`, *optional*): token embeddings; defaults to all
                pretrained tokens.
            score (`nn.Linear`, *optional*): a head's read-out, `hidden_size` -> 1. With it, `layer_logits` are
                returned in place of `layer_states`.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, as everywhere in Transformers.

        Raises:
            ValueError: connectivity has another shape than `(batch, num_regions, num_regions)`, or attentions are
                asked for of scans that have different atlases, whose regions are not the same.
        """
        check_adapters(self)
        memory, mask = self._memory(by_atlas(self.config, connectivity))
        if mask is not None and kwargs.get("output_attentions", self.config.output_attentions):
            raise ValueError(
                "The scans have different atlases: give those with the same together to see which regions are read."
            )
        if query_embeds is None:
            query_embeds = self.bei_queries(memory.device)
        states = memory.new_zeros(1).expand(memory.shape[0], *query_embeds.shape)
        layer_states = []
        for layer in self.layers:
            states = layer(states, query_embeds, memory, mask)
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
            self.edge_features = make_edge_features(config)
            self.bei_edge_readout = make_edge_readout(config, config.bei_names)
            self.site_readout = make_site_readout(config)
        self.bei_layer_choice = _layer_choice(config, len(config.bei_variables))
        self.post_init()

    @property
    def target_layout(self) -> TargetLayout:
        """What `labels` and `logits` are about: every BEI variable."""
        return TargetLayout.from_variables(self.config.bei_variables, self.config.class_weights)

    @can_return_tuple
    def forward(
        self,
        connectivity: Tensor | dict[str, Tensor],
        labels: Tensor | None = None,
        target_counts: Tensor | None = None,
        site_means: Tensor | None = None,
        log_edges: Tensor | dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> LCMMultitaskOutput:
        """Predict every BEI variable.

        Args:
            connectivity (`Tensor` of shape `(batch, regions, regions)`): functional connectivity; Pearson r. With
                several atlases `dict[str, Tensor]` by atlas, NaN for scans without one.
            labels (`Tensor` of shape `(batch, variables)`, *optional*): as the BEI tokenizer makes them: class index
                or scaled value, -100 where nothing was recorded.
            target_counts (`Tensor` of shape `(variables,)`, *optional*): recorded labels in the whole optimisation
                step, when this batch is a part of it.
            site_means (`Tensor` of shape `(batch, tokens)`, *optional*): `values` of [`modeling_lcm.site_means`], for
                variables that are compared with the scan's site; without, with the training mean.
            log_edges (`Tensor` of shape `(batch, shrinkages, edges)`, *optional*): log FC of the same scans as
                [`modeling_lcm.log_edges`] makes it, with several atlases by atlas: nothing is computed twice where FC
                stays the same. Connectivity then has no gradient by its edges.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, as everywhere in Transformers.

        Raises:
            ValueError: wrong shape of connectivity or labels, or a class index that does not exist.
        """
        check_adapters(self)
        scans = by_atlas(self.config, connectivity)
        layer_logits, unread, site_logits, outputs = read_scans(self, scans, None, site_means, log_edges, kwargs)
        readout, best_layer = self.config.effective_readout, self.bei_layer_choice.best_layer
        logits = read_out(layer_logits, self.target_layout, readout, best_layer)
        return LCMMultitaskOutput(
            loss=None if labels is None else self.compute_loss(layer_logits, labels, target_counts),
            logits=logits if unread is None else logits.masked_fill(unread, torch.nan),
            layer_logits=layer_logits,
            site_logits=site_logits,
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
            self.edge_features = make_edge_features(config)
            self.bei_edge_readout = make_edge_readout(config, config.bei_names)
            self.site_readout = make_site_readout(config)
        self.bei_layer_choice = _layer_choice(config, len(config.bei_variables))
        if config.num_task_tokens:
            self.task_embeddings = nn.Embedding(config.num_task_tokens, config.hidden_size)
            if config.edge_readout:
                self.task_edge_readout = make_edge_readout(config, [config.task_variable])
        self.task_layer_choice = _layer_choice(config, len(self.target_layout.kinds))
        self.post_init()

    @property
    def target_layout(self) -> TargetLayout:
        """What `labels` and `logits` are about: the downstream task."""
        weights = (self.config.class_weights or {}).get(self.config.task_variable)
        return TargetLayout.from_task(str(self.config.problem_type), self.num_labels, weights)

    @can_return_tuple
    def forward(
        self,
        connectivity: Tensor | dict[str, Tensor],
        labels: Tensor | None = None,
        bei_targets: Tensor | None = None,
        target_counts: Tensor | None = None,
        site_means: Tensor | None = None,
        log_edges: Tensor | dict[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> LCMSequenceClassifierOutput:
        """Predict the downstream task, and the pretrained BEI variables beside it.

        Args:
            connectivity (`Tensor` of shape `(batch, regions, regions)`): functional connectivity; Pearson r. With
                several atlases `dict[str, Tensor]` by atlas, NaN for scans without one.
            labels (`Tensor` of shape `(batch,)` or `(batch, num_labels)`, *optional*): downstream labels; -100 for a
                subject without one, who then still contributes through `bei_targets`.
            bei_targets (`Tensor` of shape `(batch, variables)`, *optional*): labels or pseudo-labels of the pretrained
                variables; their loss is weighted by `config.bei_loss_weight`. Their name has no "label" in it, because
                Trainer would then wait for both before it reports a loss. The former name `bei_labels` is still read.
            target_counts (`Tensor`, *optional*): recorded labels in the whole optimisation step, `(task targets +
                variables,)`, when this batch is a part of it.
            site_means (`Tensor` of shape `(batch, tokens)`, *optional*): see [`LCMForMultitaskPretraining`].
            log_edges (`Tensor` of shape `(batch, shrinkages, edges)`, *optional*): as there.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, as everywhere in Transformers.

        Raises:
            ValueError: wrong shape of connectivity or labels, or a class index that does not exist.
        """
        check_adapters(self)
        bei_targets = self._bei_targets(labels, bei_targets, kwargs.pop("bei_labels", None))
        scans = by_atlas(self.config, connectivity)
        device = next(iter(scans.values())).device
        queries = self.model.bei_queries(device)
        if self.config.num_task_tokens:
            new = self.task_embeddings(torch.arange(self.config.num_task_tokens, device=device))
            queries = torch.cat([queries, new])
        layer_logits, unread, site_logits, outputs = read_scans(self, scans, queries, site_means, log_edges, kwargs)
        task_logits, bei_logits = self._by_target(layer_logits)
        readout = self.config.effective_readout
        logits = read_out(task_logits, self.target_layout, readout, self.task_layer_choice.best_layer)
        all_logits = read_out(bei_logits, self._bei_layout, readout, self.bei_layer_choice.best_layer)
        if unread is not None:
            of_task, of_bei = self._by_target(unread)
            logits, all_logits = logits.masked_fill(of_task, torch.nan), all_logits.masked_fill(of_bei, torch.nan)
        return LCMSequenceClassifierOutput(
            loss=self.compute_loss(layer_logits, labels, bei_targets, target_counts),
            logits=logits,
            bei_logits=all_logits,
            layer_logits=layer_logits,
            site_logits=site_logits,
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
        return layer_logits[..., self.config.token_slices[self.config.task_variable]], layer_logits[
            ..., : self.config.num_bei_tokens
        ]


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
