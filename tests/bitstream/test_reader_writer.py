"""Files of codes: what is written is read, as a whole and in parts, by us and by a reader made from the description."""

import io
import os
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.described_bitstream import CODINGS, DIGEST, HEADER, make_codes, read, read_as_described, to_bytes

from mimi_hf.bitstream import BitstreamError, BitstreamReader, BitstreamWriter, Header, entropy, read_mimi, write_mimi

pytest.importorskip("constriction", reason="the extra `entropy` is not installed")
hypothesis = pytest.importorskip("hypothesis", reason="the extra `test` is not installed")

st = hypothesis.strategies


@pytest.fixture(params=CODINGS)
def header(request):
    return Header(num_quantizers=3, codebook_size=20, channels=2, coding=request.param)


@pytest.fixture
def quick_restart(monkeypatch):
    """Models that begin anew every 6 frames."""
    monkeypatch.setattr(entropy, "RESTART", 6)


# What is written is read

GOLDEN_START = (
    "894d494d490d0a01{:02d}01020006000000c05d0000800700000f270000000000000123456789abcdef0123456789abcdef"
    "0123456789abcdef0123456789abcdef07007b2261223a317d"
)
GOLDEN = {
    "packed": (
        "21154ed81e0068d7b66ddba26ddbb56d8bb66ddb762ddab66ddbb6580b09cdaa9d06006ddbb62d0aae643d42000024000000"
        "000000000f27000000000000c52b093f"
    ),
    "entropy": (
        "c747a4581e000c000000d5383b2ad881d5bb2e868cd0a0c23e61060004000000762e67def91e6eb800002400000000000000"
        "0f270000000000005f4050ff"
    ),
}


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(data=st.data())
def test_codes_come_back_whatever_the_shape_and_the_pieces(data):
    header = Header(
        num_quantizers=data.draw(st.integers(1, 9)),
        codebook_size=data.draw(st.one_of(st.integers(2, 3000), st.sampled_from([2048, 2**16, 2**16 + 1, 2**24]))),
        channels=data.draw(st.integers(1, 3)),
        metadata=data.draw(st.dictionaries(st.text(max_size=3), st.integers() | st.floats(-1, 1), max_size=2)),
    )
    if header.num_quantizers * header.codebook_size <= 2**14 and data.draw(st.booleans()):
        header = replace(header, coding="entropy")
    frames = data.draw(st.integers(0, 40))
    codes = make_codes(header, frames, seed=frames, skewed=data.draw(st.booleans()))
    cuts = sorted(data.draw(st.lists(st.integers(0, frames), max_size=5)))
    file = io.BytesIO()
    with BitstreamWriter(file, header, data.draw(st.none() | st.integers(1, 50))) as writer:
        for part in np.split(codes, cuts, axis=2):
            writer.write(part)
            if data.draw(st.booleans()):
                writer.flush()
    file.seek(0)
    reader = BitstreamReader(file)
    assert reader.header == header
    np.testing.assert_array_equal(reader.read(), codes)
    assert reader.complete
    assert reader.num_frames == frames
    assert reader.read().dtype == (np.uint16 if header.codebook_size <= 2**16 else np.uint32)


@pytest.mark.parametrize("skewed", [True, False])
@pytest.mark.parametrize("size", [2, 3, 20, 300])
@pytest.mark.parametrize("coding", CODINGS)
def test_a_reader_written_from_the_description_reads_it(coding, size, skewed):
    header = Header(3, size, channels=2, metadata={"a": "ü"}, coding=coding)
    codes = make_codes(header, 120, skewed=skewed)
    actual, samples, metadata = read_as_described(to_bytes(codes, header, 50, num_samples=7))
    np.testing.assert_array_equal(actual, codes)
    assert samples == 7
    assert metadata == {"a": "ü"}


