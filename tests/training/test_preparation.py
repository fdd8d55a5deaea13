"""Training data, prepared: what is kept of good and bad sources, once, whatever happens on the way."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from support.corpora import tone, write_audio, write_clips

from mimi_hf.audio import read_audio
from mimi_hf.training.data.audio_cache import AudioCache
from mimi_hf.training.data.crops import Crops
from mimi_hf.training.data.preparation import LEFT_OUT, prepare

RATE = 24_000


def content(cache):
    return [cache.read(number).tobytes() for number in range(len(cache))]


# Preparation


def test_recordings_are_kept_to_half_a_step_of_16_bits(tmp_path):
    folder = write_clips(tmp_path / "clips", 5)
    cache = prepare([str(folder)], tmp_path / "cache")
    assert len(cache) == 5 and cache.report["left_out"] == {}
    for number, path in enumerate(sorted(folder.iterdir())):
        expected = read_audio(path)[0][0]
        assert np.abs(cache.read(number) - expected).max() <= 0.5001 / 2**15
        np.testing.assert_array_equal(cache.read(number, 100, 50), cache.read(number)[100:150])
    assert cache.report["hours"] * 3600 * RATE == pytest.approx(sum(len(cache.read(i)) for i in range(5)))


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    write_audio(folder / "good.wav", tone(1.5))
    write_audio(folder / "stereo.flac", np.stack([tone(1.5), tone(1.5, 660)], axis=1))
    write_audio(folder / "telephone.wav", tone(2.0, rate=8000), 8000)
    write_audio(folder / "clipped.wav", np.clip(tone(1.5, amplitude=2), -1, 1))
    write_audio(folder / "shorter than a crop.wav", tone(0.5))
    write_audio(folder / "too short.wav", tone(0.1))
    write_audio(folder / "silent.wav", np.zeros(RATE))
    write_audio(folder / "constant.wav", np.full(RATE, 0.3))
    write_audio(folder / "opposed.wav", np.stack([tone(1), -tone(1)], axis=1))
    write_audio(folder / "no samples.wav", np.zeros(0))
    (folder / "no bytes.wav").touch()
    (folder / "text.wav").write_text("This is no audio.")
    whole = write_audio(folder / "cut.flac", tone(2.0)).read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    flac = bytearray(write_audio(folder / "corrupt.flac", tone(2.0)).read_bytes())
    flac[len(flac) // 2 : len(flac) // 2 + 2000] = bytes(2000)
    (folder / "corrupt.flac").write_bytes(flac)
    (folder / "nowhere.wav").symlink_to("missing.wav")
    write_audio(folder / "nan.wav", np.where(np.arange(RATE) == 9000, np.nan, tone(1)), subtype="FLOAT")
    write_audio(folder / "integers.wav", tone(1, amplitude=20_000), subtype="FLOAT")
    return folder


def test_bad_data_is_left_out_and_counted(bad, tmp_path):
    cache = prepare([str(bad)], tmp_path / "cache")
    report = cache.report
    assert report["left_out"] == {
        "empty": 2,
        "not_finite": 1,
        "out_of_range": 1,
        "silent": 3,
        "too_short": 1,
        "unreadable": 4,
    }
    counted = {name: report[name] for name in ("recordings", "resampled", "stereo", "clipped", "short")}
    assert counted == {"recordings": 5, "resampled": 1, "stereo": 1, "clipped": 1, "short": 1}
    assert report["sources"][str(bad)]["left_out"] == report["left_out"]
    lines = [json.loads(line) for line in (cache.folder / LEFT_OUT).read_text().splitlines()]
    assert {line["id"]: line["reason"] for line in lines} == {
        "too short.wav": "too_short",
        "silent.wav": "silent",
        "constant.wav": "silent",
        "opposed.wav": "silent",
        "no samples.wav": "empty",
        "no bytes.wav": "empty",
        "text.wav": "unreadable",
        "cut.flac": "unreadable",
        "corrupt.flac": "unreadable",
        "nowhere.wav": "unreadable",
        "nan.wav": "not_finite",
        "integers.wav": "out_of_range",
    }
    lengths = sorted(len(cache.read(i)) for i in range(len(cache)))
    assert lengths == [RATE // 2, *[RATE * 3 // 2] * 3, RATE * 2]
    assert sum(path.stat().st_size for path in cache.folder.glob("*.s16")) == 2 * sum(lengths)


def test_what_was_left_out_leaves_no_trace(bad, tmp_path):
    """Each crop of bad data is a part of a tone, or silence after one."""
    cache = prepare([str(bad)], tmp_path / "cache")
    crops = Crops(cache, 1.0, 8)
    assert crops.short == 1
    for step in range(5):
        batch = crops.batch(step)
        assert batch.shape == (8, 1, RATE) and torch.isfinite(batch).all() and (batch.abs().amax(2) <= 1).all()
        assert (batch.square().mean(2).sqrt() > 0.1).all()


def test_other_rates_and_channels_become_one(bad, tmp_path):
    cache = prepare([str(bad)], tmp_path / "cache")
    names = sorted(["good.wav", "stereo.flac", "telephone.wav", "clipped.wav", "shorter than a crop.wav"])
    audio = {name: cache.read(number) for number, name in enumerate(names)}
    np.testing.assert_allclose(audio["stereo.flac"], (tone(1.5) + tone(1.5, 660)) / 2, atol=1e-4)
    np.testing.assert_allclose(audio["telephone.wav"][1000:-1000], tone(2.0)[1000:-1000], atol=2e-3)


def test_nothing_usable_is_refused_with_the_counts(tmp_path):
    write_audio(tmp_path / "a" / "silent.wav", np.zeros(RATE))
    (tmp_path / "a" / "text.wav").write_text("no audio")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"'silent': 1, 'unreadable': 1"):
            prepare([str(tmp_path / "a")], tmp_path / "cache")


@pytest.mark.parametrize("sources", ["folder", [], ["a", "a"]])
def test_sources_are_checked(sources, tmp_path):
    with pytest.raises(ValueError, match="must be a list"):
        prepare(sources, tmp_path / "cache")


def test_missing_sources_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        prepare([str(tmp_path / "nowhere")], tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_parquet_and_manifest_give_what_their_folder_does(tmp_path):
    folder = write_clips(tmp_path / "clips", 6)
    paths = sorted(folder.iterdir())
    rows = [{"audio": {"bytes": path.read_bytes(), "path": path.name}, "text": "x"} for path in paths]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "clips.parquet")
    lines = "".join(json.dumps({"audio": f"clips/{path.name}"}) + "\n" for path in paths)
    (tmp_path / "clips.jsonl").write_text(lines)
    caches = [
        prepare([str(tmp_path / name)], tmp_path / f"cache-{name}")
        for name in ("clips", "clips.parquet", "clips.jsonl")
    ]
    assert content(caches[0]) == content(caches[1]) == content(caches[2])


def test_a_split_of_a_data_set_in_the_form_of_the_hub(tmp_path):
    (tmp_path / "set" / "data").mkdir(parents=True)
    for split, frequency in (("train", 300), ("test", 500)):
        path = write_audio(tmp_path / f"{split}.wav", tone(1, frequency), subtype="FLOAT")
        row = {"audio": {"bytes": path.read_bytes(), "path": path.name}}
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / "set" / "data" / f"{split}-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="needs a split"):
        prepare([f"{tmp_path}/set?kind=hub"], tmp_path / "cache")
    cache = prepare([f"{tmp_path}/set?kind=hub&split=test"], tmp_path / "cache")
    np.testing.assert_allclose(cache.read(0), tone(1, 500), atol=1e-4)


def test_options_follow_the_name_of_a_source(tmp_path):
    clip = io.BytesIO()
    soundfile.write(clip, tone(1), RATE, format="WAV")
    table = pa.table({"near": [clip.getvalue()], "far": [clip.getvalue()]})
    pq.write_table(table, tmp_path / "two.parquet")
    with pytest.raises(ValueError, match="audio column"):
        prepare([f"{tmp_path}/two.parquet"], tmp_path / "cache")
    source = f"{tmp_path}/two.parquet?audio_column=far"
    assert prepare([source], tmp_path / "cache").sources == (source,)


def test_parts_of_recordings_that_a_manifest_names(tmp_path):
    write_audio(tmp_path / "long.wav", np.concatenate([tone(1, 300), tone(1, 500), tone(1, 700)]))
    (tmp_path / "list.csv").write_text("audio,start,duration\nlong.wav,1,1\nlong.wav,2,0.1\nlong.wav,9,1\n")
    cache = prepare([str(tmp_path / "list.csv")], tmp_path / "cache")
    np.testing.assert_allclose(cache.read(0), tone(1, 500), atol=1e-4)
    assert len(cache) == 1 and cache.report["left_out"] == {"too_short": 1, "unreadable": 1}


def test_long_recordings_are_copied_block_by_block(tmp_path, monkeypatch):
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 3 * 16_000)
    write_audio(tmp_path / "a" / "long.wav", samples, 16_000, subtype="FLOAT")
    whole = prepare([str(tmp_path / "a")], tmp_path / "whole")
    monkeypatch.setattr("mimi_hf.training.data.copying._BLOCK", 0.25)
    pieces = prepare([str(tmp_path / "a")], tmp_path / "pieces")
    assert len(pieces.read(0)) == 3 * RATE
    np.testing.assert_allclose(pieces.read(0), whole.read(0), atol=1.1 / 2**15)


# Done once, and again where something changed


def times(folder):
    return {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*") if path.is_file()}


def test_the_second_call_does_nothing(tmp_path):
    folder = write_clips(tmp_path / "clips", 4)
    first = prepare([str(folder)], tmp_path / "cache")
    before = times(tmp_path / "cache")
    (folder / "notes.txt").write_text("no audio, no matter")
    second = prepare([str(folder)], tmp_path / "cache", progress=lambda *_: pytest.fail("it was prepared again"))
    assert times(tmp_path / "cache") == before and second.folder == first.folder


def test_changed_sources_and_settings_are_prepared_anew(tmp_path):
    folder = write_clips(tmp_path / "clips", 4)
    old = prepare([str(folder)], tmp_path / "cache")
    crops = Crops(old, 0.2, 4)
    before = crops.batch(7)
    write_audio(folder / "001.wav", tone(0.5))
    new = prepare([str(folder)], tmp_path / "cache")
    np.testing.assert_allclose(new.read(1), tone(0.5), atol=1e-4)
    assert new.read(0).tobytes() == old.read(0).tobytes()
    assert not old.folder.exists() and torch.equal(crops.batch(7), before)  # a run that goes on keeps its data
    other = prepare([str(folder)], tmp_path / "cache", sampling_rate=16_000)
    assert other.sampling_rate == 16_000 and len(other.read(1)) == 8000


def test_a_file_that_a_manifest_names_has_changed(tmp_path):
    write_audio(tmp_path / "one.wav", tone(1))
    (tmp_path / "list.jsonl").write_text('{"audio": "one.wav"}\n')
    prepare([str(tmp_path / "list.jsonl")], tmp_path / "cache")
    write_audio(tmp_path / "one.wav", tone(2))
    assert len(prepare([str(tmp_path / "list.jsonl")], tmp_path / "cache").read(0)) == 2 * RATE


def test_other_files_in_the_folder_of_a_cache_stay(tmp_path):
    folder = write_clips(tmp_path / "clips", 3)
    own = tmp_path / "cache" / "0123456789abcdef" / "mine.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    prepare([str(folder)], tmp_path / "cache")
    assert own.read_text() == "mine"


def test_runs_may_share_a_folder(tmp_path):
    sources = [str(write_clips(tmp_path / name, 2)) for name in ("a", "b")]
    first, second = (prepare([source], tmp_path / "cache", keep_others=True) for source in sources)
    assert first.folder.exists() and second.folder.exists()
    prepare([*sources], tmp_path / "cache")
    assert not first.folder.exists() and not second.folder.exists()


def test_a_local_data_set_in_the_form_of_the_hub_has_changed(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for seconds in (1.0, 3.0):
        audio = write_audio(tmp_path / "clip.wav", tone(seconds)).read_bytes()
        pq.write_table(pa.table({"audio": [{"bytes": audio, "path": None}]}), folder / "train.parquet")
        cache = prepare([f"{folder}?kind=hub&audio_column=audio"], tmp_path / "cache")
        assert len(cache.read(0)) == seconds * RATE


def test_a_record_that_was_cut_short_is_made_again(tmp_path):
    folder = write_clips(tmp_path / "clips", 3)
    cache = prepare([str(folder)], tmp_path / "cache")
    expected = content(cache)
    (cache.folder / "report.json").unlink()
    next((cache.folder / "parts").iterdir()).write_text('{"file": 0, "st')
    assert content(prepare([str(folder)], tmp_path / "cache")) == expected


def test_a_damaged_cache_is_prepared_again(tmp_path):
    folder = write_clips(tmp_path / "clips", 4)
    cache = prepare([str(folder)], tmp_path / "cache")
    expected = content(cache)
    with open(next(cache.folder.glob("*.s16")), "ab") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match="cut short"):
        AudioCache(cache.folder)
    assert content(prepare([str(folder)], tmp_path / "cache")) == expected


KILLED = """
import itertools, os, signal, sys
from mimi_hf.training.data import preparation
copy, copied = preparation.copy_recording, itertools.count()
def copy_or_die(*args):
    if next(copied) == 200:
        os.kill(os.getpid(), signal.SIGKILL)
    return copy(*args)
