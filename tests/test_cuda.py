"""The codec on a GPU gives what it gives on a CPU, in streams, compiled, and in other precisions."""

import pytest
import torch
from support.tiny import FRAME, make_audio, make_model

from mimi_hf import MimiInt8Config, MimiModel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def model():
    return make_model().to("cuda")


@torch.no_grad()
def test_codes_and_audio_are_those_of_a_cpu(model):
    audio = make_audio(50 * FRAME, batch=3)
    expected = make_model().encode(audio).audio_codes
    assert (model.encode(audio.cuda()).audio_codes.cpu() == expected).float().mean() >= 0.999
    heard, on_cpu = model.decode(expected.cuda()).audio_values.cpu(), make_model().decode(expected).audio_values
    assert (heard - on_cpu).abs().max() <= 1e-4 * on_cpu.abs().max()


@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_streams_equal_the_whole_and_do_not_mix(model, compiled):
    audio = make_audio(30 * FRAME, batch=2).cuda()
    expected = model.encode(audio).audio_codes
    sound = model.decode(expected).audio_values
    if compiled:
        model.compile_for_streaming()
    encoders, decoders = ([make(1) for _ in range(2)] for make in (model.encoder_stream, model.decoder_stream))
    codes, heard = [[], []], [[], []]
    for start in range(0, audio.shape[2], FRAME):
        for row in range(2):
            codes[row].append(encoders[row].push(audio[row : row + 1, :, start : start + FRAME]))
            heard[row].append(decoders[row].push(codes[row][-1]))
            if start == 9 * FRAME:
                encoders[row] = encoders[row].copy()
    for row in range(2):
        assert (torch.cat(codes[row], dim=2) == expected[row : row + 1]).float().mean() >= 0.999
        difference = torch.cat(heard[row], dim=2) - sound[row : row + 1]
        assert difference.abs().max() <= 1e-4 * sound.abs().max()


@torch.no_grad()
def test_rows_pause_and_restart(model):
    audio = make_audio(10 * FRAME).cuda()
    stream = model.compile_for_streaming().encoder_stream(2)
    for start in range(0, 5 * FRAME, FRAME):
        stream.push(audio[..., start : start + FRAME].expand(2, -1, -1), [0])
    stream.reset([0])
    codes = [stream.push(chunk.expand(2, -1, -1)) for chunk in audio.split(FRAME, dim=2)]
    expected = model.encode(audio).audio_codes.expand(2, -1, -1)
    assert (torch.cat(codes, dim=2) == expected).float().mean() >= 0.999


@torch.no_grad()
def test_other_precisions(checkpoint, model):
    audio = make_audio(30 * FRAME).cuda()
    latents = model.encode_latents(audio)
    for arguments in ({"dtype": torch.bfloat16}, {"quantization_config": MimiInt8Config(min_size=1)}):
        other = MimiModel.from_pretrained(checkpoint, **arguments).to("cuda")
        near = other.encode_latents(audio).float()
        assert (near - latents).square().mean() < 0.02 * latents.square().mean()
