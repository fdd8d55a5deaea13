"""Samples without a container, and WAV in pipes: pure bytes, read and written as they come.

Letters for shapes: C channels, n samples of a block.
"""

import struct
from dataclasses import dataclass

import numpy as np

from mimi_hf.utils.files import write_all

from .mix import _WRITE_BLOCK, check_complete, check_rate, unreadable

# Bytes per sample of what raw audio may be made of, in the names of ffmpeg, and what arecord calls the same.
SAMPLE_FORMATS = {"u8": 1, "s16le": 2, "s24le": 3, "s32le": 4, "f32le": 4, "f64le": 8}
_ALIASES = {"U8": "u8", "S16_LE": "s16le", "S24_3LE": "s24le", "S32_LE": "s32le", "FLOAT_LE": "f32le"}
# A WAV header from which on its length means "unknown": sox writes 0x7ffff000, arecord 0x80000000, ffmpeg 0xffffffff.
_ENDLESS = 0x7FFF_F000


@dataclass(frozen=True)
class PCM:
    """What raw audio is made of.

    sampling_rate: samples per second.
    channels: how many, interleaved.
    sample_format: one of `SAMPLE_FORMATS`; arecord's names (S16_LE, S24_3LE, S32_LE, FLOAT_LE) are understood, too.
    """

    sampling_rate: int = 24_000
    channels: int = 1
    sample_format: str = "s16le"

    def __post_init__(self):
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
    def width(self):
        """Bytes of one sample of all channels."""
        return SAMPLE_FORMATS[self.sample_format] * self.channels


class PCMReader:
    """Samples from a file object, as they come: of `length` bytes, or until it ends."""

    exact = False

    def __init__(self, file, name, pcm, length=None):
        self.file, self.name, self.pcm, self.left = file, name, pcm, length
        self.rate, self.channels = pcm.sampling_rate, pcm.channels
        self.frames = None if length is None else length // pcm.width
        self.rest, self.position = b"", 0

    def read(self, samples):
        """What is there, up to `samples` samples, (n, C) float32; none at the end."""
        wanted, data = samples * self.pcm.width, self.rest
        while wanted and len(data) < self.pcm.width:
            more = some(self.file, wanted - len(data) if self.left is None else min(wanted - len(data), self.left))
            if not more:
                break
            self.left = None if self.left is None else self.left - len(more)
            data += more
        whole = len(data) // self.pcm.width * self.pcm.width
        self.rest = data[whole:]
        self.position += whole // self.pcm.width
        return _from_bytes(data[:whole], self.pcm.sample_format).reshape(-1, self.channels)

    def skip(self, samples):
        """Go on `samples` later."""
        skip_by_reading(self, samples)

    def check_end(self):
        """Refuse a pipe without samples."""
        # What follows the samples is read as well, so that its writer does not find the pipe closed.
        while self.left is not None and some(self.file, 65_536):
            pass
        check_complete(self.name, self.position, 0)


class PCMWriter:
    """Samples into a pipe, each block at once.

    Args:
        file: binary, writable; it is left open.
        pcm (PCM): what to write.
        header (bool): begin with a WAV header, whose length says "unknown".
    """

    def __init__(self, file, pcm, header=True):
        self.file, self.pcm = file, pcm
        if header:
            self._send(_wav_header(pcm))

    def write(self, block):
        """Write and flush a block (C, n), floating point, clipped to [-1, 1]."""
        self._send(_to_bytes(clipped(block), self.pcm.sample_format))

    def _send(self, data):
        write_all(self.file, data)


def clipped(block):
    """A block to write, float32 in [-1, 1]; refuses what is not finite."""
    if not np.isfinite(block).all():
        raise ValueError("The audio holds NaN or infinity. Decode with --dtype float32, or check the model.")
    return np.clip(block, -1, 1, dtype=np.float32)


def skip_by_reading(reader, samples):
    """Read `samples` samples and forget them."""
    start = samples / reader.rate
    while samples:
        block = reader.read(min(samples, _WRITE_BLOCK))
        if not len(block):
            raise beyond(reader.name, start, reader.position / reader.rate)
        samples -= len(block)


def beyond(name, start, duration):
    """The error for a part that begins past the end."""
    return ValueError(f"start={start:g} s lies past the end of {name}, which lasts {duration:g} s. Start earlier.")


