"""What a codec is trained for: distances between audio and its reconstruction, each a function of its own.

Audio: Tensor, shape = (B, C, N), about -1 to 1. All is computed in single precision, under autocast, too.

STFTs are scaled by their window, so that white noise of RMS r has magnitudes of about r at every resolution; mel bands
are means of magnitudes. Logarithms are natural, and of `floor + magnitude`: what lies far below the floor, the level of
white noise at -60 dBFS, counts as silence, and gradients stay finite there.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .ragged import sample_mask

# Samples of each STFT's window: the longest resolves harmonics, at 24 kHz, to 4 kHz, the shortest pulses of the voice.
WINDOWS = (2048, 1024, 512, 128, 64)
# Mel bands for each window: as many as make the narrowest a little narrower than a bin of the STFT.
MELS = (320, 160, 80, 20, 10)
FLOOR = 1e-3
RECONSTRUCTION_WEIGHTS = {"mel": 1.0, "spectral_convergence": 0.4, "log_magnitude": 0.3, "waveform": 0.03}
# Added to squared magnitudes: the square root's gradient is finite at 0.
_TINY = 1e-10

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def in_single_precision(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Have a function of tensors compute in float32, whatever their type and whether autocast is on."""

    def single(item: Any) -> Any:
        return item.float() if isinstance(item, Tensor) and item.is_floating_point() else item

    compute: Any = function

    @functools.wraps(function)
    def wrapped(*args: Parameters.args, **options: Parameters.kwargs) -> Result:
        devices = {item.device.type for item in (*args, *options.values()) if isinstance(item, Tensor)}
        with torch.autocast(devices.pop() if devices else "cpu", enabled=False):
            return compute(*map(single, args), **{name: single(item) for name, item in options.items()})

    return wrapped


# Reconstruction


@in_single_precision
def mel_loss(
    target: Tensor,
    estimate: Tensor,
    sampling_rate: int,
    windows: Sequence[int] = WINDOWS,
    mels: Sequence[int] = MELS,
    floor: float = FLOOR,
) -> Tensor:
    """Mean absolute difference of log-mel magnitudes, in nepers, the mean of several resolutions.

    Kumar et al. (arXiv:2306.06546, section 3.4) take the sum instead.

    Args:
        target, estimate: Tensors, shape = (B, C, N).
        sampling_rate: samples per second.
        windows: samples of each STFT's Hann window; a multiple of 4. They hop by a quarter.
        mels: bands for each window, on Slaney's scale from 0 to half the sampling rate.
        floor: see the head of this module.

    Returns:
        Tensor, shape = ().

    Raises:
        ValueError: for audio of different shapes, or windows and bands that are invalid.
    """
    return _mel_distance(*_all_magnitudes(target, estimate, windows), sampling_rate, windows, mels, floor)


@in_single_precision
def stft_loss(
    target: Tensor, estimate: Tensor, windows: Sequence[int] = WINDOWS, floor: float = FLOOR
) -> tuple[Tensor, Tensor]:
    """Spectral convergence and log-magnitude distance, each the mean of several resolutions.

    They are those of Parallel WaveGAN (Yamamoto et al., arXiv:1910.11480, section 2.2, equations 5 to 7).

    Args:
        target, estimate, windows, floor: as for [`mel_loss`].

    Returns:
        Two Tensors, shape = (): the norm of the difference of magnitudes by the target's, of the whole batch, so that
        a silent row does not outweigh the others; and the mean absolute difference of log magnitudes, in nepers.
    """
    targets, estimates = _all_magnitudes(target, estimate, windows)
    return _spectral_convergence(targets, estimates, floor), _log_magnitude(targets, estimates, floor)


@in_single_precision
def waveform_loss(target: Tensor, estimate: Tensor) -> Tensor:
    """Mean absolute difference of samples (Défossez et al., EnCodec, arXiv:2210.13438, section 3.4).

    target, estimate: Tensors, shape = (B, C, N) -> Tensor, shape = ().
    """
    _check_audio(target, estimate)
    return F.l1_loss(estimate, target)


