"""Many files at once: a folder mirrored, in several processes, where one bad file does not stop the others."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimi_hf.utils.workers import end_with_parent, interrupts_held

# What libsndfile reads, by the extensions in use.
AUDIO = {
    *(".wav", ".rf64", ".w64", ".flac", ".ogg", ".oga", ".opus", ".mp3"),
    *(".aiff", ".aif", ".aifc", ".au", ".snd", ".caf"),
}
# How often processes may die one after the other without a file being done in between.
_MAX_DEATHS = 3
_DIED = "processes ended before this file was done (killed, or out of memory): try again, with fewer --jobs"
_DIED_ALONE = "its process ended, although nothing else ran beside it (killed, or out of memory)"

Pair = tuple[Path, Path]
Outcome = tuple[Path, Any, str | None]


@dataclass(frozen=True)
class FileTask:
    """What the processes do: `function(model, source, output, options, digest=…)` of `mimi_hf.inference`."""

    function: Callable
    options: Any
    model: str
    device: str | None
    dtype: str
    digest: str


def name_output(name: str, extension: str) -> str:
    """What becomes of a file, whatever lies beside it. Nothing of its name is lost, so that a.wav and a.mp3 differ.

    Example:

        >>> name_output("a.wav", ".mimi"), name_output("a.wav.mimi", ".wav"), name_output("a.mp3.mimi", ".wav")
        ('a.wav.mimi', 'a.wav', 'a.mp3.wav')
    """
    stem = name[: -len(".mimi")] if name.lower().endswith(".mimi") else name
    return stem if stem.lower().endswith(extension) else stem + extension


def mirror(source: Path, output: Path, extensions: Iterable[str], extension: str) -> list[Pair]:
    """The files of a folder, sorted, and where each goes. Links are followed; what is hidden is left out, and a folder
    that may not be read, with a warning.

    Raises:
        ValueError: two go to one place, as a.mimi and a.wav.mimi do.
    """
    from mimi_hf.corpus.sources.locations import walk

    found = [path for path in (source / name for name in walk(source)) if path.suffix.lower() in extensions]
    sources = {}
    for path in sorted(found):
        target = (output / path.relative_to(source)).with_name(name_output(path.name, extension))
        if target in sources:
            raise ValueError(f"{sources[target]} and {path} would both become {target}. Rename one of them.")
        sources[target] = path
    return [(path, target) for target, path in sources.items()]


def run(task: FileTask, model, pairs: list[Pair], jobs: int) -> Iterator[Outcome]:
    """Do all pairs: (source, report, None) of each as it is done, (source, None, reason) where it failed.

    Args:
        model: for this process, where `jobs` is 1; otherwise each process loads its own.
    """
    if jobs == 1:
        for pair in pairs:
            yield pair[0], *_do(task, model, *pair)
    else:
        yield from _run_processes(task, pairs, jobs)


def _run_processes(task: FileTask, pairs: list[Pair], jobs: int) -> Iterator[Outcome]:
    """In new processes after some have died. What these had begun is tried again at the end, one file at a time, which
    tells the file that kills from those beside it."""
    queue, begun, deaths = deque(pairs), [], 0
    limit = _MAX_DEATHS if jobs > 1 else len(pairs)
    while queue and deaths < limit:
        deaths += 1
        for outcome in _run_pool(task, queue, begun, jobs):
            deaths = 0
            yield outcome
    if jobs > 1 and deaths < limit:
        yield from _run_processes(task, begun, 1)
        return
    for source, _ in (*begun, *queue):
        yield source, None, _DIED if jobs > 1 else _DIED_ALONE


def _run_pool(task: FileTask, queue: deque[Pair], begun: list[Pair], jobs: int) -> Iterator[Outcome]:
    """Take pairs from the queue until it is empty, or a process dies: those in the works are added to `begun` then."""
    import torch

    threads = max(1, torch.get_num_threads() // jobs)
    # Forked processes hang in torch's threads.
    context = multiprocessing.get_context("spawn")
    running = {}
    with ProcessPoolExecutor(min(jobs, len(queue)), context, _start, (task, threads)) as pool:
        try:
            while queue or running:
                while queue and len(running) < jobs:
                    with interrupts_held():  # the first call starts the processes, which inherit this
                        future = pool.submit(_do_here, *queue[0])
                    running[future] = queue.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    result = future.result()
                    yield running.pop(future)[0], *result
        except BrokenProcessPool:
            begun += running.values()
        except BaseException:  # whatever ends this process, Ctrl-C too: they end with it
            for process in multiprocessing.active_children():
                process.terminate()
            pool.shutdown(cancel_futures=True)
            raise


def _do(task: FileTask, model, source: Path, output: Path):
    """The report of one file and None, or None and why it failed."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        return task.function(model, source, output, task.options, digest=task.digest), None
    except Exception as error:  # whatever is wrong with one file, the others are done
        return None, describe(error)


def describe(error: Exception) -> str:
    """What to tell of an error: expected ones explain themselves."""
    expected = isinstance(error, OSError | ValueError | TypeError | ImportError)
    return str(error) if expected and str(error) else f"{type(error).__name__}: {error}"


class _Worker:
    """What a process of the pool keeps."""

    task: FileTask
    model: Any
    busy = False


def _start(task: FileTask, threads: int):
    signal.signal(signal.SIGTERM, _stop)
    end_with_parent()

    import torch

    from .common import load_model

    torch.set_num_threads(threads)
    _Worker.task, _Worker.model = task, load_model(task.model, task.device, task.dtype)


def _do_here(source: Path, output: Path):
    _Worker.busy = True
    try:
        return _do(_Worker.task, _Worker.model, source, output)
    except SystemExit:  # the file aside is removed by now
        os._exit(128 + signal.SIGTERM)
    finally:
        _Worker.busy = False


def _stop(number, _frame):
    if not _Worker.busy:
        os._exit(128 + number)
    raise SystemExit(128 + number)
