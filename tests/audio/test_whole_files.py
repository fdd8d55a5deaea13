"""Audio read and written whole."""

import io
import os

import numpy as np
import pytest
import soundfile
import torch
from support.sounds import FORMS, RATE, encoded, make_sound, sine

from mimi_hf.audio import blocks, read_audio, resample, write_audio


def correlation(a, b):
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]


@pytest.fixture
def wav(tmp_path):
    path = tmp_path / "stereo.wav"
    soundfile.write(path, sine(channels=2).T, RATE, subtype="FLOAT")
    return path


class TestReading:
    @pytest.mark.parametrize("form", ["str", "PathLike", "bytes", "bytearray", "file", "BytesIO", "not seekable"])
    def test_every_source_gives_the_samples_of_the_file(self, wav, form):
        content = wav.read_bytes()
        with open(wav, "rb") as file:
            pipe = io.BytesIO(content)
            pipe.seek = pipe.seekable = None
            sources = {
                "str": str(wav),
                "PathLike": wav,
                "bytes": content,
                "bytearray": bytearray(content),
                "file": file,
                "BytesIO": io.BytesIO(content),
                "not seekable": pipe,
            }
            audio, rate = read_audio(sources[form])
        assert rate == RATE
        assert audio.dtype == np.float32
        assert audio.flags.c_contiguous
        np.testing.assert_array_equal(audio, sine(channels=2))

    @pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
    def test_samples_are_those_of_libsndfile_and_soxr(self, form, monkeypatch):
        monkeypatch.setattr(blocks, "_WHOLE_SECONDS", 0.3)  # several blocks
        data = encoded(make_sound(channels=2), **form)
        with soundfile.SoundFile(io.BytesIO(data)) as sound:  # soundfile.read seeks first, which changes mp3
            expected = sound.read(dtype="float32", always_2d=True).T
        audio, rate = read_audio(data)
        np.testing.assert_array_equal(audio, expected)
        np.testing.assert_array_equal(read_audio(data, 16_000)[0], resample(expected, rate, 16_000))

    def test_what_resampling_leaves_nothing_of(self):
        audio, rate = read_audio(encoded(make_sound(1), 48_000, format="WAV"), 16_000)
        assert (audio.shape, rate) == ((1, 0), 16_000)

    def test_mixes_and_resamples(self, wav):
        audio, rate = read_audio(wav, sampling_rate=16_000, channels=1)
        assert rate == 16_000
        expected = resample(sine(channels=2).mean(axis=0, keepdims=True), RATE, 16_000)
        np.testing.assert_array_equal(audio, expected)

    @pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au", "caf"])
    def test_formats(self, tmp_path, suffix):
        path = tmp_path / f"sound.{suffix}"
        soundfile.write(path, sine().T, RATE)
        audio, rate = read_audio(path)
        assert (audio.shape, rate) == ((1, RATE // 2), RATE)
        assert correlation(audio, sine()) > 0.99

    def test_missing_file_and_folder(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nothing\.wav' does not exist"):
            read_audio(tmp_path / "nothing.wav")
        with pytest.raises(FileNotFoundError, match="is a folder"):
            read_audio(str(tmp_path))
        with pytest.raises(FileNotFoundError, match="does not exist") as error:
            read_audio("spoken words, not a path " * 1000)
        assert len(str(error.value)) < 300

    @pytest.mark.parametrize("name", ["notes.txt", "sound.wav", "headerless.raw"])
    def test_no_audio(self, tmp_path, name):
        path = tmp_path / name
        path.write_bytes(b"This is no audio. " * 100)
        with pytest.raises(ValueError, match=rf"{name}' cannot be read as audio.*supported: wav, flac"):
            read_audio(path)
        with pytest.raises(ValueError, match="the audio of 1800 bytes cannot be read"):
            read_audio(path.read_bytes())

    @pytest.mark.parametrize("suffix", ["flac", "ogg"])
    def test_damaged(self, tmp_path, suffix):
        path = tmp_path / f"damaged.{suffix}"
        noise = np.random.default_rng(0).normal(size=RATE * 2) * 0.1
        soundfile.write(path, noise, RATE)
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 200] = b"\x55" * 200
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"damaged.{suffix}' .*damaged"):
            read_audio(path)

    def test_a_header_that_claims_too_much(self, tmp_path):
        path = tmp_path / "a.flac"
        soundfile.write(path, np.zeros(24_000), 24_000)
        content = bytearray(path.read_bytes())
        content[21] |= 0x0F  # the samples of STREAMINFO: 36 bits
        content[22:26] = b"\xff" * 4
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.flac"):
            read_audio(path)

    def test_streamed_flac_without_length(self, tmp_path):
        path = tmp_path / "streamed.flac"
        soundfile.write(path, sine().T, RATE)
        content = bytearray(path.read_bytes())
        content[21] &= 0xF0  # the last 36 bits of this header field count the samples
        content[22:26] = bytes(4)
        with pytest.raises(ValueError, match="does not say how long it is"):
            read_audio(bytes(content))

    def test_empty(self, tmp_path):
        path = tmp_path / "empty.wav"
        soundfile.write(path, np.zeros((0, 1)), RATE)
        with pytest.raises(ValueError, match=r"empty\.wav' is empty"):
            read_audio(path)

    def test_wrong_source(self, wav):
        with pytest.raises(TypeError, match="from int"):
            read_audio(3)
        with open(wav, encoding="latin1") as file, pytest.raises(TypeError, match="mode 'rb'"):
            read_audio(file)


class TestWriting:
    @pytest.mark.parametrize(("suffix", "tolerance"), [(".wav", 1 / 32_000), (".FLAC", 1 / 32_000), (".ogg", 0.05)])
    @pytest.mark.parametrize("channels", [1, 2])
    def test_round_trip(self, tmp_path, suffix, tolerance, channels):
        path, audio = tmp_path / f"sound{suffix}", sine(channels=channels)
        write_audio(path, audio, RATE)
        back, rate = read_audio(path)
        assert rate == RATE
        assert back.shape == audio.shape
        assert np.abs(back - audio).max() < tolerance
        assert os.listdir(tmp_path) == [path.name]

    @pytest.mark.parametrize("kind", ["float64", "float16", "one dimension", "tensor", "bfloat16", "needs gradients"])
    def test_kinds_of_audio(self, tmp_path, kind):
        audio = sine()
        audios = {
            "float64": audio.astype(np.float64),
            "float16": audio.astype(np.float16),
            "one dimension": audio[0],
            "tensor": torch.from_numpy(audio),
            "bfloat16": torch.from_numpy(audio).bfloat16(),
            "needs gradients": torch.from_numpy(audio).requires_grad_(),
        }
        write_audio(tmp_path / "a.wav", audios[kind], np.int64(RATE))
        back, _ = read_audio(tmp_path / "a.wav")
        assert np.abs(back - audio).max() < (5e-3 if "16" in kind else 1e-4)

    def test_clips(self, tmp_path):
        write_audio(tmp_path / "a.wav", np.array([-3.0, -1.0, 0.0, 1.0, 3.0]), RATE)
        samples, _ = soundfile.read(tmp_path / "a.wav", dtype="int16")
        assert samples.tolist() == [-32768, -32768, 0, 32767, 32767]
        write_audio(tmp_path / "a.ogg", 20 * sine(), RATE)  # Vorbis itself would keep what is louder
        assert np.abs(read_audio(tmp_path / "a.ogg")[0]).max() < 2

    def test_minutes_of_ogg(self, tmp_path):
        # In one call, libsndfile overflows its stack and takes the process with it.
        write_audio(tmp_path / "long.ogg", np.tile(sine(seconds=1), 600), RATE)
        assert soundfile.info(tmp_path / "long.ogg").frames == 600 * RATE

    def test_replaces_and_keeps_the_mode_of_new_files(self, tmp_path):
        path, other = tmp_path / "a.wav", tmp_path / "other"
        path.write_text("old")
        other.write_text("")
        write_audio(str(path), sine(), RATE)
        assert read_audio(path)[0].shape == (1, RATE // 2)
        assert path.stat().st_mode == other.stat().st_mode

    @pytest.mark.parametrize("step", ["write", "rename"])
    def test_failure_leaves_nothing_behind_and_the_old_file_whole(self, tmp_path, monkeypatch, step):
        path = tmp_path / "a.wav"
        path.write_text("old")

        def broken(*args, **kwargs):
            assert len(os.listdir(tmp_path)) == 2  # the new one is being made, in the same folder
            raise OSError("disk is full")

        target = (soundfile.SoundFile, "write") if step == "write" else (os, "replace")
        monkeypatch.setattr(*target, broken)
        with pytest.raises(OSError, match="disk is full"):
            write_audio(path, sine(), RATE)
        assert os.listdir(tmp_path) == ["a.wav"]
        assert path.read_text() == "old"

    def test_errors_of_libsndfile(self, tmp_path, monkeypatch):
        def broken(*args, **kwargs):
            raise soundfile.LibsndfileError(2)

        monkeypatch.setattr(soundfile.SoundFile, "write", broken)
        with pytest.raises(OSError, match="takes no WAV file"):
            write_audio(tmp_path / "a.wav", sine(), RATE)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize(
        ("name", "audio", "rate", "error", "message"),
        [
            ("a.mp4", sine(), RATE, ValueError, r"'\.mp4', but known are \.wav, \.flac, \.ogg"),
            ("a", sine(), RATE, ValueError, "extension ''"),
            ("a.wav", np.zeros(5, np.int16), RATE, TypeError, "not int16"),
            ("a.wav", torch.zeros(5, dtype=torch.int32), RATE, TypeError, "not int32"),
            ("a.wav", np.zeros((1, 1, 5)), RATE, ValueError, r"\(1, 1, 5\).*\(channels, samples\)"),
            ("a.wav", np.zeros((1, 0)), RATE, ValueError, r"\(1, 0\)"),
            ("a.wav", np.zeros((5000, 2)), RATE, ValueError, "5000 channels"),
            ("a.flac", np.zeros((9, 100)), RATE, ValueError, "FLAC holds up to 8"),
            ("a.ogg", np.zeros((256, 100)), RATE, ValueError, "OGG holds up to 255"),
            ("a.wav", np.array([0, np.nan]), RATE, ValueError, "NaN"),
            ("a.wav", sine(), 0, ValueError, "sampling_rate=0 must be positive"),
            ("a.wav", sine(), 22050.5, ValueError, "whole number"),
            ("a.ogg", sine(), 1_000_000, ValueError, "up to 200000 for OGG"),
            ("no/folder/a.wav", sine(), RATE, FileNotFoundError, "Create it first"),
        ],
    )
    def test_errors(self, tmp_path, name, audio, rate, error, message):
        with pytest.raises(error, match=message):
            write_audio(tmp_path / name, audio, rate)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("suffix", blocks.WRITABLE)
    def test_limits_of_formats_hold(self, tmp_path, suffix):
        _, channels, rate = blocks.WRITABLE[suffix]
        write_audio(tmp_path / f"channels{suffix}", np.zeros((channels, 100)), RATE)
        write_audio(tmp_path / f"rate{suffix}", np.zeros((1, 100)), rate)
        assert soundfile.info(tmp_path / f"channels{suffix}").channels == channels
        assert soundfile.info(tmp_path / f"rate{suffix}").samplerate == rate
