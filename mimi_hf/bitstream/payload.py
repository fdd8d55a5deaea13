"""Payloads of .mimi files: codes as bits. Their format is described in [`mimi_hf.bitstream`]."""

import numpy as np

from .entropy import EntropyCoder
from .header import Header

_PACKED_AT_ONCE = 2**16  # codes: their bits stay in cache


class PayloadCoder:
    """Codes to payloads and back. Blocks come in order.

    Args:
        header: what the codes are.
        frame: where the first block begins.

    Raises:
        ImportError: the coding is entropy, and the extra `entropy` is not installed.
    """

    def __init__(self, header: Header, frame: int = 0):
        self._header = header
        self._entropy: EntropyCoder | None = None
        if header.coding == "entropy":
            self._entropy = EntropyCoder(header.channels, header.num_quantizers, header.codebook_size, frame)

    def encode(self, codes: np.ndarray, frame: int) -> bytes:
        """Encode the block that begins at `frame`; codes have shape = (f, C, K)."""
        packed = pack_codes(codes, self._header.bits_per_code)
        if self._entropy is None:
            return packed
        self._entropy.begin_block(frame)
        coded = self._entropy.encode(codes)
        return coded if len(coded) < len(packed) else packed

    def decode(self, payload: bytes, frames: int, frame: int) -> np.ndarray:
        """Decode the block of `frames` frames that begins at `frame` to codes, shape = (f, C, K).

        Raises:
            ValueError: no codes give this payload.
        """
        header, entropy = self._header, self._entropy
        if entropy:
            entropy.begin_block(frame)
            if len(payload) < count_packed_bytes(header, frames):
                return entropy.decode(payload, frames)
        codes = unpack_codes(payload, header.bits_per_code, frames * header.channels * header.num_quantizers)
        if codes.max() >= header.codebook_size:
            raise ValueError(f"a code is {codes.max()}, but there are {header.codebook_size} entries")
        codes = codes.reshape(frames, header.channels, header.num_quantizers)
        if entropy:
            entropy.learn(codes)
        return codes


def count_packed_bytes(header: Header, frames: int) -> int:
    """The length of the payload of `frames` frames, packed."""
    return -(-frames * header.channels * header.num_quantizers * header.bits_per_code // 8)


def pack_codes(codes: np.ndarray, bits: int) -> bytes:
    """Pack integers of `bits` bits each into one string of bits, the lowest first."""
    codes = np.ascontiguousarray(codes.reshape(-1), dtype="<u2" if bits <= 16 else "<u4")
    parts = []
    for start in range(0, len(codes), _PACKED_AT_ONCE):
        part = codes[start : start + _PACKED_AT_ONCE]
        parts.append(np.packbits(_bits(part)[:, :bits], bitorder="little").tobytes())
    return b"".join(parts)


def unpack_codes(data: bytes, bits: int, count: int) -> np.ndarray:
    """Unpack the integers that [`pack_codes`] packed, shape = (count,)."""
    width = 16 if bits <= 16 else 32
    whole = np.frombuffer(data, dtype=np.uint8)
    codes = np.empty(count, dtype=f"<u{width // 8}")
    for start in range(0, count, _PACKED_AT_ONCE):
        part = codes[start : start + _PACKED_AT_ONCE]
        packed = whole[start * bits // 8 :]  # _PACKED_AT_ONCE codes fill whole bytes
        padded = np.zeros((len(part), width), dtype=np.uint8)
        padded[:, :bits] = np.unpackbits(packed, count=len(part) * bits, bitorder="little").reshape(-1, bits)
        part[:] = np.packbits(padded, axis=1, bitorder="little").view(codes.dtype)[:, 0]
    return codes


def _bits(codes: np.ndarray) -> np.ndarray:
    """The bits of little-endian integers, shape = (n, bits of an integer), the lowest first."""
    return np.unpackbits(codes.view(np.uint8).reshape(len(codes), -1), axis=1, bitorder="little")
