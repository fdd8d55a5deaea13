"""`mimi-hf encode` and `decode` between pipes: every frame at once, and whole files however it ends."""

import io
import os
import select
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from support.commands import FRAME, MIMI_HF, decode_whole, encode_whole, pcm_bytes, run
from support.corpora import wait_until
from support.sounds import make_sound

from mimi_hf.audio import read_audio
from mimi_hf.bitstream import BitstreamError, BitstreamReader, read_mimi
from mimi_hf.cli import app


class Process:
    """A command with pipes at both ends."""

    def __init__(self, *arguments):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen([*MIMI_HF, *map(str, arguments)], bufsize=0, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            pipe.close()
        self.process.wait()

    def send(self, data):
        self.process.stdin.write(data)

    def receive(self, size):
        data = b""
        while len(data) < size:
            ready, _, _ = select.select([self.process.stdout], [], [], 60)
            assert ready, "nothing comes, although all that it needs was sent"
            more = self.process.stdout.read(size - len(data))
            assert more, self.process.stderr.read().decode()
            data += more
        return data

    def end(self):
        """What is left, and the exit status."""
        self.process.stdin.close()
        rest = self.process.stdout.read()
        return rest, self.process.wait()


def test_each_frame_goes_through_both_pipes_before_the_next_one_comes(codec, codec_folder):
    """The bytes of a frame are waited for before more is sent: a pipe that held anything back would be found out."""
    sound = make_sound(10 * FRAME + 700)
    frames = [pcm_bytes(sound[:, start : start + FRAME]) for start in range(0, sound.shape[1], FRAME)]
    coded, audio = b"", b""
    with (
        Process("encode", "--raw", "-", "-", "-m", codec_folder, "-k", "4", "-q") as encoder,
        Process("decode", "--raw", "-", "-", "-m", codec_folder) as decoder,
    ):
        for i, frame in enumerate(frames[:-1]):
            encoder.send(frame)
            block = read_block(encoder, first=i == 0)
            coded += block
            decoder.send(block)
            audio += decoder.receive(2 * FRAME)
        encoder.send(frames[-1])
        rest, status = encoder.end()
        assert status == 0
        decoder.send(rest)
        tail, status = decoder.end()
        assert status == 0
    reader = BitstreamReader(io.BytesIO(coded + rest))
    codes = reader.read()
    assert (reader.complete, reader.num_samples) == (True, sound.shape[1])
    heard = np.frombuffer(pcm_bytes(sound), "<i2").astype(np.float32)[None] / 32768
    np.testing.assert_array_equal(codes, encode_whole(codec, heard, num_quantizers=4))
    expected = pcm_bytes(decode_whole(codec, codes).clip(-1, 1))
    difference = np.frombuffer(audio + tail, "<i2").astype(int) - np.frombuffer(expected, "<i2")
    assert abs(difference).max() <= 1


def read_block(process, first):
    """The bytes of one block of one frame, after those of the header where it is the first."""
    data = b""
    while True:
        data += process.receive(1)
        try:
            reader = BitstreamReader(io.BytesIO(data))
        except BitstreamError:
            if first:
                continue
            return data + process.receive(2 + 3 + 4 - 1)  # 4 codes of 6 bits
        return data + process.receive(2 + 3 + 4) if reader.header else data


@pytest.fixture
def piped(monkeypatch):
    """Runs a command in this process, its standard input and output real pipes, with a function in a thread at their
    other ends: its exit status."""

    def run_piped(arguments, driver):
        (source, feed), (drain, sink) = os.pipe(), os.pipe()
        files = [os.fdopen(end, mode) for end, mode in ((source, "rb"), (feed, "wb"), (drain, "rb"), (sink, "wb"))]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(files[0]))
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(files[3]))
        thread = threading.Thread(target=driver, args=(files[1], files[2]))
        thread.start()
        with pytest.raises(SystemExit) as exit_:
            app([str(argument) for argument in arguments])
        thread.join()
        return exit_.value.code

    return run_piped


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_recording_that_is_stopped_is_kept(piped, codec_folder, tmp_path, number):
    sound = make_sound(3 * FRAME + 100)

    def driver(feed, _drain):
        feed.write(pcm_bytes(sound))
        feed.flush()
        wait_until(lambda: list(tmp_path.glob(".talk*")))
        time.sleep(0.3)  # it waits for more now
        os.kill(os.getpid(), number)

    assert piped(["encode", "--raw", "-", tmp_path / "talk.mimi", "-m", codec_folder], driver) == 128 + number
    header, codes = read_mimi(tmp_path / "talk.mimi")
    read_end = BitstreamReader(open(tmp_path / "talk.mimi", "rb"))  # noqa: SIM115
    assert (read_end.scan().complete, header.num_samples, codes.shape[2]) == (True, sound.shape[1], 4)
    assert [path.name for path in tmp_path.iterdir()] == ["talk.mimi"]


def test_a_closed_pipe_ends_quietly(piped, codec_folder, capfd):
    def driver(feed, drain):
        feed.write(pcm_bytes(make_sound(FRAME)))
        feed.flush()
        drain.read(10)
        drain.close()
        feed.write(pcm_bytes(make_sound(2 * FRAME)))
        feed.flush()

    assert piped(["encode", "--raw", "-", "-", "-m", codec_folder], driver) == 128 + signal.SIGPIPE
    assert capfd.readouterr().err == ""


def test_a_wav_pipe_is_the_file(piped, recording, codec_folder, tmp_path):
    run("encode", recording, tmp_path / "x.mimi", "-m", codec_folder)
    run("decode", tmp_path / "x.mimi", tmp_path / "x.wav", "-m", codec_folder)
    got = []

    def driver(feed, drain):
        feed.write((tmp_path / "x.mimi").read_bytes())
        feed.close()
        got.append(drain.read(44 + 4 * round(60_000 / 44_100 * 24_000)))

    assert piped(["decode", "-", "-", "-m", codec_folder, "--sample-format", "f32le"], driver) == 0
    audio, rate = read_audio(got[0])
    assert rate == 24_000
    np.testing.assert_allclose(audio.clip(-1, 1), read_audio(tmp_path / "x.wav")[0], atol=2 / 2**15)
