"""A reader of .mimi files that is written from their description alone, and helpers of the tests of bitstreams."""

import io
import json
import struct
import zlib

import numpy as np

from mimi_hf.bitstream import BitstreamReader, BitstreamWriter

DIGEST = "0123456789abcdef" * 4
CODINGS = ["packed", "entropy"]
HEADER = 66  # bytes, less metadata and checksum


def make_codes(header, frames, seed=0, skewed=False):
    """(C, K, F)"""
    random = np.random.default_rng(seed)
    codes = random.integers(0, header.codebook_size, (header.channels, header.num_quantizers, frames))
    return codes // random.integers(1, header.codebook_size, codes.shape) if skewed else codes


def to_bytes(codes, header, block_frames=None, num_samples=None):
    file = io.BytesIO()
    with BitstreamWriter(file, header, block_frames) as writer:
        writer.write(codes)
        writer.close(num_samples)
    return file.getvalue()


def read(data):
    """Codes, and whether the file is complete."""
    reader = BitstreamReader(io.BytesIO(data))
    return reader.read(), reader.complete


def read_as_described(data, restart=32_768):
    """Codes (C, K, F), samples, metadata."""
    assert data[:8] == b"\x89MIMI\r\n\x01"
    coding, channels, num_quantizers, size, _, _, samples = struct.unpack_from("<BBHIIIQ", data, 8)
    (length,) = struct.unpack_from("<H", data, 64)
    position, total, blocks = HEADER + length, 0, []
    header = data[:position]
    assert zlib.crc32(header) == struct.unpack_from("<I", data, position)[0]
    position += 4
    bits = (size - 1).bit_length()
    origin, model = 0, DescribedModel(num_quantizers, size)
    while frames := struct.unpack_from("<H", data, position)[0]:
        count = frames * channels * num_quantizers
        start, position, length = position, position + 2, -(-count * bits // 8)
        packed = True
        if coding:
            (claimed,) = struct.unpack_from("<I", data, position)
            packed, length, position = claimed == length, claimed, position + 4
        payload = data[position : position + length]
        position += length
        checked = header + struct.pack("<Q", total) + data[start:position]
        assert zlib.crc32(checked) == struct.unpack_from("<I", data, position)[0]
        position += 4
        if total - origin >= restart:
            origin, model = total, DescribedModel(num_quantizers, size)
        codes = np.empty((frames, channels, num_quantizers), dtype=int)
        if packed:
            string = int.from_bytes(payload, "little")
            codes.reshape(-1)[:] = [string >> (i * bits) & ((1 << bits) - 1) for i in range(count)]
        model.run(codes, None if packed else DescribedRangeDecoder(payload))
        blocks.append(codes)
        total += frames
    frames, samples = struct.unpack_from("<QQ", data, position + 2)
    assert frames == total
    checked = header + struct.pack("<Q", total) + data[position : position + 18]
    assert zlib.crc32(checked) == struct.unpack_from("<I", data, position + 18)[0]
    assert len(data) == position + 22
    metadata = json.loads(header[HEADER:])
    return np.concatenate(blocks).transpose(1, 2, 0), None if samples == 2**64 - 1 else samples, metadata


class DescribedModel:
    def __init__(self, num_quantizers, size):
        self.counts = [[0] * size for _ in range(num_quantizers)]
        self.frames = self.made_after = 0
        self.due = 0

    def run(self, codes, decoder):
        start = 0
        while start < len(codes):
            if self.frames == self.due:
                self.tables = [self.table(counts) for counts in self.counts]
                self.due = self.frames + max(1, self.frames // 8)
            stop = min(len(codes), start + self.due - self.frames)
            for k, table in enumerate(self.tables):
                for t in range(start, stop):
                    for c in range(codes.shape[1]):
                        if decoder:
                            codes[t, c, k] = decoder.next(table)
                        self.counts[k][codes[t, c, k]] += 1
            self.frames += stop - start
            start = stop

    @staticmethod
    def table(c):
        n, d, size = sum(c), sum(count > 0 for count in c), len(c)
        rest = (size - d) * n - d * size
        a = 256 if rest <= 0 else max(1, min(256, 256 * d * n // rest))
        total = 2**24 - size
        w = [total * (256 * count + a) // (256 * n + a * size) for count in c]
        w[0] += total - sum(w)
        return np.concatenate([[0], np.cumsum([weight + 1 for weight in w])])


class DescribedRangeDecoder:
    def __init__(self, payload):
        self.words = iter(struct.unpack(f"<{len(payload) // 4}I", payload))
        self.lower, self.range = 0, 2**64 - 1
        self.point = next(self.words, 0) << 32 | next(self.words, 0)

    def next(self, table):
        scale = self.range >> 24
        quantile = (self.point - self.lower) % 2**64 // scale
        symbol = int(np.searchsorted(table, quantile, side="right")) - 1
        self.lower = (self.lower + scale * int(table[symbol])) % 2**64
        self.range = scale * int(table[symbol + 1] - table[symbol])
        if self.range < 2**32:
            self.lower = (self.lower << 32) % 2**64
            self.range = self.range << 32
            self.point = (self.point << 32) % 2**64 | next(self.words, 0)
        return symbol
