"""Evaluation of a codec on recordings, at several bitrates: quality, use of the codebooks, speed."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import numpy as np
import torch

from mimi_hf.corpus.reading import UNREADABLE, check_device, describe
from mimi_hf.corpus.sources import Example, Source
from mimi_hf.inference import decode_codes, encode_blocks
from mimi_hf.inference.timing import Stopwatch, describe_machine
from mimi_hf.modeling_mimi import MimiModel
from mimi_hf.utils.machine import usable_cores

from .examples import open_examples, read_pieces
from .metrics import SILENCE, Metric, choose_metrics
from .report import CodebookUse, EvaluationReport, FileResult, Level, Sample, Scores, Summary
from .scoring import Piece, PieceScores, Scorers, join_scores

# Numbers of codebooks by default: 0.14, 0.28, 0.55 and 1.1 kbps with the published model.
LEVELS = (1, 2, 4, 8)
_SAMPLE_SECONDS = 6.0


def evaluate(
    model: MimiModel,
    source: Source | str | os.PathLike,
    num_quantizers: Iterable[int] | None = None,
    metrics: Iterable[str | Metric] | None = None,
    seconds: float | None = None,
    limit_files: int | None = None,
    jobs: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> EvaluationReport:
    """Encode and decode recordings at several bitrates, and measure the quality of the result.

    Each recording is encoded once, with the highest number of codebooks; for lower bitrates only its first codes are
    decoded. Channels are averaged before they are measured. Recordings of more than 30 s are measured in pieces of 10
    to 30 s.

    Args:
        model: to evaluate.
        source: a [`Source`], or what [`mimi_hf.corpus.sources.open_source`] opens: a file, a folder, a data set.
        num_quantizers: numbers of codebooks; by default 1, 2, 4 and 8, as far as the model has them.
        metrics: names or [`Metric`]s, see [`mimi_hf.evaluation.metrics.METRICS`]; all that are installed by default.
        seconds: how much of each recording to use, from its start; all by default.
        limit_files: use only this many recordings, from the first.
        jobs: processes that compute the metrics; half of the cores by default. With 1 the model and the metrics take
            turns, so that speeds are measured undisturbed.
        progress: called with the number of recordings that are done, and that of all; None if it is unknown.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError, TypeError: an argument is wrong, or no recording could be evaluated.
        ImportError: the package of a metric is not installed.

    Example:
        >>> report = evaluate(model, "recordings/", metrics=["stoi"])  # doctest: +SKIP
        >>> {level.num_quantizers: level.metrics["stoi"].mean for level in report.levels}  # doctest: +SKIP
        {1: 0.61, 2: 0.7, 4: 0.81, 8: 0.9}
    """
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds={seconds} must be positive, or None for whole recordings.")
    if num_quantizers is None:
        least, most = model.quantizer.num_semantic_quantizers, model.quantizer.max_num_quantizers
        levels = [level for level in LEVELS if least <= level <= most] or [most]
    else:
        levels = sorted({model.check_num_quantizers(level) for level in num_quantizers})
    if not levels:
        raise ValueError("num_quantizers names no number of codebooks. Leave it out for 1, 2, 4 and 8.")
    chosen = choose_metrics(metrics)
    examples, count = open_examples(source, limit_files)
    training = model.training
    model.eval()
    try:
        # Half of the cores: the model needs the others.
        with Scorers(chosen, max(1, usable_cores() // 2) if jobs is None else jobs) as scorers:
            run = _Run(model, levels, seconds, scorers)
            for done, result in enumerate(run.results(examples), 1):
                run.files.append(result)
                if progress is not None:
                    progress(done, count)
        return run.report(chosen)
    finally:
        model.train(training)


class _Tally:
    """Sums over audio that went through the model: of a recording, or of all.

    counts: how often each entry of each codebook appeared, array, shape = (K, V).
    samples: of the audio.
    encoding: time of the encoder.
    decoding: time of the decoder, by the number of codebooks.
    """

    def __init__(self, model: MimiModel, levels: list[int]) -> None:
        self.counts = np.zeros((levels[-1], model.config.codebook_size), np.int64)
        self.samples = 0
        self.encoding = Stopwatch(model.device)
        self.decoding = {level: Stopwatch(model.device) for level in levels}

    def add(self, other: "_Tally") -> None:
        self.counts += other.counts
        self.samples += other.samples
        self.encoding.seconds += other.encoding.seconds
        for level, watch in other.decoding.items():
            self.decoding[level].seconds += watch.seconds


class _Run:
    """An evaluation that is running."""

    def __init__(self, model: MimiModel, levels: list[int], seconds: float | None, scorers: Scorers) -> None:
        self.model, self.levels, self.seconds, self.scorers = model, levels, seconds, scorers
        self.total = _Tally(model, levels)
        self.files: list[FileResult] = []
        self.sample: Sample | None = None
        # The first call of a model does work that no later one does: it is not timed.
        frame = torch.zeros(1, model.config.audio_channels, model.config.frame_size)
        model.decoder_stream().push(model.encoder_stream().push(frame))

    def results(self, examples: Iterable[Example]) -> Iterator[FileResult]:
        """Evaluate examples, in order. While some are scored, the model works on the next ones."""
        waiting: deque[tuple[FileResult, list[Callable[[], PieceScores]]]] = deque()
        for example in examples:
            waiting.append(self._send(example))
            if len(waiting) > self.scorers.jobs:
                yield _collect(*waiting.popleft())
        while waiting:
            yield _collect(*waiting.popleft())

    def _send(self, example: Example) -> tuple[FileResult, list[Callable[[], PieceScores]]]:
        """Send a recording through the model, and its pieces to the scorers."""
        model, rate = self.model, self.model.config.sampling_rate
        tally, waiting = _Tally(model, self.levels), []
        try:
            encoder = model.encoder_stream(num_quantizers=self.levels[-1])
            decoders = {level: model.decoder_stream() for level in self.levels}
            pieces, pushed = itertools.tee(read_pieces(example, model.config, self.seconds))
            blocks = (_fill_frames(audio, model.config.frame_size) for audio in pushed)
            encoded = encode_blocks(encoder, blocks, example.id, tally.encoding)
            for audio, (codes, _) in zip(pieces, encoded, strict=False):  # whole frames leave nothing to flush
                tally.samples += audio.shape[1]
                for counts, row in zip(tally.counts, codes[0].cpu().numpy(), strict=True):
                    counts += np.bincount(row, minlength=len(counts))
                reconstructions = {}
                for level, decoder in decoders.items():
                    [decoded] = decode_codes(decoder, [codes[:, :level]], tally.decoding[level])
                    reconstructions[level] = _mix(decoded[:, : audio.shape[1]])
                piece = Piece(_mix(audio), reconstructions, rate)
                waiting.append(self.scorers.submit(piece))
                if self.sample is None or np.square(self.sample.original).mean() < SILENCE**2:
                    stop = round(_SAMPLE_SECONDS * rate)
                    cut = {level: samples[:stop].copy() for level, samples in reconstructions.items()}
                    self.sample = Sample(example.id, rate, piece.original[:stop].copy(), cut)
        except UNREADABLE as error:
            check_device(error)
            return FileResult(example.id, reason=describe(error)), []
        self.total.add(tally)
        return FileResult(example.id, tally.samples / rate), waiting

    def report(self, metrics: list[Metric]) -> EvaluationReport:
        """Sum up the results of all files."""
        scores = [file.scores for file in self.files if file.scores is not None]
        originals = [file.originals for file in self.files if file.originals is not None]
        if not scores or self.sample is None:
            first = f" The first: {self.files[0].id}: {self.files[0].reason}" if self.files else ""
            raise ValueError(f"None of the {len(self.files)} recordings could be evaluated.{first}")
        config, total = self.model.config, self.total
        duration = total.samples / config.sampling_rate
        levels = []
        for level in self.levels:
            summaries = {metric.name: Summary.of(file[level][metric.name] for file in scores) for metric in metrics}
            bits = level * self.model.bits_per_codebook * config.frame_rate
            levels.append(Level(level, bits, summaries, duration / total.decoding[level].seconds))
        return EvaluationReport(
            metrics=tuple(metrics),
            files=tuple(self.files),
            levels=tuple(levels),
            originals={name: Summary.of(file[name] for file in originals) for name in originals[0]},
            codebooks=tuple(CodebookUse.of(counts) for counts in total.counts),
            codebook_size=config.codebook_size,
            frames=int(total.counts[0].sum()),
            duration=duration,
            encode_speed=duration / total.encoding.seconds,
            dtype=str(self.model.dtype).removeprefix("torch."),
            machine=describe_machine(self.model.device),
            sample=self.sample,
        )


def _fill_frames(audio: np.ndarray, frame_size: int) -> np.ndarray:
    """A piece, shape = (C, n), with zeros up to a whole frame: only the last one of a recording is not whole."""
    return np.pad(audio, ((0, 0), (0, -audio.shape[1] % frame_size)))


def _mix(audio: np.ndarray) -> np.ndarray:
    """The mean of the channels, (C, n) -> (n,)."""
    return audio.mean(axis=0) if len(audio) > 1 else audio[0]


def _collect(result: FileResult, waiting: list[Callable[[], PieceScores]]) -> FileResult:
    """Wait for the scores of a recording's pieces, and add their means to its result."""
    if result.reason is not None:
        return result
    pieces = [wait() for wait in waiting]
    weights = [piece.weight for piece in pieces]

    def join(parts: list[Scores]) -> Scores:
        return {name: join_scores([part[name] for part in parts], weights) for name in parts[0]}

    scores = {level: join([piece.scores[level] for piece in pieces]) for level in pieces[0].scores}
    return replace(result, scores=scores, originals=join([piece.originals for piece in pieces]))
