"""Metrics in processes of their own, beside the model."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mimi_hf.utils.workers import WorkerDiedError, Workers

from .metrics import METRICS, Metric, Score, score
from .report import Scores

_DIED = "A process that measured quality was ended (killed, or out of memory). Try again, with fewer jobs."


@dataclass(frozen=True)
class Piece:
    """A piece of a recording, before and after the codec.

    original: array, shape = (n,).
    reconstructions: arrays, shape = (n,), by the number of codebooks.
    sampling_rate: of all, in Hz.
    """

    original: np.ndarray
    reconstructions: dict[int, np.ndarray]
    sampling_rate: int


@dataclass(frozen=True)
class PieceScores:
    """The scores of a piece.

    originals: of the original, by metrics that need no reference.
    scores: of each reconstruction, by the number of codebooks.
    weight: seconds of the piece.
    """

    originals: Scores
    scores: dict[int, Scores]
    weight: float


def score_piece(piece: Piece, metrics: list[Metric]) -> PieceScores:
    """Measure the original and all reconstructions of a piece."""
    alone = [metric for metric in metrics if not metric.needs_reference]
    rate = piece.sampling_rate
    originals = score(None, piece.original, rate, alone) if alone else {}
    scores = {level: score(piece.original, audio, rate, metrics) for level, audio in piece.reconstructions.items()}
    return PieceScores(originals, scores, len(piece.original) / rate)


def join_scores(scores: list[Score], weights: list[float]) -> Score:
    """Average the scores of a recording's pieces.

    Args:
        scores: one per piece. Those without a value are left out.
        weights: seconds of each piece.

    Returns:
        The weighted mean; the first score, with its reason, if none has a value.
    """
    measured = [(one.value, weight) for one, weight in zip(scores, weights, strict=True) if one.value is not None]
    if not measured:
        return scores[0]
    values, seconds = zip(*measured, strict=True)
    return Score(float(np.average(values, weights=seconds)))


class Scorers:
    """Processes that score pieces of recordings. With one job there is no process: pieces are scored in this one.

    metrics: what is measured.
    jobs: how many processes.
    """

    def __init__(self, metrics: list[Metric], jobs: int):
        if jobs < 1:
            raise ValueError(f"jobs={jobs} must be at least 1.")
        self.metrics, self.jobs = metrics, jobs
        self._running: deque[Future[PieceScores]] = deque()
        start = partial(_find_metrics, [metric.name for metric in metrics])
        self._workers = Workers(jobs, start, _score_piece_there) if jobs > 1 else None

    def submit(self, piece: Piece) -> Callable[[], PieceScores]:
        """Begin to score a piece; returns a function that waits for the result."""
        if self._workers is None:
            found = score_piece(piece, self.metrics)
            return lambda: found
        if len(self._running) >= 2 * self.jobs:  # audio must not pile up where the model is faster
            _wait_for(self._running.popleft())
        future = self._workers.submit(piece)
        self._running.append(future)
        return lambda: _wait_for(future)

    def __enter__(self) -> "Scorers":
        return self

    def __exit__(self, *error: Any) -> None:
        if self._workers is not None:
            self._workers.__exit__(*error)


def _wait_for(future: "Future[PieceScores]") -> PieceScores:
    try:
        return future.result()
    except WorkerDiedError:
        raise RuntimeError(_DIED) from None


def _find_metrics(names: list[str], _number: int) -> list[Metric]:
    import torch

    torch.set_num_threads(1)
    return [METRICS[name] for name in names]


def _score_piece_there(metrics: list[Metric], piece: Piece) -> PieceScores:
    return score_piece(piece, metrics)
