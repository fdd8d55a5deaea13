"""Benchmarks: the helpers that they share, `mimi-hf benchmark`, and the report of benchmarks/compare_peers.py."""

import importlib
import json
import math
import re
from pathlib import Path

import pytest
import torch
from support.tiny import FRAME, TINY, make_audio, make_model
from typer.testing import CliRunner

import mimi_hf.benchmark
from mimi_hf import MimiModel
from mimi_hf.benchmark import Roofline, Work, benchmark, count_work, measure_roofline, ratios, shares, take_turns
from mimi_hf.cli import app

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
ROOFLINE = Roofline({"float32": 100.0, "bfloat16": 200.0}, 20.0)


# Times


def test_calls_take_turns_after_the_warm_up():
    order = []
    times = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, repeats=3, warmup=2)
    assert order == ["a", "b"] * 5
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}
    assert all(second >= 0 for seconds in times.values() for second in seconds)


def test_ratios_are_of_one_turn():
    # The machine slows down tenfold: medians apart would be 2.0 and 10.0, a ratio of 5.
    times = {"ours": [1.0, 10.0, 10.0], "theirs": [2.0, 2.0, 20.0], "others": [1.0, 10.0, 10.0]}
    assert ratios(times, "ours") == {"theirs": 2.0, "others": 1.0}


# The work


def test_work_equals_a_count_by_hand():
    model = make_model()
    encode, decode = count_work(model, "encode"), count_work(model, "decode")
    residual = {4: 4 * 2 * 3 + 2 * 4, 8: 8 * 4 * 3 + 4 * 8, 16: 16 * 8 * 3 + 8 * 16}
    first, last = 24 * 1 * 4 * 7, 2 * 32 * 32 * 3
    down = 24 * residual[4] + 12 * 4 * 8 * 4 + 12 * residual[8] + 6 * 8 * 16 * 4 + 6 * residual[16] + 2 * 16 * 32 * 6
    layer = 4 * 32 * 32 + 2 * 32 * 48 + 2 * 10 * 32  # projections, MLP, scores and sums over the window
    assert encode.operations == {
        "seanet": 2 * (first + down + last),
        "transformer": 2 * 2 * 2 * layer,
        "resampling": 2 * 32 * 32 * 4,
        "quantizer": 2 * (2 * 32 * 16 + 6 * 64 * 16),
    }
    first, last = 2 * 32 * 32 * 7, 24 * 4 * 1 * 3
    up = 2 * 32 * 16 * 6 + 6 * residual[16] + 6 * 16 * 8 * 4 + 12 * residual[8] + 12 * 8 * 4 * 4 + 24 * residual[4]
    assert decode.operations == {
        "seanet": 2 * (first + up + last),
        "transformer": 2 * 2 * 2 * layer,
        "resampling": 2 * 32 * 4,  # in groups of one channel
        "quantizer": 2 * 2 * 32 * 16,
    }
    modules = [model.encoder, model.encoder_transformer, model.downsample]
    projections = [residual.input_proj for residual in model.quantizer.children()]
    weights = sum(weight.numel() for module in modules + projections for weight in module.parameters())
    assert encode.weight_bytes == 4 * (weights + 6 * 64 * 16)
    assert encode.state_bytes == decode.state_bytes == 4 * 2 * 2 * 9 * 32
    assert encode.live(3) == {
        "operations": 3 * sum(encode.operations.values()),
        "bytes": encode.weight_bytes + 3 * encode.state_bytes,
    }


def test_fewer_codebooks_and_a_shorter_dtype_are_less_work():
    model = make_model()
    whole, semantic = count_work(model, "encode"), count_work(model, "encode", 1)
    assert semantic.operations["quantizer"] == 2 * (32 * 16 + 64 * 16)
    assert semantic.weight_bytes == whole.weight_bytes - 4 * (32 * 16 + 5 * 64 * 16)
    halved = count_work(model.bfloat16(), "encode")
    codebooks = 4 * 6 * 64 * 16  # stay in single precision
    assert halved.weight_bytes - codebooks == (whole.weight_bytes - codebooks) / 2
    assert halved.state_bytes == whole.state_bytes / 2