def some(file, size):
    """The bytes that are there, up to `size`: waits for the first alone. Empty at the end."""
    if size <= 0:
        return b""
    data = file.read1(size) if hasattr(file, "read1") else file.read(size)
    if data is None:
        raise BlockingIOError("The pipe does not block: nothing is there yet. Open it in blocking mode.")
    return data


def exactly(file, size):
    """`size` bytes, or fewer at the end."""
    data = b""
    while len(data) < size and (more := some(file, min(size - len(data), 65_536))):
        data += more
    return data


def read_wav_header(file, name):
    """The reader of the samples of a WAV pipe of which 12 bytes are read; chunks of other kinds are skipped."""
    pcm = None
    while True:
        head = exactly(file, 8)
        if len(head) < 8:
            raise unreadable(name, "its WAV header ends early")
        kind, size = head[:4], struct.unpack("<I", head[4:])[0]
        if kind == b"data":
            break
        if kind == b"fmt ":
            pcm = _parse_format(exactly(file, min(size, 4096)), name)
            size = max(0, size - 4096)
        size += size % 2
        while size and (skipped := len(exactly(file, min(size, 65_536)))):
            size -= skipped
    if pcm is None:
        raise unreadable(name, "its WAV header does not describe the samples")
    return PCMReader(file, name, pcm, None if size == 0 or size >= _ENDLESS else size)


def _parse_format(data, name):
    """The `fmt ` chunk of a WAV file as PCM."""
    if len(data) < 16:
        raise unreadable(name, "its WAV header is cut short")
    kind, channels, rate, _, width, bits = struct.unpack_from("<HHIIHH", data)
    if kind == 0xFFFE and len(data) >= 26:  # extensible: the kind is the first part of a long identifier
        kind = struct.unpack_from("<H", data, 24)[0]
    known = {(1, 8): "u8", (1, 16): "s16le", (1, 24): "s24le", (1, 32): "s32le", (3, 32): "f32le", (3, 64): "f64le"}
    sample_format = known.get((kind, bits))
    if sample_format is None or rate == 0 or not 1 <= channels <= 1024 or width != channels * bits // 8:
        raise unreadable(
            name, f"WAV of kind {kind} with {bits} bits, {channels} channels at {rate} Hz; a pipe may carry plain PCM"
        )
    return PCM(rate, channels, sample_format)


def _from_bytes(data, sample_format):
    """Samples as float32 in [-1, 1], scaled as libsndfile does."""
    if sample_format == "u8":
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if sample_format == "s24le":
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data, sample_format = padded.tobytes(), "s32le"
    samples = np.frombuffer(data, f"<{'f' if sample_format[0] == 'f' else 'i'}{SAMPLE_FORMATS[sample_format]}")
    if sample_format[0] == "f":
        with np.errstate(over="ignore"):
            return samples.astype(np.float32)
    return samples.astype(np.float32) / np.float32(2 ** (8 * samples.itemsize - 1))


def _to_bytes(block, sample_format):
    """(C, n) in [-1, 1] as interleaved samples, scaled as libsndfile does."""
    samples, size = block.T, SAMPLE_FORMATS[sample_format]
    if sample_format[0] == "f":
        return samples.astype(f"<f{size}").tobytes()
    scaled = np.rint(samples.astype(np.float64) * (2 ** (8 * size - 1) - 1)).astype("<i4")
    if sample_format == "u8":
        return (scaled + 128).astype(np.uint8).tobytes()
    if sample_format == "s24le":
        return np.ascontiguousarray(scaled).view(np.uint8).reshape(-1, 4)[:, :3].tobytes()
    return scaled.astype(f"<i{size}").tobytes()


def _wav_header(pcm):
    """44 bytes; the lengths say "unknown", as those that ffmpeg writes into a pipe."""
    bits = 8 * SAMPLE_FORMATS[pcm.sample_format]
    kind = 3 if pcm.sample_format[0] == "f" else 1
    rate, unknown = int(pcm.sampling_rate), 0xFFFF_FFFF
    form = (16, kind, pcm.channels, rate, rate * pcm.width, pcm.width, bits)
    return struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", unknown, b"WAVEfmt ", *form, b"data", unknown)
