"""Recordings of a source, in pieces that metrics can take."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from mimi_hf.corpus.reading import check_finite, open_blocks
from mimi_hf.corpus.sources import Example, Source, open_source

# Seconds. PESQ is defined for up to 30; a piece is of 20 where there is more, so that no end is left over that is too
# short to be measured.
LONGEST, PIECE = 30.0, 20.0


def open_examples(source, limit: int | None = None) -> tuple[Iterator[Example], int | None]:
    """The first `limit` examples of a source, all by default, and how many they are, where that is known beforehand.

    Args:
        source: a [`Source`], or what [`mimi_hf.corpus.sources.open_source`] opens: a file, a folder, ….

    Raises:
        FileNotFoundError, ValueError: there is no audio.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit_files={limit} must be at least 1, or None for all.")
    if not isinstance(source, Source):
        source = open_source(source)
    shards = source.shards(1000)
    count = sum(len(shard["files"]) for shard in shards) if source.kind == "folder" else limit
    examples = itertools.chain.from_iterable(map(source.read, shards))
    return itertools.islice(examples, limit), count if limit is None or count is None else min(count, limit)


def read_pieces(example: Example, config, seconds: float | None = None) -> Iterator[np.ndarray]:
    """The audio of an example in one piece of at most 30 s, or, where it is longer, in some of 20 to 30 s at the end
    and 20 s before it, at the rate of a model.

    Args:
        config: the model's, a [`MimiConfig`].
        seconds: how much of it to read, from its start; all by default.

    Yields:
        arrays, shape = (C, n), float32; n is a multiple of the model's frame but for the last one.

    Raises:
        OSError, ValueError, TypeError: it cannot be read, is empty, or not finite.
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


def levels_of(model, wanted: Iterable[int] | None, default: tuple[int, ...]) -> list[int]:
    """The numbers of codebooks to evaluate, sorted; those of `default` that the model has, where None are wanted.

    Raises:
        TypeError, ValueError: for one that the model does not have.
    """
    if wanted is None:
        least, most = model.quantizer.num_semantic_quantizers, model.quantizer.max_num_quantizers
        return [level for level in default if least <= level <= most] or [most]
    levels = sorted({model.quantizer.check_num_quantizers(level) for level in wanted})
    if not levels:
        raise ValueError("num_quantizers names no number of codebooks. Leave it out for 1, 2, 4 and 8.")
    return levels
