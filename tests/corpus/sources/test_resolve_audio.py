"""The audio of an example as a path or bytes."""

import math
import os

import numpy as np
import pytest
from support.sources import wav

from mimi_hf.audio import read_audio
from mimi_hf.corpus.sources import Example, resolve_audio
from mimi_hf.corpus.sources.base import is_damage
from mimi_hf.corpus.sources.locations import open_binary


def test_resolve_audio_refuses_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "link.wav").symlink_to("/dev/null")
    for path in ("/dev/null", tmp_path, tmp_path / "pipe.wav", tmp_path / "link.wav", "file:///dev/null"):
        with pytest.raises(ValueError, match="regular file"):
            resolve_audio(Example("x", str(path)))
    (tmp_path / "a.wav").write_bytes(wav())
    assert resolve_audio(Example("x", f"file://{tmp_path}/a.wav")) == f"{tmp_path}/a.wav"


def test_impossible_paths_are_damage(tmp_path):
    (tmp_path / "a.wav").write_bytes(wav())
    (tmp_path / "circle.wav").symlink_to("circle.wav")
    for name in ("absent.wav", "a.wav/b.wav", "circle.wav", "x" * 5000):
        with pytest.raises(OSError, match=r"Errno") as raised:
            open_binary(resolve_audio(Example("x", f"{tmp_path}/{name}")))
        assert is_damage(raised.value), name


def test_resolve_audio(memory):
    memory.pipe("/a.wav", wav())
    stereo = np.random.default_rng(0).uniform(-2, 2, (2, 30)).astype(np.float32)
    assert resolve_audio(Example("x", "memory://a.wav")) == wav()
    assert resolve_audio(Example("x", b"abc")) == b"abc"
    audio, rate = read_audio(resolve_audio(Example("x", {"array": stereo, "sampling_rate": 44_100})))
    np.testing.assert_array_equal(audio, stereo)
    assert rate == 44_100
    with pytest.raises(FileNotFoundError):
        resolve_audio(Example("x", "memory://absent.wav"))
    with pytest.raises(ValueError, match="too bad"):
        resolve_audio(Example("x", None, error="too bad"))
    bad_arrays = [(np.arange(3), 8000), (stereo[None], 8000), (np.zeros((2000, 1)), 8000)]
    for array, rate in [*bad_arrays, *((stereo, rate) for rate in (None, math.inf, math.nan, -1, 1e12, "8000"))]:
        with pytest.raises(ValueError, match="An array"):
            resolve_audio(Example("x", {"array": array, "sampling_rate": rate}))
