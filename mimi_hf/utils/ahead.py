"""Threads that work ahead of whoever uses the results."""

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item], threads: int, ahead: int) -> Iterator[Result]:
    """`map` in several threads, with the results in order.

    Args:
        function: is called with each item, in any of the threads.
        items: are taken one by one, by the thread that asks for results.
        threads: how many calls run at once.
        ahead: how many calls are under way, or done and not asked for yet.

    Raises:
        Exception: what `function` raised, where its result would have come.

    Example:
        >>> list(map_ahead(abs, [3, -1, -2], threads=2, ahead=4))
        [3, 1, 2]
    """
    items = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="reader") as pool:
        waiting = deque(pool.submit(function, item) for item in itertools.islice(items, ahead))
        try:
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in itertools.islice(items, 1))
                yield result
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def iterate_ahead(items: Iterable[Item], ahead: int = 1) -> Generator[Item, None, None]:
    """`items`, made by another thread while the last one is in use.

    Args:
        items: are made in that thread alone.
        ahead: how many may be ready before they are asked for.

    Raises:
        BaseException: what `items` raised, after the items that came before it.

    Example:
        >>> list(iterate_ahead(range(3)))
        [0, 1, 2]
    """
    end: Any = object()
    ready: queue.Queue[Any] = queue.Queue(ahead)
    stopped = threading.Event()
    failure: list[BaseException] = []

    def put(item: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def produce():
        try:
            for item in items:
                if not put(item):
                    return
        except BaseException as error:
            failure.append(error)
        finally:
            put(end)

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not end:
            yield item
    finally:
        stopped.set()
        thread.join()
    if failure:
        raise failure[0]
