"""Pictures: spectrograms, and quality against bitrate. Those with axes need matplotlib, none a display."""

import importlib.util
import math
from pathlib import Path

import numpy as np

from mimi_hf.utils.arrays import to_numpy
from mimi_hf.utils.png import enlarge, heat_colors

from .report import EvaluationReport

# Hertz and decibels that are shown: what carries speech, and what is heard beside its loudest parts.
TOP, RANGE = 8000.0, 80.0
# Seconds of a window and of a step: pitch of the deepest voices shows as harmonics, syllables as edges.
_WINDOW, _STEP = 0.04, 0.01
_QUIETEST = 1e-9
_COLOURS = "magma"
_WIDTH, _HEIGHT = 10.0, 2.2  # inches of a row


def check_installed():
    """Raise ImportError, with what to install, where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("Pictures need matplotlib, which is not installed: pip install 'mimi_hf[eval]'.")


def power_spectrogram(audio, sampling_rate: int) -> np.ndarray:
    """The power of audio over time and frequency, in dB, under Hann windows of about 40 ms that step by 10 ms.

    Args:
        audio: array or Tensor, shape = (N,) or (1, N).
        sampling_rate: in Hz.

    Returns:
        array, shape = (bins, steps), float32, from 0 Hz up to half the sampling rate; a full-scale sine reaches 0.

    Raises:
        ValueError: for audio of another shape, or none.
    """
    audio = np.asarray(to_numpy(audio), np.float64)
    audio = audio[0] if audio.ndim == 2 and len(audio) == 1 else audio
    if audio.ndim != 1 or not len(audio):
        raise ValueError(f"Audio to picture has shape {audio.shape}, but (samples,) is needed. Pick or mix a channel.")
    window = 2 ** max(4, round(math.log2(_WINDOW * sampling_rate)))
    step = max(1, round(_STEP * sampling_rate))
    padded = np.pad(audio, (window // 2, window // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::step]
    hann = np.hanning(window + 1)[:-1]
    magnitudes = np.abs(np.fft.rfft(frames * hann)) / (hann.sum() / 2)
    return (20 * np.log10(np.maximum(magnitudes, _QUIETEST))).T.astype(np.float32)


def spectrogram(audio, sampling_rate: int, top: float = TOP):
    """Draw spectrograms, one below the other, in the same colours.

    Args:
        audio: array or Tensor, shape = (N,) or (1, N), or several of them by their titles.
        sampling_rate: in Hz.
        top: the highest frequency to show, in Hz.

    Returns:
        matplotlib.figure.Figure, for [`save`].

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: for audio of another shape, or none.

    Example:

        >>> figure = spectrogram({"original": speech, "8 codebooks": decoded}, 24_000)  # doctest: +SKIP
        >>> save(figure, "spectrogram.png")  # doctest: +SKIP
    """
    parts = audio if isinstance(audio, dict) else {"": audio}
    powers = {title: power_spectrogram(samples, sampling_rate) for title, samples in parts.items()}
    loudest = max(power.max() for power in powers.values())
    figure, rows = _make_figure(len(powers), 1, _WIDTH, _HEIGHT)
    for axes, (title, power) in zip(rows, powers.items(), strict=True):
        span = (0, power.shape[1] * _STEP, 0, sampling_rate / 2000)
        image = axes.imshow(
            power, cmap=_COLOURS, vmin=loudest - RANGE, vmax=loudest, extent=span, origin="lower", aspect="auto"
        )
        axes.set_ylim(0, min(top, sampling_rate / 2) / 1000)
        axes.set_ylabel("kHz")
        axes.set_title(title, fontsize="medium", loc="left")
    rows[-1].set_xlabel("seconds")
    figure.colorbar(image, ax=rows, label="dB", fraction=0.03, pad=0.01)
    return figure


def draw_spectrograms(parts: list[np.ndarray], sampling_rate: int, top: float = TOP) -> np.ndarray:
    """[`spectrogram`] without axes and titles, and without matplotlib: pixels, a column for each 5 ms.

    Args:
        parts: arrays, shape = (N,) each.
        sampling_rate: in Hz.
        top: the highest frequency to show, in Hz.

    Returns:
        array, shape = (height, width, 3), uint8, the first part at the top.
    """
    powers = [power_spectrogram(audio, sampling_rate) for audio in parts]
    loudest = max(power.max() for power in powers)
    pictures = []
    for power in powers:
        power = power[: max(1, round(len(power) * min(1.0, 2 * top / sampling_rate)))]
        pictures.append(heat_colors(np.clip(1 + (power[::-1] - loudest) / RANGE, 0, 1)))
        pictures.append(np.full((4, power.shape[1], 3), 255, np.uint8))
    return enlarge(np.concatenate(pictures[:-1]), 1, 2)


def quality(report: EvaluationReport):
    """Draw quality against bitrate, a panel for each metric: the mean of the files, and half of them about it.

    Returns:
        matplotlib.figure.Figure.

    Raises:
        ImportError: matplotlib is not installed.
    """
    columns = min(3, len(report.metrics))
    figure, panels = _make_figure(-(-len(report.metrics) // columns), columns, 3.6, 2.8)
    for axes, metric in zip(panels, report.metrics, strict=False):
        levels = [level for level in report.levels if level.metrics[metric.name].count]
        rates = [level.bits_per_second / 1000 for level in levels]
        summaries = [level.metrics[metric.name] for level in levels]
        axes.fill_between(rates, [one.low for one in summaries], [one.high for one in summaries], alpha=0.2, lw=0)
        axes.plot(rates, [one.mean for one in summaries], marker="o")
        original = report.originals.get(metric.name)
        if original is not None and original.count:
            axes.axhline(original.mean, color="0.5", ls="--", label="originals")
            axes.legend(fontsize="small", frameon=False)
        _scale_by_rate(axes, [level.bits_per_second / 1000 for level in report.levels])
        better = "higher is better" if metric.higher_is_better else "lower is better"
        axes.set_title(f"{metric.label}, {better}", fontsize="medium", loc="left")
        axes.set_ylabel(metric.unit)
        axes.grid(alpha=0.3)
    for axes in panels[len(report.metrics) :]:
        axes.remove()
    return figure


def _scale_by_rate(axes, rates: list[float]):
    """A logarithmic axis, marked where there are figures."""
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(rates, [f"{rate:.3g}" for rate in rates])
    axes.set_xlim(rates[0] / 1.2, rates[-1] * 1.2)
    axes.set_xlabel("kbps")


def save(figure, path: Path | str):
    """Write a picture; PNG where the name does not say otherwise."""
    path = Path(path)
    figure.savefig(path, dpi=120, format=path.suffix.lower().lstrip(".") or "png")


def _make_figure(rows: int, columns: int, width: float, height: float):
    """An empty figure and its panels, without pyplot, whose state belongs to the caller."""
    check_installed()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)
