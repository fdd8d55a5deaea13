"""Pictures: what they show of known signals."""

import numpy as np
import pytest
from support.speech import RATE, make_speech

from mimi_hf.evaluation.evaluate import evaluate
from mimi_hf.evaluation.picture import compute_spectrogram, draw_spectrograms, plot_quality, plot_spectrograms


def test_the_spectrogram_of_a_sine():
    pytest.importorskip("matplotlib")
    sine = np.sin(2 * np.pi * 3000 * np.arange(RATE) / RATE)
    power = compute_spectrogram(sine, RATE)
    middle = power[:, power.shape[1] // 2]
    assert middle.argmax() / (len(middle) - 1) * RATE / 2 == pytest.approx(3000, abs=15)
    assert middle.max() == pytest.approx(0, abs=0.2)
    assert compute_spectrogram(sine / 10, RATE).max() == pytest.approx(power.max() - 20, abs=1e-3)
    assert power.shape[1] == 101  # steps of 10 ms
    with pytest.raises(ValueError, match=r"shape \(2, 5\)"):
        compute_spectrogram(np.zeros((2, 5)), RATE)


def test_spectrograms_without_matplotlib_show_the_same():
    sine = np.sin(2 * np.pi * 2000 * np.arange(RATE) / RATE)
    pixels = draw_spectrograms([sine, np.zeros(RATE)], RATE)
    assert (pixels.dtype, pixels.shape[1:]) == (np.uint8, (202, 3))
    height = (len(pixels) - 4) // 2
    bright = pixels[:, 100].astype(int).sum(axis=1)
    assert bright[:height].argmax() == pytest.approx(height * 6 / 8, abs=3)  # 0 Hz is at the bottom, 8 kHz at the top
    assert (bright[height : height + 4] == 3 * 255).all() and (bright[height + 4 :] < 20).all()


def test_pictures_are_drawn_without_pyplot(codec, recordings):
    pytest.importorskip("matplotlib")
    speech = make_speech(0.5)
    two = plot_spectrograms({"original": speech, "8 codebooks": speech}, RATE)
    assert [axes.get_title(loc="left") for axes in two.axes[:2]] == ["original", "8 codebooks"]
    assert two.axes[0].get_ylim() == (0, 8)
    report = evaluate(codec.model, recordings, (1, 4), ["si_sdr", "mel_distance"], jobs=1)
    panels = plot_quality(report)
    assert [axes.get_title(loc="left").split(",")[0] for axes in panels.axes] == ["SI-SDR", "mel distance"]
    for axes, name in zip(panels.axes, ("si_sdr", "mel_distance"), strict=True):
        drawn = axes.lines[0].get_xydata()
        expected = [(level.bits_per_second / 1000, level.metrics[name].mean) for level in report.levels]
        assert np.allclose(drawn, expected)
