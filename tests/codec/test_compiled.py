"""The tiles of the codec are graphs without a break: for torch.compile over any length, and for torch.export."""

import copy

import pytest
import torch
from support.compilers import needs_compiler
from support.tiny import FRAME, assert_same_audio, make_audio, make_model

from mimi_hf import MimiInt8Config, MimiModel
from mimi_hf.codec.state import copy_state
from mimi_hf.codec.steps import decoder_step, encoder_step


class Step(torch.nn.Module):
    """A step of the model as a module, as torch.export wants it."""

    def __init__(self, model, step):
        super().__init__()
        self.model = model
        self.step = step

    def forward(self, *arguments):
        return self.step(*arguments)


def steps(model, frames):
    """Names of the tile methods, and their inputs for `frames` frames."""
    audio = make_audio(frames * FRAME, batch=2).transpose(1, 2)
    latents = torch.randn(2, frames, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    return {"encode_tile": audio, "decode_tile": latents}


@pytest.fixture
def prepared():
    torch._dynamo.reset()
    model = make_model()
    model.encode(make_audio(FRAME))
    return model


@pytest.mark.parametrize("method", ["encode_tile", "decode_tile"])
@torch.no_grad()
def test_one_graph_serves_every_length(prepared, method):
    step = getattr(prepared, method)
    _, state = step(steps(prepared, 2)[method], None)
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(step, fullgraph=True, backend=count)
    for frames in (20, 21, 17, 22, 19):
        x = steps(prepared, frames)[method]
        assert_same_audio(compiled(x, state)[0], step(x, state)[0])
    assert len(graphs) <= 2  # the first length, then any


@pytest.mark.parametrize("name", ["encode_tile", "decode_tile", "encode", "decode"])
@torch.no_grad()
def test_steps_export_with_their_state(prepared, name):
    if name in ("encode", "decode"):  # of a stream: with search and lookup
        step = encoder_step(prepared, 4) if name == "encode" else decoder_step(prepared)
        x = steps(prepared, 1)["encode_tile"] if name == "encode" else torch.tensor([[[3], [5]], [[7], [9]]])
    else:
        step, x = getattr(prepared, name), steps(prepared, 1)[name]
    _, state = step(x, None)
    program = torch.export.export(Step(prepared, step), (x, state)).module()
    y, new_state = program(x, state)
    expected, expected_state = step(x, copy_state(state))
    assert_same_audio(y, expected)
    again, _ = program(x, new_state)
    assert_same_audio(again, step(x, expected_state)[0])


@torch.no_grad()
def test_search_and_lookup_compile(prepared):
    latents = torch.randn(2, 5, prepared.config.hidden_size)
    codes = prepared.quantizer.search(latents, 4)
    search = torch.compile(prepared.quantizer.search, fullgraph=True, backend="eager")
    lookup = torch.compile(prepared.quantizer.lookup, fullgraph=True, backend="eager")
    assert torch.equal(search(latents, 4), codes)
    assert_same_audio(lookup(codes), prepared.quantizer.lookup(codes))


FRAMES = [1, 1, 2, 1, 1, 3, 1, 1, 1]  # of each push; the compiled step takes single ones


def push_all(model, audio, codes=None):
    """Codes of a stream that takes FRAMES in turn, and the audio of a stream that takes codes so, these by default."""
    encoder, decoder = model.encoder_stream(len(audio), 3), model.decoder_stream(len(audio))
    out = torch.cat([encoder.push(x) for x in audio.split([frames * FRAME for frames in FRAMES], dim=2)], dim=2)
    codes = out if codes is None else codes
    return out, torch.cat([decoder.push(x) for x in codes.split(FRAMES, dim=2)], dim=2)


def make_small_model():
    return make_model(num_hidden_layers=1, num_quantizers=3)  # compiles in less time


@needs_compiler
def test_compiled_streams_equal_plain_ones():
    torch._dynamo.reset()
    plain, model = make_small_model(), make_small_model()
    assert model.compile_for_streaming() is model
    for batch, mode in ((1, torch.no_grad), (1, torch.inference_mode), (3, torch.no_grad), (2, torch.no_grad)):
        audio = make_audio(sum(FRAMES) * FRAME, batch)
        with mode():
            expected_codes, expected_sound = push_all(plain, audio)
            codes, sound = push_all(model, audio, expected_codes)
        assert (codes == expected_codes).float().mean() >= 0.97  # rounding may decide between two entries
        assert_same_audio(sound, expected_sound)

    streams = [one.encoder_stream(3, 3) for one in (plain, model)]
    active = torch.tensor([True, False, True])
    for stream in streams:
        for chunk in audio.new_ones(6, 3, 1, FRAME):
            stream.push(chunk)
        stream.reset([1])
        stream.push(audio[:1, :, :FRAME].expand(3, -1, -1), active)
    chunk = audio[:1, :, FRAME : 2 * FRAME].expand(3, -1, -1)
    forks = [stream.copy() for stream in streams]
    expected, actual = (stream.push(chunk) for stream in forks)
    assert torch.equal(actual, expected)
    for stream in streams:
        assert torch.equal(stream.push(chunk), expected)

    for one in (plain, model):  # codebooks that changed are seen
        one.eval().quantizer.acoustic_residual_vector_quantizer.layers[0].codebook.embed_sum.mul_(2)
    assert torch.equal(streams[1].push(chunk), streams[0].push(chunk))

    other = copy.deepcopy(model)  # compiles for itself
    assert other.compiled_steps == {} and model.compiled_steps
    assert model.to(torch.float64).compiled_steps == {}


@needs_compiler
@torch.no_grad()
def test_compiled_streams_with_8_bit_weights(tmp_path):
    torch._dynamo.reset()
    make_small_model().save_pretrained(tmp_path)
    plain = MimiModel.from_pretrained(tmp_path, quantization_config=MimiInt8Config(min_size=1))
    model = copy.deepcopy(plain).compile_for_streaming()
    audio = make_audio(sum(FRAMES) * FRAME)
    expected_codes, expected_sound = push_all(plain, audio)
    codes, sound = push_all(model, audio, expected_codes)
    assert (codes == expected_codes).float().mean() > 0.9  # half precision inside
    assert (sound - expected_sound).abs().max() < 0.05 * expected_sound.abs().max()