def test_models_begin_anew_where_the_description_says():
    header = Header(1, 6, coding="entropy")
    codes = make_codes(header, 45_000, skewed=True)
    data = to_bytes(codes, header, 5000)  # anew at 35 000
    np.testing.assert_array_equal(read_as_described(data)[0], codes)
    reader = BitstreamReader(io.BytesIO(data))
    reader.seek(35_001)
    np.testing.assert_array_equal(reader.read(), codes[:, :, 35_001:])


def test_the_format_does_not_change():
    """Files that were written once must be readable for ever."""
    codes = np.full((2, 36), 5)
    codes[0, ::7], codes[1, 1::9] = 0, 3
    for coding, blocks in GOLDEN.items():
        header = Header(2, 6, num_samples=9999, codebook_digest=DIGEST, metadata={"a": 1}, coding=coding)
        data = to_bytes(codes, header, 30)
        assert data.hex() == GOLDEN_START.format(CODINGS.index(coding)) + blocks
        assert (read(bytes.fromhex(data.hex()))[0] == codes).all()


def test_an_hour_of_mimi_takes_its_bits():
    header = Header(num_quantizers=8, codebook_size=2048)
    assert header.frame_rate == 12.5
    assert header.bits_per_code == 11
    assert header.bits_per_second == 1100
    for minutes in (3, 60):
        data = to_bytes(make_codes(header, minutes * 750), header)
        assert 1 < len(data) * 8 / (minutes * 60) / 1100 < 1.01


def test_a_live_frame_takes_six_bytes_more():
    file = io.BytesIO()
    writer = BitstreamWriter(file, Header(num_quantizers=8, codebook_size=2048))
    before = file.tell()
    writer.write(np.zeros((8, 1), dtype=int))
    writer.flush()
    assert file.tell() - before == 11 + 6


def test_tensors_and_two_dimensions_are_taken():
    codes = torch.randint(0, 64, (6, 10))
    np.testing.assert_array_equal(read(to_bytes(codes, Header(6, 64)))[0][0], codes.numpy())


def test_the_caller_may_change_the_codes_afterwards():
    codes, file = np.ones((1, 4), dtype=np.uint16), io.BytesIO()
    with BitstreamWriter(file, Header(1, 4)) as writer:
        writer.write(codes)
        codes[:] = 0
    assert (read(file.getvalue())[0] == 1).all()


def test_samples_are_known_from_the_header_and_from_the_end():
    codes = np.zeros((1, 3), dtype=int)
    for known, at_the_end, before, after in [
        (None, None, None, None),
        (4000, None, 4000, 4000),
        (None, 4000, None, 4000),
        (5000, 4000, 5000, 4000),
    ]:
        data = to_bytes(codes, Header(1, 4, num_samples=known), num_samples=at_the_end)
        reader = BitstreamReader(io.BytesIO(data))
        assert reader.num_samples == before
        assert reader.num_frames == (None if known is None else 3)
        assert reader.scan().num_samples == after
        reader.read()
        assert reader.num_samples == after
        assert reader.num_frames == 3
    reader = BitstreamReader(io.BytesIO(to_bytes(codes, Header(1, 4, num_samples=5760), block_frames=1)[:-25]))
    assert reader.read().shape[2] == 2
    assert reader.num_samples == 2 * 1920  # what is left


# As it comes


@pytest.mark.parametrize("buffering", [0, -1])
def test_blocks_come_through_a_pipe_as_they_are_written(header, buffering):
    codes = make_codes(header, 10)
    ends = os.pipe()
    with open(ends[0], "rb", buffering=buffering) as source, open(ends[1], "wb", buffering=buffering) as sink:
        writer = BitstreamWriter(sink, header)
        reader = BitstreamReader(source)  # the header is there already
        blocks = iter(reader)
        for frame in range(10):
            writer.write(codes[:, :, frame : frame + 1])
            writer.flush()
            np.testing.assert_array_equal(next(blocks), codes[:, :, frame : frame + 1])  # would hang otherwise
        writer.close()
        sink.write(b"next")
        sink.flush()
        assert next(blocks, None) is None
        assert reader.complete
        assert source.read(4) == b"next"  # nothing is taken that belongs to others
        with pytest.raises(io.UnsupportedOperation, match="not seekable"):
            reader.seek(0)
        with pytest.raises(io.UnsupportedOperation, match="not seekable"):
            reader.scan()


