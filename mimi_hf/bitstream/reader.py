"""Files of codes, `.mimi`: pure bytes and numpy.

A file holds C channels of codes of K codebooks with V entries, as a header, blocks of frames, and an end mark. All
numbers are little-endian and unsigned: u8, u16, u32 and u64 have so many bits. Every crc is CRC-32 (as in zip and png)
of the bytes of the header before its own crc, followed by the bytes that are named.

Header:

    7 bytes   89 "MIMI" 0D 0A
    u8        version: 1
    u8        coding of the payloads: 0 packed, 1 entropy
    u8        C, 1 to 255
    u16       K, 1 to 1024
    u32       V, 2 to 2^24
    u32       sampling rate, samples per second, not 0
    u32       frame size, samples per frame, 1 to 2^24
    u64       samples per channel that are real, at most 2^63; 2^64 - 1 where that is not known
    32 bytes  SHA-256 that names the codebooks; zeros where that is not known
    u16       bytes of metadata
    ...       metadata: a JSON object in UTF-8, no longer than that; keys are unique, numbers finite, at most 32 deep
    u32       crc, of the header alone

Where the coding is entropy, K is at most 256, and K * V at most 2^17.

Block:

    u16       frames f, 1 to 65535, where f * C * K is at most 2^20
    u32       bytes of payload, only where the coding is entropy
    ...       payload
    u32       crc, of: the number of frames before this block as u64, the fields above

A packed payload is a string of bits, the lowest bit of each byte first, in which each code takes b = ceil(log2 V)
bits, the lowest first: frame after frame, in it channel after channel, in it codebook after codebook. The last byte is
filled up with zeros, so there are ceil(f * C * K * b / 8) bytes. Where the coding is entropy, a payload of that length
is packed; others are shorter, and [`mimi_hf.bitstream.entropy`] tells what is in them.

End mark:

    u16       0
    u64       frames in the file
    u64       samples per channel that are real, at most frames * frame size; 2^64 - 1 where that is not known
    u32       crc, of: the number of frames as u64, the fields above

A block does not refer to those after it, so a file is written and read as it comes. One without an end mark was cut
short, and holds what its whole blocks hold.
"""

import io
import logging
import os
import struct
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from mimi_hf.utils.arrays import to_numpy
from mimi_hf.utils.files import write_all, written_beside

from .entropy import starts_anew
from .header import UNKNOWN, BitstreamError, CutError, Header, check_integer, header_bytes, read_header
from .payload import PayloadCoder, packed_length

__all__ = ["BitstreamError", "BitstreamReader", "BitstreamWriter", "Facts", "Header", "read_mimi", "write_mimi"]

logger = logging.getLogger(__name__)

BLOCK_SECONDS = 10  # of a block by default: a crash loses no more, and headers are half a percent of 1.1 kbps
_END = struct.Struct("<HQQ")


@dataclass(frozen=True)
class Facts:
    """What [`BitstreamReader.scan`] finds.

    num_frames: F, in whole blocks.
    num_samples: real samples per channel; None where that is not known.
    num_blocks: whole blocks.
    num_bytes: from the header to the end mark, or to the last whole block.
    complete: whether the end mark is there.
    """

    num_frames: int
    num_samples: int | None
    num_blocks: int
    num_bytes: int
    complete: bool


