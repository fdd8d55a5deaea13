"""Graphs of the whole `encode`, `decode` and `forward`: each serves any batch and any length."""

from typing import Any

import pytest
import torch
from support.compilers import needs_compiler
from support.tiny import FRAME, assert_same_audio, make_audio, make_model
from torch.torch_version import TorchVersion

pytestmark = pytest.mark.skipif(TorchVersion(torch.__version__) < (2, 13), reason="older torch makes not all of these")

SIZES = [(2, 9), (3, 31), (1, 12), (2, 2), (5, 70)]  # rows and frames
B, F = torch.export.Dim("B", min=1), torch.export.Dim("F", min=1)
N = torch.export.Dim("N", min=FRAME + 1)  # torch tells a single frame from more


class Call(torch.nn.Module):
    """One method of a model as the `forward` of a module, as torch.export wants it; its output as a tuple."""

    def __init__(self, model, method):
        super().__init__()
        self.model, self.method = model, method

    def forward(self, x, padding_mask=None):
        return getattr(self.model, self.method)(x, padding_mask).to_tuple()


def make_small_model() -> Any:
    return make_model(num_hidden_layers=1, num_quantizers=3, upsampling_ratios=[6, 2])


def make_input(method, rows, frames):
    """Audio of `frames` frames, the last one begun, or codes."""
    if method == "decode":
        return torch.randint(0, 64, (rows, 3, frames), generator=torch.Generator().manual_seed(frames))
    return make_audio(frames * FRAME - 5, rows)


def make_mask(rows, samples, left):
    """Rows of different lengths, the first one full: Tensor, shape = (rows, samples), bool."""
    mask = torch.arange(samples) < torch.linspace(samples, 3, rows).long()[:, None]
    return mask.flip(1) if left else mask


def assert_same(actual, expected):
    """Tuples of codes (all but ties), masks and audio."""
    assert len(actual) == len(expected)
    for one, other in zip(actual, expected, strict=True):
        if one.is_floating_point():
            assert_same_audio(one, other)
        else:
            assert one.shape == other.shape and (one == other).float().mean() >= 0.999


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    with torch.no_grad():
        yield


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("method", ["encode", "decode"])
def test_halves_export_for_any_batch_and_length(method, strict):
    model = make_small_model()
    if strict:  # an exported graph is the same without; the weights are then arranged in each call
        model.prepare()
    call = Call(model, method)
    shapes = ({0: B, 2: N if method == "encode" else F},)
    program = torch.export.export(call, (make_input(method, 2, 9),), dynamic_shapes=shapes, strict=strict).module()
    for rows, frames in SIZES:
        x = make_input(method, rows, frames)
        assert_same(program(x), call(x))
    if method == "decode":
        with pytest.raises(RuntimeError, match="audio_codes are not all in 0 to 63"):
            program(make_input("decode", 2, 9) + 1)


def test_the_model_exports_for_any_batch_and_number_of_frames():
    model = make_small_model()
    frames = torch.export.Dim("frames", min=2)
    shapes = {"input_values": {0: B, 2: FRAME * frames}}
    audio = make_audio(9 * FRAME, 2)
    program = torch.export.export(model, (), {"input_values": audio}, dynamic_shapes=shapes).module()
    for rows, count in SIZES:
        audio = make_audio(count * FRAME, rows)
        actual, expected = program(input_values=audio), model(audio)
        assert_same((actual.audio_codes, actual.audio_values), (expected.audio_codes, expected.audio_values))


@pytest.mark.parametrize("method", ["encode", "decode"])
def test_padded_batches_export(method):
    call = Call(make_small_model(), method)

    def inputs(rows, frames, left):
        mask = make_mask(rows, frames * FRAME - 5, left)
        x = make_audio(frames * FRAME - 5, rows)
        return (x if method == "encode" else call.model.encode(x, mask).audio_codes), mask

    shapes = ({0: B, 2: N if method == "encode" else F}, {0: B, 1: N})
    program = torch.export.export(call, inputs(2, 9, False), dynamic_shapes=shapes).module()
    for rows, frames in SIZES:
        for left in (False, True):
            x = inputs(rows, frames, left)
            assert_same(program(*x), call(*x))
    if method == "encode":  # more padding than any row needs: more frames, which the mask tells from real ones
        audio, _ = inputs(2, 9, False)
        mask = make_mask(2, audio.shape[2], False) & (torch.arange(audio.shape[2]) < 6 * FRAME)
        (codes, real), (expected, expected_real) = program(audio, mask), call(audio, mask)
        assert codes.shape[2] == 9 and expected.shape[2] == 6
        assert torch.equal(codes[..., :6], expected) and torch.equal(real[:, :6], expected_real)
        assert not codes[..., 6:].any() and not real[:, 6:].any()


@pytest.mark.parametrize("method", ["encode", "decode", "forward"])
def test_compiled_graphs_serve_every_length(method):
    model = make_small_model()
    model.prepare()
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    call = getattr(model, method)
    compiled = torch.compile(call, fullgraph=True, backend=count)
    for rows, frames in [*SIZES, (2, 40), (4, 100), (1, 50), (1, 3), (2, 5), (7, 4)]:
        x = make_input(method, rows, frames)
        assert_same(compiled(x).to_tuple(), call(x).to_tuple())
    assert len(graphs) <= 4  # the first sizes, any number of frames, and of rows, and one row


def test_compiled_graphs_see_codebooks_that_were_loaded():
    model, other = make_small_model(), make_small_model()
    other.quantizer.acoustic_residual_vector_quantizer.layers[0].codebook.embed_sum.mul_(2)
    model.prepare()
    codes = make_input("decode", 2, 9)
    compiled = torch.compile(model.quantizer.decode, fullgraph=True, backend="eager")
    assert_same_audio(compiled(codes), model.quantizer.decode(codes))
    model.quantizer.load_state_dict(other.quantizer.state_dict())
    assert_same_audio(compiled(codes), other.quantizer.decode(codes))


@pytest.mark.filterwarnings("ignore")  # that torch.jit is deprecated, and that it keeps what are constants here
@pytest.mark.parametrize("method", ["encode", "decode"])
def test_traced_graphs_serve_every_length(method):
    call = Call(make_small_model(), method)
    traced: Any = torch.jit.trace(call, make_input(method, 2, 9))
    for rows, frames in SIZES:
        x = make_input(method, rows, frames)
        assert_same(traced(x), call(x))


@needs_compiler
def test_inductor_compiles_the_whole_decoder():
    model = make_model(num_hidden_layers=1, num_quantizers=3, upsampling_ratios=[3], num_residual_layers=0)
    model.prepare()
    codes = make_input("decode", 1, 9)
    compiled = torch.compile(model.decode, fullgraph=True)
    assert_same(compiled(codes).to_tuple(), model.decode(codes).to_tuple())
    with pytest.raises(RuntimeError, match="audio_codes are not all in 0 to 63"):
        compiled(codes - 64)