def test_convolutions_are_counted_as_torch_counts_them():
    from torch.utils.flop_counter import FlopCounterMode
    from transformers.models.mimi.configuration_mimi import MimiConfig as NativeConfig
    from transformers.models.mimi.modeling_mimi import MimiModel as NativeModel

    native, model, frames = NativeModel(NativeConfig(**TINY)).eval(), make_model(), 20
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        native.encode(make_audio(frames * FRAME))
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    work = count_work(model, "encode").operations
    projections = 2 * 2 * 32 * 16
    assert counted == frames * (work["seanet"] + work["resampling"] + projections)


def test_the_published_size_takes_what_is_known_of_it():
    from mimi_hf import MimiConfig

    with torch.device("meta"):
        model = MimiModel(MimiConfig())
    work = count_work(model, "encode", 32).operations
    per_second = {part: 12.5 * count / 1e9 for part, count in work.items()}
    assert per_second == pytest.approx(
        {"seanet": 4.03, "transformer": 1.36, "resampling": 0.026, "quantizer": 0.426}, rel=0.01
    )


def test_roofline_and_shares():
    roofline = measure_roofline(dtypes=("float32", "bfloat16"), sizes=(32, 64), megabytes=4, repeats=1)
    assert roofline.gemm.keys() == {"float32", "bfloat16"}
    assert all(0 < rate < math.inf for rate in (*roofline.gemm.values(), roofline.bandwidth))
    work = Work({"all": 3 * 10**9}, weight_bytes=10**9, state_bytes=10**8)
    assert shares(work.live(2), 0.1, 100.0, 20.0) == pytest.approx({"gemm": 0.6, "bandwidth": 0.6})
    assert work.offline(5, batch=2) == {"operations": 3e10, "bytes": 10**9}


# A model


def test_benchmark_measures_each_row():
    done = []
    report = benchmark(
        make_model(),
        seconds=(0.1, 0.05),
        batches=(1, 2),
        sessions=(1, 3),
        num_quantizers=4,
        repeats=1,
        frames=5,
        roofline=ROOFLINE,
        progress=done.append,
    )
    assert [(row.task, row.seconds, row.batch) for row in report.offline[:4]] == [
        ("encode", 0.1, 1),
        ("encode", 0.1, 2),
        ("encode", 0.05, 1),
        ("encode", 0.05, 2),
    ]
    live = [(task, sessions) for task in ("encode", "decode") for sessions in (1, 3)]
    assert [(row.task, row.sessions) for row in report.live] == live
    for row in report.offline:
        assert row.speed == pytest.approx(row.batch * row.seconds / row.median)
        assert 0 < row.gemm < 1
    for row in report.live:
        assert 0 < row.median <= row.p99
        assert 0 < row.bandwidth < 1
    assert (report.dtype, report.num_quantizers, report.frame) == ("float32", 4, 1.0)
    assert len(done) == 12
    assert done == sorted(done)
    assert done[-1] == 1
    assert json.loads(json.dumps(report.to_dict()))["live"][0]["sessions"] == 1


def test_benchmark_leaves_out_the_half_that_is_missing():
    model = make_model(decoder_config=None)
    report = benchmark(model, (0.05,), (1,), (1,), repeats=1, frames=2, roofline=ROOFLINE)
    assert [row.task for row in [*report.offline, *report.live]] == ["encode", "encode"]


# The command


@pytest.fixture
def quick(monkeypatch):
    """The command without the seconds that the machine's rates take."""
    monkeypatch.setattr(mimi_hf.benchmark, "measure_roofline", lambda *_: ROOFLINE)


def run(*arguments):
    return CliRunner().invoke(app, ["benchmark", *(str(argument) for argument in arguments)])


SHORT = ("--seconds", 0.1, "--batch", 1, "--batch", 2, "--sessions", 1, "--repeats", 1)


def test_command_prints_and_writes(quick, checkpoint, tmp_path):
    file = tmp_path / "results.json"
    result = run("--model", checkpoint, *SHORT, "-k", 3, "--threads", 1, "--json", file)
    assert result.exit_code == 0, result.output
    for fact in ("3 codebooks", "Recordings", "Live, ms per frame of 1 ms", "encode", "decode", "x real time"):
        assert fact in result.output
    written = json.loads(file.read_text())
    assert len(written["offline"]) == 4
    assert len(written["live"]) == 2
    assert written["machine"]["threads"] == 1
    assert written["load_seconds"] > 0
    assert list(tmp_path.iterdir()) == [file]


