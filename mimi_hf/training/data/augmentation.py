"""Random changes of a crop: speed, equalizer, gain, noise and polarity. Letters for shapes: N samples."""

import functools
import math
from dataclasses import dataclass

import numpy as np
import soxr

# Power falls with this exponent of the frequency.
NOISE_COLORS = {"white": 0.0, "pink": 1.0, "brown": 2.0}
# No crop is louder: one that would be is scaled down as a whole.
PEAK = 0.99
# Samples to each side of what is resampled, if they are there: what its filter needs.
MARGIN = 256
# The equalizer's gains are drawn at frequencies an octave apart, from the lowest one on.
_LOWEST_BAND = 60.0
# Its response lasts about as long as a period of its lowest band, to both sides; and pink noise ends here.
_RESPONSE_SECONDS = 0.05
_LOWEST_NOISE = 20.0


@dataclass(frozen=True)
class Augmentation:
    """What is changed at random in each crop. The model hears the result, and is to reproduce it.

    gain_db: lowest and highest gain, in dB; drawn for every crop. Where a crop would pass full scale, it is less.
    equalizer_probability: share of crops (0 to 1) with a random, smooth frequency response.
    equalizer_db: how far it goes up or down at most, in dB; it leaves the level as it is.
    noise_probability: share of crops with noise.
    noise_snr_db: lowest and highest signal-to-noise ratio, in dB.
    noise_colors: which of white, pink and brown noise is drawn from.
    speed_probability: share of crops that are played slower or faster, with their pitch.
    speed: slowest and fastest, where 1 leaves it as it is.
    polarity_probability: share of crops that are turned upside down.
    """

    gain_db: tuple[float, float] = (-12.0, 3.0)
    equalizer_probability: float = 0.3
    equalizer_db: float = 6.0
    noise_probability: float = 0.1
    noise_snr_db: tuple[float, float] = (15.0, 40.0)
    noise_colors: tuple[str, ...] = tuple(NOISE_COLORS)
    speed_probability: float = 0.3
    speed: tuple[float, float] = (0.9, 1.1)
    polarity_probability: float = 0.5

    def __post_init__(self):
        for name in ("gain_db", "noise_snr_db", "speed"):
            value = getattr(self, name)
            if len(value) != 2 or not all(map(math.isfinite, value)) or value[0] > value[1]:
                raise ValueError(f"augmentation.{name}={value!r} must be two numbers, the lower one first.")
        if not 0.5 <= self.speed[0] <= self.speed[1] <= 2:
            raise ValueError(f"augmentation.speed={self.speed!r} must lie between 0.5 and 2.")
        for name in ("equalizer", "noise", "speed", "polarity"):
            value = getattr(self, f"{name}_probability")
            if not 0 <= value <= 1:
                raise ValueError(f"augmentation.{name}_probability={value!r} must be a share from 0 (off) to 1.")
        if not 0 <= self.equalizer_db <= 40:
            raise ValueError(f"augmentation.equalizer_db={self.equalizer_db!r} must lie between 0 and 40 dB.")
        if not self.noise_colors or set(self.noise_colors) - set(NOISE_COLORS):
            raise ValueError(
                f"augmentation.noise_colors={self.noise_colors!r} must name some of {', '.join(NOISE_COLORS)}; for no"
                " noise at all, set noise_probability to 0."
            )

    def draw_speed(self, random: np.random.Generator) -> float:
        """At which speed a crop is played; 1 as it is. Goes with [`change_speed`], before all else."""
        return float(random.uniform(*self.speed)) if random.random() < self.speed_probability else 1.0

    def __call__(self, audio: np.ndarray, sampling_rate: float, random: np.random.Generator) -> np.ndarray:
        """All but the speed. audio (N,) float32 -> (N,) float32, never above [`PEAK`]."""
        if random.random() < self.equalizer_probability:
            audio = equalize(audio, sampling_rate, self.equalizer_db, random)
        gain = 10 ** (random.uniform(*self.gain_db) / 20)
        if random.random() < self.polarity_probability:
            gain = -gain
        audio = audio * np.float32(gain)
        if random.random() < self.noise_probability:
            color = self.noise_colors[random.integers(len(self.noise_colors))]
            noise = draw_noise(len(audio), sampling_rate, color, random)
            audio = audio + noise * np.float32(level(audio) * 10 ** (-random.uniform(*self.noise_snr_db) / 20))
        return limit(audio)


