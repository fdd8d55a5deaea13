"""`mimi_hf.corpus` is the one place to import from."""

import importlib
import subprocess
import sys

import pytest

from mimi_hf import corpus


@pytest.mark.parametrize("name", corpus.__all__)
def test_every_public_name_is_there(name):
    module = importlib.import_module(f"mimi_hf.corpus.{corpus._EXPORTS[name]}")
    assert getattr(corpus, name) is getattr(module, name)
    assert name in dir(corpus)


def test_other_names_are_not():
    assert corpus.__all__ == sorted(corpus._EXPORTS)
    with pytest.raises(AttributeError, match="no attribute 'tokenise'"):
        corpus.tokenise  # noqa: B018


def test_a_source_needs_no_torch():
    script = "import sys; from mimi_hf.corpus import open_source; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
