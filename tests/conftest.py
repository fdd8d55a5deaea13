"""Fixtures of the whole suite."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A suite in the background of a shell inherits this, and the commands that it starts would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import soundfile
import torch
from support.sounds import make_sound
from support.tiny import make_model


@pytest.fixture(autouse=True)
def threads():
    """What a test makes of torch's threads ends with it."""
    before = torch.get_num_threads()
    yield
    if torch.get_num_threads() != before:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model():
    return make_model()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A folder with a tiny model and its feature extractor."""
    from mimi_hf import MimiFeatureExtractor

    folder = tmp_path_factory.mktemp("tiny-mimi")
    make_model().save_pretrained(folder)
    MimiFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def codec():
    """A small model with the published frame of 80 ms."""
    from support.commands import make_codec

    return make_codec()


@pytest.fixture(scope="session")
def codec_folder(codec, tmp_path_factory):
    path = tmp_path_factory.mktemp("codec")
    codec.save_pretrained(path)
    return path


@pytest.fixture
def recording(tmp_path):
    """Two channels at another rate than the model's, under a name that needs care."""
    path = tmp_path / "a talk, ä.wav"
    soundfile.write(path, make_sound(60_000, 2).T, 44_100)
    return path
