"""The one loop over a recording: every way to cut it gives the whole."""

import contextlib

import numpy as np
import pytest
import torch
from support.tiny import FRAME, assert_same_audio, make_audio

from mimi_hf.inference import decode_codes, encode_blocks
from mimi_hf.inference.timing import Stopwatch


@pytest.mark.parametrize("sizes", [[1000], [7, 993], [FRAME] * 41 + [16], [0, 500, 0, 500]])
def test_blocks_of_any_length_give_the_codes_of_the_whole(model, sizes):
    audio = make_audio(1000)
    blocks = [part.numpy() for part in audio[0].split(sizes, dim=1)]
    encoded = list(encode_blocks(model.encoder_stream(num_quantizers=3), blocks, "x"))
    assert [block.num_samples for block in encoded] == [*np.cumsum(sizes), 1000]
    codes = torch.cat([block.codes for block in encoded], dim=2)
    assert torch.equal(codes, model.encode(audio, num_quantizers=3).audio_codes)
    with torch.no_grad():
        whole = model.decode(codes).audio_values[0]
    pieces = [block.codes for block in encoded]
    decoded = np.concatenate(list(decode_codes(model.decoder_stream(), pieces)), axis=1)
    assert_same_audio(torch.from_numpy(decoded), whole)
    arrays = [piece.numpy().astype(np.uint16) for piece in pieces]
    again = np.concatenate(list(decode_codes(model.decoder_stream(), arrays)), axis=1)
    np.testing.assert_array_equal(again, decoded)


def test_channels_are_rows(model):
    audio = make_audio(500, batch=2)
    codes = torch.cat([block.codes for block in encode_blocks(model.encoder_stream(2), [audio[:, 0].numpy()], "x")], 2)
    assert torch.equal(codes, model.encode(audio).audio_codes)
    decoded = np.concatenate(list(decode_codes(model.decoder_stream(2), [codes])), axis=1)
    assert decoded.shape == (2, codes.shape[2] * FRAME)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([np.zeros((1, 480), np.float32), np.full((1, 9), np.nan, np.float32)], r"talk.wav holds NaN .* near 0\.02 s"),
        ([], r"talk.wav is too short"),
        ([np.zeros((1, 0), np.float32)], r"talk.wav is too short"),
    ],
)
def test_audio_that_cannot_be_encoded_is_named(model, blocks, message):
    with pytest.raises(ValueError, match=message):
        list(encode_blocks(model.encoder_stream(), blocks, "talk.wav"))


def test_clocks_see_the_work_of_the_model_alone(model):
    entered = []

    @contextlib.contextmanager
    def clock():
        entered.append("in")
        yield
        entered.append("out")

    class Reusable(contextlib.AbstractContextManager):
        def __enter__(self):
            self.context = clock()
            self.context.__enter__()

        def __exit__(self, *exception):
            self.context.__exit__(*exception)

    for _ in encode_blocks(model.encoder_stream(), [np.zeros((1, 30), np.float32)], "x", Reusable()):
        assert entered[-1] == "out"
    assert entered == ["in", "out"] * 2
    watch = Stopwatch("cpu")
    for _ in decode_codes(model.decoder_stream(), [np.zeros((1, 2, 3), np.int64)] * 2, watch):
        assert watch.seconds > 0