def test_whole_blocks_are_written_at_once(header):
    codes, file = make_codes(header, 7), io.BytesIO()
    writer = BitstreamWriter(file, header, block_frames=3)
    sizes = [file.tell()]
    for frame in range(7):
        writer.write(codes[:, :, frame : frame + 1])
        sizes.append(file.tell())
    assert [b > a for a, b in pairwise(sizes)] == [False, False, True, False, False, True, False]
    np.testing.assert_array_equal(read(file.getvalue())[0], codes[:, :, :6])


class Trickle(io.RawIOBase):
    """Takes and gives a byte at a time, as sockets may."""

    def __init__(self, data=b""):
        self.data = bytearray(data)

    def writable(self):
        return True

    def write(self, data):
        self.data += bytes(data[:1])
        return 1

    def read(self, size=-1):
        taken = bytes(self.data[:1])
        del self.data[:1]
        return taken


def test_files_that_take_and_give_less_than_asked(header):
    codes, file = make_codes(header, 9), Trickle()
    with BitstreamWriter(file, header, 4) as writer:
        writer.write(codes)
    assert bytes(file.data) == to_bytes(codes, header, 4)
    np.testing.assert_array_equal(BitstreamReader(file).read(), codes)


def test_a_file_cut_anywhere_gives_its_whole_blocks(header):
    codes = make_codes(header, 10, skewed=True)
    data = to_bytes(codes, header, 3, num_samples=10 * 1920)
    lengths = set()
    for size in range(len(data)):
        if size < HEADER + 2 + 4:
            with pytest.raises(BitstreamError, match=r"cut short|no \.mimi"):
                BitstreamReader(io.BytesIO(data[:size]))
            continue
        reader = BitstreamReader(io.BytesIO(data[:size]))
        facts, actual = reader.scan(), reader.read()
        np.testing.assert_array_equal(actual, codes[:, :, : actual.shape[2]])
        assert not reader.complete
        assert (facts.num_frames, facts.complete) == (actual.shape[2], False)
        assert reader.num_frames == actual.shape[2]
        lengths.add(actual.shape[2])
    assert lengths == {0, 3, 6, 9, 10}
    facts = BitstreamReader(io.BytesIO(data)).scan()
    assert (facts.num_frames, facts.num_blocks, facts.num_bytes, facts.complete) == (10, 4, len(data), True)
    assert facts.num_samples == 10 * 1920


def test_seek_gives_the_tail(header, quick_restart):
    codes = make_codes(header, 23, skewed=True)
    data = to_bytes(codes, header, 4)
    file = io.BytesIO(b"before" + data + b"after")
    file.seek(6)
    reader = BitstreamReader(file)
    for frame in [*range(23, -1, -1), 5, 17, 2]:
        reader.seek(frame)
        np.testing.assert_array_equal(reader.read(), codes[:, :, frame:])
        assert reader.complete
        assert reader.num_frames == 23
    reader.seek(6)
    first = next(iter(reader))
    for wrong, kind in [(24, ValueError), (-1, ValueError), (1.0, TypeError)]:
        with pytest.raises(kind, match="frame"):
            reader.seek(wrong)
    np.testing.assert_array_equal(np.concatenate([first, *reader], axis=2), codes[:, :, 6:])
    assert file.read() == b"after"


class Counting(io.BytesIO):
    taken = 0

    def read(self, size=-1):
        data = super().read(size)
        self.taken += len(data)
        return data


def test_seek_and_scan_read_no_codes():
    header = Header(8, 2048)
    file = Counting(to_bytes(make_codes(header, 10_000), header))
    reader = BitstreamReader(file)
    reader.seek(9_990)
    assert reader.scan().num_blocks == 80
    assert file.taken < 500
    assert next(iter(reader)).shape == (1, 8, 10)


