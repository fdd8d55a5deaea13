"""What a shard holds, in numbers that do not depend on the run that made it. Reports of shards add up to the totals."""

import base64
import zlib
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from .encoding import Encoded


class Report(Protocol):
    """What a [`Job`] needs of the reports of its shards."""

    failures: list[dict[str, str]]

    def merge(self, other: Any) -> None:
        """Add the numbers of another report of the same kind."""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; [`from_dict`] reads it."""
        ...

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> Any:
        """The report that [`to_dict`] wrote."""
        ...


@dataclass
class CodesReport:
    """What a shard of codes holds.

    Attributes:
        counts: np.ndarray of shape (K, V), int64: how often each entry was used.
        examples, samples, frames: of what was encoded.
        failures: id and reason of each example that could not be encoded.
    """

    counts: np.ndarray
    examples: int = 0
    samples: int = 0
    frames: int = 0
    failures: list[dict[str, str]] = field(default_factory=list)

    @classmethod
    def empty(cls, num_quantizers: int, codebook_size: int) -> "CodesReport":
        """The report of no examples."""
        return cls(np.zeros((num_quantizers, codebook_size), np.int64))

    def add(self, encoded: Encoded) -> None:
        """Count one more example."""
        if encoded.codes is None:
            self.failures.append({"id": encoded.example.id, "reason": str(encoded.reason)})
            return
        self.examples += 1
        self.samples += encoded.num_samples
        self.frames += encoded.codes.shape[1]
        for counts, codes in zip(self.counts, encoded.codes, strict=True):
            counts += np.bincount(codes, minlength=len(counts))

    def merge(self, other: "CodesReport") -> None:
        """Add the numbers of another report."""
        self.counts += other.counts
        self.examples += other.examples
        self.samples += other.samples
        self.frames += other.frames
        self.failures += other.failures

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; [`from_dict`] reads it."""
        packed = base64.b64encode(zlib.compress(self.counts.astype("<i8").tobytes(), 9)).decode()
        return {**self.__dict__, "counts": packed, "shape": list(self.counts.shape)}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "CodesReport":
        """The report that [`to_dict`] wrote."""
        content = dict(content)
        counts = np.frombuffer(zlib.decompress(base64.b64decode(content["counts"])), "<i8")
        content["counts"] = counts.reshape(content.pop("shape")).astype(np.int64)
        return cls(**content)


@dataclass
class AudioReport:
    """What a shard of decoded audio holds.

    Attributes:
        examples: how many were decoded.
        seconds: of audio.
        failures: id and reason of each example that could not be decoded.
    """

    examples: int = 0
    seconds: float = 0.0
    failures: list[dict[str, str]] = field(default_factory=list)

    def merge(self, other: "AudioReport") -> None:
        """Add the numbers of another report."""
        self.examples += other.examples
        self.seconds += other.seconds
        self.failures += other.failures

    def to_dict(self) -> dict[str, Any]:
        """JSON-able; [`from_dict`] reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "AudioReport":
        """The report that [`to_dict`] wrote."""
        return cls(**content)
