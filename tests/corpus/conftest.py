"""Fixtures of the tests of corpora."""

import fsspec
import pytest


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    files.store.clear()
    yield files
    files.store.clear()