def test_seek_decodes_from_the_last_restart_alone(quick_restart):
    header = Header(4, 16, coding="entropy")
    codes = make_codes(header, 600, skewed=True)
    file = Counting(to_bytes(codes, header, 6))
    reader = BitstreamReader(file)
    file.taken = 0
    reader.seek(595)
    np.testing.assert_array_equal(next(iter(reader)), codes[:, :, 595:600])
    assert file.taken < 100 * 6 + 30  # heads of blocks, and one payload


# Mistakes of callers


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"num_quantizers": 8.0}, TypeError, "num_quantizers=8.0 must be an integer"),
        ({"num_quantizers": True}, TypeError, "num_quantizers=True"),
        ({"codebook_size": 1}, ValueError, "codebook_size=1 must be from 2"),
        ({"channels": 256}, ValueError, "channels=256"),
        ({"num_samples": -1}, ValueError, "num_samples=-1"),
        ({"codebook_digest": "abc"}, ValueError, "64 hex digits"),
        ({"codebook_digest": b"abc"}, ValueError, "64 hex digits"),
        ({"coding": "zip"}, ValueError, "packed, entropy"),
        ({"coding": "entropy", "codebook_size": 2**20}, ValueError, "too many for entropy"),
        ({"metadata": [1]}, TypeError, "must be a dict"),
        ({"metadata": {"a": float("nan")}}, ValueError, "JSON"),
        ({"metadata": {"a": object()}}, ValueError, "JSON"),
        ({"metadata": {"a": "\ud800"}}, ValueError, "JSON"),
        ({"metadata": {"a": "x" * 65_536}}, ValueError, "Shorten"),
    ],
)
def test_header_names_what_is_wrong(changes, kind, message):
    with pytest.raises(kind, match=message):
        Header(**{"num_quantizers": 1, "codebook_size": 4, **changes})


@pytest.mark.parametrize(
    ("codes", "kind", "message"),
    [
        (np.zeros((1, 3, 2)), TypeError, "integers, not float64"),
        (np.zeros((3, 1, 2), dtype=int), ValueError, r"\(3, 1, 2\)"),
        (np.zeros((2, 3), dtype=int), ValueError, r"1 channels, 3 codebooks"),
        (np.zeros(3, dtype=int), ValueError, r"\(3,\)"),
        (np.full((3, 2), -1), ValueError, "from -1 to -1.*padding"),
        (np.full((3, 2), 4), ValueError, "must be 0 to 3"),
        (np.full((3, 2), True), TypeError, "bool"),
    ],
)
def test_writer_names_what_is_wrong_and_goes_on(codes, kind, message):
    file, good = io.BytesIO(), np.ones((3, 2), dtype=int)
    with BitstreamWriter(file, Header(3, 4)) as writer:
        writer.write(good)
        with pytest.raises(kind, match=message):
            writer.write(codes)
        with pytest.raises(ValueError, match="num_samples=3841 must be from 0 to 3840"):
            writer.close(num_samples=3841)
    np.testing.assert_array_equal(read(file.getvalue())[0][0], good)
    with pytest.raises(ValueError, match="closed"):
        writer.write(good)


def test_block_frames_have_limits():
    for wrong in (0, 65_536):
        with pytest.raises(ValueError, match="block_frames"):
            BitstreamWriter(io.BytesIO(), Header(1, 4), block_frames=wrong)
    with pytest.raises(ValueError, match=r"block_frames=5 must be from 1 to 4"):
        BitstreamWriter(io.BytesIO(), Header(1024, 4, channels=255), block_frames=5)


def test_text_files_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(to_bytes([[1]], Header(1, 4))[1:])
    with open(tmp_path / "a", encoding="latin1") as file, pytest.raises(TypeError, match="'rb'"):
        BitstreamReader(file)


def test_an_error_leaves_no_end_mark():
    file = io.BytesIO()
    with pytest.raises(KeyError), BitstreamWriter(file, Header(1, 4), block_frames=2) as writer:
        writer.write([[1, 2, 3]])
        raise KeyError
    codes, complete = read(file.getvalue())
    assert codes.tolist() == [[[1, 2]]]
    assert not complete


