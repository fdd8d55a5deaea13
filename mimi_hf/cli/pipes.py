"""Standard input and output that carry data."""

import sys
from typing import Any, BinaryIO

from .console import fail


class LiveSource:
    """Standard input, read as it comes: Ctrl-C and SIGTERM end it, as if its writer had, so that nothing is lost.

    A second signal ends the process at once.
    """

    def __init__(self, file: Any):
        self._file = file
        self._waiting = False
        self.signal: int | None = None  # that ended it

    def read1(self, size: int = -1) -> bytes:
        """The bytes that are there, up to `size`; none at the end."""
        self._waiting = True
        try:
            return b"" if self.signal else self._file.read1(size)
        except KeyboardInterrupt:
            return b""
        finally:
            self._waiting = False

    read = read1

    def seekable(self) -> bool:
        """Never."""
        return False

    def end(self, number: int, _frame: Any) -> None:
        """Handle a signal: what is read already is finished first."""
        second, self.signal = self.signal is not None, number
        if second or self._waiting:
            raise KeyboardInterrupt


def standard_input() -> BinaryIO | LiveSource:
    """Open standard input as bytes: a file if it is one, otherwise a [`LiveSource`]."""
    if sys.stdin.isatty():
        raise fail("Standard input is a terminal. Pipe data in, or name a file.")
    file = sys.stdin.buffer
    return file if file.seekable() else LiveSource(file)


def standard_output() -> BinaryIO:
    """Open standard output as bytes."""
    if sys.stdout.isatty():
        raise fail("Standard output is a terminal. Pipe it on, or name a file.")
    return sys.stdout.buffer
