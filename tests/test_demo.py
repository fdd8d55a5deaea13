"""`mimi-tiny`, the model that comes with the package, and `mimi-hf demo`."""

import json
import struct
import zlib

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from mimi_hf import MimiFeatureExtractor, mimi_tiny_path
from mimi_hf.audio_io import read_audio
from mimi_hf.cli import app
from mimi_hf.demo import FILES, speech_path
from mimi_hf.loading import ModelChoice
from mimi_hf.png import encode_png, heat_colors, wheel_colors


@pytest.fixture(scope="module")
def tiny():
    return ModelChoice("mimi-tiny").load("cpu")


@pytest.fixture(scope="module")
def speech(tiny):
    """The recording that comes along: Tensor, shape = (1, 1, N)."""
    return torch.from_numpy(read_audio(speech_path(), 24_000, 1)[0])[None]


def test_it_is_small_and_has_mimis_architecture(tiny):
    assert sum(path.stat().st_size for path in mimi_tiny_path().iterdir()) <= 6_000_000
    assert (tiny.config.sampling_rate, tiny.config.frame_rate, tiny.config.frame_size) == (24_000, 12.5, 1920)
    assert tiny.dtype == torch.float32
    assert MimiFeatureExtractor.from_pretrained(mimi_tiny_path()).sampling_rate == 24_000


def test_transformers_own_mimi_gives_the_same_codes(tiny, speech):
    from transformers import MimiModel as NativeMimiModel

    native = NativeMimiModel.from_pretrained(mimi_tiny_path(), dtype=torch.float32).eval()
    whole = speech[..., : speech.shape[2] // 1920 * 1920]
    with torch.no_grad():
        ours, theirs = tiny(whole), native(whole)
    assert (ours.audio_codes == theirs.audio_codes).float().mean() >= 0.9999
    codes = ours.audio_codes
    with torch.no_grad():
        torch.testing.assert_close(
            tiny.decode(codes).audio_values, native.decode(codes).audio_values, atol=1e-5, rtol=1e-3
        )


def test_streams_give_the_codes_and_the_audio_of_the_whole(tiny, speech):
    whole = tiny.encode(speech).audio_codes
    encoder, decoder = tiny.encoder_stream(), tiny.decoder_stream()
    chunks = [encoder.push(chunk) for chunk in speech.split(1000, dim=2)]
    codes = torch.cat([*chunks, encoder.flush().audio_codes], dim=2)
    assert (codes == whole).float().mean() >= 0.9999
    with torch.no_grad():
        audio = torch.cat([decoder.push(frame) for frame in whole.split(1, dim=2)], dim=2)
        torch.testing.assert_close(audio, tiny.decode(whole).audio_values, atol=1e-5, rtol=1e-3)


def test_more_codebooks_are_closer_to_the_speech(tiny, speech):
    from mimi_hf.training.losses import mel_loss

    codes = tiny.encode(speech).audio_codes
    with torch.no_grad():
        distances = [
            float(mel_loss(speech, tiny.decode(codes[:, :count]).audio_values[..., : speech.shape[2]], 24_000))
            for count in (1, 4, 8)
        ]
        noise = float(mel_loss(speech, speech.std() * torch.randn_like(speech), 24_000))
    assert distances == sorted(distances, reverse=True) and distances[2] < 0.5 * noise


def test_bfloat16_changes_few_codes(speech, tiny):
    half = ModelChoice("mimi-tiny", "bfloat16").load("cpu")
    agreement = half.encode(speech.bfloat16()).audio_codes == tiny.encode(speech).audio_codes
    assert agreement[:, 0].float().mean() > 0.85


def test_the_name_works_wherever_a_model_is_named(speech, tiny):
    from mimi_hf import AudioTokenizer

    codes = AudioTokenizer("mimi-tiny", num_quantizers=4)
    row = codes({"audio": [{"array": speech[0, 0].numpy(), "sampling_rate": 24_000}]})
    assert np.array_equal(np.array(row["audio_codes"][0]), tiny.encode(speech, num_quantizers=4).audio_codes[0].numpy())


def run(*arguments):
    return CliRunner().invoke(app, ["demo", *map(str, arguments)])


def test_the_demo_writes_all_that_it_says(tmp_path):
    output = tmp_path / "demo"
    result = run("--out", output)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in output.iterdir()) == sorted(FILES)
    assert "not Mimi" in result.output or "far from Mimi's quality" in result.output.replace("\n", " ")
    assert result.output.count("kbps") >= 1 and "mel distance" in result.output
    original, decoded = (soundfile.read(output / name)[0] for name in ("original.wav", "decoded.wav"))
    assert len(original) == len(decoded) and np.abs(decoded).max() > 0.05
    again = run("--out", output)
    assert again.exit_code == 1 and "--force" in again.output
    assert run("--out", output, "--force", "--quiet").output == ""


def test_the_demo_takes_any_recording_and_reports_as_json(tmp_path):
    source = tmp_path / "täst file.wav"
    soundfile.write(source, 0.1 * np.random.default_rng(0).standard_normal((44_100, 2)), 44_100)
    result = run(source, "--out", tmp_path / "demo", "--json", "-k", 4)
    report = json.loads(result.output)
    assert np.array(report["codes"]).shape == (4, 13) and report["duration"] == pytest.approx(1.0)
    assert report["num_bytes"] == (tmp_path / "demo" / "speech.mimi").stat().st_size


def test_the_demo_refuses_what_is_no_recording_and_leaves_nothing(tmp_path):
    wrong = tmp_path / "text.wav"
    wrong.write_text("no audio")
    result = run(wrong, "--out", tmp_path / "demo")
    assert result.exit_code == 1 and "text.wav" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["text.wav"]
    assert run(tmp_path / "none.wav").exit_code == 1


def test_a_png_holds_the_pixels():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    data = encode_png(pixels)
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (7, 5)
    start = data.index(b"IDAT")
    size = struct.unpack(">I", data[start - 4 : start])[0]
    rows = np.frombuffer(zlib.decompress(data[start + 4 : start + 4 + size]), np.uint8).reshape(5, 22)
    assert np.array_equal(rows[:, 1:].reshape(5, 7, 3), pixels)
    assert (
        zlib.crc32(data[start : start + 4 + size]) == struct.unpack(">I", data[start + 4 + size : start + 8 + size])[0]
    )


def test_colours_grow_brighter_and_the_wheel_closes():
    brightness = heat_colors(np.linspace(0, 1, 50)).astype(int).sum(axis=1)
    assert (np.diff(brightness) >= 0).all()
    assert np.array_equal(wheel_colors(np.array(0.0)), wheel_colors(np.array(1.0)))
