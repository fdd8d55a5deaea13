"""Files of codes that are damaged, foreign, or made to do harm: read or refused, in little time and memory.

`MIMI_HF_FUZZ=10000 pytest -s -k fuzz tests/bitstream` tries 10,000 mutated files, and times them.
"""

import io
import os
import struct
import time
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from support.described_bitstream import CODINGS, DIGEST, HEADER, make_codes, read, to_bytes

from mimi_hf.bitstream import BitstreamError, BitstreamReader, BitstreamWriter, Header, read_mimi

pytest.importorskip("constriction", reason="the extra `entropy` is not installed")


def test_no_flipped_bit_gives_other_codes(header):
    codes = make_codes(header, 10, skewed=True)
    data = to_bytes(codes, header, 3)
    refused = 0
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        try:
            reader = BitstreamReader(io.BytesIO(bytes(damaged)))
            seen = 0
            for block in reader:
                np.testing.assert_array_equal(block, codes[:, :, seen : seen + block.shape[2]])
                seen += block.shape[2]
            assert not reader.complete  # a claim of more frames looks like a cut
        except BitstreamError:
            refused += 1
    assert refused > 0.8 * len(data)


def test_moved_blocks_are_refused():
    header = Header(1, 256)
    block = 2 + 2 + 4
    data = to_bytes(np.array([[1, 1, 1, 1, 1, 1]]), header, 2)
    start, blocks = data[: HEADER + 6], [data[HEADER + 6 + i * block :][:block] for i in range(3)]
    end = data[HEADER + 6 + 3 * block :]
    assert start + b"".join(blocks) + end == data
    other = to_bytes(np.array([[1, 1]]), replace(header, sampling_rate=8000), 2)
    for changed in (
        [blocks[1], blocks[0], blocks[2]],
        [blocks[0], blocks[0], blocks[1], blocks[2]],
        [blocks[0], blocks[2]],
        blocks[:2],
        [other[HEADER + 6 :][:block], *blocks[1:]],
    ):
        with pytest.raises(BitstreamError, match=r"damaged at second 0\.\d\d \(frame \d\)"):
            read(start + b"".join(changed) + end)


def test_nothing_comes_after_damage():
    header = Header(1, 256)
    data = bytearray(to_bytes(np.arange(9)[None], header, 3))
    data[HEADER + 6 + 9 + 3] ^= 1
    reader = BitstreamReader(io.BytesIO(bytes(data)))
    blocks = iter(reader)
    assert next(blocks).tolist() == [[[0, 1, 2]]]
    with pytest.raises(BitstreamError, match=r"second 0\.24 \(frame 3\): its checksum is wrong"):
        next(blocks)
    assert list(reader) == []
    assert not reader.complete


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cut short"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "begins with b'RIFF"),
        (b"\x89MIMI\n\x01" + b"\0" * 99, "begins with"),  # through a text mode
        (b"\x89MIMI\r\n\x02" + b"\0" * 99, "version 2.*Update"),
        (b"\x89MIMI\r\n\x01" + b"\0" * 99, "header .* damaged"),
    ],
)
def test_foreign_files_are_refused(data, message):
    with pytest.raises(BitstreamError, match=message):
        BitstreamReader(io.BytesIO(data))


def raw_header(metadata=b"{}", coding=0, channels=1, num_quantizers=1, size=256, rate=24_000, frame=1920, samples=0):
    fields = struct.pack("<BBHIIIQ", coding, channels, num_quantizers, size, rate, frame, samples)
    header = b"\x89MIMI\r\n\x01" + fields + bytes(32) + struct.pack("<H", len(metadata)) + metadata
    return header + struct.pack("<I", zlib.crc32(header))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"coding": 2}, "coding"),
        ({"channels": 0}, "channels=0"),
        ({"num_quantizers": 0}, "num_quantizers=0"),
        ({"num_quantizers": 1025}, "num_quantizers=1025"),
        ({"size": 1}, "codebook_size=1 "),
        ({"size": 2**24 + 1}, "codebook_size"),
        ({"size": 2**17 + 1, "coding": 1}, "too many for entropy coding"),
        ({"num_quantizers": 257, "coding": 1}, "too many for entropy coding"),
        ({"rate": 0}, "sampling_rate=0"),
        ({"frame": 0}, "frame_size=0"),
        ({"samples": 2**63 + 1}, "num_samples"),
        ({"metadata": b""}, "metadata cannot be read"),
        ({"metadata": b"[]"}, "must be a JSON object, not list"),
        ({"metadata": b"1"}, "must be a JSON object, not int"),
        ({"metadata": b"{}{}"}, "metadata"),
        ({"metadata": b'{"a": NaN}'}, "NaN is not finite"),
        ({"metadata": b'{"a": -Infinity}'}, "not finite"),
        ({"metadata": b'{"a": 1e999}'}, "not finite"),
        ({"metadata": b'{"a": 1, "a": 2}'}, "twice"),
        ({"metadata": b'{"a": "\\ud800"}'}, "metadata"),
        ({"metadata": b'{"a": "\xff"}'}, "metadata"),
        ({"metadata": b'{"a":' + b"9" * 60_000 + b"}"}, "metadata"),
        ({"metadata": b"[" * 65_535}, "levels deep"),
        ({"metadata": b'{"a":' * 13_000}, "levels deep"),
        ({"metadata": b'{"a":' + b"[" * 33 + b"]" * 33 + b"}"}, "levels deep"),
        ({"metadata": b'"\\"' * 20_000}, "metadata"),
    ],
)
def test_hostile_headers_are_refused(changes, message):
    with pytest.raises(BitstreamError, match=message):
        BitstreamReader(io.BytesIO(raw_header(**changes)))


