"""Shards in this process, or in several processes of this machine."""

import multiprocessing
from collections.abc import MutableSequence, Sequence
from dataclasses import dataclass
from typing import Any

from mimi_hf.corpus.jobs.job import Job
from mimi_hf.utils.machine import usable_cores, usable_memory
from mimi_hf.utils.workers import WorkerDiedError, run_in_processes

from .shard import Watch, do_shard

_MEMORY_OF_PROCESS = 3 * 2**30  # bytes: model, libraries, audio on its way


def default_processes() -> int:
    """One process for each GPU; without any, one for each core, as far as the memory reaches.

    Processes of a single thread do more together than one process of many threads.
    """
    import torch

    return torch.cuda.device_count() or max(1, min(usable_cores(), usable_memory() // _MEMORY_OF_PROCESS))


def run_here(job: Job, indices: Sequence[int], device: str | None = None, watch: Watch = lambda *_: None) -> None:
    """Do shards one after the other in this process."""
    model, seconds = job.load(device), 0.0
    for done, index in enumerate(indices):

        def progress(more: float, done: int = done):
            nonlocal seconds
            seconds += more
            watch(seconds, done)

        do_shard(job, model, index, progress)
        watch(seconds, done + 1)


def run_processes(
    job: Job, indices: Sequence[int], processes: int, device: str | None = None, watch: Watch = lambda *_: None
) -> None:
    """Do shards in processes of this machine, which share its cores, or have a GPU each.

    A process that dies is replaced, and its shard is done again.

    Raises:
        RuntimeError: processes die again and again.
    """
    # No lock, which a killed process could leave locked.
    seconds = multiprocessing.get_context("spawn").RawArray("d", len(job.shards))
    processes, done = min(processes, len(indices)), 0
    worker = _Worker(job, device, processes, seconds)

    def tell():
        watch(sum(seconds), done)

    for _, died in run_in_processes(indices, processes, worker.start, worker.work, tick=tell):
        if isinstance(died, WorkerDiedError):
            raise RuntimeError(
                f"Worker processes died {died.deaths} times without finishing a shard (killed, or out of memory). Use"
                " fewer processes (--num-proc) or smaller batches (--batch-seconds)."
            )
        done += 1
    tell()


@dataclass(frozen=True)
class _Worker:
    """What a process does.

    processes: how many share the cores.
    seconds: of audio that is done, by shard; shared by all processes.
    """

    job: Job
    device: str | None
    processes: int
    seconds: MutableSequence[float]

    def start(self, number: int) -> Any:
        import torch

        torch.set_num_threads(max(1, usable_cores() // self.processes))
        device = self.device
        if device is None and torch.cuda.is_available():
            device = f"cuda:{number % torch.cuda.device_count()}"
        return self.job.load(device)

    def work(self, model: Any, index: int) -> None:
        self.seconds[index] = 0.0  # of an attempt before

        def progress(more: float):
            self.seconds[index] += more

        do_shard(self.job, model, index, progress)