preparation.copy_recording = copy_or_die
preparation.prepare([sys.argv[1]], sys.argv[2], threads=2)
"""


def test_a_killed_preparation_goes_on(tmp_path):
    folder = write_clips(tmp_path / "clips", 420, (0.3, 0.6))
    expected = prepare([str(folder)], tmp_path / "undisturbed", threads=1)
    killed = subprocess.run([sys.executable, "-c", KILLED, folder, tmp_path / "cache"], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    inner = tmp_path / "cache" / expected.folder.name
    # A record that was being written when the kill came lies beside the others under another name.
    done = {path: time for path, time in times(inner / "parts").items() if path.suffix == ".json"}
    assert 2 <= len(done) <= 4 and not (inner / "report.json").exists()
    with open(inner / "audio-0.s16", "ab") as file:  # half of a sample, too
        file.write(bytes(1001))
    shares = []
    cache = prepare([str(folder)], tmp_path / "cache", progress=lambda seconds, share: shares.append(share))
    assert len(shares) == 9 - len(done) and shares[-1] == 1
    assert done.items() <= times(inner / "parts").items()  # what was done was not done again
    assert content(cache) == content(expected) and cache.report == expected.report
    assert torch.equal(Crops(cache, 0.5, 4).batch(3), Crops(expected, 0.5, 4).batch(3))


def test_failing_disks_are_no_bad_data(tmp_path, monkeypatch):
    folder = write_clips(tmp_path / "clips", 4)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("mimi_hf.training.data.preparation.copy_recording", fail)
        with pytest.raises(OSError, match="No space"):
            prepare([str(folder)], tmp_path / "cache")
    assert len(prepare([str(folder)], tmp_path / "cache")) == 4


def test_several_at_once_prepare_once(tmp_path):
    folder = write_clips(tmp_path / "clips", 120, (0.3, 0.5))
    parts, caches = [], []

    def run():
        caches.append(prepare([str(folder)], tmp_path / "cache", progress=lambda *_: parts.append(1)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(caches) == 4 and len(parts) == 3
    assert all(content(one) == content(caches[0]) for one in caches)


def test_the_order_of_threads_changes_nothing(tmp_path):
    folder = write_clips(tmp_path / "clips", 200, (0.2, 0.4))
    one, four = (prepare([str(folder)], tmp_path / f"{n}", threads=n) for n in (1, 4))
    assert content(one) == content(four)
    np.testing.assert_array_equal(one.index[:, 2:], four.index[:, 2:])


def test_reading_a_cache_needs_no_permission_to_write(tmp_path):
    folder = write_clips(tmp_path / "clips", 2)
    cache = prepare([str(folder)], tmp_path / "cache")
    (tmp_path / "cache" / ".lock").unlink()
    prepare([str(folder)], tmp_path / "cache")
    assert not os.path.exists(tmp_path / "cache" / ".lock") and len(cache) == 2
