"""Writing codes: as they come, whole, and what is refused."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from support.described_bitstream import make_codes, read, to_bytes

from mimi_hf.bitstream import BitstreamReader, BitstreamWriter, Header, read_mimi, write_mimi

pytest.importorskip("constriction", reason="the extra `entropy` is not installed")


def test_tensors_and_two_dimensions_are_taken():
    codes = torch.randint(0, 64, (6, 10))
    np.testing.assert_array_equal(read(to_bytes(codes, Header(6, 64)))[0][0], codes.numpy())


def test_the_caller_may_change_the_codes_afterwards():
    codes, file = np.ones((1, 4), dtype=np.uint16), io.BytesIO()
    with BitstreamWriter(file, Header(1, 4)) as writer:
        writer.write(codes)
        codes[:] = 0
    assert (read(file.getvalue())[0] == 1).all()


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
