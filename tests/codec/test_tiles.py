"""Whatever offers two steps is a codec: here one that holds no network and no torch module."""

from types import SimpleNamespace

import pytest
import torch

from mimi_hf.codec.streaming import EncoderStream
from mimi_hf.codec.tiles import TiledCodec

SIZE, FRAME, K = 64, 4, 3


class RunningSums(TiledCodec):
    """Each code is the sum of all samples so far, in units of 1/8, modulo V, plus the number of its codebook."""

    device, dtype, training = torch.device("cpu"), torch.float32, False

    def __init__(self):
        self.config = SimpleNamespace(
            sampling_rate=100,
            audio_channels=1,
            codebook_size=SIZE,
            num_quantizers=K,
            num_semantic_quantizers=1,
            frame_size=FRAME,
            frame_rate=25.0,
            has_half=lambda half: True,
            use_streaming=False,
            use_cache=False,
            return_dict=True,
        )
        self.sizes = []

    def tile_frames(self, batch_size):
        return 5

    def encode_step(self, audio, state, num_quantizers):
        self.sizes.append(audio.shape[1] // FRAME)
        sums = audio[..., 0].cumsum(dim=1) + (0 if state is None else state[0])
        frames = (sums[:, FRAME - 1 :: FRAME] * 8).round().long() if audio.shape[1] else sums.long()
        codes = (frames[:, None] + torch.arange(num_quantizers)[:, None]) % SIZE
        return codes, (sums[:, -1:],)

    def decode_step(self, codes, state):
        levels = codes[:, 0].float().cumsum(dim=1) + (0 if state is None else state[0])
        return levels.repeat_interleave(FRAME, dim=1)[..., None], (levels[:, -1:],)


@pytest.fixture
def codec():
    return RunningSums()


@pytest.fixture
def audio():
    return torch.randint(-8, 9, (2, 1, 13 * FRAME), generator=torch.Generator().manual_seed(0)) / 8


def test_offline_goes_in_tiles_of_much_the_same_size(codec, audio):
    codes = codec.encode(audio).audio_codes
    whole, _ = codec.encode_step(audio.transpose(1, 2), None, K)
    assert torch.equal(codes, whole)
    assert codec.sizes == [4, 4, 5, 13]
    assert torch.equal(codec.decode(codes).audio_values[:, 0], codec.decode_step(codes, None)[0][..., 0])


@pytest.mark.parametrize("chunk", [1, FRAME, 7, 40, 52])
def test_streams_give_the_whole(codec, audio, chunk):
    encoder, decoder = codec.encoder_stream(2, num_quantizers=2), codec.decoder_stream(2)
    codes = [encoder.push(part) for part in audio.split(chunk, dim=2)]
    decoded = torch.cat([decoder.push(part) for part in codes], dim=2)
    expected = codec.encode(audio, num_quantizers=2).audio_codes
    assert torch.equal(torch.cat(codes, dim=2), expected)
    assert torch.equal(decoded, codec.decode(expected).audio_values)


@pytest.mark.parametrize("side", ["left", "right"])
def test_ragged_rows_give_what_they_give_alone(codec, audio, side):
    count = 4 * FRAME + 1
    mask = torch.ones(2, audio.shape[2])
    real = slice(-count, None) if side == "left" else slice(count)
    mask[1] = 0
    mask[1, real] = 1
    output = codec.encode(audio, mask)
    alone = codec.encode(audio[1:, :, real]).audio_codes
    assert torch.equal(output.audio_codes[1][:, output.audio_codes_mask[1]], alone[0])
    back = codec.decode(output.audio_codes, mask).audio_values
    assert torch.equal(back[1:, :, real], codec.decode(alone).audio_values[..., :count])


def test_rows_pause_restart_and_fork(codec, audio):
    stream = codec.encoder_stream(2)
    stream.push(audio[..., : 2 * FRAME])
    paused = stream.push(audio[..., 2 * FRAME : 4 * FRAME], active=[0])
    assert (paused[1] == -1).all()
    fork = stream.copy()
    stream.reset(rows=[0])
    rest = stream.push(audio[..., 4 * FRAME :])
    assert torch.equal(rest[:1], codec.encode(audio[:1, :, 4 * FRAME :]).audio_codes)
    without_pause = torch.cat([audio[1:, :, : 2 * FRAME], audio[1:, :, 4 * FRAME :]], dim=2)
    assert torch.equal(rest[1:], codec.encode(without_pause).audio_codes[..., 2:])
    assert torch.equal(fork.push(audio[..., 4 * FRAME :])[:1], codec.encode(audio[:1]).audio_codes[..., 4:])


def test_calls_of_native_style_carry_the_stream(codec, audio):
    first = codec.forward(audio[..., :10], use_streaming=True)
    second = codec.forward(
        audio[..., 10:],
        encoder_past_key_values=first.encoder_past_key_values,
        decoder_past_key_values=first.decoder_past_key_values,
    )
    assert isinstance(first.encoder_past_key_values, EncoderStream)
    codes = torch.cat([first.audio_codes, second.audio_codes], dim=2)
    assert torch.equal(codes, codec.encode(audio).audio_codes)


def test_a_step_that_refuses_leaves_the_stream_as_it_was(codec, audio):
    def refuse(audio, state, num_quantizers):
        if audio.abs().max() > 100:
            raise ValueError("too loud")
        return RunningSums.encode_step(codec, audio, state, num_quantizers)

    codec.encode_step = refuse
    stream = codec.encoder_stream(2)
    before = stream.push(audio[..., :9])
    loud = audio.clone()
    loud[..., -3] = 1000
    with pytest.raises(ValueError, match="too loud"):
        stream.push(loud)  # in its last tile
    after = stream.push(audio[..., 9:])
    assert torch.equal(torch.cat([before, after], dim=2), codec.encode(audio).audio_codes)
