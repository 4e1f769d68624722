"""A layer of the decoder, in which BEI tokens read the memory of brain regions."""

from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_lcm import LCMAttention
from .configuration_lcm import LCMConfig
from .fast_paths_lcm import once


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

    def forward(
        self, hidden_states: Tensor, query_embeds: Tensor, memory: Tensor, memory_mask: Tensor | None = None
    ) -> Tensor:
        """Let the tokens see each other, then the regions.

        Args:
            hidden_states (`Tensor` of shape `(batch, tokens, d)`): the tokens' states.
            query_embeds (`Tensor` of shape `(tokens, d)`): the tokens' embeddings.
            memory (`Tensor` of shape `(batch, regions, d)`): from the stem.
            memory_mask (`Tensor` of shape `(batch, regions)`, *optional*): False for padding.

        Returns:
            The states after this layer, `(batch, tokens, d)`.
        """
        # All subjects start from one state, so that a batch of 1 stands for all of them until they read their memory.
        states = once(hidden_states)
        positioned = states + query_embeds
        attended, _ = self.self_attn(positioned, positioned, hidden_states)
        states = self.self_attn_layer_norm(states + self.dropout(attended))
        attended, _ = self.cross_attn(states + query_embeds, memory, memory, memory_mask)
        states = self.cross_attn_layer_norm(states + self.dropout(attended))
        expanded = self.fc2(self.activation_dropout(self.activation(self.fc1(states))))
        return self.final_layer_norm(states + self.dropout(expanded))
