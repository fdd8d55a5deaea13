"""`.mimi` files are the codes of the whole recording, and any part of them is that part of its audio."""

import io

import numpy as np
import pytest
import soundfile
import torch
from support.commands import FRAME, decode_whole, encode_whole, make_codec, pipe_of, wav_bytes
from support.sounds import make_sound
from support.tiny import make_model

from mimi_hf.audio import PCM, read_audio
from mimi_hf.bitstream import BitstreamError, BitstreamReader, Header, read_mimi, write_mimi
from mimi_hf.inference import DecodeOptions, EncodeOptions, decode_file, encode_file


@pytest.mark.parametrize("stereo", [False, True])
@pytest.mark.parametrize("coding", ["packed", "entropy"])
def test_a_file_holds_the_codes_of_the_whole(codec, recording, tmp_path, stereo, coding):
    output, done = tmp_path / "talk.mimi", []
    options = EncodeOptions(4, stereo=stereo, entropy=coding == "entropy", metadata={"who": "me", "n": 3})
    report = encode_file(codec, recording, output, options, progress=done.append)
    sound, _ = read_audio(recording, 24_000, None if stereo else 1)
    expected = encode_whole(codec, sound, num_quantizers=4)
    header, codes = read_mimi(output)
    assert (codes == expected).mean() > 0.999
    assert (header.num_samples, header.channels, header.coding) == (sound.shape[1], 2 if stereo else 1, coding)
    assert header.codebook_digest == codec.codebook_digest
    known = {"source": recording.name, "source_sampling_rate": 44_100, "source_channels": 2}
    assert header.metadata == {**known, "who": "me", "n": 3}
    assert (report.frames, report.num_bytes) == (codes.shape[2], output.stat().st_size)
    assert report.bits_per_second == pytest.approx(8 * report.num_bytes / report.duration)
    assert done[-1] == 1

    back = decode_file(codec, output, tmp_path / "back.wav")
    audio, rate = read_audio(tmp_path / "back.wav")
    assert (rate, audio.shape, back.complete) == (24_000, sound.shape, True)
    np.testing.assert_allclose(audio, decode_whole(codec, codes)[:, : sound.shape[1]].clip(-1, 1), atol=2 / 2**15)


def test_a_long_file_in_pieces_is_the_whole(codec, tmp_path, monkeypatch):
    soundfile.write(tmp_path / "long.flac", make_sound(200_000).T, 24_000)
    sound, _ = read_audio(tmp_path / "long.flac")
    monkeypatch.setattr("mimi_hf.inference.mimi_files._PUSH_SECONDS", 0.93)
    encode_file(codec, tmp_path / "long.flac", tmp_path / "long.mimi")
    header, codes = read_mimi(tmp_path / "long.mimi")
    assert header.num_quantizers == 6
    assert (codes == encode_whole(codec, sound)).mean() > 0.999


@pytest.mark.parametrize("seekable", [True, False])
@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize(
    ("start", "duration"), [(0, None), (0, 1.0), (1.234, None), (2.5, 0.01), (5.9, 100), (3.04, 0.08)]
)
def test_a_part_is_that_part_of_the_whole(codec, tmp_path, seekable, live, start, duration):
    path = tmp_path / "x.mimi"
    encode_file(codec, wav_bytes(make_sound(150_001)), path)
    whole = decode_whole(codec, read_mimi(path)[1])[:, :150_001].clip(-1, 1)
    first = round(start * 24_000)
    expected = whole[:, first : None if duration is None else first + round(duration * 24_000)]
    output = io.BytesIO() if live else tmp_path / "part.wav"
    with open(path, "rb") if seekable else pipe_of(path.read_bytes()) as source:
        report = decode_file(codec, source, output, DecodeOptions(start=start, duration=duration))
    audio, _ = read_audio(output.getvalue() if live else output)
    assert report.complete
    assert audio.shape == expected.shape
    np.testing.assert_allclose(audio, expected, atol=1e-3)


@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), 1e306])
def test_a_start_that_no_file_has_is_refused(value):
    with pytest.raises(ValueError, match=r"start=.* must be seconds"):
        DecodeOptions(start=value)


def test_a_stream_of_unknown_length_is_trimmed_at_its_end(codec, tmp_path):
    sound = make_sound(25_000)
    encode_file(codec, pipe_of(wav_bytes(sound)), tmp_path / "x.mimi")
    with open(tmp_path / "x.mimi", "rb") as file:
        assert BitstreamReader(file).header.num_samples is None
    for source in (tmp_path / "x.mimi", pipe_of((tmp_path / "x.mimi").read_bytes())):
        decode_file(codec, source, tmp_path / "back.wav")
        assert read_audio(tmp_path / "back.wav")[0].shape == (1, 25_000)


