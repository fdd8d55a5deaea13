"""Many files at once: a folder mirrored, in several processes, where one bad file does not stop the others."""

import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What libsndfile reads, by the extensions in use.
AUDIO = {
    *(".wav", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aiff", ".aif", ".aifc", ".au", ".snd", ".caf"),
}


@dataclass(frozen=True)
class Work:
    """What the processes do: `function(model, source, output, options, digest=…)`, one of [`mimi_hf.compression`]."""

    function: Callable
    options: Any
    model: str
    device: str | None
    dtype: str
    digest: str


def mirror(source: Path, output: Path, extensions: Iterable[str], extension: str) -> list[tuple[Path, Path]]:
    """The files of a folder, sorted, and where each goes. Hidden ones are left out.

    Where two would go to one place, such as a.wav and a.mp3, they keep their whole names: a.wav.mimi.
    """
    found = []
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(folder, name) for name in names if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in extensions]
    found.sort()
    times = Counter(path.with_suffix("") for path in found)
    pairs = []
    for path in found:
        stem = path.with_suffix("") if times[path.with_suffix("")] == 1 else path
        pairs.append((path, (output / stem.relative_to(source)).with_name(stem.name + extension)))
    return pairs


def run(work: Work, model, pairs: list[tuple[Path, Path]], jobs: int) -> Iterator[tuple[Path, Any, str | None]]:
    """Do all pairs: (source, report, None) of each as it is done, (source, None, reason) where it failed.

    Args:
        model: for this process, where `jobs` is 1; otherwise each process loads its own.
    """
    if jobs == 1:
        for pair in pairs:
            yield pair[0], *_do(work, model, *pair)
        return
    import torch

    threads = max(1, torch.get_num_threads() // jobs)
    # Forked processes hang in torch's threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, _start, (work, threads)) as pool:
        waiting = {pool.submit(_do_here, *pair): pair[0] for pair in pairs}
        try:
            for done in as_completed(waiting):
                try:
                    yield waiting[done], *done.result()
                except BrokenProcessPool:
                    reason = "a process ended before this file was done (out of memory?): try again, with fewer --jobs"
                    yield waiting[done], None, reason
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise


def _do(work: Work, model, source: Path, output: Path):
    """The report of one file and None, or None and why it failed."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return work.function(model, source, output, work.options, digest=work.digest), None
    except Exception as error:  # whatever is wrong with one file, the others are done
        return None, describe(error)


def describe(error: Exception) -> str:
    """What to tell of an error: expected ones explain themselves."""
    expected = isinstance(error, OSError | ValueError | TypeError | ImportError)
    return str(error) if expected and str(error) else f"{type(error).__name__}: {error}"


class _Worker:
    """What a process of the pool keeps."""

    work: Work
    model: Any
    busy = False


def _start(work: Work, threads: int):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends the others
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    import torch

    from .common import load_model

    torch.set_num_threads(threads)
    _Worker.work, _Worker.model = work, load_model(work.model, work.device, work.dtype)


def _do_here(source: Path, output: Path):
    _Worker.busy = True
    try:
        return _do(_Worker.work, _Worker.model, source, output)
    except SystemExit:  # the file aside is removed by now
        os._exit(128 + signal.SIGTERM)
    finally:
        _Worker.busy = False


def _stop(number, _frame):
    if not _Worker.busy:
        os._exit(128 + number)
    raise SystemExit(128 + number)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)
