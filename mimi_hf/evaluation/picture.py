"""Pictures: spectrograms, and quality against bitrate. Plots need matplotlib, but no display."""

import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mimi_hf.utils.arrays import to_numpy
from mimi_hf.utils.png import enlarge, heat_colors

from .report import EvaluationReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

# Spectrograms show frequencies up to TOP, in Hz, and powers down to RANGE dB below the loudest: enough for speech.
TOP, RANGE = 8000.0, 80.0
# Seconds of a window and of a hop: harmonics of the deepest voices and the edges of syllables are both visible.
_WINDOW, _HOP = 0.04, 0.01
_QUIETEST = 1e-9
_COLOURS = "magma"
_WIDTH, _HEIGHT = 10.0, 2.2  # of a spectrogram, in inches


def check_installed() -> None:
    """Check that matplotlib is installed.

    Raises:
        ImportError: it is not; the message says how to install it.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise ImportError("Pictures need matplotlib, which is not installed: pip install 'mimi_hf[eval]'.")


def compute_spectrogram(audio: "np.ndarray | Tensor", sampling_rate: int) -> np.ndarray:
    """Compute a power spectrogram in dB, with Hann windows of about 40 ms and a hop of 10 ms.

    Args:
        audio: array or Tensor, shape = (N,) or (1, N).
        sampling_rate: in Hz.

    Returns:
        array, shape = (bins, hops), float32: from 0 Hz up to half the sampling rate. A full-scale sine has 0 dB.

    Raises:
        ValueError: the audio has another shape, or no samples.
    """
    samples = np.asarray(to_numpy(audio), np.float64)
    samples = samples[0] if samples.ndim == 2 and len(samples) == 1 else samples
    if samples.ndim != 1 or not len(samples):
        raise ValueError(
            f"Audio to picture has shape {samples.shape}, but (samples,) is needed. Pick or mix a channel."
        )
    window = 2 ** max(4, round(math.log2(_WINDOW * sampling_rate)))
    hop = max(1, round(_HOP * sampling_rate))
    padded = np.pad(samples, (window // 2, window // 2))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
    hann = np.hanning(window + 1)[:-1]
    magnitudes = np.abs(np.fft.rfft(frames * hann)) / (hann.sum() / 2)
    return (20 * np.log10(np.maximum(magnitudes, _QUIETEST))).T.astype(np.float32)


def plot_spectrograms(
    audio: "np.ndarray | Tensor | Mapping[str, np.ndarray | Tensor]", sampling_rate: int, top: float = TOP
) -> "Figure":
    """Plot spectrograms, one below the other, with the same colours.

    Args:
        audio: array or Tensor, shape = (N,) or (1, N); or several of them by their titles.
        sampling_rate: in Hz.
        top: the highest frequency to show, in Hz.

    Returns:
        A figure of matplotlib, for [`save`].

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: audio has another shape, or no samples.

    Example:
        >>> figure = plot_spectrograms({"original": speech, "8 codebooks": decoded}, 24_000)  # doctest: +SKIP
        >>> save(figure, "spectrogram.png")  # doctest: +SKIP
    """
    titled = audio if isinstance(audio, Mapping) else {"": audio}
    powers = {title: compute_spectrogram(samples, sampling_rate) for title, samples in titled.items()}
    loudest = max(power.max() for power in powers.values())
    figure, rows = _make_figure(len(powers), 1, _WIDTH, _HEIGHT)
    for axes, (title, power) in zip(rows, powers.items(), strict=True):
        span = (0, power.shape[1] * _HOP, 0, sampling_rate / 2000)
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
    """Draw spectrograms, one below the other, without matplotlib, axes and titles.

    Args:
        parts: arrays, shape = (N,).
        sampling_rate: in Hz.
        top: the highest frequency to show, in Hz.

    Returns:
        Pixels: array, shape = (height, width, 3), uint8, two columns per hop of 10 ms, the first array at the top.
    """
    powers = [compute_spectrogram(audio, sampling_rate) for audio in parts]
    loudest = max(power.max() for power in powers)
    pictures = []
    for power in powers:
        power = power[: max(1, round(len(power) * min(1.0, 2 * top / sampling_rate)))]
        pictures.append(heat_colors(np.clip(1 + (power[::-1] - loudest) / RANGE, 0, 1)))
        pictures.append(np.full((4, power.shape[1], 3), 255, np.uint8))
    return enlarge(np.concatenate(pictures[:-1]), 1, 2)


def plot_quality(report: EvaluationReport) -> "Figure":
    """Plot quality against bitrate, a panel per metric: the mean of the files, and the range between the quartiles.

    Args:
        report: of an evaluation.

    Returns:
        A figure of matplotlib, for [`save`].

    Raises:
        ImportError: matplotlib is not installed.
    """
    columns = min(3, len(report.metrics))
    figure, panels = _make_figure(-(-len(report.metrics) // columns), columns, 3.6, 2.8)
    ticks = [level.bits_per_second / 1000 for level in report.levels]
    for axes, metric in zip(panels, report.metrics, strict=False):
        levels = [level for level in report.levels if level.metrics[metric.name].count]
        rates = [level.bits_per_second / 1000 for level in levels]
        summaries = [level.metrics[metric.name] for level in levels]
        values = np.array([(one.mean, one.low, one.high) for one in summaries], np.float64).reshape(-1, 3)
        axes.fill_between(rates, values[:, 1], values[:, 2], alpha=0.2, lw=0)
        axes.plot(rates, values[:, 0], marker="o")
        original = report.originals.get(metric.name)
        if original is not None and original.mean is not None:
            axes.axhline(original.mean, color="0.5", ls="--", label="originals")
            axes.legend(fontsize="small", frameon=False)
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        axes.set_xlim(ticks[0] / 1.2, ticks[-1] * 1.2)
        axes.set_xlabel("kbps")
        better = "higher is better" if metric.higher_is_better else "lower is better"
        axes.set_title(f"{metric.label}, {better}", fontsize="medium", loc="left")
        axes.set_ylabel(metric.unit)
        axes.grid(alpha=0.3)
    for axes in panels[len(report.metrics) :]:
        axes.remove()
    return figure


def save(figure: "Figure", path: Path | str) -> None:
    """Write a figure in the format of the path's extension, PNG if it has none."""
    path = Path(path)
    figure.savefig(path, dpi=120, format=path.suffix.lower().lstrip(".") or "png")


def _make_figure(rows: int, columns: int, width: float, height: float) -> "tuple[Figure, list[Axes]]":
    """Make a figure with empty panels. Pyplot is not used, as its global state belongs to the caller."""
    check_installed()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(columns * width, rows * height + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)
