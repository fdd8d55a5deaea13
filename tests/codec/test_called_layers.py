"""Layers with hooks, with parametrizations, or with other modules in their place are called."""

import pytest
import torch
from support.tiny import FRAME, assert_same_audio, make_audio, make_model
from torch.nn.utils import parametrizations, parametrize, prune

from mimi_hf import MimiInt8Config, MimiModel
from mimi_hf.codec.causal_conv import CausalConv1d, CausalConvTranspose1d

LAYERS = {
    "plain": lambda: CausalConv1d(3, 5, 7),
    "dilated": lambda: CausalConv1d(3, 5, 3, dilation=4, elu=True),
    "of one step": lambda: CausalConv1d(3, 5, 1, elu=True),
    "strided": lambda: CausalConv1d(20, 5, 8, stride=4, pad_mode="replicate", elu=True),
    "without bias": lambda: CausalConv1d(3, 5, 4, stride=2, bias=False),
    "transposed": lambda: CausalConvTranspose1d(6, 4, 4, 2, elu=True),
    "transposed, three taps": lambda: CausalConvTranspose1d(6, 6, 9, 3, groups=6),
    "transposed, in groups": lambda: CausalConvTranspose1d(6, 6, 4, 2, groups=2, bias=False),
    "transposed, one tap": lambda: CausalConvTranspose1d(6, 6, 5, 5),
}


class Scale(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def own_forward(layer):
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


class Doubled(torch.nn.Module):
    """Around a layer, without its attributes."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return 2 * self.layer(x)


# What makes a layer without bias give twice what it gives.
DOUBLING = {
    "parametrization": lambda layer: parametrize.register_parametrization(layer, "weight", Scale()),
    "hook": lambda layer: layer.register_forward_hook(lambda module, inputs, output: 2 * output),
    "hook before": lambda layer: layer.register_forward_pre_hook(lambda module, inputs: 2 * inputs[0]),
    "forward of its own": own_forward,
    "module around it": Doubled,
}


@pytest.mark.parametrize("length", [24, 600])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_called_layer_gives_what_the_products_give_whole_and_in_pieces(layer, length, gradients):
    torch.manual_seed(0)
    layer = LAYERS[layer]()
    stride = getattr(layer, "stride", 1) if isinstance(layer, CausalConv1d) else 1
    x = torch.randn(2, length, layer.conv.in_channels)
    with torch.set_grad_enabled(gradients):
        expected, state = layer(x, None)
        calls = []
        layer.conv.register_forward_hook(lambda *_: calls.append(1))
        called, called_state = layer(x, None)
        torch.testing.assert_close(called, expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(called_state, state)
        pieces, state = [], None
        for piece in x.split([stride, 2 * stride, length - 3 * stride], dim=1):
            y, state = layer(piece, state)
            pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(state, called_state)
    assert len(calls) == 4


def weighted(model):
    """Names of all layers that multiply with a weight."""
    kinds = torch.nn.Linear | torch.nn.Conv1d | torch.nn.ConvTranspose1d
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("way", DOUBLING)
def test_whatever_changes_a_layer_changes_the_model(way):
    """Doubled from outside, and with the weights doubled: the same. The weights are halved first, by powers of two."""
    expected, model = make_model(), make_model()
    for name in weighted(model):
        layer = model.get_submodule(name)
        if layer.bias is not None:
            layer.bias = None
            expected.get_submodule(name).bias = None
        layer.weight.data.mul_(0.5)
        other = DOUBLING[way](layer)
        if way == "module around it":
            model.set_submodule(name, other)
    audio = make_audio(20 * FRAME, batch=2)
    codes = expected.encode(audio).audio_codes
    assert torch.equal(model.encode(audio).audio_codes, codes)
    stream = model.encoder_stream(2)
    assert torch.equal(torch.cat([stream.push(chunk) for chunk in audio.split(FRAME, dim=2)], dim=2), codes)
    with torch.no_grad():
        whole = expected.decode(codes).audio_values
        assert_same_audio(model.decode(codes).audio_values, whole)
    stream = model.decoder_stream(2)
    assert_same_audio(torch.cat([stream.push(part) for part in codes.split(1, dim=2)], dim=2), whole)


@pytest.mark.parametrize(
    "kind", [parametrizations.weight_norm, parametrizations.spectral_norm, torch.nn.utils.weight_norm]
)
def test_reparametrized_layers_train_and_leave_what_they_learnt(kind):
    model = make_model()
    model.encode(make_audio(FRAME))
    names = weighted(model)
    for name in names:
        kind(model.get_submodule(name))
    model.train()(make_audio(10 * FRAME, batch=2)).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    codes = model.eval().encode(make_audio(10 * FRAME)).audio_codes
    for name in names:
        layer = model.get_submodule(name)
        if kind is torch.nn.utils.weight_norm:
            torch.nn.utils.remove_weight_norm(layer)
        else:
            parametrize.remove_parametrizations(layer, "weight")
    assert torch.equal(model.encode(make_audio(10 * FRAME)).audio_codes, codes)


def test_pruned_weights_are_zero():
    model, zeroed = make_model(), make_model()
    for name in weighted(model):
        prune.l1_unstructured(model.get_submodule(name), "weight", 0.5)
        weight = zeroed.get_submodule(name).weight
        least = weight.data.abs().flatten().kthvalue(round(0.5 * weight.numel())).values
        weight.data[weight.abs() <= least] = 0
    audio = make_audio(10 * FRAME)
    codes = model.encode(audio).audio_codes
    assert torch.equal(codes, zeroed.encode(audio).audio_codes)
    for name in weighted(model):
        prune.remove(model.get_submodule(name), "weight")
    assert torch.equal(model.encode(audio).audio_codes, codes)


@pytest.mark.parametrize("name", ["encoder.layers.3.conv", "encoder_transformer.layers.0.mlp.fc1"])
@pytest.mark.parametrize("kind", ["full_backward_hook", "full_backward_pre_hook"])
def test_hooks_of_gradients_are_called(name, kind):
    model, seen = make_model(), []
    getattr(model.get_submodule(name), f"register_{kind}")(lambda *_: seen.append(1))
    model.train()(make_audio(2 * FRAME)).loss.backward()
    assert seen == [1]


@pytest.mark.parametrize("name", ["encoder.layers.3.conv", "encoder_transformer.layers.0.mlp.fc1"])
@pytest.mark.parametrize("way", ["hook", "module around it"])
def test_eight_bit_weights_refuse_what_they_would_ignore(checkpoint, name, way):
    model = MimiModel.from_pretrained(checkpoint, quantization_config=MimiInt8Config(min_size=1))
    other = DOUBLING[way](model.get_submodule(name))
    if way == "module around it":
        model.set_submodule(name, other)
    with pytest.raises(ValueError, match=r"8-bit weights.*takes none.*without quantization_config"):
        model.encode(make_audio(2 * FRAME))
