"""Data sets to tokenize, and what must come of them."""

import io

import datasets
import numpy as np
import soundfile
import torch

from .tiny import make_audio

RATE = 24_000
LENGTHS = [2500, 700, 5000, 24, 1, 3100]
UNTYPED = datasets.Features({"bytes": datasets.Value("binary"), "path": datasets.Value("string")})


def make_wav(samples, rate=RATE, seed=0, subtype="FLOAT"):
    file = io.BytesIO()
    soundfile.write(file, make_audio(samples, seed=seed)[0, 0].numpy(), rate, format="WAV", subtype=subtype)
    return file.getvalue()


def make_dataset(lengths=LENGTHS, **columns):
    audio = [{"bytes": make_wav(samples, seed=seed), "path": f"{seed}.wav"} for seed, samples in enumerate(lengths)]
    features = datasets.Features(
        {"audio": dict(UNTYPED), "text": datasets.Value("string"), "n": datasets.Value("int16")}
    )
    rows = {"audio": audio, "text": [f"text {i}" for i in range(len(lengths))], "n": list(range(len(lengths)))}
    return datasets.Dataset.from_dict({**rows, **columns}, features=features)


def encode_alone(model, audio, num_quantizers=3):
    return model.encode(torch.as_tensor(audio).reshape(1, 1, -1), num_quantizers=num_quantizers).audio_codes[0].numpy()


def encode_all(model):
    """The codes of each example of make_dataset(), encoded alone."""
    return [encode_alone(model, make_audio(samples, seed=seed)) for seed, samples in enumerate(LENGTHS)]


def assert_tokenized(rows, expected):
    rows = list(rows)
    assert len(rows) == len(expected)
    for row, codes, samples in zip(rows, expected, LENGTHS, strict=False):
        np.testing.assert_array_equal(np.asarray(row["audio_codes"]), codes)
        assert row["audio_num_samples"] == samples