def test_nothing_follows_what_could_not_be_written():
    file = io.BytesIO()
    writer = BitstreamWriter(file, Header(1, 4))
    writer.write([[1]])
    file.close()
    with pytest.raises(ValueError, match="closed file"):
        writer.flush()
    with pytest.raises(ValueError, match="BitstreamWriter is closed"):
        writer.write([[1]])


# Entropy coding


def test_entropy_coding_saves_where_there_is_something_to_save():
    header = Header(4, 512)
    packed = to_bytes(make_codes(header, 2000), header)
    for skewed, most in [(True, 0.6), (False, 1.02)]:
        coded = to_bytes(make_codes(header, 2000, skewed=skewed), replace(header, coding="entropy"))
        assert len(coded) < most * len(packed)
    silence = to_bytes(np.zeros((4, 2000), dtype=int), replace(header, coding="entropy"))
    assert len(silence) < 0.15 * len(packed)


@pytest.mark.parametrize("size", [2, 3, 2048, 2**16])
@pytest.mark.parametrize("kind", ["none", "one", "few", "all"])
def test_tables_sum_to_what_the_coder_takes(size, kind):
    counts = np.zeros(size, dtype=np.int64)
    counts[: {"none": 0, "one": 1, "few": 2, "all": size}[kind]] = 2**16 * 255 * 2
    weights = entropy.compute_weights(counts)
    assert weights.sum() == 2**24 - size
    assert weights.min() >= 0
    assert (np.diff(weights[1:]) <= 0).all()  # more often, more likely


def test_without_constriction_all_but_entropy_works(monkeypatch):
    header = Header(1, 4, coding="entropy")
    data = to_bytes([[1, 2]], header)
    monkeypatch.setitem(sys.modules, "constriction", None)
    reader = BitstreamReader(io.BytesIO(data))
    assert reader.header == header
    assert reader.scan().num_frames == 2
    for call in (reader.read, lambda: BitstreamWriter(io.BytesIO(), header)):
        with pytest.raises(ImportError, match=r"pip install 'mimi_hf\[entropy\]'"):
            call()
    assert read(to_bytes([[1, 2]], Header(1, 4)))[0].tolist() == [[[1, 2]]]


# Whole files


def test_whole_files_come_back(tmp_path, header):
    codes = make_codes(header, 30)
    header = replace(header, num_samples=30 * 1920 - 5)
    write_mimi(tmp_path / "a.mimi", codes, header, block_frames=7)
    actual_header, actual = read_mimi(str(tmp_path / "a.mimi"))
    np.testing.assert_array_equal(actual, codes)
    assert actual_header == header


def test_files_appear_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.mimi"
    write_mimi(path, [[1, 2]], Header(1, 4))
    for codes, header in [([[9]], Header(1, 4)), ([[1]], Header(1, 4, num_samples=5000))]:
        with pytest.raises(ValueError, match="must be"):
            write_mimi(path, codes, header)
    assert read_mimi(path)[1].tolist() == [[[1, 2]]]
    assert [file.name for file in tmp_path.iterdir()] == ["a.mimi"]
    with pytest.raises(FileNotFoundError, match="Create it first"):
        write_mimi(tmp_path / "no" / "a.mimi", [[1]], Header(1, 4))


def test_a_cut_file_is_read_with_a_warning_and_more_than_a_file_is_refused(tmp_path, caplog):
    path = tmp_path / "a.mimi"
    write_mimi(path, [[1, 2, 3]], Header(1, 4, num_samples=5760), block_frames=2)
    data = path.read_bytes()
    path.write_bytes(data[:-25])
    header, codes = read_mimi(path)
    assert codes.tolist() == [[[1, 2]]]
    assert header.num_samples == 3840
    assert "cut short after 0.16 s" in caplog.text
    path.write_bytes(data + data)
    with pytest.raises(BitstreamError, match="goes on behind its end mark"):
        read_mimi(path)
