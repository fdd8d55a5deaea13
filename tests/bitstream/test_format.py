"""The format of .mimi: what is written is read, by us and by a reader made from the description alone."""

import io
from dataclasses import replace

import numpy as np
import pytest
from support.described_bitstream import CODINGS, DIGEST, make_codes, read, read_as_described, to_bytes

from mimi_hf.bitstream import BitstreamReader, BitstreamWriter, Header

pytest.importorskip("constriction", reason="the extra `entropy` is not installed")
hypothesis = pytest.importorskip("hypothesis", reason="the extra `test` is not installed")

st = hypothesis.strategies


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
