import math

import pytest
import torch
import torch.nn.functional as F
from support.tiny import TINY, make_model

from mimi_hf import MimiConfig
from mimi_hf.codec.causal_conv import CausalConv1d, CausalConvTranspose1d
from mimi_hf.codec.state import copy_state, map_state, reset_rows
from mimi_hf.codec.transformer import Transformer, rotary_table, rotate

CONVOLUTIONS = [
    {"kernel_size": 7},
    {"kernel_size": 1},
    {"kernel_size": 3, "dilation": 4},
    {"kernel_size": 8, "stride": 4},
    {"kernel_size": 6, "stride": 3, "in_channels": 20},
    {"kernel_size": 5, "in_channels": 32, "bias": False},
    {"kernel_size": 4, "stride": 2, "in_channels": 32, "pad_mode": "replicate"},
    {"kernel_size": 1, "elu": True},
    {"kernel_size": 3, "dilation": 2, "elu": True},
    {"kernel_size": 4, "stride": 2, "in_channels": 32, "pad_mode": "replicate", "elu": True},
]


def make_convolution(arguments):
    torch.manual_seed(0)
    return CausalConv1d(**{"in_channels": 3, "out_channels": 5, **arguments})


@pytest.mark.parametrize(("batch", "length"), [(1, 24), (3, 24), (2, 600)])  # few rows and many
@pytest.mark.parametrize("arguments", CONVOLUTIONS)
def test_convolution_equals_torch_on_padded_input(arguments, batch, length):
    layer = make_convolution(arguments)
    x = torch.randn(batch, length, layer.in_channels)
    mode = arguments.get("pad_mode", "constant")
    padded = F.pad((F.elu(x) if layer.elu else x).transpose(1, 2), (layer.padding_total, 0), mode=mode)
    expected = layer.conv(padded).transpose(1, 2)
    torch.testing.assert_close(layer(x, None)[0], expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, None)[0], expected)


@pytest.mark.parametrize("arguments", CONVOLUTIONS)
def test_convolution_in_pieces_equals_whole(arguments):
    layer = make_convolution(arguments)
    x = torch.randn(2, 24, layer.in_channels)
    state, pieces = None, []
    for piece in x.split([layer.stride, 2 * layer.stride, 24 - 3 * layer.stride], dim=1):
        y, state = layer(piece, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), layer(x, None)[0])


@pytest.mark.parametrize("elu", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(("kernel_size", "stride"), [(4, 2), (9, 3), (5, 5)])
@torch.no_grad()
def test_transposed_convolution_equals_torch_and_its_pieces(kernel_size, stride, groups, elu):
    torch.manual_seed(0)
    layer = CausalConvTranspose1d(6, 6, kernel_size, stride, groups=groups, elu=elu)
    x = torch.randn(2, 8, 6)
    expected = layer.conv((F.elu(x) if elu else x).transpose(1, 2))[..., : 8 * stride].transpose(1, 2)
    torch.testing.assert_close(layer(x, None)[0], expected)
    first, state = layer(x[:, :1], None)
    second, _ = layer(x[:, 1:], state)
    torch.testing.assert_close(torch.cat([first, second], dim=1), expected)


@pytest.mark.parametrize("layer", [CausalConv1d(20, 5, 4, stride=2), CausalConvTranspose1d(20, 5, 4, stride=2)])
def test_weights_keep_their_shape_in_another_memory_format(layer):
    shape = layer.conv.weight.shape
    assert layer.conv.weight.is_contiguous()
    x = torch.randn(1, 4, 20)
    expected = layer(x, None)[0]
    layer.arrange_weight()
    torch.testing.assert_close(layer(x, None)[0], expected)  # any strides give the same
    assert layer.conv.weight.permute(layer.memory_order).is_contiguous()
    assert layer.conv.weight.shape == shape


def naive_transformer(transformer, x, window):
    """The same layers with a full score matrix and absolute positions, one head at a time."""
    steps = x.shape[1]
    distance = torch.arange(steps)[:, None] - torch.arange(steps)
    allowed = (distance >= 0) & (distance < window)
    for layer in transformer.layers:
        attention, normed = layer.self_attn, layer.input_layernorm(x)
        table = rotary_table(torch.arange(steps), attention.head_dim, transformer.config.rope_theta)
        outputs = []
        for head in range(transformer.config.num_attention_heads):
            group = head // attention.groups
            rows = slice(head * attention.head_dim, (head + 1) * attention.head_dim)
            group_rows = slice(group * attention.head_dim, (group + 1) * attention.head_dim)
            query = rotate(normed @ attention.q_proj.weight[rows].T, table)
            key = rotate(normed @ attention.k_proj.weight[group_rows].T, table)
            scores = (query @ key.transpose(1, 2) / attention.head_dim**0.5).masked_fill(~allowed, -torch.inf)
            outputs.append(scores.softmax(-1) @ (normed @ attention.v_proj.weight[group_rows].T))
        x = x + layer.self_attn_layer_scale.scale * attention.o_proj(torch.cat(outputs, dim=-1))
        x = x + layer.mlp_layer_scale.scale * layer.mlp(layer.post_attention_layernorm(x))
    return x


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("key_value_heads", [4, 2, 1])
@torch.no_grad()
def test_transformer_equals_full_attention_and_its_pieces(key_value_heads, implementation):
    torch.manual_seed(0)
    config = MimiConfig(**{**TINY, "num_key_value_heads": key_value_heads, "layer_scale_initial_scale": 0.5})
    config._attn_implementation = implementation
    transformer = Transformer(config)
    x = torch.randn(2, 30, config.hidden_size)
    expected = naive_transformer(transformer, x, config.sliding_window)
    torch.testing.assert_close(transformer(x, None)[0], expected)
    state, pieces = None, []
    for piece in x.split([1, 3, 17, 9], dim=1):
        y, state = transformer(piece, state)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected)


