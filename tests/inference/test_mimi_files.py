import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
import soundfile
import torch
from support.tiny import make_model
from typer.testing import CliRunner

from mimi_hf.audio import PCM, read_audio
from mimi_hf.bitstream import BitstreamError, BitstreamReader, Header, read_mimi, write_mimi
from mimi_hf.cli import app
from mimi_hf.cli import folders as batch
from mimi_hf.cli.folders import FileTask, mirror
from mimi_hf.inference import DecodeOptions, EncodeOptions, decode_file, encode_file

MIMI_HF = [sys.executable, "-c", "from mimi_hf.cli import main; main()"]
SIZES = {"upsampling_ratios": [8, 6, 5, 4], "sliding_window": 4, "num_hidden_layers": 1}
FRAME = 1920


@pytest.fixture(scope="module")
def codec():
    """A small model with the published frame of 80 ms."""
    return make_codec()


def make_codec():
    model = make_model(**SIZES)
    model.decoder.layers[-1].conv.weight.data *= 0.03  # so that nothing is clipped
    return model


@pytest.fixture(scope="module")
def folder(codec, tmp_path_factory):
    path = tmp_path_factory.mktemp("codec")
    codec.save_pretrained(path)
    return path


def make_sound(samples=50_000, channels=1, seed=0):
    """(C, N) float32."""
    noise = np.random.default_rng(seed).standard_normal((channels, samples)) * 0.1
    return (0.5 * np.sin(np.arange(samples) / 17) + noise).astype(np.float32)


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "a talk, ä.wav"
    soundfile.write(path, make_sound(60_000, 2).T, 44_100)
    return path


def pipe_of(data):
    """What cannot seek."""
    read_end, write_end = os.pipe()

    def feed():
        with suppress(BrokenPipeError), open(write_end, "wb") as file:
            file.write(data)

    threading.Thread(target=feed, daemon=True).start()
    return open(read_end, "rb")


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "waited for two minutes"
        time.sleep(0.01)


def encode_whole(model, sound, **options):
    """(C, K, F), each channel by itself."""
    with torch.no_grad():
        return model.encode(torch.from_numpy(sound)[:, None], **options).audio_codes.numpy()


def decode_whole(model, codes):
    """(C, N)."""
    with torch.no_grad():
        return model.decode(torch.from_numpy(codes.astype(np.int64))).audio_values[:, 0].numpy()


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
    encode_file(codec, soundfile_bytes(make_sound(150_001)), path)
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


