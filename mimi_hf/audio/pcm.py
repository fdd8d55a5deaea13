"""Raw samples and WAV headers: pure bytes. Letters for shapes: C channels, n samples of a block."""

import struct
from dataclasses import dataclass

import numpy as np

from mimi_hf.utils.files import BinaryReader, BinaryWriter, read_exactly, write_all

from .mix import check_rate

# Bytes per sample of each format of raw audio, by ffmpeg's names, and arecord's names for the same formats.
SAMPLE_FORMATS = {"u8": 1, "s16le": 2, "s24le": 3, "s32le": 4, "f32le": 4, "f64le": 8}
_ALIASES = {"U8": "u8", "S16_LE": "s16le", "S24_3LE": "s24le", "S32_LE": "s32le", "FLOAT_LE": "f32le"}
# From this length on, a WAV header means "unknown": sox writes 0x7ffff000, arecord 0x80000000, ffmpeg 0xffffffff.
_ENDLESS = 0x7FFF_F000
_READ_SIZE = 65_536


@dataclass(frozen=True)
class PCM:
    """The format of raw audio.

    Attributes:
        sampling_rate: samples per second.
        channels: how many, interleaved.
        sample_format: one of `SAMPLE_FORMATS`, or arecord's name for it (S16_LE, S24_3LE, S32_LE, FLOAT_LE).

    Raises:
        ValueError, TypeError: for a rate, a number of channels or a format that cannot be.
    """

    sampling_rate: float = 24_000
    channels: int = 1
    sample_format: str = "s16le"

    def __post_init__(self) -> None:
        check_rate(self.sampling_rate)
        object.__setattr__(self, "sample_format", _ALIASES.get(self.sample_format, self.sample_format))
        if self.sample_format not in SAMPLE_FORMATS:
            raise ValueError(
                f"sample_format={self.sample_format!r} is none of {', '.join(SAMPLE_FORMATS)}"
                f" (or {', '.join(_ALIASES)}). Name one of these."
            )
        if isinstance(self.channels, bool) or not isinstance(self.channels, int) or not 1 <= self.channels <= 1024:
            raise ValueError(f"channels={self.channels!r} must be a whole number from 1 to 1024.")

    @property
    def width(self) -> int:
        """Bytes of one sample of all channels."""
        return SAMPLE_FORMATS[self.sample_format] * self.channels


class PCMWriter:
    """Writes raw samples or WAV to a pipe, each block at once.

    Args:
        file: where to; it is left open.
        pcm: the format to write.
        header: begin with a WAV header, whose length says "unknown".

    Raises:
        BlockingIOError: the file does not block, and is full.
    """

    def __init__(self, file: BinaryWriter, pcm: PCM, header: bool = True):
        self.file, self.pcm = file, pcm
        if header:
            write_all(file, encode_wav_header(pcm))

    def write(self, block: np.ndarray) -> None:
        """Write and flush a block (C, n), floating point, clipped to [-1, 1].

        Raises:
            ValueError: the block holds NaN or infinity.
        """
        write_all(self.file, encode_samples(clip_finite(block), self.pcm.sample_format))


def clip_finite(block: np.ndarray) -> np.ndarray:
    """Clip audio to [-1, 1], as float32. Raises ValueError for NaN and infinity."""
    if not np.isfinite(block).all():
        raise ValueError(
            "The audio to write holds NaN or infinity. Check the model and decode in float32 (--dtype float32), or"
            " replace these values, for example with numpy.nan_to_num."
        )
    return block.clip(-1, 1).astype(np.float32, copy=False)


def decode_samples(data: bytes, pcm: PCM) -> np.ndarray:
    """Decode interleaved samples to float32 in [-1, 1], shape (n, C). Scales as libsndfile does."""
    sample_format, size = pcm.sample_format, SAMPLE_FORMATS[pcm.sample_format]
    if sample_format == "u8":
        samples = (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    elif sample_format[0] == "f":
        with np.errstate(over="ignore"):
            samples = np.frombuffer(data, f"<f{size}").astype(np.float32)
    else:
        if sample_format == "s24le":  # as the upper bytes of 32 bits
            padded = np.zeros((len(data) // 3, 4), np.uint8)
            padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
            data, size = padded.tobytes(), 4
        samples = np.frombuffer(data, f"<i{size}").astype(np.float32) / np.float32(2 ** (8 * size - 1))
    return samples.reshape(-1, pcm.channels)


def encode_samples(block: np.ndarray, sample_format: str) -> bytes:
    """Encode a block (C, n) in [-1, 1] as interleaved samples. Scales as libsndfile does."""
    samples, size = block.T, SAMPLE_FORMATS[sample_format]
    if sample_format[0] == "f":
        return samples.astype(f"<f{size}").tobytes()
    scaled = np.rint(samples.astype(np.float64) * (2 ** (8 * size - 1) - 1)).astype("<i4")
    if sample_format == "u8":
        return (scaled + 128).astype(np.uint8).tobytes()
    if sample_format == "s24le":
        return np.ascontiguousarray(scaled).view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    return scaled.astype(f"<i{size}").tobytes()


def encode_wav_header(pcm: PCM) -> bytes:
    """The 44 bytes before the samples of a WAV pipe. The lengths say "unknown", as ffmpeg's do."""
    bits = 8 * SAMPLE_FORMATS[pcm.sample_format]
    kind = 3 if pcm.sample_format[0] == "f" else 1
    rate, unknown = int(pcm.sampling_rate), 0xFFFF_FFFF
    form = (16, kind, pcm.channels, rate, rate * pcm.width, pcm.width, bits)
    return struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", unknown, b"WAVEfmt ", *form, b"data", unknown)


def read_wav_header(file: BinaryReader) -> tuple[PCM, int | None]:
    """Read the header of a WAV pipe up to its samples, from its first chunk on (12 bytes are read already).

    Returns:
        The format of the samples, and how many bytes they take: None where the header does not say.

    Raises:
        ValueError: with the reason why the samples cannot be read.
    """
    pcm = None
    while True:
        head = read_exactly(file, 8)
        if len(head) < 8:
            raise ValueError("its WAV header ends early")
        kind, size = struct.unpack("<4sI", head)
        if kind == b"data":
            break
        left = size + size % 2
        if kind == b"fmt ":
            form = read_exactly(file, min(size, 4096))
            pcm, left = _parse_format(form), left - len(form)
        while left and (skipped := read_exactly(file, min(left, _READ_SIZE))):
            left -= len(skipped)
    if pcm is None:
        raise ValueError("its WAV header does not describe the samples")
    return pcm, None if size == 0 or size >= _ENDLESS else size


def _parse_format(data: bytes) -> PCM:
    """The content of a `fmt ` chunk."""
    if len(data) < 16:
        raise ValueError("its WAV header is cut short")
    kind, channels, rate, _, width, bits = struct.unpack_from("<HHIIHH", data)
    if kind == 0xFFFE and len(data) >= 26:  # extensible: the kind begins a long identifier
        kind = struct.unpack_from("<H", data, 24)[0]
    known = {(1, 8): "u8", (1, 16): "s16le", (1, 24): "s24le", (1, 32): "s32le", (3, 32): "f32le", (3, 64): "f64le"}
    sample_format = known.get((kind, bits))
    if sample_format is None or rate == 0 or not 1 <= channels <= 1024 or width != channels * bits // 8:
        raise ValueError(
            f"WAV of kind {kind} with {bits} bits, {channels} channels at {rate} Hz; a pipe may carry plain PCM"
        )
    return PCM(rate, channels, sample_format)
