import copy
from types import SimpleNamespace

import pytest
import torch
from support.tiny import FRAME, assert_same_audio, make_audio, make_model
from transformers.cache_utils import DynamicCache

from mimi_hf import DecoderStream, EncoderStream
from mimi_hf.codec.transformer import TransformerState, rotary_table, rotate


def push_all(stream, audio, sizes):
    """All the codes of a stream that gets `audio` in chunks of these sizes, over and over."""
    codes, position = [], 0
    while position < audio.shape[-1]:
        for size in sizes:
            codes.append(stream.push(audio[..., position : position + size]))
            position += size
    codes.append(stream.flush().audio_codes)
    return torch.cat(codes, dim=2)


@pytest.mark.parametrize("sizes", [[1], [7], [FRAME - 1], [FRAME], [FRAME + 1], [100], [0, 5, FRAME * 9], [100_000]])
@pytest.mark.parametrize("changes", [{}, {"pad_mode": "replicate", "audio_channels": 2, "num_residual_layers": 2}])
def test_any_cut_of_the_audio_gives_the_codes_of_the_whole(changes, sizes):
    model = make_model(**changes)
    audio = make_audio(FRAME * 60 + 5, batch=2, channels=model.config.audio_channels)
    stream = model.encoder_stream(batch_size=2, num_quantizers=4)
    assert isinstance(stream, EncoderStream)
    codes = push_all(stream, audio, sizes)
    assert torch.equal(codes, model.encode(audio, num_quantizers=4).audio_codes)


@pytest.mark.parametrize("sizes", [[1], [3], [0, 1, 17], [1000]])
def test_any_cut_of_the_codes_gives_the_audio_of_the_whole(model, sizes):
    codes = torch.randint(0, 64, (2, 5, 60))
    with torch.no_grad():
        whole = model.decode(codes).audio_values
    stream = model.decoder_stream(batch_size=2)
    assert isinstance(stream, DecoderStream)
    pieces, position = [], 0
    while position < 60:
        for size in sizes:
            pieces.append(stream.push(codes[..., position : position + size]))
            position += size
    assert_same_audio(torch.cat(pieces, dim=2), whole)


def test_frames_come_as_soon_as_they_are_whole(model):
    stream = model.encoder_stream()
    audio = make_audio(2 * FRAME)
    assert stream.push(audio[..., : FRAME - 1]).shape == (1, 6, 0)
    assert stream.push(audio[..., FRAME - 1 : FRAME]).shape == (1, 6, 1)
    assert stream.push(audio[..., FRAME:]).shape == (1, 6, 1)
    codes, num_samples = stream.flush()
    assert codes.shape == (1, 6, 0)
    assert num_samples == 0


def test_flush_pads_tells_the_real_samples_and_ends(model):
    audio = make_audio(FRAME + 5)
    stream = model.encoder_stream()
    stream.push(audio)
    codes, num_samples = stream.flush()
    assert num_samples == 5
    assert torch.equal(codes, model.encode(audio).audio_codes[..., 1:])
    with pytest.raises(ValueError, match="flushed"):
        stream.push(audio)
    stream.reset()
    assert torch.equal(stream.push(audio), model.encode(audio).audio_codes[..., :1])


@pytest.mark.parametrize("rows", [1, [1], torch.tensor([False, True, False])])
def test_reset_restarts_a_row_and_leaves_the_others(model, rows):
    audio = make_audio(30 * FRAME, batch=3)
    encoder, decoder = model.encoder_stream(batch_size=3), model.decoder_stream(batch_size=3)
    first = encoder.push(audio[..., : 13 * FRAME])
    first_audio = decoder.push(first)
    encoder.reset(rows)
    decoder.reset(rows)
    second = encoder.push(audio[..., 13 * FRAME :])
    second_audio = decoder.push(second)
    for row in (0, 2):
        whole = model.encode(audio[row : row + 1]).audio_codes
        assert torch.equal(torch.cat([first, second], dim=2)[row : row + 1], whole)
        with torch.no_grad():
            expected = model.decode(whole).audio_values
        assert_same_audio(torch.cat([first_audio, second_audio], dim=2)[row : row + 1], expected)
    restarted = model.encode(audio[1:2, :, 13 * FRAME :]).audio_codes
    assert torch.equal(second[1:2], restarted)
    with torch.no_grad():
        assert_same_audio(second_audio[1:2], model.decode(restarted).audio_values)