def soundfile_bytes(sound, rate=24_000):
    file = io.BytesIO()
    soundfile.write(file, sound.T, rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def test_a_stream_of_unknown_length_is_trimmed_at_its_end(codec, tmp_path):
    sound = make_sound(25_000)
    encode_file(codec, pipe_of(soundfile_bytes(sound)), tmp_path / "x.mimi")
    with open(tmp_path / "x.mimi", "rb") as file:
        assert BitstreamReader(file).header.num_samples is None
    for source in (tmp_path / "x.mimi", pipe_of((tmp_path / "x.mimi").read_bytes())):
        decode_file(codec, source, tmp_path / "back.wav")
        assert read_audio(tmp_path / "back.wav")[0].shape == (1, 25_000)


def test_fewer_codebooks_are_decoded(codec, tmp_path):
    encode_file(codec, soundfile_bytes(make_sound()), tmp_path / "x.mimi", EncodeOptions(5))
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
    encode_file(codec, soundfile_bytes(make_sound(9000)), path)
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
    source = source if isinstance(source, str) else soundfile_bytes(source)
    with pytest.raises(error, match=message):
        encode_file(codec, source, tmp_path / "x.mimi", EncodeOptions(**options))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(IsADirectoryError):
        encode_file(codec, soundfile_bytes(make_sound(9000)), tmp_path)
    assert tmp_path.is_dir()


# Pipes


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


def as_pcm(sound):
    return np.rint(sound.T * 32767).astype("<i2").tobytes()


def test_each_frame_goes_through_both_pipes_before_the_next_one_comes(codec, folder):
    """The bytes of a frame are waited for before more is sent: a pipe that held anything back would be found out."""
    sound = make_sound(10 * FRAME + 700)
    frames = [as_pcm(sound[:, start : start + FRAME]) for start in range(0, sound.shape[1], FRAME)]
    coded, audio = b"", b""
    with (
        Process("encode", "--raw", "-", "-", "-m", folder, "-k", "4", "-q") as encoder,
        Process("decode", "--raw", "-", "-", "-m", folder) as decoder,
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
    heard = np.frombuffer(as_pcm(sound), "<i2").astype(np.float32)[None] / 32768
    np.testing.assert_array_equal(codes, encode_whole(codec, heard, num_quantizers=4))
    expected = as_pcm(decode_whole(codec, codes).clip(-1, 1))
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
def test_a_recording_that_is_stopped_is_kept(piped, folder, tmp_path, number):
    sound = make_sound(3 * FRAME + 100)

    def driver(feed, _drain):
        feed.write(as_pcm(sound))
        feed.flush()
        wait_for(lambda: list(tmp_path.glob(".talk*")))
        time.sleep(0.3)  # it waits for more now
        os.kill(os.getpid(), number)

    assert piped(["encode", "--raw", "-", tmp_path / "talk.mimi", "-m", folder], driver) == 128 + number
    header, codes = read_mimi(tmp_path / "talk.mimi")
    read_end = BitstreamReader(open(tmp_path / "talk.mimi", "rb"))  # noqa: SIM115
    assert (read_end.scan().complete, header.num_samples, codes.shape[2]) == (True, sound.shape[1], 4)
    assert [path.name for path in tmp_path.iterdir()] == ["talk.mimi"]


def test_a_closed_pipe_ends_quietly(piped, folder, capfd):
    def driver(feed, drain):
        feed.write(as_pcm(make_sound(FRAME)))
        feed.flush()
        drain.read(10)
        drain.close()
        feed.write(as_pcm(make_sound(2 * FRAME)))
        feed.flush()

    assert piped(["encode", "--raw", "-", "-", "-m", folder], driver) == 128 + signal.SIGPIPE
    assert capfd.readouterr().err == ""


def test_a_wav_pipe_is_the_file(piped, recording, folder, tmp_path):
    run("encode", recording, tmp_path / "x.mimi", "-m", folder)
    run("decode", tmp_path / "x.mimi", tmp_path / "x.wav", "-m", folder)
    got = []

    def driver(feed, drain):
        feed.write((tmp_path / "x.mimi").read_bytes())
        feed.close()
        got.append(drain.read(44 + 4 * round(60_000 / 44_100 * 24_000)))

    assert piped(["decode", "-", "-", "-m", folder, "--sample-format", "f32le"], driver) == 0
    audio, rate = read_audio(got[0])
    assert rate == 24_000
    np.testing.assert_allclose(audio.clip(-1, 1), read_audio(tmp_path / "x.wav")[0], atol=2 / 2**15)


# Commands


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_folder_is_mirrored_and_a_rerun_goes_on(codec, folder, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    for name in ("a.wav", "b/c d.flac", "b/ü/e.ogg", "b/same.wav", "b/same.mp3", ".hidden.wav", "b/notes.txt"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(source / name, make_sound(9000)[0], 24_000, format={"txt": "WAV"}.get(name[-3:]))
    (source / "b" / "broken.wav").write_text("no audio")
    (source / "empty.wav").touch()
    result = run("encode", source, output, "-m", folder, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert {os.path.relpath(file["output"], output) for file in report["files"]} == {
        "a.wav.mimi",
        "b/c d.flac.mimi",
        "b/ü/e.ogg.mimi",
        "b/same.wav.mimi",
        "b/same.mp3.mimi",
    }
    assert {os.path.basename(failure["source"]) for failure in report["failed"]} == {"broken.wav", "empty.wav"}
    assert "broken.wav: " in result.stderr
    files = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file()}
    assert len(files) == 5

    (output / "a.wav.mimi").unlink()
    (source / "empty.wav").unlink()
    (source / "b" / "broken.wav").unlink()
    result = run("encode", source, output, "-m", folder)
    assert result.exit_code == 0, result.output
    assert "1 done" in result.output
    assert "4 were there already, 0 failed" in result.output
    same = {path: path.stat().st_mtime_ns for path in files if path.name != "a.wav.mimi"}
    assert same == {path: time for path, time in files.items() if path.name != "a.wav.mimi"}
    assert "0 done" in run("encode", source, output, "-m", folder).output

    assert run("decode", output, tmp_path / "back", "-m", folder, "--format", "flac").exit_code == 0
    assert soundfile.info(tmp_path / "back" / "b" / "same.mp3.flac").frames == 9000
    assert (tmp_path / "back" / "b" / "c d.flac").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_folder_that_is_stopped_leaves_whole_files(folder, tmp_path, number):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    for i in range(40):
        soundfile.write(source / f"{i:02}.wav", make_sound(24_000 * 12)[0], 24_000)
    (source / "00.wav").write_text("no audio")
    arguments = ["encode", source, output, "-m", folder, "--jobs", "2"]
    process = subprocess.Popen([*MIMI_HF, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for(lambda: len(list(output.glob("*.mimi"))) >= 2 or process.poll() is not None)
    process.send_signal(number)
    messages = process.stderr.read().decode()  # ends when the last worker does
    assert process.wait() == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in messages
    done = list(output.glob("*.mimi"))
    assert 2 <= len(done) < 39
    assert len(done) == len(list(output.iterdir()))
    result = run(*arguments[:-2])
    assert result.exit_code == 1
    assert f"{39 - len(done)} done" in result.output
    assert f"{len(done)} were there already, 1 failed" in result.output
    codes = [read_mimi(path)[1] for path in sorted(output.glob("*.mimi"))]
    assert len(codes) == 39
    assert all((other == codes[0]).all() for other in codes)  # of all processes


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["encode", "{wav}", "{dir}/taken.mimi", "-m", "{model}"], 1, "exists.*--force"),
        (["encode", "{dir}/absent.wav", "{dir}/x.mimi", "-m", "{model}"], 1, "absent.wav does not exist"),
        (["encode", "{wav}", "{dir}/none/x.mimi", "-m", "{model}"], 1, "no folder"),
        (["encode", "{wav}", "{dir}/x.mimi", "-m", "{model}", "--rate", "8000"], 2, "add --raw"),
        (["encode", "{wav}", "{dir}/x.mimi", "-m", "{model}", "--raw", "--sample-format", "S24_LE"], 2, "none of"),
        (["encode", "{wav}", "{dir}/x.mimi", "-m", "{model}", "--metadata", "x"], 2, "KEY=VALUE"),
        (["encode", "{wav}", "{dir}/x.mimi", "-m", "{dir}/nowhere"], 1, "hf download|cannot be loaded"),
        (["encode", "{dir}", "{wav}", "-m", "{model}"], 1, "is a file, but"),
        (["encode", "{wav}", "{dir}/new/", "-m", "{model}"], 1, "no folder .*new/"),
        (["encode", "x" * 300, "{dir}/x.mimi", "-m", "{model}"], 1, "too long"),
        (["encode", "{wav}", "{dir}/" + "x" * 300, "-m", "{model}"], 1, "too long"),
        (["encode", "{dir}", "{dir}/y", "-m", "{model}", "--raw"], 2, "IN is a folder"),
        (["decode", "{dir}", "{dir}/y", "-m", "{model}", "--format", "mp3"], 2, "must be wav, flac or ogg"),
        (["decode", "{wav}", "{dir}/x.wav", "-m", "{model}"], 1, "no .mimi file"),
        (["decode", "{wav}", "{dir}/x.mp3", "-m", "{model}"], 2, "must end in one of"),
        (["decode", "{wav}", "{dir}/x.wav", "-m", "{model}", "--raw"], 2, "OUT must be -"),
        (["decode", "{wav}", "{dir}/x.wav", "-m", "{model}", "--duration", "0"], 2, "more than 0"),
        (["info", "{wav}"], 1, "no .mimi file"),
        (["info", "{dir}/absent.mimi"], 1, "is no file"),
    ],
)
def test_mistakes_are_explained_and_write_nothing(recording, folder, tmp_path, arguments, status, message):
    (tmp_path / "taken.mimi").write_bytes(b"precious")
    before = sorted(tmp_path.rglob("*"))
    result = run(*(argument.format(wav=recording, dir=tmp_path, model=folder) for argument in arguments))
    assert result.exit_code == status, result.output
    text = " ".join(result.output.replace("│", " ").split())
    assert re.search(message, text), result.output
    assert "Traceback" not in result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_one_file_through_the_commands(recording, folder, tmp_path):
    arguments = ["-m", folder, "--metadata", "who=me", "--metadata", "a=b=c"]
    result = run("encode", recording, tmp_path, *arguments)  # into a folder, under its own name
    assert result.exit_code == 0, result.output
    assert "kbps" in result.output
    path = recording.with_name(recording.name + ".mimi")
    assert read_mimi(path)[0].metadata["a"] == "b=c"
    facts = json.loads(run("info", path, "--json", "--check").stdout)
    assert (facts["num_quantizers"], facts["complete"], facts["metadata"]["who"]) == (6, True, "me")
    assert facts["duration"] == pytest.approx(60_000 / 44_100, abs=1e-4)
    assert "num quantizers" in run("info", path).output
    result = run("decode", path, tmp_path / "back.ogg", "-m", folder, "-q")
    assert (result.exit_code, result.output) == (0, "")
    result = run("encode", recording, path, "-m", folder, "--force", "--json")
    assert json.loads(result.stdout)["files"][0]["output"] == str(path)


def test_names_of_any_bytes(recording, folder, tmp_path):
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    name = os.fsdecode(b"caf\xe9.wav")
    try:
        (source / name).write_bytes(recording.read_bytes())
    except OSError:
        pytest.skip("this file system wants UTF-8")
    assert run("encode", source / name, source / "one.mimi", "-m", folder, "-q").exit_code == 0
    assert BitstreamReader(io.BytesIO((source / "one.mimi").read_bytes())).header.metadata["source"] == "caf\\xe9.wav"
    (source / "one.mimi").unlink()
    assert run("encode", source, output, "-m", folder).exit_code == 0
    assert run("decode", output, tmp_path / "back", "-m", folder).exit_code == 0
    assert [path.name for path in (tmp_path / "back").iterdir()] == [name]
    assert run("roundtrip", source / name, tmp_path / name, "-m", folder, "-q").exit_code == 0


def test_links_are_followed_and_circles_left(tmp_path):
    source = tmp_path / "in"
    (tmp_path / "elsewhere").mkdir()
    source.mkdir()
    (tmp_path / "elsewhere" / "a.wav").touch()
    (source / "linked").symlink_to(tmp_path / "elsewhere")
    (source / "circle").symlink_to(source)
    assert mirror(source, tmp_path / "out", {".wav"}, ".mimi") == [
        (source / "linked" / "a.wav", tmp_path / "out" / "linked" / "a.wav.mimi")
    ]


def test_metadata_is_shown_as_it_is(folder, recording, tmp_path):
    path = tmp_path / "a.mimi"
    assert run("encode", recording, path, "-m", folder, "-q", "--metadata", "[/a]=[red]").exit_code == 0
    result = run("info", path)
    assert result.exit_code == 0 and "[/a]" in result.output and "[red]" in result.output


def names_in(folder, names, extensions, extension):
    """What each becomes, in a folder of these."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    pairs = mirror(folder, folder / "out", extensions, extension)
    return {str(path.relative_to(folder)): str(output.relative_to(folder / "out")) for path, output in pairs}


def test_names_do_not_clash_and_come_back(tmp_path):
    names = ["a.mp3", "a.wav", "a.wav.flac", "a.wav.wav", "b.c.wav", "d/a.wav"]
    coded = names_in(tmp_path / "in", [*names, ".x.wav", "notes.txt"], batch.AUDIO, ".mimi")
    assert coded == {name: f"{name}.mimi" for name in names}
    for name in names:  # whatever lies beside it
        assert names_in(tmp_path / "alone" / name, [name], batch.AUDIO, ".mimi") == {name: coded[name]}
    back = names_in(tmp_path / "coded", coded.values(), {".mimi"}, ".wav")
    assert list(back.values()) == ["a.mp3.wav", "a.wav.flac.wav", "a.wav", "a.wav.wav", "b.c.wav", "d/a.wav"]
    (tmp_path / "coded" / "a.mimi").touch()
    with pytest.raises(ValueError, match=r"a\.mimi and .*a\.wav\.mimi would both become .*out/a\.wav\. Rename"):
        mirror(tmp_path / "coded", tmp_path / "out", {".mimi"}, ".wav")


def copy_or_die(_model, source, output, _options, digest):
    """In the place of `encode_file`: some recordings take all the memory there is."""
    if "bad" in source.name:
        os.kill(os.getpid(), signal.SIGKILL)
    output.write_bytes(source.read_bytes())
    return digest


def run_copies(folder, tmp_path, names):
    """{name: reason} of the recordings that failed; the others were copied."""
    pairs = [(tmp_path / name, tmp_path / "out" / name) for name in names]
    for source, _ in pairs:
        source.write_text(source.name)
    task = FileTask(copy_or_die, None, str(folder), "cpu", "float32", "digest")
    outcomes = list(batch.run(task, None, pairs, 2))
    assert sorted(source for source, _, _ in outcomes) == sorted(source for source, _ in pairs)  # each of them once
    for source, report, reason in outcomes:
        assert report == ("digest" if reason is None else None)
        assert reason is not None or (tmp_path / "out" / source.name).read_text() == source.name
    return {source.name: reason for source, _, reason in outcomes if reason is not None}


def test_a_process_that_dies_takes_no_other_file_along(folder, tmp_path):
    failed = run_copies(folder, tmp_path, ["a bad", "b", "c"])
    assert list(failed) == ["a bad"]
    assert "nothing else ran beside it" in failed["a bad"]


def test_processes_that_always_die_end_it(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "_MAX_DEATHS", 1)
    failed = run_copies(folder, tmp_path, [f"{i} bad" for i in range(5)])
    assert len(failed) == 5
    assert all("fewer --jobs" in reason for reason in failed.values())


def test_raw_audio_of_any_kind(codec):
    sound = make_sound(9000, 2)
    files = [io.BytesIO(), io.BytesIO()]
    raw = sound.T.astype("<f4").tobytes()
    encode_file(codec, pipe_of(raw), files[0], EncodeOptions(stereo=True, pcm=PCM(24_000, 2, "f32le")))
    encode_file(codec, soundfile_bytes(sound), files[1], EncodeOptions(stereo=True))
    codes = [BitstreamReader(io.BytesIO(file.getvalue())).read() for file in files]
    np.testing.assert_array_equal(*codes)
    assert codes[0].shape == (2, 6, 5)
