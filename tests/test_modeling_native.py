"""Calls of transformers' style: names of caches, defaults of the config, hidden states, checkpointing."""

import copy

import pytest
import torch
from support.tiny import FRAME, assert_same_audio, make_audio, make_model
from transformers.models.mimi import modeling_mimi as native

from mimi_hf import MimiModel

NEW, FORMER = ("encoder_cache", "decoder_cache"), ("encoder_past_key_values", "decoder_past_key_values")


@pytest.mark.parametrize("names", [NEW, FORMER])
def test_caches_have_the_names_of_every_version(model, names):
    audio = make_audio(8 * FRAME)
    codes, values, encoder_cache, decoder_cache = [], [], None, None
    for chunk in audio.split(FRAME, dim=2):
        encoded = model.encode(chunk, use_streaming=True, **{names[0]: encoder_cache})
        decoded = model.decode(encoded.audio_codes, use_cache=True, **{names[1]: decoder_cache})
        encoder_cache, decoder_cache = getattr(encoded, names[0]), decoded[names[1]]
        assert encoded[names[0]] is encoded.padding_cache is encoded[1] is encoder_cache
        codes.append(encoded.audio_codes)
        values.append(decoded.audio_values)
    codes = torch.cat(codes, dim=2)
    assert torch.equal(codes, model.encode(audio).audio_codes)
    with torch.no_grad():
        assert_same_audio(torch.cat(values, dim=2), model.decode(codes).audio_values)
    output = model(audio, use_streaming=True)
    assert output[names[0]] is getattr(output, names[0]) is output.encoder_cache
    assert output[names[1]] is getattr(output, names[1]) is output.decoder_cache


def test_unknown_keywords_are_ignored_as_by_native(model):
    audio = make_audio(2 * FRAME)
    assert model.encode(audio, cache_position=None, anything=1).audio_codes.shape == (1, 6, 2)
    assert model.decode(torch.zeros(1, 6, 2, dtype=torch.int64), anything=1).audio_values.shape == audio.shape
    assert model(audio, output_attentions=False, anything=1).audio_values.shape == audio.shape


@pytest.mark.parametrize("switch", ["argument", "config"])
def test_use_cache_begins_a_stream_of_the_decoder_alone(switch, checkpoint):
    ours, theirs = MimiModel.from_pretrained(checkpoint).eval(), native.MimiModel.from_pretrained(checkpoint).eval()
    arguments = {"use_cache": True} if switch == "argument" else {}
    if switch == "config":
        ours.config.use_cache = theirs.config.use_cache = True
    audio = make_audio(6 * FRAME)
    cache, values = None, []
    for chunk in audio.split(2 * FRAME, dim=2):
        output = ours(chunk, decoder_cache=cache, **arguments)
        cache = output.decoder_cache
        assert cache is not None
        assert output.encoder_cache is None
        values.append(output.audio_values)
    # The encoder hears each chunk as a recording of its own, and the decoder goes on.
    codes = torch.cat([ours.encode(chunk).audio_codes for chunk in audio.split(2 * FRAME, dim=2)], dim=2)
    expected = make_model().decode(codes).audio_values.detach()
    assert_same_audio(torch.cat(values, dim=2), expected)
    # As long as the input, and as the mask, even where the last frame is not whole.
    assert ours(audio[..., : 2 * FRAME - 5], **arguments).audio_values.shape[2] == 2 * FRAME - 5
    mask = torch.ones(1, 2 * FRAME - 5)
    assert ours.decode(codes[..., :2], mask, use_cache=True).audio_values.shape[2] == 2 * FRAME - 5
    if switch == "config":
        lengths = [model.decode(codes[..., :2], mask).audio_values.shape for model in (ours, theirs)]
        assert lengths[0] == lengths[1]


@pytest.mark.skipif(not hasattr(native, "MimiEncoderModel"), reason="native shows them since 5.21")
def test_hidden_states_and_attentions_are_natives(checkpoint, model):
    theirs = native.MimiModel.from_pretrained(checkpoint, attn_implementation="eager").eval()
    audio = make_audio(12 * FRAME, batch=2)
    asked = {"output_hidden_states": True, "output_attentions": True}
    ours, expected = model.encode(audio, **asked), theirs.encode(audio, **asked)
    codes = model.encode(audio).audio_codes
    assert torch.equal(ours.audio_codes, codes)
    with torch.no_grad():
        pairs = [(ours, expected), (model.decode(codes, **asked), theirs.decode(codes, **asked))]
        pairs += [(model.encoder(audio).latents, theirs.encoder(audio).latents)]
        latents = pairs.pop()
        assert_same_audio(*latents)
    for actual, wanted in pairs:
        for name in ("hidden_states", "attentions"):
            assert len(actual[name]) == len(wanted[name])
            for one, other in zip(actual[name], wanted[name], strict=True):
                assert_same_audio(one, other)
    assert model.encode(audio, output_attentions=True).hidden_states is None
    switched = copy.deepcopy(model)
    switched.config.output_hidden_states = True
    assert len(switched.encode(audio).hidden_states) == 3
    with pytest.raises(ValueError, match="without a stream"):
        model.encode(audio, use_streaming=True, output_hidden_states=True)


def test_gradient_checkpointing_spares_activations():
    audio = make_audio(40 * FRAME)
    kept = []
    for checkpoints in (False, True):
        model = make_model().train()
        if checkpoints:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, sizes=sizes: sizes.append(t.numel()) or t, lambda t: t):
            model.encode_latents(audio)
        kept.append(sum(sizes))
        model.gradient_checkpointing_disable()
        assert not model.is_gradient_checkpointing
    assert kept[1] < 0.5 * kept[0], kept
