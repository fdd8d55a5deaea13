"""Reading codes: as they come, whole, from a frame on, and after a cut."""

import io
import os
from dataclasses import replace

import numpy as np
import pytest
from support.described_bitstream import HEADER, make_codes, to_bytes

from mimi_hf.bitstream import BitstreamError, BitstreamReader, BitstreamWriter, Header, read_mimi, write_mimi

pytest.importorskip("constriction", reason="the extra `entropy` is not installed")


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


def test_text_files_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(to_bytes([[1]], Header(1, 4))[1:])
    with open(tmp_path / "a", encoding="latin1") as file, pytest.raises(TypeError, match="'rb'"):
        BitstreamReader(file)


def test_whole_files_come_back(tmp_path, header):
    codes = make_codes(header, 30)
    header = replace(header, num_samples=30 * 1920 - 5)
    write_mimi(tmp_path / "a.mimi", codes, header, block_frames=7)
    actual_header, actual = read_mimi(str(tmp_path / "a.mimi"))
    np.testing.assert_array_equal(actual, codes)
    assert actual_header == header


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
