"""Metrics of speech quality: what is left of a recording after the codec.

Each takes audio of shape (N,) and gives one number, or the reason why there is none: packages fail in many ways on
silence and on a few samples, and some give numbers that mean nothing there.
"""

import contextlib
import functools
import importlib.util
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from mimi_hf.audio import resample
from mimi_hf.utils.arrays import to_numpy

# Root mean square of what counts as silence, -70 dBFS: below it ViSQOL calls everything good, and PESQ nothing.
SILENCE = 10 ** (-70 / 20)
# Decibels beyond which SI-SDR is cut off: samples of 16 bits cannot hold more.
_MOST_DECIBELS = 100.0


@dataclass(frozen=True)
class Score:
    """What a metric found: a value, or the reason why there is none."""

    value: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Metric:
    """A way to measure quality.

    name, label: in code and files; for people.
    measure: (reference, estimate, sampling_rate) -> float, arrays of shape (N,) and float32.
    source: the paper.
    modules: what it imports that is not part of this package.
    unit: of its values; empty where they have none.
    sampling_rate: that it is defined at, in Hz; None where it takes the audio's own.
    shortest: seconds of audio that it needs.
    higher_is_better: the direction.
    needs_reference: whether it compares. One that does not is measured on originals, too.
    needs_sound: whether it means nothing where the audio is silent.
    """

    name: str
    label: str
    measure: Callable[[np.ndarray | None, np.ndarray, int], float]
    source: str
    modules: tuple[str, ...] = ()
    unit: str = ""
    sampling_rate: int | None = None
    shortest: float = 0.0
    higher_is_better: bool = True
    needs_reference: bool = True
    needs_sound: bool = True

    @property
    def missing(self) -> list[str]:
        """The modules that are not installed."""
        return [name for name in self.modules if importlib.util.find_spec(name) is None]

    def check_installed(self):
        """Raise ImportError, with what to install, where something is missing."""
        if self.missing:
            raise ImportError(
                f"{self.label} needs {', '.join(self.missing)}, which is not installed:"
                " pip install 'mimi_hf[eval]'. Or leave this metric out."
            )

    def score(self, reference: np.ndarray | None, estimate: np.ndarray, sampling_rate: float) -> Score:
        """Measure audio that is at the metric's rate already; [`score`] takes any other, too.

        Raises:
            ImportError: its package is not installed.
        """
        self.check_installed()
        audio = {"original": reference, "reconstruction": estimate} if self.needs_reference else {"audio": estimate}
        reason = self._find_obstacle(audio, sampling_rate)
        if reason is not None:
            return Score(reason=reason)
        try:
            value = float(self.measure(reference, estimate, sampling_rate))
        except (MemoryError, ImportError):
            raise
        except Exception as error:  # whatever a package does not like about one recording
            return Score(reason=_describe(error))
        return Score(value) if math.isfinite(value) else Score(reason=f"the result is {value}")

    def _find_obstacle(self, audio: dict[str, np.ndarray], sampling_rate: float) -> str | None:
        seconds = len(next(iter(audio.values()))) / sampling_rate
        if not seconds:
            return "there is no audio"
        if seconds < self.shortest:
            return f"{seconds:.3g} s of audio are too short: {self.shortest:g} s are needed"
        for name, samples in audio.items():
            if not np.isfinite(samples).all():
                return f"the {name} holds NaN or infinity"
            if self.needs_sound and _root_mean_square(samples) < SILENCE:
                return f"the {name} is silent"
        return None


def score(
    reference: np.ndarray | None,
    estimate: np.ndarray,
    sampling_rate: int,
    metrics: Iterable[str | Metric] | None = None,
) -> dict[str, Score]:
    """Measure one recording.

    Args:
        reference: array or Tensor, shape = (N,): the original. Without one, only metrics that need none are measured.
        estimate: array or Tensor, shape = (N,): what the codec made of it.
        sampling_rate: of both, in Hz.
        metrics: names or [`Metric`]s; all that are installed by default.

    Returns:
        dict[str, Score]: by the names of the metrics.

    Raises:
        ValueError: for audio of other or of different shapes, or an unknown metric.
        ImportError: for one whose package is not installed.

    Example:

        >>> speech = 0.1 * np.random.default_rng(0).standard_normal(24_000)
        >>> score(speech, 0.5 * speech, 24_000, ["si_sdr"])
        {'si_sdr': Score(value=100.0, reason=None)}
    """
    chosen = [metric for metric in choose_metrics(metrics) if reference is not None or not metric.needs_reference]
    signals = [None if audio is None else np.asarray(to_numpy(audio), np.float32) for audio in (reference, estimate)]
    _check_shapes(*signals)
    at_rate = {None: signals, sampling_rate: signals}
    scores = {}
    for metric in chosen:
        rate = metric.sampling_rate
        if rate not in at_rate:
            at_rate[rate] = [None if audio is None else _resampled(audio, sampling_rate, rate) for audio in signals]
        scores[metric.name] = metric.score(*at_rate[rate], rate or sampling_rate)
    return scores


