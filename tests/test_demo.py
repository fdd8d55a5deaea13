"""`mimi-tiny`, the model that comes with the package, and `mimi-hf demo`."""

import json
import os
import runpy
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from support.tiny import make_audio, make_model
from typer.testing import CliRunner

from mimi_hf import MimiFeatureExtractor, MimiInt8Config, MimiModel, mimi_tiny_path
from mimi_hf.audio import read_audio
from mimi_hf.cli import app
from mimi_hf.demo import FILES, draw_tokens, run_demo, speech_path
from mimi_hf.loading import ModelChoice
from mimi_hf.utils.png import encode_png, heat_colors, wheel_colors

pack = runpy.run_path(str(Path(__file__).parent.parent / "recipes" / "mimi_tiny" / "pack.py"))["pack"]


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
    from mimi_hf.codec.losses import mel_loss

    codes = tiny.encode(speech).audio_codes
    with torch.no_grad():
        distances = [
            float(mel_loss(speech, tiny.decode(codes[:, :count]).audio_values[..., : speech.shape[2]], 24_000))
            for count in (1, 4, 8)
        ]
        noise = float(mel_loss(speech, speech.std() * torch.randn_like(speech), 24_000))
    assert distances == sorted(distances, reverse=True) and distances[2] < 0.5 * noise


def test_it_loads_in_single_precision_unless_told_otherwise(tiny, speech):
    stored = load_file(mimi_tiny_path() / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    plain = MimiModel.from_pretrained(mimi_tiny_path())
    assert plain.dtype == torch.float32
    assert torch.equal(plain.encode(speech).audio_codes, tiny.encode(speech).audio_codes)
    half = MimiModel.from_pretrained(mimi_tiny_path(), dtype=torch.float16)
    sums = {buffer.dtype for name, buffer in half.named_buffers() if name.endswith("embed_sum")}
    assert half.dtype == torch.float16 and sums == {torch.float32}


def test_its_codebooks_are_ready_for_use_and_what_is_said_of_its_size_holds(tiny):
    usage = [buffer for name, buffer in tiny.named_buffers() if name.endswith("cluster_usage")]
    assert len(usage) == 8 and all((one == 1).all() for one in usage)
    said = f"{sum(one.numel() for one in tiny.parameters()) / 1e6:.1f} million parameters"
    assert said in (mimi_tiny_path() / "README.md").read_text()
    assert said in " ".join(CliRunner().invoke(app, ["demo", "--help"]).output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("options", "least_agreement", "least_snr"),
    [
        ({"dtype": torch.float16}, 0.9, 35),
        ({"dtype": torch.bfloat16}, 0.7, 15),
        ({"dtype": torch.float32, "quantization_config": MimiInt8Config(min_size=2**12)}, 0.7, 15),
    ],
)
def test_other_precisions_keep_most_codes_and_the_audio_of_the_same_codes(
    tiny, speech, options, least_agreement, least_snr
):
    other = MimiModel.from_pretrained(mimi_tiny_path(), **options)
    codes = tiny.encode(speech).audio_codes
    assert (other.encode(speech.to(other.dtype)).audio_codes == codes)[:, 0].float().mean() > least_agreement
    with torch.no_grad():
        audio, found = tiny.decode(codes).audio_values, other.decode(codes).audio_values.float()
    assert 10 * torch.log10(audio.square().sum() / (found - audio).square().sum()) > least_snr


def test_the_name_works_wherever_a_model_is_named(speech, tiny):
    from mimi_hf import AudioTokenizer

    codes = AudioTokenizer("mimi-tiny", num_quantizers=4)
    row = codes({"audio": [{"array": speech[0, 0].numpy(), "sampling_rate": 24_000}]})
    assert np.array_equal(np.array(row["audio_codes"][0]), tiny.encode(speech, num_quantizers=4).audio_codes[0].numpy())


def test_the_name_can_be_converted(tmp_path):
    original = tmp_path / "original.safetensors"
    result = CliRunner().invoke(app, ["convert", "mimi-tiny", str(original)])
    assert result.exit_code == 0, result.output
    assert load_file(original)["decoder.model.0.conv.conv.weight"].shape == (256, 128, 7)


def test_the_name_means_the_packaged_model_and_a_path_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_model().save_pretrained("mimi-tiny")
    assert ModelChoice("mimi-tiny").resolve()[0].codebook_size == 1024
    assert ModelChoice("./mimi-tiny").resolve()[0].codebook_size == 64


def test_packing_keeps_the_codes_and_the_card(tmp_path):
    model, output = make_model(), tmp_path / "packed"
    model.save_pretrained(tmp_path / "trained")
    output.mkdir()
    (output / "README.md").write_text("card")
    pack(tmp_path / "trained", output)
    packed = ModelChoice(output).load("cpu")
    audio = make_audio(24 * 100)
    codes = model.encode(audio).audio_codes
    assert (packed.encode(audio).audio_codes == codes)[:, 0].float().mean() > 0.95
    with torch.no_grad():
        before, after = (one.decode(codes).audio_values for one in (model, packed))
    assert (before - after).square().sum() < 1e-4 * before.square().sum()
    assert (output / "README.md").read_text() == "card"
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in output.iterdir() if path.suffix == ".safetensors")


