"""The transformer on either side of the quantizer: causal attention over a sliding window, rotary positions.

Keys and values of the window lie in a ring: the step at position p is written into slot p mod R, over one that no later
step looks at. Nothing moves when a stream goes on, a stream that pauses only keeps its position, and a step that was
interrupted can be taken again.
"""

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from .checkpointing import run_checkpointed
from .graphs import is_captured, is_few
from .matmul import linear
from .recorder import Recorder

if TYPE_CHECKING:
    from mimi_hf.configuration_mimi import MimiConfig

# Up to here plain products are faster than torch's fused attention on a CPU.
FEW_QUERIES = 8


class TransformerState(NamedTuple):
    """The last steps of a stream, as the attention of each layer saw them.

    position: Tensor, shape = (B,), int64, steps seen so far.
    keys: Tensors, one per layer, shape = (B, key_value_heads, R, head_dim), R >= W - 1 + T slots, rotated.
    values: Tensors of the same shapes.
    """

    position: Tensor
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    def count_slots(self) -> int:
        """R. It is no property, as compiled steps cannot read one of a tuple up to torch 2.10."""
        return self.keys[0].shape[2]

    def select_rows(self, rows: Tensor, other: "TransformerState") -> "TransformerState":
        """This state in some rows, `other` in the rest, which pause.

        The rings, which both may share, stay as they are. What a step wrote into them for a row that pauses is not
        looked at: the row's next step overwrites it.
        """
        return self._replace(position=torch.where(rows, self.position, other.position))


def ring_slots(window: int, steps: int) -> int:
    """Slots of a ring that `steps` steps are written to at once: they must not overwrite what the first of them sees.

    Kernels like multiples of eight, and pushes of a few frames, more or less, should find the same ring.
    """
    return (window - 1 + steps + 7) // 8 * 8


