"""What the commands say and how they end: errors, exit statuses, spinners, progress, JSON."""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn

    from .pipes import LiveSource

# Errors that explain themselves: the value, the rule, the remedy. Others are bugs, and keep their traceback.
EXPECTED = (OSError, ValueError, TypeError, RuntimeError, ImportError)
INTERRUPTED = 128 + signal.SIGINT


# Errors


def fail(message: str) -> typer.Exit:
    """Print why a command failed; returns the exit with status 1 to raise."""
    typer.echo(f"Error: {message}", err=True)
    return typer.Exit(1)


def describe(error: Exception) -> str:
    """Return the text of an error, with its type where the text alone may not explain it."""
    explains = isinstance(error, OSError | ValueError | TypeError | ImportError) or type(error) is RuntimeError
    return str(error) if explains and str(error) else f"{type(error).__name__}: {error}"


@contextmanager
def explaining(hint: str = "") -> Iterator[None]:
    """Turn an expected error into one message and status 1.

    Args:
        hint: what to say after the error.
    """
    try:
        yield
    except (BrokenPipeError, typer.Exit):  # nobody listens any more, see `ending_cleanly`; or it is told already
        raise
    except EXPECTED as error:
        raise fail("\n".join(filter(None, [describe(error), hint]))) from None


# Signals


@contextmanager
def ending_cleanly(source: "LiveSource | None" = None) -> Iterator[None]:
    """Turn what ends a process from outside into its conventional exit status, after files were cleaned up.

    Args:
        source: what Ctrl-C and SIGTERM end first.
    """
    handlers: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {signal.SIGTERM: _exit_by_signal}
        if source is not None:
            handlers = {signal.SIGTERM: source.end, signal.SIGINT: source.end}
        handlers = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    status = 0
    try:
        yield
    except KeyboardInterrupt:
        status = INTERRUPTED
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


def _exit_by_signal(number: int, _frame: Any) -> None:
    raise SystemExit(128 + number)


# Output


def open_console(quiet: bool) -> "Console":
    """The console on standard error, for what is no result; silent if `quiet`."""
    from rich.console import Console

    return Console(stderr=True, quiet=quiet)


@contextmanager
def spinning(message: str, quiet: bool) -> Iterator[None]:
    """Show a spinner with a message, for example `Loading kyutai/mimi …`."""
    from rich.text import Text

    with open_console(quiet).status(Text(message)):
        yield


@contextmanager
def showing_progress(
    title: str, quiet: bool, *columns: "ProgressColumn", total: float | None = 1.0
) -> Iterator[Callable[..., None]]:
    """Show a bar; gives a function that moves it: `move(completed)`, or `move(completed, total)`.

    Args:
        title: beside the bar.
        quiet: show nothing.
        columns: those of rich; title, bar, percentage and time left by default.
        total: what makes it full; None where that is not known yet.
    """
    from rich.markup import escape
    from rich.progress import Progress

    with Progress(*columns, console=open_console(quiet), transient=True, disable=quiet) as progress:
        task = progress.add_task(escape(title), total=total)

        def move(completed: float, total: float | None = total) -> None:
            progress.update(task, completed=completed, total=total)

        yield move


def print_json(content: Any, err: bool = False) -> None:
    """Print a report as JSON on standard output, or on standard error where standard output carries data."""
    typer.echo(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False), err=err)