def test_a_row_restarted_between_frames_is_silent_up_to_there(model):
    audio = make_audio(5 * FRAME, batch=2)
    stream = model.encoder_stream(batch_size=2)
    stream.push(audio[..., : FRAME + 7])
    stream.reset(0)
    codes = stream.push(audio[..., FRAME + 7 :])
    silenced = audio[..., FRAME:].clone()
    silenced[0, :, :7] = 0
    assert torch.equal(codes[:1], model.encode(silenced[:1]).audio_codes)
    assert torch.equal(codes[1:], model.encode(audio[1:]).audio_codes[..., 1:])


@pytest.mark.parametrize("rows", [[1], {1}, [], torch.tensor([], dtype=torch.int64)])
def test_a_row_restarted_before_the_first_frame_leaves_the_others_what_waits(model, rows):
    audio = make_audio(4 * FRAME, batch=2)
    stream = model.encoder_stream(batch_size=2)
    stream.push(audio[..., :10])
    stream.reset(rows)
    codes = stream.push(audio[..., 10:])
    if len(rows):
        audio[1, :, :10] = 0
    assert torch.equal(codes, model.encode(audio).audio_codes)


def test_a_stream_enters_and_leaves_autocast(model):
    audio = make_audio(12 * FRAME)
    codes = model.encode(audio).audio_codes  # one in some hundred differs under autocast
    with torch.no_grad():
        expected = model.decode(codes).audio_values
    for first in (True, False):
        encoder, decoder = model.encoder_stream(), model.decoder_stream()
        sound = []
        for number, chunk in enumerate(audio.split(3 * FRAME, dim=2)):
            with torch.autocast("cpu", torch.bfloat16, enabled=(number % 2 == 0) == first):
                encoder.push(chunk)
                sound.append(decoder.push(codes[..., 3 * number : 3 * number + 3]))
        assert {piece.dtype for piece in sound} == {torch.float32}
        assert (torch.cat(sound, dim=2) - expected).abs().max() < 0.2 * expected.abs().max()


@pytest.mark.parametrize("fork", [copy.copy, copy.deepcopy, lambda stream: stream.copy()])
def test_a_copy_goes_its_own_way(model, fork):
    audio = make_audio(9 * FRAME)
    stream = model.encoder_stream()
    stream.push(audio[..., : 4 * FRAME + 3])
    other = fork(stream)
    assert other.model is model
    other.push(-audio)  # the original does not notice
    again = fork(stream)
    for continued in (stream, again):
        rest = continued.push(audio[..., 4 * FRAME + 3 :])
        assert torch.equal(rest, model.encode(audio).audio_codes[..., 4:])


def test_a_thousand_hours_are_as_exact_as_a_second(model):
    audio = make_audio(40 * FRAME)
    old, fresh = model.encoder_stream(), model.encoder_stream()
    for stream in (old, fresh):
        stream.push(audio[..., : 20 * FRAME])
    state, config = old.state.transformer, model.config
    hours = 1000 * 3600 * config.sampling_rate // config.hop_length
    hours -= hours % state.keys[0].shape[2]  # the same slots of the ring
    table = rotary_table(torch.tensor(hours), config.head_dim, config.rope_theta)
    aged = TransformerState(state.position + hours, tuple(rotate(keys, table) for keys in state.keys), state.values)
    old.state = old.state._replace(transformer=aged)
    assert torch.equal(old.push(audio[..., 20 * FRAME :]), fresh.push(audio[..., 20 * FRAME :]))