def test_command_replaces_when_forced_and_can_be_quiet(quick, checkpoint, tmp_path):
    file = tmp_path / "results.json"
    file.write_text("precious")
    refused = run("--model", checkpoint, *SHORT, "--json", file)
    assert refused.exit_code == 1
    assert "--force" in refused.output
    assert file.read_text() == "precious"
    result = run("--model", checkpoint, *SHORT, "--json", file, "--force", "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert json.loads(file.read_text())["dtype"] == "float32"


def test_command_compiles_first(quick, checkpoint, monkeypatch):
    calls = []
    monkeypatch.setattr(MimiModel, "compile_for_streaming", lambda model: calls.append(model))
    assert run("--model", checkpoint, *SHORT, "--compile").exit_code == 0
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--seconds", "0"], 2, "--seconds must be positive"),
        (["--seconds", "nan"], 2, "--seconds must be positive"),
        (["--batch", "0"], 2, "--batch"),
        (["--dtype", "int8"], 2, "must be float32"),
        (["--quiet"], 2, "add --json"),
        (["-k", "7"], 1, "num_quantizers=7"),
        (["--json", "{dir}/none/results.json"], 1, "no folder"),
        (["--json", "{dir}", "--force"], 1, "is a folder"),
        (["--device", "nonsense"], 1, "cannot be loaded"),
    ],
)
def test_command_explains_mistakes(quick, checkpoint, tmp_path, arguments, status, message):
    result = run("--model", checkpoint, *(argument.format(dir=tmp_path) for argument in arguments))
    assert result.exit_code == status, result.output
    assert re.search(message, re.sub(r"[\s│]+", " ", result.output)), result.output
    assert "Traceback" not in result.output
    assert not any(tmp_path.iterdir())


def test_help_has_an_example():
    result = run("--help")
    assert "mimi-hf benchmark -k 8" in result.output
    assert "--compile" in result.output


# benchmarks/


@pytest.fixture
def scripts(monkeypatch):
    """Imports a module of benchmarks/."""
    if not BENCHMARKS.is_dir():
        pytest.skip("the benchmarks are not here")
    pytest.importorskip("psutil", reason="the extra `benchmark` is not installed")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def make_row(**changes):
    row = {
        "part": "live",
        "task": "encode",
        "sessions": 1,
        "codebooks": 8,
        "dtype": "float32",
        "unit": "ms per frame of 80 ms",
        "figures": {"mimi_hf": 10.0, "moshi": 25.0},
        "99th percentile": {"mimi_hf": 12.0, "moshi": 30.0},
        "seconds": {"mimi_hf": 0.01, "moshi": 0.025},
        "ratio": {"mimi_hf": {"moshi": 2.5}},
        "agreement": {"moshi": "100.00 % of codes"},
        "without": {"rustymimi": "it is away"},
        "work": {"operations": 4e8, "bytes": 1e8},
    }
    row.update(changes)
    return row


def make_results(*rows, name_row, gemm=100.0, bandwidth=20.0, threads=1):
    machine = {"cpu": "a chip", "threads": threads, "versions": {"torch": "2"}, "malloc": {}, "date": "2026-01-01"}
    roofline = {"gemm": {"float32": gemm}, "bandwidth": bandwidth}
    return {"machine": machine, "roofline": roofline, "rows": {name_row(row): row for row in rows}}


def test_runs_are_merged_row_by_row(scripts):
    report = scripts("report")
    old = make_results(make_row(), make_row(sessions=16), name_row=report.name_row, bandwidth=30.0)
    new = make_results(make_row(unit="new"), make_row(task="decode"), name_row=report.name_row, gemm=120.0)
    merged = report.merge(old, new)
    assert list(merged["rows"]) == [
        "live encode, 1 session, 8 codebooks, float32",
        "live encode, 16 sessions, 8 codebooks, float32",
        "live decode, 1 session, 8 codebooks, float32",
    ]
    assert merged["rows"]["live encode, 1 session, 8 codebooks, float32"]["unit"] == "new"
    assert merged["roofline"] == {"gemm": {"float32": 120.0}, "bandwidth": 30.0}
    assert report.merge(None, new) is new
    with pytest.raises(ValueError, match="differ in threads"):
        report.merge(old, make_results(name_row=report.name_row, threads=2))


