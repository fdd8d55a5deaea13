"""Do two models, precisions or engines give the same codes, and the same audio for them?"""

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch

from mimi_hf.corpus.reading import UNREADABLE, check_device, describe

from .pieces import open_examples, read_pieces
from .variants import Engine


@dataclass(frozen=True)
class CodebookAgreement:
    """One codebook.

    equal: the share of frames whose code is the same.
    equal_so_far: the share of those whose codes of all codebooks before are the same, too. After the first difference
        a residual quantizer quantizes something else, so this tells what the codebook itself loses. None without
        any such frame.
    frames_so_far: how many those are.
    """

    equal: float
    equal_so_far: float | None
    frames_so_far: int


@dataclass(frozen=True)
class FileAgreement:
    """One recording.

    duration: seconds that were compared.
    equal: the share of codes that are the same.
    snr: dB, the energy of the first engine's audio by that of its difference from the second one's, for the same
        codes; infinite where there is no difference.
    reason: why it could not be compared, where it could not.
    """

    id: str
    duration: float = 0.0
    equal: float | None = None
    snr: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class AgreementReport:
    """What [`compare`] found.

    first, second: the names of the engines.
    codebooks: one for each.
    equal, equal_frames: the shares of codes, and of frames with all their codes, that are the same.
    snr: dB, as in [`FileAgreement`], of all audio together; median_snr: the median of the files.
    largest_difference: of any two samples; 1 is full scale.
    frames, duration: that were compared; seconds.
    files: one for each recording, those that failed, too.
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
        """For JSON, which has no infinity: where the audio is the same, the ratio is None."""
        content = {**asdict(self), "files": [asdict(file) for file in self.files]}
        for part in (content, *content["files"]):
            part["snr"] = _finite(part["snr"])
        content["median_snr"] = _finite(content["median_snr"])
        return {"same_audio": self.snr == math.inf, **content}


def compare(
    first: Engine,
    second: Engine,
    source,
    num_quantizers: int | None = None,
    seconds: float | None = None,
    limit_files: int | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> AgreementReport:
    """Encode recordings with two engines and compare the codes; decode the first one's codes with both, and compare
    the audio.

    Long recordings are compared in pieces of 20 to 30 s, each of which begins anew.

    Args:
        first, second: see [`mimi_hf.evaluation.variants.open_engine`].
        source, seconds, limit_files, progress: as for [`mimi_hf.evaluation.evaluate.evaluate`].
        num_quantizers: codebooks; as many as both have by default.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError, TypeError: the engines cannot be compared, or no recording at all could be.

    Example:

        >>> choice = ModelChoice("kyutai/mimi")  # doctest: +SKIP
        >>> engines = [open_engine(name, choice) for name in ("float32", "bfloat16")]  # doctest: +SKIP
        >>> report = compare(*engines, "recordings/")  # doctest: +SKIP
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
        statistics.median(file.snr for file in good),
        total.largest,
        total.frames,
        total.samples / first.config.sampling_rate,
        tuple(files),
    )


def _common_levels(first: Engine, second: Engine, num_quantizers: int | None) -> int:
    for name in ("sampling_rate", "frame_size", "audio_channels", "codebook_size"):
        values = [getattr(engine.config, name) for engine in (first, second)]
        if values[0] != values[1]:
            raise ValueError(
                f"{first.name} and {second.name} cannot be compared: their {name} is {values[0]} and {values[1]}."
            )
    most = min(engine.config.num_quantizers for engine in (first, second))
    if num_quantizers is not None and not 1 <= num_quantizers <= most:
        raise ValueError(f"num_quantizers={num_quantizers}, but {first.name} and {second.name} both have 1 to {most}.")
    return num_quantizers or most


class _Sums:
    """Sums over frames and samples.

    equal_codes, so_far: frames whose code of this codebook, and of all codebooks up to it, is the same, shape = (K,).
    """

    def __init__(self, levels: int):
        self.equal_codes, self.so_far = np.zeros(levels, np.int64), np.zeros(levels, np.int64)
        self.frames = self.samples = 0
        self.energy = self.error = self.largest = 0.0

    def compare(self, first: Engine, second: Engine, audio: torch.Tensor):
        """Add one piece: Tensor, shape = (1, C, N)."""
        codes, others = (engine.encode(audio, len(self.so_far)).cpu() for engine in (first, second))
        if codes.shape != others.shape:
            raise ValueError(f"{first.name} gave codes of shape {codes.shape}, and {second.name} of {others.shape}.")
        same = (codes == others)[0].numpy()  # (K, F)
        self.equal_codes += same.sum(axis=1)
        self.so_far += np.logical_and.accumulate(same, axis=0).sum(axis=1)
        self.frames += same.shape[1]
        decoded, other = (_decode(engine, codes, audio.shape[2]) for engine in (first, second))
        difference = decoded - other
        self.samples += audio.shape[2]
        self.energy += float(decoded.square().sum())
        self.error += float(difference.square().sum())
        self.largest = max(self.largest, float(difference.abs().max()))

    def add(self, other: "_Sums"):
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


def _decode(engine: Engine, codes: torch.Tensor, num_samples: int) -> torch.Tensor:
    """Tensor, shape = (1, C, N), float64."""
    audio = engine.decode(codes)[..., :num_samples].double().cpu()
    if not torch.isfinite(audio).all():
        raise ValueError(f"{engine.name} decoded the codes to NaN or infinity.")
    return audio


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
