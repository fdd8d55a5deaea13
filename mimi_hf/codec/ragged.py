"""Batches whose rows have different lengths.

Inside the codec all rows begin at step 0 and are silent after their end, so that padding reaches no real frame.
Outside, they stand where the mask says: audio between `start` and `start + count`, codes at the same side of the batch.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .graphs import is_captured


@dataclass(frozen=True)
class Rows:
    """Where the real steps (samples or frames) of each row of a batch lie.

    starts, counts: Tensors, shape = (B,), int64: the first real step, and how many there are.
    length: T, of all rows.
    full: all steps are real, and parts of the batch are views.
    """

    starts: Tensor
    counts: Tensor
    length: int
    full: bool

    @classmethod
    def all_of(cls, x: Tensor, length: int) -> "Rows":
        """Full rows for x: Tensor, shape = (B, …)."""
        starts = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        return cls(starts, torch.full_like(starts, length), length, full=True)

    @classmethod
    def of_mask(cls, mask: Tensor) -> "Rows":
        """The run of True in each row of mask: Tensor, shape = (B, T), bool.

        Raises:
            ValueError: a row has more than one run.
        """
        length = mask.shape[1]
        if not is_captured() and mask.all():
            return cls.all_of(mask, length)
        starts, counts = mask.to(torch.uint8).argmax(dim=1), mask.sum(dim=1)
        ends = length - mask.flip(1).to(torch.uint8).argmax(dim=1)
        broken = (ends - starts != counts) & (counts > 0)
        if not is_captured() and broken.any():
            raise ValueError(
                f"The mask of row {int(broken.nonzero()[0])} has real steps on both sides of padding. The real steps of"
                " a row must be one run: cut the row into several, or mask its ends alone."
            )
        return cls(starts, counts, length, full=False)

    def mask(self) -> Tensor:
        """Tensor, shape = (B, T), bool, True for real steps."""
        return self._real(torch.arange(self.length, device=self.starts.device) - self.starts[:, None])

    def cut(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Steps `start` to `stop` of each row, counted from its first real one, with zeros after its last.

        Args:
            x: Tensor, shape = (B, C, T).
        """
        if self.full:
            return F.pad(x[..., start:], (0, stop - self.length))  # a negative one cuts
        step = torch.arange(start, stop, device=x.device).expand(x.shape[0], -1)
        return _pick(x, self.starts[:, None] + step, self._real(step))

    def place(self, x: Tensor) -> Tensor:
        """Rows that begin at step 0, where they belong, with zeros elsewhere.

        Args:
            x: Tensor, shape = (B, C, S), S at least the counts.

        Returns:
            Tensor, shape = (B, C, T).
        """
        if self.full:
            return x[..., : self.length]
        step = torch.arange(self.length, device=x.device) - self.starts[:, None]
        return _pick(x, step, self._real(step))

    def write(self, whole: Tensor, piece: Tensor, start: int) -> None:
        """[`place`] of a piece that begins at step `start`, into `whole`: Tensor, shape = (B, C, T), zero there yet."""
        if self.full:
            whole[..., start : start + piece.shape[2]] = piece[..., : self.length - start]
            return
        step = torch.arange(start, start + piece.shape[2], device=piece.device).expand(piece.shape[0], -1)
        place = (self.starts[:, None] + step).clamp(max=self.length - 1)
        # What is not real is zero, and adds nothing wherever it comes to lie.
        piece = piece.masked_fill(~self._real(step)[:, None], 0)
        whole.scatter_add_(2, place[:, None].expand_as(piece), piece)

    def _real(self, step: Tensor) -> Tensor:
        """Which steps, counted from the first real one of their row, are real: both Tensors of shape (B, T)."""
        return (step >= 0) & (step < self.counts[:, None])


