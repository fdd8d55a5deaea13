"""Batches whose rows have different lengths.

Inside the codec all rows begin at step 0 and are silent after their end, so that padding reaches no real frame.
Outside, they stand where the mask says: audio between `start` and `start + count`, codes at the same side of the batch.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """Where the rows of a batch lie.

    starts, counts: the first real sample of each row, and how many there are.
    num_samples: N, of the padded audio.
    frame_starts, frame_counts: the same of its frames, the last of each row padded.
    frames: F, of the padded codes.
    frame_size: samples per frame.
    """

    starts: list[int]
    counts: list[int]
    num_samples: int
    frame_starts: list[int]
    frame_counts: list[int]
    frames: int
    frame_size: int

    @classmethod
    def of_audio(cls, audio: Tensor, padding_mask: Tensor | None, frame_size: int) -> "Ragged":
        """The rows of audio: Tensor, shape = (B, C, N); `padding_mask` marks its real samples."""
        batch, _, samples = audio.shape
        if batch == 0 or samples == 0:
            raise ValueError(f"The audio of shape {tuple(audio.shape)} is empty. Encode at least one sample.")
        starts, counts = [0] * batch, [samples] * batch
        if padding_mask is not None:
            starts, counts = _runs(sample_mask(padding_mask, batch, samples))
            if max(counts) == 0:
                raise ValueError("padding_mask marks no real sample in any row. Encode at least one sample.")
        return cls._aligned(starts, counts, samples, -(-max(counts) // frame_size), frame_size)

    @classmethod
    def of_codes(
        cls, codes: Tensor, padding_mask: Tensor | None, codes_mask: Tensor | None, frame_size: int
    ) -> "Ragged":
        """The rows of codes: Tensor, shape = (B, K, F); either mask tells which of them are real."""
        batch, _, frames = codes.shape
        samples = frames * frame_size
        starts, counts = [0] * batch, [samples] * batch
        if padding_mask is not None and codes_mask is not None:
            raise ValueError("padding_mask and audio_codes_mask were both given. Pass the one that is known.")
        if padding_mask is not None:
            check_mask(padding_mask, "padding_mask")
            samples = padding_mask.shape[-1]
            starts, counts = _runs(sample_mask(padding_mask, batch, samples))
        elif codes_mask is not None:
            check_mask(codes_mask, "audio_codes_mask")
            if codes_mask.shape != (batch, frames):
                raise ValueError(
                    f"audio_codes_mask has shape {tuple(codes_mask.shape)}, but must have shape (batch, frames) ="
                    f" {(batch, frames)}."
                )
            frame_starts, frame_counts = _runs(codes_mask.bool())
            starts, counts = ([extent * frame_size for extent in extents] for extents in (frame_starts, frame_counts))
            return cls(starts, counts, samples, frame_starts, frame_counts, frames, frame_size)
        if max(counts) > frames * frame_size:
            raise ValueError(
                f"The mask marks {max(counts)} real samples in a row, but {frames} frames of codes hold only"
                f" {frames * frame_size}. Pass the mask of the audio that these codes were made from."
            )
        return cls._aligned(starts, counts, samples, frames, frame_size)

    @classmethod
    def _aligned(cls, starts: list[int], counts: list[int], samples: int, frames: int, frame_size: int) -> "Ragged":
        """Frames on the right where all the padding of the batch is on the left, otherwise on the left."""
        frame_counts = [-(-count // frame_size) for count in counts]
        ends = [start + count for start, count in zip(starts, counts, strict=True) if count]
        left = any(starts) and min(ends) == samples
        frame_starts = [frames - count if left else 0 for count in frame_counts]
        return cls(starts, counts, samples, frame_starts, frame_counts, frames, frame_size)

    def frame_mask(self, device: torch.device) -> Tensor:
        """Tensor, shape = (B, F), bool, True for real frames."""
        starts, counts = torch.tensor([self.frame_starts, self.frame_counts], device=device)[..., None]
        frame = torch.arange(self.frames, device=device)
        return (frame >= starts) & (frame < starts + counts)

    def cut_audio(self, audio: Tensor, start: int, stop: int) -> Tensor:
        """Samples `start` to `stop` of each row, counted from its first real one, with zeros after its last."""
        return _cut(audio, self.starts, self.counts, start, stop)

    def cut_frames(self, codes: Tensor, start: int, stop: int) -> Tensor:
        """Frames `start` to `stop` of each row, counted from its first real one, with zeros after its last."""
        return _cut(codes, self.frame_starts, self.frame_counts, start, stop)

    def place_audio(self, audio: Tensor) -> Tensor:
        """Rows that begin at 0, shape = (B, C, F * frame_size), where the mask has them: shape = (B, C, N)."""
        return _place(audio, self.starts, self.counts, self.num_samples)

    def place_frames(self, codes: Tensor) -> Tensor:
        """Rows that begin at 0, shape = (B, K, F), at the side where they belong, zeros elsewhere."""
        return _place(codes, self.frame_starts, self.frame_counts, self.frames)

    def write_audio(self, whole: Tensor, piece: Tensor, start: int) -> None:
        """[`place_audio`] of a piece that begins at sample `start`, into `whole`: Tensor, shape = (B, C, N)."""
        for row, (first, count) in enumerate(zip(self.starts, self.counts, strict=True)):
            length = max(0, min(piece.shape[2], count - start))
            whole[row, :, first + start : first + start + length] = piece[row, :, :length]


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


def _runs(mask: Tensor) -> tuple[list[int], list[int]]:
    """Start and length of the run of True in each row of mask: Tensor, shape = (B, N), bool."""
    if mask.shape[1] == 0:
        return [0] * len(mask), [0] * len(mask)
    starts, counts = mask.to(torch.uint8).argmax(dim=1), mask.sum(dim=1)
    ends = mask.shape[1] - mask.flip(1).to(torch.uint8).argmax(dim=1)
    broken = ((ends - starts != counts) & (counts > 0)).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"The mask of row {broken[0]} has real steps on both sides of padding. The real steps of a row must be one"
            " run: cut the row into several, or mask its ends alone."
        )
    return starts.tolist(), counts.tolist()


def _cut(x: Tensor, starts: list[int], counts: list[int], start: int, stop: int) -> Tensor:
    if not any(starts) and min(counts) >= stop:
        return x[..., start:stop]
    rows = []
    for row, first, count in zip(x, starts, counts, strict=True):
        row = row[..., first + min(start, count) : first + min(stop, count)]
        rows.append(F.pad(row, (0, stop - start - row.shape[-1])))
    return torch.stack(rows)


def _place(x: Tensor, starts: list[int], counts: list[int], length: int) -> Tensor:
    if not any(starts) and min(counts) == length:
        return x[..., :length]
    rows = zip(x, starts, counts, strict=True)
    return torch.stack([F.pad(row[..., :count], (start, length - start - count)) for row, start, count in rows])
