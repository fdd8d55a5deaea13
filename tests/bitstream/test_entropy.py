"""Entropy coding: what it saves, its tables, and its package."""

import io
import sys
from dataclasses import replace

import numpy as np
import pytest
from support.described_bitstream import make_codes, read, to_bytes

from mimi_hf.bitstream import BitstreamReader, BitstreamWriter, Header, entropy

pytest.importorskip("constriction", reason="the extra `entropy` is not installed")


def test_entropy_coding_saves_where_there_is_something_to_save():
    header = Header(4, 512)
    packed = to_bytes(make_codes(header, 2000), header)
    for skewed, most in [(True, 0.6), (False, 1.02)]:
        coded = to_bytes(make_codes(header, 2000, skewed=skewed), replace(header, coding="entropy"))
        assert len(coded) < most * len(packed)
    silence = to_bytes(np.zeros((4, 2000), dtype=int), replace(header, coding="entropy"))
    assert len(silence) < 0.15 * len(packed)


@pytest.mark.parametrize("size", [2, 3, 2048, 2**16])
@pytest.mark.parametrize("kind", ["none", "one", "few", "all"])
def test_tables_sum_to_what_the_coder_takes(size, kind):
    counts = np.zeros(size, dtype=np.int64)
    counts[: {"none": 0, "one": 1, "few": 2, "all": size}[kind]] = 2**16 * 255 * 2
    weights = entropy.compute_weights(counts)
    assert weights.sum() == 2**24 - size
    assert weights.min() >= 0
    assert (np.diff(weights[1:]) <= 0).all()  # more often, more likely


def test_without_constriction_all_but_entropy_works(monkeypatch):
    header = Header(1, 4, coding="entropy")
    data = to_bytes([[1, 2]], header)
    monkeypatch.setitem(sys.modules, "constriction", None)
    reader = BitstreamReader(io.BytesIO(data))
    assert reader.header == header
    assert reader.scan().num_frames == 2
    for call in (reader.read, lambda: BitstreamWriter(io.BytesIO(), header)):
        with pytest.raises(ImportError, match=r"pip install 'mimi_hf\[entropy\]'"):
            call()
    assert read(to_bytes([[1, 2]], Header(1, 4)))[0].tolist() == [[[1, 2]]]