def rotary_table(position: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of the rotary angles (arXiv:2104.09864, section 3.2.2).

    Angles are counted in units of 2π / 2**64: int64 arithmetic drops whole turns by itself, so that they are as exact
    at any position as at the first.

    Args:
        position: Tensor, shape = (…), int64.

    Returns:
        Tensors, shape = (…, head_dim).
    """
    place = "cpu" if position.device.type == "mps" else position.device  # where there is double precision
    exponents = torch.arange(0, head_dim, 2, device=place, dtype=torch.float64) / -head_dim
    units_per_step = (theta**exponents * (2**63 / math.pi)).long().to(position.device)
    angles = (position[..., None] * units_per_step).float() * (math.pi / 2**63)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """x: Tensor, shape = (…, head_dim), the halves of each vector rotated against each other by [`rotary_table`]."""
    cos, sin = table
    swapped = x.roll(x.shape[-1] // 2, dims=-1)
    return torch.addcmul(x * cos, swapped, sin).to(x.dtype)


class Window(NamedTuple):
    """What all layers of one call share.

    slots: where the T new steps are written to, indices into the rows and slots of a ring, of shapes that make (B, T).
    table: the rotary table of the new steps, Tensors, shape = (B, T, 1, head_dim).
    mask: Tensor, shape = (B, 1, T, R), added to the attention scores: 0 where a step may look, elsewhere -inf.
    in_place: may the state's own memory be written to?
    attentions: where to keep the weights of each layer, Tensors, shape = (B, H, T, T); None to keep none.
    """

    slots: tuple[Tensor, Tensor]
    table: tuple[Tensor, Tensor]
    mask: Tensor
    in_place: bool
    attentions: list[Tensor] | None

    def write(self, ring: Tensor, steps: Tensor) -> Tensor:
        """The ring, shape = (B, heads, R, head_dim), with new steps, (B, T, heads, head_dim), in their slots."""
        write = Tensor.index_put_ if self.in_place else Tensor.index_put
        # Under autocast the products give half precision, while the rings have the inputs'.
        return write(ring.transpose(1, 2), self.slots, steps.to(ring.dtype)).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head attention with grouped keys and values; `implementation` is "sdpa" or "eager"."""

    def __init__(self, config: "MimiConfig") -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.groups = config.num_attention_heads // config.num_key_value_heads
        self.dropout = config.attention_dropout
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, config.num_attention_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, config.num_key_value_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, width, bias=bias)

    def forward(
        self, x: Tensor, keys: Tensor, values: Tensor, window: Window, implementation: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Let T new steps attend to the window.

        Args:
            x: Tensor, shape = (B, T, D).
            keys, values: Tensors, shape = (B, key_value_heads, R, head_dim), the rings.

        Returns:
            Tensor, shape = (B, T, D), and the rings with the new steps in them.
        """
        query, key, value = linear(self.q_proj, x), linear(self.k_proj, x), linear(self.v_proj, x)
        heads = torch.cat([query, key], dim=2).unflatten(2, (-1, self.head_dim))  # (B, T, heads, head_dim)
        query, key = rotate(heads, window.table).split([heads.shape[2] - keys.shape[1], keys.shape[1]], dim=2)
        keys = window.write(keys, key)
        values = window.write(values, value.unflatten(2, (-1, self.head_dim)))
        y = self._attend(query.transpose(1, 2), keys, values, window, implementation)
        return linear(self.o_proj, y.transpose(1, 2).flatten(2)), keys, values

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, window: Window, implementation: str) -> Tensor:
        if self.groups > 1:
            key, value = (tensor.repeat_interleave(self.groups, dim=1) for tensor in (key, value))
        dropout = self.dropout if self.training else 0.0
        few = query.device.type == "cpu" and is_few(FEW_QUERIES, query.shape[2])
        if implementation != "eager" and window.attentions is None and not few:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=window.mask, dropout_p=dropout)
        scores = query @ key.transpose(2, 3) / math.sqrt(self.head_dim) + window.mask
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
        if window.attentions is not None:
            # Nothing came before, so that the step at position p lies in slot p.
            window.attentions.append(weights[..., : query.shape[2]])
        return F.dropout(weights, dropout) @ value


class MLP(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, config: "MimiConfig") -> None:
        super().__init__()
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return linear(self.fc2, self.activation(linear(self.fc1, x)))


class LayerScale(nn.Module):
    """A learnt scale per channel on a residual branch (arXiv:2103.17239, section 3)."""

    def __init__(self, channels: int, initial_scale: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((channels,), initial_scale))

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:
        """`x + scale * branch`."""
        return torch.addcmul(x, self.scale, branch)


class TransformerLayer(nn.Module):
    """Pre-norm attention and MLP, each on a scaled residual branch."""

    def __init__(self, config: "MimiConfig") -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.self_attn_layer_scale = LayerScale(config.hidden_size, config.layer_scale_initial_scale)
        self.mlp_layer_scale = LayerScale(config.hidden_size, config.layer_scale_initial_scale)

    def forward(self, x: Tensor, *attention_arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        """x: Tensor, shape = (B, T, D); the other arguments are those of [`Attention`]."""
        y, keys, values = self.self_attn(self.input_layernorm(x), *attention_arguments)
        x = self.self_attn_layer_scale(x, y)
        x = self.mlp_layer_scale(x, self.mlp(self.post_attention_layernorm(x)))
        return x, keys, values


class Transformer(nn.Module):
    """`num_hidden_layers` layers over a window of `sliding_window` steps.

    gradient_checkpointing: run each layer again in the backward pass instead of keeping its activations.
    """

    gradient_checkpointing = False

    def __init__(self, config: "MimiConfig") -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList([TransformerLayer(config) for _ in range(config.num_hidden_layers)])

    def forward(
        self, x: Tensor, state: TransformerState | None, recorder: Recorder | None = None
    ) -> tuple[Tensor, TransformerState]:
        """x: Tensor, shape = (B, T, D) -> Tensor, shape = (B, T, D).

        Where no gradient is recorded, the new state is the memory of the old one, which must not be used again.
        A recorder wants the beginning of a stream.
        """
        shown, attentions = (None, None) if recorder is None else recorder
        state = self._with_room(x, state)
        window = self._window(x, state, attentions)
        if shown is not None:
            shown.append(x)
        # Without an explicit choice (a model that was never given one) torch's own attention serves.
        implementation = self.config._attn_implementation or "sdpa"
        keys, values = [], []
        for layer, layer_keys, layer_values in zip(self.layers, state.keys, state.values, strict=True):
            arguments = (x, layer_keys, layer_values, window, implementation)
            x, layer_keys, layer_values = run_checkpointed(self, layer, *arguments)
            keys.append(layer_keys)
            values.append(layer_values)
            if shown is not None:
                shown.append(x)
        return x, TransformerState(state.position + x.shape[1], tuple(keys), tuple(values))

    def _with_room(self, x: Tensor, state: TransformerState | None) -> TransformerState:
        """The state with rings that fit x: Tensor, shape = (B, T, D); one of streams not begun where there is none."""
        config = self.config
        past = config.sliding_window - 1
        slots = ring_slots(config.sliding_window, x.shape[1])
        if state is None and is_captured():
            slots = past + x.shape[1]  # for any number of steps, torch knows too little of a rounded one
        if state is not None and state.count_slots() == slots and state.keys[0].dtype == x.dtype:
            return state
        shape = (x.shape[0], config.num_key_value_heads, slots, config.head_dim)
        keys, values = (tuple(x.new_zeros(shape) for _ in self.layers) for _ in range(2))
        if state is None:
            return TransformerState(torch.zeros(x.shape[0], dtype=torch.int64, device=x.device), keys, values)
        row = torch.arange(x.shape[0], device=x.device)[:, None]
        kept = state.position[:, None] + torch.arange(-past, 0, device=x.device)

        def move(old: Tensor, new: Tensor) -> Tensor:
            old, new = old.transpose(1, 2), new.transpose(1, 2)
            steps = old[row, kept % state.count_slots()].to(new.dtype)  # a stream may enter and leave autocast
            return new.index_put((row, kept % slots), steps).transpose(1, 2)

        return TransformerState(
            state.position, tuple(map(move, state.keys, keys)), tuple(map(move, state.values, values))
        )

    def _window(self, x: Tensor, state: TransformerState, attentions: list[Tensor] | None) -> Window:
        batch, steps, _ = x.shape
        slots = state.count_slots()
        row = torch.arange(batch, device=x.device)[:, None]
        position = state.position[:, None] + torch.arange(steps, device=x.device)
        table = rotary_table(position[..., None], self.config.head_dim, self.config.rope_theta)
        mask = window_mask(state.position, steps, slots, self.config.sliding_window, x.dtype)
        return Window((row, position % slots), table, mask, _may_write(state.keys[0]), attentions)


def window_mask(position: Tensor, steps: int, slots: int, window: int, dtype: torch.dtype) -> Tensor:
    """Where each of `steps` new steps may look in rings that hold them: at itself and the `window - 1` before it.

    Args:
        position: Tensor, shape = (B,), steps that each stream has seen before.

    Returns:
        Tensor, shape = (B, 1, steps, slots): 0 where a step may look, elsewhere -inf.
    """
    end = position[:, None] + steps
    held = end - 1 - (end - 1 - torch.arange(slots, device=position.device)) % slots  # the position in each slot
    age = (position[:, None] + torch.arange(steps, device=position.device))[:, :, None] - held[:, None]
    seen = (age >= 0) & (age < window) & (held >= 0)[:, None]
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, -math.inf)[:, None]


def _may_write(state: Tensor) -> bool:
    if is_captured():
        return not torch.is_grad_enabled() and not torch.compiler.is_exporting()
    return not torch.is_grad_enabled() and (torch.is_inference_mode_enabled() or not state.is_inference())
