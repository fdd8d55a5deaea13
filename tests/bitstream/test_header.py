"""The header: what it refuses to hold."""

import pytest

from mimi_hf.bitstream import Header


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"num_quantizers": 8.0}, TypeError, "num_quantizers=8.0 must be an integer"),
        ({"num_quantizers": True}, TypeError, "num_quantizers=True"),
        ({"codebook_size": 1}, ValueError, "codebook_size=1 must be from 2"),
        ({"channels": 256}, ValueError, "channels=256"),
        ({"num_samples": -1}, ValueError, "num_samples=-1"),
        ({"codebook_digest": "abc"}, ValueError, "64 hex digits"),
        ({"codebook_digest": b"abc"}, ValueError, "64 hex digits"),
        ({"coding": "zip"}, ValueError, "packed, entropy"),
        ({"coding": "entropy", "codebook_size": 2**20}, ValueError, "too many for entropy"),
        ({"metadata": [1]}, TypeError, "must be a dict"),
        ({"metadata": {"a": float("nan")}}, ValueError, "JSON"),
        ({"metadata": {"a": object()}}, ValueError, "JSON"),
        ({"metadata": {"a": "\ud800"}}, ValueError, "JSON"),
        ({"metadata": {"a": "x" * 65_536}}, ValueError, "Shorten"),
    ],
)
def test_header_names_what_is_wrong(changes, kind, message):
    with pytest.raises(kind, match=message):
        Header(**{"num_quantizers": 1, "codebook_size": 4, **changes})
