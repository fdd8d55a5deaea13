"""The header of .mimi files, the end mark, and checksums. Their bytes are described in [`mimi_hf.bitstream`]."""

import json
import math
import operator
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from .entropy import MAX_CODEBOOKS, MAX_ENTRIES

MAGIC = b"\x89MIMI\r\n"
VERSION = 1
CODINGS = ("packed", "entropy")
MAX_BLOCK_FRAMES = 2**16 - 1
MAX_BLOCK_CODES = 2**20
UNKNOWN = 2**64 - 1  # a number of samples

_LIMITS = {
    "num_quantizers": (1, 1024),
    "codebook_size": (2, 2**24),
    "sampling_rate": (1, 2**32 - 1),
    "frame_size": (1, 2**24),
    "channels": (1, 255),
}
END_MARK = struct.Struct("<HQQ")
_FIXED = struct.Struct("<7sBBBHIIIQ32sH")
_START = len(MAGIC) + 1  # bytes that say what kind of file it is
_MAX_METADATA = 2**16 - 1
_MAX_DEPTH = 32
_JSON_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', flags=re.DOTALL)


class BitstreamError(ValueError):
    """The file is no .mimi file, or a damaged one."""


@dataclass(frozen=True)
class Header:
    """What the codes of a file are.

    Args:
        num_quantizers: K, codes per frame and channel.
        codebook_size: V; codes are less.
        sampling_rate: of the audio, samples per second.
        frame_size: samples per frame.
        channels: C; each is coded by itself.
        num_samples: real samples per channel, where that is known.
        codebook_digest: hex SHA-256 that names the codebooks, as `model.codebook_digest` gives; "" if unknown.
        metadata: a JSON object of up to 65535 bytes.
        coding: "packed" or "entropy", which needs the extra `entropy`.

    Raises:
        ValueError, TypeError: for a value that a file cannot hold. The message says why.
    """

    num_quantizers: int
    codebook_size: int
    sampling_rate: int = 24_000
    frame_size: int = 1920
    channels: int = 1
    num_samples: int | None = None
    codebook_digest: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    coding: str = "packed"

    def __post_init__(self) -> None:
        limits = _LIMITS if self.num_samples is None else {**_LIMITS, "num_samples": (0, 2**63)}
        for name, (lowest, highest) in limits.items():
            object.__setattr__(self, name, check_integer(name, getattr(self, name), lowest, highest))
        if not isinstance(self.codebook_digest, str) or not re.fullmatch("([0-9a-f]{64})?", self.codebook_digest):
            raise ValueError(
                f"codebook_digest={self.codebook_digest!r} must be the 64 hex digits that model.codebook_digest"
                ' gives, or "".'
            )
        if self.coding not in CODINGS:
            raise ValueError(f"coding={self.coding!r} must be one of {', '.join(CODINGS)}.")
        entries = self.num_quantizers * self.codebook_size
        if self.coding == "entropy" and (self.num_quantizers > MAX_CODEBOOKS or entries > MAX_ENTRIES):
            raise ValueError(
                f"{self.num_quantizers} codebooks of {self.codebook_size} entries are too many for entropy coding: it"
                f' takes {MAX_CODEBOOKS} codebooks, and {MAX_ENTRIES} entries in all. Use coding="packed".'
            )
        data = _dump_metadata(self.metadata)
        if not isinstance(self.metadata, _Metadata):
            _check_length(data)
        object.__setattr__(self, "metadata", _parse_metadata(data))

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sampling_rate / self.frame_size

    @property
    def bits_per_code(self) -> int:
        """Of a packed code: ceil(log2 V)."""
        return (self.codebook_size - 1).bit_length()

    @property
    def bits_per_second(self) -> float:
        """Of packed codes, all channels together."""
        return self.frame_rate * self.channels * self.num_quantizers * self.bits_per_code

    @property
    def dtype(self) -> np.dtype:
        """Of the codes as they are read: uint16, or uint32 where V is more than 65536."""
        return np.dtype(np.uint16 if self.codebook_size <= 2**16 else np.uint32)

    @property
    def max_block_frames(self) -> int:
        """The most frames of a block."""
        return min(MAX_BLOCK_FRAMES, MAX_BLOCK_CODES // (self.channels * self.num_quantizers))


class _Metadata(dict):
    """Metadata that a file holds, so its length need not be checked.

    It may be longer when it is written again: 1e5 becomes 100000.0.
    """


class CutError(Exception):
    """The file ends before the bytes that were to be read."""


def encode_header(header: Header) -> bytes:
    """The bytes of a header, without its checksum."""
    metadata = _dump_metadata(header.metadata)
    _check_length(metadata)
    fixed = _FIXED.pack(
        MAGIC,
        VERSION,
        CODINGS.index(header.coding),
        header.channels,
        header.num_quantizers,
        header.codebook_size,
        header.sampling_rate,
        header.frame_size,
        UNKNOWN if header.num_samples is None else header.num_samples,
        bytes.fromhex(header.codebook_digest).ljust(32, b"\0"),
        len(metadata),
    )
    return fixed + metadata


def read_header(take: Callable[[int], bytes]) -> tuple[Header, bytes]:
    """Read the header that comes next.

    Args:
        take: function that reads as many bytes as it is told, or raises [`CutError`].

    Returns:
        The header, and its bytes without the checksum.

    Raises:
        BitstreamError: for bytes that are no header, or a damaged one.
    """
    start = take(_START)
    if not start.startswith(MAGIC):
        raise BitstreamError(f"This is no .mimi file: it begins with {start!r}, not with {MAGIC!r}.")
    if start[-1] != VERSION:
        raise BitstreamError(f"This .mimi file is of version {start[-1]}, this code reads {VERSION}. Update mimi_hf.")
    fixed = start + take(_FIXED.size - _START)
    *fields, digest, metadata_length = _FIXED.unpack(fixed)[2:]
    metadata = take(metadata_length)
    if take(4) != struct.pack("<I", zlib.crc32(fixed + metadata)):
        raise BitstreamError("The header of this .mimi file is damaged: its checksum is wrong.")
    coding, channels, num_quantizers, codebook_size, sampling_rate, frame_size, num_samples = fields
    try:
        header = Header(
            num_quantizers=num_quantizers,
            codebook_size=codebook_size,
            sampling_rate=sampling_rate,
            frame_size=frame_size,
            channels=channels,
            num_samples=None if num_samples == UNKNOWN else num_samples,
            codebook_digest=digest.hex() if any(digest) else "",
            metadata=_parse_metadata(metadata),
            coding=CODINGS[coding] if coding < len(CODINGS) else f"number {coding}",
        )
    except ValueError as error:
        raise BitstreamError(f"The header of this .mimi file makes no sense: {error}") from error
    return header, fixed + metadata


def compute_checksum(seed: int, frame: int, *parts: bytes) -> bytes:
    """The checksum of a block, or of the end mark, that begins at `frame`.

    It covers the header (`seed` is its crc) and the frame, so a block that was moved, or comes from another file, does
    not have it.
    """
    crc = zlib.crc32(struct.pack("<Q", frame), seed)
    for part in parts:
        crc = zlib.crc32(part, crc)
    return struct.pack("<I", crc)


def check_integer(name: str, value: Any, lowest: int, highest: int) -> int:
    """Return the value as a plain int. Raises TypeError for other types, ValueError for what is out of bounds."""
    try:
        if isinstance(value, (bool, np.bool_)):
            raise TypeError
        value = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}={value!r} must be an integer.") from None
    if not lowest <= value <= highest:
        raise ValueError(f"{name}={value} must be from {lowest} to {highest}.")
    return value


