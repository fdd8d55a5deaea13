"""The encoder and the decoder by themselves, as transformers has them since 5.21."""

import json

import pytest
import torch
from support.tiny import FRAME, assert_same_audio, make_audio, make_model
from transformers import AutoConfig, AutoModel
from transformers.models.mimi import modeling_mimi as native

import mimi_hf
from mimi_hf import MimiConfig, MimiDecoderConfig, MimiDecoderModel, MimiEncoderConfig, MimiEncoderModel, MimiModel

nested = pytest.mark.skipif(not hasattr(native, "MimiEncoderModel"), reason="transformers has halves since 5.21")


@pytest.fixture(scope="module")
def encoder(checkpoint):
    return MimiEncoderModel.from_pretrained(checkpoint).eval()


@pytest.fixture(scope="module")
def decoder(checkpoint):
    return MimiDecoderModel.from_pretrained(checkpoint).eval()


def test_halves_of_a_folder_compute_what_the_whole_does(checkpoint, encoder, decoder, model):
    for kind in (MimiEncoderModel, MimiDecoderModel):
        _, info = kind.from_pretrained(checkpoint, output_loading_info=True)
        assert not any(info.values()), info
    audio = make_audio(7 * FRAME - 5, batch=2)
    mask = torch.ones(2, audio.shape[2])
    mask[1, 3 * FRAME :] = 0
    for masks in ((), (mask,)):
        latents = encoder(audio, *masks).latents
        assert_same_audio(latents, model.encode_latents(audio, *masks))
        with torch.no_grad():
            assert_same_audio(decoder(latents, *masks).audio_values, model.decode_latents(latents, *masks))
    assert encoder(audio, return_dict=False)[0].shape == (2, 32, 7)
    assert encoder.encoder_seanet is encoder.encoder
    assert decoder.decoder_seanet is decoder.decoder


def test_files_and_auto_classes(encoder, decoder, tmp_path):
    for half, kind in ((encoder, MimiEncoderConfig), (decoder, MimiDecoderConfig)):
        half.save_pretrained(tmp_path / kind.model_type)
        saved = json.loads((tmp_path / kind.model_type / "config.json").read_text())
        assert saved["model_type"] == kind.model_type
        assert not {"encoder_config", "decoder_config"} & set(saved)
        loaded = AutoModel.from_pretrained(tmp_path / kind.model_type)
        assert type(loaded) is type(half)
        assert type(AutoConfig.from_pretrained(tmp_path / kind.model_type)) is kind
        assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in half.state_dict().items())
    config = make_model().config
    assert type(AutoModel.from_config(config.encoder_config)) is MimiEncoderModel
    assert type(AutoModel.from_config(config.decoder_config)) is MimiDecoderModel
    mimi_hf.unregister()
    try:
        assert not isinstance(AutoConfig.from_pretrained(tmp_path / "mimi_encoder"), MimiConfig)
    except (ValueError, KeyError):
        assert not hasattr(native, "MimiEncoderModel")  # a version that knows no halves
    finally:
        mimi_hf.register()


