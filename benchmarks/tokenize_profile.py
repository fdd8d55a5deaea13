"""Where `mimi-hf tokenize` spends its time: the command with stopwatches, which the library itself does not have.

    python benchmarks/tokenize_profile.py REPORT.json SOURCE OUT --model FOLDER    # the command's own arguments

Only the thread that uses the model is timed, of readers their CPU time. `corpus.py --profile` shows it all.
"""

import time

BEGAN, BEGIN = time.time(), time.perf_counter()

import functools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import threading  # noqa: E402
from collections import Counter  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from pathlib import Path  # noqa: E402


class Stopwatches:
    """Seconds of the main thread by what it does; at any time one watch runs, that of the innermost part."""

    def __init__(self, begin: float):
        self.seconds, self.running, self.last = Counter(), ["all else"], begin

    def charge(self):
        """Charge what has passed to the watch that runs."""
        now = time.perf_counter()
        self.seconds[self.running[-1]] += now - self.last
        self.last = now

    @contextmanager
    def part(self, name: str):
        """What the block takes is charged to `name`, less what parts inside take."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.charge()
        self.running.append(name)
        try:
            yield
        finally:
            self.charge()
            self.running.pop()

    def watch(self, owner, attribute: str, name: str):
        """Charge each call of a function to `name`."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def watched(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)

        setattr(owner, attribute, watched)

    def watch_items(self, owner, attribute: str, name: str):
        """Charge the making of each item of a generator to `name`."""
        function = getattr(owner, attribute)

        def watched(*args, **kwargs):
            items = function(*args, **kwargs)
            while True:
                with self.part(name):
                    item = next(items, watched)
                if item is watched:
                    return
                yield item

        setattr(owner, attribute, watched)


class ReaderClock:
    """CPU seconds of a function in whatever thread calls it."""

    def __init__(self, function):
        self.function, self.seconds, self.lock = function, 0.0, threading.Lock()

    def __call__(self, *args, **kwargs):
        begin = time.thread_time()
        try:
            return self.function(*args, **kwargs)
        finally:
            with self.lock:
                self.seconds += time.thread_time() - begin


def place_stopwatches(watches: Stopwatches) -> ReaderClock:
    """Around the parts of the command."""
    import pyarrow.parquet as pq

    from mimi_hf import loading
    from mimi_hf.corpus import sources
    from mimi_hf.corpus.jobs import encoding, reports, storage, tokenize
    from mimi_hf.modeling_mimi import MimiModel

    job = tokenize.TokenizeJob
    parts = {
        "planning": [(sources, "open_source"), (job, "begin"), (job, "unfinished")],
        "digests of the model": [(job, "__init__")],
        "loading the model": [(loading.ModelChoice, "load")],
        "making batches": [(encoding, "encode_all")],
        "the model": [(MimiModel, "encode"), (encoding, "_encode_long")],
        "counting codes": [(reports.CodesReport, "add")],
        "writing": [
            (job, "_table"),
            (pq.ParquetWriter, "write_table"),
            (pq.ParquetWriter, "close"),
            (storage.Output, "write_json"),
            (os, "fsync"),
        ],
        "joining shards": [(job, "finish")],
    }
    for name, places in parts.items():
        for owner, attribute in places:
            watches.watch(owner, attribute, name)
    watches.watch_items(encoding, "iterate_ahead", "waiting for readers")
    encoding.read_recording = ReaderClock(encoding.read_recording)
    return encoding.read_recording


def main():
    report, *arguments = sys.argv[1:]
    watches = Stopwatches(BEGIN)
    with watches.part("imports"):
        readers = place_stopwatches(watches)
        from mimi_hf.cli import app
    status = app(["tokenize", *arguments, "--num-proc", "1"], prog_name="mimi-hf", standalone_mode=False)
    if status:
        sys.exit(status)
    watches.charge()
    found = {
        "began": BEGAN,
        "seconds": time.perf_counter() - BEGIN,
        "parts": dict(watches.seconds),
        "CPU seconds": time.process_time(),
        "reader CPU seconds": readers.seconds,
    }
    Path(report).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