class BitstreamWriter:
    """Writes codes as they come; a context manager, at whose end the file gets its end mark, except after an error.

    Args:
        file (binary file object): where to; it need not be seekable, and is not closed.
        header (Header): what the codes are.
        block_frames (int, optional): frames per block, 10 seconds by default. A cut file loses less than that.

    Example:

        >>> import io
        >>> import numpy as np
        >>> from mimi_hf.bitstream import BitstreamReader, BitstreamWriter, Header
        >>> codes = np.random.default_rng(0).integers(0, 2048, (8, 100))  # (K, F)
        >>> file = io.BytesIO()
        >>> with BitstreamWriter(file, Header(num_quantizers=8, codebook_size=2048)) as writer:
        ...     for start in range(0, 100, 7):
        ...         writer.write(codes[:, start : start + 7])
        >>> file.tell()  # 1100 bytes of codes
        1200
        >>> position = file.seek(0)
        >>> bool((BitstreamReader(file).read()[0] == codes).all())
        True
    """

    def __init__(self, file, header, block_frames=None):
        self.header = header
        self.num_frames = 0
        if block_frames is None:
            block_frames = max(1, min(round(BLOCK_SECONDS * header.frame_rate), header.max_block_frames))
        self.block_frames = check_integer("block_frames", block_frames, 1, header.max_block_frames)
        self._coder = PayloadCoder(header)
        self._file = file
        self._pending = []  # arrays (f, C, K)
        self._written = 0  # frames in blocks
        self._closed = False
        start = header_bytes(header)
        self._seed = zlib.crc32(start)
        self._write(start + struct.pack("<I", self._seed))

    def write(self, codes):
        """Take codes, shape = (C, K, f) or, where C is 1, (K, f); any f. Whole blocks are written at once."""
        if self._closed:
            raise ValueError("This BitstreamWriter is closed; begin another one.")
        self._pending.append(self._check(codes))
        self.num_frames += len(self._pending[-1])
        if self.num_frames - self._written >= self.block_frames:
            self._write_blocks()

    def flush(self):
        """Write what has come, as a block that may be shorter."""
        if not self._closed:
            self._write_blocks(all_of_it=True)

    def close(self, num_samples=None):
        """Write the last block and the end mark.

        Args:
            num_samples (int, optional): real samples per channel; `header.num_samples` by default.
        """
        if self._closed:
            return
        num_samples = self.header.num_samples if num_samples is None else num_samples
        if num_samples is None:
            num_samples = UNKNOWN
        else:
            num_samples = check_integer("num_samples", num_samples, 0, self.num_frames * self.header.frame_size)
        self._write_blocks(all_of_it=True)
        end = _END.pack(0, self.num_frames, num_samples)
        self._write(end + _checksum(self._seed, self.num_frames, end))
        self._closed = True

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None:
            self.close()
        self._closed = True

    def _check(self, codes):
        """A copy of the codes, shape = (f, C, K)."""
        header, codes = self.header, to_numpy(codes)
        if codes.ndim == 2 and header.channels == 1:
            codes = codes[None]
        if codes.ndim != 3 or codes.shape[:2] != (header.channels, header.num_quantizers):
            raise ValueError(
                f"Codes have shape {codes.shape}, but the header says ({header.channels} channels,"
                f" {header.num_quantizers} codebooks, any number of frames). Select or transpose."
            )
        if codes.dtype.kind not in "iu":
            raise TypeError(f"Codes must be integers, not {codes.dtype}.")
        if codes.size and not 0 <= codes.min() <= codes.max() < header.codebook_size:
            raise ValueError(
                f"Codes reach from {codes.min()} to {codes.max()}, but must be 0 to {header.codebook_size - 1}."
                " Leave padding out."
            )
        return codes.transpose(2, 0, 1).astype(header.dtype, order="C")

    def _write_blocks(self, all_of_it=False):
        if not self._pending:
            return
        codes = np.concatenate(self._pending)
        rest = 0 if all_of_it else len(codes) % self.block_frames
        for start in range(0, len(codes) - rest, self.block_frames):
            self._write_block(codes[start : start + self.block_frames])
        self._pending = [codes[len(codes) - rest :].copy()] if rest else []

    def _write_block(self, codes):
        payload, head = self._coder.encode(codes, self._written), struct.pack("<H", len(codes))
        if self.header.coding == "entropy":
            head += struct.pack("<I", len(payload))
        self._write(head + payload + _checksum(self._seed, self._written, head, payload))
        self._written += len(codes)

    def _write(self, data):
        try:
            write_all(self._file, data)
        except BaseException:
            self._closed = True  # a part may be there, so nothing can follow
            raise


