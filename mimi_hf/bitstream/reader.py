"""Read .mimi files. Their format is described in [`mimi_hf.bitstream`]."""

import io
import logging
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mimi_hf.utils.files import BinaryReader, SeekableReader, as_seekable, read_exactly

from .entropy import must_restart
from .header import END_MARK, UNKNOWN, BitstreamError, CutError, Header, check_integer, compute_checksum, read_header
from .payload import PayloadCoder, count_packed_bytes

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Facts:
    """What [`BitstreamReader.scan`] finds.

    Attributes:
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


class BitstreamReader:
    """Reads a file as it comes.

    Iterating gives the codes of block after block, shape = (C, K, f), as soon as a block is there, and goes on where it
    stopped. A file that was cut short ends with its last whole block, and `complete` stays False.

    Args:
        file: where from; it need not be seekable. Nothing is read beyond the end mark.

    Attributes:
        header: what the codes are.
        complete: whether the end mark was read.

    Raises:
        BitstreamError: the file is no .mimi file, or its header is damaged; when reading, a block is damaged.
        ImportError: when reading, the file is entropy-coded, and the extra `entropy` is not installed.
    """

    def __init__(self, file: BinaryReader):
        self.complete = False
        self._file = file
        seekable = as_seekable(file)
        self._beginning = seekable.tell() if seekable is not None else 0
        try:
            self.header, data = read_header(self._take)
        except CutError as error:
            raise BitstreamError("This ends inside the header: no .mimi file, or one that was cut short.") from error
        self._seed = zlib.crc32(data)
        self._first_block = self._beginning + len(data) + 4  # its offset in the file
        self._total: tuple[int, int | None] | None = None  # frames and samples of the whole file, once known
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
        """Real samples per channel, where they are known: at the end, or from the header.

        At the end of a file that was cut short, those that are left.
        """
        return self._total[1] if self._total else self.header.num_samples

    def __iter__(self) -> Iterator[np.ndarray]:
        while not self._ended:
            codes = self._read_block()
            if codes is not None and codes.shape[2]:
                yield codes

    def read(self) -> np.ndarray:
        """Read all codes that are left, shape = (C, K, F); uint16, or uint32 where V is more than 65536.

        Raises:
            BitstreamError: a block is damaged.
        """
        empty = np.empty((self.header.channels, self.header.num_quantizers, 0), dtype=self.header.dtype)
        return np.concatenate([empty, *self], axis=2)

    def seek(self, frame: int) -> None:
        """Go to a frame: the next block begins with it. Where codes are packed, this reads the heads of blocks alone.

        Raises:
            ValueError: there are fewer frames.
            io.UnsupportedOperation: the file is not seekable.
        """
        frame = check_integer("frame", frame, 0, 2**63)
        file = self._require_seekable()
        position = file.tell()
        place = start = end = 0, self._first_block  # frame and offset
        try:
            for start, end in self._walk(file):
                if self.header.coding == "packed" or must_restart(place[0], start[0]):
                    place = start
                if frame < end[0]:
                    break
            if frame > end[0]:
                raise ValueError(f"Frame {frame} lies behind the end: there are {end[0]} whole frames.")
        except ValueError:
            file.seek(position)
            raise
        file.seek(place[1])
        self._begin(place[0], frame - place[0])

    def scan(self) -> Facts:
        """Find what is in the file, from the heads of its blocks; reading goes on where it was.

        Raises:
            BitstreamError: for a head or an end mark that cannot be right. Codes are not checked.
            io.UnsupportedOperation: the file is not seekable.
        """
        file = self._require_seekable()
        position, blocks = file.tell(), 0
        end = 0, self._first_block  # frame and offset
        try:
            for _, block_end in self._walk(file):
                blocks, end = blocks + 1, block_end
            file.seek(end[1])
            try:
                if self._take_head(end[0])[1]:
                    raise CutError  # a block that is not whole
                total, complete = self._take_end(end[0]), True
            except CutError:
                total, complete = self._total_after_cut(end[0]), False
            num_bytes = (file.tell() if complete else end[1]) - self._beginning
        finally:
            file.seek(position)
        return Facts(end[0], total[1], blocks, num_bytes, complete)

    def _begin(self, frame: int, skip: int) -> None:
        """Go on with the block that begins at `frame`, where the file is; leave out the next `skip` frames."""
        self._position, self._skip = frame, skip
        self._ended = False
        self._coder: PayloadCoder | None = None

    def _read_block(self) -> np.ndarray | None:
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
            self._total = self._total_after_cut(self._position)
            return None
        if checksum != compute_checksum(self._seed, self._position, head, payload):
            raise self._damage_error(self._position, "its checksum is wrong")
        try:
            codes = self._coder.decode(payload, frames, self._position)
        except ValueError as error:
            raise self._damage_error(self._position, str(error)) from error
        skipped = min(frames, self._skip)
        self._position += frames
        self._skip -= skipped
        self._ended = False
        return np.ascontiguousarray(codes[skipped:].transpose(1, 2, 0), dtype=self.header.dtype)

    def _walk(self, file: SeekableReader) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
        """(frame, offset) of the beginning and of the end of each whole block, from the first one on."""
        size = file.seek(0, os.SEEK_END)
        frame, offset = 0, self._first_block
        while True:
            file.seek(offset)
            try:
                head, frames, length = self._take_head(frame)
            except CutError:
                return
            end = offset + len(head) + length + 4
            if not frames or end > size:
                return
            yield (frame, offset), (frame + frames, end)
            frame, offset = frame + frames, end

    def _take_head(self, start: int) -> tuple[bytes, int, int]:
        """The head of a block that begins at the frame `start`: its bytes, frames, and the length of its payload."""
        head = self._take(2)
        (frames,) = struct.unpack("<H", head)
        if frames > self.header.max_block_frames:
            raise self._damage_error(start, f"it claims {frames} frames, more than {self.header.max_block_frames}")
        length = needed = count_packed_bytes(self.header, frames)
        if frames and self.header.coding == "entropy":
            head += self._take(4)
            (length,) = struct.unpack("<I", head[2:])
        if length > needed:
            raise self._damage_error(start, f"it claims {length} bytes for codes that need {needed}")
        return head, frames, length

    def _take_end(self, frames: int) -> tuple[int, int | None]:
        """Frames and samples (None where unknown) of the file, from its end mark after the first two bytes."""
        data = b"\0\0" + self._take(END_MARK.size - 2)
        if self._take(4) != compute_checksum(self._seed, frames, data):
            raise self._damage_error(frames, "the checksum of the end mark is wrong")
        _, claimed, samples = END_MARK.unpack(data)
        if claimed != frames:
            raise self._damage_error(frames, f"the end mark claims {claimed} frames instead of {frames}")
        if samples == UNKNOWN:
            return frames, None
        if samples > frames * self.header.frame_size:
            raise self._damage_error(frames, f"the end mark claims {samples} samples, more than {frames} frames hold")
        return frames, samples

    def _total_after_cut(self, frames: int) -> tuple[int, int | None]:
        """Frames and samples (None where unknown) of a file without end mark."""
        known = self.header.num_samples
        return frames, None if known is None else min(known, frames * self.header.frame_size)

    def _take(self, size: int) -> bytes:
        """`size` bytes. Raises [`CutError`] where there are fewer."""
        data = read_exactly(self._file, size)
        if len(data) < size:
            raise CutError
        return data

    def _damage_error(self, frame: int, message: str) -> BitstreamError:
        second = frame / self.header.frame_rate
        return BitstreamError(f"This .mimi file is damaged at second {second:.2f} (frame {frame}): {message}.")

    def _require_seekable(self) -> SeekableReader:
        file = as_seekable(self._file)
        if file is None:
            raise io.UnsupportedOperation("This file is not seekable: read it from its beginning, or save it first.")
        return file


def read_mimi(path: str | os.PathLike[str]) -> tuple[Header, np.ndarray]:
    """Read a whole file. One that was cut short gives what its whole blocks hold, and a warning in the log.

    Returns:
        The header, with the real number of samples where it is known, and codes, shape = (C, K, F).

    Raises:
        BitstreamError: for a damaged or foreign file.
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        reader = BitstreamReader(file)
        codes = reader.read()
        if not reader.complete:
            logger.warning("%s was cut short after %.2f s.", path, codes.shape[2] / reader.header.frame_rate)
        elif file.read(1):
            raise BitstreamError(f"{path} goes on behind its end mark. Read what follows with a BitstreamReader.")
    return replace(reader.header, num_samples=reader.num_samples), codes