def level(audio: np.ndarray) -> float:
    """Root mean square of samples (N,); 0 for none."""
    return math.sqrt(float(np.dot(audio, audio)) / len(audio)) if len(audio) else 0.0


def limit(audio: np.ndarray) -> np.ndarray:
    """Scaled down, where a sample is above [`PEAK`]."""
    peak = float(np.abs(audio).max(initial=0.0))
    return audio * np.float32(PEAK / peak) if peak > PEAK else audio


def change_speed(audio: np.ndarray, speed: float) -> np.ndarray:
    """Play faster (above 1) or slower: (N,) -> (N / speed,), rounded, with pitch and formants moved alike."""
    return audio if speed == 1 else soxr.resample(audio, speed, 1.0, quality="HQ")


def equalize(audio: np.ndarray, sampling_rate: float, strength: float, random: np.random.Generator) -> np.ndarray:
    """Filter with a random frequency response, and restore the level.

    Gains are uniform in ±`strength` dB at frequencies an octave apart, and in between raised cosines of the frequency's
    logarithm. The filter has zero phase.

    Args:
        audio: (N,) float32.
        strength: dB; 0 changes nothing.
    """
    padding = int(_RESPONSE_SECONDS * sampling_rate)  # what the response wraps into
    size = 1 << (len(audio) + padding - 1).bit_length()
    left, share, bands = _band_shares(size, sampling_rate)
    gains = random.uniform(-strength, strength, bands).astype(np.float32)
    if not strength:
        return audio
    decibels = gains[left] + (gains[left + 1] - gains[left]) * share
    response = np.exp(decibels * np.float32(math.log(10) / 20))
    filtered = np.fft.irfft(np.fft.rfft(audio, size) * response, size)[: len(audio)].astype(np.float32)
    after = level(filtered)
    return filtered * np.float32(level(audio) / after) if after else filtered


def draw_noise(samples: int, sampling_rate: float, color: str, random: np.random.Generator) -> np.ndarray:
    """Gaussian noise (N,) of a color, float32, of root mean square 1. Pink and brown are flat below 20 Hz."""
    noise = random.standard_normal(samples, np.float32)
    if NOISE_COLORS[color]:
        noise = np.fft.irfft(np.fft.rfft(noise) * _slope(samples, sampling_rate, color), samples)
    return (noise / max(level(noise), 1e-12)).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _slope(samples: int, sampling_rate: float, color: str) -> np.ndarray:
    """The magnitude of each bin of the spectrum of a noise."""
    frequency = np.fft.rfftfreq(samples, 1 / sampling_rate).clip(_LOWEST_NOISE)
    return (frequency ** (-NOISE_COLORS[color] / 2)).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _band_shares(size: int, sampling_rate: float) -> tuple[np.ndarray, np.ndarray, int]:
    """For each bin: the band on its left, and the share (0 to 1) that the one on its right has; the number of bands."""
    bands = max(2, math.ceil(math.log2(sampling_rate / 2 / _LOWEST_BAND)) + 1)
    frequency = np.fft.rfftfreq(size, 1 / sampling_rate).clip(_LOWEST_BAND)
    position = np.log2(frequency / _LOWEST_BAND).clip(0, bands - 1)
    left = np.minimum(position.astype(int), bands - 2)
    return left, (0.5 - 0.5 * np.cos(np.pi * (position - left))).astype(np.float32), bands
