"""Modules that moved still forward to their new place."""

import importlib

import pytest


@pytest.mark.parametrize(
    ("name", "place"), [("audio_io", "audio"), ("audio_stream", "audio"), ("compression", "inference")]
)
def test_former_modules_forward_with_a_warning(name, place):
    former, present = importlib.import_module(f"mimi_hf.{name}"), importlib.import_module(f"mimi_hf.{place}")
    for public in present.__all__:
        with pytest.warns(DeprecationWarning, match=rf"mimi_hf\.{name} is mimi_hf\.{place} now.*version 0\.3"):
            assert getattr(former, public) is getattr(present, public)
    with pytest.raises(AttributeError):
        former.nothing  # noqa: B018
