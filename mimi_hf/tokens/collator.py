"""Prepare codes for speech language models: delay codebooks, flatten frames to one sequence, pad to a batch.

Letters for shapes: B batch, K codebooks, F frames, V codebook size. Every function has its inverse beside it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mimi_hf.utils.arrays import to_numpy

IGNORED = -100  # the label that losses of transformers skip


def apply_delay(codes: Tensor, delay: Sequence[int], fill: int) -> Tensor:
    """Shift each codebook in time, as MusicGen (`range(K)`) and Moshi (`[0, 1, 1, …]`) do.

    Args:
        codes: Tensor, shape = (…, K, F).
        delay: for each of the K codebooks, the frames by which it comes later; not negative.
        fill: the value before a delayed codebook begins, and after one ends.

    Returns:
        Tensor, shape = (…, K, F + max(delay)).

    Raises:
        ValueError: `delay` is negative, or has another length than K.

    Example:
        >>> apply_delay(torch.tensor([[1, 2, 3], [4, 5, 6]]), delay=[0, 1], fill=9)
        tensor([[1, 2, 3, 9],
                [9, 4, 5, 6]])
    """
    delay = _check_delay(delay, codes.shape[-2])
    frames = codes.shape[-1]
    delayed = codes.new_full((*codes.shape[:-1], frames + max(delay)), fill)
    for codebook, shift in enumerate(delay):
        delayed[..., codebook, shift : shift + frames] = codes[..., codebook, :]
    return delayed


def undo_delay(codes: Tensor, delay: Sequence[int]) -> Tensor:
    """Undo [`apply_delay`]. Of a sequence that is still being generated, this gives the frames that are complete.

    Args:
        codes: Tensor, shape = (…, K, F).
        delay: as for [`apply_delay`].

    Returns:
        Tensor, shape = (…, K, max(0, F - max(delay))).

    Raises:
        ValueError: `delay` is negative, or has another length than K.
    """
    delay = _check_delay(delay, codes.shape[-2])
    frames = max(0, codes.shape[-1] - max(delay))
    return torch.stack([codes[..., k, shift : shift + frames] for k, shift in enumerate(delay)], dim=-2)


def flatten_codes(codes: Tensor, offset: int = 0) -> Tensor:
    """Put all codes into one sequence, frame by frame; a frame has the codes of its K codebooks, in order.

    Args:
        codes: Tensor, shape = (…, K, F).
        offset: `k * offset` is added to the codes of codebook k. With offset V, no two codebooks share an id.

    Returns:
        Tensor, shape = (…, F * K).

    Example:
        >>> flatten_codes(torch.tensor([[1, 2, 3], [4, 5, 6]]), offset=10)
        tensor([ 1, 14,  2, 15,  3, 16])
    """
    return (codes + _offsets(codes, offset)).transpose(-1, -2).flatten(-2)


def unflatten_codes(ids: Tensor, num_quantizers: int, offset: int = 0) -> Tensor:
    """Undo [`flatten_codes`].

    Args:
        ids: Tensor, shape = (…, F * K).
        num_quantizers: K.
        offset: as for [`flatten_codes`].

    Returns:
        Tensor, shape = (…, K, F).

    Raises:
        ValueError: the length of the sequence is not a multiple of K.
    """
    if ids.shape[-1] % num_quantizers:
        raise ValueError(
            f"A sequence of {ids.shape[-1]} ids is not made of whole frames of {num_quantizers} codes. Cut it to"
            f" {ids.shape[-1] // num_quantizers * num_quantizers}."
        )
    codes = ids.unflatten(-1, (ids.shape[-1] // num_quantizers, num_quantizers)).transpose(-1, -2)
    return codes - _offsets(codes, offset)


@dataclass(frozen=True)
class AudioCodesCollator:
    """Makes a batch of examples with codes: the `collate_fn` of a `DataLoader`, or the `data_collator` of a `Trainer`.

    A batch is a dictionary of

    - `audio_codes`: Tensor, shape = (B, K, F), int64, padded on the right with `pad_id`; or, with `flatten`,
      `input_ids`: Tensor, shape = (B, F * K);
    - `attention_mask`: Tensor, shape = (B, F), or (B, F * K), int64: 1 for the frames of the example and its delays,
      0 for padding;
    - `labels`, on request: the same codes, with -100 wherever there is no code. Models of transformers shift labels
      themselves.

    F is the length of the longest example plus the largest delay. [`restore`] gives back the codes of each example.

    Args:
        codes_column: the key of an example's codes, (K, F): lists, an array or a tensor.
        codebook_size: V.
        num_quantizers: use this many codebooks, the first ones; all by default.
        delay: frames by which each codebook comes later: a list; or one number for all but the first, as in Moshi.
        flatten: put the codes of an example into one sequence, frame by frame.
        offset: with `flatten`, shift the ids of codebook k by k * V, so that no two codebooks share an id.
        pad_id: the id where there is no code; by default the first free one: V, or K * V with `offset`.
        labels: add `labels`.

    Raises:
        ValueError: the arguments contradict each other.

    Example:
        >>> examples = [{"audio_codes": [[1, 2], [3, 4]]}, {"audio_codes": [[5], [6]]}]
        >>> batch = AudioCodesCollator(codebook_size=8, delay=1)(examples)
        >>> batch["audio_codes"].tolist()
        [[[1, 2, 8], [8, 3, 4]], [[5, 8, 8], [8, 6, 8]]]
        >>> batch["attention_mask"].tolist()
        [[1, 1, 1], [1, 1, 0]]
    """

    codes_column: str = "audio_codes"
    codebook_size: int = 2048
    num_quantizers: int | None = None
    delay: int | Sequence[int] | None = None
    flatten: bool = False
    offset: bool = False
    pad_id: int | None = None
    labels: bool = False

    def __post_init__(self) -> None:
        if self.offset and not self.flatten:
            raise ValueError(
                "offset=True needs flatten=True: codebooks that lie apart have their own ids. Leave it out."
            )
        if self.num_quantizers is not None and self.num_quantizers < 1:
            raise ValueError(f"num_quantizers={self.num_quantizers!r} must be at least 1, or None for all.")
        if isinstance(self.delay, Iterable):
            object.__setattr__(self, "delay", _check_delay(self.delay, len(list(self.delay))))
        elif self.delay is not None:
            _check_delay([self.delay], 1)

    def __call__(self, examples: Sequence[Mapping]) -> dict[str, Tensor]:
        """Make the batch of some examples.

        Raises:
            ValueError: codes are out of range, or examples differ in codebooks. The message names the example.
            TypeError: an example has no integers of shape (K, F).
        """
        rows = [self._read(index, example) for index, example in enumerate(examples)]
        if not rows:
            raise ValueError("There are no examples, but a batch needs at least one.")
        quantizers = {len(row) for row in rows}
        if len(quantizers) > 1:
            raise ValueError(
                f"The examples have {', '.join(map(str, sorted(quantizers)))} codebooks, but a batch needs one number."
                f" Give num_quantizers={min(quantizers)}."
            )
        count = quantizers.pop()
        delay, free = self._delay_of(count), self.codebook_size * (count if self.offset else 1)
        pad_id = free if self.pad_id is None else self.pad_id
        if 0 <= pad_id < free:
            raise ValueError(f"pad_id={pad_id} is also a code: these are 0 to {free - 1}. Give {free}, or None.")
        lengths = torch.tensor([row.shape[1] for row in rows])
        codes = torch.full((len(rows), count, int(lengths.max())), -1)
        for row, into in zip(rows, codes, strict=True):
            into[:, : row.shape[1]] = row
        codes = apply_delay(codes, delay, fill=-1)  # (B, K, F), -1 where there is no code
        # An example without frames has no delay either.
        ends = torch.where(lengths > 0, lengths + max(delay), 0)
        mask = (torch.arange(codes.shape[2]) < ends[:, None]).long()
        absent = codes < 0
        if self.flatten:
            codes, absent = flatten_codes(codes, self._offset), flatten_codes(absent.long()).bool()
            mask = mask.repeat_interleave(count, dim=1)
        batch = {
            "input_ids" if self.flatten else "audio_codes": codes.masked_fill(absent, pad_id),
            "attention_mask": mask,
        }
        if self.labels:
            batch["labels"] = codes.masked_fill(absent, IGNORED)
        return batch

    def restore(self, batch: Mapping[str, Tensor], num_quantizers: int | None = None) -> list[Tensor]:
        """Give back the codes of each example of a batch, for example to decode a prediction.

        Args:
            batch: a batch as this collator makes them.
            num_quantizers: K, for a flattened batch, where the collator was not given it.

        Returns:
            For each example Tensor, shape = (K, F), int64.

        Raises:
            ValueError: the batch is flattened, and K is not known.
        """
        codes, mask = batch["input_ids" if self.flatten else "audio_codes"], batch["attention_mask"]
        if self.flatten:
            listed = len(self.delay) if isinstance(self.delay, Sequence) else None
            num_quantizers = num_quantizers or self.num_quantizers or listed
            if num_quantizers is None:
                raise ValueError("A flattened batch does not tell how many codebooks it has. Give num_quantizers.")
            codes, mask = unflatten_codes(codes, num_quantizers, self._offset), mask[:, ::num_quantizers]
        delay = self._delay_of(codes.shape[1])
        return [undo_delay(row[:, : int(real.sum())], delay) for row, real in zip(codes, mask, strict=True)]

    @property
    def _offset(self) -> int:
        return self.codebook_size if self.offset else 0

    def _read(self, index: int, example: Mapping) -> Tensor:
        """The codes of an example: Tensor, shape = (K, F), int64."""
        if self.codes_column not in example:
            raise ValueError(
                f"Example {index} has no {self.codes_column!r}, but {', '.join(map(repr, example))}. Give codes_column;"
                " for a Trainer, remove_unused_columns=False."
            )
        value = example[self.codes_column]
        codes = to_numpy(value)
        if codes.ndim != 2 or not len(codes) or (codes.size and codes.dtype.kind not in "iu"):
            raise TypeError(
                f"The codes of example {index} are {codes.dtype} of shape {codes.shape}, but integers, (codebooks,"
                " frames), are needed."
            )
        codes = torch.from_numpy(codes.astype("int64"))
        low, high = (int(extreme) for extreme in codes.aminmax()) if codes.numel() else (0, 0)
        if low < 0 or high >= self.codebook_size:
            raise ValueError(
                f"The codes of example {index} are from {low} to {high}, but entries are 0 to {self.codebook_size - 1}."
                " Give codebook_size, or leave out padding."
            )
        if self.num_quantizers is not None and len(codes) < self.num_quantizers:
            raise ValueError(
                f"The codes of example {index} are of {len(codes)} codebooks, fewer than"
                f" num_quantizers={self.num_quantizers}."
            )
        return codes[: self.num_quantizers]

    def _delay_of(self, count: int) -> list[int]:
        """The delay of each of `count` codebooks."""
        if isinstance(self.delay, Sequence):
            return _check_delay(self.delay, count)
        return [0] + [self.delay or 0] * (count - 1)


def _check_delay(delay: Iterable[int], codebooks: int) -> list[int]:
    delay = list(delay)
    if any(isinstance(shift, bool) or not isinstance(shift, int) or shift < 0 for shift in delay):
        raise ValueError(f"delay={delay} must be made of whole numbers of frames, not negative.")
    if len(delay) != codebooks:
        raise ValueError(f"delay={delay} is of {len(delay)} codebooks, but there are {codebooks}. Give one for each.")
    return delay


def _offsets(codes: Tensor, offset: int) -> Tensor:
    """What is added to each codebook: Tensor, shape = (K, 1)."""
    return torch.arange(codes.shape[-2], device=codes.device)[:, None] * offset


__all__ = ["AudioCodesCollator", "apply_delay", "flatten_codes", "undo_delay", "unflatten_codes"]
