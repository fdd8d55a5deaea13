"""8-bit weights: as near as their rounding allows, the same whichever product is taken, saved and loaded."""

import json

import pytest
import torch
from support.tiny import FRAME, make_audio, make_model
from transformers.quantizers import AutoHfQuantizer

from mimi_hf import MimiInt8Config, MimiModel, quantization
from mimi_hf.codec.causal_conv import CausalConv1d, CausalConvTranspose1d
from mimi_hf.codec.matmul import linear
from mimi_hf.conversion import export_checkpoint
from mimi_hf.quantization import dequantize, quantizable, quantize

EVERYTHING = MimiInt8Config(min_size=1)


@pytest.fixture
def quantized(checkpoint):
    return MimiModel.from_pretrained(checkpoint, quantization_config=EVERYTHING)


def signal_to_noise(actual, expected):
    """In dB."""
    return float(10 * torch.log10(expected.square().sum() / (actual - expected).square().sum()))


def quantize_module(module):
    ((holder, order),) = quantizable(module, 1)
    integers, scale = quantize(holder.weight, order)
    floats = dequantize(integers, scale, order)
    holder.weight = torch.nn.Parameter(integers, requires_grad=False)
    holder.register_buffer("weight_scale", scale)
    return floats


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_rounding_is_at_most_half_a_step(order):
    weight = torch.randn(7, 50, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    integers, scale = quantize(weight, order)
    assert integers.dtype == torch.int8 and integers.shape == weight.shape
    error = (dequantize(integers, scale, order) - weight).abs()
    scale = scale.float()
    step = scale[:, None] if order == (0, 1) else scale
    assert (error <= step / 2 * (1 + 1e-6)).all()
    assert (step.flatten() <= weight.abs().amax(dim=order[1]) / 126).all()


@pytest.mark.parametrize("rows", [1, 5, 32, 33, 400])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nn.Linear(96, 30),
        lambda: CausalConv1d(1, 8, 7),
        lambda: CausalConv1d(32, 12, 3, dilation=2, elu=True),
        lambda: CausalConv1d(16, 12, 8, stride=4, bias=False),
        lambda: CausalConvTranspose1d(64, 12, 8, stride=4, elu=True),
        lambda: CausalConvTranspose1d(20, 12, 8, stride=4),
    ],
    ids=["linear", "mono", "dilated", "strided", "transposed", "of odd width"],
)
def test_any_number_of_rows_gives_the_product_with_the_rounded_weight(make, dtype, rows):
    torch.manual_seed(0)
    layer, rounded = make(), make()
    floats = quantize_module(layer)
    with torch.no_grad():
        holder = getattr(rounded, "conv", rounded)
        holder.weight.copy_(floats)
        if holder.bias is not None:
            holder.bias.copy_(getattr(layer, "conv", layer).bias)
    layer.to(dtype)
    if isinstance(layer, torch.nn.Linear):
        x = torch.randn(1, rows, 96)
        with torch.no_grad():
            actual, expected = linear(layer, x.to(dtype)), rounded(x)
    else:
        stride = layer.stride if isinstance(layer, CausalConv1d) else 1
        x = torch.randn(1, rows * stride, holder.in_channels)
        with torch.no_grad():
            actual, expected = layer(x.to(dtype), None)[0], rounded(x, None)[0]
    assert actual.dtype == dtype
    assert signal_to_noise(actual.float(), expected) > 40  # half precision


@torch.no_grad()
def test_quantized_model_is_near(quantized):
    model, audio = make_model(), make_audio(40 * FRAME)
    assert {weight.dtype for name, weight in quantized.named_parameters() if "conv.weight" in name} > {torch.int8}
    assert quantized.dtype == torch.float32
    latents = model.encode_latents(audio)
    assert signal_to_noise(quantized.encode_latents(audio), latents) > 20
    assert signal_to_noise(quantized.decode_latents(latents), model.decode_latents(latents)) > 20
    codebook = "quantizer.semantic_residual_vector_quantizer.layers.0.codebook.embed_sum"
    assert torch.equal(quantized.state_dict()[codebook], model.state_dict()[codebook])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_save_and_load(quantized, tmp_path, dtype):
    quantized.to(dtype).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["quant_method"] == "mimi_int8"
    for again in (MimiModel.from_pretrained(tmp_path), MimiModel.from_pretrained(tmp_path, dtype="auto")):
        assert again.dtype == (dtype if again.config.dtype == dtype else torch.float32)
        again = again.to(dtype)
        for name, tensor in quantized.state_dict().items():
            assert torch.equal(again.state_dict()[name], tensor), name
            assert again.state_dict()[name].dtype == tensor.dtype
        audio = make_audio(5 * FRAME).to(dtype)
        assert torch.equal(again.encode(audio).audio_codes, quantized.encode(audio).audio_codes)


