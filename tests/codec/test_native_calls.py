"""The outer layers are called as transformers' own are, in either of its layouts."""

import pytest
import torch
from support.tiny import FRAME, assert_same_audio, make_audio, make_model
from transformers import DynamicCache
from transformers.models.mimi.modeling_mimi import MimiModel as NativeMimi


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native")
    make_model().save_pretrained(folder)
    return NativeMimi.from_pretrained(folder).eval()


def halves(native):
    """Native's networks and layers: encoder, its transformer, downsample, upsample, the decoder's, decoder."""
    if not hasattr(native.encoder, "encoder_seanet"):  # up to 5.20
        names = ("encoder", "encoder_transformer", "downsample", "upsample", "decoder_transformer", "decoder")
        return [getattr(native, name) for name in names]
    first, second = native.encoder, native.decoder
    return [
        *(first.encoder_seanet, first.encoder_transformer, first.downsample),
        *(second.upsample, second.decoder_transformer, second.decoder_seanet),
    ]


@torch.no_grad()
def test_each_call_gives_what_native_gives(model, native):
    encoder, transformer, downsample, upsample, second, decoder = halves(native)
    audio = make_audio(9 * FRAME, batch=2)
    x = encoder(audio)
    assert_same_audio(model.encoder(audio), x)
    y = transformer(x.transpose(1, 2))[0]
    assert_same_audio(model.encoder_transformer(x.transpose(1, 2))[0], y)
    assert_same_audio(model.encoder_transformer(x.transpose(1, 2), return_dict=False)[0], y)
    z = downsample(y.transpose(1, 2))
    assert_same_audio(model.downsample(y.transpose(1, 2)), z)
    assert_same_audio(model.downsample(y[:, :5].transpose(1, 2)), downsample(y[:, :5].transpose(1, 2)))
    u = upsample(z)
    assert_same_audio(model.upsample(z), u)
    v = second(u.transpose(1, 2)).last_hidden_state
    assert_same_audio(model.decoder_transformer(u.transpose(1, 2)).last_hidden_state, v)
    assert_same_audio(model.decoder(v.transpose(1, 2)), decoder(v.transpose(1, 2)))
    assert_same_audio(model.decoder(v[:, :5].transpose(1, 2)), decoder(v[:, :5].transpose(1, 2)))


@pytest.mark.parametrize("samples", [9 * FRAME, 9 * FRAME - 13, 5])
def test_an_encoder_is_a_network_and_a_half(model, samples):
    audio = make_audio(samples)
    output = model.encoder(audio)
    assert output.shape[2] == -(-samples // model.config.hop_length)
    assert_same_audio(output.latents, model.encode_latents(audio))
    assert output.padding_cache is output.cache is output.past_key_values is None
    assert type(output + 1) is torch.Tensor
    chain = model.downsample(model.encoder_transformer(output.transpose(1, 2))[0].transpose(1, 2))
    assert chain.shape == output.latents.shape
    whole = samples // FRAME
    assert torch.allclose(chain[..., :whole], output.latents[..., :whole], atol=1e-5)


@torch.no_grad()
def test_a_decoder_is_a_network_and_a_half(model):
    latents = model.encode_latents(make_audio(7 * FRAME))
    expected = model.decode_latents(latents)
    assert_same_audio(model.decoder(latents).audio_values, expected)
    assert_same_audio(model.decoder(latents=latents).audio_values, expected)
    assert model.decoder(latents).decoder_cache is None


def test_nested_paths_name_the_same_layers(model):
    assert model.encoder.encoder_seanet is model.encoder
    assert model.encoder.encoder_transformer is model.encoder_transformer
    assert model.encoder.downsample is model.downsample
    assert model.decoder.decoder_seanet is model.decoder
    assert model.decoder.decoder_transformer is model.decoder_transformer
    assert model.decoder.upsample is model.upsample
    assert not [name for name, _ in model.named_parameters(remove_duplicate=False) if "seanet" in name]
    names = model.encoder._conv1d_layer_names
    assert names == model.encoder._mimiconv1d_layer_names
    assert all(model.encoder.get_submodule(name).padding_total >= 0 for name in names)


def test_gradients_flow_through_the_calls():
    model = make_model()
    audio = make_audio(4 * FRAME).requires_grad_()
    latents = model.downsample(model.encoder_transformer(model.encoder(audio).transpose(1, 2))[0].transpose(1, 2))
    latents.square().sum().backward()
    assert audio.grad.abs().sum() > 0
    assert model.encoder.layers[0].conv.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_a_transformer_goes_on_from_its_cache(model):
    x = torch.randn(2, 25, model.config.hidden_size)
    whole = model.encoder_transformer(x)
    assert whole.past_key_values is whole.cache is None
    first = model.encoder_transformer(x[:, :8], use_cache=True)
    second = model.encoder_transformer(x[:, 8:], past_key_values=first.past_key_values)
    parts = [first.last_hidden_state, second.last_hidden_state]
    assert torch.allclose(torch.cat(parts, dim=1), whole.last_hidden_state, atol=1e-5)
    with pytest.raises(TypeError, match="DynamicCache"):
        model.encoder_transformer(x, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="without a cache"):
        model.encoder_transformer(x, cache=second.cache, output_attentions=True)


@torch.no_grad()
def test_masks_of_a_transformer_are_causal(model):
    x = torch.randn(2, 8, model.config.hidden_size)  # inside the window of 10
    expected = model.encoder_transformer(x)[0]
    causal = torch.ones(8, 8, dtype=torch.bool).tril()[None, None]
    right = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    for mask in (causal, torch.zeros(causal.shape).masked_fill(~causal, -1e9), right):
        assert torch.equal(model.encoder_transformer(x, attention_mask=mask)[0], expected)
    assert torch.equal(model.encoder_transformer(x, causal)[0], expected)
    for mask in (torch.ones_like(causal), right.flip(1), causal[0]):
        with pytest.raises(ValueError, match="causal over the window"):
            model.encoder_transformer(x, attention_mask=mask)


def test_caches_of_convolutions_are_refused(model):
    audio = make_audio(2 * FRAME)
    with pytest.raises(ValueError, match=r"encoder_stream\(\)"):
        model.encoder(audio, padding_cache=object())
    with pytest.raises(ValueError, match=r"decoder_stream\(\)"):
        model.decoder(torch.zeros(1, 32, 2), use_cache=True)
    with pytest.raises(ValueError, match="padding_cache"):
        model.downsample(torch.zeros(1, 32, 2), padding_cache=object())


@torch.no_grad()
def test_quantizers_are_called_as_natives(model, native):
    latents = model.encode_latents(make_audio(9 * FRAME, batch=2))
    for half in ("semantic_residual_vector_quantizer", "acoustic_residual_vector_quantizer"):
        ours, theirs = getattr(model.quantizer, half), getattr(native.quantizer, half)
        codes = ours.encode(latents)
        assert torch.equal(codes, theirs.encode(latents))
        assert torch.equal(ours.encode(latents, num_quantizers=1), codes[:1])
        assert_same_audio(ours.decode(codes.transpose(0, 1)), theirs.decode(codes.transpose(0, 1)))
        vectors = ours.input_proj(latents)
        for layer, other in zip(ours.layers, theirs.layers, strict=True):
            assert torch.allclose(layer.codebook.embed, other.codebook.embed)
            assert torch.equal(layer.encode(vectors), other.encode(vectors))
            assert_same_audio(layer.decode(codes[0]), other.decode(codes[0]))
            flat = vectors.transpose(1, 2).flatten(0, 1)
            assert torch.equal(layer.codebook.quantize(flat), other.codebook.quantize(flat))
