"""Shards as tasks of a pool of Ray actors."""

import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from mimi_hf.corpus.jobs.job import Job

from .shard import Watch, do_shard

logger = logging.getLogger(__name__)

_MAX_RETRIES = 3  # of a shard whose actor died
_PATIENCE = 60.0  # seconds without any actor after which the user is told


def run_ray(
    job: Job,
    indices: Sequence[int],
    actors: int | None = None,
    gpus_per_actor: float | None = None,
    cpus_per_actor: float | None = None,
    address: str | None = None,
    device: str | None = None,
    watch: Watch = lambda *_: None,
) -> None:
    """Do shards as tasks of a pool of Ray actors. If an actor dies, its successor does its shards again.

    Args:
        job: what to do.
        indices: of the shards.
        actors: how many; as many as the cluster has room for by default.
        gpus_per_actor, cpus_per_actor: what each needs; one GPU if the cluster has any, and two cores, by default.
        address: of the cluster, as for `ray.init`. By default a cluster in reach, else a new one on this machine.
        device: of each actor; its GPU if it has one by default.
        watch: called with the seconds of audio and the shards that are done.

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: actors die again and again.
    """
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError as error:
        raise ImportError("The engine ray needs Ray: pip install 'mimi_hf[ray]'.") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init(address=address, log_to_driver=False, include_dashboard=False, logging_level=logging.WARNING)
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
        actor = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=-1, max_task_retries=_MAX_RETRIES)(_RayWorker)
        pool = [actor.remote(job, max(1, int(cpus)), device) for _ in range(min(actors, max(1, len(indices))))]
        feed_actors(ray, pool, deque(indices), watch)
    except RayTaskError as error:
        raise error.cause from None
    except RayError as error:
        raise RuntimeError(
            f"Ray gave up ({type(error).__name__}): actors died again and again (killed, or out of memory), or the"
            " cluster is gone. Use fewer actors (--ray-actors) or smaller batches (--batch-seconds)."
        ) from error
    finally:
        if ours:
            ray.shutdown()


class _RayWorker:
    """What an actor does."""

    def __init__(self, job: Job, threads: int, device: str | None):
        import torch

        torch.set_num_threads(threads)
        self.job, self.model = job, job.load(device)

    def ready(self) -> None:
        pass

    def run(self, index: int) -> float:
        seconds: list[float] = []
        do_shard(self.job, self.model, index, seconds.append)
        return sum(seconds)


def feed_actors(ray: Any, pool: Sequence[Any], todo: deque[int], watch: Watch) -> None:
    """Give each actor that is up two shards, so that none waits for the next, and another one for each that is done.

    The cluster may have no room for some of the actors, now or ever. They get nothing.
    """
    starting, running = {actor.ready.remote(): actor for actor in pool}, {}
    seconds, done, begin = 0.0, 0, time.monotonic()

    def give(actor: Any):
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
