"""What an evaluation found, and its form in files."""

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
    """One recording.

    id: as its source calls it.
    duration: seconds that were evaluated.
    scores: of the reconstruction with k codebooks, by k and by the name of the metric.
    originals: of the recording itself, where a metric needs no reference.
    reason: why it could not be evaluated, where it could not.
    """

    id: str
    duration: float = 0.0
    scores: dict[int, Scores] | None = None
    originals: Scores | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Summary:
    """A metric over files, each of which weighs the same.

    mean, median, low, high: of the files that have a value; low and high are the quartiles. None where none has.
    count: how many have.
    """

    mean: float | None
    median: float | None
    low: float | None
    high: float | None
    count: int

    @classmethod
    def of(cls, scores: Iterable[Score]) -> "Summary":
        values = [score.value for score in scores if score.value is not None]
        if not values:
            return cls(None, None, None, None, 0)
        low, high = (float(quartile) for quartile in np.quantile(values, (0.25, 0.75)))
        return cls(statistics.fmean(values), statistics.median(values), low, high, len(values))


@dataclass(frozen=True)
class Level:
    """The first codebooks alone.

    num_quantizers: how many.
    bits_per_second: K * log2(V) * frame rate.
    metrics: by name.
    decode_speed: seconds of audio decoded in a second.
    """

    num_quantizers: int
    bits_per_second: float
    metrics: dict[str, Summary]
    decode_speed: float


@dataclass(frozen=True)
class CodebookUse:
    """How a codebook was used.

    used: entries that appeared.
    entropy: bits, of the distribution of codes without regard to their order; log2(V) at most. Few frames make it
        appear smaller than it is.
    perplexity: 2 ** entropy: as many entries, used equally, would have this entropy.
    """

    used: int
    entropy: float
    perplexity: float

    @classmethod
    def of(cls, counts: np.ndarray) -> "CodebookUse":
        """counts: how often each entry appeared, shape = (V,)."""
        shares = counts[counts > 0] / max(1, counts.sum())
        entropy = abs(float(shares @ np.log2(shares)))
        return cls(int((counts > 0).sum()), entropy, 2.0**entropy)


@dataclass(frozen=True)
class Sample:
    """A part of a recording, to look at.

    original, reconstructions: arrays, shape = (N,); these by the number of codebooks.
    """

    id: str
    sampling_rate: int
    original: np.ndarray
    reconstructions: dict[int, np.ndarray]


@dataclass(frozen=True)
class EvaluationReport:
    """What [`evaluate`] found.

    metrics: what was measured, in order.
    files: one for each recording, those that failed, too.
    levels: with so and so many codebooks, from few to many.
    originals: of the recordings themselves, where a metric needs no reference.
    codebooks: the use of each, over all files.
    codebook_size: V.
    frames, duration: of all files; seconds.
    encode_speed: seconds of audio encoded in a second, with all of these codebooks.
    dtype, machine: where the speeds are from, see [`mimi_hf.inference.timing.describe_machine`].
    sample: a recording to look at; None where none could be evaluated.
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
    sample: Sample | None = None

    @property
    def failures(self) -> list[FileResult]:
        """The files that could not be evaluated."""
        return [file for file in self.files if file.reason is not None]

    def to_dict(self) -> dict:
        """For JSON: all but the sample."""
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

    def write_csv(self, path: Path):
        """A table with a row for each file and number of codebooks."""
        names = [metric.name for metric in self.metrics]
        originals = [metric.name for metric in self.metrics if not metric.needs_reference]
        bits = {level.num_quantizers: level.bits_per_second for level in self.levels}
        head = ["file", "duration", "num_quantizers", "bits_per_second", *names]
        head += [*(f"{name}_original" for name in originals), "reason"]
        with open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            table = csv.writer(file)
            table.writerow(head)
            for result in self.files:
                if result.reason is not None:
                    table.writerow([result.id, *[""] * (len(head) - 2), result.reason])
                for levels, scores in (result.scores or {}).items():
                    found = {**scores, **{f"{name}_original": result.originals[name] for name in originals}}
                    reasons = [f"{name}: {score.reason}" for name, score in found.items() if score.reason]
                    values = ["" if found[name].value is None else found[name].value for name in head[4:-1]]
                    table.writerow([result.id, result.duration, levels, bits[levels], *values, "; ".join(reasons)])


def write_json(path: Path, content: dict):
    """JSON as people read it, too."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
