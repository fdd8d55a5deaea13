"""Tokenizing a corpus: what is in it, what is refused, what a second run does."""

import json
import os
import pickle
import shutil
import threading
import tracemalloc

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from support.corpora import contents, encode_alone, make_job, rows_of, save_model, write_clips
from support.tiny import make_model

from mimi_hf.corpus import reading
from mimi_hf.corpus.jobs import encoding
from mimi_hf.corpus.jobs.storage import Output
from mimi_hf.corpus.jobs.tokenize import ExampleError
from mimi_hf.corpus.runners import shard
from mimi_hf.corpus.runners.local import run_here


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model():
    return make_model(upsampling_ratios=[8, 6, 5, 4])


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A dozen recordings, in folders with names of all kinds, and a manifest."""
    folder = write_clips(tmp_path_factory.mktemp("clips"), 9)
    write_clips(folder / "a b" / "x.wav", 3, seed=1)  # a folder with such a name
    (folder / "a b" / "x.wav" / "000.wav").rename(folder / "a b" / "été\n日本.WAV")
    files = [path for path in sorted(folder.rglob("*.[wW][aA][vV]")) if path.is_file()]
    lines = [
        {"audio": str(path.relative_to(folder)), "text": f"Nº {number}", "id": number, "tags": ["a", str(number)]}
        for number, path in enumerate(files)
    ]
    (folder / "list.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def tokenize(job):
    """All of a job, here."""
    job.begin()
    run_here(job, job.unfinished(), "cpu")
    return job.finish()


# What is in it


@pytest.mark.parametrize(
    ("shard_size", "options"),
    [(1, {}), (5, {"batch_seconds": 0.5}), (100, {"batch_seconds": 30.0, "readers": 1}), (4, {"readers": 5})],
)
def test_each_example_has_the_codes_it_has_alone(clips, checkpoint, model, tmp_path, shard_size, options):
    totals = tokenize(make_job(clips, tmp_path / "out", checkpoint, shard_size, **options))
    rows = rows_of(tmp_path / "out")
    files = {str(path.relative_to(clips)): path for path in clips.rglob("*") if path.suffix.lower() == ".wav"}
    files = {name: path for name, path in files.items() if path.is_file()}
    assert set(rows) == set(files) and "a b/été\n日本.WAV" in rows
    for name, row in rows.items():
        audio, _ = soundfile.read(files[name])
        assert row["audio_num_samples"] == len(audio)
        np.testing.assert_array_equal(row["audio_codes"], encode_alone(model, audio))
    assert totals["examples"] == len(files) and totals["failures"] == 0
    assert totals["samples"] == sum(row["audio_num_samples"] for row in rows.values())


def test_a_manifest_keeps_its_columns_and_datasets_opens_the_result(clips, checkpoint, tmp_path):
    tokenize(make_job(clips / "list.jsonl", tmp_path / "out", checkpoint, 4))
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.features["audio_codes"] == datasets.List(datasets.List(datasets.Value("uint16")))
    assert loaded["id"][:] == [str(number) for number in range(12)]  # its own ones
    assert [row["text"] for row in loaded] == [f"Nº {number}" for number in range(12)]
    assert loaded[3]["tags"] == ["a", "3"]


def test_totals_count_what_is_there(clips, checkpoint, tmp_path):
    totals = tokenize(make_job(clips, tmp_path / "out", checkpoint))
    codes = np.concatenate([row["audio_codes"] for row in rows_of(tmp_path / "out").values()], axis=1)
    assert totals["frames"] == codes.shape[1]
    for row, told in zip(codes, totals["codebooks"], strict=True):
        shares = np.unique(row, return_counts=True)[1] / len(row)
        assert told["used"] == len(shares)
        assert told["entropy"] == pytest.approx(-(shares * np.log2(shares)).sum(), abs=1e-3)
    assert json.loads((tmp_path / "out" / "totals.json").read_text()) == totals
    assert "Not all shards" not in (tmp_path / "out" / "README.md").read_text()


def test_long_recordings_are_streamed_and_give_the_same(clips, checkpoint, tmp_path, monkeypatch):
    audio = np.random.default_rng(5).uniform(-0.3, 0.3, 16_000 * 3)
    shutil.copytree(clips, tmp_path / "in")
    soundfile.write(tmp_path / "in" / "resampled.flac", audio, 16_000)
    tokenize(make_job(tmp_path / "in", tmp_path / "whole", checkpoint))
    monkeypatch.setattr(reading, "LONG", 0.6)
    monkeypatch.setattr(encoding, "_LONG_PUSH", 0.25)
    tokenize(make_job(tmp_path / "in", tmp_path / "streamed", checkpoint))
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "streamed")


def test_a_long_recording_is_never_held_whole(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONG", 2.0)
    monkeypatch.setattr(encoding, "_LONG_PUSH", 2.0)
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "long.flac", np.zeros(8000 * 300), 8000)
    job = make_job(tmp_path / "in", tmp_path / "out", checkpoint, num_quantizers=1)
    tracemalloc.start()
    try:
        tokenize(job)
        assert tracemalloc.get_traced_memory()[1] < 300 * 24_000  # a quarter of it, in float32
    finally:
        tracemalloc.stop()
    assert rows_of(tmp_path / "out")["long.flac"]["audio_num_samples"] == 300 * 24_000


# What goes wrong with single recordings


@pytest.fixture
def hostile(tmp_path):
    """A folder with all that goes wrong, and two recordings that are well."""
    folder = write_clips(tmp_path / "hostile", 1)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("hello")
    soundfile.write(folder / "nan.wav", np.full(2000, np.nan), 24_000, subtype="FLOAT")
    soundfile.write(folder / "zero.wav", np.zeros(0), 24_000)
    soundfile.write(folder / "tone.mp3", np.sin(np.arange(48_000) / 9) / 3, 24_000)
    data = bytearray((folder / "tone.mp3").read_bytes())
    (folder / "cut.mp3").write_bytes(data[:100])
    (folder / "garbage.mp3").write_bytes(np.random.default_rng(0).bytes(5000))
    data[len(data) // 3 : len(data) // 2] = bytes(len(data) // 2 - len(data) // 3)
    (folder / "hole.mp3").write_bytes(data)
    soundfile.write(folder / "hours.flac", np.zeros(8000 * 20), 8000)
    whole = (folder / "hours.flac").read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (folder / "dangling.wav").symlink_to("nowhere.wav")
    (folder / "loop.wav").symlink_to("loop.wav")
    (folder / "folder.wav").mkdir()
    os.mkfifo(folder / "pipe.wav")  # no regular file: nobody must wait for it
    shutil.copy(folder / "000.wav", os.fsencode(folder) + b"/latin\xe9.wav")
    shutil.copy(folder / "000.wav", folder / "secret.wav")
    (folder / "secret.wav").chmod(0)
    return folder


def test_a_hostile_folder_never_stops_the_run(hostile, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "LONG", 5.0)
    totals = tokenize(make_job(hostile, tmp_path / "out", checkpoint, 4))
    rows = rows_of(tmp_path / "out")
    failures = {row["id"]: row["reason"] for row in pq.read_table(tmp_path / "out" / "failures.parquet").to_pylist()}
    assert totals["failures"] == len(failures)
    assert not set(rows) & set(failures)
    bad = {"empty.wav", "text.wav", "nan.wav", "zero.wav", "garbage.mp3", "cut.mp3", "cut.flac", "dangling.wav"}
    good = {"000.wav", "hours.flac", "latin\\xe9.wav", "tone.mp3"}
    if os.geteuid():
        bad.add("secret.wav")
    assert bad <= set(failures) and good <= set(rows)
    assert {*rows, *failures} == {*bad, *good, "loop.wav", "hole.mp3", "secret.wav"}
    assert rows["hours.flac"]["audio_num_samples"] == 20 * 24_000
    assert "NaN" in failures["nan.wav"] and "empty" in failures["zero.wav"]
    cache = str(tmp_path / "cache")
    assert len(datasets.load_dataset(str(tmp_path / "out"), cache_dir=cache)["train"]) == len(rows)
    told = datasets.load_dataset(str(tmp_path / "out"), "failures", cache_dir=cache)["train"]
    assert set(told["id"]) == set(failures)


def test_a_folder_of_failures_alone_is_a_result(checkpoint, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").write_bytes(b"")
    totals = tokenize(make_job(tmp_path / "in", tmp_path / "out", checkpoint))
    assert (totals["examples"], totals["failures"], totals["hours"]) == (0, 1, 0)
    assert pq.read_table(tmp_path / "out" / "data").num_rows == 0


def test_odd_values_of_a_manifest_become_rows_or_failures(clips, checkpoint, tmp_path):
    lines = [
        '{"audio": "000.wav", "text": "\\ud800", "n": 1}',
        '{"audio": "000.wav", "text": {"a": 1}, "n": 1e300}',
        '{"audio": "\\ud800.wav", "text": null, "n": 99999999999999999999999}',
        '{"audio": 5, "text": [], "n": true, "id": "\\ud800"}',
        '{"audio": "000.wav", "start": -1}',
        "not json",
        "[]",
    ]
    (clips / "odd.jsonl").write_text("\n".join(lines))
    totals = tokenize(make_job(clips / "odd.jsonl", tmp_path / "out", checkpoint))
    assert totals["examples"] + totals["failures"] == len(lines)
    assert totals["examples"] >= 1


def test_strict_stops_and_leaves_no_shard(hostile, checkpoint, tmp_path):
    job = make_job(hostile, tmp_path / "out", checkpoint, 100, strict=True)
    job.begin()
    with pytest.raises(ExampleError, match=r"mp3|flac|wav"):
        run_here(job, job.unfinished(), "cpu")
    assert job.finish() is None
    assert not list((tmp_path / "out").glob("data/*")) and not list((tmp_path / "out").rglob(".unfinished/*/*"))


@pytest.mark.parametrize("error", [OSError(110, "timed out"), torch.OutOfMemoryError("device is full")])
def test_what_is_no_fault_of_a_recording_stops_the_shard(clips, checkpoint, tmp_path, monkeypatch, error):
    job = make_job(clips, tmp_path / "out", checkpoint, 100)
    job.begin()

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(shard, "_PAUSES", ())
    with monkeypatch.context() as patch:
        patch.setattr(*((reading, "open_blocks") if isinstance(error, OSError) else (encoding, "encode_all")), fail)
        with pytest.raises(type(error)):
            run_here(job, job.unfinished(), "cpu")
    assert job.unfinished() == [0]
    assert tokenize(job)["failures"] == 0


def test_a_recording_that_overflows_fails_alone(clips, checkpoint, tmp_path, monkeypatch):
    job = make_job(clips, tmp_path / "out", checkpoint, 100)

    def encode(model, audio, *rest):
        if any(recording.shape[1] == samples for recording in audio):
            raise ValueError("overflow")
        return real(model, audio, *rest)

    samples, real = soundfile.info(clips / "004.wav").frames, encoding.encode_all
    monkeypatch.setattr(encoding, "encode_all", encode)
    totals = tokenize(job)
    assert (totals["examples"], totals["failures"]) == (11, 1)
    assert "004.wav" not in rows_of(tmp_path / "out")


# Runs after the first


def test_a_run_that_goes_on_gives_what_one_run_gives(clips, checkpoint, tmp_path):
    tokenize(make_job(clips, tmp_path / "whole", checkpoint))
    job = make_job(clips, tmp_path / "parts", checkpoint)
    job.begin()
    run_here(job, job.unfinished()[1:2], "cpu")
    assert job.finish() is None
    # It opens already, and says so.
    loaded = datasets.load_dataset(str(tmp_path / "parts"), cache_dir=str(tmp_path / "cache"))["train"]
    assert len(loaded) == 5
    assert "Not all shards are done" in (tmp_path / "parts" / "README.md").read_text()
    assert make_job(clips, tmp_path / "parts", checkpoint).unfinished() == [0, 2]
    tokenize(make_job(clips, tmp_path / "parts", checkpoint))
    Output(str(tmp_path / "parts")).remove_unfinished(alone=True)
    Output(str(tmp_path / "whole")).remove_unfinished(alone=True)
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {
        *("data", "shards", "manifest.json", "totals.json", "README.md")
    }


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"num_quantizers": 3}, "num_quantizers: 4 there, 3 now"),
        ({"shard_size": 6}, "shard_size: 5 there, 6 now"),
        ({"columns": ["text"]}, "columns"),
        ({"source": "000.wav"}, "kind|source"),
        ({"model": {"num_filters": 8}}, "encoder_digest"),
        ({"model": {"codebook_size": 32}}, "codebook_digest"),
    ],
)
def test_other_settings_are_refused(clips, checkpoint, tmp_path, change, told):
    arguments = {"source": clips / "list.jsonl", "output": tmp_path / "out", "model": checkpoint}
    job = make_job(**arguments)
    job.begin()
    before = contents(tmp_path / "out")
    if "model" in change:
        change = {"model": save_model(tmp_path / "other", **change["model"])}
    if "source" in change:
        change = {"source": clips}
    with pytest.raises(ValueError, match=f"begun with another source or other settings .*({told})"):
        make_job(**{**arguments, **change}).begin()
    assert contents(tmp_path / "out") == before
    make_job(**arguments, batch_seconds=3.0).begin()  # what changes no codes may change


def test_a_source_that_changes_is_refused_and_a_place_that_changes_is_not(clips, checkpoint, tmp_path):
    shutil.copytree(clips, tmp_path / "in")
    job = make_job(tmp_path / "in", tmp_path / "out", checkpoint, 100)
    job.begin()
    shutil.copytree(clips, tmp_path / "elsewhere")
    make_job(tmp_path / "elsewhere", tmp_path / "out", checkpoint, 100).begin()
    (tmp_path / "in" / "005.wav").rename(tmp_path / "in" / "005b.wav")
    with pytest.raises(ValueError, match="files or rows are others"):
        make_job(tmp_path / "in", tmp_path / "out", checkpoint, 100).begin()
    worker = pickle.loads(pickle.dumps(job))  # of a process that starts only now
    with pytest.raises(ValueError, match="has changed since the run began"):
        run_here(worker, [0], "cpu")
    assert not list((tmp_path / "out").glob("data/*"))


def test_a_folder_of_something_else_is_refused(clips, checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".unfinished").mkdir()
    make_job(clips, tmp_path / "out", checkpoint).begin()  # killed before it had written anything
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match=r"holds thesis.txt, but no manifest"):
        make_job(clips, tmp_path / "taken", checkpoint).begin()
    with pytest.raises(ValueError, match="is a file"):
        make_job(clips, tmp_path / "file", checkpoint).begin()
    with pytest.raises(ValueError, match=r"holds 000.wav"):
        make_job(clips, clips, checkpoint).begin()
    assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thesis.txt"]


def test_an_output_inside_of_its_source_works(clips, checkpoint, tmp_path):
    shutil.copytree(clips, tmp_path / "in")
    tokenize(make_job(tmp_path / "in", tmp_path / "in" / "codes", checkpoint))
    again = make_job(tmp_path / "in", tmp_path / "in" / "codes", checkpoint)
    again.begin()
    assert again.unfinished() == []


@pytest.mark.parametrize("moment", ["names", "exists"])
def test_another_machine_may_begin_at_any_moment(clips, checkpoint, tmp_path, monkeypatch, moment):
    ours, other = (make_job(clips, tmp_path / "out", checkpoint) for _ in range(2))

    def look(*arguments):
        other.begin()
        return real(*arguments)

    real = getattr(ours.output, moment)
    monkeypatch.setattr(ours.output, moment, look)
    ours.begin()
    assert ours.unfinished() == [0, 1, 2]


def test_many_may_begin_and_finish_at_once(clips, checkpoint, tmp_path):
    jobs = [make_job(clips, tmp_path / "out", checkpoint) for _ in range(6)]
    errors = []

    def everything(job, index):
        try:
            barrier.wait()
            job.begin()
            run_here(job, [index] if index < 3 else [], "cpu")
            barrier.wait()
            assert job.finish()["examples"] == 12
            job.output.remove_unfinished(alone=False)
        except Exception as error:
            errors.append(error)

    barrier = threading.Barrier(len(jobs), timeout=60)
    threads = [threading.Thread(target=everything, args=(job, index)) for index, job in enumerate(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert not (tmp_path / "out" / ".unfinished").exists()


# Shares
