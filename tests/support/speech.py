"""Sounds to measure the quality of."""

import numpy as np

RATE = 24_000


def make_speech(seconds=3.0, rate=RATE, seed=0):
    """A buzz with two moving formants, in syllables with pauses, which metrics take for speech."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    pitch = 120 + 20 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    formants = 600 + 300 * np.sin(2 * np.pi * 1.3 * time), 1700 + 500 * np.sin(2 * np.pi * 0.9 * time)
    voice = np.zeros_like(time)
    for number in range(1, 40):
        gain = sum(np.exp(-(((number * pitch - formant) / 250) ** 2)) for formant in formants)
        voice += gain * np.sin(number * phase)
    syllables = np.clip(np.sin(2 * np.pi * 2.5 * time) + 0.6, 0, 1)
    return (0.1 * voice * syllables + 1e-4 * random.standard_normal(len(time))).astype(np.float32)


def noise(samples, seed=1):
    return np.random.default_rng(seed).standard_normal(samples).astype(np.float32)