@in_single_precision
def reconstruction_losses(
    target: Tensor,
    estimate: Tensor,
    sampling_rate: int,
    windows: Sequence[int] = WINDOWS,
    mels: Sequence[int] = MELS,
    floor: float = FLOOR,
) -> dict[str, Tensor]:
    """[`mel_loss`], both parts of [`stft_loss`] and [`waveform_loss`] in one, for much less than their sum.

    Args:
        target, estimate, sampling_rate, windows, mels, floor: as for [`mel_loss`].

    Returns:
        dict[str, Tensor]: `mel`, `spectral_convergence`, `log_magnitude` and `waveform`, before any weight.
    """
    targets, estimates = _all_magnitudes(target, estimate, windows)
    return {
        "mel": _mel_distance(targets, estimates, sampling_rate, windows, mels, floor),
        "spectral_convergence": _spectral_convergence(targets, estimates, floor),
        "log_magnitude": _log_magnitude(targets, estimates, floor),
        "waveform": waveform_loss(target, estimate),
    }


def reconstruction_loss(
    target: Tensor, estimate: Tensor, sampling_rate: int, weights: dict[str, float] | None = None, **options: Any
) -> Tensor:
    """The reconstruction preset: the weighted sum of [`reconstruction_losses`].

    Args:
        target, estimate, sampling_rate: as for [`mel_loss`].
        weights: of each of them, those of RECONSTRUCTION_WEIGHTS by default; what is not named is left out.
        options: `windows`, `mels` and `floor`.

    Returns:
        Tensor, shape = ().

    Raises:
        ValueError: for a weight of what is none of them, or as [`mel_loss`].
    """
    weights = RECONSTRUCTION_WEIGHTS if weights is None else weights
    unknown = sorted(set(weights) - set(RECONSTRUCTION_WEIGHTS))
    if unknown:
        raise ValueError(f"weights names {unknown[0]!r}, which is none of {', '.join(RECONSTRUCTION_WEIGHTS)}.")
    parts = reconstruction_losses(target, estimate, sampling_rate, **options)
    return sum((weight * parts[name] for name, weight in weights.items()), parts["mel"].new_zeros(()))


# With a discriminator


@in_single_precision
def _hinge(logits: Tensor) -> Tensor:
    return F.relu(1 - logits).mean()


def hinge_discriminator_loss(real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor]) -> Tensor:
    """The discriminator's loss: the mean over scales of max(0, 1 - D(real)) + max(0, 1 + D(fake)).

    It is that of EnCodec (arXiv:2210.13438, section 3.4).

    real_logits, fake_logits: Tensors of any shape, one for each scale -> Tensor, shape = ().
    """
    _check_scales(real_logits, fake_logits)
    parts = [_hinge(real) + _hinge(-fake) for real, fake in zip(real_logits, fake_logits, strict=True)]
    return torch.stack(parts).mean()


def hinge_generator_loss(fake_logits: Sequence[Tensor]) -> Tensor:
    """What the codec minimises: mean over scales of max(0, 1 - D(fake)) (EnCodec, arXiv:2210.13438, section 3.4).

    fake_logits: Tensors of any shape, one for each scale -> Tensor, shape = ().
    """
    _check_scales(fake_logits, fake_logits)
    return torch.stack([_hinge(fake) for fake in fake_logits]).mean()


