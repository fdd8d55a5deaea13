"""Metrics of speech quality: how close a reconstruction is to the original, or how good it sounds alone.

Each takes audio of shape (N,) and gives one number, or the reason why there is none: packages fail in many ways on
silence and on very short audio, and some return meaningless numbers there.
"""

import contextlib
import functools
import importlib.util
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mimi_hf.audio import resample
from mimi_hf.utils.arrays import to_numpy

if TYPE_CHECKING:
    from torch import Tensor
    from visqol import VisqolApi

# Audio with a root mean square below -70 dBFS is silent: there ViSQOL rates everything as good, and PESQ nothing.
SILENCE = 10 ** (-70 / 20)
# SI-SDR is clipped here: 16-bit samples cannot hold more.
_MOST_DECIBELS = 100.0


@dataclass(frozen=True)
class Score:
    """The value of a metric, or the reason why there is none."""

    value: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Metric:
    """A way to measure quality.

    name: in code and files.
    label: the name for people.
    measure: (reference, estimate, sampling_rate) -> float, arrays of shape (N,), float32. The reference may be None
        only if the metric needs none.
    source: the paper or standard that defines it.
    modules: the optional packages that it imports.
    unit: of its values; empty if they have none.
    sampling_rate: the rate that it is defined at, in Hz; None if it takes any.
    shortest: seconds of audio that it needs at least.
    higher_is_better: whether higher values are better.
    needs_reference: whether it compares with the original. If not, originals are measured as well.
    needs_sound: whether it is undefined for silent audio.
    """

    name: str
    label: str
    measure: Callable[[Any, np.ndarray, int], float]
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

    def check_installed(self) -> None:
        """Check that the packages of this metric are installed.

        Raises:
            ImportError: one is not; the message says how to install it.
        """
        if self.missing:
            raise ImportError(
                f"{self.label} needs {', '.join(self.missing)}, which is not installed:"
                " pip install 'mimi_hf[eval]'. Or leave this metric out."
            )

    def score(self, reference: np.ndarray | None, estimate: np.ndarray, sampling_rate: int) -> Score:
        """Measure audio that already has the metric's sampling rate. The function [`score`] takes any rate.

        Args:
            reference: array, shape = (N,), float32: the original.
            estimate: array, shape = (N,), float32: the reconstruction.
            sampling_rate: of both, in Hz.

        Raises:
            ImportError: a package of this metric is not installed.
        """
        self.check_installed()
        reason = self._find_obstacle(reference if self.needs_reference else None, estimate, sampling_rate)
        if reason is not None:
            return Score(reason=reason)
        try:
            value = float(self.measure(reference, estimate, sampling_rate))
        except (MemoryError, ImportError):
            raise
        except Exception as error:  # packages raise many kinds of errors for a single bad recording
            text = error.args[0] if error.args else ""
            text = text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text)
            return Score(reason=f"{type(error).__name__}: {' '.join(text.split())}")
        return Score(value) if math.isfinite(value) else Score(reason=f"the result is {value}")

    def _find_obstacle(self, reference: np.ndarray | None, estimate: np.ndarray, sampling_rate: int) -> str | None:
        """Why this audio cannot be measured; None if it can."""
        audio = {"audio": estimate} if reference is None else {"original": reference, "reconstruction": estimate}
        seconds = len(estimate) / sampling_rate
        if not seconds:
            return "there is no audio"
        if seconds < self.shortest:
            return f"{seconds:.3g} s of audio are too short: {self.shortest:g} s are needed"
        for name, samples in audio.items():
            if not np.isfinite(samples).all():
                return f"the {name} holds NaN or infinity"
            if self.needs_sound and math.sqrt(np.mean(np.square(samples, dtype=np.float64))) < SILENCE:
                return f"the {name} is silent"
        return None


