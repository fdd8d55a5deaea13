"""Standard input and output that carry data, and how the commands that use them end."""

import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress

import typer

from .common import fail


class LiveSource:
    """Standard input, read as it comes: Ctrl-C and SIGTERM end it, as if its writer had, so that nothing is lost.

    A second signal ends the process at once.
    """

    def __init__(self, file):
        self._file = file
        self._waiting = False
        self.signal = None  # that ended it

    def read1(self, size):
        """The bytes that are there, up to `size`; none at the end."""
        self._waiting = True
        try:
            return b"" if self.signal else self._file.read1(size)
        except KeyboardInterrupt:
            return b""
        finally:
            self._waiting = False

    read = read1

    def seekable(self):
        return False

    def end(self, number, _frame):
        """Handles a signal: what is read already is finished first."""
        second, self.signal = self.signal is not None, number
        if second or self._waiting:
            raise KeyboardInterrupt


@contextmanager
def ending_cleanly(source=None):
    """Turn what ends a process from outside into its conventional exit status, after files were cleaned up.

    Args:
        source (LiveSource, optional): what Ctrl-C and SIGTERM end first.
    """
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {signal.SIGTERM: _exit_by_signal}
        if source is not None:
            handlers = {signal.SIGTERM: source.end, signal.SIGINT: source.end}
        handlers = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    status = 0
    try:
        yield
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    except typer.Exit:
        if source is None or source.signal is None:  # otherwise it had no time to bring anything
            raise
    except BrokenPipeError:
        status = 128 + signal.SIGPIPE
        # What is left in its buffer would raise once more when Python ends.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if source is not None and source.signal is not None:
        status = 128 + source.signal
    if status:
        raise typer.Exit(status)


def _exit_by_signal(number, _frame):
    raise SystemExit(128 + number)


def standard_input():
    """Standard input as bytes: a file where it is one, otherwise a [`LiveSource`]."""
    if sys.stdin.isatty():
        raise fail("Standard input is a terminal. Pipe data in, or name a file.")
    file = sys.stdin.buffer
    return file if file.seekable() else LiveSource(file)


def standard_output():
    """Standard output as bytes."""
    if sys.stdout.isatty():
        raise fail("Standard output is a terminal. Pipe it on, or name a file.")
    return sys.stdout.buffer
