"""Random changes of a crop: speed, equalizer, gain, noise and polarity. Letters for shapes: N samples."""

import functools
import math
from dataclasses import dataclass

import numpy as np
import soxr

from mimi_hf.utils.option_checks import check_option

# The power of the noise falls with the frequency to this power.
NOISE_COLORS = {"white": 0.0, "pink": 1.0, "brown": 2.0}
# No sample of a crop exceeds this: a crop that would is scaled down as a whole.
PEAK = 0.99
# Samples that the resampling filter needs on each side, if they are there.
MARGIN = 256
# The equalizer's gains are drawn at frequencies an octave apart, from the lowest one on.
_LOWEST_BAND = 60.0
# The equalizer's response lasts about one period of its lowest band, to both sides.
_RESPONSE_SECONDS = 0.05
# Colored noise is flat below this frequency.
_LOWEST_NOISE = 20.0


@dataclass(frozen=True)
class Augmentation:
    """Random changes of each crop. The model gets the changed crop, and must reproduce it.

    gain_db: lowest and highest gain, in dB, drawn for every crop. The gain is lower where a crop would exceed full
        scale.
    equalizer_probability: share of crops (0 to 1) that are filtered with a random, smooth frequency response.
    equalizer_db: the most that the response goes up or down, in dB. The level stays.
    noise_probability: share of crops to which noise is added.
    noise_snr_db: lowest and highest signal-to-noise ratio, in dB.
    noise_colors: colors of noise to draw from: white, pink and brown.
    speed_probability: share of crops that are played slower or faster; their pitch changes, too.
    speed: slowest and fastest speed; 1 is the original.
    polarity_probability: share of crops whose sign is flipped.
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

    def __post_init__(self) -> None:
        for name in ("gain_db", "noise_snr_db", "speed"):
            value = getattr(self, name)
            fits = len(value) == 2 and all(map(math.isfinite, value)) and value[0] <= value[1]
            check_option(fits, f"augmentation.{name}", value, "two numbers, the lower one first")
        check_option(0.5 <= self.speed[0] <= self.speed[1] <= 2, "augmentation.speed", self.speed, "between 0.5 and 2")
        for name in ("equalizer_probability", "noise_probability", "speed_probability", "polarity_probability"):
            share = getattr(self, name)
            check_option(0 <= share <= 1, f"augmentation.{name}", share, "a share from 0 (off) to 1")
        check_option(0 <= self.equalizer_db <= 40, "augmentation.equalizer_db", self.equalizer_db, "from 0 to 40 dB")
        fits = self.noise_colors and not set(self.noise_colors) - set(NOISE_COLORS)
        rule = f"some of {', '.join(NOISE_COLORS)}; for no noise at all, set noise_probability to 0"
        check_option(fits, "augmentation.noise_colors", self.noise_colors, rule)

    def draw_speed(self, random: np.random.Generator) -> float:
        """Draw the speed of a crop; 1 is the original. Apply it with [`change_speed`] before all other changes."""
        return float(random.uniform(*self.speed)) if random.random() < self.speed_probability else 1.0

    def __call__(self, audio: np.ndarray, sampling_rate: float, random: np.random.Generator) -> np.ndarray:
        """Apply all changes but the speed.

        Args:
            audio: np.ndarray, shape = (N,), float32.
            sampling_rate: samples per second.
            random: where the changes are drawn from.

        Returns:
            np.ndarray, shape = (N,), float32, never above [`PEAK`].
        """
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
    """Return the root mean square of samples, shape = (N,); 0 where there are none."""
    return math.sqrt(float(np.dot(audio, audio)) / len(audio)) if len(audio) else 0.0


def limit(audio: np.ndarray) -> np.ndarray:
    """Scale audio down where a sample exceeds [`PEAK`]."""
    peak = float(np.abs(audio).max(initial=0.0))
    return audio * np.float32(PEAK / peak) if peak > PEAK else audio


def change_speed(audio: np.ndarray, speed: float) -> np.ndarray:
    """Play audio faster (above 1) or slower: (N,) -> (N / speed,), rounded. Pitch and formants move alike."""
    return audio if speed == 1 else soxr.resample(audio, speed, 1.0, quality="HQ")


def equalize(audio: np.ndarray, sampling_rate: float, strength: float, random: np.random.Generator) -> np.ndarray:
    """Filter audio with a random frequency response, and restore the level.

    Gains are uniform in ±`strength` dB at frequencies an octave apart. In between they follow a raised cosine of the
    logarithm of the frequency. The filter has zero phase.

    Args:
        audio: np.ndarray, shape = (N,), float32.
        sampling_rate: samples per second.
        strength: dB; 0 changes nothing.
        random: where the gains are drawn from.

    Returns:
        np.ndarray, shape = (N,), float32.
    """
    padding = int(_RESPONSE_SECONDS * sampling_rate)  # the response wraps into this
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
    """Draw Gaussian noise of a color: shape = (samples,), float32, of root mean square 1."""
    noise = random.standard_normal(samples, np.float32)
    if NOISE_COLORS[color]:
        noise = np.fft.irfft(np.fft.rfft(noise) * _slope(samples, sampling_rate, color), samples)
    return (noise / max(level(noise), 1e-12)).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _slope(samples: int, sampling_rate: float, color: str) -> np.ndarray:
    """Return the magnitude of each bin of the spectrum of a noise."""
    frequency = np.fft.rfftfreq(samples, 1 / sampling_rate).clip(_LOWEST_NOISE)
    return (frequency ** (-NOISE_COLORS[color] / 2)).astype(np.float32)


@functools.lru_cache(maxsize=8)
def _band_shares(size: int, sampling_rate: float) -> tuple[np.ndarray, np.ndarray, int]:
    """Return the band on the left of each bin, the share (0 to 1) of the band on its right, and the number of bands."""
    bands = max(2, math.ceil(math.log2(sampling_rate / 2 / _LOWEST_BAND)) + 1)
    frequency = np.fft.rfftfreq(size, 1 / sampling_rate).clip(_LOWEST_BAND)
    position = np.log2(frequency / _LOWEST_BAND).clip(0, bands - 1)
    left = np.minimum(position.astype(int), bands - 2)
    return left, (0.5 - 0.5 * np.cos(np.pi * (position - left))).astype(np.float32), bands