@nested
def test_native_reads_the_files_of_halves(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    audio = make_audio(6 * FRAME)
    theirs = native.MimiEncoderModel.from_pretrained(tmp_path).eval()
    assert_same_audio(encoder(audio).latents, theirs(audio).latents)


def test_streams_equal_the_whole(encoder, decoder):
    audio = make_audio(9 * FRAME, batch=2)
    whole = encoder(audio).latents
    cache, parts = None, []
    for chunk in audio.split(100, dim=2):
        output = encoder(chunk, cache=cache, use_streaming=True)
        cache = output.cache
        assert output.padding_cache is output.past_key_values is cache
        parts.append(output.latents)
    assert torch.allclose(torch.cat(parts, dim=2), whole, atol=1e-5)
    cache, parts = None, []
    for chunk in whole.split(2, dim=2):
        output = decoder(chunk, past_key_values=cache, use_cache=True)
        cache = output.decoder_cache
        parts.append(output.audio_values)
    with torch.no_grad():
        assert_same_audio(torch.cat(parts, dim=2), decoder(whole).audio_values)


def test_latent_streams_of_a_model(model):
    audio = make_audio(9 * FRAME, batch=2)
    stream, decoder = model.latent_encoder_stream(2), model.latent_decoder_stream(2)
    latents = torch.cat([stream.push(chunk) for chunk in audio.split(50, dim=2)] + [stream.flush().audio_codes], dim=2)
    assert torch.allclose(latents, model.encode_latents(audio), atol=1e-5)
    values = torch.cat([decoder.push(part) for part in latents.split(4, dim=2)], dim=2)
    with torch.no_grad():
        assert_same_audio(values, model.decode_latents(latents))
    # A row that pauses goes on where it was.
    stream, decoder = model.latent_encoder_stream(2), model.latent_decoder_stream(2)
    first = stream.push(audio[..., : 4 * FRAME])
    assert stream.push(audio[..., 4 * FRAME : 5 * FRAME], active=[0])[1].abs().max() == 0
    second = stream.push(audio[..., 4 * FRAME :])
    assert torch.allclose(torch.cat([first, second], dim=2)[1], latents[1], atol=1e-5)
    decoder.push(first)
    assert decoder.push(first[..., :1], active=[0])[1].abs().max() == 0
    assert_same_audio(decoder.push(second)[1], values[1, :, 4 * FRAME :])
    with pytest.raises(ValueError, match="32, frames"):
        decoder.push(torch.zeros(2, 5, 1))


def test_halves_know_no_codes(encoder, decoder):
    for call in (
        lambda: encoder.encode(make_audio(FRAME)),
        lambda: encoder.encoder_stream(),
        lambda: decoder.decode(torch.zeros(1, 6, 1, dtype=torch.int64)),
    ):
        with pytest.raises(ValueError, match="latents alone"):
            call()
    with pytest.raises(ValueError, match="loaded without its decoder"):
        encoder.decode_latents(torch.zeros(1, 32, 1))
    with pytest.raises(ValueError, match="without its encoder"):
        MimiEncoderModel(make_model().config.decoder_config)


# The two packages' configurations


@nested
def test_our_configuration_makes_a_native_model(checkpoint, model):
    config = AutoConfig.from_pretrained(checkpoint)
    assert type(config) is MimiConfig
    theirs, info = native.MimiModel.from_pretrained(checkpoint, config=config, output_loading_info=True)
    assert not any(info.values()), info
    theirs.eval()
    audio = make_audio(6 * FRAME, batch=2)
    codes = model.encode(audio).audio_codes
    assert torch.equal(theirs.encode(audio).audio_codes, codes)
    with torch.no_grad():
        assert_same_audio(theirs.decode(codes).audio_values, model.decode(codes).audio_values)
    cache, parts = {}, []
    for chunk in audio.split(FRAME, dim=2):
        output = theirs.encode(chunk, use_streaming=True, **cache)
        name = "encoder_cache" if hasattr(output, "encoder_cache") else "encoder_past_key_values"
        cache = {name: getattr(output, name), "padding_cache": output.padding_cache}
        parts.append(output.audio_codes)
    assert torch.equal(torch.cat(parts, dim=2), codes)


def test_native_configurations_make_our_models(checkpoint, model):
    audio = make_audio(4 * FRAME)
    config = native.MimiConfig.from_pretrained(checkpoint)
    loaded = MimiModel.from_pretrained(checkpoint, config=config).eval()
    assert type(loaded.config) is MimiConfig
    assert torch.equal(loaded.encode(audio).audio_codes, model.encode(audio).audio_codes)
    assert MimiModel(config).eval().encode(audio).audio_codes.shape == (1, 6, 4)

    class Derived(native.MimiConfig):
        model_type = "mimi"

    assert MimiConfig.of(Derived(num_filters=8)).num_filters == 8
    with pytest.raises(TypeError, match="'bert'"):
        MimiModel(AutoConfig.for_model("bert"))
    with pytest.raises(TypeError, match="dict"):
        MimiModel({"num_filters": 8})


@nested
def test_native_half_configurations_make_our_halves(checkpoint, model):
    config = native.MimiConfig.from_pretrained(checkpoint)
    half = MimiEncoderModel.from_pretrained(checkpoint, config=config.encoder_config).eval()
    assert_same_audio(half(make_audio(3 * FRAME)).latents, model.encode_latents(make_audio(3 * FRAME)))