@pytest.mark.parametrize("frames", [1, 3])  # of each push
def test_rows_pause_and_go_on(model, frames):
    audio = make_audio(24 * FRAME, batch=3)
    turns = torch.rand(40, 3, generator=torch.Generator().manual_seed(0)) < 0.6
    turns[:2] = torch.tensor([[False, True, False], [True, False, False]])  # also before their first frame
    encoder, decoder, taken = model.encoder_stream(3), model.decoder_stream(3), [0, 0, 0]
    codes, sound = [[], [], []], [[], [], []]
    for active in turns:
        active &= torch.tensor(taken) + frames <= 24
        chunk = torch.full((3, 1, frames * FRAME), torch.nan)  # where a row pauses, anything
        for row in active.nonzero().flatten().tolist():
            chunk[row] = audio[row, :, taken[row] * FRAME : (taken[row] + frames) * FRAME]
            taken[row] += frames
        out = encoder.push(chunk, active)
        heard = decoder.push(out, active)
        assert (out[~active] == -1).all() and (heard[~active] == 0).all()
        for row in active.nonzero().flatten().tolist():
            codes[row].append(out[row])
            sound[row].append(heard[row])
    for row in range(3):
        expected = model.encode(audio[row : row + 1, :, : taken[row] * FRAME]).audio_codes
        assert torch.equal(torch.cat(codes[row], dim=1), expected[0])
        assert_same_audio(torch.cat(sound[row], dim=1), model.decode(expected).audio_values[0])


def test_streams_share_a_model_without_noticing(model):
    audio = [make_audio(6 * FRAME, seed=seed) for seed in range(3)]
    streams = [model.encoder_stream() for _ in audio]
    codes = [[] for _ in audio]
    for start in range(0, 6 * FRAME, 10):
        for stream, x, out in zip(streams, audio, codes, strict=True):
            out.append(stream.push(x[..., start : start + 10]))
    for x, out in zip(audio, codes, strict=True):
        assert torch.equal(torch.cat(out, dim=2), model.encode(x).audio_codes)


def test_state_has_a_static_shape_and_no_gradient(model):
    stream = model.encoder_stream()
    shapes = []
    for _ in range(3):
        stream.push(make_audio(4 * FRAME))
        state = stream.state
        shapes.append([tensor.shape for tensor in (*state.transformer.keys, state.downsample.previous)])
        assert not state.transformer.keys[0].requires_grad
    assert shapes[0] == shapes[1] == shapes[2]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.encoder_stream(2).push(torch.zeros(1, 1, 9)), ValueError, "batch of 1.*2 rows"),
        (lambda m: m.decoder_stream(2).push(torch.zeros(1, 2, 9, dtype=torch.int64)), ValueError, "batch of 1.*2 rows"),
        (lambda m: m.encoder_stream().push(torch.zeros(1, 2, 9)), ValueError, "shape"),
        (lambda m: m.encoder_stream().push(torch.zeros(1, 1, 9, dtype=torch.int32)), TypeError, "int32"),
        (lambda m: m.encoder_stream().push(torch.full((1, 1, 9), torch.nan)), ValueError, "NaN"),
        (lambda m: m.decoder_stream().push(torch.full((1, 2, 9), 64)), ValueError, "0 to 63"),
        (lambda m: m.encoder_stream(0), ValueError, "batch_size=0"),
        (lambda m: m.encoder_stream(num_quantizers=9), ValueError, "num_quantizers=9"),
        (lambda m: m.encoder_stream(2).reset(2), ValueError, "0 to 1"),
        (lambda m: m.decoder_stream(2).reset([99]), ValueError, "0 to 1"),
        (lambda m: m.decoder_stream(2).reset(1.5), TypeError, "indices"),
        (lambda m: m.encoder_stream(2).reset(torch.tensor([True])), ValueError, "2 rows"),
        (lambda m: m.encoder_stream(2).push(torch.zeros(2, 1, 9), [0]), ValueError, "multiples of 24 samples"),
        (lambda m: m.encoder_stream(2).push(torch.zeros(2, 1, 24), [2]), ValueError, "0 to 1"),
        (lambda m: m.decoder_stream(2).push(torch.full((2, 2, 1), -1), [0]), ValueError, "-1 to 0"),
    ],
)
def test_bad_input(model, call, error, message):
    with pytest.raises(error, match=message):
        call(model)


