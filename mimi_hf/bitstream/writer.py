"""Write .mimi files. Their format is described in [`mimi_hf.bitstream`]."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from mimi_hf.utils.arrays import to_numpy
from mimi_hf.utils.files import BinaryWriter, write_all, written_beside

from .header import END_MARK, UNKNOWN, Header, check_integer, compute_checksum, encode_header
from .payload import PayloadCoder

BLOCK_SECONDS = 10  # of a block by default: a crash loses no more, and headers are half a percent of 1.1 kbps


class BitstreamWriter:
    """Writes codes as they come; a context manager, at whose end the file gets its end mark, except after an error.

    Args:
        file: where to; it need not be seekable, and is not closed.
        header: what the codes are.
        block_frames: frames per block, 10 seconds by default. A cut file loses less than that.

    Attributes:
        header: what the codes are.
        block_frames: frames per block.
        num_frames: F, taken so far.

    Raises:
        ImportError: the coding is entropy, and the extra `entropy` is not installed.
        ValueError, TypeError: `block_frames` is no integer within its limits.

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

    def __init__(self, file: BinaryWriter, header: Header, block_frames: int | None = None):
        self.header = header
        self.num_frames = 0
        if block_frames is None:
            block_frames = max(1, min(round(BLOCK_SECONDS * header.frame_rate), header.max_block_frames))
        self.block_frames = check_integer("block_frames", block_frames, 1, header.max_block_frames)
        self._coder = PayloadCoder(header)
        self._file = file
        self._pending: list[np.ndarray] = []  # (f, C, K)
        self._written = 0  # frames in blocks
        self._closed = False
        start = encode_header(header)
        self._seed = zlib.crc32(start)
        self._write(start + struct.pack("<I", self._seed))

    def write(self, codes: ArrayLike) -> None:
        """Take codes, shape = (C, K, f) or, where C is 1, (K, f); any f. Whole blocks are written at once.

        Raises:
            ValueError: the codes have another shape, or are not less than V; or the writer is closed.
            TypeError: the codes are no integers.
        """
        if self._closed:
            raise ValueError("This BitstreamWriter is closed; begin another one.")
        header, array = self.header, to_numpy(codes)
        if array.ndim == 2 and header.channels == 1:
            array = array[None]
        if array.ndim != 3 or array.shape[:2] != (header.channels, header.num_quantizers):
            raise ValueError(
                f"Codes have shape {array.shape}, but the header says ({header.channels} channels,"
                f" {header.num_quantizers} codebooks, any number of frames). Select or transpose."
            )
        if array.dtype.kind not in "iu":
            raise TypeError(f"Codes must be integers, not {array.dtype}. Convert them.")
        if array.size and not 0 <= array.min() <= array.max() < header.codebook_size:
            raise ValueError(
                f"Codes reach from {array.min()} to {array.max()}, but must be 0 to {header.codebook_size - 1}."
                " Leave padding out."
            )
        self._pending.append(array.transpose(2, 0, 1).astype(header.dtype, order="C"))  # a copy
        self.num_frames += array.shape[2]
        if self.num_frames - self._written >= self.block_frames:
            self._write_blocks()

    def flush(self) -> None:
        """Write what has come, as a block that may be shorter."""
        if not self._closed:
            self._write_blocks(last=True)

    def close(self, num_samples: int | None = None) -> None:
        """Write the last block and the end mark.

        Args:
            num_samples: real samples per channel; `header.num_samples` by default.

        Raises:
            ValueError: there are not as many samples in the frames.
        """
        if self._closed:
            return
        num_samples = self.header.num_samples if num_samples is None else num_samples
        if num_samples is None:
            num_samples = UNKNOWN
        else:
            num_samples = check_integer("num_samples", num_samples, 0, self.num_frames * self.header.frame_size)
        self._write_blocks(last=True)
        end = END_MARK.pack(0, self.num_frames, num_samples)
        self._write(end + compute_checksum(self._seed, self.num_frames, end))
        self._closed = True

    def __enter__(self) -> "BitstreamWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        if kind is None:
            self.close()
        self._closed = True

    def _write_blocks(self, last: bool = False) -> None:
        """Write the pending frames as blocks; those that fill no block only where they are the last."""
        if not self._pending:
            return
        pending = np.concatenate(self._pending)
        rest = 0 if last else len(pending) % self.block_frames
        for start in range(0, len(pending) - rest, self.block_frames):
            codes = pending[start : start + self.block_frames]
            payload, head = self._coder.encode(codes, self._written), struct.pack("<H", len(codes))
            if self.header.coding == "entropy":
                head += struct.pack("<I", len(payload))
            self._write(head + payload + compute_checksum(self._seed, self._written, head, payload))
            self._written += len(codes)
        self._pending = [pending[len(pending) - rest :].copy()] if rest else []

    def _write(self, data: bytes) -> None:
        try:
            write_all(self._file, data)
        except BaseException:
            self._closed = True  # a part may be there, so nothing can follow
            raise


def write_mimi(path: str | os.PathLike[str], codes: ArrayLike, header: Header, block_frames: int | None = None) -> None:
    """Write a whole file, which appears whole or not at all.

    Args:
        path: where to; what is there already is replaced.
        codes: integers, shape = (C, K, F) or, where C is 1, (K, F); an array or a torch tensor.
        header: what the codes are.
        block_frames: frames per block, 10 seconds by default.

    Raises:
        ValueError, TypeError, ImportError: as [`BitstreamWriter`].
        OSError: the file cannot be written, for example because its folder does not exist.
    """
    with written_beside(Path(os.fsdecode(path))) as aside, open(aside, "wb") as file:
        writer = BitstreamWriter(file, header, block_frames)
        writer.write(codes)
        writer.close()
