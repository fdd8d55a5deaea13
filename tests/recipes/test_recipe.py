"""The recipe of mimi-tiny's corpus: pauses are cut, levels stay, sentences vary."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

RECIPE = Path(__file__).parents[2] / "recipes" / "mimi_tiny"


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(RECIPE))
    yield
    for name in ("silence", "sentences"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_pauses_are_cut_and_levels_stay(dtype):
    from silence import shorten_silence

    rate, scale = 16_000, 20_000 if dtype == "int16" else 0.6
    tone = scale * np.sin(np.arange(rate) * 0.3)
    silence = np.zeros(2 * rate)
    audio = np.concatenate([silence, tone, silence, tone, silence]).astype(dtype)
    short = shorten_silence(audio, rate)
    assert short.dtype == dtype
    assert len(short) / rate == pytest.approx(2 + 0.3 + 2 * 0.1, abs=0.05)
    assert np.abs(short).max() == np.abs(audio).max()
    assert len(shorten_silence(silence.astype(dtype), rate)) == 0


def test_short_pauses_and_other_ends_are_left_alone():
    from silence import shorten_silence

    noise = np.random.default_rng(0).standard_normal(16_001).astype("float32") / 10
    noise[5_000:7_000] = 0
    assert np.array_equal(shorten_silence(noise, 16_000), noise)


def test_sentences_vary_and_depend_on_the_seed_alone():
    from sentences import sentence

    made = [sentence(random.Random(seed)) for seed in range(200)]
    assert made == [sentence(random.Random(seed)) for seed in range(200)]
    assert len(set(made)) > 150 and all(text[0].isupper() and text[-1] in ".?!" for text in made)
