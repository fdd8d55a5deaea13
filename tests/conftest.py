"""Fixtures of the whole suite."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A suite in the background of a shell inherits this, and the commands that it starts would, too.
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
import torch
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
