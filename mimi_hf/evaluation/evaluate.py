"""A data set through a codec at several bitrates: quality, the use of codebooks, speed."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

from mimi_hf.corpus.reading import UNREADABLE, check_device, describe
from mimi_hf.corpus.sources import Example
from mimi_hf.inference.timing import describe_machine, synchronize
from mimi_hf.utils.machine import usable_cores

from .metrics import SILENCE, Metric, choose_metrics
from .pieces import levels_of, open_examples, read_pieces
from .report import CodebookUse, EvaluationReport, FileResult, Level, Sample, Summary
from .scoring import Piece, PieceScores, Scorers, join_scores

# Codebooks by default: 0.14, 0.28, 0.55 and 1.1 kbps of the published model.
LEVELS = (1, 2, 4, 8)
_SAMPLE_SECONDS = 6.0


def evaluate(
    model,
    source,
    num_quantizers: Iterable[int] | None = None,
    metrics: Iterable[str | Metric] | None = None,
    seconds: float | None = None,
    limit_files: int | None = None,
    jobs: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> EvaluationReport:
    """Send recordings through a model, and measure what is left of them.

    Each is encoded once, with as many codebooks as are asked for, and its first codes alone are decoded for the lower
    bitrates. Metrics of channels are those of their mean. Long recordings are measured in pieces of 20 to 30 s.

    Args:
        model: a [`MimiModel`].
        source: a file, a folder, a data set: whatever [`mimi_hf.corpus.sources.open_source`] takes, or a [`Source`].
        num_quantizers: numbers of codebooks; those of 1, 2, 4 and 8 that the model has by default.
        metrics: names, see [`mimi_hf.evaluation.metrics.METRICS`]; all that are installed by default.
        seconds: of each recording, from its start; all by default.
        limit_files: take the first ones alone.
        jobs: processes for the metrics, beside the model; half of the cores by default. With 1 they wait for each
            other, so that nothing disturbs the speeds.
        progress: called with the number of recordings done, and of all, or None where that is not known.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError, TypeError: an argument is wrong, or no recording at all could be evaluated.
        ImportError: the package of a metric that is named is not installed.

    Example:

        >>> report = evaluate(model, "recordings/", metrics=["stoi"])  # doctest: +SKIP
        >>> {level.num_quantizers: level.metrics["stoi"].mean for level in report.levels}  # doctest: +SKIP
        {1: 0.61, 2: 0.7, 4: 0.81, 8: 0.9}
    """
    if seconds is not None and not seconds > 0:
        raise ValueError(f"seconds={seconds} must be positive, or None for whole recordings.")
    levels, chosen = levels_of(model, num_quantizers, LEVELS), choose_metrics(metrics)
    examples, count = open_examples(source, limit_files)
    training = model.training
    model.eval()
    try:
        with Scorers(chosen, default_jobs() if jobs is None else jobs) as scorers:
            run = _Run(model, levels, seconds, scorers)
            for done, result in enumerate(run.results(examples), 1):
                run.files.append(result)
                if progress is not None:
                    progress(done, count)
        return run.report(chosen)
    finally:
        model.train(training)


def default_jobs() -> int:
    """Half of the cores: the model needs the others."""
    return max(1, usable_cores() // 2)


@dataclass
class _Tally:
    """Sums over audio that went through the model.

    counts: how often each entry of each codebook appeared, shape = (K, V).
    samples: of audio. encode, decode: wall-clock seconds, these by the number of codebooks.
    """

    counts: np.ndarray
    samples: int = 0
    encode: float = 0.0
    decode: dict[int, float] = field(default_factory=dict)

    def add(self, other: "_Tally"):
        self.counts += other.counts
        self.samples += other.samples
        self.encode += other.encode
        for level, seconds in other.decode.items():
            self.decode[level] = self.decode.get(level, 0.0) + seconds


class _Run:
    """One evaluation on its way."""

    def __init__(self, model, levels: list[int], seconds: float | None, scorers: Scorers):
        self.model, self.levels, self.seconds, self.scorers = model, levels, seconds, scorers
        self.total = self._tally()
        self.files: list[FileResult] = []
        self.sample: Sample | None = None
        # What is done at first use, shall not count.
        frame = torch.zeros(1, model.config.audio_channels, model.config.frame_size)
        model.decoder_stream().push(model.encoder_stream().push(frame))

    def _tally(self) -> _Tally:
        return _Tally(np.zeros((self.levels[-1], self.model.config.codebook_size), np.int64))

    def results(self, examples: Iterable[Example]) -> Iterator[FileResult]:
        """One for each example, in order, while the pieces of those behind it are measured."""
        waiting: deque = deque()
        for example in examples:
            waiting.append(self._send(example))
            if len(waiting) > self.scorers.jobs:
                yield _collect(*waiting.popleft())
        while waiting:
            yield _collect(*waiting.popleft())

    def _send(self, example: Example) -> tuple[FileResult, list[Callable[[], PieceScores]]]:
        """Send a recording through the model, and its pieces to be scored."""
        tally, waiting = self._tally(), []
        try:
            for piece in self._through_model(example, tally):
                waiting.append(self.scorers.submit(piece))
                self._keep_sample(example, piece)
        except UNREADABLE as error:
            check_device(error)
            return FileResult(example.id, reason=describe(error)), []
        self.total.add(tally)
        return FileResult(example.id, tally.samples / self.model.config.sampling_rate), waiting

    def _through_model(self, example: Example, tally: _Tally) -> Iterator[Piece]:
        model, rate = self.model, self.model.config.sampling_rate
        encoder = model.encoder_stream(num_quantizers=self.levels[-1])
        decoders = {level: model.decoder_stream() for level in self.levels}
        for audio in read_pieces(example, model.config, self.seconds):
            chunk = torch.from_numpy(audio)[None].to(model.device)
            codes, seconds = self._timed(_encode, encoder, chunk)
            tally.encode += seconds
            tally.samples += audio.shape[1]
            for counts, row in zip(tally.counts, codes[0].cpu().numpy(), strict=True):
                counts += np.bincount(row, minlength=len(counts))
            reconstructions = {}
            for level, decoder in decoders.items():
                decoded, seconds = self._timed(decoder.push, codes[:, :level])
                tally.decode[level] = tally.decode.get(level, 0.0) + seconds
                reconstructions[level] = _mixed(decoded[0, :, : audio.shape[1]].float().cpu().numpy())
            yield Piece(_mixed(audio), reconstructions, rate)

    def _timed(self, call: Callable[..., torch.Tensor], *arguments) -> tuple[torch.Tensor, float]:
        synchronize(self.model.device)
        begin = time.perf_counter()
        result = call(*arguments)
        synchronize(self.model.device)
        return result, time.perf_counter() - begin

    def _keep_sample(self, example: Example, piece: Piece):
        """The first seconds that are not silent; anything until they come."""
        stop = round(_SAMPLE_SECONDS * piece.sampling_rate)
        heard = self.sample is not None and np.square(self.sample.original).mean() >= SILENCE**2
        if not heard:
            cut = {level: audio[:stop].copy() for level, audio in piece.reconstructions.items()}
            self.sample = Sample(example.id, piece.sampling_rate, piece.original[:stop].copy(), cut)

    def report(self, metrics: list[Metric]) -> EvaluationReport:
        """Sum up."""
        good = [file for file in self.files if file.reason is None]
        if not good:
            first = f" The first: {self.files[0].id}: {self.files[0].reason}" if self.files else ""
            raise ValueError(f"None of the {len(self.files)} recordings could be evaluated.{first}")
        config, total = self.model.config, self.total
        duration = total.samples / config.sampling_rate
        levels = []
        for level in self.levels:
            names = [metric.name for metric in metrics]
            summaries = {name: Summary.of(file.scores[level][name] for file in good) for name in names}
            bits = level * self.model.bits_per_codebook * config.frame_rate
            levels.append(Level(level, bits, summaries, duration / total.decode[level]))
        return EvaluationReport(
            metrics=tuple(metrics),
            files=tuple(self.files),
            levels=tuple(levels),
            originals={name: Summary.of(file.originals[name] for file in good) for name in good[0].originals},
            codebooks=tuple(CodebookUse.of(counts) for counts in total.counts),
            codebook_size=config.codebook_size,
            frames=int(total.counts[0].sum()),
            duration=duration,
            encode_speed=duration / total.encode,
            dtype=str(self.model.dtype).removeprefix("torch."),
            machine=describe_machine(self.model.device),
            sample=self.sample,
        )


def _encode(encoder, chunk: torch.Tensor) -> torch.Tensor:
    """The frames of a piece. Only the last one of a recording is not whole."""
    codes = encoder.push(chunk)
    if encoder.pending.shape[2]:
        codes = torch.cat([codes, encoder.flush().audio_codes], dim=2)
    return codes


def _mixed(audio: np.ndarray) -> np.ndarray:
    """(C, n) -> (n,)"""
    return audio.mean(axis=0) if len(audio) > 1 else audio[0]


def _collect(result: FileResult, waiting: list[Callable[[], PieceScores]]) -> FileResult:
    """The result of a recording with its scores, when all pieces have theirs."""
    if result.reason is not None:
        return result
    pieces = [wait() for wait in waiting]
    weights = [piece.weight for piece in pieces]

    def join(parts):
        return {name: join_scores([part[name] for part in parts], weights) for name in parts[0]}

    scores = {level: join([piece.scores[level] for piece in pieces]) for level in pieces[0].scores}
    return FileResult(result.id, result.duration, scores, join([piece.originals for piece in pieces]))
