"""Audio read and written block by block."""

import io
import struct

import numpy as np
import pytest
import soundfile
from support.sounds import FORMS, Pipe, encoded, joined, make_sound

from mimi_hf.audio import PCM, AudioBlocks, read_audio, write_audio, write_blocks


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
@pytest.mark.parametrize("rate", [None, 16_000])
@pytest.mark.parametrize("seconds", [0.0137, 1.0])
def test_blocks_together_are_the_whole(tmp_path, form, rate, seconds):
    path = tmp_path / "sound.bin"
    path.write_bytes(encoded(make_sound(channels=2), **form))
    whole, whole_rate = read_audio(path, rate, channels=1)
    for source in (path, path.read_bytes(), io.BytesIO(path.read_bytes()), Pipe(path.read_bytes(), [7, 9999])):
        with AudioBlocks(source, rate, channels=1, seconds=seconds) as blocks:
            pieces = list(blocks)
            assert (blocks.sampling_rate, blocks.channels, blocks.source_channels) == (whole_rate, 1, 2)
            if blocks.num_samples is not None:
                assert blocks.num_samples == whole.shape[1]
        assert max(piece.shape[1] for piece in pieces) <= seconds * whole_rate + 4000
        np.testing.assert_allclose(np.concatenate(pieces, axis=1), whole, atol=1e-6)


def test_a_rate_that_cannot_be_takes_no_memory():
    data = bytearray(encoded(make_sound(24_000), format="WAV"))
    data[24:28] = struct.pack("<I", 2**31 - 1)
    with AudioBlocks(bytes(data), seconds=20) as blocks:
        assert sum(piece.shape[1] for piece in blocks) == 24_000


@pytest.mark.parametrize("rates", [(8000, 24_000), (44_100, 24_000), (48_000, 44_100), (12_345, 24_000)])
def test_resampled_length_is_foretold(rates):
    for samples in (1, 17, 1000, 12_347):
        data = encoded(make_sound(samples), rates[0], format="WAV")
        with AudioBlocks(data, rates[1], seconds=0.01) as blocks:
            pieces = list(blocks)
            foretold = blocks.num_samples
        assert foretold == sum(piece.shape[1] for piece in pieces) == read_audio(data, rates[1])[0].shape[1]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
def test_a_part_is_that_part_of_the_whole(form):
    data = encoded(make_sound(), **form)
    whole, rate = read_audio(data)
    first, count = round(0.61 * rate), round(0.5 * rate)
    with AudioBlocks(data, seconds=0.1, start=0.61, duration=0.5) as blocks:
        part = joined(blocks)
        assert blocks.duration == pytest.approx(0.5)
    np.testing.assert_allclose(part, whole[:, first : first + count], atol=1e-4 if form["format"] == "OGG" else 1e-6)
    with AudioBlocks(data, start=1.0, duration=100) as blocks:
        assert joined(blocks).shape[1] == whole.shape[1] - rate
    with pytest.raises(ValueError, match="past the end"), AudioBlocks(data, start=1000) as blocks:
        list(blocks)
    for place in ({"start": -1}, {"start": 1e306}, {"duration": float("nan")}):
        with pytest.raises(ValueError, match="seconds, 0 or more"):
            AudioBlocks(data, **place)


def test_damage_is_told_as_by_read_audio(tmp_path):
    flac = encoded(make_sound(), format="FLAC")
    (tmp_path / "text.wav").write_text("no audio at all")
    (tmp_path / "nothing.wav").touch()
    sources = [tmp_path / "text.wav", tmp_path / "nothing.wav", tmp_path / "absent.wav", tmp_path, flac[:60_000]]
    sources += [b"", encoded(np.zeros((1, 0), np.float32), format="WAV"), 3, io.StringIO("text")]
    for source in sources:
        with pytest.raises((ValueError, TypeError, OSError)) as expected:
            read_audio(source)
        with pytest.raises(expected.type) as error, AudioBlocks(source) as blocks:
            list(blocks)
        if not isinstance(source, io.StringIO):
            assert str(error.value).split("(")[0] == str(expected.value).split("(")[0]


def test_a_flac_that_was_streamed_is_read():
    data = bytearray(encoded(make_sound(), format="FLAC"))
    data[21] &= 0xF0  # the number of samples: 36 bits, 0 says unknown
    data[22:26] = bytes(4)
    with AudioBlocks(bytes(data)) as blocks:
        assert blocks.duration is blocks.num_samples is None
        np.testing.assert_allclose(joined(blocks), make_sound(), atol=2**-15)


@pytest.mark.parametrize("end", ["wav", "flac", "ogg"])
def test_blocks_written_are_the_file_written_whole(tmp_path, end):
    sound = make_sound(100_000, channels=2) * 2  # clipped
    write_audio(tmp_path / f"whole.{end}", sound, 24_000)
    with write_blocks(tmp_path / f"blocks.{end}", 24_000, 2) as write:
        for start in range(0, 100_000, 7777):
            write(sound[:, start : start + 7777])
        assert not (tmp_path / f"blocks.{end}").exists()
    pair = [read_audio(tmp_path / f"{name}.{end}")[0] for name in ("whole", "blocks")]
    # How Vorbis divides its first tenths of a second depends on what it gets at once.
    np.testing.assert_allclose(*pair, atol=0.1 if end == "ogg" else 1e-6)


def test_an_error_while_writing_leaves_nothing(tmp_path):
    (tmp_path / "there.wav").write_bytes(b"precious")
    for name, wrong in (("there.wav", np.full((1, 3), np.nan)), ("new.flac", np.full((1, 3), np.inf))):
        with pytest.raises(ValueError, match="NaN or inf"), write_blocks(tmp_path / name, 24_000, 1) as write:
            write(make_sound(100))
            write(wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["there.wav"]
    assert (tmp_path / "there.wav").read_bytes() == b"precious"
    with pytest.raises(ValueError, match="extension"), write_blocks(tmp_path / "x.mp3", 24_000, 1):
        pass
    with pytest.raises(FileNotFoundError, match="no folder"), write_blocks(tmp_path / "a" / "x.wav", 24_000, 1):
        pass


def test_wav_knows_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("mimi_hf.audio.blocks._WAV_LIMIT", 1000)
    with pytest.raises(ValueError, match="4 GiB"), write_blocks(tmp_path / "x.wav", 24_000, 1) as write:
        write(make_sound(501))
    with write_blocks(tmp_path / "x.wav", 24_000, 1, num_samples=501) as write:
        write(make_sound(501))
    assert soundfile.info(tmp_path / "x.wav").format == "RF64"
    assert read_audio(tmp_path / "x.wav")[0].shape == (1, 501)


@pytest.mark.parametrize(
    "mistake",
    [
        {"seconds": 0},
        {"start": -1},
        {"duration": float("nan")},
        {"channels": 3},
        {"sampling_rate": 0},
        {"pcm": "S24_LE"},
    ],
)
def test_mistakes_are_explained(mistake):
    with pytest.raises(ValueError, match=r"must|cannot|none of"):
        if "pcm" in mistake:
            mistake = {"pcm": PCM(sample_format=mistake["pcm"])}
        AudioBlocks(encoded(make_sound(10), format="WAV"), **mistake)