def feature_matching_loss(
    real_features: Sequence[Sequence[Tensor]], fake_features: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Mean absolute difference of a discriminator's features, the mean over scales and layers.

    Each layer's difference is divided by the mean magnitude of the real features (EnCodec, arXiv:2210.13438, section
    3.4, equation 2).

    Args:
        real_features, fake_features: for each scale the features of each layer, Tensors of equal shapes. No gradient
            goes through the real ones.

    Returns:
        Tensor, shape = ().
    """
    _check_scales(real_features, fake_features)
    layers = [
        _relative_distance(real.detach(), fake)
        for reals, fakes in zip(real_features, fake_features, strict=True)
        for real, fake in zip(reals, fakes, strict=True)
    ]
    return torch.stack(layers).mean()


@in_single_precision
def _relative_distance(real: Tensor, fake: Tensor) -> Tensor:
    return F.l1_loss(fake, real) / real.abs().mean().clamp(min=_TINY)


# Spectra


def stft(audio: Tensor, window: int) -> Tensor:
    """Short-time Fourier transform under a Hann window that hops by a quarter of itself, with silence around the audio.

    Args:
        audio: Tensor, shape = (..., N), float32, N at least 1.
        window: samples, a multiple of 4.

    Returns:
        Tensor, shape = (..., 1 + N // (window // 4), window // 2 + 1), complex; of white noise of RMS 1, the mean
        square magnitude is 1.
    """
    return torch.fft.rfft(_frames(audio, window))


def _frames(audio: Tensor, window: int) -> Tensor:
    """Windowed pieces: Tensor, shape = (..., N) -> Tensor, shape = (..., frames, window)."""
    padded = F.pad(audio, (window // 2, window // 2))
    return padded.unfold(-1, window, window // 4) * _hann(window, audio.device)


def mel_filters(sampling_rate: int, window: int, mels: int, device: str | torch.device = "cpu") -> Tensor:
    """Triangles on Slaney's mel scale (linear to 1 kHz, logarithmic above), from 0 Hz to half the sampling rate.

    The weights of each add up to one, so that a band is the weighted mean of its bins' magnitudes. No triangle is
    narrower than a bin, so that none is empty.

    Returns:
        Tensor, shape = (window // 2 + 1, mels).
    """
    return _mel_filters(sampling_rate, window, mels, torch.device(device))


# Made outside of inference mode, whose tensors no later backward pass may use.
@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _hann(window: int, device: torch.device) -> Tensor:
    hann = torch.hann_window(window, dtype=torch.float64)
    return (hann / hann.square().sum().sqrt()).float().to(device)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _mel_filters(sampling_rate: int, window: int, mels: int, device: torch.device) -> Tensor:
    top = _to_mel(torch.tensor(sampling_rate / 2, dtype=torch.float64))
    edges = _to_hertz(torch.linspace(0, float(top), mels + 2, dtype=torch.float64))
    spacing = sampling_rate / window
    centres = edges[1:-1]
    low = torch.minimum(edges[:-2], centres - spacing)
    high = torch.maximum(edges[2:], centres + spacing)
    bins = torch.arange(window // 2 + 1, dtype=torch.float64)[:, None] * spacing
    triangles = torch.minimum((bins - low) / (centres - low), (high - bins) / (high - centres)).clamp(min=0)
    return (triangles / triangles.sum(dim=0)).float().to(device)


# Slaney's scale ("Auditory Toolbox", Interval Research technical report 1998-010): 200/3 Hz a mel up to 1 kHz, then
# 27 mels for each factor of 6.4.
_LINEAR, _BREAK, _STEP = 200 / 3, 1000.0, math.log(6.4) / 27


def _to_mel(hertz: Tensor) -> Tensor:
    above = _BREAK / _LINEAR + torch.log(hertz.clamp(min=_BREAK) / _BREAK) / _STEP
    return torch.where(hertz < _BREAK, hertz / _LINEAR, above)


def _to_hertz(mel: Tensor) -> Tensor:
    knee = _BREAK / _LINEAR
    return torch.where(mel < knee, mel * _LINEAR, _BREAK * torch.exp((mel - knee).clamp(min=0) * _STEP))


class _Magnitudes(torch.autograd.Function):
    """The absolute values of `rfft`: Tensor, shape = (..., window) -> Tensor, shape = (..., window // 2 + 1).

    Its backward pass is one inverse transform, of real signals; autograd's own are complex and of twice the length.
    """

    @staticmethod
    def forward(ctx: Any, frames: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(frames)
        magnitudes = (spectrum.real.square() + spectrum.imag.square() + _TINY).sqrt()
        ctx.save_for_backward(spectrum, magnitudes)
        return magnitudes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        spectrum, magnitudes = ctx.saved_tensors
        slope = gradient / magnitudes
        slope[..., 1:-1] *= 0.5  # the inverse transform counts these bins twice, as their mirror images are left out
        return torch.fft.irfft(spectrum * slope, 2 * (spectrum.shape[-1] - 1), norm="forward")


def _magnitudes(audio: Tensor, window: int) -> Tensor:
    """audio: Tensor, shape = (B, C, N) -> Tensor, shape = (B * C, frames, bins)."""
    return _Magnitudes.apply(_frames(audio.flatten(0, 1), window))


def _all_magnitudes(target: Tensor, estimate: Tensor, windows: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    _check_audio(target, estimate)
    for window in windows:
        if not isinstance(window, int) or window < 4 or window % 4:
            raise ValueError(f"windows={tuple(windows)} holds {window!r}; each must be a multiple of 4, at least 4.")
    return [_magnitudes(target, window) for window in windows], [_magnitudes(estimate, window) for window in windows]


def _mel_distance(
    targets: Sequence[Tensor],
    estimates: Sequence[Tensor],
    sampling_rate: int,
    windows: Sequence[int],
    mels: Sequence[int],
    floor: float,
) -> Tensor:
    if len(mels) != len(windows):
        raise ValueError(f"mels={tuple(mels)} must name a number of bands for each of the {len(windows)} windows.")
    distances = []
    for target, estimate, window, bands in zip(targets, estimates, windows, mels, strict=True):
        filters = mel_filters(sampling_rate, window, bands, target.device)
        distances.append(F.l1_loss(_log(estimate @ filters, floor), _log(target @ filters, floor)))
    return torch.stack(distances).mean()


def _spectral_convergence(targets: Sequence[Tensor], estimates: Sequence[Tensor], floor: float) -> Tensor:
    parts = []
    for target, estimate in zip(targets, estimates, strict=True):
        # The floor stands in for a batch of silence.
        level = target.norm().clamp(min=floor * math.sqrt(target.numel()))
        parts.append((estimate - target).norm() / level)
    return torch.stack(parts).mean()


def _log_magnitude(targets: Sequence[Tensor], estimates: Sequence[Tensor], floor: float) -> Tensor:
    parts = [
        F.l1_loss(_log(estimate, floor), _log(target, floor))
        for target, estimate in zip(targets, estimates, strict=True)
    ]
    return torch.stack(parts).mean()


def _log(magnitudes: Tensor, floor: float) -> Tensor:
    return (magnitudes + floor).log()


def padded_reconstruction_loss(
    audio: Tensor, padding_mask: Tensor | None, estimate: Tensor, sampling_rate: int
) -> Tensor:
    """[`reconstruction_loss`], where both are silent in the padding: nothing is learnt from it."""
    if padding_mask is not None:
        padding = ~sample_mask(padding_mask, len(audio), audio.shape[2])[:, None]
        audio, estimate = audio.masked_fill(padding, 0), estimate.masked_fill(padding, 0)
    return reconstruction_loss(audio, estimate, sampling_rate)


def _check_audio(target: Tensor, estimate: Tensor) -> None:
    if target.shape != estimate.shape or target.dim() != 3 or 0 in target.shape:
        raise ValueError(
            f"The target has shape {tuple(target.shape)} and the estimate {tuple(estimate.shape)}, but losses need"
            " equal shapes (batch, channels, samples), none of them 0. Cut the longer one."
        )


def _check_scales(real: Sequence, fake: Sequence) -> None:
    if not len(real) or len(real) != len(fake):
        raise ValueError(
            f"There are {len(real)} scales of real audio and {len(fake)} of fake audio. Give the tuples that one"
            " discriminator returned for each."
        )
