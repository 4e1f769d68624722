"""The same network from PyTorch's own parts, `nn.MultiheadAttention` first of all: what ours must not lose to."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modeling_lcm import LCMConfig, LCMForMultitaskPretraining
from modeling_lcm.loss_lcm import IGNORE_INDEX


class ReferenceLayer(nn.Module):
    """One decoder layer: self-attention, cross-attention and feed-forward, each followed by add and norm."""

    def __init__(self, config: LCMConfig) -> None:
        super().__init__()
        width, heads, dropout = config.hidden_size, config.num_attention_heads, config.attention_dropout
        self.self_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.fc1 = nn.Linear(width, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, width)
        self.self_attn_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.cross_attn_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.final_layer_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(self, states: Tensor, queries: Tensor, memory: Tensor) -> Tensor:
        """States `(batch, tokens, d)`, token embeddings `(tokens, d)`, memory `(batch, regions, d)` -> states."""
        # Without attention maps: MultiheadAttention is slower with them.
        positioned = states + queries
        attended, _ = self.self_attn(positioned, positioned, states, need_weights=False)
        states = self.self_attn_layer_norm(states + self.dropout(attended))
        attended, _ = self.cross_attn(states + queries, memory, memory, need_weights=False)
        states = self.cross_attn_layer_norm(states + self.dropout(attended))
        expanded = self.fc2(self.activation_dropout(F.relu(self.fc1(states))))
        return self.final_layer_norm(states + self.dropout(expanded))


class ReferenceLCM(nn.Module):
    """Stem, decoder and shared read-out with the weights of one of our pretraining models."""

    def __init__(self, model: LCMForMultitaskPretraining) -> None:
        super().__init__()
        config = model.config
        self.variables = config.bei_variables
        self.normalize_rows = config.normalize_rows
        self.proj = nn.Linear(config.num_regions, config.hidden_size)
        self.batch_norm = nn.BatchNorm1d(config.hidden_size, config.batch_norm_eps, config.batch_norm_momentum)
        self.queries = nn.Parameter(torch.empty(config.num_bei_tokens, config.hidden_size))
        self.layers = nn.ModuleList(ReferenceLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.score = nn.Linear(config.hidden_size, 1)
        self.load_state_dict(_reference_state(model))

    def forward(self, connectivity: Tensor) -> Tensor:
        """Connectivity `(batch, regions, regions)` -> layer logits `(batch, layers, tokens)`."""
        if self.normalize_rows:
            connectivity = F.layer_norm(connectivity, connectivity.shape[-1:])
        memory = self.proj(connectivity)
        memory = F.leaky_relu(self.batch_norm(memory.flatten(0, 1)).view_as(memory), 0.01)
        states = torch.zeros(len(memory), *self.queries.shape, dtype=memory.dtype, device=memory.device)
        logits = []
        for layer in self.layers:
            states = layer(states, self.queries, memory)
            logits.append(self.score(self.norm(states))[..., 0])
        return torch.stack(logits, dim=1)

    def loss(self, connectivity: Tensor, labels: Tensor) -> Tensor:
        """Momentum-stage loss for labels `(batch, variables)`, variable by variable."""
        logits = self(connectivity).mean(1)
        start, total = 0, logits.new_zeros(())
        for column, variable in enumerate(self.variables):
            stop = start + max(1, len(variable["labels"]))
            target = labels[:, column]
            if variable["kind"] == "categorical":
                loss = F.cross_entropy(logits[:, start:stop], target.long(), ignore_index=IGNORE_INDEX)
            else:
                loss = F.mse_loss(logits[:, start], target)
            total = total + variable["loss_weight"] * loss
            start = stop
        return total


def _reference_state(model: LCMForMultitaskPretraining) -> dict[str, Tensor]:
    """Our tensors under the reference's names; query, key and value projections stacked."""
    state: dict[str, Tensor] = {}
    ours = model.state_dict()
    for name, tensor in ours.items():
        if "q_proj" in name:
            parts = [ours[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            state[_reference_name(name).replace("q_proj.", "in_proj_")] = torch.cat(parts)
        elif "layer_choice" not in name and "k_proj" not in name and "v_proj" not in name:
            state[_reference_name(name)] = tensor
    return state


def _reference_name(name: str) -> str:
    renamed = name.removeprefix("model.").replace("o_proj", "out_proj").replace("embeddings.weight", "embeddings")
    return renamed.replace("stem.proj", "proj").replace("stem.norm", "batch_norm").replace("bei_embeddings", "queries")
