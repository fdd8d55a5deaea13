"""`mimi-hf evaluate`, end to end on tiny models."""

import csv
import dataclasses
import json
import signal
import subprocess
import time

import numpy as np
import pytest
import soundfile
from support.corpora import COMMAND, save_model
from typer.testing import CliRunner

from mimi_hf.cli import app
from mimi_hf.evaluation import metrics
from mimi_hf.evaluation.results import write_evaluation

RESULTS = {"files.csv", "quality.png", "report.json", "spectrogram.png"}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    random = np.random.default_rng(0)
    for name in ("a", "b"):
        soundfile.write(folder / f"{name}.wav", 0.1 * random.standard_normal(30_000), 24_000)
    return folder


def run(*arguments, model=None):
    options = ["--metrics", "si_sdr,mel_distance", "--jobs", "1"] if "--agree-with" not in arguments else []
    named = [] if model is None else ["--model", str(model)]
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments), *named, *options])


def test_tables_and_a_folder_of_results(model, recordings, tmp_path):
    pytest.importorskip("matplotlib")
    output = tmp_path / "results"
    result = run(recordings, output, "-k", "1,4", model=model)
    assert result.exit_code == 0, result.output
    for fact in ("2 recordings", "SI-SDR, dB ↑", "mel distance, dB ↓", "0.075", "0.3", "x real time", "perplexity"):
        assert fact in result.stdout
    assert {path.name for path in output.iterdir()} == RESULTS
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
    report = json.loads((output / "report.json").read_text())
    assert [level["num_quantizers"] for level in report["levels"]] == [1, 4]
    assert (report["model"], report["source"], report["duration"]) == (str(model), str(recordings), 2.5)
    with open(output / "files.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["num_quantizers"]) for row in rows] == [(f"{n}.wav", k) for n in "ab" for k in "14"]
    scores = report["files"][1]["scores"]["4"]
    assert float(rows[3]["si_sdr"]) == scores["si_sdr"]["value"]
    for name in ("quality.png", "spectrogram.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")


def test_results_are_replaced_by_force_alone(model, recordings, tmp_path):
    pytest.importorskip("matplotlib")
    output = tmp_path / "results"
    output.mkdir()
    (output / "report.json").write_text("old")
    arguments = (recordings, output, "-k", "1", "--seconds", "0.2")
    refused = run(*arguments, model=model)
    assert (refused.exit_code, (output / "report.json").read_text()) == (1, "old")
    assert f"{output} exists. Name another folder, or add --force" in refused.stderr
    assert run(*arguments, "--force", model=model).exit_code == 0
    assert {path.name for path in output.iterdir()} == RESULTS
    (output / "thesis.tex").touch()
    refused = run(*arguments, "--force", model=model)
    assert refused.exit_code == 1
    assert "holds other files, such as thesis.tex" in refused.stderr
    assert (output / "thesis.tex").exists()


def test_nothing_is_half_written(model, recordings, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from mimi_hf.evaluation import picture
    from mimi_hf.evaluation import results as output
    from mimi_hf.evaluation.evaluate import evaluate
    from mimi_hf.loading import ModelChoice

    def fail(*_):
        raise OSError("No space left on device")

    report = evaluate(ModelChoice(model).load("cpu"), recordings, (1,), ["si_sdr"], jobs=1)
    monkeypatch.setattr(output.picture, "save", fail)
    assert output.picture is picture
    with pytest.raises(OSError, match="No space left"):
        write_evaluation(tmp_path / "results", report)
    assert list(tmp_path.iterdir()) == []


def test_json_on_standard_output(model, recordings):
    result = run(recordings / "a.wav", "-k", "2", "--json", "--quiet", model=model)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [metric["name"] for metric in report["metrics"]] == ["si_sdr", "mel_distance"]
    assert report["files"][0]["id"] == "a.wav"
    assert len(report["codebooks"]) == 2
    assert result.stderr == ""


def test_files_that_fail_are_told(model, recordings, tmp_path):
    (tmp_path / "bad.wav").write_text("no audio")
    (tmp_path / "good.wav").write_bytes((recordings / "a.wav").read_bytes())
    result = run(tmp_path, "-k", "1", model=model)
    assert result.exit_code == 1
    assert "1 recording," in result.stdout  # the other one is evaluated
    assert "bad.wav: ValueError: " in result.stderr
    assert "1 of 2 recordings failed" in result.stderr


def test_agreement(model, recordings, tmp_path):
    output = tmp_path / "agreement"
    arguments = (recordings, output, "--agree-with", "eager", "--agree-with", "bfloat16", "-k", "1,3")
    result = run(*arguments, model=model)
    assert result.exit_code == 0, result.output
    for fact in ("eager", "bfloat16", "100.000 %", "100.00/100.00", "the same", " dB"):
        assert fact in result.stdout
    eager, half = json.loads((output / "agreement.json").read_text())["agreement"]
    assert (eager["equal"], eager["same_audio"], eager["second"]) == (1.0, True, "eager")
    assert half["equal"] < 1 and 10 < half["snr"] < 60
    assert len(half["codebooks"]) == 3


def test_variants_that_fail_take_no_others_along(model, recordings, tmp_path, monkeypatch):
    from mimi_hf.evaluation import variants

    def broken(choice, device):
        variant = variants.open_variant("eager", choice, device)
        decode, variant.name, calls = variant.decode, "half broken", []

        def decode_the_first(codes):
            calls.append(codes)
            return decode(codes) * (float("nan") if len(calls) > 1 else 1.0)

        variant.decode = decode_the_first
        return variant

    monkeypatch.setitem(variants.VARIANTS, "broken", broken)
    output = tmp_path / "agreement"
    others = ["--agree-with", "eager", "--agree-with", "broken", "--agree-with", "nothing-of-this-name"]
    result = run(recordings, output, *others, model=model)
    assert result.exit_code == 1
    assert "b.wav: ValueError: half broken decoded the codes to NaN" in result.stderr
    assert "nothing-of-this-name: " in result.stderr and "1 of 2 recordings failed" in result.stderr
    compared = json.loads((output / "agreement.json").read_text())["agreement"]
    assert [one["second"] for one in compared] == ["eager", "half broken"]


def test_shares_are_rounded_down():
    from mimi_hf.evaluation.tables import _percent

    assert [_percent(share, 2) for share in (1.0, 0.99999, 0.29, 0.0)] == ["100.00", "99.99", "29.00", "0.00"]


def test_a_missing_package_is_named_before_the_work(recordings, monkeypatch):
    missing = dataclasses.replace(metrics.METRICS["pesq"], modules=("no_such_module",))
    monkeypatch.setitem(metrics.METRICS, "pesq", missing)
    result = CliRunner().invoke(app, ["evaluate", str(recordings), "--model", "no-such-model", "--metrics", "pesq"])
    assert result.exit_code == 1
    assert "PESQ-WB needs no_such_module, which is not installed: pip install 'mimi_hf[eval]'" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-k", "1,two"], "must be numbers of codebooks"),
        (["-k", "0"], "must be numbers of codebooks"),
        (["--metrics", "loudness"], "no metric 'loudness'"),
        (["--metrics", "stoi", "--agree-with", "int8"], "Run the command twice"),
        (["--seconds", "0"], "must be positive"),
        (["--dtype", "float8"], "float8"),
    ],
)
def test_wrong_usage(recordings, options, message):
    result = CliRunner().invoke(app, ["evaluate", str(recordings), *options])
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_what_is_not_there(model, recordings, tmp_path):
    result = run(tmp_path / "nothing.wav", model=model)
    assert result.exit_code == 1
    assert "nothing.wav" in result.stderr
    result = run(recordings, tmp_path / "no folder" / "results", model=model)
    assert result.exit_code == 1
    assert "There is no folder" in result.stderr
    result = run(recordings, "-k", "7", model=model)
    assert result.exit_code == 1
    assert "num_quantizers=7" in result.stderr


def test_ctrl_c_leaves_nothing(model, tmp_path):
    pytest.importorskip("matplotlib")
    source, output = tmp_path / "long.wav", tmp_path / "results"
    soundfile.write(source, np.random.default_rng(0).uniform(-0.1, 0.1, 24_000 * 600), 24_000)
    options = ["--model", model, "--metrics", "mel_distance", "--jobs", "2", "--quiet"]
    process = subprocess.Popen([COMMAND, "evaluate", source, output, *options], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not _workers(process.pid):  # metrics are being measured
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        workers = _workers(process.pid)
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130, process.stderr.read()
    finally:
        process.kill()
    assert not output.exists()
    deadline = time.monotonic() + 10
    while any(_runs(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _workers(parent: int) -> list[int]:
    """The spawned processes below it."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split(None, 2) for line in listed.splitlines()]
    return [int(row[0]) for row in rows if int(row[1]) == parent and "spawn_main" in row[2]]


def _runs(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")