def test_metadata_is_as_long_as_the_file_says(tmp_path):
    data = b'{"a":[' + b"1e15," * 13_000 + b"0]}"  # 1e15 would be written as 1000000000000000.0
    (tmp_path / "x.mimi").write_bytes(raw_header(metadata=data))
    header, codes = read_mimi(tmp_path / "x.mimi")
    assert header.metadata == {"a": [1e15] * 13_000 + [0]}
    assert codes.shape == (1, 1, 0)
    for write in (lambda: BitstreamWriter(io.BytesIO(), header), lambda: Header(1, 4, metadata=dict(header.metadata))):
        with pytest.raises(ValueError, match="Shorten"):
            write()


def test_metadata_may_hold_any_text():
    metadata = {'"[{\\': '[[[[{{{{"\\' * 20, "ü": ["\U0001f600", None, True, 1.5, {"x": []}]}
    assert BitstreamReader(io.BytesIO(to_bytes([[1]], Header(1, 4, metadata=metadata)))).header.metadata == metadata


def block(header, start, frames, payload, coding):
    head = struct.pack("<H", frames) + (struct.pack("<I", len(payload)) if coding else b"")
    return head + payload + struct.pack("<I", zlib.crc32(header[:-4] + struct.pack("<Q", start) + head + payload))


@pytest.mark.parametrize(
    ("changes", "frames", "payload", "message"),
    [
        ({"size": 200}, 1, b"\xc8", "a code is 200"),
        ({"channels": 255, "num_quantizers": 1024}, 65_535, b"", "claims 65535 frames, more than 4"),
        ({"coding": 1}, 2, b"\0" * 3, "claims 3 bytes for codes that need 2"),
        ({"coding": 1}, 65_535, b"\0" * 4000, "4000 bytes cannot be"),
        ({"coding": 1}, 65_535, b"", "0 bytes cannot be"),
        ({"coding": 1}, 100, b"\0" * 13, "13 bytes cannot be"),
        ({"coding": 1}, 100, b"\xff" * 24, "are invalid"),
    ],
)
def test_blocks_with_a_right_checksum_are_not_trusted(changes, frames, payload, message):
    header = raw_header(**changes)
    data = header + block(header, 0, frames, payload, changes.get("coding"))
    with pytest.raises(BitstreamError, match=message):
        read(data)


@pytest.mark.parametrize(
    ("changes", "frames", "payload"),
    [
        ({"coding": 1, "size": 2**16, "num_quantizers": 2}, 65_535, 2 * 4096),
        ({"coding": 1, "size": 512, "num_quantizers": 256}, 4096, 65_536),
        ({"coding": 1, "size": 2, "num_quantizers": 256, "channels": 255}, 16, 65_280),
        ({"size": 2**24, "num_quantizers": 16}, 65_535, 65_535 * 16 * 3),
        ({"size": 2, "num_quantizers": 1024, "channels": 255}, 4, 4 * 255 * 128),
    ],
)
def test_the_worst_claims_that_are_allowed_take_little_memory(changes, frames, payload):
    header = raw_header(**changes)
    data = header + block(header, 0, frames, bytes(payload), changes.get("coding"))
    tracemalloc.start()
    try:
        codes, complete = read(data)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()
    assert codes.shape[2] == frames
    assert not complete


def test_the_end_mark_is_not_trusted():
    header = raw_header()
    for frames, samples, message in [(1, 0, "claims 1 frames"), (0, 1, "claims 1 samples")]:
        end = struct.pack("<HQQ", 0, frames, samples)
        end += struct.pack("<I", zlib.crc32(header[:-4] + struct.pack("<Q", 0) + end))
        with pytest.raises(BitstreamError, match=message):
            read(header + end)
        with pytest.raises(BitstreamError, match=message):
            BitstreamReader(io.BytesIO(header + end)).scan()


