"""`mimi-hf roundtrip`, and the function behind it."""

import json
import os
import re
import signal
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.tiny import make_model
from typer.testing import CliRunner

from mimi_hf.cli import app
from mimi_hf.inference.round_trip import roundtrip
from mimi_hf.loading import ModelChoice


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "a recording, ä.wav"
    time = np.arange(44_100 // 2) / 44_100
    soundfile.write(path, np.stack([np.sin(440 * time), np.cos(300 * time)], axis=1) * 0.3, 44_100)
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_roundtrip_writes_and_reports(recording, checkpoint, tmp_path):
    output = tmp_path / "back.flac"
    result = run("roundtrip", recording, output, "--model", checkpoint, "--num-quantizers", 3)
    assert result.exit_code == 0, result.output
    audio, rate = soundfile.read(output)
    assert rate == 24_000
    assert audio.shape == (12_000,)  # mono like the model, as long as the recording
    bits = 3 * 6 * 24_000 / 24 / 1000
    for fact in (
        "0.50 s of audio",
        "500 of 3 codes, 1500 in all",
        f"{bits:.2f} kbps",
        "encode",
        "decode",
        "x real time",
    ):
        assert fact in result.output


def test_roundtrip_as_json(recording, checkpoint, tmp_path):
    output = tmp_path / "back.wav"
    result = run("roundtrip", recording, output, "--model", checkpoint, "-k", 3, "--json", "--quiet")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["output"], report["duration"]) == (str(output), 0.5)
    assert (report["frames"], report["num_quantizers"], report["bits_per_second"]) == (500, 3, 18_000)
    assert report["encode_seconds"] > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_roundtrip_that_is_stopped_leaves_nothing(recording, checkpoint, tmp_path, monkeypatch, number):
    def stopped(model, source, output, num_quantizers, progress):
        return roundtrip(model, source, output, num_quantizers, lambda part: os.kill(os.getpid(), number))

    monkeypatch.setattr("mimi_hf.inference.round_trip.roundtrip", stopped)
    before = list(tmp_path.iterdir())
    result = run("roundtrip", recording, tmp_path / "back.wav", "--model", checkpoint)
    assert result.exit_code == 128 + number
    assert list(tmp_path.iterdir()) == before


@pytest.mark.parametrize("chunk_frames", [240, 7])
def test_roundtrip_equals_the_model(recording, checkpoint, tmp_path, monkeypatch, chunk_frames):
    from mimi_hf import MimiFeatureExtractor

    monkeypatch.setattr("mimi_hf.inference.round_trip.CHUNK_FRAMES", chunk_frames)
    model = make_model()
    done = []
    report = roundtrip(model, recording, tmp_path / "back.wav", num_quantizers=4, progress=done.append)
    inputs = MimiFeatureExtractor()(recording, return_tensors="pt")
    with torch.no_grad():
        expected = model(**inputs, num_quantizers=4)
    audio, _ = soundfile.read(tmp_path / "back.wav", dtype="float32")
    np.testing.assert_allclose(audio, expected.audio_values[0, 0].clamp(-1, 1), atol=2 / 2**15)
    assert report.frames == expected.audio_codes.shape[2]
    assert done == sorted(done)
    assert done[-1] == 1
    assert len(audio) == 12_000


