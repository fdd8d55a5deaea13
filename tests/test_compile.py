"""The tiles of the codec are graphs without a break: for torch.compile over any length, and for torch.export."""

import pytest
import torch
from tiny import FRAME, assert_same_audio, make_audio, make_model


class Step(torch.nn.Module):
    """A method of the model as a module, as torch.export wants it."""

    def __init__(self, model, method):
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, *arguments):
        return getattr(self.model, self.method)(*arguments)


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


@pytest.mark.parametrize("method", ["encode_tile", "decode_tile"])
@torch.no_grad()
def test_steps_export_with_their_state(prepared, method):
    x = steps(prepared, 1)[method]
    _, state = getattr(prepared, method)(x, None)
    program = torch.export.export(Step(prepared, method), (x, state)).module()
    y, new_state = program(x, state)
    expected, expected_state = getattr(prepared, method)(x, state)
    assert_same_audio(y, expected)
    again, _ = program(x, new_state)
    assert_same_audio(again, getattr(prepared, method)(x, expected_state)[0])


@torch.no_grad()
def test_search_and_lookup_compile(prepared):
    latents = torch.randn(2, 5, prepared.config.hidden_size)
    codes = prepared.quantizer.search(latents, 4)
    search = torch.compile(prepared.quantizer.search, fullgraph=True, backend="eager")
    lookup = torch.compile(prepared.quantizer.lookup, fullgraph=True, backend="eager")
    assert torch.equal(search(latents, 4), codes)
    assert_same_audio(lookup(codes), prepared.quantizer.lookup(codes))