def test_a_refused_chunk_leaves_the_stream_as_it_was(model):
    audio = make_audio(6 * FRAME)
    stream = model.encoder_stream()
    codes = [stream.push(audio[..., :50])]
    with pytest.raises(ValueError, match="NaN"):
        stream.push(torch.full((1, 1, 50), torch.nan))
    codes.append(stream.push(audio[..., 50:]))
    assert torch.equal(torch.cat(codes, dim=2), model.encode(audio).audio_codes)


# transformers' native way of streaming


def test_native_encoder_arguments(model):
    audio = make_audio(9 * FRAME)
    caches, codes = {}, []
    for start in range(0, 9 * FRAME, FRAME):
        output = model.encode(audio[..., start : start + FRAME], num_quantizers=3, use_streaming=True, **caches)
        caches = {
            "encoder_past_key_values": output.encoder_past_key_values,
            "padding_cache": output.padding_cache,
        }
        codes.append(output.audio_codes)
    assert torch.equal(torch.cat(codes, dim=2), model.encode(audio, num_quantizers=3).audio_codes)


def test_native_caches_made_in_advance_carry_the_stream(model):
    audio = make_audio(9 * FRAME)
    codes, values = [], []
    encoder_cache, decoder_cache = DynamicCache(), DynamicCache()
    for start in range(0, 9 * FRAME, FRAME):
        codes.append(model.encode(audio[..., start : start + FRAME], encoder_past_key_values=encoder_cache).audio_codes)
        values.append(model.decode(codes[-1], decoder_past_key_values=decoder_cache).audio_values)
    codes = torch.cat(codes, dim=2)
    assert torch.equal(codes, model.encode(audio).audio_codes)
    with torch.no_grad():
        assert_same_audio(torch.cat(values, dim=2), model.decode(codes).audio_values)


@pytest.mark.parametrize("switch", ["argument", "config"])
def test_native_forward_arguments(switch):
    model = make_model()
    audio = make_audio(9 * FRAME)
    expected = model(audio)
    arguments = {"use_streaming": True}
    if switch == "config":
        model.config.use_streaming, arguments = True, {}
    caches, values = {}, []
    for start in range(0, 9 * FRAME, 2 * FRAME):
        output = model(audio[..., start : start + 2 * FRAME], **arguments, **caches)
        caches = {
            "encoder_past_key_values": output.encoder_past_key_values,
            "decoder_past_key_values": output.decoder_past_key_values,
        }
        values.append(output.audio_values)
    assert_same_audio(torch.cat(values, dim=2), expected.audio_values)


def test_native_decoder_argument(model):
    codes = torch.randint(0, 64, (1, 6, 8))
    first = model.decode(codes[..., :3], use_cache=True)
    second = model.decode(codes[..., 3:], decoder_past_key_values=first.decoder_past_key_values)
    with torch.no_grad():
        whole = model.decode(codes).audio_values
    assert_same_audio(torch.cat([first.audio_values, second.audio_values], dim=2), whole)
    assert model.decode(codes).decoder_past_key_values is None


