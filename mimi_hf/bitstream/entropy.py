"""Entropy coding of codes with an adaptive model per codebook: what `coding="entropy"` means in [`mimi_hf.bitstream`].

The range coder of `constriction` (`queue.RangeEncoder`: words of 32 bits, a state of 64 bits, probabilities of 24 bits)
gives a payload as little-endian words. Zeros follow where it is shorter than one byte for 16 codes. The model computes
with integers alone, so every machine and every language gets the same one. Per codebook (channels share it):

- A model has counted n codes so far: c[s] of them equal to s, and d different ones. In the beginning all are zero.
- Its table of frequencies, which sum to 2^24, follows from the counts; `//` rounds down, V is the size of the codebook.
  The pseudo-count a, in units of 1/256, is about the one under which n codes hold d different ones:

      rest = (V - d) * n - d * V;    a = 256 if rest <= 0 else max(1, min(256, 256 * d * n // rest))
      T = 2^24 - V;                  w[s] = T * (256 * c[s] + a) // (256 * n + a * V)
      w[0] += T - sum(w);            frequency of s = w[s] + 1, in the order of s

- Tables are computed before the first frame. Those computed after t frames hold until t + max(1, t // 8) frames; then
  new ones are computed. So they follow the counts, and cost little.
- The frames of a block that share their tables make a run. A payload holds run after run; a run holds codebook after
  codebook; a codebook frame after frame; a frame channel after channel.
- The first block that begins [`RESTART`] frames or more after the model began starts a new model: a reader can begin
  there. The codes of packed blocks are counted as well.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

RESTART = 32_768  # frames: 44 minutes of Mimi, which decode in about 0.1 s, so a seek costs no more
MAX_CODEBOOKS, MAX_ENTRIES = 256, 2**17  # K, and K * V: the time for tables grows with them, not with the file's bytes
_CODES_PER_BYTE = 16  # at most, so that a few bytes never claim many codes
_TOTAL = 2**24


class EntropyCoder:
    """Codes to payloads and back. Blocks must come in order; each begins with [`begin_block`].

    Args:
        channels, num_quantizers, codebook_size: C, K and V of the codes.
        frame: where the first block begins.

    Raises:
        ImportError: the extra `entropy` is not installed.
    """

    def __init__(self, channels: int, num_quantizers: int, codebook_size: int, frame: int = 0):
        try:
            from constriction import stream  # pyright: ignore[reportAttributeAccessIssue]  # its stubs lack it
        except ImportError as error:
            raise ImportError(
                "Entropy-coded .mimi files need the package constriction: pip install 'mimi_hf[entropy]'."
            ) from error
        self._stream: Any = stream
        self._shape = (channels, num_quantizers)
        self._codebook_size = codebook_size
        self._restart(frame)

    def begin_block(self, frame: int) -> None:
        """Begin a block at `frame`, with a new model where one is due."""
        if must_restart(self._origin, frame):
            self._restart(frame)

    def encode(self, codes: np.ndarray) -> bytes:
        """Encode codes, shape = (f, C, K), to a payload."""
        encoder = self._stream.queue.RangeEncoder()
        for start, stop in self._runs(len(codes)):
            for k, model in enumerate(self._models):
                encoder.encode(codes[start:stop, :, k].ravel().astype(np.int32), model)
            self._count(codes[start:stop])
        payload = encoder.get_compressed().astype("<u4").tobytes()
        return payload.ljust(_shortest(codes.size), b"\0")

    def decode(self, payload: bytes, frames: int) -> np.ndarray:
        """Decode a payload to codes, shape = (f, C, K), int32.

        Raises:
            ValueError: no codes give this payload.
        """
        channels, num_quantizers = self._shape
        if len(payload) % 4 or len(payload) < _shortest(frames * channels * num_quantizers):
            raise ValueError(f"{len(payload)} bytes cannot be the entropy-coded codes of {frames} frames")
        decoder = self._stream.queue.RangeDecoder(np.frombuffer(payload, dtype="<u4").astype(np.uint32))
        codes = np.empty((frames, channels, num_quantizers), dtype=np.int32)
        for start, stop in self._runs(frames):
            for k, model in enumerate(self._models):
                try:
                    run = decoder.decode(model, (stop - start) * channels)
                except Exception as error:  # constriction 0.5 raises AssertionError, which is not documented
                    raise ValueError(f"its entropy-coded codes are invalid ({error})") from error
                codes[start:stop, :, k] = run.reshape(-1, channels)
            self._count(codes[start:stop])
        return codes

    def learn(self, codes: np.ndarray) -> None:
        """Count codes, shape = (f, C, K), of a block that is packed."""
        for start, stop in self._runs(len(codes)):
            self._count(codes[start:stop])

    def _restart(self, frame: int) -> None:
        """Forget all counts: a new model begins at `frame`."""
        self._origin = frame
        self._frames = self._next_tables = 0
        self._counts = np.zeros((self._shape[1], self._codebook_size), dtype=np.int64)
        self._models: list[Any] = []

    def _runs(self, frames: int) -> Iterator[tuple[int, int]]:
        """Where each run begins and ends; its codes must be counted before the next one is asked for."""
        start = 0
        while start < frames:
            if self._frames == self._next_tables:
                self._models = [self._model(counts) for counts in self._counts]
                self._next_tables += max(1, self._frames // 8)
            stop = min(frames, start + self._next_tables - self._frames)
            yield start, stop
            self._frames += stop - start
            start = stop

    def _count(self, codes: np.ndarray) -> None:
        for k, counts in enumerate(self._counts):
            counts += np.bincount(codes[:, :, k].ravel(), minlength=self._codebook_size)

    def _model(self, counts: np.ndarray) -> Any:
        # constriction computes floor(float sum of the weights before s * (free / sum of all)) + s, where free is
        # 2^24 - V: with whole weights of that sum the factor is 1, and no float is ever rounded.
        weights = compute_weights(counts).astype(np.float64)
        return self._stream.model.Categorical(weights, perfect=False)


def compute_weights(counts: np.ndarray) -> np.ndarray:
    """Compute the frequencies of a table, each less one, from counts: shape = (V,), int64; their sum is 2^24 - V."""
    size, total, different = len(counts), int(counts.sum()), int(np.count_nonzero(counts))
    rest = (size - different) * total - different * size
    pseudo_count = 256 if rest <= 0 else max(1, min(256, 256 * different * total // rest))
    weights = (_TOTAL - size) * (256 * counts + pseudo_count) // (256 * total + pseudo_count * size)
    weights[0] += _TOTAL - size - weights.sum()
    return weights


def must_restart(origin: int, frame: int) -> bool:
    """Whether the block that begins at `frame` starts a new model, where the last one began at the frame `origin`."""
    return frame - origin >= RESTART


def _shortest(codes: int) -> int:
    """The fewest bytes, in whole words, of a payload of `codes` codes."""
    return -(-codes // (4 * _CODES_PER_BYTE)) * 4
