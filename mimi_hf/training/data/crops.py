"""Batches for training: random crops. Each depends only on the seed, its step and its place in the batch."""

import numbers
from collections.abc import Generator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mimi_hf.utils.ahead import iterate_ahead
from mimi_hf.utils.option_checks import check_option

from .audio_cache import AudioCache
from .augmentation import MARGIN, Augmentation, change_speed, level

# A crop below this root mean square, -50 dBFS, is drawn again; at most this many crops are drawn.
QUIET = 10 ** (-50 / 20)
_DRAWS = 8
# How many batches are made ahead.
_AHEAD = 4


class Crops:
    """Random crops of the recordings of a cache.

    Crop j of step s depends only on the seed, s and j. So a resumed run sees the crops that it would have seen without
    the interruption. And `world` processes with batches of b crops see together what one process with batches of
    `world * b` crops sees: process `rank` has the b crops from `rank * b` on.

    First a source is drawn, by `weights`; then a recording, in proportion to its length; then the start of the crop.
    Crops below -50 dBFS are drawn again, up to seven times. Silence follows recordings that are shorter than a crop.

    Args:
        cache: the recordings.
        seconds: length of a crop.
        batch_size: crops per batch, B.
        seed: an integer, 0 or more.
        augmentation: random changes of each crop; none by default.
        weights: how often each source of the cache is drawn from, relative to the others. By default in proportion to
            its hours.

    Attributes:
        samples: samples per crop, N.
        short: number of recordings that are shorter than a crop.

    Raises:
        ValueError, TypeError: for sizes that are not positive, and weights that do not match the sources.
    """

    def __init__(
        self,
        cache: AudioCache,
        seconds: float,
        batch_size: int,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        weights: dict[str, float] | None = None,
    ) -> None:
        self.cache, self.batch_size, self.seed = cache, _whole("batch_size", batch_size, 1), _whole("seed", seed, 0)
        self.augmentation = augmentation
        self.samples = round(seconds * cache.sampling_rate)
        if self.samples < 1:
            raise ValueError(f"seconds={seconds!r} must be positive: the length of a crop.")
        lengths, sources = cache.index[:, 2], cache.index[:, 3]
        self.short = int((lengths < self.samples).sum())
        # For each source: the numbers of its recordings, and the running sum of their samples.
        numbers = [np.flatnonzero(sources == source) for source in range(len(cache.sources))]
        self._recordings = [(one, np.cumsum(lengths[one])) for one in numbers]
        shares = [float(ends[-1]) if len(ends) else 0.0 for _, ends in self._recordings]
        if weights is not None:
            shares = _check_weights(weights, dict(zip(cache.sources, shares, strict=True)))
        ends = np.cumsum(shares)
        self._source_ends = ends / ends[-1]  # the last one is exactly 1

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Tensor:
        """Make the batch of a process.

        Args:
            step: the step, from 0.
            rank: the process, below `world`.
            world: how many processes there are.

        Returns:
            Tensor, shape = (B, 1, N), float32 in [-1, 1].

        Raises:
            ValueError, TypeError: for a step or a process that there is not.
        """
        _whole("step", step, 0)
        if not 0 <= rank < world:
            raise ValueError(f"rank={rank} must be from 0 to below world={world}.")
        crops = [self.crop(step, rank * self.batch_size + j) for j in range(self.batch_size)]
        return torch.from_numpy(np.stack(crops)[:, None])

    def crop(self, step: int, number: int) -> np.ndarray:
        """Make one crop.

        Args:
            step: the step, from 0.
            number: its place among the crops of all processes.

        Returns:
            np.ndarray, shape = (N,), float32.
        """
        seeds = np.random.SeedSequence(self.seed, spawn_key=(step, number))
        random = np.random.Generator(np.random.Philox(seeds))
        speed = 1.0 if self.augmentation is None else self.augmentation.draw_speed(random)
        audio = self._draw(random, speed)
        if self.augmentation is not None:
            audio = self.augmentation(audio, self.cache.sampling_rate, random)
        return audio

    def iterate(self, start_step: int, steps: int, rank: int = 0, world: int = 1) -> Generator[Tensor, None, None]:
        """Give the batches of `steps` steps, from `start_step` on.

        A thread makes them a little ahead. Its errors are raised here. `close()` ends it.
        """
        return iterate_ahead(
            (self.batch(step, rank, world) for step in range(start_step, start_step + steps)), ahead=_AHEAD
        )

    def _draw(self, random: np.random.Generator, speed: float) -> np.ndarray:
        """Draw a part of a recording, (N,), at a speed: the first that is not too quiet, or the last."""
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
        """Read a crop: (n,), n < N where the recording ends."""
        if speed == 1:
            return self.cache.read(recording, start, needed)
        before = min(start, MARGIN)
        audio = change_speed(self.cache.read(recording, start - before, before + needed + MARGIN), speed)
        first = round(before / speed)
        return audio[first : first + self.samples]


def _whole(name: str, value: Any, least: int) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} must be a whole number.")
    value = int(value)
    check_option(value >= least, name, value, f"at least {least}")
    return value


def _check_weights(weights: dict[str, float], samples: dict[str, float]) -> list[float]:
    """Return the weights in the order of the sources. `samples` says how many samples each source has."""
    if set(weights) != set(samples):
        raise ValueError(f"weights are given for {sorted(weights)}, but the sources are {sorted(samples)}: name each.")
    for source, weight in weights.items():
        if not 0 < weight < float("inf"):
            raise ValueError(f"The weight {weight!r} of {source!r} must be a positive number.")
        if not samples[source]:
            raise ValueError(f"{source!r} has a weight, but no recording that can be used. Leave it out.")
    return [weights[source] for source in samples]