def score(
    reference: "np.ndarray | Tensor | None",
    estimate: "np.ndarray | Tensor",
    sampling_rate: int,
    metrics: Iterable[str | Metric] | None = None,
) -> dict[str, Score]:
    """Measure one recording.

    Args:
        reference: array or Tensor, shape = (N,): the original. If None, only metrics that need none are measured.
        estimate: array or Tensor, shape = (N,): the reconstruction.
        sampling_rate: of both, in Hz.
        metrics: names or [`Metric`]s; all that are installed by default.

    Returns:
        The scores, by the name of the metric.

    Raises:
        ValueError: the audio is not of shape (N,), both differ in length, or a metric is unknown.
        ImportError: the package of a metric is not installed.

    Example:
        >>> speech = 0.1 * np.random.default_rng(0).standard_normal(24_000)
        >>> score(speech, 0.5 * speech, 24_000, ["si_sdr"])
        {'si_sdr': Score(value=100.0, reason=None)}
    """
    chosen = [metric for metric in choose_metrics(metrics) if reference is not None or not metric.needs_reference]
    original = None if reference is None else np.asarray(to_numpy(reference), np.float32)
    decoded = np.asarray(to_numpy(estimate), np.float32)
    for audio in (original, decoded):
        if audio is not None and audio.ndim != 1:
            raise ValueError(f"Audio to measure has shape {audio.shape}, but (samples,) is needed. Mix the channels.")
    if original is not None and original.shape != decoded.shape:
        raise ValueError(
            f"The original has {len(original)} samples and the reconstruction {len(decoded)}. Cut the longer one."
        )

    scores, at_rate = {}, {sampling_rate: (original, decoded)}
    for metric in chosen:
        rate = metric.sampling_rate or sampling_rate
        if rate not in at_rate:
            resampled = None if original is None else _resample(original, sampling_rate, rate)
            at_rate[rate] = (resampled, _resample(decoded, sampling_rate, rate))
        scores[metric.name] = metric.score(*at_rate[rate], rate)
    return scores


def choose_metrics(names: Iterable[str | Metric] | None = None) -> list[Metric]:
    """Find metrics by name.

    Args:
        names: names or [`Metric`]s, or a single one; all that are installed by default.

    Returns:
        The metrics in the order of their names, each once.

    Raises:
        ValueError: a name is unknown, or none is given.
        ImportError: the package of a metric is not installed.
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


def _resample(audio: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Audio that cannot be resampled stays as it is: each metric says what is wrong with it."""
    return resample(audio, from_rate, to_rate) if len(audio) and np.isfinite(audio).all() else audio


# The metrics


def _si_sdr(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    """10 log10(|s|² / |e - s|²), where s = (e·t / t·t) t is the projection of the estimate e on the target t."""
    target, estimate = (audio.astype(np.float64) - audio.mean(dtype=np.float64) for audio in (reference, estimate))
    with np.errstate(all="ignore"):  # e is a multiple of t, or orthogonal to it
        signal = (estimate @ target) / (target @ target) * target
        decibels = 10 * np.log10((signal @ signal) / np.sum(np.square(estimate - signal)))
    return float(np.clip(decibels, -_MOST_DECIBELS, _MOST_DECIBELS))


def _mel_distance(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    import torch

    from mimi_hf.codec.losses import mel_loss

    with torch.no_grad():
        nepers = mel_loss(
            torch.from_numpy(reference)[None, None], torch.from_numpy(estimate)[None, None], sampling_rate
        )
    return float(nepers) * 20 / math.log(10)


def _stoi(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    from pystoi import stoi

    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Not enough STFT frames", RuntimeWarning)  # with which it returns 1e-5
        return stoi(reference, estimate, sampling_rate, extended=False)


def _pesq(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    from pesq import pesq

    return pesq(sampling_rate, reference, estimate, "wb")


def _visqol(reference: np.ndarray, estimate: np.ndarray, sampling_rate: int) -> float:
    original, decoded = reference.astype(np.float64), estimate.astype(np.float64)
    return _visqol_model().measure_from_arrays(original, decoded, sampling_rate).moslqo


@functools.cache
def _visqol_model() -> "VisqolApi":
    from visqol import VisqolApi

    model = VisqolApi()
    with _standard_error_hidden():
        # The mapping of the original ViSQOL. By default, the package falls back to another one, whose values are higher
        # by one or two, if ai-edge-litert is not installed.
        model.create(mode="speech", use_lattice_model=True)
    return model


@contextlib.contextmanager
def _standard_error_hidden() -> Iterator[None]:
    """Hide the greeting that LiteRT writes to the file descriptor; no setting stops it."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _dnsmos(reference: np.ndarray | None, estimate: np.ndarray, sampling_rate: int) -> float:
    from speechmos import dnsmos

    found = dnsmos.run(estimate.clip(-1, 1), sampling_rate)
    assert isinstance(found, dict)  # of a single recording
    return found["ovrl_mos"]


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
