"""Audio as input of the feature extractor."""

import io

import numpy as np
import soundfile

RATE = 24_000


def noise(samples, channels=None, seed=0):
    """(N,) float32, or (C, N) with `channels`."""
    shape = (samples,) if channels is None else (channels, samples)
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)


def wav_bytes(audio, rate):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.atleast_2d(audio).T, rate, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


def assert_only(audio, batch):
    """The batch holds this audio (C, N), and only it."""
    assert len(batch["input_values"]) == 1
    np.testing.assert_array_equal(batch["input_values"][0], audio)