def _dump_metadata(metadata: Any) -> bytes:
    if not isinstance(metadata, dict):
        raise TypeError(f"metadata={metadata!r} must be a dict.")
    try:
        return json.dumps(metadata, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"metadata must be what JSON can hold: {error}.") from error


def _check_length(data: bytes) -> None:
    if len(data) > _MAX_METADATA:
        raise ValueError(f"metadata takes {len(data)} bytes as JSON, but may take {_MAX_METADATA}. Shorten it.")


def _parse_metadata(data: bytes) -> _Metadata:
    """Refuses what other languages read in another way, or cannot read."""
    try:
        text = data.decode()
        # The depth is checked before json parses, as its parser recurses.
        steps = (1 if character in "[{" else -1 for character in _JSON_STRING.sub("", text) if character in "[]{}")
        if max(accumulate(steps), default=0) > _MAX_DEPTH:
            raise ValueError(f"it is more than {_MAX_DEPTH} levels deep")
        metadata = json.loads(text, object_pairs_hook=_unique, parse_constant=_finite, parse_float=_finite)
        json.dumps(metadata, ensure_ascii=False).encode()  # refuses halves of surrogate pairs, which cannot be printed
    except ValueError as error:
        raise ValueError(f"metadata cannot be read: {error}.") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"metadata must be a JSON object, not {type(metadata).__name__}.")
    return _Metadata(metadata)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key is there twice")
    return result


def _finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is not finite")
    return float(text)
