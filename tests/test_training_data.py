"""Training data: what is prepared of good and bad sources, which crops are drawn, and what augmentation does."""

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
from corpora import write_clips

from mimi_hf.audio_io import read_audio
from mimi_hf.training import augmentation as changes
from mimi_hf.training.audio_cache import LEFT_OUT, AudioCache, prepare
from mimi_hf.training.augmentation import NOISE_COLORS, PEAK, Augmentation, change_speed, draw_noise, equalize, level
from mimi_hf.training.data import QUIET, Crops

RATE = 24_000
ALL = Augmentation(
    gain_db=(-20.0, 10.0),
    equalizer_probability=1.0,
    noise_probability=0.7,
    speed_probability=0.7,
)


def tone(seconds, frequency=440.0, rate=RATE, amplitude=0.5):
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)


def write(path, samples, rate=RATE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, **options)
    return path


def content(cache):
    return [cache.read(number).tobytes() for number in range(len(cache))]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Recordings of 0.3 to 2.5 s from two sources."""
    folder = tmp_path_factory.mktemp("audio")
    write_clips(folder / "a", 12, (0.3, 2.5))
    write_clips(folder / "b", 3, (1.0, 2.0), seed=1)
    return prepare([str(folder / "a"), str(folder / "b")], folder / "cache")


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
    write(folder / "good.wav", tone(1.5))
    write(folder / "stereo.flac", np.stack([tone(1.5), tone(1.5, 660)], axis=1))
    write(folder / "telephone.wav", tone(2.0, rate=8000), 8000)
    write(folder / "clipped.wav", np.clip(tone(1.5, amplitude=2), -1, 1))
    write(folder / "shorter than a crop.wav", tone(0.5))
    write(folder / "too short.wav", tone(0.1))
    write(folder / "silent.wav", np.zeros(RATE))
    write(folder / "constant.wav", np.full(RATE, 0.3))
    write(folder / "opposed.wav", np.stack([tone(1), -tone(1)], axis=1))
    write(folder / "no samples.wav", np.zeros(0))
    (folder / "no bytes.wav").touch()
    (folder / "text.wav").write_text("This is no audio.")
    whole = write(folder / "cut.flac", tone(2.0)).read_bytes()
    (folder / "cut.flac").write_bytes(whole[: len(whole) // 2])
    flac = bytearray(write(folder / "corrupt.flac", tone(2.0)).read_bytes())
    flac[len(flac) // 2 : len(flac) // 2 + 2000] = bytes(2000)
    (folder / "corrupt.flac").write_bytes(flac)
    (folder / "nowhere.wav").symlink_to("missing.wav")
    write(folder / "nan.wav", np.where(np.arange(RATE) == 9000, np.nan, tone(1)), subtype="FLOAT")
    write(folder / "integers.wav", tone(1, amplitude=20_000), subtype="FLOAT")
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
    write(tmp_path / "a" / "silent.wav", np.zeros(RATE))
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
        path = write(tmp_path / f"{split}.wav", tone(1, frequency), subtype="FLOAT")
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
    write(tmp_path / "long.wav", np.concatenate([tone(1, 300), tone(1, 500), tone(1, 700)]))
    (tmp_path / "list.csv").write_text("audio,start,duration\nlong.wav,1,1\nlong.wav,2,0.1\nlong.wav,9,1\n")
    cache = prepare([str(tmp_path / "list.csv")], tmp_path / "cache")
    np.testing.assert_allclose(cache.read(0), tone(1, 500), atol=1e-4)
    assert len(cache) == 1 and cache.report["left_out"] == {"too_short": 1, "unreadable": 1}


def test_long_recordings_are_copied_block_by_block(tmp_path, monkeypatch):
    samples = np.random.default_rng(0).uniform(-0.3, 0.3, 3 * 16_000)
    write(tmp_path / "a" / "long.wav", samples, 16_000, subtype="FLOAT")
    whole = prepare([str(tmp_path / "a")], tmp_path / "whole")
    monkeypatch.setattr("mimi_hf.training.recordings._BLOCK", 0.25)
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
    write(folder / "001.wav", tone(0.5))
    new = prepare([str(folder)], tmp_path / "cache")
    np.testing.assert_allclose(new.read(1), tone(0.5), atol=1e-4)
    assert new.read(0).tobytes() == old.read(0).tobytes()
    assert not old.folder.exists() and torch.equal(crops.batch(7), before)  # a run that goes on keeps its data
    other = prepare([str(folder)], tmp_path / "cache", sampling_rate=16_000)
    assert other.sampling_rate == 16_000 and len(other.read(1)) == 8000


def test_a_file_that_a_manifest_names_has_changed(tmp_path):
    write(tmp_path / "one.wav", tone(1))
    (tmp_path / "list.jsonl").write_text('{"audio": "one.wav"}\n')
    prepare([str(tmp_path / "list.jsonl")], tmp_path / "cache")
    write(tmp_path / "one.wav", tone(2))
    assert len(prepare([str(tmp_path / "list.jsonl")], tmp_path / "cache").read(0)) == 2 * RATE


def test_other_files_in_the_folder_of_a_cache_stay(tmp_path):
    folder = write_clips(tmp_path / "clips", 3)
    own = tmp_path / "cache" / "0123456789abcdef" / "mine.txt"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    prepare([str(folder)], tmp_path / "cache")
    assert own.read_text() == "mine"


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
from mimi_hf.training import audio_cache
copy, copied = audio_cache.copy_recording, itertools.count()
def copy_or_die(*args):
    if next(copied) == 200:
        os.kill(os.getpid(), signal.SIGKILL)
    return copy(*args)
audio_cache.copy_recording = copy_or_die
audio_cache.prepare([sys.argv[1]], sys.argv[2], threads=2)
"""


