"""A folder of recordings of a synthetic voice, as a corpus may have them: many formats, rates and lengths."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import peers
import soundfile
import soxr

FORMATS, RATES = ("flac", "wav", "mp3", "ogg"), (16_000, 22_050, 24_000, 44_100, 48_000)
BLOCK = 65_536  # samples: libsndfile overflows its stack where it gets much Ogg Vorbis in one call


@dataclass(frozen=True)
class Clips:
    """A folder of recordings. `seconds`: the length of each, by name; names are the ids of their codes."""

    folder: Path
    seconds: dict[str, float]

    def total(self) -> float:
        """Seconds of audio."""
        return sum(self.seconds.values())

    def some(self, count: int) -> list[str]:
        """The names of `count` of them, or of all, chosen at random, always the same ones."""
        names = list(self.seconds)
        return list(np.random.default_rng(1).permutation(names)[: min(count, len(names))])

    def link(self, names: list[str], folder: Path) -> "Clips":
        """Some of them, in a folder of their own."""
        folder.mkdir()
        for name in names:
            (folder / name).symlink_to(self.folder / name)
        return Clips(folder, {name: self.seconds[name] for name in names})


def make_clips(folder: Path, count: int) -> Clips:
    """`count` clips of 1 to 20 s, the same ones each time. Formats and rates take turns; every seventh is stereo."""
    folder.mkdir()
    random, seconds = np.random.default_rng(0), {}
    for index in range(count):
        rate = RATES[index % len(RATES)]
        samples = make_voice(random, round(random.uniform(1, 20) * rate), rate, channels=2 if index % 7 == 3 else 1)
        name = f"{index:05d}.{FORMATS[index % len(FORMATS)]}"
        with soundfile.SoundFile(folder / name, "w", rate, samples.shape[1]) as file:
            for start in range(0, len(samples), BLOCK):
                file.write(samples[start : start + BLOCK])
        seconds[name] = len(samples) / rate
    return Clips(folder, seconds)


def make_voice(random: np.random.Generator, samples: int, rate: int, channels: int) -> np.ndarray:
    """Gliding harmonics and noise in syllables, another speaker each time: np.ndarray of shape (samples, channels)."""
    time = np.arange(samples, dtype=np.float32) / rate
    pitch = random.uniform(90, 250) * (1 + 0.2 * np.sin(random.uniform(1, 4) * time))
    phase = (2 * np.pi * np.cumsum(pitch, dtype=np.float64) / rate % (2 * np.pi)).astype(np.float32)
    voice = sum(np.sin(k * phase) / k for k in range(1, 10))
    loudness = 0.55 + 0.45 * np.sin(random.uniform(12, 28) * time)
    noise = random.standard_normal((samples, channels), dtype=np.float32)
    return (0.15 * voice[:, None] + 0.04 * noise) * loudness[:, None]


def read_clip(path) -> np.ndarray:
    """Mono at 24 kHz, (N,), as a user would write it."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate, peers.RATE)