def test_results_are_written_and_read_again(scripts, tmp_path):
    report = scripts("report")
    results = make_results(make_row(), name_row=report.name_row)
    assert report.load(tmp_path) is None
    report.save(results, tmp_path)
    (row,) = report.load(tmp_path)["rows"].values()
    assert row["shares"]["mimi_hf"] == pytest.approx({"gemm": 0.4, "bandwidth": 0.5})
    assert [file.name for file in tmp_path.iterdir()] == ["compare_peers.json"]


def test_results_are_rendered(scripts, tmp_path):
    pytest.importorskip("matplotlib", reason="the extra `benchmark` is not installed")
    report = scripts("report")
    offline = make_row(part="offline", audio=2.0, batch=1, memory={"mimi_hf": 5e7}, unit="audio seconds per second")
    start = {key: make_row()[key] for key in ("figures", "seconds", "ratio")}
    start = {**start, "part": "start", "task": "load", "unit": "seconds"}
    results = make_results(make_row(), make_row(sessions=16), offline, start, name_row=report.name_row)
    report.save(results, tmp_path)
    report.render(results, tmp_path)
    text = (tmp_path / "compare_peers.md").read_text()
    assert (
        "| live encode, 1 session, 8 codebooks, float32 | 10.0 / 12.0 | 25.0 / 30.0 | 2.50 | 40% of GEMM, 50%" in text
    )
    assert "| encode 1 x 2 s, 8 codebooks, float32 | 50 |  |" in text
    assert "| load | 10.000 | 25.000 | 2.50 |" in text
    assert "rustymimi, as it is away: encode 1 x 2 s" in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines if "encode" in line and "/" in line} == {lines[-1].count("|")}
    assert (tmp_path / "compare_peers.png").stat().st_size > 10_000


@pytest.fixture
def implementations(scripts):
    """Ours and another one, tiny, and one that fails."""
    peers = scripts("peers")

    class Tiny(peers.Ours):
        def __init__(self, name):
            self.name, self.model, self.num_quantizers = name, make_model(), 4

    class Failing(Tiny):
        def encode(self, audio):
            raise RuntimeError("not in this precision\nat line 1")

        encode_stream = encode

    return [Tiny("mimi_hf"), Tiny("moshi"), Failing("transformers")]


def test_rows_compare_and_leave_out_what_fails(scripts, implementations):
    compare_peers = scripts("compare_peers")
    plan = compare_peers.Plan(repeats=2, frames=3)
    offline = compare_peers.offline_row(implementations, "encode", 0.02, 2, plan)
    live = compare_peers.live_row(implementations, "encode", 2, plan)
    for row in (offline, live):
        assert row["figures"].keys() == {"mimi_hf", "moshi"}
        assert row["ratio"]["mimi_hf"].keys() == {"moshi"}
        assert row["agreement"] == {"moshi": "100.00 % of codes"}
        assert row["without"] == {"transformers": "not in this precision"}
    assert offline["memory"].keys() == {"mimi_hf", "moshi"}
    assert offline["figures"]["moshi"] == pytest.approx(2 * 0.02 / offline["seconds"]["moshi"])
    assert live["99th percentile"]["moshi"] >= live["figures"]["moshi"]


def test_calls_that_do_not_fit_into_memory_are_refused(scripts, monkeypatch):
    compare_peers, peers, psutil = scripts("compare_peers"), scripts("peers"), scripts("psutil")
    native, ours = (object.__new__(kind) for kind in (peers.Native, peers.Ours))
    free = type("Free", (), {"available": 2e9})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free)
    source = torch.zeros(1)
    assert compare_peers.refusal(native, 60, source) is None
    assert compare_peers.refusal(native, 600, source) == "it needs about 18 GB of memory"
    assert compare_peers.refusal(ours, 3600, source) is None


def test_peak_memory_counts_what_is_held(scripts):
    memory = scripts("memory")
    with memory.PeakMemory() as peak:
        block = torch.ones(25_000_000)  # 100 MB
        block.sum()
    assert 50e6 < peak.bytes < 500e6
