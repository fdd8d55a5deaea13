"""Metrics: against formulas, and on audio that gets worse."""

import dataclasses
import math

import numpy as np
import pytest
from support.speech import RATE, make_speech, noise

from mimi_hf.evaluation.metrics import METRICS, Metric, Score, choose_metrics, score


@pytest.mark.parametrize("name", METRICS)
def test_metrics_fall_as_noise_rises(name):
    if METRICS[name].missing:
        pytest.skip(f"{METRICS[name].missing} are not installed")
    speech = make_speech(4.6)  # DNSMOS repeats it to 9 s
    gains = (0.0, 0.003, 0.05) if METRICS[name].needs_reference else (0.003, 0.05, 0.2)
    levels = [speech + gain * noise(len(speech)) for gain in gains]
    values = [score(speech, audio, RATE, [name])[name].value for audio in levels]
    if not METRICS[name].higher_is_better:
        values = [-value for value in values]
    assert values[0] > values[1] > values[2], values
    # What each of them can reach.
    tops = {"stoi": 1.0, "pesq": 4.6, "visqol": 4.1, "mel_distance": 0.0, "si_sdr": 100.0}
    assert values[0] >= tops.get(name, 1.0) - 1e-6


def test_si_sdr_is_the_ratio_of_orthogonal_parts():
    target, other = noise(9000, 2).astype(np.float64), noise(9000, 3).astype(np.float64)
    target -= target.mean()
    other -= other.mean()
    other -= (other @ target) / (target @ target) * target
    estimate = target + 0.1 * np.linalg.norm(target) / np.linalg.norm(other) * other
    for gain, offset in ((1.0, 0.0), (-3.0, 0.0), (0.01, 0.5)):  # neither scale nor offset counts
        found = score(target, gain * estimate + offset, RATE, ["si_sdr"])["si_sdr"]
        assert found.value == pytest.approx(20, abs=1e-2)


def test_mel_distance_of_a_gain_is_that_gain():
    audio = 0.3 * noise(RATE)  # far above the floor
    assert score(audio, audio / 2, RATE, ["mel_distance"])["mel_distance"].value == pytest.approx(6.02, abs=0.1)


def test_what_cannot_be_measured_has_a_reason():
    speech = make_speech(1.2)
    cases = {
        "original is silent": (0 * speech, speech),
        "reconstruction is silent": (speech, 1e-6 * speech),
        "too short": (speech[:500], speech[:500]),
        "no audio": (speech[:0], speech[:0]),
        "NaN": (speech, np.full_like(speech, np.nan)),
    }
    installed = choose_metrics()
    for reason, (reference, estimate) in cases.items():
        found = score(reference, estimate, RATE)
        assert list(found) == [metric.name for metric in installed]
        for name, one in found.items():
            assert (one.value is None) == (one.reason is not None)
            if one.value is not None:
                assert math.isfinite(one.value)
            compares = METRICS[name].needs_reference and METRICS[name].needs_sound
            if compares and not (name == "si_sdr" and reason == "too short"):
                assert reason in one.reason, (name, one)


def test_a_package_that_fails_on_one_recording_is_a_reason():
    def fail(*_):
        raise ValueError(b"No utterances\ndetected")

    metric = Metric("mine", "Mine", fail, "nowhere")
    assert score(noise(10), noise(10), RATE, [metric]) == {"mine": Score(reason="ValueError: No utterances detected")}
    metric = Metric("mine", "Mine", lambda *_: math.inf, "nowhere")
    assert score(noise(10), noise(10), RATE, [metric])["mine"].reason == "the result is inf"


def test_metrics_get_the_audio_at_their_rate():
    seen = {}

    def measure(reference, estimate, rate):
        seen[rate] = len(reference), len(estimate)
        return 0.0

    metrics = [Metric(str(rate), "", measure, "", sampling_rate=rate) for rate in (8_000, 16_000, None)]
    score(noise(2400), noise(2400), RATE, metrics)
    assert seen == {8_000: (800, 800), 16_000: (1600, 1600), RATE: (2400, 2400)}


def test_metrics_that_are_missing_or_unknown():
    metric = dataclasses.replace(METRICS["si_sdr"], modules=("no_such_module",), label="Mine")
    with pytest.raises(ImportError, match=r"Mine needs no_such_module, .* pip install 'mimi_hf\[eval\]'"):
        choose_metrics([metric])
    with pytest.raises(ValueError, match=r"no metric 'loudness'. There are: stoi, pesq"):
        choose_metrics(["loudness"])
    with pytest.raises(ValueError, match="No metric is named"):
        choose_metrics([])


def test_audio_of_different_lengths_is_refused():
    with pytest.raises(ValueError, match="has 10 samples and the reconstruction 11"):
        score(noise(10), noise(11), RATE, ["si_sdr"])
    with pytest.raises(ValueError, match=r"shape \(1, 10\)"):
        score(noise(10)[None], noise(10)[None], RATE, ["si_sdr"])
