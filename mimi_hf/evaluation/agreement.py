"""Whether two variants of a codec, or two models, give the same codes, and the same audio for these codes."""

import math
import os
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mimi_hf.corpus.reading import UNREADABLE, check_device, describe
from mimi_hf.corpus.sources import Source

from .examples import open_examples, read_pieces
from .variants import Variant


@dataclass(frozen=True)
class CodebookAgreement:
    """How often the codes of one codebook are equal.

    equal: share of all frames whose code is equal.
    equal_so_far: share of the frames whose codes of all earlier codebooks are equal; None if there is no such frame.
        After the first difference a residual quantizer has other residuals to quantize: this share shows what the
        codebook itself adds.
    frames_so_far: how many frames have equal codes of all earlier codebooks.
    """

    equal: float
    equal_so_far: float | None
    frames_so_far: int


@dataclass(frozen=True)
class FileAgreement:
    """The agreement on one recording.

    id: as in its source.
    duration: seconds that were compared.
    equal: share of equal codes; None if it failed.
    snr: energy of the first variant's audio over the energy of its difference from the second one's, for the same
        codes, in dB. Infinite if there is no difference; None if it failed.
    reason: why it could not be compared; None if it was.
    """

    id: str
    duration: float = 0.0
    equal: float | None = None
    snr: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class AgreementReport:
    """The result of [`compare`].

    first, second: names of the variants.
    codebooks: the agreement of each codebook.
    equal: share of equal codes.
    equal_frames: share of frames whose codes are all equal.
    snr: of all audio together, in dB, see [`FileAgreement`].
    median_snr: the median of the files' values.
    largest_difference: of any two samples; 1 is full scale.
    frames: how many were compared.
    duration: seconds that were compared.
    files: one result per recording, including those that failed.
    """

    first: str
    second: str
    codebooks: tuple[CodebookAgreement, ...]
    equal: float
    equal_frames: float
    snr: float
    median_snr: float
    largest_difference: float
    frames: int
    duration: float
    files: tuple[FileAgreement, ...]

    @property
    def failures(self) -> list[FileAgreement]:
        """The files that could not be compared."""
        return [file for file in self.files if file.reason is not None]

    def to_dict(self) -> dict:
        """Convert the report to values for JSON. JSON has no infinity: infinite ratios become None."""

        def finite(values: dict[str, Any]) -> dict[str, Any]:
            infinite = {name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)}
            return {**values, **dict.fromkeys(infinite)}

        files = [finite(asdict(file)) for file in self.files]
        return {"same_audio": self.snr == math.inf, **finite(asdict(self)), "files": files}


