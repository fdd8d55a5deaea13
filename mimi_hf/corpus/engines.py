"""Who does which shard: the processes of this machine, the ranks of a cluster, or the actors of Ray.

All of them call `job.run(model, index)`, and none keeps books: a shard is done when its report is there.
"""

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from .jobs import Job

# How often workers may die one after the other without a shard being done in between.
_MAX_DEATHS = 3
Watch = Callable[[float, int], None]  # seconds of audio so far, shards done so far


def usable_cores() -> int:
    """The cores that this process may use."""
    with contextlib.suppress(AttributeError):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def default_processes() -> int:
    """One for each GPU; without any, one for each four cores."""
    import torch

    return torch.cuda.device_count() or max(1, usable_cores() // 4)


def my_part(
    num_shards: int | None, shard_index: int | None, environment: Mapping[str, str] = os.environ
) -> tuple[int, int]:
    """Of how many parts of the work this process does which: as told, else as torchrun, accelerate or Slurm says.

    Returns:
        (number of parts, index of ours); (1, 0) where nothing says otherwise.

    Raises:
        ValueError: for an index that is not below the number, or one of them alone.

    Example:

        >>> my_part(None, None, {"RANK": "2", "WORLD_SIZE": "4"})
        (4, 2)
    """
    if (num_shards is None) != (shard_index is None):
        raise ValueError("num_shards and shard_index belong together: give both, like 64 and 7, or none.")
    if num_shards is None:
        get = environment.get
        if get("RANK") and get("WORLD_SIZE"):
            num_shards, shard_index = int(get("WORLD_SIZE")), int(get("RANK"))
        elif get("SLURM_ARRAY_TASK_ID") and get("SLURM_ARRAY_TASK_COUNT"):
            step = int(get("SLURM_ARRAY_TASK_STEP", "1"))
            num_shards = int(get("SLURM_ARRAY_TASK_COUNT"))
            shard_index = (int(get("SLURM_ARRAY_TASK_ID")) - int(get("SLURM_ARRAY_TASK_MIN", "0"))) // step
        elif get("SLURM_PROCID") and int(get("SLURM_NTASKS", "1")) > 1:
            num_shards, shard_index = int(get("SLURM_NTASKS")), int(get("SLURM_PROCID"))
        else:
            return 1, 0
    if not 0 <= shard_index < num_shards:
        raise ValueError(f"shard_index={shard_index} must be from 0 to num_shards - 1 = {num_shards - 1}.")
    return num_shards, shard_index


def run_here(job: Job, indices: Sequence[int], device: str | None = None, watch: Watch = lambda *_: None):
    """Do shards one after the other in this process."""
    model, seconds = job.load(device), 0.0
    for done, index in enumerate(indices):

        def progress(more: float, done=done):
            nonlocal seconds
            seconds += more
            watch(seconds, done)

        job.run(model, index, progress)
        watch(seconds, done + 1)


def run_processes(
    job: Job, indices: Sequence[int], processes: int, device: str | None = None, watch: Watch = lambda *_: None
):
    """Do shards in processes of this machine, which share its cores, or have a GPU each.

    A process that dies is replaced, and its shard is done again.

    Raises:
        RuntimeError: processes die again and again.
    """
    context = multiprocessing.get_context("spawn")  # CUDA, and OpenMP's threads, do not survive a fork
    seconds = context.RawArray("d", len(job.shards))  # no lock, which a killed process could leave locked
    todo, deaths = list(indices), 0
    while todo:
        before = len(todo)
        started = context.Value("i", 0)
        arguments = (job, device, processes, seconds, started)
        pool = ProcessPoolExecutor(min(processes, before), context, _start_worker, arguments)
        try:
            waiting = {pool.submit(_work, index): index for index in todo}
            while waiting:
                ended, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
                for future in ended:
                    todo.remove(waiting.pop(future)) if future.exception() is None else future.result()
                watch(sum(seconds), len(indices) - len(todo))
            pool.shutdown()
        except BrokenProcessPool:
            deaths = deaths + 1 if len(todo) == before else 1
            if deaths >= _MAX_DEATHS:
                raise RuntimeError(
                    f"Worker processes died {deaths} times without finishing a shard (killed, or out of memory). Use"
                    " fewer processes (--num-proc) or smaller batches (--batch-seconds); the same command goes on."
                ) from None
            pool.shutdown(cancel_futures=True)
            done = set(todo).difference(job.unfinished())
            todo = [index for index in todo if index not in done]
        except BaseException:
            for process in list((pool._processes or {}).values()):
                process.kill()  # a shard is whole or not there: nothing is lost
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_worker: dict[str, Any] = {}


def _start_worker(job: Job, device: str | None, processes: int, seconds, started):
    """Once in each process: its share of the cores, or its GPU, and the model."""
    import signal
    import threading

    import torch

    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    with started.get_lock():
        number, started.value = started.value, started.value + 1
    torch.set_num_threads(max(1, usable_cores() // processes))
    if device is None and torch.cuda.is_available():
        device = f"cuda:{number % torch.cuda.device_count()}"
    _worker.update(job=job, model=job.load(device), seconds=seconds)


def _end_with_parent():
    multiprocessing.parent_process().join()
    os._exit(1)


def _work(index: int):
    seconds = _worker["seconds"]
    seconds[index] = 0.0  # of an attempt before

    def progress(more: float):
        seconds[index] += more

    _worker["job"].run(_worker["model"], index, progress)


def run_ray(
    job: Job,
    indices: Sequence[int],
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    cpus_per_actor: float | None = None,
    address: str | None = None,
    watch: Watch = lambda *_: None,
):
    """Do shards as tasks of a pool of Ray actors; those of an actor that dies are done again by its successor.

    Args:
        actors: how many; by default what the cluster holds of the resources of one.
        gpus_per_actor, cpus_per_actor: what each needs: a GPU where the cluster has any, else two cores, by default.
        address: of the cluster, as for `ray.init`; a cluster in reach, else a new one on this machine, by default.

    Raises:
        ImportError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise ImportError("The engine ray needs Ray: pip install 'mimi_hf[ray]'.") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level="warning")
    try:
        resources = ray.cluster_resources()
        gpus = (1.0 if resources.get("GPU") else 0.0) if gpus_per_actor is None else gpus_per_actor
        cpus = min(2.0, resources.get("CPU", 1.0)) if cpus_per_actor is None else cpus_per_actor
        if actors is None:
            fits = [resources.get(kind, 0) // need for kind, need in (("GPU", gpus), ("CPU", cpus)) if need]
            actors = max(1, int(min(fits, default=1)))
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=_MAX_DEATHS)(_RayWorker)
        pool = [actor.remote(job, max(1, int(cpus))) for _ in range(min(actors, max(1, len(indices))))]
        _feed(ray, pool, iter(indices), watch)
    finally:
        if ours:
            ray.shutdown()


class _RayWorker:
    def __init__(self, job: Job, threads: int):
        import torch

        torch.set_num_threads(threads)
        self.job, self.model = job, job.load(None)

    def run(self, index: int) -> float:
        seconds = []
        self.job.run(self.model, index, seconds.append)
        return sum(seconds)


def _feed(ray, pool: list, indices: Iterator[int], watch: Watch):
    """Give each actor two shards, so that none waits for the next, and another one for each that is done."""
    running = {actor.run.remote(index): actor for actor in pool * 2 if (index := next(indices, None)) is not None}
    seconds, done = 0.0, 0
    while running:
        for task in ray.wait(list(running), timeout=1.0)[0]:
            actor = running.pop(task)
            seconds, done = seconds + ray.get(task), done + 1
            if (index := next(indices, None)) is not None:
                running[actor.run.remote(index)] = actor
            watch(seconds, done)


class Speed:
    """Hours done, times real time and seconds left, from what an engine reports."""

    def __init__(self, shards: int):
        self.shards, self.begin = shards, time.monotonic()

    def describe(self, seconds: float, done: int) -> str:
        """For the progress bar."""
        passed = max(1e-9, time.monotonic() - self.begin)
        text = f"{seconds / 3600:.2f} h, {seconds / passed:.1f}x real time"
        if done:
            left = passed / done * (self.shards - done)
            text += f", {int(left) // 3600}:{int(left) // 60 % 60:02d}:{int(left) % 60:02d} left"
        return text