@torch.no_grad()
def test_rings_are_written_in_place_but_for_gradients():
    transformer = Transformer(MimiConfig(**TINY))
    x = torch.randn(1, 2, 32)
    _, state = transformer(x, None)
    memory = state.keys[0].data_ptr()
    for _ in range(9):  # around the ring and on
        y, new_state = transformer(x, state)
        assert new_state.keys[0].data_ptr() == memory
        torch.testing.assert_close(transformer(x, state)[0], y)  # a step can be taken again
        state = new_state
    with torch.enable_grad():
        before = [copy_state(state), state]
        _, new_state = transformer(x, state)
        assert new_state.keys[0].data_ptr() != memory
        torch.testing.assert_close(*before)


def test_rotary_angles_are_exact_at_any_position():
    for position in (0, 249, 10**6, 10**12):
        cos, sin = rotary_table(torch.tensor(position), 8, 10000.0)
        angles = [position * 10000.0 ** (-i / 4) for i in range(4)]
        # Double precision itself knows the angle at 10**12 to 1e-4 only.
        tolerance = 1e-6 + 2e-16 * position
        assert cos.tolist() == pytest.approx([math.cos(angle) for angle in angles] * 2, abs=tolerance)
        assert sin[4:].tolist() == pytest.approx([math.sin(angle) for angle in angles], abs=tolerance)
        assert torch.equal(sin[:4], -sin[4:])


def test_search_finds_the_nearest_entries_of_each_residual():
    quantizer = make_model().quantizer
    latents = torch.randn(2, 7, 32)
    codes = quantizer.search(latents, 6)
    for rvq, part in (
        (quantizer.semantic_residual_vector_quantizer, codes[:, :1]),
        (quantizer.acoustic_residual_vector_quantizer, codes[:, 1:]),
    ):
        residual = F.conv1d(latents.transpose(1, 2), rvq.input_proj.weight).transpose(1, 2)
        for level, layer in enumerate(rvq.layers):
            distances = (residual[:, :, None] - layer.codebook.embed).norm(dim=-1)
            torch.testing.assert_close(part[:, level], distances.argmin(dim=-1))
            residual = residual - layer.codebook.embed[part[:, level]]


def test_lookup_sums_the_entries():
    quantizer = make_model().quantizer
    codes = torch.randint(0, 64, (2, 6, 5))
    expected = 0
    for rvq, part in (
        (quantizer.semantic_residual_vector_quantizer, codes[:, :1]),
        (quantizer.acoustic_residual_vector_quantizer, codes[:, 1:]),
    ):
        entries = sum(layer.codebook.embed[part[:, level]] for level, layer in enumerate(rvq.layers))
        expected = expected + F.conv1d(entries.transpose(1, 2), rvq.output_proj.weight).transpose(1, 2)
    torch.testing.assert_close(quantizer.lookup(codes), expected)
    torch.testing.assert_close(quantizer.decode(codes), expected.transpose(1, 2))


def test_derived_codebooks_follow_their_buffers():
    model = make_model()
    codes = torch.zeros(1, 2, 1, dtype=torch.int64)
    before = model.quantizer.lookup(codes)
    model.quantizer.semantic_residual_vector_quantizer.layers[0].codebook.embed_sum.mul_(2)
    after = model.quantizer.lookup(codes)
    assert not torch.allclose(after, before)
    for mode in (True, False):  # in training .data is seen at once, which torch does not count; later by the switch
        model.quantizer.semantic_residual_vector_quantizer.layers[0].codebook.embed_sum.data.mul_(2)
        before, after = after, model.train(mode).quantizer.lookup(codes)
        assert not torch.allclose(after, before)
    assert model.quantizer.semantic_residual_vector_quantizer.tables()[0].dtype == torch.float32


def test_reset_and_copy_of_states():
    state = (torch.ones(2, 3), (torch.ones(2), None))
    copied = copy_state(state)
    rows = reset_rows(state, torch.tensor([False, True]))
    assert rows[0].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert rows[1][0].tolist() == [1, 0]
    copied[0].zero_()
    assert state[0].sum() == 6
    assert map_state(torch.numel, state) == (6, (2, None))
