"""The one pool of worker processes: who starts them, what ends them, and what happens when one dies."""

import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from multiprocessing import get_context, parent_process, resource_tracker
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

State = TypeVar("State")
Task = TypeVar("Task")
Result = TypeVar("Result")

_GRACE = 5.0  # seconds that a worker has to clean up before it is killed
_TICK = 0.5  # seconds between two calls of `tick`
_TERMINATED = 128 + signal.SIGTERM


class WorkerDiedError(RuntimeError):
    """A worker process ended before its task was done: killed, for example by the kernel for its memory.

    deaths: how many workers died before the task was given up.
    alone: nothing ran beside the task when its worker died for the last time.
    """

    def __init__(self, deaths: int = 1, alone: bool = False):
        super().__init__("A worker process ended before its task was done (killed, or out of memory).")
        self.deaths, self.alone = deaths, alone


class Workers(Generic[State, Task, Result]):
    """Processes that do tasks, each with a state that it makes once, such as a loaded model.

    A process starts with the first task that needs it. If it dies, its task raises [`WorkerDiedError`]; other tasks go
    on, and the next one gets a new process. Ctrl-C never reaches the processes. They end when the block ends, after
    their tasks; at once if it ends with an error (SIGTERM, and SIGKILL after 5 s); and with this process if it is
    killed.

    Args:
        processes: how many at most.
        start: `start(number)` makes the state of a process; `number` counts from 0 and belongs to one process at a
            time, so that it can choose a GPU.
        work: `work(state, task)` does a task.

    `start`, `work`, tasks and results are pickled.

    Example:
        >>> with Workers(2, start, work) as workers:  # doctest: +SKIP
        ...     futures = [workers.submit(task) for task in tasks]
        ...     results = [future.result() for future in futures]
    """

    def __init__(self, processes: int, start: Callable[[int], State], work: Callable[[State, Task], Result]):
        # Before 3.12, starting it lets Ctrl-C through again in the thread that does.
        resource_tracker.ensure_running()
        self.processes = processes
        self._lock, self._ended = threading.Lock(), False
        self._workers = [_Worker(number, start, work) for number in range(processes)]
        self._free = deque(self._workers)
        # A thread for each process waits for its answers. Processes inherit from it that Ctrl-C is blocked.
        self._threads = ThreadPoolExecutor(
            processes, initializer=signal.pthread_sigmask, initargs=(signal.SIG_BLOCK, {signal.SIGINT})
        )

    def submit(self, task: Task) -> "Future[Result]":
        """Queue a task. Its future raises what `start` or `work` raised, or [`WorkerDiedError`]."""
        return self._threads.submit(self._do, task)

    def _do(self, task: Task) -> Result:
        worker = self._free.popleft()  # there are as many as threads
        try:
            with self._lock:  # a process that starts now would miss the end
                if self._ended:
                    raise WorkerDiedError
                worker.ensure_running()
            return worker.do(task)
        finally:
            self._free.appendleft(worker)

    def __enter__(self) -> "Workers[State, Task, Result]":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.end()
        self._threads.shutdown()
        for worker in self._workers:
            worker.close()

    def end(self) -> None:
        """End all processes at once; what they were doing raises [`WorkerDiedError`]."""
        with self._lock:
            self._ended = True
        running = [worker.process for worker in self._workers if worker.process is not None]
        for process in running:
            process.terminate()
        self._threads.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + _GRACE
        for process in running:
            process.join(max(0.0, deadline - time.monotonic()))
            process.kill()


class _Worker:
    """One process of a pool, and its successors."""

    def __init__(self, number: int, start: Callable, work: Callable):
        self.number, self.start, self.work = number, start, work
        self.process: BaseProcess | None = None
        self.connection: Any = None  # a Connection; Windows has another class

    def ensure_running(self) -> None:
        if self.process is None:
            # Not forked: CUDA, and OpenMP's threads, do not survive that.
            context = get_context("spawn")
            self.connection, other = context.Pipe()
            process = context.Process(target=_serve, args=(other, self.start, self.work, self.number))
            process.start()
            self.process = process
            other.close()  # the process alone holds it, so that its death closes the pipe

    def do(self, task: Any) -> Any:
        try:
            self.connection.send(task)
            result, error, trace = self.connection.recv()
        except (EOFError, OSError):
            self.close()
            raise WorkerDiedError from None
        if error is not None:
            raise error from RuntimeError(f"In a worker process:\n{trace}")
        return result

    def close(self) -> None:
        """End the process, which waits for a task or is dead, and wait until it has ended."""
        if self.process is not None:
            self.connection.close()
            self.process.join(_GRACE)
            self.process.kill()
            self.process.join()
            self.process = self.connection = None


def _serve(connection: Any, start: Callable, work: Callable, number: int) -> None:
    """What a process does: one task after another, until the pipe is closed."""
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        state, started = None, False
        while True:
            task = connection.recv()
            try:
                if not started:
                    state, started = start(number), True
                answer = work(state, task), None, ""
            except Exception as error:
                answer = None, _picklable(error), traceback.format_exc()
            connection.send(answer)
    except (EOFError, BrokenPipeError):
        pass
    except SystemExit:  # files are cleaned up by now, and no thread is waited for
        os._exit(_TERMINATED)


def _stop(*_: object) -> None:
    deadline = threading.Timer(_GRACE, os._exit, (_TERMINATED,))
    deadline.daemon = True
    deadline.start()
    raise SystemExit(_TERMINATED)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE)
    os._exit(_TERMINATED)  # in case the main thread never gets to it


def _picklable(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def run_in_processes(
    tasks: Iterable[Task],
    processes: int,
    start: Callable[[int], State],
    work: Callable[[State, Task], Result],
    max_deaths: int = 3,
    tick: Callable[[], None] = lambda: None,
) -> Iterator[tuple[Task, Result | WorkerDiedError]]:
    """Do tasks in a pool of [`Workers`]; yields each with its result as soon as it is done.

    A task whose worker died is tried again at the end, when nothing runs beside it. That tells a task that kills its
    worker from one that found too little memory beside others. If its worker dies again, it comes with a
    [`WorkerDiedError`] in place of a result. So do all tasks that are left when `processes * max_deaths` workers have
    died and no task was done in between.

    Args:
        tasks: in the order in which they begin.
        processes, start, work: as for [`Workers`].
        max_deaths: deaths of each process, on average, after which nothing more is tried.
        tick: called at least twice a second.

    Raises:
        Exception: what `start` or `work` raises. All processes are ended first.
    """
    queue, again = deque(tasks), deque[Task]()
    processes = max(1, min(processes, len(queue)))
    deaths, limit = 0, processes * max_deaths
    with Workers(processes, start, work) as workers:
        running: dict[Future[Result], Task] = {}
        while (queue or running) and deaths < limit:
            while queue and len(running) < processes:
                task = queue.popleft()
                running[workers.submit(task)] = task
            for future in wait(running, timeout=_TICK, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                try:
                    result = future.result()
                except WorkerDiedError:
                    deaths += 1
                    again.append(task)
                else:
                    deaths = 0
                    yield task, result
            tick()
        if deaths >= limit:
            workers.end()
            for task in (*again, *running.values(), *queue):
                yield task, WorkerDiedError(deaths)
            return
    with Workers(1, start, work) as workers:
        for task in again:
            future = workers.submit(task)
            while not wait([future], timeout=_TICK).done:
                tick()
            try:
                result = future.result()
            except WorkerDiedError:
                deaths += 1
                yield task, WorkerDiedError(max(2, deaths), alone=True)
            else:
                deaths = 0
                yield task, result
            tick()
