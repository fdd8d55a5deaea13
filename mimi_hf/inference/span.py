"""The part of a `.mimi` file that is decoded: where it lies, and the audio cut to it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mimi_hf.bitstream import BitstreamReader

if TYPE_CHECKING:
    from mimi_hf.configuration_mimi import MimiConfig

    from .file_options import DecodeOptions

# Windows of attention that are decoded before the first wanted frame. One leaves errors 60 dB below the audio, two
# leave 100 dB, less than the rounding of 16-bit samples (a seeded model of the published size).
_CONTEXT_WINDOWS = 2
_CONTEXT_FRAMES = 8  # besides: what the convolutions reach back


@dataclass(frozen=True)
class Span:
    """The part of a file to decode.

    begin, end: in samples; `end` is None where it is not known yet.
    first_frame: where decoding starts, early enough to give `begin` its context.
    partial: whether it ends before the file does.
    complete: whether the end mark of the file was seen.
    """

    begin: int
    end: int | None
    first_frame: int
    partial: bool
    complete: bool

    @classmethod
    def find(
        cls, reader: BitstreamReader, options: DecodeOptions, config: MimiConfig, seekable: bool, name: str
    ) -> Span:
        """Find the part that `options` ask for.

        Args:
            reader: of the file, at its first block.
            options: with start and duration.
            config: of the model.
            seekable: whether the file can be scanned first.
            name: of the file, for messages.

        Raises:
            ValueError: it begins past the end of the file.
        """
        header, complete = reader.header, False
        begin, total = round(options.start * header.sampling_rate), header.num_samples
        if seekable:
            facts = reader.scan()
            total, complete = facts.num_samples, facts.complete
            total = facts.num_frames * header.frame_size if total is None else total
        end, partial = total, False
        if options.duration is not None:
            wanted = begin + max(1, round(options.duration * header.sampling_rate))
            partial = total is None or wanted <= total
            end = wanted if partial else total
        context = _CONTEXT_WINDOWS * config.sliding_window // config.latent_stride + _CONTEXT_FRAMES
        first = max(0, begin // header.frame_size - context)
        span = cls(begin, end, first, partial, complete)
        if total is not None and begin >= total:
            raise span.missing(name)
        return span

    @property
    def num_samples(self) -> int | None:
        """Samples per channel; None where the end is not known yet."""
        return None if self.end is None else self.end - self.begin

    def missing(self, name: str) -> ValueError:
        """The error for a file that holds nothing of the span."""
        if self.begin == 0:
            return ValueError(f"{name} is empty: it holds no whole block of codes. Leave it out.")
        return ValueError(f"The start lies past the end of {name}. Start earlier; mimi-hf info tells how long it is.")

    def cut(self, blocks: Iterable[np.ndarray], frame_size: int) -> Iterator[np.ndarray]:
        """Cut decoded audio, shape = (C, n) a block, from `first_frame` on, to the span; none of the parts is empty."""
        start = self.first_frame * frame_size
        for audio in blocks:
            end = None if self.end is None else max(0, self.end - start)
            wanted = audio[:, max(0, self.begin - start) : end]
            if wanted.shape[1]:
                yield wanted
            start += audio.shape[1]
            if self.partial and self.end is not None and start >= self.end:
                return

    def drop_padding(self, blocks: Iterable[np.ndarray], reader: BitstreamReader) -> Iterator[np.ndarray]:
        """Give what [`cut`] gives one block late: the end mark of the file may shorten the last one."""
        held, end = None, self.begin
        for audio in blocks:
            if held is not None:
                yield held
            held = audio
            end += audio.shape[1]
        if held is not None:
            padding = 0 if reader.num_samples is None else max(0, end - reader.num_samples)
            if padding < held.shape[1]:
                yield held[:, : held.shape[1] - padding]
