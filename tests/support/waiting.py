"""Waiting for what another thread computes."""

import time


def wait_for(get):
    """The next thing that `get` gives instead of None."""
    end = time.monotonic() + 60
    while (result := get()) is None:
        assert time.monotonic() < end, "nothing came"
        time.sleep(0.001)
    return result
