"""Raw samples and WAV in pipes."""

import io
import os
import struct
import threading

import numpy as np
import pytest
from support.sounds import Pipe, encoded, joined, make_sound

from mimi_hf.audio import PCM, AudioBlocks, read_audio
from mimi_hf.audio.pcm import SAMPLE_FORMATS, PCMWriter


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
