"""Sounds, and pipes that carry them, for the tests of audio."""

import io
import itertools

import numpy as np
import soundfile

RATE = 24_000
FORMS = [
    {"format": "WAV"},
    {"format": "WAV", "subtype": "FLOAT"},
    {"format": "FLAC"},
    {"format": "OGG", "subtype": "VORBIS"},
    {"format": "OGG", "subtype": "OPUS"},
    {"format": "MP3"},
    {"format": "AIFF"},
]


class Pipe(io.RawIOBase):
    """A pipe that holds `data`, cut as the writer wrote it."""

    def __init__(self, data, cuts=()):
        edges = [0, *sorted(cuts), len(data)]
        self.pieces = [data[start:stop] for start, stop in itertools.pairwise(edges) if stop > start]

    def readable(self):
        return True

    def readinto(self, buffer):
        if not self.pieces:
            return 0
        piece = self.pieces.pop(0)
        count = min(len(piece), len(buffer))
        buffer[:count] = piece[:count]
        if count < len(piece):
            self.pieces.insert(0, piece[count:])
        return count


def make_sound(samples=50_000, channels=1, seed=0):
    """(C, N) float32."""
    time = np.arange(samples) / 24_000
    noise = np.random.default_rng(seed).standard_normal((channels, samples)) * 0.1
    return (0.5 * np.sin(2 * np.pi * 220 * time) + noise).astype(np.float32)


def sine(frequency=440.0, seconds=0.5, rate=RATE, channels=1):
    """(C, N) float32; every channel is softer than the one before."""
    wave = np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)
    return np.stack([0.5 / (1 + channel) * wave for channel in range(channels)]).astype(np.float32)


def encoded(sound, rate=24_000, **form):
    file = io.BytesIO()
    soundfile.write(file, sound.T, rate, **form)
    return file.getvalue()


def joined(blocks):
    return np.concatenate(list(blocks), axis=1)
