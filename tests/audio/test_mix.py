"""Resampling and mixing."""

import numpy as np
import pytest
import torch
from support.sounds import RATE, sine

from mimi_hf.audio import mix_channels, resample
from mimi_hf.audio.mix import check_rate


def peak_frequency(wave, rate):
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return np.argmax(spectrum) * rate / len(wave)


class TestResampling:
    @pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
    def test_a_sine_stays_the_same_sine(self, rate):
        resampled = resample(sine(1000, seconds=1, rate=rate), rate, RATE)
        assert resampled.shape == (1, RATE)
        assert resampled.dtype == np.float32
        assert peak_frequency(resampled[0], RATE) == pytest.approx(1000, abs=1)
        inner = slice(500, -500)  # the ends ring
        np.testing.assert_allclose(resampled[0, inner], sine(1000, seconds=1)[0, inner], atol=1e-3)

    def test_what_the_new_rate_cannot_hold_is_removed(self):
        assert np.abs(resample(sine(15_000, rate=48_000), 48_000, RATE)[0, 500:-500]).max() < 1e-3

    @pytest.mark.parametrize("shape", [(4800,), (2, 4800), (3, 2, 4800), (1, 0)])
    def test_the_last_axis_is_time_and_rows_do_not_touch(self, shape):
        audio = np.random.default_rng(0).normal(size=shape)
        resampled = resample(audio, 48_000, RATE)
        assert resampled.shape == (*shape[:-1], shape[-1] // 2)
        assert resampled.dtype == np.float64
        for index in np.ndindex(shape[:-1]):
            np.testing.assert_array_equal(resampled[index], resample(audio[index], 48_000, RATE))

    def test_equal_rates_are_no_work(self):
        audio = sine()
        assert resample(audio, RATE, float(RATE)) is audio

    def test_errors(self):
        for rate in (0, -16_000, float("nan"), float("inf"), 1e-9):
            with pytest.raises(ValueError, match=r"from_rate=.*positive"):
                resample(sine(), rate, RATE)
            with pytest.raises(ValueError, match=r"to_rate=.*positive"):
                resample(sine(), RATE, rate)
        for rate in ("16000", None, True, [16_000]):
            with pytest.raises(TypeError, match="must be a number"):
                resample(sine(), rate, RATE)
        with pytest.raises(TypeError, match="not int16"):
            resample(np.zeros(100, np.int16), 16_000, RATE)

    def test_rates_of_all_number_types(self):
        for rate in (16_000, 16_000.0, np.int32(16_000), np.float32(16_000), torch.tensor(16_000)):
            assert check_rate(rate) == 16_000
            assert type(check_rate(rate)) is int
        assert check_rate(22050.5) == 22050.5


class TestMixing:
    def test_mixing(self):
        audio = sine(channels=6)
        assert mix_channels(audio, 6) is audio
        np.testing.assert_array_equal(mix_channels(audio[:2], 1), [(audio[0] + audio[1]) / 2])
        np.testing.assert_allclose(mix_channels(audio, 1)[0], sum(audio) / 6, atol=1e-7)
        np.testing.assert_array_equal(mix_channels(audio[:1], 2), [audio[0], audio[0]])
        assert mix_channels(audio, 1).dtype == np.float32

    @pytest.mark.parametrize(("present", "wanted"), [(3, 2), (1, 3), (2, 0), (2, 4)])
    def test_what_has_no_one_way_is_refused(self, present, wanted):
        with pytest.raises(ValueError, match=f"{present} channels cannot be mixed to {wanted}"):
            mix_channels(sine(channels=present), wanted)
