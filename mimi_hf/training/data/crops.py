"""Batches for training: random crops, each a function of the seed, its step and its place in the batch alone."""

import numbers
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from mimi_hf.utils.ahead import iterate_ahead

from .audio_cache import AudioCache, prepare
from .augmentation import MARGIN, Augmentation, change_speed, level

__all__ = ["AudioCache", "Augmentation", "Crops", "prepare"]

# A crop below this root mean square, -50 dBFS, is drawn again, so many times at most.
QUIET = 10 ** (-50 / 20)
_DRAWS = 8
# Batches that are made before they are needed.
_AHEAD = 4


class Crops:
    """Random parts of the recordings of a cache.

    Crop j of step s depends on the seed, s and j alone. So a run that goes on sees what it would have seen, and `world`
    processes with batches of b crops see together what one with a batch of `world * b` sees: process `rank` has those
    from `rank * b` on.

    First a source is drawn, by `weights`; then a recording, in proportion to its length; then where the crop begins.
    Crops below -50 dBFS are drawn again, up to seven times. Recordings shorter than a crop are followed by silence.

    Args:
        cache: of [`prepare`].
        seconds: length of a crop.
        batch_size: crops of a batch, B.
        seed: not negative.
        augmentation: none by default.
        weights: from each source of the cache to how often it is drawn from, relative to the others; each in proportion
            to its hours by default.

    Attributes:
        samples: of a crop, N.
        short: how many recordings are shorter than a crop.

    Raises:
        ValueError, TypeError: for sizes that are not positive, and weights that do not fit the sources.
    """

    def __init__(
        self,
        cache: AudioCache,
        seconds: float,
        batch_size: int,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        weights: dict[str, float] | None = None,
    ):
        self.cache, self.batch_size, self.seed = cache, _whole("batch_size", batch_size, 1), _whole("seed", seed, 0)
        self.augmentation = augmentation
        self.samples = round(seconds * cache.sampling_rate)
        if self.samples < 1:
            raise ValueError(f"seconds={seconds!r} must be positive: the length of a crop.")
        lengths, sources = cache.index[:, 2], cache.index[:, 3]
        self.short = int((lengths < self.samples).sum())
        # For each source that has recordings: their numbers, and how many samples lie in those up to each of them.
        numbers = [np.flatnonzero(sources == source) for source in range(len(cache.sources))]
        self._recordings = [(one, np.cumsum(lengths[one])) for one in numbers]
        shares = [float(ends[-1]) if len(ends) else 0.0 for _, ends in self._recordings]
        if weights is not None:
            shares = _check_weights(weights, dict(zip(cache.sources, shares, strict=True)))
        ends = np.cumsum(shares)
        self._source_ends = ends / ends[-1]  # the last one is exactly 1

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Tensor:
        """The crops of a process in a step, from 0 on: Tensor, shape = (B, 1, N), float32 in [-1, 1]."""
        _whole("step", step, 0)
        if not 0 <= rank < world:
            raise ValueError(f"rank={rank} must be from 0 to below world={world}.")
        crops = [self.crop(step, rank * self.batch_size + j) for j in range(self.batch_size)]
        return torch.from_numpy(np.stack(crops)[:, None])

    def crop(self, step: int, number: int) -> np.ndarray:
        """One crop, by its place among those of all processes: (N,) float32."""
        seeds = np.random.SeedSequence(self.seed, spawn_key=(step, number))
        random = np.random.Generator(np.random.Philox(seeds))
        speed = 1.0 if self.augmentation is None else self.augmentation.draw_speed(random)
        audio = self._draw(random, speed)
        if self.augmentation is not None:
            audio = self.augmentation(audio, self.cache.sampling_rate, random)
        return audio

    def iterate(self, start_step: int, steps: int, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
        """The batches of `steps` steps, from `start_step` on. A thread makes them a little before they are asked for;
        what goes wrong there is raised here. `close()` ends it."""
        return iterate_ahead(
            (self.batch(step, rank, world) for step in range(start_step, start_step + steps)), ahead=_AHEAD
        )

    def _draw(self, random: np.random.Generator, speed: float) -> np.ndarray:
        """Part of a recording, at a speed, (N,): the first one drawn that is no silence, or the last one."""
        needed = round(self.samples * speed)
        for _ in range(_DRAWS):
            recordings, ends = self._recordings[int(np.searchsorted(self._source_ends, random.random(), "right"))]
            recording = int(recordings[np.searchsorted(ends, random.integers(ends[-1]), "right")])
            start = int(random.integers(max(0, int(self.cache.index[recording, 2]) - needed) + 1))
            audio = self._cut(recording, start, needed, speed)
            if level(audio) >= QUIET:
                break
        return np.pad(audio, (0, self.samples - len(audio)))

    def _cut(self, recording: int, start: int, needed: int, speed: float) -> np.ndarray:
        """A crop, or what there is of it: (n,), n <= N."""
        if speed == 1:
            return self.cache.read(recording, start, needed)
        before = min(start, MARGIN)
        audio = change_speed(self.cache.read(recording, start - before, before + needed + MARGIN), speed)
        first = round(before / speed)
        return audio[first : first + self.samples]


def _whole(name: str, value, least: int) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be a whole number.")
    if value < least:
        raise ValueError(f"{name}={value!r} must be at least {least}.")
    return int(value)


def _check_weights(weights: dict[str, float], samples: dict[str, float]) -> list[float]:
    """The weights in the order of the sources, from source to samples that it has."""
    if set(weights) != set(samples):
        raise ValueError(f"weights are given for {sorted(weights)}, but the sources are {sorted(samples)}: name each.")
    for source, weight in weights.items():
        if not 0 < weight < float("inf"):
            raise ValueError(f"The weight {weight!r} of {source!r} must be a positive number.")
        if not samples[source]:
            raise ValueError(f"{source!r} has a weight, but no recording that can be used. Leave it out.")
    return [weights[source] for source in samples]
