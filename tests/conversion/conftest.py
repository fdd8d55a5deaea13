"""A checkpoint in the original format, and the promise that a failure writes nothing."""

import pytest
from safetensors.torch import save_file
from support.originals import config_of, listing, original_of


@pytest.fixture
def source(tmp_path):
    """A small original file, with its tensors."""
    state = original_of(config_of())
    save_file(state, tmp_path / "original.safetensors")
    return tmp_path / "original.safetensors", state


@pytest.fixture
def writes_nothing(tmp_path):
    """Checks after the test that the folder holds what it held when the fixture's value was called."""
    before = []
    yield lambda: before.append(listing(tmp_path))
    assert listing(tmp_path) == before[0]
