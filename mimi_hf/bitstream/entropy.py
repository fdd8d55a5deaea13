"""Entropy coding of codes with an adaptive model per codebook: what `coding="entropy"` means in [`mimi_hf.bitstream`].

A payload comes from the range coder of `constriction` (`queue.RangeEncoder`: words of 32 bits, a state of 64 bits,
probabilities of 24 bits) as little-endian words, with zeros behind where it is shorter than one byte for 16 codes. All
of the model is integers, so every machine and every language computes the same one. Per codebook (channels share it):

- A model counts n codes so far, c[s] of them equal to s, d different ones. In the beginning all are zero.
- Its table of frequencies, which sum to 2^24, is made from the counts as follows; `//` rounds down, V is the size of
  the codebook. The pseudo-count a, in units of 1/256, is that under which d different codes among n are about likely:

      rest = (V - d) * n - d * V;    a = 256 if rest <= 0 else max(1, min(256, 256 * d * n // rest))
      T = 2^24 - V;                  w[s] = T * (256 * c[s] + a) // (256 * n + a * V)
      w[0] += T - sum(w);            frequency of s = w[s] + 1, in the order of s

- The tables are made in the beginning, and from then on after the frame t + max(1, t // 8), where t is the number of
  frames after which they were made before; so they follow the counts, and cost little.
- Frames that share their tables, within a block, make a piece. Pieces come one after the other in the payload; in a
  piece codebook after codebook; of a codebook frame after frame; of a frame channel after channel.
- With the first block that begins [`RESTART`] frames or more after the model began, it begins anew: from there a reader
  can start. The codes of packed blocks are counted as well.
"""

import numpy as np

RESTART = 32_768  # frames: 44 minutes of Mimi, which decode in about 0.1 s, so a seek costs no more
MAX_CODEBOOKS, MAX_ENTRIES = 256, 2**17  # K, and K * V: making tables takes time that no bytes have to pay for
_CODES_PER_BYTE = 16  # no payload is shorter, so that few bytes never become many codes
_TOTAL = 2**24


class EntropyCoder:
    """Codes to payloads and back. Blocks must come in order; each begins with [`begin_block`].

    Args:
        channels, num_quantizers, codebook_size (int): C, K and V of the codes.
        frame (int): where the first block begins.
    """

    def __init__(self, channels, num_quantizers, codebook_size, frame=0):
        self._stream = _import_stream()
        self._shape = (channels, num_quantizers)
        self._codebook_size = codebook_size
        self._restart(frame)

    def begin_block(self, frame):
        """A block begins at `frame`."""
        if starts_anew(self._origin, frame):
            self._restart(frame)

    def encode(self, codes):
        """The payload of codes, shape = (f, C, K)."""
        encoder = self._stream.queue.RangeEncoder()
        for start, stop in self._pieces(len(codes)):
            for k, model in enumerate(self._models):
                encoder.encode(codes[start:stop, :, k].ravel().astype(np.int32), model)
            self._count(codes[start:stop])
        payload = encoder.get_compressed().astype("<u4").tobytes()
        return payload.ljust(_shortest(codes.size), b"\0")

    def decode(self, payload, frames):
        """Codes of a payload, shape = (f, C, K), int32. ValueError for a payload that cannot be one."""
        channels, num_quantizers = self._shape
        if len(payload) % 4 or len(payload) < _shortest(frames * channels * num_quantizers):
            raise ValueError(f"{len(payload)} bytes cannot be the entropy-coded codes of {frames} frames")
        decoder = self._stream.queue.RangeDecoder(np.frombuffer(payload, dtype="<u4").astype(np.uint32))
        codes = np.empty((frames, channels, num_quantizers), dtype=np.int32)
        for start, stop in self._pieces(frames):
            for k, model in enumerate(self._models):
                codes[start:stop, :, k] = self._decode(decoder, model, (stop - start) * channels).reshape(-1, channels)
            self._count(codes[start:stop])
        return codes

    def skip(self, codes):
        """Learn from codes, shape = (f, C, K), that were stored in another way."""
        for start, stop in self._pieces(len(codes)):
            self._count(codes[start:stop])

    @staticmethod
    def _decode(decoder, model, amount):
        try:
            return decoder.decode(model, amount)
        except Exception as error:  # constriction 0.5 raises AssertionError, which is not documented
            raise ValueError(f"its entropy-coded codes are invalid ({error})") from error

    def _restart(self, frame):
        """Forget all: the model begins with the block that begins at `frame`."""
        self._origin = frame
        self._frames = self._next_tables = 0
        self._counts = np.zeros((self._shape[1], self._codebook_size), dtype=np.int64)
        self._models = []

    def _pieces(self, frames):
        """First and last frame of each piece; its codes must be counted before the next one is asked for."""
        start = 0
        while start < frames:
            if self._frames == self._next_tables:
                self._models = [self._model(counts) for counts in self._counts]
                self._next_tables += max(1, self._frames // 8)
            stop = min(frames, start + self._next_tables - self._frames)
            yield start, stop
            self._frames += stop - start
            start = stop

    def _count(self, codes):
        for k, counts in enumerate(self._counts):
            counts += np.bincount(codes[:, :, k].ravel(), minlength=self._codebook_size)

    def _model(self, counts):
        # constriction computes floor(float sum of the weights before s * (free / sum of all)) + s, where free is
        # 2^24 - V: with whole weights of that sum the factor is 1, and no float is ever rounded.
        weights = table_weights(counts).astype(np.float64)
        return self._stream.model.Categorical(weights, perfect=False)


def table_weights(counts):
    """The frequencies less one of a table, shape = (V,), int64, whose sum is 2^24 - V."""
    size, total, different = len(counts), int(counts.sum()), int(np.count_nonzero(counts))
    rest = (size - different) * total - different * size
    pseudo_count = 256 if rest <= 0 else max(1, min(256, 256 * different * total // rest))
    weights = (_TOTAL - size) * (256 * counts + pseudo_count) // (256 * total + pseudo_count * size)
    weights[0] += _TOTAL - size - weights.sum()
    return weights


def starts_anew(origin, frame):
    """Whether a model that began at the frame `origin` begins anew with the block that begins at `frame`."""
    return frame - origin >= RESTART


def _shortest(codes):
    """The fewest bytes, in whole words, of a payload of so many codes."""
    return -(-codes // (4 * _CODES_PER_BYTE)) * 4


def _import_stream():
    try:
        from constriction import stream
    except ImportError as error:
        raise ImportError(
            "Entropy-coded .mimi files need the package constriction: pip install 'mimi_hf[entropy]'."
        ) from error
    return stream
