"""Payloads of .mimi files: codes as bits. [`mimi_hf.bitstream`] describes them."""

import numpy as np

from .entropy import EntropyCoder

_STEP = 2**16  # codes that are packed at a time: what they need meanwhile stays in cache


class PayloadCoder:
    """Codes to payloads and back. Blocks come in order.

    Args:
        header (Header): what the codes are.
        frame (int): where the first block begins.
    """

    def __init__(self, header, frame=0):
        self._header = header
        self._entropy = None
        if header.coding == "entropy":
            self._entropy = EntropyCoder(header.channels, header.num_quantizers, header.codebook_size, frame)

    def encode(self, codes, frame):
        """The payload of the block that begins at `frame`; codes have shape = (f, C, K)."""
        packed = pack_codes(codes, self._header.bits_per_code)
        if self._entropy is None:
            return packed
        self._entropy.begin_block(frame)
        coded = self._entropy.encode(codes)
        return coded if len(coded) < len(packed) else packed

    def decode(self, payload, frames, frame):
        """Codes of the block that begins at `frame`, shape = (f, C, K). ValueError for what no codes give."""
        header, entropy = self._header, self._entropy
        if entropy:
            entropy.begin_block(frame)
            if len(payload) < packed_length(header, frames):
                return entropy.decode(payload, frames)
        codes = unpack_codes(payload, header.bits_per_code, frames * header.channels * header.num_quantizers)
        if codes.max() >= header.codebook_size:
            raise ValueError(f"a code is {codes.max()}, but there are {header.codebook_size} entries")
        codes = codes.reshape(frames, header.channels, header.num_quantizers)
        if entropy:
            entropy.skip(codes)
        return codes


def packed_length(header, frames) -> int:
    """Bytes of so many frames, packed."""
    return -(-frames * header.channels * header.num_quantizers * header.bits_per_code // 8)


def pack_codes(codes, bits) -> bytes:
    """Integers of so many bits each as one string of bits, the lowest first."""
    codes = np.ascontiguousarray(codes.reshape(-1), dtype="<u2" if bits <= 16 else "<u4")
    parts = []
    for start in range(0, len(codes), _STEP):
        part = codes[start : start + _STEP]
        parts.append(np.packbits(_bits(part)[:, :bits], bitorder="little").tobytes())
    return b"".join(parts)


def unpack_codes(data, bits, count) -> np.ndarray:
    """The integers that [`pack_codes`] packed, shape = (count,)."""
    width = 16 if bits <= 16 else 32
    data = np.frombuffer(data, dtype=np.uint8)
    codes = np.empty(count, dtype=f"<u{width // 8}")
    for start in range(0, count, _STEP):
        part = codes[start : start + _STEP]
        packed = data[start * bits // 8 :]  # a step is whole bytes
        padded = np.zeros((len(part), width), dtype=np.uint8)
        padded[:, :bits] = np.unpackbits(packed, count=len(part) * bits, bitorder="little").reshape(-1, bits)
        part[:] = np.packbits(padded, axis=1, bitorder="little").view(codes.dtype)[:, 0]
    return codes


def _bits(codes):
    """The bits of little-endian integers, shape = (n, bits of an integer), the lowest first."""
    return np.unpackbits(codes.view(np.uint8).reshape(len(codes), -1), axis=1, bitorder="little")
