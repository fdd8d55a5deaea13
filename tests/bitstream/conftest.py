"""Fixtures of the tests of bitstreams."""

import pytest
from support.described_bitstream import CODINGS

from mimi_hf.bitstream import Header, entropy


@pytest.fixture(params=CODINGS)
def header(request):
    return Header(num_quantizers=3, codebook_size=20, channels=2, coding=request.param)


@pytest.fixture
def quick_restart(monkeypatch):
    """Models that begin anew every 6 frames."""
    monkeypatch.setattr(entropy, "RESTART", 6)