def test_a_killed_preparation_goes_on(tmp_path):
    folder = write_clips(tmp_path / "clips", 420, (0.3, 0.6))
    expected = prepare([str(folder)], tmp_path / "undisturbed", threads=1)
    killed = subprocess.run([sys.executable, "-c", KILLED, folder, tmp_path / "cache"], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    inner = tmp_path / "cache" / expected.folder.name
    done = times(inner / "parts")
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
        patch.setattr("mimi_hf.training.audio_cache.copy_recording", fail)
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


# Crops


def test_crops_depend_on_seed_step_and_place_alone(cache):
    first, second = (Crops(cache, 0.5, 4, seed=3, augmentation=ALL) for _ in range(2))
    ahead = [first.batch(step) for step in range(6)]
    assert torch.equal(second.batch(5), ahead[5]) and torch.equal(second.batch(0), ahead[0])
    different = [*ahead, Crops(cache, 0.5, 4, seed=4, augmentation=ALL).batch(0)]
    assert len({crop.numpy().tobytes() for batch in different for crop in batch}) == 28
    assert ahead[0].dtype == torch.float32 and ahead[0].shape == (4, 1, RATE // 2)


def test_ranks_share_the_batch_of_one_process(cache):
    whole = Crops(cache, 0.5, 6, augmentation=ALL).batch(2)
    shared = Crops(cache, 0.5, 2, augmentation=ALL)
    assert torch.equal(whole, torch.cat([shared.batch(2, rank, 3) for rank in range(3)]))


def test_iterate_goes_on_where_it_was(cache):
    crops = Crops(cache, 0.5, 2, augmentation=ALL)
    batches = list(crops.iterate(3, 5, rank=1, world=2))
    assert len(batches) == 5
    for step, batch in enumerate(batches, 3):
        assert torch.equal(batch, crops.batch(step, 1, 2))


def test_iterate_raises_here_what_went_wrong_there_and_closes(cache):
    before = threading.active_count()
    crops = Crops(cache, 0.5, 2)
    batches = crops.iterate(0, 10**9)
    next(batches)
    batches.close()
    assert threading.active_count() == before
    crops.cache = None
    with pytest.raises(AttributeError):
        next(crops.iterate(0, 3))


def test_crops_are_parts_of_recordings(tmp_path):
    """Every sample says where it lies: so does a crop."""
    long, short = np.arange(1, 30_001, dtype=np.int16), np.arange(-6_000, 0, dtype=np.int16)
    write(tmp_path / "a" / "long.wav", long)
    write(tmp_path / "a" / "short.wav", short)
    crops = Crops(prepare([str(tmp_path / "a")], tmp_path / "cache"), 0.3, 100)
    starts, padded = [], 0
    for crop in (one for step in range(10) for one in (crops.batch(step)[:, 0].numpy() * 2**15).astype(int)):
        assert len(crop) == 7_200
        if crop[0] < 0:
            padded += 1
            np.testing.assert_array_equal(crop, np.pad(short, (0, 1_200)))
        else:
            starts.append(crop[0] - 1)
            np.testing.assert_array_equal(crop, np.arange(crop[0], crop[0] + 7_200))
    assert padded == pytest.approx(1000 * 6 / 36, abs=50)  # in proportion to length
    assert min(starts) >= 0 and max(starts) <= 22_800 and np.ptp(starts) > 22_000


def test_weights_say_how_often_a_source_is_drawn_from(tmp_path):
    write(tmp_path / "low" / "a.wav", tone(2, amplitude=0.1))
    write(tmp_path / "high" / "a.wav", tone(6, amplitude=0.5))
    low, high = str(tmp_path / "low"), str(tmp_path / "high")
    cache = prepare([low, high], tmp_path / "cache")

    def share_of_low(weights):
        batch = Crops(cache, 0.02, 2000, weights=weights).batch(0)
        return float((batch.abs().amax(2) < 0.2).float().mean())

    assert share_of_low(None) == pytest.approx(0.25, abs=0.05)
    assert share_of_low({high: 1.0, low: 3.0}) == pytest.approx(0.75, abs=0.05)


@pytest.mark.parametrize("weights", [{"other": 1.0}, {}, 0.0, -1.0, float("nan")])
def test_weights_are_checked(cache, weights):
    if not isinstance(weights, dict):
        weights = dict.fromkeys(cache.sources, weights)
    with pytest.raises(ValueError, match="weight"):
        Crops(cache, 0.5, 2, weights=weights)


@pytest.mark.parametrize("options", [{"seconds": 0}, {"batch_size": 0}, {"seed": -1}])
def test_sizes_are_checked(cache, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Crops(cache, **{"seconds": 0.5, "batch_size": 2, **options})


def test_quiet_parts_are_drawn_again(tmp_path):
    """Nine tenths of a recording are quiet; chance alone would hit the rest once in ten."""
    quiet = tone(18, amplitude=QUIET * 0.5)
    write(tmp_path / "a" / "a.wav", np.concatenate([quiet[: 9 * RATE], tone(2), quiet[9 * RATE :]]), subtype="FLOAT")
    crops = Crops(prepare([str(tmp_path / "a")], tmp_path / "cache"), 0.1, 200)
    loud = (crops.batch(0).abs().amax(2) > 0.1).float().mean()
    assert float(loud) == pytest.approx(1 - 0.9**8, abs=0.1)


# Augmentation


@pytest.fixture
def random():
    return np.random.default_rng(0)


def noise_at(rms, samples=RATE, seed=1):
    return (np.random.default_rng(seed).standard_normal(samples) * rms).astype(np.float32)


OFF = {f"{name}_probability": 0.0 for name in ("equalizer", "noise", "speed", "polarity")}


def test_gain_lies_in_its_range_and_fills_it(random):
    audio = noise_at(0.02)
    augment = Augmentation(**OFF, gain_db=(-10.0, 5.0))
    gains = [20 * np.log10(level(augment(audio, RATE, random)) / level(audio)) for _ in range(200)]
    assert min(gains) >= -10.001 and max(gains) <= 5.001
    assert min(gains) < -9 and max(gains) > 4 and abs(np.mean(gains) + 2.5) < 1


def test_nothing_to_change_changes_nothing(random):
    audio = noise_at(0.1)
    augment = Augmentation(**OFF, gain_db=(0.0, 0.0))
    assert augment.draw_speed(random) == 1
    np.testing.assert_array_equal(augment(audio, RATE, random), audio)


def test_loud_crops_are_scaled_down_not_clipped(random):
    audio = noise_at(0.2)
    louder = Augmentation(**OFF, gain_db=(20.0, 20.0))(audio, RATE, random)
    assert np.abs(louder).max() == pytest.approx(PEAK, abs=1e-6)
    np.testing.assert_allclose(louder / np.abs(louder).max(), audio / np.abs(audio).max(), atol=1e-6)
    for _ in range(50):
        changed = ALL(audio, RATE, random)
        assert np.abs(changed).max() <= PEAK + 1e-6 and changed.dtype == np.float32 and changed.shape == audio.shape


def test_polarity(random):
    audio = noise_at(0.1)
    augment = Augmentation(**{**OFF, "polarity_probability": 0.5}, gain_db=(0.0, 0.0))
    signs = [float(np.sign(np.dot(augment(audio, RATE, random), audio))) for _ in range(100)]
    assert set(signs) == {-1.0, 1.0} and abs(sum(signs)) < 40


def response_of(strength, random, samples=2**15):
    """The filter's magnitude response in dB, by an impulse in the middle."""
    impulse = np.zeros(samples, np.float32)
    impulse[samples // 2] = 1
    spectrum = np.abs(np.fft.rfft(equalize(impulse, RATE, strength, random)))
    return 20 * np.log10(spectrum), np.fft.rfftfreq(samples, 1 / RATE)


def test_an_equalizer_of_no_strength_is_no_equalizer(random):
    audio = noise_at(0.1)
    np.testing.assert_array_equal(equalize(audio, RATE, 0.0, random), audio)


def test_equalizer_is_smooth_within_its_strength_and_keeps_the_level(random):
    for _ in range(20):
        decibels, frequency = response_of(6.0, random)
        assert 1 < np.ptp(decibels) <= 12.1  # up and down by 6 dB, whatever the level is set to
        assert np.abs(np.diff(decibels)[frequency[1:] > 100]).max() < 0.4
        audio = noise_at(0.1)
        changed = equalize(audio, RATE, 6.0, random)
        assert level(changed) == pytest.approx(level(audio), rel=1e-4)
        assert np.abs(changed - audio).max() > 0.01


def test_equalizer_reaches_not_from_one_end_to_the_other(random):
    audio = np.zeros(RATE, np.float32)
    audio[:50] = noise_at(0.3, 50)
    for _ in range(10):
        changed = equalize(audio, RATE, 12.0, random)
        assert np.abs(changed[RATE // 2 :]).max() < 1e-4 * np.abs(changed).max()


def test_silence_stays_silence(random):
    np.testing.assert_array_equal(ALL(np.zeros(1000, np.float32), RATE, random), np.zeros(1000))


@pytest.mark.parametrize("color", NOISE_COLORS)
def test_noise_has_its_slope(color, random):
    noise = draw_noise(10 * RATE, RATE, color, random)
    assert level(noise) == pytest.approx(1, rel=1e-4)
    power = (np.abs(np.fft.rfft(noise)) ** 2)[1:]
    octaves = [power[10 * 2**k : 10 * 2 ** (k + 1)].mean() for k in range(6, 12)]  # 64 Hz to 4 kHz
    slope = np.polyfit(range(6), 10 * np.log10(octaves), 1)[0]
    assert slope == pytest.approx(-10 * np.log10(2) * NOISE_COLORS[color], abs=0.3)


def test_noise_has_its_ratio(random):
    audio = tone(1).astype(np.float32)
    options = {**OFF, "noise_probability": 1.0}
    augment = Augmentation(**options, gain_db=(-6.0, -6.0), noise_snr_db=(10.0, 20.0))
    for _ in range(20):
        clean = audio * np.float32(10 ** (-6 / 20))
        ratio = 20 * np.log10(level(clean) / level(augment(audio, RATE, random) - clean))
        assert 9.99 <= ratio <= 20.01


@pytest.mark.parametrize("speed", [0.9, 1.07])
def test_speed_moves_pitch_and_length(speed):
    audio = change_speed(tone(2, 300).astype(np.float32), speed)
    assert len(audio) == pytest.approx(2 * RATE / speed, abs=2)
    spectrum = np.abs(np.fft.rfft(audio * np.hanning(len(audio))))
    assert np.argmax(spectrum) * RATE / len(audio) == pytest.approx(300 * speed, abs=0.6)


def test_crops_of_another_speed_are_whole_and_clean_to_the_edge(tmp_path, monkeypatch):
    write(tmp_path / "a" / "a.wav", tone(5, 300), subtype="FLOAT")
    write(tmp_path / "b" / "b.wav", tone(0.4, 300), subtype="FLOAT")
    options = {**OFF, "speed_probability": 1.0}
    fast = Augmentation(**options, gain_db=(0.0, 0.0), speed=(1.25, 1.25))
    crops = Crops(prepare([str(tmp_path / "a")], tmp_path / "c"), 0.5, 8, augmentation=fast).batch(0)[:, 0].numpy()
    time = 2 * np.pi * 375 * np.arange(RATE // 2) / RATE
    basis = np.stack([np.sin(time), np.cos(time)], axis=1)
    for crop in crops:
        fitted = basis @ np.linalg.lstsq(basis, crop, rcond=None)[0]
        assert np.abs(crop - fitted).max() < 2e-3 and level(crop) == pytest.approx(0.5 / np.sqrt(2), rel=0.01)
    short = Crops(prepare([str(tmp_path / "b")], tmp_path / "d"), 0.5, 2, augmentation=fast).batch(0)[:, 0].numpy()
    assert (short[:, round(0.4 / 1.25 * RATE) :] == 0).all() and (level(short[0]) > 0.2)


@pytest.mark.parametrize(
    "options",
    [
        {"gain_db": (3.0, -3.0)},
        {"gain_db": (0.0, float("nan"))},
        {"speed": (0.1, 1.0)},
        {"noise_probability": 1.5},
        {"equalizer_db": -1.0},
        {"noise_colors": ("blue",)},
        {"noise_colors": ()},
        {"noise_snr_db": (1.0,)},
    ],
)
def test_augmentation_is_checked(options):
    with pytest.raises(ValueError, match=rf"augmentation\.{next(iter(options))}"):
        Augmentation(**options)


def test_defaults_of_the_augmentation_change_every_crop_a_little(cache):
    plain, changed = Crops(cache, 0.5, 8), Crops(cache, 0.5, 8, augmentation=Augmentation())
    assert not torch.equal(plain.batch(0), changed.batch(0))
    assert changes.PEAK < 1 and changed.batch(0).abs().max() <= PEAK + 1e-6


def test_reading_a_cache_needs_no_permission_to_write(tmp_path):
    folder = write_clips(tmp_path / "clips", 2)
    cache = prepare([str(folder)], tmp_path / "cache")
    (tmp_path / "cache" / ".lock").unlink()
    prepare([str(folder)], tmp_path / "cache")
    assert not os.path.exists(tmp_path / "cache" / ".lock") and len(cache) == 2