# Fuzz


def seeds():
    for coding in CODINGS:
        header = Header(8, 2048, metadata={"name": "seed", "list": [1, 2.5]}, coding=coding)
        yield to_bytes(make_codes(header, 30), header, 10, num_samples=57_000)
        header = Header(2, 5, channels=2, coding=coding, codebook_digest=DIGEST)
        yield to_bytes(make_codes(header, 60, skewed=True), header, 1)
        yield to_bytes(make_codes(header, 2000, skewed=True), header, 500)


EXTREMES = [
    b"\0",
    b"\xff",
    b"\0\0",
    b"\xff\xff",
    b"\1\0",
    b"\xff" * 4,
    b"\xff" * 8,
    b"\0\0\0\x80",
    b"\0\0\1\0",
    b"\x7f",
]


def mutate(data, random):
    """A few changes of the kinds that accidents and attackers make; half of the time with right checksums."""
    data = bytearray(data)
    for _ in range(random.integers(1, 4)):
        kind, at = random.integers(0, 8), random.integers(0, len(data) + 1)
        end = min(len(data), at + random.integers(1, 40))
        if kind == 0 and at < len(data):
            data[at] ^= 1 << random.integers(0, 8)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            data[at:at] = random.bytes(random.integers(1, 30))
        elif kind == 3:
            data[at:at] = data[at:end] * int(random.integers(1, 20))
        elif kind == 4:
            del data[at:end]
        elif kind == 5:
            data[at:end] = random.bytes(end - at)
        elif kind == 6:
            value = EXTREMES[random.integers(0, len(EXTREMES))]
            data[at : at + len(value)] = value
        else:  # a field of the header, or metadata
            at = [8, 9, 10, 12, 16, 20, 24, 64, HEADER][random.integers(0, 9)]
            value = EXTREMES[random.integers(0, len(EXTREMES))]
            data[at : at + len(value)] = value
        if not data:
            break
    return reseal(data) if random.integers(0, 2) else bytes(data)


def reseal(data):
    """The checksums made right, as far as the blocks can be followed."""
    data = bytearray(data)
    if len(data) < HEADER:
        return bytes(data)
    coding, channels, num_quantizers, size = struct.unpack_from("<BBHI", data, 8)
    position = HEADER + struct.unpack_from("<H", data, 64)[0]
    header, total = bytes(data[:position]), 0
    start, end = position, position
    data[position : position + 4] = struct.pack("<I", zlib.crc32(header))
    position += 4
    while position + 2 <= len(data):
        start, (frames,) = position, struct.unpack_from("<H", data, position)
        count = frames * channels * num_quantizers * max(0, size - 1).bit_length()
        end = start + (2 + -(-count // 8) if frames else 18)
        if frames and coding == 1:
            if start + 6 > len(data):
                break
            end = start + 6 + struct.unpack_from("<I", data, start + 2)[0]
        if end > len(data):
            break
        checked = header + struct.pack("<Q", total) + bytes(data[start:end])
        data[end : end + 4] = struct.pack("<I", zlib.crc32(checked))
        position, total = end + 4, total + frames
    return bytes(data)


def use(data):
    """Everything that one does with a file."""
    reader = BitstreamReader(io.BytesIO(data))
    for call in (reader.scan, reader.read, lambda: reader.seek(min(7, reader.num_frames or 0)), reader.read):
        codes = call()
    assert codes.shape[:2] == (reader.header.channels, reader.header.num_quantizers)
    assert codes.size == 0 or codes.max() < reader.header.codebook_size


def test_fuzz_every_mutated_file_is_read_or_refused_in_little_memory():
    number, random, files = int(os.environ.get("MIMI_HF_FUZZ", "600")), np.random.default_rng(0), list(seeds())
    for data in files:
        use(data)
        assert reseal(data) == data
    refused, longest, most = 0, 0.0, 0
    tracemalloc.start()
    try:
        for i in range(number):
            data = mutate(files[i % len(files)], random)
            tracemalloc.reset_peak()
            before, start = tracemalloc.get_traced_memory()[0], time.perf_counter()
            try:
                use(data)
            except BitstreamError:
                refused += 1
            longest = max(longest, time.perf_counter() - start)
            most = max(most, tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    print(f"{number} files: {refused} refused; at most {longest:.3f} s and {most / 1e6:.1f} MB each")
    assert 0.2 * number < refused < 0.95 * number
    assert most < 100e6
    if number >= 10_000:  # who asks for so many has the machine to himself
        assert longest < 1
