"""A tiny model with the published frame, and recordings."""

from types import SimpleNamespace

import pytest
import soundfile
from support.corpora import save_model
from support.speech import RATE, make_speech

from mimi_hf.loading import ModelChoice


@pytest.fixture(scope="session")
def codec(tmp_path_factory):
    """The model, its folder, and the choice that loads it."""
    folder = save_model(tmp_path_factory.mktemp("codec"))
    return SimpleNamespace(folder=folder, model=ModelChoice(folder).load("cpu"), choice=ModelChoice(folder))


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    for number, seconds in enumerate((1.0, 2.345, 0.05)):
        soundfile.write(folder / f"{number}.wav", make_speech(seconds, seed=number), RATE, subtype="FLOAT")
    (folder / "damaged.wav").write_text("no audio")
    return folder