@dataclass(frozen=True)
class Ragged:
    """Where the rows of a batch lie, in samples and in frames, the last frame of each row padded."""

    samples: Rows
    frames: Rows
    frame_size: int

    @classmethod
    def of_audio(cls, audio: Tensor, padding_mask: Tensor | None, frame_size: int) -> "Ragged":
        """The rows of audio: Tensor, shape = (B, C, N); `padding_mask` marks its real samples.

        There are as many frames as the longest row needs; in a captured graph, as the padded audio needs.
        """
        batch, _, length = audio.shape
        if batch == 0 or length == 0:
            raise ValueError(f"The audio of shape {tuple(audio.shape)} is empty. Encode at least one sample.")
        if padding_mask is None:
            samples = Rows.all_of(audio, length)
        else:
            samples = Rows.of_mask(sample_mask(padding_mask, batch, length).to(audio.device))
        longest = length if samples.full or is_captured() else int(samples.counts.max())
        if longest == 0:
            raise ValueError("padding_mask marks no real sample in any row. Encode at least one sample.")
        return cls._aligned(samples, (longest + frame_size - 1) // frame_size, frame_size)

    @classmethod
    def of_codes(
        cls, codes: Tensor, padding_mask: Tensor | None, codes_mask: Tensor | None, frame_size: int
    ) -> "Ragged":
        """The rows of codes: Tensor, shape = (B, K, F); either mask tells which of them are real."""
        batch, _, length = codes.shape
        if padding_mask is not None and codes_mask is not None:
            raise ValueError("padding_mask and audio_codes_mask were both given. Pass the one that is known.")
        if codes_mask is not None:
            check_mask(codes_mask, "audio_codes_mask")
            if codes_mask.shape != (batch, length):
                raise ValueError(
                    f"audio_codes_mask has shape {tuple(codes_mask.shape)}, but must have shape (batch, frames) ="
                    f" {(batch, length)}."
                )
            frames = Rows.of_mask(codes_mask.bool().to(codes.device))
            starts, counts = frames.starts * frame_size, frames.counts * frame_size
            return cls(Rows(starts, counts, length * frame_size, frames.full), frames, frame_size)
        if padding_mask is None:
            return cls(Rows.all_of(codes, length * frame_size), Rows.all_of(codes, length), frame_size)
        check_mask(padding_mask, "padding_mask")
        samples = Rows.of_mask(sample_mask(padding_mask, batch, padding_mask.shape[-1]).to(codes.device))
        if not is_captured() and (samples.counts > length * frame_size).any():
            raise ValueError(
                f"The mask marks {int(samples.counts.max())} real samples in a row, but {length} frames of codes hold"
                f" only {length * frame_size}. Pass the mask of the audio that these codes were made from."
            )
        return cls._aligned(samples, length, frame_size)

    @classmethod
    def _aligned(cls, samples: Rows, length: int, frame_size: int) -> "Ragged":
        """`length` frames, on the right where all the padding of the batch is on the left, otherwise on the left."""
        counts = -(-samples.counts // frame_size)
        ends = torch.where(samples.counts > 0, samples.starts + samples.counts, samples.length)
        left = (samples.starts > 0).any() & (ends == samples.length).all()
        full = samples.full and (samples.length + frame_size - 1) // frame_size == length
        return cls(samples, Rows(torch.where(left, length - counts, 0), counts, length, full), frame_size)


def _pick(x: Tensor, step: Tensor, real: Tensor) -> Tensor:
    """Steps of x: Tensor, shape = (B, C, S), where they are real, and zeros elsewhere.

    Args:
        step, real: Tensors, shape = (B, T), indices and bool.
    """
    index = step.clamp(0, x.shape[2] - 1)[:, None].expand(-1, x.shape[1], -1)
    return x.gather(2, index).masked_fill(~real[:, None], 0)


def frame_mask(counts: Tensor, frames: int, left: bool = False) -> Tensor:
    """counts: Tensor, shape = (B,) -> Tensor, shape = (B, frames), True for the first (last where `left`) `counts`."""
    mask = torch.arange(frames, device=counts.device) < counts[:, None]
    return mask.flip(1) if left else mask


def check_mask(mask: Any, name: str) -> None:
    """Refuse a mask that is no tensor."""
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} is of type {type(mask).__name__}, but must be a tensor: use torch.as_tensor(mask).")


def sample_mask(padding_mask: Tensor, batch: int, samples: int) -> Tensor:
    """padding_mask: Tensor, shape = (B, N) or (B, C, N) -> Tensor, shape = (B, N), bool."""
    check_mask(padding_mask, "padding_mask")
    shape = tuple(padding_mask.shape)
    if padding_mask.dim() == 3 and shape[0] == batch and shape[2] == samples:
        return padding_mask.bool().any(dim=1)
    if shape != (batch, samples):
        raise ValueError(
            f"padding_mask has shape {shape}, but must have shape (batch, samples) = {(batch, samples)}, or"
            " (batch, channels, samples)."
        )
    return padding_mask.bool()