def compare(
    first: Variant,
    second: Variant,
    source: Source | str | os.PathLike,
    num_quantizers: int | None = None,
    seconds: float | None = None,
    limit_files: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> AgreementReport:
    """Compare the codes and the audio of two variants of a codec.

    Both encode each recording, and both decode the codes of the first one. Long recordings are compared in independent
    pieces of 10 to 30 s.

    Args:
        first, second: see [`mimi_hf.evaluation.variants.open_variant`].
        source, seconds, limit_files, progress: see [`mimi_hf.evaluation.evaluate.evaluate`].
        num_quantizers: codebooks to compare; by default all that both have.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError, TypeError: the variants cannot be compared, or no recording could be.

    Example:
        >>> choice = ModelChoice("kyutai/mimi")  # doctest: +SKIP
        >>> variants = [open_variant(name, choice) for name in ("float32", "bfloat16")]  # doctest: +SKIP
        >>> report = compare(*variants, "recordings/")  # doctest: +SKIP
        >>> [round(codebook.equal, 3) for codebook in report.codebooks]  # doctest: +SKIP
        [0.997, 0.984, 0.961, 0.93]
    """
    levels = _common_levels(first, second, num_quantizers)
    examples, count = open_examples(source, limit_files)
    total, files = _Sums(levels), []
    for done, example in enumerate(examples, 1):
        sums = _Sums(levels)
        try:
            for audio in read_pieces(example, first.config, seconds):
                sums.compare(first, second, torch.from_numpy(audio)[None])
        except UNREADABLE as error:
            check_device(error)
            files.append(FileAgreement(example.id, reason=describe(error)))
        else:
            duration = sums.samples / first.config.sampling_rate
            files.append(FileAgreement(example.id, duration, sums.equal, sums.snr))
            total.add(sums)
        if progress is not None:
            progress(done, count)
    good = [file for file in files if file.reason is None]
    if not good:
        reason = f" The first: {files[0].id}: {files[0].reason}" if files else ""
        raise ValueError(f"None of the {len(files)} recordings could be compared.{reason}")
    return AgreementReport(
        first.name,
        second.name,
        total.codebooks(),
        total.equal,
        float(total.so_far[-1] / total.frames),
        total.snr,
        statistics.median(file.snr for file in good if file.snr is not None),
        total.largest,
        total.frames,
        total.samples / first.config.sampling_rate,
        tuple(files),
    )


def _common_levels(first: Variant, second: Variant, num_quantizers: int | None) -> int:
    """How many codebooks to compare."""
    for name in ("sampling_rate", "frame_size", "audio_channels", "codebook_size"):
        values = [getattr(variant.config, name) for variant in (first, second)]
        if values[0] != values[1]:
            raise ValueError(
                f"{first.name} and {second.name} cannot be compared: their {name} is {values[0]} and {values[1]}."
            )
    most = min(variant.config.num_quantizers for variant in (first, second))
    if num_quantizers is not None and not 1 <= num_quantizers <= most:
        raise ValueError(f"num_quantizers={num_quantizers}, but {first.name} and {second.name} both have 1 to {most}.")
    return num_quantizers or most


class _Sums:
    """Sums over the frames and samples of a recording, or of all.

    equal_codes: frames with an equal code, by codebook, shape = (K,).
    so_far: frames whose codes of this and all earlier codebooks are equal, shape = (K,).
    energy, error: sums of squares of the first variant's audio, and of the differences.
    """

    def __init__(self, levels: int) -> None:
        self.equal_codes, self.so_far = np.zeros(levels, np.int64), np.zeros(levels, np.int64)
        self.frames = self.samples = 0
        self.energy = self.error = self.largest = 0.0

    def compare(self, first: Variant, second: Variant, audio: torch.Tensor) -> None:
        """Compare the variants on a piece of audio, Tensor, shape = (1, C, N), and add what was found."""
        codes, others = (variant.encode(audio, len(self.so_far)).cpu() for variant in (first, second))
        if codes.shape != others.shape:
            raise ValueError(f"{first.name} gave codes of shape {codes.shape}, and {second.name} of {others.shape}.")
        same = (codes == others)[0].numpy()  # (K, F)
        self.equal_codes += same.sum(axis=1)
        self.so_far += np.logical_and.accumulate(same, axis=0).sum(axis=1)
        self.frames += same.shape[1]
        signals = []  # (1, C, N), float64
        for variant in (first, second):
            signals.append(variant.decode(codes)[..., : audio.shape[2]].double().cpu())
            if not torch.isfinite(signals[-1]).all():
                raise ValueError(f"{variant.name} decoded the codes to NaN or infinity.")
        decoded, difference = signals[0], signals[0] - signals[1]
        self.samples += audio.shape[2]
        self.energy += float(decoded.square().sum())
        self.error += float(difference.square().sum())
        self.largest = max(self.largest, float(difference.abs().max()))

    def add(self, other: "_Sums") -> None:
        self.equal_codes += other.equal_codes
        self.so_far += other.so_far
        self.frames += other.frames
        self.samples += other.samples
        self.energy += other.energy
        self.error += other.error
        self.largest = max(self.largest, other.largest)

    @property
    def equal(self) -> float:
        return float(self.equal_codes.mean() / self.frames)

    @property
    def snr(self) -> float:
        if not self.error:
            return math.inf
        return 10 * math.log10(self.energy / self.error) if self.energy else -math.inf

    def codebooks(self) -> tuple[CodebookAgreement, ...]:
        before = [self.frames, *self.so_far[:-1]]
        return tuple(
            CodebookAgreement(float(equal / self.frames), float(both / frames) if frames else None, int(frames))
            for equal, both, frames in zip(self.equal_codes, self.so_far, before, strict=True)
        )
