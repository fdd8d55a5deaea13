"""The interface of `rustymimi`, against the codec that it stands on. tests/peers compares with `rustymimi` itself."""

import gc
import threading
import time

import numpy as np
import pytest
import soundfile
import torch
from support.tiny import FRAME, assert_same_audio, make_audio
from support.waiting import wait_for

from mimi_hf.kyutai import StreamTokenizer, Tokenizer, write_wav

END_THERE = 4096  # frames after which a stream of `rustymimi` ends


@pytest.fixture
def tokenizer(checkpoint):
    return Tokenizer(checkpoint, num_codebooks=4)


@pytest.fixture
def streamer(checkpoint):
    return StreamTokenizer(checkpoint, num_codebooks=4)


def assert_same(actual, expected):
    assert_same_audio(torch.from_numpy(actual), torch.from_numpy(expected))


def steps(array, size):
    return [array[..., start : start + size] for start in range(0, array.shape[-1], size)]


@pytest.mark.parametrize("samples", [1, FRAME, 7 * FRAME + 5])
@torch.no_grad()
def test_whole_recordings_give_what_the_codec_gives(tokenizer, model, samples):
    audio = make_audio(samples, batch=2)
    codes = tokenizer.encode(audio.numpy())
    assert (codes.dtype, codes.shape) == (np.uint32, (2, 4, -(-samples // FRAME)))
    assert np.array_equal(codes, model.encode(audio, num_quantizers=4).audio_codes)
    decoded = tokenizer.decode(codes)
    assert (decoded.dtype, decoded.shape) == (np.float32, (2, 1, codes.shape[2] * FRAME))
    assert_same(decoded, model.decode(torch.from_numpy(codes.astype(int))).audio_values.numpy())


@pytest.mark.parametrize("size", [7, FRAME, 100])
def test_steps_give_whole_frames_alone(tokenizer, size):
    audio = make_audio(20 * FRAME, batch=2).numpy()
    whole = tokenizer.encode(audio)
    codes = [tokenizer.encode_step(chunk) for chunk in steps(audio, size)]
    assert any(step is None for step in codes) == (size < FRAME)
    codes = np.concatenate([step for step in codes if step is not None], axis=2)
    assert codes.dtype == np.uint32
    assert np.array_equal(codes, whole)
    audio = np.concatenate([tokenizer.decode_step(frame) for frame in steps(codes, 3)], axis=2)
    assert audio.dtype == np.float32
    assert_same(audio, tokenizer.decode(codes))
    assert tokenizer.decode_step(codes[..., :0]) is None
    assert tokenizer.encode_step(np.zeros((2, 1, 0), np.float32)) is None


def test_reset_begins_again(tokenizer):
    audio = make_audio(4 * FRAME).numpy()
    codes = tokenizer.encode_step(audio)
    sound = tokenizer.decode_step(codes)
    assert not np.array_equal(tokenizer.encode_step(audio), codes)
    tokenizer.reset()
    assert np.array_equal(tokenizer.encode_step(audio), codes)
    assert np.array_equal(tokenizer.decode_step(codes), sound)
    tokenizer.reset()
    assert tokenizer.encode_step(np.concatenate([audio, audio])).shape == (2, 4, 4)


def test_whole_recordings_leave_the_streams_alone(tokenizer):
    first, second = steps(make_audio(4 * FRAME).numpy(), 2 * FRAME)
    codes = tokenizer.encode(np.concatenate([first, second], axis=2))
    sound = tokenizer.decode(codes)
    tokenizer.encode_step(first)
    tokenizer.decode_step(codes[..., :2])
    tokenizer.decode(tokenizer.encode(first))
    assert np.array_equal(tokenizer.encode_step(second), codes[..., 2:])
    assert_same(tokenizer.decode_step(codes[..., 2:]), sound[..., 2 * FRAME :])


def test_streams_do_not_end(tokenizer):
    """`rustymimi` raises from frame 4096 on, 5 minutes and 28 seconds into a stream."""
    audio = make_audio((END_THERE + 8) * FRAME).numpy()
    codes = tokenizer.encode(audio)
    sound = tokenizer.decode(codes)
    near = (END_THERE - 8) * FRAME
    assert np.array_equal(tokenizer.encode_step(audio[..., :near]), codes[..., : END_THERE - 8])
    frames = [tokenizer.encode_step(frame) for frame in steps(audio[..., near:], FRAME)]
    assert np.array_equal(np.concatenate(frames, axis=2), codes[..., END_THERE - 8 :])
    tokenizer.decode_step(codes[..., : END_THERE - 8])
    heard = np.concatenate([tokenizer.decode_step(frame) for frame in frames], axis=2)
    assert_same(heard, sound[..., near:])


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_precisions(checkpoint, dtype):
    tokenizer = Tokenizer(checkpoint, num_codebooks=2, dtype=dtype, max_seq_len=8)
    codes = tokenizer.encode(make_audio(30 * FRAME).numpy())
    assert codes.shape == (1, 2, 30)
    assert tokenizer.decode(codes).dtype == np.float32
    with pytest.raises(ValueError, match="dtype='f64' must be one of f32, f16, bf16"):
        Tokenizer(checkpoint, dtype="f64")


def test_arrays_of_other_layouts(tokenizer):
    """Strides, byte orders, wider types and read-only memory change no code."""
    audio = make_audio(4 * FRAME).numpy()
    codes = tokenizer.encode(audio)
    frozen = audio.copy()
    frozen.flags.writeable = False
    for same in (
        audio.astype(">f4"),
        np.repeat(audio, 2, axis=2)[..., ::2],
        audio.astype(float),
        frozen,
        audio.tolist(),
    ):
        assert np.array_equal(tokenizer.encode(same), codes)
    sound = tokenizer.decode(codes)
    for same in (codes.astype(np.int64), codes.astype(np.uint16), np.asfortranarray(codes)):
        assert np.array_equal(tokenizer.decode(same), sound)


def test_what_is_no_audio_and_no_code_is_refused(tokenizer):
    audio, codes = np.zeros((1, 1, FRAME), np.float32), np.zeros((1, 4, 1), np.uint32)
    for call in (tokenizer.encode, tokenizer.encode_step):
        with pytest.raises(TypeError, match="must be floating point in 3 dimensions"):
            call(audio[0])
        with pytest.raises(TypeError, match="must be floating point in 3 dimensions"):
            call(codes)
        with pytest.raises(ValueError, match="NaN"):
            call(audio * np.nan)
    for call in (tokenizer.decode, tokenizer.decode_step):
        with pytest.raises(TypeError, match="must be integers in 3 dimensions"):
            call(audio)
        with pytest.raises(ValueError, match="entries 0 to 63"):
            call(codes + 64)
    with pytest.raises(ValueError, match="made for 1 rows"):
        tokenizer.encode_step(np.concatenate([audio, audio]))


# In the background


def test_threads_give_what_steps_give(streamer, tokenizer):
    audio = make_audio(20 * FRAME).numpy()
    codes = tokenizer.encode(audio)[0]
    assert streamer.get_encoded() is None
    for chunk in steps(audio[0, 0], FRAME // 2):
        streamer.encode(chunk)
    frames = [wait_for(streamer.get_encoded) for _ in range(20)]
    assert streamer.get_encoded() is None
    assert {(frame.shape, frame.dtype) for frame in frames} == {((4, 1), np.dtype(np.uint32))}
    assert np.array_equal(np.concatenate(frames, axis=1), codes)
    for frame in frames:
        streamer.decode(frame.T)
    heard = [wait_for(streamer.get_decoded) for _ in frames]
    assert {(sound.shape, sound.dtype) for sound in heard} == {((FRAME,), np.dtype(np.float32))}
    whole = tokenizer.decode(codes[None])[0, 0]
    assert_same(np.concatenate(heard), whole)
    streamer.decode(codes.T)  # frames by the dozen
    assert wait_for(streamer.get_decoded).shape == (20 * FRAME,)


def test_a_call_returns_before_its_work_is_done(streamer):
    go, push = threading.Event(), streamer._encoder.function
    streamer._encoder.function = lambda audio: (go.wait(60), push(audio))[1]
    streamer.encode(make_audio(FRAME)[0, 0].numpy())
    time.sleep(0.05)
    assert streamer.get_encoded() is None
    streamer.decode(np.zeros((1, 4), np.uint32))
    assert wait_for(streamer.get_decoded).shape == (FRAME,)  # the other direction goes on
    go.set()
    assert wait_for(streamer.get_encoded).shape == (4, 1)


def test_bad_input_is_refused_at_once(streamer):
    audio = make_audio(FRAME)[0, 0].numpy()
    for wrong in (audio[None], audio.astype(int)):
        with pytest.raises(TypeError, match="must be floating point in 1 dimensions"):
            streamer.encode(wrong)
    with pytest.raises(ValueError, match="NaN or infinity"):
        streamer.encode(audio * np.inf)
    with pytest.raises(ValueError, match=r"shape \(4, 1\), but a frame is a row of 4 codes"):
        streamer.decode(np.zeros((4, 1), np.uint32))
    with pytest.raises(ValueError, match="entries 0 to 63"):
        streamer.decode(np.full((1, 4), 64, np.uint32))
    with pytest.raises(TypeError, match="must be integers in 2 dimensions"):
        streamer.decode(np.zeros((1, 4, 1), np.uint32))
    streamer.encode(audio)
    assert wait_for(streamer.get_encoded).shape == (4, 1)


def test_what_fails_in_a_thread_is_raised_where_its_result_is_asked_for(checkpoint):
    streamer = StreamTokenizer(checkpoint, num_codebooks=4, dtype="f16")
    streamer.encode(np.full(FRAME, 1e30, np.float32))
    streamer.encode(make_audio(FRAME)[0, 0].numpy())
    with pytest.raises(ValueError, match="Scale the audio"):
        wait_for(streamer.get_encoded)
    assert wait_for(streamer.get_encoded).shape == (4, 1)


def test_threads_end_with_their_tokenizer(checkpoint):
    before = set(threading.enumerate())
    streamer = StreamTokenizer(checkpoint, num_codebooks=4)
    streamer.encode(make_audio(FRAME)[0, 0].numpy())
    streamer.decode(np.zeros((1, 4), np.uint32))
    wait_for(streamer.get_encoded)
    wait_for(streamer.get_decoded)
    started = set(threading.enumerate()) - before
    assert len(started) == 2
    del streamer
    gc.collect()
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()


def test_wav_files_have_16_bits(tmp_path):
    sound = np.array([0, 0.5, -0.25, 3, -3], np.float32)
    write_wav(tmp_path / "a.wav", sound, 24_000)
    found, rate = soundfile.read(tmp_path / "a.wav", dtype="int16")
    assert (rate, soundfile.info(tmp_path / "a.wav").subtype) == (24_000, "PCM_16")
    assert np.abs(found - np.clip(sound, -1, 1) * 32767).max() <= 1