def choose_metrics(names: Iterable[str | Metric] | None = None) -> list[Metric]:
    """The metrics of these names; all that are installed by default.

    Raises:
        ValueError: for an unknown name, or none at all.
        ImportError: for one whose package is not installed.
    """
    if names is None:
        return [metric for metric in METRICS.values() if not metric.missing]
    chosen = []
    for name in [names] if isinstance(names, str | Metric) else names:
        metric = name if isinstance(name, Metric) else METRICS.get(name)
        if metric is None:
            raise ValueError(f"There is no metric {name!r}. There are: {', '.join(METRICS)}.")
        metric.check_installed()
        if metric not in chosen:
            chosen.append(metric)
    if not chosen:
        raise ValueError(f"No metric is named. There are: {', '.join(METRICS)}.")
    return chosen


def _check_shapes(reference: np.ndarray | None, estimate: np.ndarray):
    for audio in (reference, estimate):
        if audio is not None and audio.ndim != 1:
            raise ValueError(f"Audio to measure has shape {audio.shape}, but (samples,) is needed. Mix the channels.")
    if reference is not None and reference.shape != estimate.shape:
        raise ValueError(
            f"The original has {len(reference)} samples and the reconstruction {len(estimate)}. Cut the longer one."
        )


def _resampled(audio: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    return resample(audio, from_rate, to_rate) if len(audio) and np.isfinite(audio).all() else audio


def _root_mean_square(audio: np.ndarray) -> float:
    return math.sqrt(np.mean(np.square(audio, dtype=np.float64)))


def _describe(error: Exception) -> str:
    text = error.args[0] if error.args else ""
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
    return f"{type(error).__name__}: {' '.join(text.split())}"


# The metrics


def _si_sdr(reference: np.ndarray, estimate: np.ndarray, _) -> float:
    """10 log10(|s|² / |e - s|²), where s = (e·t / t·t) t is the part of the estimate e that goes along the target t."""
    target, estimate = (audio.astype(np.float64) - audio.mean(dtype=np.float64) for audio in (reference, estimate))
    with np.errstate(all="ignore"):  # nothing but the target, or nothing of it
        signal = (estimate @ target) / (target @ target) * target
        decibels = 10 * np.log10((signal @ signal) / np.sum(np.square(estimate - signal)))
    return float(np.clip(decibels, -_MOST_DECIBELS, _MOST_DECIBELS))


def _mel_distance(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    import torch

    from mimi_hf.codec.losses import mel_loss

    with torch.no_grad():
        nepers = mel_loss(*(torch.from_numpy(audio)[None, None] for audio in (reference, estimate)), sampling_rate)
    return float(nepers) * 20 / math.log(10)


def _stoi(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    from pystoi import stoi

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)  # it gives 1e-5 then
        return stoi(reference, estimate, sampling_rate, extended=False)


def _pesq(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    from pesq import pesq

    return pesq(sampling_rate, reference, estimate, "wb")


def _visqol(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    signals = (audio.astype(np.float64) for audio in (reference, estimate))
    return _visqol_model().measure_from_arrays(*signals, sampling_rate).moslqo


@functools.cache
def _visqol_model():
    from visqol import VisqolApi

    model = VisqolApi()
    with _standard_error_held():
        # The mapping that the original takes. Left to itself, the package takes another one, whose values are higher
        # by one or two, where ai-edge-litert is not installed.
        model.create(mode="speech", use_lattice_model=True)
    return model


@contextlib.contextmanager
def _standard_error_held():
    """LiteRT's greeting goes there, past Python, and no setting stops it."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _dnsmos(_, estimate: np.ndarray, sampling_rate: int) -> float:
    from speechmos import dnsmos

    return dnsmos.run(estimate.clip(-1, 1), sampling_rate)["ovrl_mos"]


_ALL = (
    Metric("stoi", "STOI", _stoi, "Taal et al., doi:10.1109/TASL.2011.2114881", ("pystoi",), "", 16_000, 0.4),
    Metric("pesq", "PESQ-WB", _pesq, "ITU-T P.862.2 (11/2007)", ("pesq",), "MOS-LQO", 16_000, 0.25),
    Metric(
        "visqol",
        "ViSQOL",
        _visqol,
        "Chinen et al., arXiv:2004.09584, speech mode",
        ("visqol", "ai_edge_litert"),
        "MOS-LQO",
        16_000,
        0.5,
    ),
    Metric(
        "dnsmos",
        "DNSMOS",
        _dnsmos,
        "Reddy et al., arXiv:2110.01763, overall",
        ("speechmos", "librosa", "onnxruntime", "requests"),
        "MOS",
        16_000,
        0.5,
        needs_reference=False,
    ),
    Metric(
        "mel_distance",
        "mel distance",
        _mel_distance,
        "log-mel magnitudes at five resolutions, as in Kumar et al., arXiv:2306.06546, section 3.4; the mean of them",
        unit="dB",
        higher_is_better=False,
        needs_sound=False,
    ),
    Metric("si_sdr", "SI-SDR", _si_sdr, "Le Roux et al., arXiv:1811.02508, section 2", unit="dB"),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
