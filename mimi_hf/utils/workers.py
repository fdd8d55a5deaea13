"""Worker processes that end as they should: with their parent, and not by themselves when Ctrl-C reaches all."""

import multiprocessing
import os
import signal
import threading
from contextlib import contextmanager


@contextmanager
def interrupts_held():
    """Ctrl-C waits for the end of the block, and never reaches processes that start in it: their parent ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent():
    """For a worker: end (SIGTERM) when its parent has died, which could not tell it to."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent():
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