def test_fewer_codebooks_are_decoded(codec, tmp_path):
    encode_file(codec, wav_bytes(make_sound()), tmp_path / "x.mimi", EncodeOptions(5))
    report = decode_file(codec, tmp_path / "x.mimi", tmp_path / "x.wav", DecodeOptions(num_quantizers=2))
    expected = decode_whole(codec, read_mimi(tmp_path / "x.mimi")[1][:, :2])[:, :50_000].clip(-1, 1)
    np.testing.assert_allclose(read_audio(tmp_path / "x.wav")[0], expected, atol=2 / 2**15)
    assert report.num_quantizers == 2
    with pytest.raises(ValueError, match="holds 5"):
        decode_file(codec, tmp_path / "x.mimi", tmp_path / "y.wav", DecodeOptions(num_quantizers=6))


def test_other_codebooks_are_refused_unless_told_otherwise(codec, tmp_path):
    path, other = tmp_path / "x.mimi", make_codec()
    with torch.no_grad():
        next(buffer for name, buffer in other.named_buffers() if name.endswith("embed_sum")).add_(1)
    other.train().eval()
    encode_file(codec, wav_bytes(make_sound(9000)), path)
    with pytest.raises(ValueError, match=r"other codebooks.*--any-model"):
        decode_file(other, path, tmp_path / "x.wav")
    assert not (tmp_path / "x.wav").exists()
    decode_file(other, path, tmp_path / "x.wav", DecodeOptions(any_model=True))
    with pytest.raises(ValueError, match="frame_size=1920, the model 24"):
        decode_file(make_model(), path, tmp_path / "y.wav", DecodeOptions(any_model=True))


def test_a_cut_file_plays_and_a_damaged_one_says_where(codec, tmp_path):
    codes = np.random.default_rng(0).integers(0, 64, (1, 6, 100))
    write_mimi(tmp_path / "x.mimi", codes, Header(6, 64, num_samples=191_000), block_frames=10)
    data = (tmp_path / "x.mimi").read_bytes()
    (tmp_path / "cut.mimi").write_bytes(data[: len(data) * 55 // 100])
    report = decode_file(codec, tmp_path / "cut.mimi", tmp_path / "cut.wav")
    whole = decode_whole(codec, codes).clip(-1, 1)
    audio, _ = read_audio(tmp_path / "cut.wav")
    assert not report.complete
    assert audio.shape[1] in (40 * FRAME, 50 * FRAME)
    np.testing.assert_allclose(audio, whole[:, : audio.shape[1]], atol=1e-3)
    (tmp_path / "bad.mimi").write_bytes(data[:400] + bytes([data[400] ^ 1]) + data[401:])
    with pytest.raises(BitstreamError, match=r"bad.mimi: .*second"):
        decode_file(codec, tmp_path / "bad.mimi", tmp_path / "bad.wav")
    assert not (tmp_path / "bad.wav").exists()
    for cut in (data[:30], b"", b"text"):
        (tmp_path / "bad.mimi").write_bytes(cut)
        with pytest.raises(BitstreamError, match=r"bad\.mimi"):
            decode_file(codec, tmp_path / "bad.mimi", tmp_path / "bad.wav")


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        (np.full((1, 9000), np.nan, np.float32), {}, ValueError, r"NaN or infinity, near 0.00 s"),
        (make_sound(9000), {"num_quantizers": 7}, ValueError, "num_quantizers=7"),
        (make_sound(9000), {"metadata": {"x": float("nan")}}, ValueError, "metadata"),
        (np.zeros((1, 0), np.float32), {}, ValueError, "empty"),
        ("absent.wav", {}, FileNotFoundError, "absent.wav"),
    ],
)
def test_what_cannot_be_encoded_leaves_nothing(codec, tmp_path, source, options, error, message):
    source = source if isinstance(source, str) else wav_bytes(source)
    with pytest.raises(error, match=message):
        encode_file(codec, source, tmp_path / "x.mimi", EncodeOptions(**options))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IsADirectoryError):
        encode_file(codec, wav_bytes(make_sound(9000)), tmp_path)
    assert tmp_path.is_dir()


def test_raw_audio_of_any_kind(codec):
    sound = make_sound(9000, 2)
    files = [io.BytesIO(), io.BytesIO()]
    raw = sound.T.astype("<f4").tobytes()
    encode_file(codec, pipe_of(raw), files[0], EncodeOptions(stereo=True, pcm=PCM(24_000, 2, "f32le")))
    encode_file(codec, wav_bytes(sound), files[1], EncodeOptions(stereo=True))
    codes = [BitstreamReader(io.BytesIO(file.getvalue())).read() for file in files]
    np.testing.assert_array_equal(*codes)
    assert codes[0].shape == (2, 6, 5)
