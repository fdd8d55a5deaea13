"""Threads that work ahead: order, errors, and an early end."""

import threading
import time

import pytest

from mimi_hf.utils.ahead import iterate_ahead, map_ahead


def test_results_come_in_order_and_no_further_ahead_than_allowed():
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    results = map_ahead(lambda number: time.sleep(0.002 * (number % 3)) or number, items(), threads=4, ahead=5)
    assert next(results) == 0
    assert len(taken) == 6
    assert list(results) == list(range(1, 20))


@pytest.mark.parametrize("ahead", [lambda items: map_ahead(int, items, 2, 3), iterate_ahead])
def test_an_error_comes_after_the_results_before_it(ahead):
    def items():
        yield 1
        yield 2
        raise OSError("gone")

    results, error = [], None
    try:
        for result in ahead(items()):
            results.append(result)
    except OSError as raised:
        error = raised
    assert str(error) == "gone"
    assert results in ([1, 2], [])  # `map_ahead` takes its first items at once


def test_an_early_end_stops_the_thread():
    before = threading.active_count()
    items = iterate_ahead(iter(range(10**9)))
    assert next(items) == 0
    items.close()
    assert threading.active_count() == before