def test_a_roundtrip_never_holds_it_all(tmp_path):
    model, samples = make_model(), 240_001
    peaks = []
    for length in (24_000, samples):  # the first to import what it takes
        soundfile.write(tmp_path / "long.wav", np.sin(np.arange(length)) * 0.3, 24_000)
        tracemalloc.start()
        report = roundtrip(model, tmp_path / "long.wav", tmp_path / "back.wav", num_quantizers=2)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert soundfile.info(tmp_path / "back.wav").frames == samples
    assert report.frames == -(-samples // 24)
    assert peaks[1] < samples * 4 / 2  # bytes, of numpy and Python


def test_a_recording_of_which_nothing_is_left_is_explained(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(1), 192_000)
    with pytest.raises(ValueError, match="too short"):
        roundtrip(make_model(), tmp_path / "x.wav", tmp_path / "y.wav")
    assert not (tmp_path / "y.wav").exists()


def test_a_dtype_is_checked_where_models_are_named():
    assert ModelChoice("x", torch.bfloat16) == ModelChoice(Path("x"), "bfloat16")
    for dtype in ("foo", "int8", None):
        with pytest.raises(ValueError, match="must be float32, bfloat16 or float16"):
            ModelChoice("x", dtype)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["roundtrip", "{wav}", "{dir}/taken.wav", "-m", "{model}"], 1, "exists.*--force"),
        (["roundtrip", "{dir}/absent.wav", "{dir}/out.wav", "-m", "{model}"], 1, "absent.wav is no file"),
        (["roundtrip", "{wav}", "{dir}/out.mp3", "-m", "{model}"], 2, "must end in one of"),
        (["roundtrip", "{wav}", "{dir}/out.wav", "-m", "{model}", "-k", "7"], 1, "num_quantizers=7"),
        (["roundtrip", "{wav}", "{dir}/out.wav", "-m", "{model}", "--dtype", "int8"], 2, "must be float32"),
        (["roundtrip", "{wav}", "{dir}/out.wav", "-m", "{dir}/nowhere"], 1, "hf download|cannot be loaded"),
        (["roundtrip", "{wav}", "{dir}/out.wav", "-m", "{dir}"], 1, "cannot be loaded"),
        (["roundtrip", "{wav}", "{dir}/out.wav", "-m", "{other}"], 1, "type 'bert'"),
        (["roundtrip", "{wav}", "{dir}/none/out.wav", "-m", "{model}"], 1, "no folder"),
        (["roundtrip", "{wav}", "{dir}/out.wav", "-m", "kyutai/mimi"], 1, "hf download kyutai/mimi"),
        (["roundtrip", "{dir}/text.wav", "{dir}/out.wav", "-m", "{model}"], 1, "text.wav"),
        (["roundtrip", "{dir}/nan.wav", "{dir}/out.wav", "-m", "{model}"], 1, "NaN"),
        (["roundtrip", "{wav}"], 2, "Missing argument"),
        (["convert", "{dir}/absent.safetensors", "{dir}/folder"], 1, "absent.safetensors"),
    ],
)
def test_mistakes_are_explained_and_write_nothing(
    recording, checkpoint, tmp_path, tmp_path_factory, arguments, status, message
):
    (tmp_path / "taken.wav").write_bytes(b"precious")
    (tmp_path / "text.wav").write_text("no audio")
    soundfile.write(tmp_path / "nan.wav", np.full(100, np.nan), 24_000, subtype="FLOAT")
    before = sorted(tmp_path.iterdir())
    other = tmp_path_factory.mktemp("bert")
    (other / "config.json").write_text('{"model_type": "bert"}')
    places = {"wav": recording, "dir": tmp_path, "model": checkpoint, "other": other}
    result = run(*(argument.format(**places) for argument in arguments))
    assert result.exit_code == status, result.output
    assert re.search(message, re.sub(r"[\s│]+", " ", result.output)), result.output
    assert "Traceback" not in result.output
    assert result.output.count("Error:") <= 1
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "taken.wav").read_bytes() == b"precious"


def test_force_replaces_and_quiet_is_quiet(recording, checkpoint, tmp_path):
    output = tmp_path / "back.wav"
    output.write_bytes(b"old")
    result = run("roundtrip", recording, output, "--model", checkpoint, "--force", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert soundfile.info(output).frames == 12_000


def test_a_checkpoint_cut_short_is_explained(recording, tmp_path):
    make_model().save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    result = run("roundtrip", recording, tmp_path / "out.wav", "--model", tmp_path / "model")
    assert result.exit_code == 1
    assert "cannot be loaded" in result.output
