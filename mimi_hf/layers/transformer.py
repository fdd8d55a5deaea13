"""The transformer on either side of the quantizer: causal attention over a sliding window, rotary positions.

Rotary positions (arXiv:2104.09864, section 3.2.2) enter attention only as differences. So the cache keeps its keys
unrotated, and each call rotates them by their place in the window: no phase grows with the age of the stream.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .product import linear


class TransformerState(NamedTuple):
    """The last `W - 1` steps of a stream, as the attention of each layer saw them.

    position: Tensor, shape = (B,), int64, steps seen so far. Only its distance from zero matters, up to the window.
    keys: Tensors, one per layer, shape = (B, key_value_heads, W - 1, head_dim), unrotated, right-aligned.
    values: Tensors of the same shapes.
    """

    position: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


def rotary_table(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of the rotary angles at positions 0 … length - 1, each of shape (length, head_dim)."""
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] / theta**exponents
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=1), torch.cat([-sin, sin], dim=1)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """x: Tensor, shape = (…, T, head_dim), the halves of each vector rotated against each other by [`rotary_table`]."""
    cos, sin = table
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos, swapped, sin).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values; `implementation` is "sdpa" or "eager"."""

    def __init__(self, config):
        super().__init__()
        self.head_dim = config.head_dim
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.dropout = config.attention_dropout
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, config.num_attention_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, width, bias=bias)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, table, mask: Tensor, implementation: str):
        """
        Args:
            x: Tensor, shape = (B, T, D).
            keys, values: Tensors, shape = (B, key_value_heads, W - 1, head_dim), of the steps before.
            table: the rotary table of the W - 1 + T steps of the window.
            mask: Tensor, shape = (B or 1, 1, T, W - 1 + T), bool, True where a step may look.

        Returns:
            Tensor, shape = (B, T, D), and the keys and values of the last W - 1 steps.
        """
        steps, past = x.shape[1], keys.shape[2]
        query = self._heads(linear(self.q_proj, x))
        keys = torch.cat([keys, self._heads(linear(self.k_proj, x))], dim=2)
        values = torch.cat([values, self._heads(linear(self.v_proj, x))], dim=2)
        query = rotate(query, (table[0][past:], table[1][past:]))
        y = self._attend(query, rotate(keys, table), values, mask, implementation)
        y = linear(self.o_proj, y.transpose(1, 2).flatten(2))
        return y, keys[:, :, steps:].clone(), values[:, :, steps:].clone()

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, T, head_dim)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, implementation: str) -> Tensor:
        if self.groups > 1:
            key, value = (tensor.repeat_interleave(self.groups, dim=1) for tensor in (key, value))
        dropout = self.dropout if self.training else 0.0
        if implementation != "eager":
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        scores = query @ key.transpose(2, 3) / math.sqrt(self.head_dim)
        weights = scores.masked_fill(~mask, -math.inf).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        return F.dropout(weights, dropout) @ value


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.fc2, self.activation(linear(self.fc1, x)))


class LayerScale(nn.Module):
    """A learnt scale per channel on a residual branch (arXiv:2103.17239, section 3)."""

    def __init__(self, channels: int, initial_scale: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), initial_scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x


class TransformerLayer(nn.Module):
    """Pre-norm attention and MLP, each on a scaled residual branch."""

    def __init__(self, config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn_layer_scale = LayerScale(config.hidden_size, config.layer_scale_initial_scale)
        self.mlp_layer_scale = LayerScale(config.hidden_size, config.layer_scale_initial_scale)

    def forward(self, x: Tensor, *attention_arguments):
        """x: Tensor, shape = (B, T, D); the other arguments are those of [`Attention`]."""
        y, keys, values = self.self_attn(self.input_layernorm(x), *attention_arguments)
        x = x + self.self_attn_layer_scale(y)
        x = x + self.mlp_layer_scale(self.mlp(self.post_attention_layernorm(x)))
        return x, keys, values


class Transformer(nn.Module):
    """`num_hidden_layers` layers over a window of `sliding_window` steps."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList([TransformerLayer(config) for _ in range(config.num_hidden_layers)])

    def new_state(self, x: Tensor) -> TransformerState:
        """The state of streams that have not begun, for inputs like x: Tensor, shape = (B, T, D)."""
        config, batch = self.config, x.shape[0]
        shape = (batch, config.num_key_value_heads, config.sliding_window - 1, config.head_dim)
        keys, values = (tuple(x.new_zeros(shape) for _ in self.layers) for _ in range(2))
        return TransformerState(torch.zeros(batch, dtype=torch.int64, device=x.device), keys, values)

    def forward(self, x: Tensor, state: TransformerState | None) -> tuple[Tensor, TransformerState]:
        """x: Tensor, shape = (B, T, D) -> Tensor, shape = (B, T, D)."""
        state = self.new_state(x) if state is None else state
        steps, past = x.shape[1], self.config.sliding_window - 1
        table = rotary_table(past + steps, self.config.head_dim, self.config.rope_theta, x.device)
        mask = window_mask(state.position, steps, past)
        # Without an explicit choice (a model that was never given one) torch's own attention serves.
        implementation = self.config._attn_implementation or "sdpa"
        keys, values = [], []
        for layer, layer_keys, layer_values in zip(self.layers, state.keys, state.values, strict=True):
            x, layer_keys, layer_values = layer(x, layer_keys, layer_values, table, mask, implementation)
            keys.append(layer_keys)
            values.append(layer_values)
        return x, TransformerState(state.position + steps, tuple(keys), tuple(values))


def window_mask(position: Tensor, steps: int, past: int) -> Tensor:
    """Where each of `steps` new steps may look among the `past` cached ones and themselves.

    A step sees itself and the `past` steps before it, of which those before the stream's first are not there.

    Args:
        position: Tensor, shape = (B,), steps that each stream has seen.

    Returns:
        Tensor, shape = (B, 1, steps, past + steps), bool.
    """
    key = torch.arange(past + steps, device=position.device)
    query = torch.arange(steps, device=position.device)[:, None]
    in_window = (key >= query) & (key <= query + past)
    there = key >= past - position[:, None]
    return (in_window & there[:, None])[:, None]
