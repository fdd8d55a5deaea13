"""The former modules of audio forward to their new place."""

import importlib

import pytest

import mimi_hf.audio


@pytest.mark.parametrize("name", ["audio_io", "audio_stream"])
def test_former_modules_forward_with_a_warning(name):
    former = importlib.import_module(f"mimi_hf.{name}")
    for public in mimi_hf.audio.__all__:
        with pytest.warns(DeprecationWarning, match=rf"mimi_hf\.{name} is mimi_hf\.audio now.*version 0\.3"):
            assert getattr(former, public) is getattr(mimi_hf.audio, public)
    with pytest.raises(AttributeError):
        former.nothing  # noqa: B018