@torch.no_grad()
def test_quantized_rows_are_each_as_alone(quantized):
    audio = make_audio(12 * FRAME, batch=3)
    encoder, decoder = quantized.encoder_stream(3), quantized.decoder_stream(3)
    codes = torch.cat([encoder.push(chunk) for chunk in audio.split(FRAME, dim=2)], dim=2)
    sound = torch.cat([decoder.push(frame) for frame in codes.split(1, dim=2)], dim=2)
    for row in range(3):
        encoder, decoder = quantized.encoder_stream(), quantized.decoder_stream()
        alone = torch.cat([encoder.push(chunk) for chunk in audio[row : row + 1].split(FRAME, dim=2)], dim=2)
        assert (alone == codes[row : row + 1]).float().mean() > 0.98
        heard = torch.cat([decoder.push(frame) for frame in codes[row : row + 1].split(1, dim=2)], dim=2)
        assert signal_to_noise(sound[row : row + 1], heard) > 40


def test_gradients_flow_through(quantized):
    audio = make_audio(4 * FRAME).requires_grad_()
    quantized.encode_latents(audio).square().sum().backward()
    assert audio.grad.abs().sum() > 0


@torch.no_grad()
def test_dequantize(quantized):
    audio = make_audio(6 * FRAME)
    latents = quantized.encode_latents(audio)
    floats = quantized.dequantize()
    assert {weight.dtype for weight in floats.parameters()} == {torch.float32}
    assert not [name for name in floats.state_dict() if name.endswith("weight_scale")]
    assert signal_to_noise(floats.encode_latents(audio), latents) > 35
    assert not hasattr(floats.config, "quantization_config")


def test_bad_sizes():
    for size in (0, 1.5, True):
        with pytest.raises(ValueError, match="min_size"):
            MimiInt8Config(min_size=size)


def test_small_weights_stay_and_a_model_without_others_says_so(checkpoint, monkeypatch):
    told = []
    monkeypatch.setattr(quantization.logger, "warning", told.append)
    model = MimiModel.from_pretrained(checkpoint, quantization_config=MimiInt8Config(min_size=10**9))
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert "all stay floats" in told[0]


def test_models_that_embed_mimi_refuse_it():
    from transformers import BertConfig, BertModel

    quantizer = AutoHfQuantizer.from_config(MimiInt8Config())
    with pytest.raises(ValueError, match="MimiModel alone, not for BertModel"):
        quantizer._process_model_before_weight_loading(
            BertModel(BertConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8))
        )


def test_original_format_refuses_8_bit_weights(quantized, tmp_path):
    quantized.save_pretrained(tmp_path / "int8")
    with pytest.raises(ValueError, match=r"8-bit weights.*dequantize"):
        export_checkpoint(tmp_path / "int8", tmp_path / "original.safetensors")
    quantized.dequantize().save_pretrained(tmp_path / "floats")
    assert export_checkpoint(tmp_path / "floats", tmp_path / "original.safetensors").tensors


def test_loaded_in_inference_mode(quantized, checkpoint, tmp_path):
    quantized.save_pretrained(tmp_path)
    audio = make_audio(FRAME)
    with torch.inference_mode():
        again = MimiModel.from_pretrained(tmp_path)
        made = MimiModel.from_pretrained(checkpoint, quantization_config=EVERYTHING)
        expected = again.encode(audio).audio_codes
        assert torch.equal(made.encode(audio).audio_codes, expected)
    with torch.no_grad():
        assert torch.equal(again.encode(audio).audio_codes, expected)
        assert torch.equal(quantized.encode(audio).audio_codes, expected)
