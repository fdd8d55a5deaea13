"""Recordings of a source, in pieces short enough for metrics."""

import itertools
import os
from collections.abc import Iterator

import numpy as np

from mimi_hf.codec.steps import CodecConfig
from mimi_hf.corpus.reading import check_finite, open_blocks
from mimi_hf.corpus.sources import Example, Source, open_source

# Seconds. PESQ is defined for up to 30. Longer recordings are cut every 20, so that the rest, of 10 to 30, is never too
# short to be measured.
LONGEST, PIECE = 30.0, 20.0


def open_examples(source: Source | str | os.PathLike, limit: int | None = None) -> tuple[Iterator[Example], int | None]:
    """Open a source of recordings.

    Args:
        source: a [`Source`], or what [`mimi_hf.corpus.sources.open_source`] opens: a file, a folder, a data set.
        limit: how many examples to take, from the first; all by default.

    Returns:
        The examples, and how many there are; None if that is not known beforehand.

    Raises:
        FileNotFoundError, ValueError: there is no audio, or `limit` is not positive.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit_files={limit} must be at least 1, or None for all.")
    if not isinstance(source, Source):
        source = open_source(source)
    shards = source.shards(1000)
    count = sum(len(shard["files"]) for shard in shards) if source.kind == "folder" else limit
    examples = itertools.chain.from_iterable(map(source.read, shards))
    return itertools.islice(examples, limit), count if limit is None or count is None else min(count, limit)


def read_pieces(example: Example, config: CodecConfig, seconds: float | None = None) -> Iterator[np.ndarray]:
    """Read the audio of an example in pieces, at the sampling rate of a codec.

    A recording of at most 30 s is one piece. A longer one is cut into pieces of 20 s and a last one of 10 to 30 s.

    Args:
        example: from a source.
        config: of the codec.
        seconds: how much to read, from the start; all by default.

    Yields:
        Arrays, shape = (C, n), float32. All but the last one hold whole frames.

    Raises:
        OSError, ValueError, TypeError: the audio cannot be read, is empty, or holds NaN or infinity.
    """
    rate, frame = config.sampling_rate, config.frame_size
    piece, longest = (max(1, int(length * rate) // frame) * frame for length in (PIECE, LONGEST))
    most = None if seconds is None else round(seconds * rate)
    held, taken = np.empty((config.audio_channels, 0), np.float32), 0
    with open_blocks(example, rate, config.audio_channels, PIECE) as blocks:
        for block in blocks:
            block = check_finite(block if most is None else block[:, : most - taken])
            taken += block.shape[1]
            held = np.concatenate([held, block], axis=1)
            while held.shape[1] > longest:
                yield held[:, :piece]
                held = held[:, piece:]
            if taken == most:
                break
    if not taken:
        raise ValueError("it is empty: it has no samples.")
    yield held