class BitstreamReader:
    """Reads a file as it comes.

    Iterating gives the codes of block after block, shape = (C, K, f), as soon as a block is there, and goes on where it
    stopped. A file that was cut short ends with its last whole block, and `complete` stays False.

    Args:
        file (binary file object): where from; it need not be seekable. Nothing is read beyond the end mark.

    Raises:
        BitstreamError: the file is no .mimi file, or its header is damaged; when reading, a block is damaged.
        ImportError: when reading, the file is entropy-coded, and the extra `entropy` is not installed.
    """

    def __init__(self, file):
        self.complete = False
        self._file = file
        self._beginning = file.tell() if self._seekable() else None
        try:
            self.header, data = read_header(self._take)
        except CutError as error:
            raise BitstreamError("This ends inside the header: no .mimi file, or one that was cut short.") from error
        self._seed = zlib.crc32(data)
        self._first_block = len(data) + 4  # from the beginning
        self._total = None  # frames, and samples or None, of the whole file
        self._begin(0, 0)

    @property
    def num_frames(self) -> int | None:
        """F, where it is known: at the end, or from the header."""
        if self._total:
            return self._total[0]
        samples = self.header.num_samples
        return None if samples is None else -(-samples // self.header.frame_size)

    @property
    def num_samples(self) -> int | None:
        """Real samples per channel, where that is known: at the end, or from the header. After a cut, those that are
        left."""
        return self._total[1] if self._total else self.header.num_samples

    def __iter__(self):
        while not self._ended:
            codes = self._next()
            if codes is not None and codes.shape[2]:
                yield codes

    def read(self):
        """All that is left: array, shape = (C, K, F)."""
        empty = np.empty((self.header.channels, self.header.num_quantizers, 0), dtype=self.header.dtype)
        return np.concatenate([empty, *self], axis=2)

    def seek(self, frame):
        """Go to a frame: the next block begins with it. Reads headers of blocks alone, where codes are packed.

        Raises:
            ValueError: there are fewer frames.
            io.UnsupportedOperation: the file is not seekable.
        """
        frame = check_integer("frame", frame, 0, 2**63)
        position = self._tell()
        place = start = end = 0, self._beginning + self._first_block  # frame and offset
        try:
            for start, end in self._walk():
                if self.header.coding == "packed" or starts_anew(place[0], start[0]):
                    place = start
                if frame < end[0]:
                    break
            if frame > end[0]:
                raise ValueError(f"Frame {frame} lies behind the end: there are {end[0]} whole frames.")
        except ValueError:
            self._file.seek(position)
            raise
        self._file.seek(place[1])
        self._begin(place[0], frame - place[0])

    def scan(self) -> Facts:
        """What is in the file, from the headers of its blocks; reading goes on where it was.

        Raises:
            BitstreamError: for a header or an end mark that cannot be right. Codes are not checked.
            io.UnsupportedOperation: the file is not seekable.
        """
        position, blocks = self._tell(), 0
        try:
            end = 0, self._beginning + self._first_block  # frame and offset
            for _, block_end in self._walk():
                blocks, end = blocks + 1, block_end
            self._file.seek(end[1])
            try:
                if self._take_head(end[0])[1]:
                    raise CutError  # a block that is not whole
                total, complete = self._take_end(end[0]), True
            except CutError:
                total, complete = self._cut(end[0]), False
            num_bytes = (self._file.tell() if complete else end[1]) - self._beginning
        finally:
            self._file.seek(position)
        return Facts(end[0], total[1], blocks, num_bytes, complete)

    def _begin(self, frame, skip):
        """Go on with the block that begins at `frame`, where the file is; leave out so many frames."""
        self._position, self._skip = frame, skip
        self._ended = False
        self._coder = None

    def _next(self):
        """Codes of the next block, less those to be skipped; None at the end."""
        if self._coder is None:  # not before: it may need what is not installed
            self._coder = PayloadCoder(self.header, self._position)
        self._ended = True  # it stays so after an error
        try:
            head, frames, length = self._take_head(self._position)
            if frames == 0:
                self._total, self.complete = self._take_end(self._position), True
                return None
            payload, checksum = self._take(length), self._take(4)
        except CutError:
            self._total = self._cut(self._position)
            return None
        if checksum != _checksum(self._seed, self._position, head, payload):
            raise self._damaged(self._position, "its checksum is wrong")
        try:
            codes = self._coder.decode(payload, frames, self._position)
        except ValueError as error:
            raise self._damaged(self._position, str(error)) from error
        skipped = min(frames, self._skip)
        self._position += frames
        self._skip -= skipped
        self._ended = False
        return np.ascontiguousarray(codes[skipped:].transpose(1, 2, 0), dtype=self.header.dtype)

    def _walk(self):
        """(frame, offset) of the beginning and of the end of each whole block, from the first one on."""
        size = self._file.seek(0, os.SEEK_END)
        frame, offset = 0, self._beginning + self._first_block
        while True:
            self._file.seek(offset)
            try:
                head, frames, length = self._take_head(frame)
            except CutError:
                return
            end = offset + len(head) + length + 4
            if not frames or end > size:
                return
            yield (frame, offset), (frame + frames, end)
            frame, offset = frame + frames, end

    def _take_head(self, start):
        """The head of a block that begins at the frame `start`: its bytes, frames, and the length of its payload."""
        head = self._take(2)
        (frames,) = struct.unpack("<H", head)
        if frames > self.header.max_block_frames:
            raise self._damaged(start, f"it claims {frames} frames, more than {self.header.max_block_frames}")
        length = needed = packed_length(self.header, frames)
        if frames and self.header.coding == "entropy":
            head += self._take(4)
            (length,) = struct.unpack("<I", head[2:])
        if length > needed:
            raise self._damaged(start, f"it claims {length} bytes for codes that need {needed}")
        return head, frames, length

    def _take_end(self, frames):
        """What the end mark says after its first two bytes, which is checked: frames, and samples or None."""
        data = b"\0\0" + self._take(_END.size - 2)
        if self._take(4) != _checksum(self._seed, frames, data):
            raise self._damaged(frames, "the checksum of the end mark is wrong")
        _, claimed, num_samples = _END.unpack(data)
        if claimed != frames:
            raise self._damaged(frames, f"the end mark claims {claimed} frames instead of {frames}")
        if num_samples == UNKNOWN:
            return frames, None
        if num_samples > frames * self.header.frame_size:
            raise self._damaged(frames, f"the end mark claims {num_samples} samples, more than {frames} frames hold")
        return frames, num_samples

    def _cut(self, frames):
        """Frames, and samples or None, of a file without end mark."""
        known = self.header.num_samples
        return frames, None if known is None else min(known, frames * self.header.frame_size)

    def _take(self, size):
        """So many bytes; what is missing raises [`CutError`]."""
        parts, left = [], size
        while left:
            data = self._file.read(left)
            if not isinstance(data, bytes):
                raise TypeError(f"The file gives {type(data).__name__}, not bytes. Open it with mode 'rb', blocking.")
            if not data:
                raise CutError
            parts.append(data)
            left -= len(data)
        return b"".join(parts)

    def _damaged(self, frame, message):
        second = frame / self.header.frame_rate
        return BitstreamError(f"This .mimi file is damaged at second {second:.2f} (frame {frame}): {message}.")

    def _seekable(self):
        return hasattr(self._file, "seekable") and self._file.seekable()

    def _tell(self):
        if self._beginning is None:
            raise io.UnsupportedOperation("This file is not seekable: read it from its beginning, or save it first.")
        return self._file.tell()


def write_mimi(path, codes, header, block_frames=None):
    """Write a whole file, which appears whole or not at all.

    Args:
        path (str or os.PathLike): where to; what is there already is replaced.
        codes: array of integers, shape = (C, K, F) or, where C is 1, (K, F).
        header (Header): what the codes are.
        block_frames (int, optional): frames per block, 10 seconds by default.
    """
    path = Path(os.fsdecode(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: there is no folder {path.parent}. Create it first.")
    with written_beside(path) as aside, open(aside, "wb") as file:
        writer = BitstreamWriter(file, header, block_frames)
        writer.write(codes)
        writer.close()


def read_mimi(path):
    """Read a whole file. One that was cut short gives what its whole blocks hold, and a warning in the log.

    Returns:
        tuple[Header, np.ndarray]: the header, with the real number of samples where it is known, and codes, shape =
        (C, K, F).

    Raises:
        BitstreamError: for a damaged or foreign file.
    """
    with open(path, "rb") as file:
        reader = BitstreamReader(file)
        codes = reader.read()
        if not reader.complete:
            logger.warning("%s was cut short after %.2f s.", path, codes.shape[2] / reader.header.frame_rate)
        elif file.read(1):
            raise BitstreamError(f"{path} goes on behind its end mark. Read what follows with a BitstreamReader.")
    return replace(reader.header, num_samples=reader.num_samples), codes


def _checksum(seed, frame, *parts) -> bytes:
    """Of what begins at the frame. A block that was moved, or comes from another file, does not have it."""
    crc = zlib.crc32(struct.pack("<Q", frame), seed)
    for part in parts:
        crc = zlib.crc32(part, crc)
    return struct.pack("<I", crc)
