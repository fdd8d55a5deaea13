"""Who does which shard: the processes of this machine, the ranks of a cluster, or the actors of Ray.

All of them call `job.run(model, index)`, and none keeps books: a shard is done when its report is there.
"""

import logging
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from mimi_hf.corpus.jobs.job import Job, Progress
from mimi_hf.utils.machine import usable_cores, usable_memory
from mimi_hf.utils.workers import end_with_parent, interrupts_held

logger = logging.getLogger(__name__)

# How often workers may die one after the other without a shard being done in between.
_MAX_DEATHS = 3
# Seconds to wait before a shard is tried again, whose source or output could not be reached.
_PAUSES = (1.0, 15.0)
_MEMORY_OF_PROCESS = 3 * 2**30  # bytes: model, libraries, audio on its way
_PATIENCE = 60.0  # seconds without any actor of Ray after which the user is told
Watch = Callable[[float, int], None]  # seconds of audio so far, shards done so far


def default_processes() -> int:
    """One for each GPU; without any, one for each core, as far as the memory reaches: processes of a single thread do
    more together than one of many threads."""
    import torch

    return torch.cuda.device_count() or max(1, min(usable_cores(), usable_memory() // _MEMORY_OF_PROCESS))


def my_part(
    num_shards: int | None, shard_index: int | None, environment: Mapping[str, str] = os.environ
) -> tuple[int, int]:
    """Of how many parts of the work this process does which: as told, else as torchrun, accelerate or Slurm says.

    Each task of a Slurm array does a part, which its own ranks, of torchrun or srun, share among them.

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
        num_shards, shard_index = 1, 0
        if environment.get("SLURM_ARRAY_TASK_ID") and environment.get("SLURM_ARRAY_TASK_COUNT"):
            num_shards = _number(environment, "SLURM_ARRAY_TASK_COUNT")
            position = _number(environment, "SLURM_ARRAY_TASK_ID") - _number(environment, "SLURM_ARRAY_TASK_MIN", 0)
            shard_index = position // _number(environment, "SLURM_ARRAY_TASK_STEP", 1)
            if shard_index >= num_shards:
                raise ValueError(
                    "The tasks of this Slurm array do not follow each other (--array=5,9), so that it cannot be told"
                    " which part is whose. Give --num-shards and --shard-index, for example of the array before."
                )
        ranks, rank = 1, 0
        if environment.get("RANK") and environment.get("WORLD_SIZE"):
            ranks, rank = _number(environment, "WORLD_SIZE"), _number(environment, "RANK")
        elif _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:  # in a step alone; a batch script knows SLURM_NTASKS
            ranks, rank = _number(environment, "SLURM_STEP_NUM_TASKS"), _number(environment, "SLURM_PROCID")
        num_shards, shard_index = num_shards * ranks, shard_index * ranks + rank
    if not 0 <= shard_index < num_shards:
        raise ValueError(f"shard_index={shard_index} must be from 0 to num_shards - 1 = {num_shards - 1}.")
    return num_shards, shard_index


def local_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """Which of the ranks on this machine this process is; `None` where it is alone."""
    if environment.get("RANK") and environment.get("LOCAL_RANK"):
        return _number(environment, "LOCAL_RANK")
    if environment.get("RANK") or _number(environment, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _number(environment, "SLURM_LOCALID", 0)
    return None


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = environment.get(name)
    if value is None and default is not None:
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"The environment variable {name} is {value!r}, but must be a whole number. Give the number of parts and"
            " the index of this one (--num-shards, --shard-index)."
        ) from None


def _do_shard(job: Job, model, index: int, progress: Progress):
    """`job.run`; once more, and again, where a network or a disk failed."""
    done = 0.0

    def count(more: float):
        nonlocal done
        done += more
        progress(more)

    for pause in (*_PAUSES, None):
        try:
            return job.run(model, index, count)
        except OSError as error:
            if pause is None:
                raise
            logger.warning("Shard %d failed (%s), and is tried again in %g s.", index, error, pause)
        count(-done)
        time.sleep(pause)


def run_here(job: Job, indices: Sequence[int], device: str | None = None, watch: Watch = lambda *_: None):
    """Do shards one after the other in this process."""
    model, seconds = job.load(device), 0.0
    for done, index in enumerate(indices):

        def progress(more: float, done=done):
            nonlocal seconds
            seconds += more
            watch(seconds, done)

        _do_shard(job, model, index, progress)
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
        workers = min(processes, before)
        pool = ProcessPoolExecutor(workers, context, _start_worker, (job, device, workers, seconds))
        try:
            for done in _feed_processes(pool, todo, 2 * workers):
                todo = [index for index in todo if index not in done]
                watch(sum(seconds), len(indices) - len(todo))
            pool.shutdown()
        except BrokenProcessPool:
            pool.shutdown(cancel_futures=True)
            unfinished = set(job.unfinished())
            todo = [index for index in todo if index in unfinished]
            deaths = deaths + 1 if len(todo) == before else 1
            if todo and deaths >= _MAX_DEATHS:
                raise RuntimeError(
                    f"Worker processes died {deaths} times without finishing a shard (killed, or out of memory). Use"
                    " fewer processes (--num-proc) or smaller batches (--batch-seconds)."
                ) from None
        except BaseException:  # whatever ends this process, Ctrl-C too: they end with it
            for process in list((pool._processes or {}).values()):
                process.kill()  # a shard is whole or not there: nothing is lost
            pool.shutdown(cancel_futures=True)
            raise


def _feed_processes(pool: ProcessPoolExecutor, indices: Sequence[int], most: int) -> Iterator[set[int]]:
    """Have at most so many shards in the pool at once; gives, twice a second, those that were done since."""
    waiting, running = iter(indices), {}
    while True:
        while len(running) < most and (index := next(waiting, None)) is not None:
            with interrupts_held():  # the first call starts the processes, which inherit this
                running[pool.submit(_work, index)] = index
        if not running:
            return
        ended = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)[0]
        for future in ended:
            future.result()
        yield {running.pop(future) for future in ended}


_worker: dict[str, Any] = {}


def _start_worker(job: Job, device: str | None, processes: int, seconds):
    """Once in each process: its share of the cores, or its GPU, and the model."""
    import torch

    end_with_parent()
    torch.set_num_threads(max(1, usable_cores() // processes))
    if device is None and torch.cuda.is_available():
        number = int(multiprocessing.current_process().name.rpartition("-")[2])  # SpawnProcess-1, -2, …
        device = f"cuda:{number % torch.cuda.device_count()}"
    _worker.update(job=job, model=job.load(device), seconds=seconds)


def _work(index: int):
    seconds = _worker["seconds"]
    seconds[index] = 0.0  # of an attempt before

    def progress(more: float):
        seconds[index] += more

    _do_shard(_worker["job"], _worker["model"], index, progress)


def run_ray(
    job: Job,
    indices: Sequence[int],
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    cpus_per_actor: float | None = None,
    address: str | None = None,
    device: str | None = None,
    watch: Watch = lambda *_: None,
):
    """Do shards as tasks of a pool of Ray actors; those of an actor that dies are done again by its successor.

    Args:
        actors: how many; by default what the cluster holds of the resources of one.
        gpus_per_actor, cpus_per_actor: what each needs: a GPU where the cluster has any, else two cores, by default.
        address: of the cluster, as for `ray.init`; a cluster in reach, else a new one on this machine, by default.
        device: of each; its GPU, where it has one, by default.

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: actors die again and again.
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
        gpus, cpus = gpus_per_actor, cpus_per_actor
        if gpus is None:
            gpus = float("GPU" in resources and not (device or "").startswith("cpu"))
        if cpus is None:
            cpus = min(2.0, resources.get("CPU", 1.0))
        if actors is None:
            fits = [resources.get(kind, 0) // need for kind, need in (("GPU", gpus), ("CPU", cpus)) if need]
            actors = max(1, int(min(fits, default=1)))
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=_MAX_DEATHS)(_RayWorker)
        pool = [actor.remote(job, max(1, int(cpus)), device) for _ in range(min(actors, max(1, len(indices))))]
        _feed_actors(ray, pool, deque(indices), watch)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"Ray gave up ({type(error).__name__}): actors died again and again (killed, or out of memory), or the"
            " cluster is gone. Use fewer actors (--ray-actors) or smaller batches (--batch-seconds)."
        ) from error
    finally:
        if ours:
            ray.shutdown()


class _RayWorker:
    def __init__(self, job: Job, threads: int, device: str | None):
        import torch

        torch.set_num_threads(threads)
        self.job, self.model = job, job.load(device)

    def ready(self):
        pass

    def run(self, index: int) -> float:
        seconds = []
        _do_shard(self.job, self.model, index, seconds.append)
        return sum(seconds)


def _feed_actors(ray, pool: list, todo: deque[int], watch: Watch):
    """Give each actor that is up two shards, so that none waits for the next, and another one for each that is done.
    The cluster may have no room for some of the actors, now or ever: they get nothing."""
    starting, running = {actor.ready.remote(): actor for actor in pool}, {}
    seconds, done, begin = 0.0, 0, time.monotonic()

    def give(actor):
        if todo:
            running[actor.run.remote(todo.popleft())] = actor

    while todo or running:
        for task in ray.wait([*starting, *running], timeout=1.0)[0]:
            result = ray.get(task)
            if task in starting:
                actor = starting.pop(task)
                give(actor)
            else:
                actor = running.pop(task)
                seconds, done = seconds + result, done + 1
                watch(seconds, done)
            give(actor)
        if len(starting) == len(pool) and time.monotonic() > begin + _PATIENCE:
            logger.warning("Ray has no room for any actor yet: see `ray status`. Still waiting.")
            begin = time.monotonic()


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