def test_packing_refuses_what_half_precision_does_not_hold_and_changes_nothing(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path / "packed")
    before = (tmp_path / "packed" / "model.safetensors").read_bytes()
    codebook = model.quantizer.semantic_residual_vector_quantizer.layers[0].codebook
    codebook.cluster_usage[3] = 0  # an entry without a vector: its sum over almost nothing
    codebook.embed_sum[3] = 5.0
    model.save_pretrained(tmp_path / "trained")
    with pytest.raises(ValueError, match="half precision"):
        pack(tmp_path / "trained", tmp_path / "packed")
    assert (tmp_path / "packed" / "model.safetensors").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "trained"]


def run(*arguments):
    return CliRunner().invoke(app, ["demo", *map(str, arguments)])


def test_the_demo_writes_all_that_it_says(tmp_path):
    output = tmp_path / "demo"
    result = run("--out", output)
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in output.iterdir()) == sorted(FILES)
    assert "far from Mimi's quality" in " ".join(result.output.split())
    assert "1.00 kbps" in result.output and "mel distance" in result.output
    original, decoded = (soundfile.read(output / name)[0] for name in ("original.wav", "decoded.wav"))
    assert len(original) == len(decoded) and np.abs(decoded).max() > 0.05
    again = run("--out", output)
    assert again.exit_code == 1 and "--force" in again.output
    assert run("--out", output, "--force", "--quiet").output == ""


def test_the_demo_never_replaces_what_others_put_there(tmp_path, tiny, monkeypatch):
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    result = run("--out", folder, "--force")
    assert result.exit_code == 1 and "thesis.txt" in result.output
    with pytest.raises(FileExistsError, match="thesis"):
        run_demo(tiny, speech_path(), folder, force=True)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert run("--out", ".", "--force").exit_code == 1
    monkeypatch.chdir(tmp_path)
    assert run("--out", tmp_path / "empty", "--quiet").exit_code == 0
    missing = run("--out", tmp_path / "none" / "demo")
    assert missing.exit_code == 1 and "Create it first" in missing.output


_BARE = """
import socket, sys
sys.modules.update(dict.fromkeys(["matplotlib", "pystoi", "pesq", "librosa", "tensorboard", "peft"]))  # not installed
def refuse(*arguments, **options): raise OSError("a network is used")
socket.socket.connect = socket.getaddrinfo = refuse
from mimi_hf.cli import main
sys.argv = ["mimi-hf", "demo", "--out", sys.argv[1]]
main()
"""


def test_the_demo_needs_neither_a_network_nor_packages_beside(tmp_path):
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}  # an empty cache
    command = [sys.executable, "-c", _BARE, str(tmp_path / "demo")]
    process = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
    assert "mimi_hf[eval]" in process.stdout and "mel distance" in process.stdout
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == sorted(FILES)


def test_the_demo_prints_to_any_terminal_and_names_any_folder(tmp_path):
    output = tmp_path / "my [bold]demo"
    result = CliRunner(charset="latin-1").invoke(app, ["demo", "--out", str(output)])
    assert result.exit_code == 0, result.output
    assert f"{output}: original.wav" in result.output
    assert f"mimi-hf info '{output}/speech.mimi'" in result.output


def test_long_recordings_are_kept_whole_and_pictured_in_part(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr("mimi_hf.demo.LONGEST", 2.0)
    source = tmp_path / "long.wav"
    soundfile.write(source, 0.1 * np.random.default_rng(0).standard_normal(8_000 * 3), 8_000)
    report = run_demo(tiny, source, tmp_path / "demo", num_quantizers=1)
    assert report.codes.shape == (1, 38) and report.duration == 3
    assert soundfile.info(tmp_path / "demo" / "original.wav").frames == 24_000 * 3
    assert soundfile.info(tmp_path / "demo" / "decoded.wav").frames == 24_000 * 3
    pictured = draw_tokens(report.codes[:, :25], 1024)
    assert (tmp_path / "demo" / "tokens.png").read_bytes() == encode_png(pictured)


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