def test_native_arguments_are_checked(model):
    audio = make_audio(FRAME)
    encoder = model.encode(audio, use_streaming=True).padding_cache
    with pytest.raises(TypeError, match="EncoderStream was passed where a DecoderStream belongs"):
        model.decode(torch.zeros(1, 6, 1, dtype=torch.int64), decoder_past_key_values=encoder)
    with pytest.raises(TypeError, match="tuple can carry no stream"):
        model.encode(audio, padding_cache=())
    filled = DynamicCache()
    filled.update(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), 0)
    with pytest.raises(ValueError, match="filled by another model"):
        model.encode(audio, encoder_past_key_values=filled)
    mask = torch.ones(1, FRAME)
    model.encode(audio, mask, use_streaming=True)
    mask[0, -1] = 0
    codes = torch.zeros(1, 6, 1, dtype=torch.int64)
    for call in (
        lambda: model.encode(audio, mask, use_streaming=True),
        lambda: model.decode(codes, mask, use_streaming=True),
        lambda: model.decode(codes, audio_codes_mask=torch.zeros(1, 1), use_streaming=True),
        lambda: model(audio, mask, audio_codes=codes, use_streaming=True),
    ):
        with pytest.raises(ValueError, match="a stream has none"):
            call()
    with pytest.raises(ValueError, match="another model"):
        make_model().encode(audio, padding_cache=encoder)
    with pytest.raises(ValueError, match="different streams"):
        model.encode(audio, padding_cache=encoder, encoder_past_key_values=encoder.copy())
    padding = SimpleNamespace(padding_cache=[torch.zeros(1)])
    with pytest.raises(ValueError, match="filled by another model"):
        model.encode(audio, padding_cache=padding)


def test_a_call_that_fails_leaves_the_stream_as_it_was(model):
    stream = model.encode(make_audio(FRAME), use_streaming=True).padding_cache
    with pytest.raises(ValueError, match="batch"):
        model.encode(make_audio(FRAME, batch=2), padding_cache=stream, num_quantizers=2)
    assert stream.num_quantizers == 6


def test_a_stream_follows_its_model():
    model = make_model()
    audio = make_audio(20 * FRAME)
    stream, decoder = model.encoder_stream(), model.decoder_stream()
    decoder.push(stream.push(audio))
    model.bfloat16()
    codes = stream.push(audio)
    assert codes.shape == (1, 6, 20)
    assert decoder.push(codes).dtype == torch.bfloat16


def test_resetting_every_row_begins_again(model):
    stream = model.encoder_stream(2)
    stream.push(make_audio(30, batch=2))
    stream.flush()
    stream.reset([0, 1])
    audio = make_audio(FRAME, batch=2)
    assert torch.equal(stream.push(audio), model.encode(audio).audio_codes)


@pytest.mark.parametrize("latents", [False, True])
def test_audio_that_overflows_is_refused_and_the_stream_goes_on(model, latents):
    audio = make_audio(12 * FRAME)
    stream = model.latent_encoder_stream() if latents else model.encoder_stream()
    pieces = [stream.push(audio[..., : 5 * FRAME])]
    loud = audio.clone()
    loud[..., 3 * FRAME] = 1e38
    with pytest.raises(ValueError, match="overflow"):
        stream.push(loud)
    pieces.append(stream.push(audio[..., 5 * FRAME :]))
    found = torch.cat(pieces, dim=2)
    if latents:
        assert_same_audio(found, model.encode_latents(audio).detach())
    else:
        assert torch.equal(found, model.encode(audio).audio_codes)


@pytest.mark.parametrize("size", [7, FRAME, 2 * FRAME])
def test_codes_and_latents_come_by_turns(model, size):
    audio = make_audio(20 * FRAME, batch=2)
    codes, latents = model.encode(audio).audio_codes, model.encode_latents(audio).detach()
    streams, frame = [model.encoder_stream(2), model.latent_encoder_stream(2)], 0
    for chunk in audio.split(size, dim=2):
        piece = streams[0].push(chunk)
        whole = latents if piece.is_floating_point() else codes
        torch.testing.assert_close(piece, whole[..., frame : frame + piece.shape[2]], rtol=0, atol=1e-4)
        frame += piece.shape[2]
        streams.reverse()
        streams[0].take_over(streams[1])
    assert frame == 20


def test_a_deep_copy_of_a_model_and_its_stream_belong_together(model):
    streams = {"model": model, "stream": model.encoder_stream()}
    copied = copy.deepcopy(streams)
    assert copied["stream"].model is copied["model"] is not model
    assert copy.deepcopy(streams["stream"]).model is model
