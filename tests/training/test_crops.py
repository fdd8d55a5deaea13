"""Training data: which crops are drawn, and what augmentation does to them."""

import threading

import numpy as np
import pytest
import torch
from support.corpora import tone, write_audio, write_clips

from mimi_hf.training.data import augmentation as changes
from mimi_hf.training.data.augmentation import (
    NOISE_COLORS,
    PEAK,
    Augmentation,
    change_speed,
    draw_noise,
    equalize,
    level,
)
from mimi_hf.training.data.crops import QUIET, Crops
from mimi_hf.training.data.preparation import prepare

RATE = 24_000
ALL = Augmentation(
    gain_db=(-20.0, 10.0),
    equalizer_probability=1.0,
    noise_probability=0.7,
    speed_probability=0.7,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Recordings of 0.3 to 2.5 s from two sources."""
    folder = tmp_path_factory.mktemp("audio")
    write_clips(folder / "a", 12, (0.3, 2.5))
    write_clips(folder / "b", 3, (1.0, 2.0), seed=1)
    return prepare([str(folder / "a"), str(folder / "b")], folder / "cache")


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
    write_audio(tmp_path / "a" / "long.wav", long)
    write_audio(tmp_path / "a" / "short.wav", short)
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
    write_audio(tmp_path / "low" / "a.wav", tone(2, amplitude=0.1))
    write_audio(tmp_path / "high" / "a.wav", tone(6, amplitude=0.5))
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
    write_audio(
        tmp_path / "a" / "a.wav", np.concatenate([quiet[: 9 * RATE], tone(2), quiet[9 * RATE :]]), subtype="FLOAT"
    )
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
    write_audio(tmp_path / "a" / "a.wav", tone(5, 300), subtype="FLOAT")
    write_audio(tmp_path / "b" / "b.wav", tone(0.4, 300), subtype="FLOAT")
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
