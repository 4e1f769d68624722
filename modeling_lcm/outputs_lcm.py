"""What the models return."""

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import ModelOutput


@dataclass
class LCMModelOutput(ModelOutput):
    """Output of [`LCMModel`].

    Args:
        last_hidden_state (`Tensor` of shape `(batch, tokens, hidden_size)`): token states after the last layer's norm.
        layer_states (`Tensor` of shape `(batch, layers, tokens, hidden_size)`): the same after every layer.
        layer_logits (`Tensor` of shape `(batch, layers, tokens)`): their read-out, for a head that asks for it.
        hidden_states (`tuple[Tensor]`, *optional*): layers + 1 tensors `(batch, tokens, hidden_size)`: the zeros that
            the tokens start from, then each layer's output, not normed; the last one is `last_hidden_state`.
        attentions (`tuple[Tensor]`, *optional*): self-attention, `(batch, heads, tokens, tokens)` per layer.
        cross_attentions (`tuple[Tensor]`, *optional*): which regions each token reads, `(batch, heads, tokens,
            regions)` per layer, rows sum to 1. Maps need `attn_implementation="eager"`.
    """

    last_hidden_state: Tensor | None = None
    layer_states: Tensor | None = None
    layer_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class LCMMultitaskOutput(ModelOutput):
    """Output of [`LCMForMultitaskPretraining`].

    Args:
        loss (`Tensor`, *optional*): scalar multitask loss, when labels were given.
        logits (`Tensor` of shape `(batch, tokens)`): read-out per BEI token; `tokenizer.decode` makes a record of it.
        layer_logits (`Tensor` of shape `(batch, layers, tokens)`): logits after every layer.
        site_logits (`Tensor` of shape `(batch, tokens)`, *optional*): what site weights make of each scan, for
            [`modeling_lcm.site_means`]; of models that compare scans with their site.
        hidden_states, attentions, cross_attentions: see [`LCMModelOutput`].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    layer_logits: Tensor | None = None
    site_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None


@dataclass
class LCMSequenceClassifierOutput(ModelOutput):
    """Output of [`LCMForSequenceClassification`].

    Args:
        loss (`Tensor`, *optional*): scalar loss, when `labels` or `bei_targets` were given.
        logits (`Tensor` of shape `(batch, num_labels)`): read-out of the downstream task's tokens.
        bei_logits (`Tensor` of shape `(batch, bei tokens)`): read-out of the pretrained tokens.
        layer_logits (`Tensor` of shape `(batch, layers, tokens)`): pretrained tokens first, then the task's new ones.
        site_logits (`Tensor` of shape `(batch, tokens)`, *optional*): what site weights make of each scan, for
            [`modeling_lcm.site_means`]; of models that compare scans with their site.
        hidden_states, attentions, cross_attentions: see [`LCMModelOutput`].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    bei_logits: Tensor | None = None
    layer_logits: Tensor | None = None
    site_logits: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
