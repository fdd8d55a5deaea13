import io
import itertools
import os
import struct
import threading

import numpy as np
import pytest
import soundfile

from mimi_hf.audio import PCM, AudioBlocks, read_audio, write_audio, write_blocks
from mimi_hf.audio.pcm import SAMPLE_FORMATS, PCMWriter


class Pipe(io.RawIOBase):
    """A pipe that holds `data`, cut as the writer wrote it."""

    def __init__(self, data, cuts=()):
        edges = [0, *sorted(cuts), len(data)]
        self.pieces = [data[start:stop] for start, stop in itertools.pairwise(edges) if stop > start]

    def readable(self):
        return True

    def readinto(self, buffer):
        if not self.pieces:
            return 0
        piece = self.pieces.pop(0)
        count = min(len(piece), len(buffer))
        buffer[:count] = piece[:count]
        if count < len(piece):
            self.pieces.insert(0, piece[count:])
        return count


def make_sound(samples=50_000, channels=1, seed=0):
    """(C, N) float32."""
    time = np.arange(samples) / 24_000
    noise = np.random.default_rng(seed).standard_normal((channels, samples)) * 0.1
    return (0.5 * np.sin(2 * np.pi * 220 * time) + noise).astype(np.float32)


def encoded(sound, rate=24_000, **form):
    file = io.BytesIO()
    soundfile.write(file, sound.T, rate, **form)
    return file.getvalue()


def joined(blocks):
    return np.concatenate(list(blocks), axis=1)


FORMS = [
    {"format": "WAV"},
    {"format": "WAV", "subtype": "FLOAT"},
    {"format": "FLAC"},
    {"format": "OGG", "subtype": "VORBIS"},
    {"format": "OGG", "subtype": "OPUS"},
    {"format": "MP3"},
    {"format": "AIFF"},
]


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


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize("length", [None, 0, 0xFFFF_FFFF, 0x7FFF_F000, 0x8000_0000])
def test_wav_through_a_pipe_is_the_file(subtype, kind, length):
    data = encoded(make_sound(3000, channels=2), 16_000, format=kind, subtype=subtype)
    whole, _ = read_audio(data)
    place = data.index(b"data") + 4
    if length is not None:
        data = data[:place] + struct.pack("<I", length) + data[place + 4 : place + 4 + whole.size * 8]
        data = data[: place + 4 + whole.size * {"U8": 1, "16": 2, "24": 3, "LE": 8}.get(subtype[-2:], 4)]
    elif kind != "RF64":
        data += b"LIST" + struct.pack("<I", 4) + b"tail"
    junk = b"junk" + struct.pack("<I", 5) + b"12345\0"  # a chunk of odd length, padded
    with AudioBlocks(Pipe(data[:12] + junk + data[12:], range(3, 9000, 301))) as blocks:
        assert (blocks.sampling_rate, blocks.source_channels) == (16_000, 2)
        got = joined(blocks)
    if kind == "RF64":  # of unknown length: what follows the samples is taken for some
        got = got[:, : whole.shape[1]]
    np.testing.assert_array_equal(got, whole)


@pytest.mark.parametrize(
    "header", [b"", b"RIFF", b"RIFF\0\0\0\0WAVE", b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0", b"nothing at all"]
)
def test_pipes_that_carry_no_audio_are_explained(header):
    with pytest.raises(ValueError, match=r"empty|cannot be read"), AudioBlocks(Pipe(header)) as blocks:
        list(blocks)
    strange = struct.pack("<HHIIHH", 6, 1, 8000, 8000, 1, 8)  # A-law
    data = b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + strange + b"data\xff\xff\xff\xff"
    with pytest.raises(ValueError, match="plain PCM"):
        AudioBlocks(Pipe(data))


@pytest.mark.parametrize("sample_format", SAMPLE_FORMATS)
@pytest.mark.parametrize("header", [True, False])
def test_what_is_piped_out_is_read_back(sample_format, header):
    sound, file = make_sound(1000, channels=2), io.BytesIO()
    pcm = PCM(48_000, 2, sample_format)
    writer = PCMWriter(file, pcm, header)
    for start in range(0, 1000, 300):
        writer.write(sound[:, start : start + 300])
    with AudioBlocks(Pipe(file.getvalue(), [1, 50, 2001]), pcm=None if header else pcm) as blocks:
        back = joined(blocks)
        assert blocks.sampling_rate == 48_000
    bits = min(8 * SAMPLE_FORMATS[sample_format], 23)
    np.testing.assert_allclose(back, sound, atol=2.0 ** (2 - bits))
    if header:
        np.testing.assert_array_equal(read_audio(file.getvalue())[0], back)


def test_a_pipe_is_read_as_it_comes():
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as source, open(write_end, "wb", buffering=0) as sink:
        blocks = iter(AudioBlocks(source, pcm=PCM()))
        for size in (3840, 2, 4001, 1, 60_000):
            sink.write(bytes(size))
            got, wanted = 0, (size + (0 if size != 1 else 1)) // 2
            while got < wanted:  # would wait for ever if a block waited for more
                got += next(blocks).shape[1]
        sink.close()
        assert list(blocks) == []


def test_a_named_pipe_is_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    data = encoded(make_sound(), format="WAV")
    thread = threading.Thread(target=lambda: (tmp_path / "fifo").write_bytes(data))
    thread.start()
    with AudioBlocks(tmp_path / "fifo", seconds=0.1) as blocks:
        np.testing.assert_array_equal(joined(blocks), read_audio(data)[0])
    thread.join()


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
