"""The results of an evaluation, and how they are written to JSON and CSV."""

import csv
import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from .metrics import Metric, Score

Scores = dict[str, Score]


@dataclass(frozen=True)
class FileResult:
    """The result of one recording.

    id: as in its source.
    duration: seconds that were evaluated.
    scores: of the reconstructions, by the number of codebooks, then by the name of the metric; None if it failed.
    originals: scores of the recording itself, by metrics that need no reference; None if it failed.
    reason: why it could not be evaluated; None if it was.
    """

    id: str
    duration: float = 0.0
    scores: dict[int, Scores] | None = None
    originals: Scores | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Summary:
    """Statistics of a metric over all files that have a value. Each file counts the same.

    mean, median: None if no file has a value.
    low, high: the first and the third quartile; None if no file has a value.
    count: how many files have a value.
    """

    mean: float | None
    median: float | None
    low: float | None
    high: float | None
    count: int

    @classmethod
    def of(cls, scores: Iterable[Score]) -> "Summary":
        """Summarize the scores of files."""
        values = [score.value for score in scores if score.value is not None]
        if not values:
            return cls(None, None, None, None, 0)
        low, high = (float(quartile) for quartile in np.quantile(values, (0.25, 0.75)))
        return cls(statistics.fmean(values), statistics.median(values), low, high, len(values))


@dataclass(frozen=True)
class Level:
    """The results with one number of codebooks.

    num_quantizers: K, how many of the first codebooks were decoded.
    bits_per_second: K * log2(V) * frame rate.
    metrics: statistics by the name of the metric.
    decode_speed: seconds of audio decoded per second.
    """

    num_quantizers: int
    bits_per_second: float
    metrics: dict[str, Summary]
    decode_speed: float


@dataclass(frozen=True)
class CodebookUse:
    """How evenly the entries of a codebook were used.

    used: how many entries appeared.
    entropy: of the distribution of entries, in bits, at most log2(V). Few frames make it look smaller than it is.
    perplexity: 2 ** entropy: this many entries, used equally often, have the same entropy.
    """

    used: int
    entropy: float
    perplexity: float

    @classmethod
    def of(cls, counts: np.ndarray) -> "CodebookUse":
        """Measure the use of a codebook.

        Args:
            counts: array, shape = (V,), integers: how often each entry appeared.
        """
        shares = counts[counts > 0] / max(1, counts.sum())
        entropy = abs(float(shares @ np.log2(shares)))
        return cls(int((counts > 0).sum()), entropy, 2.0**entropy)


@dataclass(frozen=True)
class Sample:
    """The start of a recording, for a picture.

    id: of the recording.
    sampling_rate: in Hz.
    original: array, shape = (N,).
    reconstructions: arrays, shape = (N,), by the number of codebooks.
    """

    id: str
    sampling_rate: int
    original: np.ndarray
    reconstructions: dict[int, np.ndarray]


@dataclass(frozen=True)
class EvaluationReport:
    """The result of [`mimi_hf.evaluation.evaluate.evaluate`].

    metrics: in the order in which they were asked for.
    files: one result per recording, including those that failed.
    levels: results by the number of codebooks, fewest first.
    originals: statistics of the recordings themselves, by metrics that need no reference.
    codebooks: the use of each codebook, over all files.
    codebook_size: V.
    frames: of all files.
    duration: of all files, in seconds.
    encode_speed: seconds of audio encoded per second, with the highest number of codebooks.
    dtype: precision of the model.
    machine: what the speeds were measured on, see [`mimi_hf.inference.timing.describe_machine`].
    sample: the start of a recording, for a picture.
    """

    metrics: tuple[Metric, ...]
    files: tuple[FileResult, ...]
    levels: tuple[Level, ...]
    originals: dict[str, Summary]
    codebooks: tuple[CodebookUse, ...]
    codebook_size: int
    frames: int
    duration: float
    encode_speed: float
    dtype: str
    machine: dict
    sample: Sample

    @property
    def failures(self) -> list[FileResult]:
        """The files that could not be evaluated."""
        return [file for file in self.files if file.reason is not None]

    def to_dict(self) -> dict:
        """Convert the report to values for JSON, without the sample."""
        facts = ("dtype", "duration", "frames", "encode_speed", "codebook_size", "machine")
        of_metric = ("name", "label", "unit", "higher_is_better", "source")
        return {
            **{name: getattr(self, name) for name in facts},
            "metrics": [{name: getattr(metric, name) for name in of_metric} for metric in self.metrics],
            "levels": [asdict(level) for level in self.levels],
            "originals": {name: asdict(summary) for name, summary in self.originals.items()},
            "codebooks": [asdict(codebook) for codebook in self.codebooks],
            "files": [asdict(file) for file in self.files],
        }

    def write_csv(self, path: Path) -> None:
        """Write a table with a row for each file and number of codebooks."""
        names = [metric.name for metric in self.metrics]
        originals = [metric.name for metric in self.metrics if not metric.needs_reference]
        bits = {level.num_quantizers: level.bits_per_second for level in self.levels}
        head = ["file", "duration", "num_quantizers", "bits_per_second", *names]
        head += [*(f"{name}_original" for name in originals), "reason"]
        with Path(path).open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            table = csv.writer(file)
            table.writerow(head)
            for result in self.files:
                if result.reason is not None:
                    table.writerow([result.id, *[""] * (len(head) - 2), result.reason])
                of_original = {f"{name}_original": score for name, score in (result.originals or {}).items()}
                for level, scores in (result.scores or {}).items():
                    found = {**scores, **of_original}
                    reasons = [f"{name}: {score.reason}" for name, score in found.items() if score.reason]
                    values = ["" if found[name].value is None else found[name].value for name in head[4:-1]]
                    table.writerow([result.id, result.duration, level, bits[level], *values, "; ".join(reasons)])


def write_json(path: Path, content: dict) -> None:
    """Write JSON that is indented for people. NaN and infinity are refused."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
