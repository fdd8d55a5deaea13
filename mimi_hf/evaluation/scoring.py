"""Metrics in processes of their own, beside the model."""

import multiprocessing
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from mimi_hf.utils.workers import end_with_parent, interrupts_held

from .metrics import METRICS, Metric, Score, score
from .report import Scores

_DIED = "A process that measured quality was ended (killed, or out of memory). Try again, with fewer jobs."


@dataclass(frozen=True)
class Piece:
    """A part of a recording.

    original: array, shape = (n,). reconstructions: the same of what the codec made of it, by the number of codebooks.
    """

    original: np.ndarray
    reconstructions: dict[int, np.ndarray]
    sampling_rate: int


@dataclass(frozen=True)
class PieceScores:
    """What was found: of the original, where a metric needs no reference, and of each reconstruction.

    weight: the seconds of the piece.
    """

    originals: Scores
    scores: dict[int, Scores]
    weight: float


def score_piece(piece: Piece, metrics: list[Metric]) -> PieceScores:
    """Measure all of a piece."""
    alone = [metric for metric in metrics if not metric.needs_reference]
    rate = piece.sampling_rate
    originals = score(None, piece.original, rate, alone) if alone else {}
    scores = {level: score(piece.original, audio, rate, metrics) for level, audio in piece.reconstructions.items()}
    return PieceScores(originals, scores, len(piece.original) / rate)


def join_scores(scores: list[Score], weights: list[float]) -> Score:
    """The mean over the pieces of a recording that have a value, by their seconds; a reason where none has."""
    measured = [(one.value, weight) for one, weight in zip(scores, weights, strict=True) if one.value is not None]
    if not measured:
        return scores[0]
    values, seconds = zip(*measured, strict=True)
    return Score(float(np.average(values, weights=seconds)))


class Scorers:
    """Processes that score pieces; for one job there is none, and it is done here and now.

    metrics: what is measured.
    jobs: how many processes.
    """

    def __init__(self, metrics: list[Metric], jobs: int):
        if jobs < 1:
            raise ValueError(f"jobs={jobs} must be at least 1.")
        self.metrics, self.jobs = metrics, jobs
        self._before = set(multiprocessing.active_children())
        self._running: deque[Future] = deque()
        self._pool = None
        if jobs > 1:
            # Forked processes hang in torch's threads.
            self._pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start)

    def submit(self, piece: Piece) -> Callable[[], PieceScores]:
        """Begin to score a piece: a function that waits for the result."""
        if self._pool is None:
            found = score_piece(piece, self.metrics)
            return lambda: found
        if len(self._running) >= 2 * self.jobs:  # audio must not pile up where the model is faster
            _result(self._running.popleft())
        with interrupts_held():  # the first calls start the processes, which inherit this
            future = self._pool.submit(_score_here, piece, [metric.name for metric in self.metrics])
        self._running.append(future)
        return lambda: _result(future)

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if self._pool is not None:
            if kind is not None:
                for process in set(multiprocessing.active_children()) - self._before:
                    process.terminate()
            self._pool.shutdown(cancel_futures=True)


def _result(future: Future) -> PieceScores:
    try:
        return future.result()
    except BrokenProcessPool:
        raise RuntimeError(_DIED) from None


def _start():
    end_with_parent()

    import torch

    torch.set_num_threads(1)


def _score_here(piece: Piece, names: list[str]) -> PieceScores:
    return score_piece(piece, [METRICS[name] for name in names])
