"""The pool of worker processes: what it gives, and what happens when a process dies."""

import os
import signal
import time
from multiprocessing import active_children

import pytest

from mimi_hf.utils.workers import WorkerDiedError, Workers, run_in_processes


def start(number):
    return number


def square(_number, task):
    return task * task


def number_of(number, _task):
    time.sleep(0.2)
    return number


def die_of_three(_number, task):
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def die_once(_number, path):
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


class StrangeError(Exception):
    """An exception that cannot be read back from a pickle."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def refuse(_number, task):
    raise ValueError("not a task") if task else StrangeError(1, 2)


def cannot_start(_number):
    raise OSError("there is no model")


def test_each_task_gets_its_result():
    assert dict(run_in_processes(range(7), 2, start, square)) == {task: task * task for task in range(7)}
    assert list(run_in_processes([], 2, start, square)) == []
    assert not active_children()


def test_processes_have_numbers_of_their_own():
    with Workers(2, start, number_of) as workers:
        futures = [workers.submit(task) for task in range(4)]
        assert {future.result() for future in futures} == {0, 1}
    assert not active_children()


def test_a_task_that_kills_its_process_takes_no_other_along():
    results = dict(run_in_processes(range(6), 2, start, die_of_three))
    died = results.pop(3)
    assert isinstance(died, WorkerDiedError) and died.alone and died.deaths == 2
    assert results == {task: task for task in (0, 1, 2, 4, 5)}


def test_a_task_whose_process_was_killed_once_is_done(tmp_path):
    assert list(run_in_processes([tmp_path / "there"], 1, start, die_once)) == [(tmp_path / "there", "done")]


def test_deaths_without_end_give_up_what_is_left():
    results = dict(run_in_processes([3, 3, 3, 1, 2], 1, start, die_of_three))
    assert all(isinstance(result, WorkerDiedError) and not result.alone for result in results.values())
    assert {result.deaths for result in results.values() if isinstance(result, WorkerDiedError)} == {3}
    assert not active_children()


@pytest.mark.parametrize(
    ("begin", "task", "error"), [(start, 1, ValueError), (start, 0, RuntimeError), (cannot_start, 0, OSError)]
)
def test_errors_arrive_and_end_all(begin, task, error):
    with pytest.raises(error, match=r"not a task|StrangeError: 1 and 2|there is no model"):
        list(run_in_processes([task, task], 2, begin, refuse))
    assert not active_children()
