"""Options and reports of encoding to `.mimi` and decoding from it."""

from dataclasses import dataclass, field

from mimi_hf.audio import PCM
from mimi_hf.audio.blocks import TOO_LONG


@dataclass(frozen=True)
class EncodeOptions:
    """How to encode.

    num_quantizers: K, codebooks to use; all if None.
    stereo: keep the channels, each a stream of its own; otherwise they are mixed.
    entropy: code the codes again, which is slower and smaller (extra `entropy`).
    metadata: a JSON object for the file, besides what is known about the source.
    pcm: what a source without a header is made of.
    """

    num_quantizers: int | None = None
    stereo: bool = False
    entropy: bool = False
    metadata: dict = field(default_factory=dict)
    pcm: PCM | None = None


@dataclass(frozen=True)
class DecodeOptions:
    """How to decode.

    num_quantizers: K, the first codebooks of the file; all if None.
    start, duration: the part to decode, in seconds; what lies past the end is left out.
    any_model: decode with codebooks that are not those of the file, too.
    sample_format, header: of what goes into a pipe, see [`PCM`]; with a WAV header or without.
    """

    num_quantizers: int | None = None
    start: float = 0.0
    duration: float | None = None
    any_model: bool = False
    sample_format: str = "s16le"
    header: bool = True

    def __post_init__(self) -> None:
        PCM(sample_format=self.sample_format)  # refuses unknown ones
        for name, value, lowest in (("start", self.start, 0), ("duration", self.duration, 1e-9)):
            if value is not None and not lowest <= value < TOO_LONG:
                rule = "0 or more" if lowest == 0 else "more than 0"
                raise ValueError(f"{name}={value!r} must be seconds, {rule} and below {TOO_LONG:g}.")


@dataclass(frozen=True)
class EncodeReport:
    """What was encoded.

    source, output: names, "-" for a pipe.
    duration: seconds of audio.
    frames, channels, num_quantizers: F, streams of codes, and K of each.
    num_bytes, bits_per_second: size of the file, all in all; of the codes alone for a pipe.
    seconds: that it took.
    """

    source: str
    output: str
    duration: float
    frames: int
    channels: int
    num_quantizers: int
    num_bytes: int | None
    bits_per_second: float
    seconds: float


@dataclass(frozen=True)
class DecodeReport:
    """What was decoded.

    source, output: names, "-" for a pipe.
    duration: seconds of audio written.
    channels, sampling_rate: of the audio.
    num_quantizers: K that were used.
    complete: False where the source was cut short, and the audio ends with its last whole block.
    seconds: that it took.
    """

    source: str
    output: str
    duration: float
    channels: int
    sampling_rate: int
    num_quantizers: int
    complete: bool
    seconds: float
